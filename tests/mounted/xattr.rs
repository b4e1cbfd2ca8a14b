//! Extended attributes of the three kinds that are kept.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::stat::{Mode, SFlag, mknod};

use crate::command::{Somebody, require, script};
use crate::mount::{Volume, on_each_backend};
use crate::syscall::{get_xattr, get_xattr_into, list_xattrs, remove_xattr, set_xattr};
use crate::tree::{Noise, assert_same, picture};

on_each_backend! {
    attributes_are_set_listed_replaced_and_removed within 120 s,
    what_is_refused_has_the_errors_of_ext4 within 120 s,
    an_inode_has_as_many_attributes_as_can_be_listed within 120 s,
}

fn attributes_are_set_listed_replaced_and_removed(volume: &Volume) {
    volume.mount();
    let (file, directory, link) = (volume.path("file"), volume.path("directory"), volume.path("link"));
    fs::write(&file, "content").expect("write");
    fs::create_dir(&directory).expect("mkdir");
    symlink("file", &link).expect("symlink");
    let errno = |result: std::io::Result<()>| result.err().and_then(|error| error.raw_os_error());

    let large = Noise::new(12).take(60_000);
    let binary = b"\0\xff\n".to_vec();
    for (path, name, value) in [
        (&file, c"user.empty", &Vec::new()),
        (&file, c"user.binary", &binary),
        (&file, c"user.large", &large),
        (&file, c"trusted.ours", &binary),
        (&file, c"security.ours", &binary),
        (&directory, c"user.of-directory", &binary),
        (&link, c"trusted.of-link", &binary),
    ] {
        set_xattr(path, name, value, 0).unwrap_or_else(|error| panic!("set {name:?}: {error}"));
        assert_eq!(get_xattr(path, name).expect("get"), *value, "{name:?}");
    }
    let listed = list_xattrs(&file).expect("list");
    let expected = ["security.ours", "trusted.ours", "user.binary", "user.empty", "user.large"];
    assert_eq!(listed, expected.map(|name| CString::new(name).expect("no NUL")));

    let (create, replace) = (libc::XATTR_CREATE, libc::XATTR_REPLACE);
    assert_eq!(errno(set_xattr(&file, c"user.binary", b"x", create)), Some(libc::EEXIST));
    assert_eq!(errno(set_xattr(&file, c"user.missing", b"x", replace)), Some(libc::ENODATA));
    set_xattr(&file, c"user.binary", b"replaced", replace).expect("replace");
    assert_eq!(get_xattr(&file, c"user.binary").expect("get"), b"replaced");
    remove_xattr(&file, c"user.empty").expect("remove");
    assert_eq!(errno(remove_xattr(&file, c"user.empty")), Some(libc::ENODATA));
    assert_eq!(errno(get_xattr(&file, c"user.empty").map(drop)), Some(libc::ENODATA));
    let longest = CString::new(format!("user.{}", "n".repeat(250))).expect("no NUL");
    set_xattr(&file, &longest, b"longest", 0).expect("a name of 255 bytes");

    let expected = picture(&volume.mountpoint());
    assert!(expected.values().any(|entry| entry.xattrs.len() == 5));
    volume.remount_from_the_store_alone();
    assert_same(&expected, &picture(&volume.mountpoint()));
}

