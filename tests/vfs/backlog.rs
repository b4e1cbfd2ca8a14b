//! Files with a long backlog: the store is unreachable, and very many small pieces are staged and not committed.

use std::time::Duration;

use gravitonfs::base::ids::{Fh, Ino};
use gravitonfs::base::range::ByteRange;
use gravitonfs::vfs::{AllocateMode, SetAttr, SetTime};

use super::world::{ROOT, World};

/// Distance of the pieces, so that no two touch and each is a block of its own.
const STEP: usize = 64;
const PIECES: usize = 3_000;
const ROUNDS: usize = 6;

/// Writes pieces all over the file, in several rounds that are each staged by an fsync: the rows that describe them take
/// more bytes than one batch may carry. Returns what the file must hold.
fn scatter(world: &World, fh: Fh) -> Vec<u8> {
    let mut model = vec![0; PIECES * STEP];
    for round in 0..ROUNDS {
        for piece in 0..PIECES {
            let at = piece * STEP + round;
            let data: Vec<u8> = (0..20).map(|byte| (piece * 7 + round * 31 + byte) as u8).collect();
            world.write(fh, at as u64, &data);
            model[at..at + data.len()].copy_from_slice(&data);
        }
        world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
    }
    model.truncate((PIECES - 1) * STEP + ROUNDS - 1 + 20);
    model
}

fn resize(world: &World, ino: Ino, size: usize) -> gravitonfs::vfs::Result<()> {
    let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
    world.vfs().setattr(&ROOT, ino, &set).map(|_| ())
}

#[test]
fn a_file_with_a_long_backlog_can_be_cut_and_stays_cut_through_a_kill() {
    let mut world = World::new(1);
    world.set_unreachable(true);
    let (ino, fh) = world.create("f");
    let mut model = scatter(&world, fh);

    let punched = ByteRange::new(1_000, 20_001);
    world.vfs().fallocate(fh, punched, AllocateMode::PunchHole, true).unwrap();
    model[1_000..20_001].fill(0);
    let zeroed = ByteRange::new(30_000, 40_000);
    world.vfs().fallocate(fh, zeroed, AllocateMode::ZeroRange, true).unwrap();
    model[30_000..40_000].fill(0);
    let cut = model.len() - 5_000;
    resize(&world, ino, cut).unwrap();
    model.truncate(cut);
    // Written after the cuts: they must not take it along.
    world.write(fh, 10_000, &[7; 100]);
    model[10_000..10_100].fill(7);
    resize(&world, ino, cut + 50).unwrap();
    model.resize(cut + 50, 0);
    world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
    assert!(world.read_all(fh, ino) == model, "before the kill");

    world.kill_and_remount();
    let (ino, fh) = world.open("f");
    assert!(world.read_all(fh, ino) == model, "after the kill");
    world.set_unreachable(false);
    world.settle();
    assert!(world.read_all(fh, ino) == model, "from the store");
}

#[test]
fn a_copy_over_a_long_backlog_stays_through_a_kill() {
    let mut world = World::new(2);
    world.set_unreachable(true);
    let (_, source) = world.create("source");
    world.write(source, 0, &[9; 50_000]);
    let (ino, fh) = world.create("f");
    let mut model = scatter(&world, fh);
    let copy = world.vfs().copy_file_range((source, 0), (fh, 10_000), 50_000);
    assert_eq!(world.runtime.block_on(copy).unwrap(), 50_000);
    model[10_000..60_000].fill(9);
    assert!(world.read_all(fh, ino) == model, "before the kill");
    world.kill_and_remount();
    let (ino, fh) = world.open("f");
    assert!(world.read_all(fh, ino) == model, "after the kill");
}

#[test]
fn a_cut_that_cannot_be_committed_changes_nothing() {
    let mut world = World::new(3);
    world.set_unreachable(true);
    let (ino, fh) = world.create("f");
    let staged: Vec<u8> = (0..50_000u32).map(|at| (at / 3) as u8).collect();
    world.write(fh, 0, &staged);
    world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
    world.write(fh, 50_000, &[5; 1_000]);
    let model = [&staged[..], &[5; 1_000]].concat();
    let before = world.vfs().getattr(ino).unwrap();

    world.set_log_full(true);
    assert!(resize(&world, ino, 100).is_err());
    let range = ByteRange::new(10, 50_500);
    for mode in [AllocateMode::PunchHole, AllocateMode::ZeroRange] {
        assert!(world.vfs().fallocate(fh, range, mode, true).is_err());
    }
    assert_eq!(world.vfs().getattr(ino).unwrap(), before);
    assert!(world.read_all(fh, ino) == model, "{} bytes", model.len());

    world.set_log_full(false);
    world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
    world.kill_and_remount();
    let (ino, fh) = world.open("f");
    assert!(world.read_all(fh, ino) == model, "after a kill");
}

