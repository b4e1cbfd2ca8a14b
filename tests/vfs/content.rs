//! The bytes of files against an array, through writes, cuts, copies, staging, kills and remounts.

use gravitonfs::base::ids::{Fh, Ino};
use gravitonfs::base::range::ByteRange;
use gravitonfs::base::time::Random;
use gravitonfs::rt::SeededRandom;
use gravitonfs::vfs::{AllocateMode, Error, RenameMode, SetAttr, Whence};

use super::world::{ROOT, World, named};

#[test]
fn what_is_written_is_read_back_before_and_after_it_is_stored() {
    let mut world = World::new(1);
    let (ino, fh) = world.create("f");
    let data: Vec<u8> = (0..300_000u32).flat_map(|at| at.to_le_bytes()).collect();
    for (index, part) in data.chunks(70_001).enumerate() {
        world.write(fh, index as u64 * 70_001, part);
    }
    assert!(world.read_all(fh, ino) == data, "from memory");
    world.settle();
    assert!(world.read_all(fh, ino) == data, "from the store");
    world.kill_and_remount();
    let (ino, fh) = world.open("f");
    assert!(world.read_all(fh, ino) == data, "after a remount");
}

#[test]
fn a_file_renamed_over_another_is_whole_or_the_old_one_stays() {
    let mut world = World::new(2);
    let (_, old) = world.create("target");
    world.write(old, 0, &[1; 10_000]);
    world.settle();
    let (_, new) = world.create("temporary");
    world.write(new, 0, &[2; 20_000]);
    let renamed = world.vfs().rename(
        (Ino::ROOT, &named("temporary")),
        (Ino::ROOT, &named("target")),
        RenameMode::Replace,
    );
    world.runtime.block_on(renamed).unwrap();
    world.kill_and_remount();
    let (ino, fh) = world.open("target");
    assert!(world.read_all(fh, ino) == vec![2; 20_000]);
    assert!(world.vfs().lookup(Ino::ROOT, &named("temporary")).unwrap().is_none());
}

#[test]
fn a_copy_shares_what_the_source_has_and_parts_with_it_on_write() {
    let world = World::new(3);
    for settle_first in [false, true] {
        let name = format!("source-{settle_first}");
        let (source, from) = world.create(&name);
        let mut data: Vec<u8> = (0..100_000u32).map(|at| (at / 7) as u8).collect();
        world.write(from, 0, &data);
        if settle_first {
            world.settle();
        }
        let (target, to) = world.create(&format!("target-{settle_first}"));
        let copied =
            world.runtime.block_on(world.vfs().copy_file_range((from, 0), (to, 0), 1 << 40)).unwrap();
        assert_eq!(copied, 100_000);
        assert!(world.read_all(to, target) == data, "the copy, settle_first={settle_first}");
        world.write(from, 50_000, &[9; 100]);
        assert!(world.read_all(to, target) == data, "a write to the source stays there");
        data[50_000..50_100].fill(9);
        world.settle();
        assert!(world.read_all(from, source) == data);
    }
}

#[test]
fn an_unlinked_file_is_readable_until_it_is_closed_and_its_space_comes_back() {
    let world = World::new(4);
    let before = world.vfs().statfs().unwrap();
    let (ino, fh) = world.create("f");
    world.write(fh, 0, &[7; 50_000]);
    world.settle();
    world.vfs().unlink(Ino::ROOT, &named("f")).unwrap();
    assert!(world.read_all(fh, ino) == vec![7; 50_000]);
    world.vfs().release(fh);
    world.vfs().forget(ino, 1);
    assert!(matches!(world.vfs().getattr(ino), Err(Error::Stale)));
    assert_eq!(world.vfs().statfs().unwrap(), before);
}

/// A file and what it must hold.
struct Model {
    name: String,
    bytes: Vec<u8>,
    ino: Ino,
    fh: Fh,
}

const SIZE_MAX: u64 = 120_000;

/// One random operation on the files and on the models.
fn step(world: &mut World, random: &SeededRandom, files: &mut [Model], step: usize) {
    let pick = |below: u64| random.next_u64() % below;
    let at = pick(files.len() as u64) as usize;
    let offset = pick(SIZE_MAX);
    let len = match pick(4) {
        0 => pick(100) + 1,
        1 => pick(5_000) + 1,
        _ => pick(40_000) + 1,
    };
    let range = ByteRange::at(offset, len.min(SIZE_MAX - offset));
    let file = &mut files[at];
    match pick(13) {
        0..=3 => {
            let data: Vec<u8> = (0..range.len()).map(|byte| (byte / 3 + step as u64) as u8).collect();
            world.write(file.fh, range.start, &data);
            put(&mut file.bytes, range.start, &data);
        }
        4 => {
            let end = file.bytes.len() as u64;
            let data = vec![step as u8; pick(3_000) as usize];
            if end + 3_000 < SIZE_MAX {
                world.write(file.fh, end, &data);
                file.bytes.extend_from_slice(&data);
            }
        }
        5 => {
            let set = SetAttr { size: Some(range.start), ..SetAttr::default() };
            world.vfs().setattr(&ROOT, file.ino, &set).unwrap();
            file.bytes.resize(range.start as usize, 0);
        }
        6 => {
            world.vfs().fallocate(file.fh, range, AllocateMode::PunchHole, true).unwrap();
            clear(&mut file.bytes, range);
        }
        7 => {
            let keep = pick(2) == 0;
            let mode = if pick(2) == 0 { AllocateMode::Allocate } else { AllocateMode::ZeroRange };
            world.vfs().fallocate(file.fh, range, mode, keep).unwrap();
            let end = file.bytes.len() as u64;
            if !keep {
                file.bytes.resize(end.max(range.end) as usize, 0);
            }
            if mode == AllocateMode::ZeroRange {
                clear(&mut file.bytes, range);
            }
        }
        8 | 9 => {
            let from = pick(files.len() as u64) as usize;
            let source = pick(SIZE_MAX);
            let bytes = files[from].bytes.clone();
            let overlap = from == at
                && ByteRange::at(source, range.len())
                    .intersect(&ByteRange::new(0, bytes.len() as u64))
                    .overlaps(&range);
            if overlap {
                return;
            }
            let copy =
                world.vfs().copy_file_range((files[from].fh, source), (files[at].fh, offset), range.len());
            let copied = world.runtime.block_on(copy).unwrap() as usize;
            let part = bytes.get(source as usize..).unwrap_or_default();
            let expected = part.len().min(range.len() as usize);
            assert_eq!(copied, expected, "step {step}: copied bytes");
            if copied > 0 {
                put(&mut files[at].bytes, offset, &part[..copied]);
            }
        }
        10 => world.runtime.block_on(world.vfs().fsync(file.fh)).unwrap(),
        11 => world.settle(),
        _ => {
            if pick(4) == 0 {
                for file in files.iter() {
                    world.runtime.block_on(world.vfs().fsync(file.fh)).unwrap();
                }
                world.kill_and_remount();
                for file in files.iter_mut() {
                    (file.ino, file.fh) = world.open(&file.name);
                }
            }
        }
    }
}

