//! What the random tests have found, each as the shortest story that shows it.

use futures_util::FutureExt as _;
use gravitonfs::base::ids::{Fh, Ino};
use gravitonfs::base::limits::FILE_BYTES_MAX;
use gravitonfs::base::range::ByteRange;
use gravitonfs::base::time::Timestamp;
use gravitonfs::vfs::{AllocateMode, Attr, Error, RenameMode, SetAttr, SetTime, SetXattr};

use super::world::{ROOT, World, named};

/// Nothing happens in it beside what is called.
fn world() -> World {
    World::simulated(1, 512)
}

fn pass_time(world: &World) {
    world.simulation().clock().advance(std::time::Duration::from_micros(1));
}

fn attr(world: &World, ino: Ino) -> Attr {
    world.vfs().getattr(ino).unwrap()
}

fn allocate(world: &World, fh: Fh, range: (u64, u64), mode: AllocateMode, keep_size: bool) {
    world.vfs().fallocate(fh, ByteRange::new(range.0, range.1), mode, keep_size).unwrap();
}

fn set(world: &World, ino: Ino, set: SetAttr) {
    world.vfs().setattr(&ROOT, ino, &set).unwrap();
}

fn set_size(world: &World, ino: Ino, size: u64) {
    set(world, ino, SetAttr { size: Some(size), ..SetAttr::default() });
}

fn copy(world: &World, from: (Fh, u64), to: (Fh, u64), len: u64) -> u64 {
    world.runtime.block_on(world.vfs().copy_file_range(from, to, len)).unwrap()
}

/// relatime looked at the committed times only: a file that was written and read stayed unread for as long as the store
/// had not taken the write.
#[test]
fn a_read_renews_atime_after_a_write_that_is_not_committed() {
    let world = world();
    let (ino, fh) = world.create("f");
    for _ in 0..2 {
        pass_time(&world);
        world.write(fh, 0, &[1; 5_000]);
        pass_time(&world);
        world.read(fh, 0, 1);
        assert!(attr(&world, ino).mtime < attr(&world, ino).atime);
    }
}

/// ext4 gives back what is allocated beyond the end on every truncate that does not grow the file; here a truncate to the
/// same size left it, and it stayed for good.
#[test]
fn a_truncate_to_the_same_size_gives_back_what_was_allocated_beyond_it() {
    let world = world();
    for settled in [false, true] {
        let (ino, fh) = world.create(&format!("settled-{settled}"));
        world.write(fh, 0, &[1; 4096]);
        allocate(&world, fh, (0, 20_000), AllocateMode::Allocate, true);
        if settled {
            world.settle();
        }
        assert_eq!(attr(&world, ino).blocks, 20_000_u64.div_ceil(512));
        set_size(&world, ino, 4096);
        assert_eq!(attr(&world, ino).blocks, 8);
        world.settle();
        assert_eq!((attr(&world, ino).size, attr(&world, ino).blocks), (4096, 8));
    }
}

/// The time of a truncate that changed nothing else was kept beside the content it belonged to, and mtime went back when
/// that was committed.
#[test]
fn the_time_of_a_truncate_to_the_same_size_stays_when_the_content_is_committed() {
    let mut world = world();
    let (ino, fh) = world.create("f");
    world.write(fh, 0, &[1; 5_000]);
    world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
    pass_time(&world);
    set_size(&world, ino, 5_000);
    let mtime = attr(&world, ino).mtime;
    world.settle();
    assert_eq!(attr(&world, ino).mtime, mtime);
    world.kill_and_remount();
    assert_eq!(attr(&world, ino).mtime, mtime);
}

/// What was sealed of a file that had only become longer bore the time of a write that came meanwhile. That was taken for a
/// time set by hand, and the change time stayed as it was before the write.
#[test]
fn a_write_while_a_longer_size_is_sealed_changes_both_times_for_good() {
    let world = world();
    let (ino, fh) = world.create("f");
    world.write(fh, 0, &[1; 5_000]);
    world.settle();
    world.write(fh, 28_000, &[1; 1_000]);
    set_size(&world, ino, 26_000);
    let mut syncing = world.vfs().fsync(fh);
    assert!(world.runtime.block_on(async { (&mut syncing).now_or_never() }).is_none());
    pass_time(&world);
    world.write(fh, 20_000, &[1; 1_000]);
    let written = attr(&world, ino);
    assert_eq!(written.mtime, written.ctime);
    world.runtime.block_on(syncing).unwrap();
    world.settle();
    world.vfs().release(fh);
    world.vfs().forget(ino, 1);
    assert_eq!((attr(&world, ino).mtime, attr(&world, ino).ctime), (written.mtime, written.ctime));
}

/// The size that a truncate had left while bytes were out to be staged was committed after the copy that made the file longer
/// again: until the next seal, what was copied read as zeros.
#[test]
fn a_copy_to_a_file_that_was_truncated_while_its_bytes_were_staged_is_there() {
    let world = world();
    let (_, source) = world.create("source");
    world.write(source, 0, &[7; 5_000]);
    let (ino, fh) = world.create("f");
    world.write(fh, 0, &[1; 5_000]);
    world.settle();
    world.write(fh, 16_000, &[1; 2_000]);
    let mut syncing = world.vfs().fsync(fh);
    assert!(world.runtime.block_on(async { (&mut syncing).now_or_never() }).is_none());
    set_size(&world, ino, 58);
    assert_eq!(copy(&world, (source, 0), (fh, 16_000), 1_000), 1_000);
    world.runtime.block_on(syncing).unwrap();
    for settled in [false, true] {
        if settled {
            world.settle();
        }
        assert_eq!(attr(&world, ino).size, 17_000);
        assert_eq!(world.read(fh, 16_000, 1_000)[..], [7; 1_000], "settled: {settled}");
    }
}

