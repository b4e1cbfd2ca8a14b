//! `KeyValueStore`: one check per line of its contract.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use gravitonfs::backend::local::LocalDirectory;
use gravitonfs::backend::memory_device::MemoryDirectory;
use gravitonfs::backend::memory_kv::MemoryKv;
use gravitonfs::backend::redb::RedbKv;
use gravitonfs::rt::SeededRandom;
use gravitonfs::store::device::{Device, Directory};
use gravitonfs::store::kv::{Durability, KeyValueStore, Snapshot, Table, Visit, Write};
use gravitonfs::store::{Error, Kind, Result};

const A: Table = Table(1);
const B: Table = Table(2);
const CACHE_BYTES: u64 = 1 << 20;

/// A store under test and what can happen to it.
trait Fixture {
    /// Opens it, or opens it again after `crash`.
    fn open(&self) -> Arc<dyn KeyValueStore>;

    /// Loses power. False if the store does not claim to survive that.
    fn crash(&self) -> bool {
        false
    }

    /// Makes the medium fail from now on. False if there is none.
    fn break_medium(&self) -> bool {
        false
    }
}

type Check = fn(&dyn Fixture);

const CHECKS: &[(&str, Check)] = &[
    ("a snapshot shows the newest commit", a_snapshot_shows_the_newest_commit),
    ("a snapshot does not change", a_snapshot_does_not_change),
    ("the last write to a row wins", the_last_write_to_a_row_wins),
    ("a missing row is none and an empty value is not", a_missing_row_is_none_and_an_empty_value_is_not),
    ("tables are apart", tables_are_apart),
    ("a scan is ordered by bytes", a_scan_is_ordered_by_bytes),
    ("a scan includes from and excludes to", a_scan_includes_from_and_excludes_to),
    ("a scan stays in its table", a_scan_stays_in_its_table),
    ("a scan ends where the visitor breaks", a_scan_ends_where_the_visitor_breaks),
    ("a scan passes the visitor's error on", a_scan_passes_the_visitors_error_on),
    ("a commit is seen whole", a_commit_is_seen_whole),
    ("a commit survives a crash whole or not at all", a_commit_survives_a_crash_whole_or_not_at_all),
    ("an immediate commit is durable with all before it", an_immediate_commit_is_durable_with_all_before_it),
    ("a crash undoes a tail of commits", a_crash_undoes_a_tail_of_commits),
    ("after an error of the medium every call fails", after_an_error_of_the_medium_every_call_fails),
];

fn put(table: Table, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Write {
    Write { table, key: key.as_ref().to_vec(), value: Some(value.as_ref().to_vec()) }
}

fn del(table: Table, key: impl AsRef<[u8]>) -> Write {
    Write { table, key: key.as_ref().to_vec(), value: None }
}

fn commit(store: &dyn KeyValueStore, writes: &[Write]) {
    store.commit(writes, Durability::Visible).expect("commit");
}

fn get(store: &dyn KeyValueStore, table: Table, key: &[u8]) -> Option<Vec<u8>> {
    store.snapshot().expect("snapshot").get(table, key).expect("get")
}

fn keys(snapshot: &dyn Snapshot, table: Table, from: &[u8], to: Option<&[u8]>) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    let mut visit = |key: &[u8], _: &[u8]| {
        keys.push(key.to_vec());
        Ok(ControlFlow::Continue(()))
    };
    snapshot.scan(table, from, to, &mut visit).expect("scan");
    keys
}

fn a_snapshot_shows_the_newest_commit(fixture: &dyn Fixture) {
    let store = fixture.open();
    assert_eq!(get(&*store, A, b"k"), None);
    for value in [b"1", b"2"] {
        commit(&*store, &[put(A, b"k", value)]);
        assert_eq!(get(&*store, A, b"k"), Some(value.to_vec()));
    }
    commit(&*store, &[del(A, b"k")]);
    assert_eq!(get(&*store, A, b"k"), None);
}

fn a_snapshot_does_not_change(fixture: &dyn Fixture) {
    let store = fixture.open();
    commit(&*store, &[put(A, b"k", b"old"), put(A, b"gone", b"old")]);
    let before = store.snapshot().expect("snapshot");
    commit(&*store, &[put(A, b"k", b"new"), del(A, b"gone"), put(B, b"k", b"new")]);
    assert_eq!(before.get(A, b"k").expect("get"), Some(b"old".to_vec()));
    assert_eq!(keys(&*before, A, b"", None), [b"gone".to_vec(), b"k".to_vec()]);
    assert_eq!(before.get(B, b"k").expect("get"), None);
}

