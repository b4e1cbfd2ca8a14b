//! Memory maps: private ones, the end of the file, and what truncate does to a map.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;

use crate::mount::{Volume, on_each_backend};
use crate::syscall::{Child, Mapping};
use crate::tree::Noise;

on_each_backend! {
    a_private_map_keeps_its_changes_to_itself within 120 s,
    a_map_ends_with_the_page_that_holds_the_end_of_the_file within 120 s,
}

const PAGE: usize = 4096;

fn open(volume: &Volume, name: &str) -> File {
    OpenOptions::new().read(true).write(true).open(volume.path(name)).expect("open")
}

fn a_private_map_keeps_its_changes_to_itself(volume: &Volume) {
    volume.mount();
    let mut expected = Noise::new(32).take(16 * PAGE);
    fs::write(volume.path("file"), &expected).expect("write");
    let file = open(volume, "file");
    let (first, second) = (
        Mapping::private(&file, expected.len()).expect("map"),
        Mapping::private(&file, expected.len()).expect("map"),
    );
    first.write(PAGE - 2, b"mine");
    assert_eq!(first.read(PAGE - 2, 4), b"mine");
    assert!(second.read(0, expected.len()) == expected, "another map sees the file");
    assert!(fs::read(volume.path("file")).expect("read") == expected, "the file is as it was");
    // Pages that the map has not changed follow the file; those it has do not.
    file.write_all_at(b"file", PAGE as u64 - 2).expect("write");
    file.write_all_at(b"file", 8 * PAGE as u64).expect("write");
    expected[PAGE - 2..PAGE + 2].copy_from_slice(b"file");
    expected[8 * PAGE..8 * PAGE + 4].copy_from_slice(b"file");
    assert_eq!(first.read(PAGE - 2, 4), b"mine");
    assert_eq!(first.read(8 * PAGE, 4), b"file");
    drop((first, second, file));
    volume.remount_from_the_store_alone();
    assert!(fs::read(volume.path("file")).expect("read") == expected);
}

/// The signal that reading a byte of the map ends a process with, if any.
fn signal_at(volume: &Volume, map: &Mapping, offset: usize) -> Option<i32> {
    let read = || {
        std::hint::black_box(map.read(offset, 1));
        0
    };
    Child::start(&volume.directory(), read).wait_for_signal()
}

fn a_map_ends_with_the_page_that_holds_the_end_of_the_file(volume: &Volume) {
    volume.mount();
    let noise = Noise::new(33).take(2 * PAGE + 100);
    fs::write(volume.path("file"), &noise).expect("write");
    let file = open(volume, "file");
    let map = Mapping::new(&file, 4 * PAGE).expect("map");
    assert!(map.read(0, noise.len()) == noise);
    assert!(map.read(noise.len(), PAGE - 100).iter().all(|&byte| byte == 0), "zeros behind the end");
    assert_eq!(signal_at(volume, &map, 2 * PAGE), None);
    assert_eq!(signal_at(volume, &map, 3 * PAGE), Some(libc::SIGBUS));

    file.set_len(PAGE as u64 + 10).expect("truncate");
    assert!(map.read(0, PAGE + 10) == noise[..PAGE + 10]);
    assert!(map.read(PAGE + 10, PAGE - 10).iter().all(|&byte| byte == 0), "what was cut off is gone");
    assert_eq!(signal_at(volume, &map, 2 * PAGE), Some(libc::SIGBUS));

    file.set_len(4 * PAGE as u64).expect("truncate");
    assert!(map.read(0, PAGE + 10) == noise[..PAGE + 10]);
    assert!(map.read(PAGE + 10, 3 * PAGE - 10).iter().all(|&byte| byte == 0), "and does not come back");
    map.write(3 * PAGE + 5, b"end");
    map.sync().expect("msync");
    drop((map, file));
    volume.remount_from_the_store_alone();
    let found = fs::read(volume.path("file")).expect("read");
    assert_eq!((found.len(), &found[3 * PAGE + 5..3 * PAGE + 8]), (4 * PAGE, &b"end"[..]));
    assert!(found[..PAGE + 10] == noise[..PAGE + 10]);
}
