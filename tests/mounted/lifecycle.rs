//! Mounting, status, and every way to unmount.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{LIMIT, require, run_within, script};
use crate::mount::{Backend, Volume, number, on_each_backend};
use crate::s3::{Mode, S3Server};
use crate::tree::{MIB, write_noise};

on_each_backend! {
    the_daemon_is_detached_and_named_by_its_mountpoint within 120 s,
    the_daemon_may_open_as_many_files_as_the_system_allows within 120 s,
    status_has_the_fields_and_numbers_it_promises within 120 s,
    umount_and_fusermount_end_where_our_umount_does within 180 s,
    a_dead_mount_is_replaced_and_loses_nothing_synced within 120 s,
    a_read_only_mount_changes_nothing within 120 s,
    a_busy_mount_is_not_unmounted within 120 s,
    free_space_is_told within 120 s,
    status_tells_when_changes_are_refused_and_when_the_volume_has_diverged within 180 s,
}

fn the_daemon_is_detached_and_named_by_its_mountpoint(volume: &Volume) {
    volume.mount();
    let daemons = volume.daemons();
    assert_eq!(daemons.len(), 1, "one process per mount");
    let process = format!("/proc/{}", daemons[0]);
    let process = Path::new(&process);
    assert_eq!(fs::read_link(process.join("cwd")).expect("cwd"), Path::new("/"));
    let stat = fs::read_to_string(process.join("stat")).expect("stat");
    let fields: Vec<_> = stat.rsplit(')').next().expect("behind the name").split_whitespace().collect();
    assert_eq!(fields[3], daemons[0].to_string(), "leads a session of its own");
    let umask = |status: &Path| {
        let status = fs::read_to_string(status).expect("status");
        status.lines().find(|line| line.starts_with("Umask:")).expect("told since Linux 4.7").to_owned()
    };
    assert_eq!(umask(&process.join("status")), umask(Path::new("/proc/self/status")), "its starter's");
    for descriptor in fs::read_dir(process.join("fd")).expect("fd").flatten() {
        let target = fs::read_link(descriptor.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        assert!(!target.starts_with("/dev/pts"), "holds the terminal");
        if let Some(pipe) = target.strip_prefix("pipe:") {
            let ours = fs::read_dir("/proc/self/fd").expect("fd").flatten();
            let same = |entry: fs::DirEntry| {
                fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy() == target)
            };
            assert!(!ours.into_iter().any(same), "inherited a pipe of its starter: {pipe}");
        }
    }
    let status = volume.status();
    assert_eq!(status["pid"], daemons[0]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let path = volume.mountpoint();
    let line = mounts.lines().find(|line| line.contains(path.to_str().expect("text"))).expect("mounted");
    assert!(line.contains(" - fuse.gravitonfs "), "{line}");
    assert!(line.contains("rw,") && !line.contains("nosuid") && !line.contains("nodev"), "{line}");
    for option in ["default_permissions", "allow_other"] {
        assert!(line.contains(option), "{line}");
    }
}

fn the_daemon_may_open_as_many_files_as_the_system_allows(volume: &Volume) {
    let mount = volume.mount_command(&volume.url(), &volume.mountpoint(), &["--create"]);
    let mut command = Command::new("bash");
    command.args(["-c", "ulimit -Sn 256; exec \"$0\" \"$@\""]);
    command.arg(mount.get_program()).args(mount.get_args());
    command.env_clear().envs(mount.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let finished = run_within(LIMIT, &mut command).expect("returns in time");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let limits = format!("/proc/{}/limits", volume.daemons()[0]);
    let limits = fs::read_to_string(limits).expect("limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("has the limit");
    let numbers: Vec<_> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers[0], numbers[1], "{line}");
    assert_ne!(numbers[0], "256", "{line}");
}

fn status_has_the_fields_and_numbers_it_promises(volume: &Volume) {
    volume.mount();
    fs::create_dir(volume.path("directory")).expect("mkdir");
    write_noise(&volume.path("directory/file"), b"", 3, 3 * MIB);
    fs::write(volume.path("small"), "small").expect("write");
    volume.sync();
    let status = volume.status();
    assert_eq!(status["schema"], 1);
    assert_eq!(status["mountpoint"], volume.mountpoint().to_str().expect("text"));
    assert_eq!((&status["state"], &status["durability"]), (&"mounted".into(), &"local".into()));
    assert_eq!(status["fencing"], "cas", "both stores create atomically");
    assert!(status["volume_id"].as_str().is_some_and(|id| !id.is_empty()), "{status}");
    assert_eq!(number(&status, "logical_bytes"), 3 * MIB as u64 + 5, "{status}");
    let files = number(&status, "files");
    assert!((2..=4).contains(&files), "{status}");
    let stored = volume.stored();
    let told = number(&status, "stored_bytes");
    assert!(told.abs_diff(stored.packs + stored.journal) <= stored.all / 20, "{told}: {stored:?}");
    for field in ["dirty_bytes", "pending_upload_bytes", "oldest_pending_seconds"] {
        assert_eq!(number(&status, field), 0, "after sync: {field}");
    }
    assert!(3 * MIB as u64 <= number(&status, "sent_bytes"), "{status}");
    assert!(0 < number(&status, "memory_bytes"), "{status}");
    number(&status, "cache_bytes");
    number(&status, "received_bytes");
    assert!(0 < volume.requests().put);

    // The volume is as good a name as the mountpoint, also when it is not mounted.
    let of_volume = |expected: &str| {
        let mut command = volume.gravitonfs(&["status", "--json", &volume.url()]);
        let finished = run_within(LIMIT, command.args(volume.store_options())).expect("returns in time");
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let status: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
        assert_eq!(status["state"], expected, "{status}");
        status["volume_id"].clone()
    };
    assert_eq!(of_volume("mounted"), status["volume_id"]);
    volume.umount();
    assert_eq!(of_volume("unmounted"), status["volume_id"]);
}

fn umount_and_fusermount_end_where_our_umount_does(volume: &Volume) {
    require(&["umount", "fusermount3"]);
    for (round, program) in ["umount", "fusermount3 -u", "umount -l"].iter().enumerate() {
        volume.mount();
        let digest = write_noise(&volume.path(&format!("file-{round}")), b"", round as u64, 5 * MIB);
        script(Path::new("/"), &format!("{program} {}", volume.mountpoint().display()));
        assert!(!volume.is_mounted());
        // The daemon drains behind them.
        let begun = Instant::now();
        while !volume.daemons().is_empty() {
            assert!(begun.elapsed() < LIMIT, "the daemon does not end\n{}", volume.log_tail());
            std::thread::sleep(Duration::from_millis(50));
        }
        volume.wipe_local();
        volume.mount();
        assert_eq!(crate::tree::digest(&volume.path(&format!("file-{round}"))), digest, "{program}");
        volume.umount();
    }
}

fn a_dead_mount_is_replaced_and_loses_nothing_synced(volume: &Volume) {
    volume.mount();
    let digest = write_noise(&volume.path("file"), b"", 4, 5 * MIB);
    volume.sync();
    let daemon = volume.daemons()[0];
    kill(Pid::from_raw(daemon), Signal::SIGKILL).expect("kill the daemon");
    let begun = Instant::now();
    while !volume.daemons().is_empty() {
        assert!(begun.elapsed() < LIMIT, "SIGKILL ends a process");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(volume.is_mounted(), "a dead mount stays in the table");
    volume.expect_complaints(&["dead mount", "not unmounted", "recover"]);
    volume.mount();
    assert_eq!(crate::tree::digest(&volume.path("file")), digest);
}

fn a_read_only_mount_changes_nothing(volume: &Volume) {
    volume.mount();
    fs::write(volume.path("file"), "content").expect("write");
    volume.umount();
    let before = volume.objects();
    volume.mount_with(&["-o", "ro"]);
    assert_eq!(fs::read(volume.path("file")).expect("read"), b"content");
    let refused = fs::write(volume.path("new"), "").expect_err("read-only");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    let status = volume.status();
    assert_eq!(status["state"], "read-only");
    let known = if volume.server.is_some() { "unknown" } else { "cas" };
    assert_eq!(status["fencing"], known, "nothing is written to find out");
    volume.umount();
    assert_eq!(volume.objects(), before, "not even a record");
}

fn a_busy_mount_is_not_unmounted(volume: &Volume) {
    volume.mount();
    let file = fs::File::create(volume.path("open")).expect("create");
    let mut command: Command = volume.gravitonfs(&["umount"]);
    let finished = run_within(LIMIT, command.arg(volume.mountpoint())).expect("returns in time");
    assert_eq!(finished.code, Some(4), "{}", finished.stderr);
    assert!(volume.is_mounted());
    fs::write(volume.path("still"), "here").expect("the mount goes on");
    drop(file);
}

fn free_space_is_told(volume: &Volume) {
    volume.mount();
    let before = nix::sys::statvfs::statvfs(&volume.mountpoint()).expect("statvfs");
    assert!(0 < before.blocks_available() && 0 < before.files_free());
    assert_eq!(before.name_max(), 255);
    write_noise(&volume.path("file"), b"", 6, 8 * MIB);
    volume.sync();
    let after = nix::sys::statvfs::statvfs(&volume.mountpoint()).expect("statvfs");
    let used =
        |stat: &nix::sys::statvfs::Statvfs| (stat.blocks() - stat.blocks_free()) * stat.fragment_size();
    let grown = used(&after) - used(&before);
    assert!((8 * MIB as u64..9 * MIB as u64).contains(&grown), "{grown} bytes more in use");
    let stat = fs::metadata(volume.path("file")).expect("stat");
    assert_eq!(stat.blocks(), 8 * MIB as u64 / 512);
}

/// Runs a command as another host, which has a state of its own.
fn as_other_host(volume: &Volume, command: &mut Command) -> (Option<i32>, String) {
    command.env("GRAVITONFS_STATE_DIR", volume.scratch().join("other-state"));
    command.env("GRAVITONFS_CACHE_DIR", volume.scratch().join("other-cache"));
    let finished = run_within(LIMIT, command).expect("returns in time");
    (finished.code, finished.stderr)
}

fn status_tells_when_changes_are_refused_and_when_the_volume_has_diverged(volume: &Volume) {
    volume.mount();
    fs::write(volume.path("first"), "here").expect("write");
    volume.sync();
    volume.expect_complaints(&["metadata can no longer be changed", "was taken by", "unmounted", "publish"]);

    let elsewhere = volume.scratch().join("elsewhere");
    let mut mount = volume.mount_command(&volume.url(), &elsewhere, &["--create", "-o", "takeover"]);
    let (code, stderr) = as_other_host(volume, &mut mount);
    assert_eq!(code, Some(0), "{stderr}");
    let written = fs::write(elsewhere.join("second"), "there");
    let mut umount = volume.gravitonfs(&["umount"]);
    let (code, stderr) = as_other_host(volume, umount.arg(&elsewhere));
    assert_eq!(code, Some(0), "{stderr}");
    written.expect("the volume is theirs");

    // Taken into the local log, since nobody has told this host yet; then the store does.
    fs::write(volume.path("third"), "here, too late").expect("write");
    let mut sync = volume.gravitonfs(&["sync"]);
    let finished = run_within(LIMIT, sync.arg(volume.mountpoint())).expect("returns in time");
    assert_ne!(finished.code, Some(0), "it cannot reach the store");
    let status = volume.status();
    assert_eq!(status["state"], "read-only", "{status}");
    assert!(status["state_cause"].as_str().is_some_and(|cause| cause.contains("was taken by")), "{status}");
    let refused = fs::write(volume.path("fourth"), "").expect_err("changes are refused");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::read(volume.path("first")).expect("reads go on"), b"here");

    let mut umount = volume.gravitonfs(&["umount"]);
    let finished = run_within(LIMIT, umount.arg(volume.mountpoint())).expect("returns in time");
    assert_eq!(finished.code, Some(9), "{}", finished.stderr);
    let before = volume.objects();
    for _ in 0..2 {
        let mut command = volume.gravitonfs(&["status", "--json", &volume.url()]);
        let finished = run_within(LIMIT, command.args(volume.store_options())).expect("returns in time");
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let status: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
        assert_eq!(status["state"], "diverged", "{status}");
        assert_eq!(number(&status, "files"), 2, "what the store holds: {status}");
    }
    assert_eq!(volume.objects(), before, "asking changes nothing");
}

/// What the whole stack makes of a server like Garage 2.5: mounted, told, and everything is found again.
#[test]
fn a_server_that_ignores_conditions_is_told_and_keeps_the_volume() {
    let mut volume = Volume::new(Backend::S3);
    let server = S3Server::start(Mode::IgnoreConditional);
    server.create_bucket("bucket");
    volume.server = Some(server);
    volume.mount();
    let digest = write_noise(&volume.path("file"), b"", 7, 3 * MIB);
    assert_eq!(volume.status()["fencing"], "lease");
    volume.remount_from_the_store_alone();
    assert_eq!(crate::tree::digest(&volume.path("file")), digest);
    volume.umount();
    let records: Vec<_> =
        volume.objects().into_iter().map(|(key, _)| key).filter(|key| key.contains("journal/")).collect();
    assert!(4 <= records.len(), "{records:?}");
    assert!(
        records.iter().all(|key| key.matches('-').count() == 2),
        "names of each writer's own: {records:?}"
    );
}
