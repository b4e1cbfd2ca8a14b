//! What only the redb store promises: bad files are refused, kinds of errors are kept, opening is quick.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::backend::memory_device::MemoryDirectory;
use crate::base::limits::MIB;
use crate::base::time::Random as _;
use crate::rt::SeededRandom;
use crate::store::device::Directory as _;

const T: Table = Table(3);
const ROWS_WRITTEN: u32 = 2000;

fn value_of(n: u32) -> Vec<u8> {
    n.to_le_bytes().repeat(20)
}

/// A database of some pages, closed properly.
fn written(directory: &MemoryDirectory) -> Arc<dyn Device> {
    let device = directory.create("meta.redb").expect("new");
    directory.sync().expect("syncs");
    let store = RedbKv::open(device.clone(), MIB).expect("an empty device");
    for part in (0..ROWS_WRITTEN).collect::<Vec<_>>().chunks(500) {
        let put = |&n: &u32| Write { table: T, key: n.to_be_bytes().to_vec(), value: Some(value_of(n)) };
        store.commit(&part.iter().map(put).collect::<Vec<_>>(), Durability::Immediate).expect("commits");
    }
    device
}

fn scan(store: &RedbKv) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut rows = Vec::new();
    store.snapshot()?.scan(T, b"", None, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(rows)
}

#[test]
fn a_file_that_is_no_database_is_corrupt() {
    let directory = MemoryDirectory::new();
    let text = directory.create("text").expect("new");
    text.write_at(&b"not a database\n".repeat(1000), 0).expect("room");
    let short = written(&directory);
    short.set_len(5000).expect("shorter");
    for device in [text, short] {
        let outcome = RedbKv::open(device, MIB);
        assert_eq!(outcome.err().map(|error| error.kind), Some(Kind::Corrupt));
    }
}

/// A disk that rots: whatever byte goes bad, no row is ever answered with a value that was not written.
#[test]
fn flipped_bits_are_errors_and_never_other_values() {
    let directory = MemoryDirectory::new();
    let device = written(&directory);
    let mut image = vec![0; usize::try_from(device.len().expect("readable")).expect("small")];
    device.read_at(&mut image, 0).expect("readable");
    let random = SeededRandom::new(11);
    let mut refused = 0;
    for round in 0..200 {
        let rotten = directory.create(&format!("rotten-{round}")).expect("new");
        rotten.write_at(&image, 0).expect("room");
        for _ in 0..20 {
            let at = random.next_u64() % image.len() as u64;
            let byte = image[usize::try_from(at).expect("small")] ^ (1 << (random.next_u64() % 8));
            rotten.write_at(&[byte], at).expect("room");
        }
        let rows = RedbKv::open(rotten, MIB).and_then(|store| scan(&store));
        refused += u32::from(rows.is_err());
        for (key, value) in rows.unwrap_or_default() {
            let n = u32::from_be_bytes(key.try_into().expect("a key that was written"));
            assert_eq!(value, value_of(n));
        }
    }
    assert!(refused > 50, "flips went unnoticed: refused={refused}");
}

#[test]
fn a_full_disk_is_full_and_then_the_store_is_closed() {
    let directory = MemoryDirectory::with_capacity(2 * MIB);
    let store = RedbKv::open(directory.create("meta.redb").expect("new"), MIB).expect("fits");
    let big = [Write { table: T, key: vec![1], value: Some(vec![0; 3 << 20]) }];
    let first = store.commit(&big, Durability::Immediate).expect_err("no room");
    assert_eq!(first.kind, Kind::Full, "{first}");
    let second = store.commit(&[], Durability::Visible).expect_err("latched");
    assert_eq!((second.kind, second.detail.contains("disk full")), (Kind::Internal, true), "{second}");
}

/// A mount after a crash would otherwise take as long as reading all metadata.
#[test]
fn opening_after_a_crash_does_not_read_the_whole_file() {
    for seed in 0..20 {
        let directory = MemoryDirectory::new();
        let device = written(&directory);
        let store = RedbKv::open(device, MIB).expect("closed in order");
        let extra = [Write { table: T, key: b"extra".to_vec(), value: Some(vec![7; 1000]) }];
        store.commit(&extra, Durability::Visible).expect("commits");
        directory.crash(&SeededRandom::new(seed));
        drop(store);
        let device = directory.open("meta.redb").expect("synced");
        let checked = Arc::new(AtomicBool::new(false));
        let seen = checked.clone();
        let store = RedbKv::open_reporting(device, MIB, move |_| seen.store(true, Ordering::Relaxed));
        assert_eq!(scan(&store.expect("repairs")).expect("reads").len(), ROWS_WRITTEN as usize);
        assert!(!checked.load(Ordering::Relaxed), "read all of it, seed={seed}");
    }
}

#[test]
fn closing_keeps_visible_commits() {
    let directory = MemoryDirectory::new();
    let device = written(&directory);
    let store = RedbKv::open(device, MIB).expect("closed in order");
    let held = store.snapshot().expect("snapshot");
    store.commit(&[Write { table: T, key: vec![1], value: None }], Durability::Visible).expect("commits");
    store
        .commit(&[Write { table: T, key: b"extra".to_vec(), value: Some(vec![7]) }], Durability::Visible)
        .expect("commits");
    drop((store, held));
    directory.crash(&SeededRandom::new(1));
    let store = RedbKv::open(directory.open("meta.redb").expect("synced"), MIB).expect("closed in order");
    assert_eq!(store.snapshot().and_then(|view| view.get(T, b"extra")).expect("reads"), Some(vec![7]));
}
