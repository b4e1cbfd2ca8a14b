//! Bad input: what is refused, with which exit code and which last line, and that nothing is left behind.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::command::{Finished, LIMIT, run_within};
use crate::mount::{Backend, Volume, daemons_of, is_mounted, on_each_backend};

on_each_backend! {
    bad_input_is_refused_with_its_code_and_leaves_nothing within 300 s,
    a_volume_of_a_newer_format_is_refused within 120 s,
    a_mounted_volume_is_not_mounted_again_on_this_host within 120 s,
}

/// One bad command.
struct Case {
    what: &'static str,
    command: Command,
    code: i32,
    /// Must occur in the last line on stderr.
    says: Vec<String>,
}

fn bad_input_is_refused_with_its_code_and_leaves_nothing(volume: &Volume) {
    let (url, mountpoint) = (volume.url(), volume.mountpoint());
    let unformatted = match volume.backend {
        Backend::File => format!("file://{}/empty", volume.scratch().display()),
        Backend::S3 => format!("{url}/empty"),
    };
    fs::create_dir(volume.scratch().join("empty")).expect("mkdir");
    fs::write(volume.scratch().join("file"), "").expect("write");
    let mount = |arguments: &[&str]| volume.mount_command(&url, &mountpoint, arguments);
    let missing = volume.scratch().join("missing/mountpoint");
    let other = Volume::new(Backend::File);
    other.mount();
    let busy = other.mountpoint();
    let case = |what, command, code, says: &[&str]| {
        let says = says.iter().map(|&word| word.to_owned()).collect();
        Case { what, command, code, says }
    };

    let mut cases = vec![
        case(
            "unknown option",
            mount(&["--create", "-o", "durabilty=local"]),
            2,
            &["durabilty", "durability"],
        ),
        case("value out of range", mount(&["--create", "-o", "durability=cloud"]), 2, &["durability"]),
        case("unknown flag", mount(&["--creat"]), 2, &["--create"]),
        case("not a volume", volume.mount_command("gs://bucket", &mountpoint, &[]), 2, &["gs://bucket"]),
        case("unformatted", volume.mount_command(&unformatted, &mountpoint, &[]), 3, &["--create"]),
        case("missing mountpoint", volume.mount_command(&url, &missing, &[]), 3, &["missing"]),
        case(
            "mountpoint is a file",
            volume.mount_command(&url, &volume.scratch().join("file"), &["--create"]),
            2,
            &["file"],
        ),
        case("busy mountpoint", volume.mount_command(&url, &busy, &["--create"]), 4, &["mnt", "umount"]),
        case(
            "umount of what is not mounted",
            volume.gravitonfs(&["umount".as_ref(), mountpoint.as_os_str()]),
            3,
            &["mnt"],
        ),
        case(
            "status of what is not mounted",
            volume.gravitonfs(&["status".as_ref(), mountpoint.as_os_str()]),
            3,
            &["mnt"],
        ),
        case(
            "sync of what is not mounted",
            volume.gravitonfs(&["sync".as_ref(), mountpoint.as_os_str()]),
            3,
            &["mnt"],
        ),
    ];
    match volume.backend {
        Backend::File => {
            let occupied = volume.scratch().join("occupied");
            fs::create_dir(&occupied).expect("mkdir");
            fs::write(occupied.join("letter.txt"), "mine").expect("write");
            let url = format!("file://{}", occupied.display());
            let command = volume.mount_command(&url, &mountpoint, &["--create"]);
            cases.push(case("occupied by other files", command, 4, &["letter.txt"]));
            let missing = format!("file://{}/no/such/directory", volume.scratch().display());
            let command = volume.mount_command(&missing, &mountpoint, &[]);
            cases.push(case("missing directory", command, 3, &["no/such/directory"]));
        }
        Backend::S3 => {
            let command = volume.mount_command("s3://no-such-bucket", &mountpoint, &["--create"]);
            cases.push(case("missing bucket", command, 3, &["no-such-bucket"]));
            let mut command = mount(&["--create"]);
            command.env("AWS_SECRET_ACCESS_KEY", "wrong");
            cases.push(case("wrong secret", command, 5, &["credentials"]));
            let endpoint = format!("endpoint=http://127.0.0.1:{}", closed_port());
            cases.push(case("unreachable endpoint", mount(&["--create", "-o", &endpoint]), 6, &["endpoint"]));
        }
    }
    for mut case in cases {
        check(volume, &mut case);
    }
    assert_eq!(other.daemons().len(), 1, "the other mount is still there, and only that");
    other.umount();
    assert!(!missing.exists(), "nothing is made without --create");
}

