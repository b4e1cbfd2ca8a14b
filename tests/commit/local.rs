//! The local tier: log, memory, key-value store.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gravitonfs::backend::memory_device::MemoryDirectory;
use gravitonfs::base::time::Random as _;
use gravitonfs::commit::system::LOCAL_SYSTEM;
use gravitonfs::commit::{Batch, Committer, CommitterParts, Expect, Limits};
use gravitonfs::rt::{SeededRandom, Spawner};
use gravitonfs::store::Kind;
use gravitonfs::store::device::Directory as _;
use gravitonfs::store::kv::{Durability, Snapshot as _, Write};

use crate::support::*;

#[test]
fn a_batch_is_visible_when_submit_returns_and_older_views_do_not_see_it() {
    let machine = Machine::new();
    let committer = machine.open(Limits::default()).expect("opens");
    let before = committer.view().expect("view");
    let _ = committer.submit(put(ROWS, b"k", b"1")).expect("submits");
    let between = committer.view().expect("view");
    let _ = committer.submit(put(ROWS, b"k", b"2")).expect("submits");
    assert_eq!(before.get(ROWS, b"k").expect("readable"), None);
    assert_eq!(between.get(ROWS, b"k").expect("readable"), Some(b"1".to_vec()));
    assert_eq!(committer.get(ROWS, b"k").expect("readable"), Some(b"2".to_vec()));
}

#[test]
fn expectations_are_checked_against_the_newest_rows_and_failure_changes_nothing() {
    let machine = Machine::new();
    let committer = machine.open(Limits::default()).expect("opens");
    let _ = committer.submit(put(ROWS, b"k", b"1")).expect("submits");
    let (table, key) = (ROWS, b"k".to_vec());
    let present = Expect::Present { table, key: key.clone() };
    let absent = Expect::Absent { table, key: key.clone() };
    let equals = |value: &[u8]| Expect::Equals { table, key: key.clone(), value: value.to_vec() };
    for (expect, holds) in [(present, true), (absent, false), (equals(b"1"), true), (equals(b"2"), false)] {
        let mut batch = put(OTHER, b"seen", format!("{expect:?}").as_bytes());
        batch.expect(expect.clone());
        let seen = committer.get(OTHER, b"seen").expect("readable");
        let outcome = committer.submit(batch).map(|_| ()).map_err(|error| error.kind);
        assert_eq!(outcome, if holds { Ok(()) } else { Err(Kind::Precondition) }, "{expect:?}");
        assert_eq!(committer.get(OTHER, b"seen").expect("readable") != seen, holds);
    }
}

#[test]
fn deltas_of_many_threads_are_all_counted() {
    let machine = Machine::new();
    let committer = machine.open(small_limits()).expect("opens");
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let committer = committer.clone();
            scope.spawn(move || {
                for n in 0..250 {
                    let mut batch = put(ROWS, &[thread, n], &[0; 50]);
                    batch.delta(add(b"shared", 1)).delta(add(&[thread], 2));
                    let _ = committer.submit(batch).expect("submits");
                }
            });
        }
    });
    assert_eq!(number(committer.get(COUNT, b"shared").expect("readable")), 1000);
    assert_eq!(number(committer.get(TOTAL, b"sum").expect("readable")), 3000, "follow-up deltas count too");
}

#[test]
fn a_batch_beyond_the_limit_is_refused() {
    let machine = Machine::new();
    let committer = machine.open(Limits::default()).expect("opens");
    let error = committer.submit(put(ROWS, b"k", &[0; 1 << 20])).map(|_| ()).expect_err("too large");
    assert_eq!(error.kind, Kind::Internal);
    assert_eq!(committer.get(ROWS, b"k").expect("readable"), None);
}

#[test]
fn views_agree_with_a_model_while_layers_come_and_go() {
    for seed in 0..8 {
        let random = SeededRandom::new(seed);
        let machine = Machine::new();
        let mut committer = machine.open(small_limits()).expect("opens");
        let mut model = Model::new();
        let mut held = Vec::new();
        for step in 0..600 {
            let _ = committer.submit(random_batch(&random, &mut model)).expect("submits");
            if random.next_u64().is_multiple_of(64) {
                held.push((committer.view().expect("view"), model.clone()));
            }
            if random.next_u64().is_multiple_of(200) {
                held.clear();
                machine.runtime.block_on(committer.stop()).expect("stops");
                committer = machine.open(small_limits()).expect("opens again");
                assert_eq!(dump(&committer.view().expect("view"), &ALL), model, "seed {seed} step {step}");
            }
        }
        for (view, then) in &held {
            assert_eq!(dump(view, &ALL), *then, "a view does not change: seed {seed}");
        }
        assert_eq!(dump(&committer.view().expect("view"), &ALL), model, "seed {seed}");
    }
}