fn the_last_write_to_a_row_wins(fixture: &dyn Fixture) {
    let store = fixture.open();
    commit(
        &*store,
        &[put(A, b"k", b"1"), del(A, b"k"), put(A, b"k", b"2"), put(A, b"l", b"1"), del(A, b"l")],
    );
    assert_eq!((get(&*store, A, b"k"), get(&*store, A, b"l")), (Some(b"2".to_vec()), None));
    commit(&*store, &[del(A, b"never there")]);
}

fn a_missing_row_is_none_and_an_empty_value_is_not(fixture: &dyn Fixture) {
    let store = fixture.open();
    commit(&*store, &[put(A, b"", b""), put(A, b"k", b"")]);
    assert_eq!((get(&*store, A, b""), get(&*store, A, b"k")), (Some(vec![]), Some(vec![])));
    assert_eq!((get(&*store, A, b"j"), get(&*store, B, b"")), (None, None));
}

fn tables_are_apart(fixture: &dyn Fixture) {
    let store = fixture.open();
    commit(&*store, &[put(A, b"k", b"a"), put(B, b"k", b"b")]);
    assert_eq!((get(&*store, A, b"k"), get(&*store, B, b"k")), (Some(b"a".to_vec()), Some(b"b".to_vec())));
    commit(&*store, &[del(A, b"k")]);
    assert_eq!((get(&*store, A, b"k"), get(&*store, B, b"k")), (None, Some(b"b".to_vec())));
}

fn a_scan_is_ordered_by_bytes(fixture: &dyn Fixture) {
    let store = fixture.open();
    let ordered: [&[u8]; 6] = [b"", b"\0", b"a", b"a\0", b"b", b"\xff\xff"];
    let writes: Vec<_> = ordered.iter().rev().map(|key| put(A, key, b"v")).collect();
    commit(&*store, &writes);
    assert_eq!(keys(&*store.snapshot().expect("snapshot"), A, b"", None), ordered);
}

fn a_scan_includes_from_and_excludes_to(fixture: &dyn Fixture) {
    let store = fixture.open();
    commit(&*store, &[b"a", b"b", b"c", b"d"].map(|key| put(A, key, b"v")));
    let snapshot = store.snapshot().expect("snapshot");
    assert_eq!(keys(&*snapshot, A, b"b", Some(b"d")), [b"b", b"c"]);
    assert_eq!(keys(&*snapshot, A, b"bb", Some(b"dd")), [b"c", b"d"]);
    assert_eq!(keys(&*snapshot, A, b"c", None), [b"c", b"d"]);
    for to in [b"b", b"a"] {
        assert_eq!(keys(&*snapshot, A, b"b", Some(to)), Vec::<Vec<u8>>::new());
    }
}

fn a_scan_stays_in_its_table(fixture: &dyn Fixture) {
    let store = fixture.open();
    let tables = [Table(0), A, B, Table(255)];
    commit(&*store, &tables.map(|table| put(table, [table.0], b"v")));
    let snapshot = store.snapshot().expect("snapshot");
    for table in tables {
        assert_eq!(keys(&*snapshot, table, b"", None), [[table.0]]);
    }
}

fn a_scan_ends_where_the_visitor_breaks(fixture: &dyn Fixture) {
    let store = fixture.open();
    commit(&*store, &[b"a", b"b", b"c"].map(|key| put(A, key, b"v")));
    let mut seen = 0;
    let mut visit = |_: &[u8], _: &[u8]| {
        seen += 1;
        Ok(if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    store.snapshot().expect("snapshot").scan(A, b"", None, &mut visit).expect("scan");
    assert_eq!(seen, 2);
}

fn a_scan_passes_the_visitors_error_on(fixture: &dyn Fixture) {
    let store = fixture.open();
    commit(&*store, &[put(A, b"a", b"v")]);
    let mut visit = |_: &[u8], _: &[u8]| Err(Error::new(Kind::Fenced, "of the visitor"));
    let outcome = store.snapshot().expect("snapshot").scan(A, b"", None, &mut visit);
    assert_eq!(outcome.map_err(|error| error.kind), Err(Kind::Fenced));
    commit(&*store, &[put(A, b"b", b"v")]);
}

fn a_commit_is_seen_whole(fixture: &dyn Fixture) {
    const STATES_TO_SEE: u64 = 100;
    let store = fixture.open();
    let pair = |round: u64| [put(A, b"k", round.to_le_bytes()), put(B, b"k", round.to_le_bytes())];
    commit(&*store, &pair(0));
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _finish = OnDrop(&finished);
        scope.spawn(|| {
            let mut rounds = 1..;
            while !finished.load(Ordering::Acquire) {
                commit(&*store, &pair(rounds.next().expect("endless")));
            }
        });
        let (mut last, mut states) = (Vec::new(), 0);
        while states < STATES_TO_SEE {
            let snapshot = store.snapshot().expect("snapshot");
            let value = snapshot.get(A, b"k").expect("get").expect("row");
            assert_eq!(snapshot.get(B, b"k").expect("get").expect("row"), value, "rows of one commit differ");
            states += u64::from(value != last);
            last = value;
            std::thread::yield_now();
        }
    });
}

