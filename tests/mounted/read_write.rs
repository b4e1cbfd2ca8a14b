//! Reading and writing through several handles and through memory maps.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use crate::mount::{Volume, on_each_backend};
use crate::syscall::Mapping;
use crate::tree::{MIB, Noise};

on_each_backend! {
    two_handles_that_append_lose_nothing within 120 s,
    a_shared_mapping_and_the_file_are_the_same within 120 s,
    random_writes_and_reads_agree_with_a_copy_in_memory within 180 s,
    a_writer_is_seen_by_a_reader_at_once within 120 s,
    fsync_with_the_remote_tier_means_the_store_has_it within 120 s,
}

fn two_handles_that_append_lose_nothing(volume: &Volume) {
    volume.mount();
    let path = volume.path("log");
    let open = || OpenOptions::new().create(true).append(true).open(&path).expect("open");
    let (mut first, mut second) = (open(), open());
    let mut expected = Vec::new();
    for line in 0..2000 {
        let text = format!("line {line}\n");
        let handle = if line % 3 == 0 { &mut first } else { &mut second };
        handle.write_all(text.as_bytes()).expect("append");
        expected.extend_from_slice(text.as_bytes());
    }
    assert!(fs::read(&path).expect("read") == expected);
    // From two threads: any order, but whole lines.
    std::thread::scope(|scope| {
        for mut handle in [first, second] {
            scope.spawn(move || {
                for _ in 0..500 {
                    handle.write_all(b"0123456789abcdef\n").expect("append");
                }
            });
        }
    });
    expected.extend(b"0123456789abcdef\n".repeat(1000));
    volume.remount_from_the_store_alone();
    assert!(fs::read(&path).expect("read") == expected);
}

fn a_shared_mapping_and_the_file_are_the_same(volume: &Volume) {
    volume.mount();
    let path = volume.path("mapped");
    let mut expected = Noise::new(31).take(2 * MIB);
    fs::write(&path, &expected).expect("write");
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    let mapping = Mapping::new(&file, expected.len()).expect("map");
    assert!(mapping.read(0, expected.len()) == expected);
    for (offset, text) in
        [(0, "head"), (4095, "across pages"), (MIB - 3, "across blocks"), (2 * MIB - 4, "tail")]
    {
        mapping.write(offset, text.as_bytes());
        expected[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    }
    mapping.sync().expect("msync");
    let mut found = Vec::new();
    File::open(&path).expect("open").read_to_end(&mut found).expect("read");
    assert!(found == expected, "what is stored through the map is read from the file");
    file.write_all_at(b"written", 500_000).expect("write");
    expected[500_000..500_007].copy_from_slice(b"written");
    assert_eq!(mapping.read(500_000, 7), b"written", "what is written is seen through the map");
    mapping.write(600_000, b"unsynced");
    expected[600_000..600_008].copy_from_slice(b"unsynced");
    drop((mapping, file));
    volume.remount_from_the_store_alone();
    assert!(fs::read(&path).expect("read") == expected);
}

fn random_writes_and_reads_agree_with_a_copy_in_memory(volume: &Volume) {
    const LEN: usize = 6 * MIB;
    volume.mount();
    let path = volume.path("file");
    let mut model = Noise::new(32).take(LEN);
    fs::write(&path, &model).expect("write");
    let mut dice = Noise::new(33);
    for round in 0..4 {
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
        for _ in 0..150 {
            let len = 1 + usize::try_from(dice.number() % 50_000).expect("small");
            let offset = usize::try_from(dice.number() % (LEN - len) as u64).expect("small");
            if dice.number().is_multiple_of(2) {
                let bytes = dice.take(len);
                file.write_all_at(&bytes, offset as u64).expect("write");
                model[offset..offset + len].copy_from_slice(&bytes);
            } else {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, offset as u64).expect("read");
                assert!(bytes == model[offset..offset + len], "round {round}: {len} bytes at {offset}");
            }
        }
        drop(file);
        match round {
            0 => volume.sync(),
            1 => volume.remount_from_the_store_alone(),
            _ => {}
        }
        assert!(fs::read(&path).expect("read") == model, "round {round}");
    }
    volume.remount_from_the_store_alone();
    assert!(fs::read(&path).expect("read") == model);
}

fn a_writer_is_seen_by_a_reader_at_once(volume: &Volume) {
    volume.mount();
    let path = volume.path("file");
    // One handle that goes past the page cache, and two that use it.
    let writer = OpenOptions::new().create(true).truncate(true).write(true).open(&path).expect("create");
    let both = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    let reader = File::open(&path).expect("open");
    let mut expected = Vec::new();
    for round in 0_u8..40 {
        let handle = if round % 2 == 0 { &writer } else { &both };
        let piece = vec![round; 3001];
        handle.write_all_at(&piece, expected.len() as u64).expect("write");
        expected.extend(piece);
        handle.write_all_at(b"!", u64::from(round)).expect("overwrite");
        expected[usize::from(round)] = b'!';
        assert_eq!(reader.metadata().expect("fstat").len(), expected.len() as u64);
        let mut found = vec![0; expected.len()];
        reader.read_exact_at(&mut found, 0).expect("read");
        assert!(found == expected, "round {round}");
    }
    drop((writer, both, reader));
    volume.remount_from_the_store_alone();
    assert!(fs::read(&path).expect("read") == expected);
}

fn fsync_with_the_remote_tier_means_the_store_has_it(volume: &Volume) {
    volume.mount_with(&["-o", "durability=remote"]);
    assert_eq!(volume.status()["durability"], "remote");
    let small = volume.path("small");
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o640).open(&small).expect("create");
    file.write_all(b"kept").expect("write");
    let before = volume.requests();
    file.sync_all().expect("fsync");
    let cost = volume.requests().since(&before);
    assert!((1..=2).contains(&cost.put), "the fsync of a small file is about one PUT: {cost}");
    let large = volume.path("large");
    let content = Noise::new(34).take(5 * MIB);
    let mut file = File::create(&large).expect("create");
    file.write_all(&content).expect("write");
    file.sync_all().expect("fsync");
    let status = volume.status();
    for field in ["dirty_bytes", "pending_upload_bytes"] {
        assert_eq!(status[field], 0, "{field} after fsync");
    }
    drop(file);
}