#[test]
fn a_scan_ends_where_the_visitor_breaks_and_within_its_range() {
    let machine = Machine::new();
    let committer = machine.open(small_limits()).expect("opens");
    for n in 0..200u8 {
        let _ = committer.submit(put(ROWS, &[n], &[0; 100])).expect("submits");
    }
    let mut batch = Batch::new();
    (0..200u8).filter(|n| n % 3 == 0).for_each(|n| {
        batch.delete(ROWS, [n]);
    });
    let _ = committer.submit(batch).expect("submits");
    let view = committer.view().expect("view");
    for stop_after in [1, 2, 7, 100] {
        let mut keys = Vec::new();
        let visit = &mut |key: &[u8], _: &[u8]| {
            keys.push(key[0]);
            let flow =
                if keys.len() == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            Ok(flow)
        };
        view.scan(ROWS, &[10], Some(&[150]), visit).expect("readable");
        let expected: Vec<u8> = (10..150u8).filter(|n| n % 3 != 0).take(stop_after).collect();
        assert_eq!(keys, expected);
    }
}

#[test]
fn memory_is_bounded_without_the_applier_and_the_log_by_segments_in_use() {
    let machine = Machine::new();
    let committer = machine.open(small_limits()).expect("opens");
    for n in 0..2000u32 {
        let _ = committer.submit(put(ROWS, &n.to_be_bytes(), &[7; 500])).expect("submits");
    }
    machine.runtime.block_on(committer.stop()).expect("stops");
    let log_bytes: u64 = machine.log.list().expect("listable").iter().map(|(_, len)| len).sum();
    assert!(log_bytes < 16 << 10, "a megabyte was logged, {log_bytes} bytes are left");
}

/// A process that dies loses nothing that was submitted: the log is in the kernel's hands.
#[test]
fn a_killed_process_loses_no_submitted_batch() {
    for seed in 0..8 {
        let random = SeededRandom::new(seed);
        let mut machine = Machine::new();
        let mut model = Model::new();
        for _ in 0..4 {
            let committer = machine.open(small_limits()).expect("opens");
            assert_eq!(dump(&committer.view().expect("view"), &ALL), model, "seed {seed}");
            for _ in 0..random.next_u64() % 100 {
                let _ = committer.submit(random_batch(&random, &mut model)).expect("submits");
            }
            kill(&mut machine, committer);
        }
    }
}

/// Ends the committer's work at once and puts the directories into the state a new process would find.
fn kill(machine: &mut Machine, committer: Arc<Committer>) {
    machine.end_process();
    // The metadata database is cut back to its last durable commit; the log keeps what was written.
    let log = copy(&machine.log);
    machine.power_cut(&SeededRandom::new(0));
    drop(committer);
    for (name, _) in machine.log.list().expect("listable") {
        machine.log.remove(&name).expect("removable");
    }
    for (name, bytes) in log {
        restore(&machine.log, &name, &bytes);
    }
}

fn copy(directory: &MemoryDirectory) -> Vec<(String, Vec<u8>)> {
    let names = directory.list().expect("listable");
    // A file may go while they are read: the spare segment is made by removing and creating it.
    let read = |(name, len): (String, u64)| {
        let mut bytes = vec![0; len as usize];
        directory.open(&name).ok()?.read_at(&mut bytes, 0).expect("readable");
        Some((name, bytes))
    };
    names.into_iter().filter_map(read).collect()
}

fn restore(directory: &MemoryDirectory, name: &str, bytes: &[u8]) {
    let device = directory.create(name).expect("new");
    device.write_at(bytes, 0).expect("room");
    device.sync().expect("memory");
    directory.sync().expect("memory");
}