/// What had been committed inside the metadata was counted once more where a copy took its place.
#[test]
fn a_copy_over_what_a_small_file_held_is_counted_once() {
    let world = world();
    let (ino, fh) = world.create("f");
    world.write(fh, 0, &[1; 500]);
    world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
    world.write(fh, 500, &[2; 3_596]);
    world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
    assert_eq!(attr(&world, ino).blocks, 8);
    for (to, len) in [(59, 400), (0, 600), (700, 100)] {
        assert_eq!(copy(&world, (fh, 1_000), (fh, to), len), len);
        assert_eq!(attr(&world, ino).blocks, 8, "{to}");
    }
    world.settle();
    assert_eq!(attr(&world, ino).blocks, 8);
}

/// As Linux has it for two names of one file, whoever asks.
#[test]
fn exchanging_two_names_of_one_file_changes_nothing() {
    let world = world();
    let (ino, _) = world.create("a");
    world.vfs().link(ino, Ino::ROOT, &named("b")).unwrap();
    let before = (attr(&world, ino), attr(&world, Ino::ROOT));
    pass_time(&world);
    let (a, b) = (named("a"), named("b"));
    let renamed = world.vfs().rename((Ino::ROOT, &a), (Ino::ROOT, &b), RenameMode::Exchange);
    world.runtime.block_on(renamed).unwrap();
    assert_eq!((attr(&world, ino), attr(&world, Ino::ROOT)), before);
}

/// A target small enough to live in the metadata was committed there and taken up into memory again in turns, until
/// the call gave up with EOPNOTSUPP.
#[test]
fn a_copy_onto_a_small_file_is_carried_out() {
    let world = world();
    let (_, source) = world.create("source");
    world.write(source, 0, &[1; 50_000]);
    for settled in [false, true] {
        let (ino, fh) = world.create(&format!("settled-{settled}"));
        world.write(fh, 0, &[2; 50]);
        if settled {
            world.settle();
        }
        assert_eq!(copy(&world, (source, 0), (fh, 100), 40_000), 40_000);
        let expected = [vec![2; 50], vec![0; 50], vec![1; 40_000]].concat();
        assert!(world.read_all(fh, ino) == expected);
    }
}

/// st_blocks counted it a second time until the write was committed.
#[test]
fn room_allocated_beyond_the_end_is_counted_once_when_it_is_written() {
    let world = world();
    let (ino, fh) = world.create("f");
    world.write(fh, 0, &[1; 1024]);
    allocate(&world, fh, (1024, 8192), AllocateMode::Allocate, true);
    world.settle();
    assert_eq!(attr(&world, ino).blocks, 16);
    world.write(fh, 1024, &[1; 4096]);
    assert_eq!(attr(&world, ino).blocks, 16);
    // And a file with as much room beyond its end as it has holes has holes.
    let (ino, fh) = world.create("holes");
    world.write(fh, 4096, &[1; 4096]);
    allocate(&world, fh, (8192, 12_288), AllocateMode::Allocate, true);
    world.settle();
    world.write(fh, 0, &[1; 4096]);
    assert_eq!(attr(&world, ino).blocks, 24);
}

/// Content that was committed after the mtime had been set took the time set for that of the last change: ctime was in the
/// future and stayed there.
#[test]
fn a_time_in_the_future_that_was_set_by_hand_is_not_the_time_of_a_change() {
    let world = world();
    let (ino, fh) = world.create("f");
    world.write(fh, 0, &[1; 5_000]);
    world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
    let future = Timestamp { secs: 1 << 33, nanos: 0 };
    set(&world, ino, SetAttr { mtime: Some(SetTime::At(future)), ..SetAttr::default() });
    allocate(&world, fh, (100, 200), AllocateMode::PunchHole, true);
    let changed = attr(&world, ino).ctime;
    world.settle();
    assert_eq!(attr(&world, ino).ctime, changed);
}

/// What was allocated before the file was long enough to reach it was hole in the copy.
#[test]
fn a_copy_takes_along_what_was_allocated_before_the_file_reached_it() {
    let world = world();
    let (_, source) = world.create("source");
    world.write(source, 0, &[1; 1024]);
    allocate(&world, source, (1024, 8192), AllocateMode::Allocate, true);
    world.settle();
    world.write(source, 8192, &[1; 1024]);
    let (ino, target) = world.create("target");
    assert_eq!(copy(&world, (source, 0), (target, 0), FILE_BYTES_MAX), 9216);
    assert_eq!(attr(&world, ino).blocks, 18);
}

/// fallocate(2) of what is allocated already changes the times and nothing else; they went back when older content was
/// committed, or when the inode was forgotten.
#[test]
fn allocating_what_is_allocated_changes_the_times_for_good() {
    let world = world();
    for settled in [false, true] {
        let (ino, fh) = world.create(&format!("settled-{settled}"));
        world.write(fh, 0, &[1; 5_000]);
        world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
        if settled {
            world.settle();
        }
        pass_time(&world);
        allocate(&world, fh, (0, 100), AllocateMode::Allocate, false);
        let mtime = attr(&world, ino).mtime;
        world.settle();
        world.vfs().release(fh);
        world.vfs().forget(ino, 1);
        assert_eq!(attr(&world, ino).mtime, mtime);
    }
}

/// ext4 tells a namespace without a name from one that it does not have.
#[test]
fn an_attribute_name_that_is_a_namespace_alone_is_invalid() {
    let world = world();
    let (ino, _) = world.create("f");
    let set = |name: &[u8]| world.vfs().setxattr(ino, name, b"", SetXattr::Either);
    assert!(matches!(set(b"user."), Err(Error::Invalid)));
    assert!(matches!(set(b"none.such"), Err(Error::NotSupported)));
}