fn clear(bytes: &mut [u8], range: ByteRange) {
    let end = (range.end as usize).min(bytes.len());
    if let Some(part) = bytes.get_mut(range.start as usize..end) {
        part.fill(0);
    }
}

fn put(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let end = offset as usize + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset as usize..end].copy_from_slice(data);
}

fn check(world: &World, file: &Model, step: usize, seed: u64) {
    let attr = world.vfs().getattr(file.ino).unwrap();
    let context = format!("seed {seed} step {step} file {}", file.name);
    assert_eq!(attr.size, file.bytes.len() as u64, "{context}: size");
    let read = world.read_all(file.fh, file.ino);
    if read != file.bytes {
        let at = read.iter().zip(&file.bytes).position(|(a, b)| a != b);
        panic!("{context}: bytes differ at {at:?}");
    }
    check_holes(world, file, &context);
}

/// What lseek calls hole must read as zeros, and allocated bytes must cover what it calls data.
fn check_holes(world: &World, file: &Model, context: &str) {
    let mut at = 0;
    let mut data_bytes = 0;
    let size = file.bytes.len() as u64;
    while at < size {
        let data = match world.vfs().lseek(file.fh, at, Whence::Data) {
            Ok(data) => data,
            Err(Error::NoSuchOffset) => size,
            Err(error) => panic!("{context}: {error}"),
        };
        assert!(file.bytes[at as usize..data as usize].iter().all(|&byte| byte == 0), "{context}: hole");
        if data == size {
            break;
        }
        at = world.vfs().lseek(file.fh, data, Whence::Hole).unwrap();
        assert!(data < at, "{context}: data at {data} is empty");
        data_bytes += at - data;
    }
    let blocks = world.vfs().getattr(file.ino).unwrap().blocks;
    assert!(data_bytes <= blocks * 512, "{context}: {data_bytes} bytes of data in {blocks} blocks");
}

/// `df` must show what `du` shows, at every moment.
fn check_usage(world: &World, files: &[Model], step: usize, seed: u64) {
    let blocks = |ino: Ino| world.vfs().getattr(ino).unwrap().blocks;
    let du = 512 * (blocks(Ino::ROOT) + files.iter().map(|file| blocks(file.ino)).sum::<u64>());
    let df = world.vfs().statfs().unwrap().allocated_bytes;
    let rounded = 512 * files.len() as u64;
    assert!(df <= du && du < df + rounded, "seed {seed} step {step}: df {df} du {du}");
}

#[test]
fn usage_follows_a_write_at_once_and_does_not_move_when_it_is_committed() {
    let world = World::new(5);
    world.set_unreachable(true);
    let used = || world.vfs().statfs().unwrap().allocated_bytes;
    let before = used();
    let (_, fh) = world.create("f");
    let data: Vec<u8> = (0..25_000u32).flat_map(u32::to_le_bytes).collect();
    world.write(fh, 0, &data);
    assert_eq!(used(), before + 100_000, "in memory");
    world.runtime.block_on(world.vfs().fsync(fh)).unwrap();
    assert_eq!(used(), before + 100_000, "staged");
    world.write(fh, 0, &data[..50_000]);
    assert_eq!(used(), before + 100_000, "written again");
    world.set_unreachable(false);
    world.settle();
    assert_eq!(used(), before + 100_000, "committed");
}

#[test]
fn random_operations_agree_with_arrays() {
    let steps: usize = std::env::var("STEPS").map_or(600, |text| text.parse().unwrap());
    let seeds = std::env::var("SEED").map_or(1..7, |text| {
        let seed: u64 = text.parse().unwrap();
        seed..seed + 1
    });
    for seed in seeds {
        let random = SeededRandom::new(seed);
        let mut world = World::new(seed);
        let mut files: Vec<Model> = (0..3)
            .map(|number| {
                let name = format!("file-{number}");
                let (ino, fh) = world.create(&name);
                Model { name, bytes: Vec::new(), ino, fh }
            })
            .collect();
        for number in 0..steps {
            step(&mut world, &random, &mut files, number);
            for file in &files {
                check(&world, file, number, seed);
            }
            check_usage(&world, &files, number, seed);
        }
    }
}