fn what_is_refused_has_the_errors_of_ext4(volume: &Volume) {
    require(&["setpriv", "getfattr"]);
    volume.mount();
    let (file, link, fifo) = (volume.path("file"), volume.path("link"), volume.path("fifo"));
    fs::write(&file, "content").expect("write");
    symlink("file", &link).expect("symlink");
    mknod(&fifo, SFlag::S_IFIFO, Mode::from_bits_truncate(0o666), 0).expect("mkfifo");
    let errno = |result: std::io::Result<()>| result.err().and_then(|error| error.raw_os_error());
    let name = |text: &str| CString::new(text).expect("no NUL");

    let (long, longer) = (format!("user.{}", "n".repeat(250)), format!("user.{}", "n".repeat(251)));
    for (text, expected) in [
        ("user.", Some(libc::EINVAL)),
        ("trusted.", Some(libc::EINVAL)),
        ("security.", Some(libc::EINVAL)),
        ("user", Some(libc::EOPNOTSUPP)),
        ("other.name", Some(libc::EOPNOTSUPP)),
        ("system.name", Some(libc::EOPNOTSUPP)),
        ("system.posix_acl_access.", Some(libc::EOPNOTSUPP)),
        (longer.as_str(), Some(libc::ERANGE)),
        (long.as_str(), None),
    ] {
        assert_eq!(errno(set_xattr(&file, &name(text), b"value", 0)), expected, "set {text}");
        assert_eq!(errno(get_xattr(&file, &name(text)).map(drop)), expected, "get {text}");
        assert_eq!(errno(remove_xattr(&file, &name(text))), expected, "remove {text}");
    }
    // 64 KiB is the largest value, also to read back.
    let largest = Noise::new(3).take(1 << 16);
    set_xattr(&file, c"user.largest", &largest, 0).expect("64 KiB");
    assert_eq!(get_xattr(&file, c"user.largest").expect("get"), largest);
    let larger = [largest.as_slice(), b"x"].concat();
    assert_eq!(errno(set_xattr(&file, c"user.larger", &larger, 0)), Some(libc::E2BIG));
    let both = libc::XATTR_CREATE | libc::XATTR_REPLACE;
    assert_eq!(errno(set_xattr(&file, c"user.both", b"", both)), Some(libc::ENODATA));
    assert_eq!(errno(set_xattr(&file, c"user.largest", b"", both)), Some(libc::EEXIST));
    assert_eq!(errno(set_xattr(&file, c"user.flag", b"", 4)), Some(libc::EINVAL));

    // What users may say is about regular files and directories.
    for path in [&link, &fifo] {
        assert_eq!(errno(set_xattr(path, c"user.a", b"", 0)), Some(libc::EPERM));
        assert_eq!(errno(get_xattr(path, c"user.a").map(drop)), Some(libc::ENODATA));
        set_xattr(path, c"trusted.a", b"value", 0).expect("root may");
    }

    // Buffers that are too small, and the question how large one must be.
    set_xattr(&file, c"user.five", b"value", 0).expect("set");
    let into = |len| get_xattr_into(&file, c"user.five", len).map_err(|error| error.raw_os_error());
    assert_eq!((into(4), into(5), into(0)), (Err(Some(libc::ERANGE)), Ok(5), Ok(5)));

    script(&volume.mountpoint(), "chmod 666 file");
    set_xattr(&file, c"trusted.hidden", b"value", 0).expect("set");
    set_xattr(&file, c"security.shown", b"value", 0).expect("set");
    let names = |who: Somebody| {
        let listed =
            who.run(&volume.mountpoint(), "getfattr -m - file | grep -v '^# ' | sort | xargs").stdout;
        listed.trim().to_owned()
    };
    assert_eq!(names(Somebody::alone(101)), "security.shown user.five user.largest");
    assert_eq!(names(Somebody::alone(0)), "security.shown trusted.hidden user.five user.largest");
}

fn an_inode_has_as_many_attributes_as_can_be_listed(volume: &Volume) {
    volume.mount();
    let file = volume.path("file");
    fs::write(&file, "content").expect("write");
    let name = |number: u32| CString::new(format!("user.{number:0>58}")).expect("no NUL");
    for number in 0..1024 {
        let value = number.to_string();
        set_xattr(&file, &name(number), value.as_bytes(), 0)
            .unwrap_or_else(|error| panic!("{number}: {error}"));
    }
    for is_remounted in [false, true] {
        if is_remounted {
            volume.remount_from_the_store_alone();
        }
        let full = set_xattr(&file, c"user.one.more", b"", 0).expect_err("the list is full");
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
        let names = list_xattrs(&file).expect("all fit the largest buffer");
        assert_eq!(names.len(), 1024);
        set_xattr(&file, &name(5), b"5", libc::XATTR_REPLACE).expect("replacing takes no room");
        for number in [0, 5, 1023] {
            assert_eq!(get_xattr(&file, &name(number)).expect("get"), number.to_string().as_bytes());
        }
    }
    remove_xattr(&file, &name(8)).expect("remove");
    set_xattr(&file, c"user.one.more", b"", 0).expect("there is room again");
    fs::remove_file(&file).expect("unlink");
}