/// Power cuts keep, drop or tear what was not synced, in any order. What is found then is the state after some
/// prefix of the batches, and no synced batch is missing.
#[test]
fn a_power_cut_leaves_a_prefix_not_older_than_the_last_sync() {
    for seed in 0..60 {
        let random = SeededRandom::new(seed);
        let mut machine = Machine::new();
        let mut model = Model::new();
        for round in 0..3 {
            let committer = machine.open(small_limits()).expect("opens");
            let mut states = vec![dump(&committer.view().expect("view"), &ALL)];
            assert_eq!(states[0], model);
            let mut synced = 0;
            for _ in 0..random.next_u64() % 120 {
                let ticket = committer.submit(random_batch(&random, &mut model)).expect("submits");
                states.push(model.clone());
                if random.next_u64().is_multiple_of(24) {
                    machine.runtime.block_on(committer.sync_local(ticket)).expect("syncs");
                    synced = states.len() - 1;
                }
            }
            machine.power_cut(&random);
            drop(committer);
            let committer = machine.open(small_limits()).expect("opens after a power cut");
            model = dump(&committer.view().expect("view"), &ALL);
            let survived = states.iter().rposition(|state| *state == model);
            assert!(
                survived.is_some_and(|at| synced <= at),
                "seed {seed} round {round}: {survived:?} {synced}"
            );
            machine.runtime.block_on(committer.stop()).expect("stops");
        }
    }
}

/// One segment with ten unapplied batches, and where each record begins.
fn ten_batches() -> (String, Vec<u8>, Vec<usize>) {
    let machine = Machine::new();
    let committer = machine.open(Limits::default()).expect("opens");
    let mut starts = Vec::new();
    for n in 0..10u8 {
        starts.push(longest(&machine.log).1.len());
        let ticket = committer.submit(put(ROWS, &[n], b"some bytes")).expect("submits");
        if n == 4 {
            machine.runtime.block_on(committer.sync_local(ticket)).expect("syncs");
        }
    }
    let (name, bytes) = longest(&machine.log);
    starts[0] = 32;
    (name, bytes, starts)
}

/// The segment in use; the other is a spare one.
fn longest(directory: &MemoryDirectory) -> (String, Vec<u8>) {
    copy(directory).into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap_or_default()
}

/// Opens a new machine whose log is one segment of these bytes and counts the rows.
fn open_with_log(name: &str, bytes: &[u8]) -> Result<usize, Kind> {
    let machine = Machine::new();
    restore(&machine.log, name, bytes);
    let committer = machine.open(Limits::default()).map_err(|error| error.kind)?;
    Ok(dump(&committer.view().expect("view"), &[ROWS]).len())
}

#[test]
fn a_log_cut_at_any_byte_opens_with_the_whole_records_before() {
    let (name, bytes, starts) = ten_batches();
    for len in 0..=bytes.len() {
        let whole = starts.iter().skip(1).chain([&bytes.len()]).filter(|&&end| end <= len).count();
        assert_eq!(open_with_log(&name, &bytes[..len]), Ok(whole), "cut at {len}");
    }
}

#[test]
fn damage_before_a_record_that_proves_it_was_synced_is_refused_and_after_it_is_a_torn_tail() {
    let (name, bytes, starts) = ten_batches();
    for at in starts[0]..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        let record = starts.iter().rposition(|&start| start <= at).expect("in a record");
        // Batches 0 to 4 were synced before batch 5 was written, which says so.
        let expected = if record <= 4 { Err(Kind::Corrupt) } else { Ok(record) };
        assert_eq!(open_with_log(&name, &damaged), expected, "flipped a bit at {at}");
    }
}

#[test]
fn a_missing_segment_is_refused() {
    let machine = Machine::new();
    let limits = Limits { durable_age: std::time::Duration::from_secs(3600), ..small_limits() };
    let limits = Limits { memtable_bytes: 1 << 30, layer_bytes: 1 << 30, ..limits };
    let committer = machine.open(limits).expect("opens");
    for n in 0..100u8 {
        let ticket = committer.submit(put(ROWS, &[n], &[1; 200])).expect("submits");
        machine.runtime.block_on(committer.sync_local(ticket)).expect("syncs");
    }
    let log = copy(&machine.log);
    drop(committer);
    let mut used: Vec<_> = log.into_iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
    used.sort();
    assert!(used.len() > 3);
    for missing in 0..used.len() - 1 {
        let machine = Machine::new();
        for (index, (name, bytes)) in used.iter().enumerate() {
            if index != missing {
                restore(&machine.log, name, bytes);
            }
        }
        let opened = machine.open(limits).map(|_| ()).map_err(|error| error.kind);
        assert_eq!(opened, Err(Kind::Corrupt), "without segment {missing}");
    }
}

