//! Extended attributes of the three kinds that are kept.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;

use crate::mount::{Volume, on_each_backend};
use crate::syscall::{get_xattr, list_xattrs, remove_xattr, set_xattr};
use crate::tree::{Noise, assert_same, picture};

on_each_backend! {
    attributes_are_set_listed_replaced_and_removed within 120 s,
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
