//! Length, room and holes: truncate, fallocate, SEEK_DATA and SEEK_HOLE, files beyond 4 GiB, copies of ranges.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::mount::{Volume, on_each_backend};
use crate::syscall::copy_range;
use crate::tools::data_extents;
use crate::tree::{MIB, Noise, digest, write_noise};

on_each_backend! {
    truncate_cuts_and_extends_with_zeros within 120 s,
    fallocate_reserves_punches_and_zeroes within 120 s,
    a_file_beyond_four_gibibytes_keeps_its_bytes_apart within 120 s,
    ranges_are_copied_between_and_within_files within 120 s,
}

const KIB: usize = 1 << 10;

fn open(volume: &Volume, name: &str) -> File {
    let options = OpenOptions::new().create(true).truncate(false).read(true).write(true).clone();
    options.open(volume.path(name)).expect("open")
}

fn truncate_cuts_and_extends_with_zeros(volume: &Volume) {
    volume.mount();
    let content = Noise::new(21).take(3 * MIB);
    // Once with the bytes still in memory, once with them in the store.
    for is_stored in [false, true] {
        let name = format!("file-{is_stored}");
        fs::write(volume.path(&name), &content).expect("write");
        if is_stored {
            volume.remount_from_the_store_alone();
        }
        let file = open(volume, &name);
        file.set_len(MIB as u64 + 5).expect("cut");
        file.set_len(2 * MIB as u64).expect("extend");
        let mut expected = content[..MIB + 5].to_vec();
        expected.resize(2 * MIB, 0);
        assert!(fs::read(volume.path(&name)).expect("read") == expected, "zeros behind the cut, {name}");
        file.write_all_at(b"x", 2 * MIB as u64 + 100).expect("write behind the end");
        expected.resize(2 * MIB + 100, 0);
        expected.push(b'x');
        drop(file);
        volume.remount_from_the_store_alone();
        assert!(fs::read(volume.path(&name)).expect("read") == expected, "{name}");
        File::create(volume.path(&name)).expect("open with O_TRUNC");
        let stat = fs::metadata(volume.path(&name)).expect("stat");
        assert_eq!((stat.len(), stat.blocks()), (0, 0));
    }
}

fn fallocate_reserves_punches_and_zeroes(volume: &Volume) {
    volume.mount();
    let file = open(volume, "file");
    let blocks = || fs::metadata(volume.path("file")).expect("stat").blocks() * 512;
    let len = || fs::metadata(volume.path("file")).expect("stat").len();
    fallocate(&file, FallocateFlags::empty(), 0, MIB as i64).expect("allocate");
    assert_eq!((len(), blocks()), (MIB as u64, MIB as u64));
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 2 * MIB as i64)
        .expect("allocate behind the end");
    assert_eq!((len(), blocks()), (MIB as u64, 2 * MIB as u64));
    assert!(fs::read(volume.path("file")).expect("read") == vec![0; MIB]);

    let mut expected = Noise::new(22).take(4 * MIB);
    file.write_all_at(&expected, 0).expect("write");
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, MIB as i64, MIB as i64).expect("punch");
    expected[MIB..2 * MIB].fill(0);
    assert_eq!((len(), blocks()), (4 * MIB as u64, 3 * MIB as u64));
    assert_eq!(data_extents(&volume.path("file")), [(0, MIB as u64), (2 * MIB as u64, 4 * MIB as u64)]);
    fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, 3 * MIB as i64 + 7, 100).expect("zero");
    expected[3 * MIB + 7..3 * MIB + 107].fill(0);
    // Not at any boundary.
    fallocate(&file, punch, 2 * MIB as i64 + 11, 10 * KIB as i64).expect("punch");
    expected[2 * MIB + 11..2 * MIB + 11 + 10 * KIB].fill(0);
    assert!(fs::read(volume.path("file")).expect("read") == expected);
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 0), Err(Errno::EINVAL));
    drop(file);

    let room = blocks();
    volume.remount_from_the_store_alone();
    assert!(fs::read(volume.path("file")).expect("read") == expected);
    assert_eq!((len(), blocks()), (4 * MIB as u64, room));
    // Holes punched into what is in the store only.
    let file = open(volume, "file");
    fallocate(&file, punch, 0, 64 * KIB as i64).expect("punch");
    expected[..64 * KIB].fill(0);
    drop(file);
    volume.remount_from_the_store_alone();
    assert!(fs::read(volume.path("file")).expect("read") == expected);
}

