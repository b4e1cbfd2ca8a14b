//! Directories with many entries, and listing while they change.

use std::collections::HashSet;
use std::fs::{self, File};
use std::time::Duration;

use crate::command::script_within;
use crate::mount::{Volume, on_each_backend};

on_each_backend! {
    a_directory_of_twenty_thousand_entries_is_listed_whole within 300 s,
    entries_that_stay_are_listed_once_while_others_come_and_go within 180 s,
    directories_are_made_counted_and_removed within 120 s,
}

const LIMIT: Duration = Duration::from_secs(180);
const MANY: usize = 20_000;

fn a_directory_of_twenty_thousand_entries_is_listed_whole(volume: &Volume) {
    volume.mount();
    let directory = volume.path("many");
    fs::create_dir(&directory).expect("mkdir");
    for number in 0..MANY {
        File::create(directory.join(format!("entry-{number}"))).expect("create");
    }
    for is_remounted in [false, true] {
        if is_remounted {
            volume.remount_from_the_store_alone();
        }
        let names: Vec<_> =
            fs::read_dir(&directory).expect("list").map(|entry| entry.expect("entry").file_name()).collect();
        assert_eq!(names.len(), MANY);
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), MANY, "each once");
        let counted =
            script_within(LIMIT, &directory, "ls -f | wc -l; ls -l | wc -l; find . -type f | wc -l");
        let expected = format!("{}\n{}\n{MANY}\n", MANY + 2, MANY + 1);
        assert_eq!(counted, expected);
    }
    script_within(LIMIT, &volume.mountpoint(), "rm -r many");
    assert_eq!(fs::read_dir(volume.mountpoint()).expect("list").count(), 0);
}

fn entries_that_stay_are_listed_once_while_others_come_and_go(volume: &Volume) {
    volume.mount();
    let directory = volume.path("busy");
    fs::create_dir(&directory).expect("mkdir");
    let create = |name: String| drop(File::create(directory.join(name)).expect("create"));
    for number in 0..3000 {
        create(format!("stays-{number}"));
        create(format!("goes-{number}"));
    }
    let mut seen = Vec::new();
    for (number, entry) in fs::read_dir(&directory).expect("list").enumerate() {
        seen.push(entry.expect("entry").file_name().into_string().expect("text"));
        if number < 3000 {
            fs::remove_file(directory.join(format!("goes-{number}"))).expect("remove");
            create(format!("comes-{number}"));
        }
    }
    let stays: Vec<_> = seen.iter().filter(|name| name.starts_with("stays-")).collect();
    assert_eq!(stays.len(), 3000, "none is missed and none comes twice");
    assert_eq!(stays.iter().collect::<HashSet<_>>().len(), 3000);
    assert_eq!(seen.iter().collect::<HashSet<_>>().len(), seen.len(), "nothing comes twice");
    script_within(LIMIT, &volume.mountpoint(), "rm -r busy");
}

fn directories_are_made_counted_and_removed(volume: &Volume) {
    use std::os::unix::fs::MetadataExt as _;
    volume.mount();
    let root = volume.path("root");
    fs::create_dir(&root).expect("mkdir");
    assert_eq!(fs::metadata(&root).expect("stat").nlink(), 2);
    for name in ["a", "b", "c"] {
        fs::create_dir(root.join(name)).expect("mkdir");
    }
    assert_eq!(fs::metadata(&root).expect("stat").nlink(), 5);
    let errno = |result: std::io::Result<()>| result.expect_err("must be refused").raw_os_error();
    assert_eq!(errno(fs::remove_dir(&root)), Some(libc::ENOTEMPTY));
    assert_eq!(errno(fs::create_dir(root.join("a"))), Some(libc::EEXIST));
    assert_eq!(errno(fs::remove_file(root.join("a"))), Some(libc::EISDIR));
    fs::write(root.join("file"), "").expect("write");
    assert_eq!(errno(fs::remove_dir(root.join("file"))), Some(libc::ENOTDIR));
    assert_eq!(errno(fs::create_dir(root.join("file/x"))), Some(libc::ENOTDIR));
    fs::remove_dir(root.join("b")).expect("rmdir");
    let deep = (0..100).fold(root.clone(), |path, level| path.join(format!("level-{level}")));
    fs::create_dir_all(&deep).expect("mkdir -p");
    volume.remount_from_the_store_alone();
    assert!(deep.is_dir());
    assert_eq!(fs::metadata(&root).expect("stat").nlink(), 5);
    script_within(LIMIT, &volume.mountpoint(), "rm -r root");
    assert_eq!(fs::metadata(volume.mountpoint()).expect("stat").nlink(), 2);
}
