//! rename(2) and renameat2(2) in all their forms.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::mount::{Volume, on_each_backend};
use crate::tree::{assert_same, picture};

on_each_backend! {
    rename_replaces_moves_and_refuses_as_posix_says within 120 s,
    rename_without_replacing_and_exchanging within 120 s,
    a_new_version_renamed_over_the_old_is_whole_in_the_store within 120 s,
}

fn errno(result: std::io::Result<()>) -> Option<i32> {
    result.expect_err("must be refused").raw_os_error()
}

fn rename_replaces_moves_and_refuses_as_posix_says(volume: &Volume) {
    volume.mount();
    let path = |name: &str| volume.path(name);
    for directory in ["a", "a/inner", "b", "full", "full/child", "empty"] {
        fs::create_dir(path(directory)).expect("mkdir");
    }
    fs::write(path("one"), "one").expect("write");
    fs::write(path("two"), "two").expect("write");
    let number = fs::metadata(path("one")).expect("stat").ino();

    fs::rename(path("one"), path("two")).expect("replace a file");
    assert_eq!(fs::read(path("two")).expect("read"), b"one");
    assert_eq!(fs::metadata(path("two")).expect("stat").ino(), number);
    assert!(!path("one").exists());
    fs::rename(path("two"), path("a/inner/moved")).expect("move into another directory");
    fs::rename(path("a"), path("b/a")).expect("move a directory");
    assert_eq!(fs::read(path("b/a/inner/moved")).expect("read"), b"one");
    fs::rename(path("b"), path("empty")).expect("replace an empty directory");
    assert_eq!(fs::metadata(path("empty")).expect("stat").nlink(), 3, "one child directory");

    assert_eq!(errno(fs::rename(path("empty"), path("full"))), Some(libc::ENOTEMPTY));
    assert_eq!(errno(fs::rename(path("empty"), path("empty/a/below"))), Some(libc::EINVAL));
    assert_eq!(errno(fs::rename(path("missing"), path("x"))), Some(libc::ENOENT));
    fs::write(path("file"), "file").expect("write");
    assert_eq!(errno(fs::rename(path("file"), path("full"))), Some(libc::EISDIR));
    assert_eq!(errno(fs::rename(path("full"), path("file"))), Some(libc::ENOTDIR));
    fs::rename(path("file"), path("file")).expect("onto itself");

    let expected = picture(&volume.mountpoint());
    volume.remount_from_the_store_alone();
    assert_same(&expected, &picture(&volume.mountpoint()));
}

fn rename_without_replacing_and_exchanging(volume: &Volume) {
    volume.mount();
    let rename = |from: &str, to: &str, flags| {
        renameat2(AT_FDCWD, &volume.path(from), AT_FDCWD, &volume.path(to), flags)
    };
    fs::write(volume.path("one"), "one").expect("write");
    fs::write(volume.path("two"), "two").expect("write");
    fs::create_dir_all(volume.path("directory/child")).expect("mkdir");
    let without = RenameFlags::RENAME_NOREPLACE;
    assert_eq!(rename("one", "two", without), Err(Errno::EEXIST));
    rename("one", "three", without).expect("a free name");
    assert_eq!(rename("one", "four", without), Err(Errno::ENOENT));

    let exchange = RenameFlags::RENAME_EXCHANGE;
    rename("two", "three", exchange).expect("exchange files");
    assert_eq!(fs::read(volume.path("two")).expect("read"), b"one");
    assert_eq!(fs::read(volume.path("three")).expect("read"), b"two");
    assert_eq!(rename("two", "missing", exchange), Err(Errno::ENOENT));
    rename("two", "directory/child", exchange).expect("exchange a file and a directory");
    assert_eq!(fs::read(volume.path("directory/child")).expect("read"), b"one");
    assert!(volume.path("two").is_dir());
    assert_eq!(rename("directory", "directory/child", exchange), Err(Errno::EINVAL));

    let expected = picture(&volume.mountpoint());
    volume.remount_from_the_store_alone();
    assert_same(&expected, &picture(&volume.mountpoint()));
}

fn a_new_version_renamed_over_the_old_is_whole_in_the_store(volume: &Volume) {
    volume.mount();
    for version in 0..50 {
        let text = format!("version {version} ").repeat(3000);
        fs::write(volume.path("document.tmp"), &text).expect("write");
        fs::rename(volume.path("document.tmp"), volume.path("document")).expect("rename");
        assert_eq!(fs::read_to_string(volume.path("document")).expect("read"), text);
    }
    volume.remount_from_the_store_alone();
    let text = fs::read_to_string(volume.path("document")).expect("read");
    assert_eq!(text, "version 49 ".repeat(3000));
    assert_eq!(fs::read_dir(volume.mountpoint()).expect("list").count(), 1);
}