fn a_file_beyond_four_gibibytes_keeps_its_bytes_apart(volume: &Volume) {
    volume.mount();
    let far = [0, (4 << 30) - 3, 6 << 30, (1 << 40) + 1];
    let file = open(volume, "file");
    for (seed, offset) in far.into_iter().enumerate() {
        file.write_all_at(&Noise::new(seed as u64).take(100), offset).expect("write");
    }
    drop(file);
    for is_remounted in [false, true] {
        if is_remounted {
            volume.remount_from_the_store_alone();
        }
        let file = open(volume, "file");
        assert_eq!(file.metadata().expect("stat").len(), (1 << 40) + 101);
        for (seed, offset) in far.into_iter().enumerate() {
            let mut bytes = vec![0; 100];
            file.read_exact_at(&mut bytes, offset).expect("read");
            assert_eq!(bytes, Noise::new(seed as u64).take(100), "at {offset}");
        }
        let mut hole = vec![1; 4096];
        file.read_exact_at(&mut hole, 5 << 30).expect("read a hole");
        assert_eq!(hole, vec![0; 4096]);
    }
}

fn ranges_are_copied_between_and_within_files(volume: &Volume) {
    volume.mount();
    let mut content = Noise::new(23).take(2 * MIB);
    fs::write(volume.path("source"), &content).expect("write");
    // Dirty bytes and stored ones are shared alike.
    for is_stored in [false, true] {
        if is_stored {
            volume.sync();
        }
        let (source, target) = (open(volume, "source"), open(volume, &format!("target-{is_stored}")));
        let (mut from, mut to) = (1000, 77);
        let copied = copy_range(&source, &mut from, &target, &mut to, MIB).expect("copy");
        assert_eq!((copied, from, to), (MIB, 1000 + MIB as i64, 77 + MIB as i64));
        let mut expected = vec![0; 77];
        expected.extend(&content[1000..1000 + MIB]);
        assert!(fs::read(volume.path(&format!("target-{is_stored}"))).expect("read") == expected);
        // Beyond the end there is nothing to copy.
        let mut from = 2 * MIB as i64;
        assert_eq!(copy_range(&source, &mut from, &target, &mut to, MIB).expect("copy"), 0);
    }
    // Within one file, and the copy stays when the original changes.
    let file = open(volume, "source");
    let (mut from, mut to) = (0, MIB as i64);
    copy_range(&file, &mut from, &file, &mut to, 300 * KIB).expect("copy");
    content.copy_within(..300 * KIB, MIB);
    file.write_all_at(b"changed", 10).expect("write");
    content[10..17].copy_from_slice(b"changed");
    let (mut from, mut to) = (0, 100);
    let overlapping = copy_range(&file, &mut from, &file, &mut to, 4096).expect_err("must be refused");
    assert_eq!(overlapping.raw_os_error(), Some(libc::EINVAL));
    drop(file);
    for is_remounted in [false, true] {
        if is_remounted {
            volume.remount_from_the_store_alone();
        }
        assert!(fs::read(volume.path("source")).expect("read") == content);
        assert_eq!(digest(&volume.path("target-true")), digest(&volume.path("target-false")));
    }

    // A copy of a whole file costs no content.
    write_noise(&volume.path("large"), b"", 24, 8 * MIB);
    volume.sync();
    let before = volume.stored().packs;
    fs::copy(volume.path("large"), volume.path("large-copy")).expect("copy");
    volume.sync();
    assert_eq!(volume.stored().packs, before);
    assert_eq!(digest(&volume.path("large-copy")), digest(&volume.path("large")));
}