#[test]
fn a_time_set_after_the_last_write_outlives_a_kill_and_so_does_the_time_of_a_cut() {
    let mut world = World::new(4);
    world.set_unreachable(true);
    let (ino, fh) = world.create("f");
    world.write(fh, 0, &[1; 10_000]);
    world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
    resize(&world, ino, 5_000).unwrap();
    let cut = world.vfs().getattr(ino).unwrap();
    assert_eq!(cut.mtime, cut.ctime, "a cut is a change of content");
    world.kill_and_remount();
    let (ino, fh) = world.open("f");
    assert_eq!(world.vfs().getattr(ino).unwrap().mtime, cut.mtime, "the time of the cut");

    world.write(fh, 0, &[2; 4_000]);
    world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
    // One that lies ahead, too: it is no time of a change.
    let ahead = gravitonfs::base::time::Timestamp { secs: 1 << 33, nanos: 7 };
    let set = SetAttr { mtime: Some(SetTime::At(ahead)), ..SetAttr::default() };
    let set = world.vfs().setattr(&ROOT, ino, &set).unwrap();
    world.kill_and_remount();
    let (ino, fh) = world.open("f");
    let found = world.vfs().getattr(ino).unwrap();
    assert_eq!((found.mtime, found.ctime), (ahead, set.ctime), "a time set by hand");
    let model = [vec![2; 4_000], vec![1; 1_000]].concat();
    assert!(world.read_all(fh, ino) == model);
}

/// The end of a file that was written over all the time counted as young for ever, so it stayed in memory: a kill took
/// everything since the file was made. What is in memory only is as old as the first write there.
#[test]
fn what_is_written_over_all_the_time_is_a_second_old_at_most_after_a_kill() {
    let mut world = World::simulated(8, 2048);
    let (_, fh) = world.create("f");
    let clock = world.runtime.clock();
    // Nothing is older than the clock.
    world.runtime.block_on(clock.sleep(Duration::from_secs(1)));
    for tenth in 1..=30 {
        world.write(fh, 0, &[tenth; 3_000]);
        world.write(fh, 3_000, &[tenth; 3_000]);
        world.runtime.block_on(clock.sleep(Duration::from_millis(100)));
    }
    world.kill_and_remount();
    let (ino, fh) = world.open("f");
    let found = world.read_all(fh, ino);
    assert_eq!(found.len(), 6_000);
    let oldest = found.iter().min();
    assert!(
        oldest.is_some_and(|&tenth| 15 <= tenth),
        "written {oldest:?} tenths of a second after the first"
    );
}

#[test]
fn very_many_pieces_staged_at_once_survive_a_kill() {
    let mut world = World::new(5);
    world.set_unreachable(true);
    let (_, fh) = world.create("f");
    let pieces = 12_000;
    let mut model = vec![0; pieces * 32];
    for piece in 0..pieces {
        let data = (piece as u64).to_le_bytes();
        world.write(fh, (piece * 32) as u64, &data);
        model[piece * 32..piece * 32 + 8].copy_from_slice(&data);
    }
    model.truncate((pieces - 1) * 32 + 8);
    world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
    world.kill_and_remount();
    let (ino, fh) = world.open("f");
    assert!(world.read_all(fh, ino) == model);
}

#[test]
fn one_write_can_replace_very_many_pieces() {
    let mut world = World::new(6);
    let (_, fh) = world.create("f");
    for round in 0..5 {
        for piece in 0..4_000usize {
            let at = (round * 4_000 + piece) * 16;
            world.write(fh, at as u64, &(at as u64).to_le_bytes());
        }
        world.settle();
    }
    let model = vec![9; 20_000 * 16];
    world.write(fh, 0, &model);
    world.settle();
    world.kill_and_remount();
    let (ino, fh) = world.open("f");
    assert!(world.read_all(fh, ino) == model);
}

#[test]
fn the_last_file_whose_bytes_could_not_be_kept_is_named() {
    let world = World::new(7);
    let (_, fine) = world.create("fine");
    let (ino, fh) = world.create("f");
    assert_eq!(world.vfs().last_failure(), None);
    world.set_log_full(true);
    for count in 1..3 {
        world.write(fh, 0, &[count as u8; 10_000]);
        world.runtime.block_on(world.vfs().fsync(fh)).unwrap_err();
        let failure = world.vfs().last_failure().unwrap();
        assert_eq!((failure.ino, &*failure.cause), (ino, "no space left"));
        assert!(count <= failure.count);
    }
    world.set_log_full(false);
    world.write(fine, 0, &[1; 10_000]);
    world.settle();
    assert_eq!(world.vfs().last_failure().unwrap().ino, ino, "until the next");
    assert!(world.read_all(fh, ino) == vec![2; 10_000]);
}

#[test]
fn content_that_could_not_be_committed_is_told_to_a_sync_and_tried_again_by_the_next() {
    let world = World::new(8);
    let (ino, fh) = world.create("f");
    world.set_unreachable(true);
    world.write(fh, 0, &[3; 10_000]);
    world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
    world.set_log_full(true);
    world.set_unreachable(false);
    for _ in 0..2 {
        assert!(world.runtime.block_on(world.vfs().settle()).is_err(), "it is not in the store's metadata");
    }
    world.vfs().release(fh);
    world.set_log_full(false);
    world.settle();
    assert_eq!(world.vfs().statfs().unwrap().logical_bytes, 10_000, "committed");
    let (again, fh) = world.open("f");
    assert_eq!(again, ino);
    assert!(world.read_all(fh, ino) == vec![3; 10_000]);
}