/// Ends the other thread also when a check fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn a_commit_survives_a_crash_whole_or_not_at_all(fixture: &dyn Fixture) {
    for round in 0_u64..10 {
        let store = fixture.open();
        let keys: Vec<_> = (0_u64..50).map(|n| (round * 100 + n).to_be_bytes()).collect();
        store.commit(&[put(A, b"base", b"v")], Durability::Immediate).expect("commit");
        commit(&*store, &keys.iter().map(|key| put(A, key, [7; 300])).collect::<Vec<_>>());
        if !fixture.crash() {
            return;
        }
        let store = fixture.open();
        let kept = keys.iter().filter(|key| get(&*store, A, *key).is_some()).count();
        assert!(kept == 0 || kept == keys.len(), "half a commit: {kept} of {}", keys.len());
    }
}

fn an_immediate_commit_is_durable_with_all_before_it(fixture: &dyn Fixture) {
    for round in 0_u8..10 {
        let store = fixture.open();
        commit(&*store, &[put(A, [round], b"visible"), put(B, [round], b"v")]);
        commit(&*store, &[del(B, [round])]);
        store.commit(&[put(A, b"last", [round])], Durability::Immediate).expect("commit");
        if !fixture.crash() {
            return;
        }
        let store = fixture.open();
        assert_eq!(get(&*store, A, b"last"), Some(vec![round]));
        for earlier in 0..=round {
            assert_eq!(get(&*store, A, &[earlier]), Some(b"visible".to_vec()));
            assert_eq!(get(&*store, B, &[earlier]), None);
        }
    }
}

fn a_crash_undoes_a_tail_of_commits(fixture: &dyn Fixture) {
    const COMMITS: u8 = 8;
    for round in 0_u8..10 {
        let store = fixture.open();
        let key = |n: u8| [round, n];
        for n in 0..COMMITS {
            let durability = if n == 3 { Durability::Immediate } else { Durability::Visible };
            store.commit(&[put(A, key(n), b"v")], durability).expect("commit");
        }
        if !fixture.crash() {
            return;
        }
        let store = fixture.open();
        let kept: Vec<_> = (0..COMMITS).map(|n| get(&*store, A, &key(n)).is_some()).collect();
        assert!(kept.is_sorted_by(|earlier, later| earlier >= later), "a gap in what was kept: {kept:?}");
        assert!(kept[3], "the immediate commit is gone: {kept:?}");
    }
}

fn after_an_error_of_the_medium_every_call_fails(fixture: &dyn Fixture) {
    let store = fixture.open();
    commit(&*store, &[put(A, b"k", b"v")]);
    if !fixture.break_medium() {
        return;
    }
    let big = vec![put(A, b"big", vec![1; 100_000])];
    assert!(store.commit(&big, Durability::Immediate).is_err(), "the medium failed and the commit did not");
    assert!(store.commit(&[], Durability::Visible).is_err(), "a commit after doubt");
    assert!(store.snapshot().and_then(|snapshot| snapshot.get(A, b"k")).is_err(), "a read after doubt");
}

// Backends.

struct Memory(Arc<MemoryKv>);

impl Fixture for Memory {
    fn open(&self) -> Arc<dyn KeyValueStore> {
        self.0.clone()
    }
}

/// redb in a directory whose devices can be made to fail.
struct Redb {
    directory: Arc<dyn Directory>,
    memory: Option<MemoryDirectory>,
    random: SeededRandom,
    broken: Arc<AtomicBool>,
}

impl Redb {
    fn in_memory(seed: u64) -> Self {
        let memory = MemoryDirectory::new();
        Self {
            directory: Arc::new(memory.clone()),
            memory: Some(memory),
            random: SeededRandom::new(seed),
            broken: Arc::default(),
        }
    }

    fn on_disk(path: &std::path::Path) -> Self {
        let directory = LocalDirectory::open_or_create(path).expect("creatable");
        Self {
            directory: Arc::new(directory),
            memory: None,
            random: SeededRandom::new(0),
            broken: Arc::default(),
        }
    }
}