fn check(volume: &Volume, case: &mut Case) {
    let what = case.what;
    let Some(finished) = run_within(LIMIT, &mut case.command) else {
        panic!("{what}: does not return\n{}", volume.log_tail());
    };
    let line = finished.last_error_line();
    assert_eq!(finished.code, Some(case.code), "{what}: {}{}", finished.stdout, finished.stderr);
    assert_form(what, &finished);
    for word in &case.says {
        assert!(line.contains(word.as_str()), "{what}: {word:?} is missing in {line:?}");
    }
    volume.assert_gone();
}

/// `gravitonfs: <thing>: <cause>; <what to do>`
fn assert_form(what: &str, finished: &Finished) {
    let line = finished.last_error_line();
    let message = line.strip_prefix("gravitonfs: ").unwrap_or_else(|| panic!("{what}: {line:?}"));
    let parts = message.rsplit_once("; ").and_then(|(head, advice)| Some((head.split_once(": ")?, advice)));
    let Some(((thing, cause), advice)) = parts else { panic!("{what}: {line:?}") };
    for part in [thing, cause, advice] {
        assert!(!part.trim().is_empty(), "{what}: {line:?}");
    }
}

/// A port of loopback where nobody listens.
fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("a bound socket has an address").port()
}

fn a_volume_of_a_newer_format_is_refused(volume: &Volume) {
    volume.mount();
    volume.umount();
    let text = String::from_utf8(volume.read_object("superblock")).expect("text");
    let mut superblock: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(superblock["format"].is_u64(), "{text}");
    superblock["format"] = 1000.into();
    volume.write_object("superblock", superblock.to_string().into_bytes());
    for is_wiped in [false, true] {
        if is_wiped {
            volume.wipe_local();
        }
        let command = volume.mount_command(&volume.url(), &volume.mountpoint(), &["--create"]);
        let says = vec!["1000".to_owned()];
        check(volume, &mut Case { what: "newer format", command, code: 8, says });
    }
    let kept = String::from_utf8(volume.read_object("superblock")).expect("text");
    assert_eq!(kept, superblock.to_string(), "a refused volume is left as it is");
}

fn a_mounted_volume_is_not_mounted_again_on_this_host(volume: &Volume) {
    volume.mount();
    fs::write(volume.path("file"), "content").expect("write");
    let other = volume.scratch().join("other");
    fs::create_dir(&other).expect("mkdir");
    refuse_second(volume, &other, "mnt");
    refuse_second(volume, &volume.mountpoint(), "mnt");
    assert_eq!(fs::read(volume.path("file")).expect("read"), b"content", "the first mount goes on");
    volume.umount();
    // The lock went with the daemon.
    volume.mount();
    assert_eq!(fs::read(volume.path("file")).expect("read"), b"content");
}

fn refuse_second(volume: &Volume, mountpoint: &Path, says: &str) {
    let mut command = volume.mount_command(&volume.url(), mountpoint, &[]);
    let finished = run_within(LIMIT, &mut command).expect("returns in time");
    assert_eq!(finished.code, Some(4), "{}", finished.stderr);
    assert_form("second mount", &finished);
    assert!(finished.last_error_line().contains(says), "{}", finished.stderr);
    if mountpoint != volume.mountpoint() {
        assert!(!is_mounted(mountpoint), "no mount is left");
        assert!(daemons_of(mountpoint).is_empty(), "no process is left");
    }
    assert_eq!(volume.daemons().len(), 1, "only the first daemon");
}