/// Takes work and never does it.
struct Idle;

impl Spawner for Idle {
    fn spawn(&self, _: &'static str, _: Pin<Box<dyn Future<Output = ()> + Send>>) {}

    fn spawn_blocking(&self, _: &'static str, _: Box<dyn FnOnce() + Send>) {}
}

#[test]
fn a_submit_that_finds_memory_full_makes_room_itself() {
    let machine = Machine::new();
    let parts = machine.parts(small_limits()).expect("opens");
    let kv = parts.kv.clone();
    let committer = Committer::open(CommitterParts { spawner: Arc::new(Idle), ..parts }).expect("opens");
    for n in 0..500u32 {
        let _ = committer.submit(put(ROWS, &n.to_be_bytes(), &[7; 500])).expect("submits");
        let applied = dump(&*kv.snapshot().expect("readable"), &[ROWS]).len();
        assert!(n as usize - applied.min(n as usize) < 40, "16 KiB hold {n} - {applied} rows");
    }
    assert_eq!(dump(&committer.view().expect("view"), &[ROWS]).len(), 500);
}

#[test]
fn replaying_the_log_twice_equals_replaying_it_once() {
    let mut machine = Machine::new();
    let limits = Limits { memtable_bytes: 4 << 10, layer_bytes: 1 << 10, ..Limits::default() };
    let random = SeededRandom::new(5);
    let mut model = Model::new();
    let committer = machine.open(limits).expect("opens");
    for _ in 0..300 {
        let _ = committer.submit(random_batch(&random, &mut model)).expect("submits");
    }
    drop(committer);
    machine.end_process();
    for _ in 0..2 {
        let parts = machine.parts(limits).expect("opens");
        // As if the store had forgotten how far it had got, and nothing else.
        let forget = Write { table: LOCAL_SYSTEM, key: b"applied".to_vec(), value: None };
        parts.kv.commit(&[forget], Durability::Immediate).expect("commits");
        let committer = Committer::open(parts).expect("opens");
        assert_eq!(dump(&committer.view().expect("view"), &ALL), model);
        drop(committer);
        machine.end_process();
    }
}

#[test]
fn readers_never_see_half_a_batch_nor_a_row_in_neither_place() {
    let machine = Machine::new();
    let committer = machine.open(small_limits()).expect("opens");
    let write = |n: u64| {
        let mut batch = put(ROWS, b"k", &n.to_le_bytes());
        batch.put(OTHER, b"k", n.to_le_bytes()).put(LOCAL, n.to_be_bytes(), vec![0; 400]);
        committer.submit(batch).map(|_| ()).expect("submits");
    };
    write(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = || {
            let mut last = 0;
            while !done.load(Ordering::Acquire) {
                let view = committer.view().expect("view");
                let get = |table| number(view.get(table, b"k").expect("readable"));
                let row = view.get(ROWS, b"k").expect("readable");
                assert!(row.is_some(), "always there");
                assert_eq!(get(ROWS), get(OTHER), "a batch is seen whole");
                assert!(last <= get(ROWS), "time does not go back");
                last = get(ROWS);
            }
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        (1..1500).for_each(write);
        done.store(true, Ordering::Release);
        readers.into_iter().for_each(|reader| reader.join().expect("no reader failed"));
    });
}

#[test]
fn a_failed_sync_refuses_everything_after_it() {
    let machine = Machine::new();
    let parts = machine.parts(Limits::default()).expect("opens");
    let committer = Committer::open(parts).expect("opens");
    let ticket = committer.submit(put(ROWS, b"k", b"v")).expect("submits");
    // A device of before a power cut fails from then on, as a disk that is gone does.
    machine.log.crash(&SeededRandom::new(1));
    assert!(machine.runtime.block_on(committer.sync_local(ticket)).is_err());
    assert!(machine.runtime.block_on(committer.sync_local(ticket)).is_err(), "not retried");
    assert!(committer.submit(put(ROWS, b"k", b"w")).is_err());
    assert!(committer.check().is_err());
    assert_eq!(committer.get(ROWS, b"k").expect("reads go on"), Some(b"v".to_vec()));
}