impl Fixture for Redb {
    fn open(&self) -> Arc<dyn KeyValueStore> {
        let device = self.directory.open("meta.redb").or_else(|_| self.directory.create("meta.redb"));
        self.directory.sync().expect("sync");
        let device = Failing { inner: device.expect("device"), broken: self.broken.clone() };
        Arc::new(RedbKv::open(Arc::new(device), CACHE_BYTES).expect("open"))
    }

    fn crash(&self) -> bool {
        self.memory.iter().for_each(|memory| memory.crash(&self.random));
        self.memory.is_some()
    }

    fn break_medium(&self) -> bool {
        self.broken.store(true, Ordering::Release);
        true
    }
}

/// A device that fails every write and sync once told to.
struct Failing {
    inner: Arc<dyn Device>,
    broken: Arc<AtomicBool>,
}

impl Failing {
    fn check(&self) -> Result<()> {
        let broken = self.broken.load(Ordering::Acquire);
        if broken { Err(Error::new(Kind::Internal, "injected")) } else { Ok(()) }
    }
}

impl Device for Failing {
    fn len(&self) -> Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.check()?;
        self.inner.write_at(data, offset)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.check()?;
        self.inner.set_len(len)
    }

    fn reserve(&self, len: u64) -> Result<()> {
        self.inner.reserve(len)
    }

    fn sync(&self) -> Result<()> {
        self.check()?;
        self.inner.sync()
    }
}

#[test]
fn memory_keeps_the_contract() {
    CHECKS.iter().for_each(|(_, check)| check(&Memory(Arc::new(MemoryKv::new()))));
}

#[test]
fn redb_keeps_the_contract_through_power_cuts() {
    for seed in 0..10 {
        CHECKS.iter().for_each(|(_, check)| check(&Redb::in_memory(seed)));
    }
}

#[test]
fn redb_keeps_the_contract_on_the_real_filesystem() {
    for (_, check) in CHECKS {
        let root = tempfile::tempdir().expect("temporary directory");
        check(&Redb::on_disk(root.path()));
    }
}

// Broken backends: each breaks one line, and that line's check must notice.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    StaleSnapshot,
    LiveSnapshot,
    FirstWriteWins,
    EmptyIsMissing,
    OneTable,
    ScanBackwards,
    ScanIncludesTo,
    ScanLeaksTables,
    IgnoresBreak,
    SwallowsVisitorError,
    CommitsInSteps,
    CrashKeepsHalf,
    CrashLosesImmediate,
    CrashLeavesGap,
    WritesAfterDoubt,
}

/// Pairs each check with the fault that it is there to find.
const FAULTS: &[(&str, Fault)] = &[
    ("a snapshot shows the newest commit", Fault::StaleSnapshot),
    ("a snapshot does not change", Fault::LiveSnapshot),
    ("the last write to a row wins", Fault::FirstWriteWins),
    ("a missing row is none and an empty value is not", Fault::EmptyIsMissing),
    ("tables are apart", Fault::OneTable),
    ("a scan is ordered by bytes", Fault::ScanBackwards),
    ("a scan includes from and excludes to", Fault::ScanIncludesTo),
    ("a scan stays in its table", Fault::ScanLeaksTables),
    ("a scan ends where the visitor breaks", Fault::IgnoresBreak),
    ("a scan passes the visitor's error on", Fault::SwallowsVisitorError),
    ("a commit is seen whole", Fault::CommitsInSteps),
    ("a commit survives a crash whole or not at all", Fault::CrashKeepsHalf),
    ("an immediate commit is durable with all before it", Fault::CrashLosesImmediate),
    ("a crash undoes a tail of commits", Fault::CrashLeavesGap),
    ("after an error of the medium every call fails", Fault::WritesAfterDoubt),
];

type Log = Vec<(Vec<Write>, Durability)>;

/// A store in memory that survives a crash by its list of commits, and does one thing wrong.
#[derive(Clone)]
struct Faulty {
    fault: Fault,
    live: Arc<MemoryKv>,
    log: Arc<Mutex<Log>>,
    broken: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    stale: Arc<Mutex<Option<Arc<dyn Snapshot>>>>,
}

struct FaultyFixture {
    store: Mutex<Faulty>,
}

impl FaultyFixture {
    fn new(fault: Fault) -> Self {
        Self { store: Mutex::new(Faulty::replay(fault, Vec::new())) }
    }
}

impl Fixture for FaultyFixture {
    fn open(&self) -> Arc<dyn KeyValueStore> {
        Arc::new(self.store.lock().expect("lock").clone())
    }

