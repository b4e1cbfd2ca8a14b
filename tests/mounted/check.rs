//! `gravitonfs check`: a volume with everything in it is whole, mounted and unmounted; what is done to its store is found.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::command::{Finished, LIMIT, run_within, script};
use crate::mount::{Volume, on_each_backend};
use crate::tree::{MIB, write_noise};

on_each_backend! {
    a_volume_with_everything_is_whole_mounted_and_unmounted within 180 s,
    what_is_done_to_the_store_is_found within 180 s,
    a_check_of_an_unmounted_volume_changes_nothing within 120 s,
}

/// Runs a check; its exit code, and its report if there is one.
fn check(volume: &Volume, target: &Path, arguments: &[&str]) -> (Option<i32>, Option<Value>, String) {
    let mut command = volume.gravitonfs(&["check", "--json"]);
    command.arg(target).args(arguments).args(volume.store_options());
    let Finished { code, stdout, stderr } = run_within(LIMIT, &mut command).expect("check returns");
    (code, serde_json::from_str(&stdout).ok(), stderr)
}

fn assert_whole(volume: &Volume, target: &Path, arguments: &[&str]) -> Value {
    let (code, report, stderr) = check(volume, target, arguments);
    let report = report.unwrap_or_else(|| panic!("no report: {stderr}"));
    assert_eq!((code, &report["findings"], stderr.as_str()), (Some(0), &Value::Array(Vec::new()), ""));
    report
}

/// The findings of the volume, unmounted, as `kind thing`.
fn findings(volume: &Volume, arguments: &[&str]) -> Vec<String> {
    let (code, report, stderr) = check(volume, Path::new(&volume.url()), arguments);
    let report = report.unwrap_or_else(|| panic!("no report: {stderr}"));
    let told = |finding: &Value| format!("{} {}", finding["kind"], finding["thing"]).replace('"', "");
    let found: Vec<String> = report["findings"].as_array().expect("a list").iter().map(told).collect();
    assert_eq!(code, Some(if found.is_empty() { 0 } else { 7 }), "{found:?} {stderr}");
    found
}

fn fill(volume: &Volume) {
    volume.mount();
    write_noise(&volume.path("large"), b"", 1, 6 * MIB);
    let made = "mkdir -p a/b/c && cp large a/copy && cp --reflink=auto large a/b/clone
        ln large a/b/link && ln -s large a/b/c/symlink && mkfifo a/fifo
        echo small > small && touch empty && truncate -s 1M hole && fallocate -l 64K room
        fallocate -p -o 1M -l 1M a/copy && truncate -s 3M a/b/clone
        setfattr -n user.x -v y small && setfacl -m u:1:r small && setfacl -d -m u:1:r a
        mkdir gone && rmdir gone && echo x > gone2 && rm gone2";
    script(&volume.mountpoint(), made);
    let file = volume.scratch().join("blob");
    fs::write(&file, vec![7; 3 * MIB]).expect("write");
    let mut put = volume.gravitonfs(&["blob", &volume.url(), "put"]);
    let put = run_within(LIMIT, put.arg(&file).args(volume.store_options())).expect("put returns");
    assert_eq!(put.code, Some(0), "{}", put.stderr);
}

fn a_volume_with_everything_is_whole_mounted_and_unmounted(volume: &Volume) {
    fill(volume);
    let url = volume.url();
    // While files are written and open without a name.
    let written = fs::File::create(volume.path("written")).expect("create");
    std::os::unix::fs::FileExt::write_all_at(&written, &[1; 100_000], 0).expect("write");
    fs::remove_file(volume.path("written")).expect("unlink");
    for arguments in [&[][..], &["--data"]] {
        assert_whole(volume, &volume.mountpoint(), arguments);
    }
    volume.sync();
    let mounted = assert_whole(volume, Path::new(&url), &["--data"]);
    assert!(6 * MIB as u64 <= mounted["bytes_read"].as_u64().expect("a number"), "{mounted}");
    drop(written);
    volume.umount();
    let unmounted = assert_whole(volume, Path::new(&url), &["--data"]);
    // `large` with its link, copy and clone, `small`, `empty`, `hole`, `room` and the blob.
    assert_eq!(unmounted["files"], 8, "{unmounted}");
    volume.wipe_local();
    let elsewhere = assert_whole(volume, Path::new(&url), &[]);
    for field in ["volume_id", "files", "blocks", "packs"] {
        assert_eq!(elsewhere[field], unmounted[field], "{field}");
    }
}

fn what_is_done_to_the_store_is_found(volume: &Volume) {
    fill(volume);
    volume.sync();
    volume.umount();
    let packs = volume.objects().into_iter().filter(|(key, _)| key.starts_with("packs/"));
    let (pack, _) = packs.max_by_key(|(_, len)| *len).expect("there is a pack");
    let whole = volume.read_object(&pack);

    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    volume.write_object(&pack, flipped);
    assert_eq!(findings(volume, &[]), [""; 0], "only reading it shows it");
    assert_eq!(findings(volume, &["--data"]), [format!("data {pack}")]);

    volume.write_object(&pack, whole[..whole.len() - 1].to_vec());
    assert_eq!(findings(volume, &[]), [format!("object {pack}")]);
    volume.delete_object(&pack);
    assert_eq!(findings(volume, &[]), [format!("object {pack}")]);
    volume.write_object(&pack, whole);
    assert_eq!(findings(volume, &["--data"]), [""; 0]);

    let journal: Vec<_> =
        volume.objects().into_iter().filter(|(key, _)| key.starts_with("journal/")).collect();
    let (record, _) = &journal[journal.len() - 2];
    let body = volume.read_object(record);
    volume.delete_object(record);
    assert_eq!(findings(volume, &[]), [format!("journal {record}")]);
    volume.wipe_local();
    let found = findings(volume, &[]);
    assert_eq!(found, [format!("recovery {}", volume.url()), format!("journal {record}")]);
    volume.write_object(record, body);
    assert_eq!(findings(volume, &[]), [""; 0]);
}

fn a_check_of_an_unmounted_volume_changes_nothing(volume: &Volume) {
    volume.mount();
    fs::write(volume.path("file"), "content").expect("write");
    volume.umount();
    let picture = |volume: &Volume| {
        let local = "find . -not -name lock -type f -exec sha256sum {} + | sort -k2; find . -printf '%P %m\\n' | sort";
        (volume.objects(), script(&volume.state_dir(), local), script(&volume.cache_dir(), "find . | sort"))
    };
    let before = picture(volume);
    assert_whole(volume, Path::new(&volume.url()), &["--data"]);
    assert!(picture(volume) == before, "a check has changed something");
}