    fn crash(&self) -> bool {
        let mut store = self.store.lock().expect("lock");
        let mut log = store.log.lock().expect("lock").clone();
        let durable = log.iter().rposition(|(_, durability)| *durability == Durability::Immediate);
        let mut kept = durable.map_or(0, |last| last + 1);
        match store.fault {
            Fault::CrashKeepsHalf => {
                if let Some((writes, _)) = log.get_mut(kept) {
                    writes.truncate(writes.len() / 2);
                    kept += 1;
                }
            }
            Fault::CrashLosesImmediate => kept = kept.saturating_sub(1),
            Fault::CrashLeavesGap => {
                log.remove(kept);
                kept = log.len();
            }
            _ => {}
        }
        log.truncate(kept);
        *store = Faulty::replay(store.fault, log);
        true
    }

    fn break_medium(&self) -> bool {
        self.store.lock().expect("lock").broken.store(true, Ordering::Release);
        true
    }
}

impl Faulty {
    fn replay(fault: Fault, log: Log) -> Self {
        let live = Arc::new(MemoryKv::new());
        log.iter().for_each(|(writes, durability)| live.commit(writes, *durability).expect("memory"));
        Self {
            fault,
            live,
            log: Arc::new(Mutex::new(log)),
            broken: Arc::default(),
            commits: Arc::default(),
            stale: Arc::default(),
        }
    }
}

impl KeyValueStore for Faulty {
    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        if self.broken.load(Ordering::Acquire) {
            return Err(Error::new(Kind::Internal, "injected"));
        }
        let inner: Arc<dyn Snapshot> = self.live.snapshot()?.into();
        let inner = match self.fault {
            Fault::StaleSnapshot => self.stale.lock().expect("lock").get_or_insert(inner).clone(),
            _ => inner,
        };
        Ok(Box::new(FaultySnapshot { fault: self.fault, inner, live: self.live.clone() }))
    }

    fn commit(&self, writes: &[Write], durability: Durability) -> Result<()> {
        if self.broken.load(Ordering::Acquire)
            && (self.fault != Fault::WritesAfterDoubt || !writes.is_empty())
        {
            return Err(Error::new(Kind::Internal, "injected"));
        }
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.log.lock().expect("lock").push((writes.to_vec(), durability));
        let mut writes = writes.to_vec();
        match self.fault {
            Fault::FirstWriteWins => writes.reverse(),
            Fault::OneTable => writes.iter_mut().for_each(|write| write.table = A),
            Fault::CommitsInSteps => {
                for write in &writes {
                    self.live.commit(std::slice::from_ref(write), durability)?;
                    std::thread::yield_now();
                }
                return Ok(());
            }
            _ => {}
        }
        self.live.commit(&writes, durability)
    }
}

struct FaultySnapshot {
    fault: Fault,
    inner: Arc<dyn Snapshot>,
    live: Arc<MemoryKv>,
}

impl Snapshot for FaultySnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let table = if self.fault == Fault::OneTable { A } else { table };
        match self.fault {
            Fault::LiveSnapshot => self.live.snapshot()?.get(table, key),
            Fault::EmptyIsMissing => Ok(self.inner.get(table, key)?.filter(|value| !value.is_empty())),
            _ => self.inner.get(table, key),
        }
    }

    fn scan(&self, table: Table, from: &[u8], to: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        let tables = if self.fault == Fault::ScanLeaksTables { vec![table, A] } else { vec![table] };
        let mut rows = Vec::new();
        let mut collect = |key: &[u8], value: &[u8]| {
            rows.push((key.to_vec(), value.to_vec()));
            Ok(ControlFlow::Continue(()))
        };
        for table in tables {
            self.inner.scan(table, from, to, &mut collect)?;
        }
        if let (Fault::ScanIncludesTo, Some(to)) = (self.fault, to) {
            rows.extend(self.inner.get(table, to)?.map(|value| (to.to_vec(), value)));
        }
        if self.fault == Fault::ScanBackwards {
            rows.reverse();
        }
        for (key, value) in rows {
            match visit(&key, &value) {
                Ok(ControlFlow::Break(())) if self.fault != Fault::IgnoresBreak => break,
                Err(_) if self.fault == Fault::SwallowsVisitorError => break,
                outcome => outcome.map(drop)?,
            }
        }
        Ok(())
    }
}

#[test]
fn every_check_finds_its_fault_and_only_faults() {
    assert_eq!(CHECKS.len(), FAULTS.len());
    for ((name, check), (fault_name, fault)) in CHECKS.iter().zip(FAULTS) {
        assert_eq!(name, fault_name);
        check(&FaultyFixture::new(Fault::None));
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&FaultyFixture::new(*fault))));
        assert!(outcome.is_err(), "the check did not notice: {name} ({fault:?})");
    }
}
