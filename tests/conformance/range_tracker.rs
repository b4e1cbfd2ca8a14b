//! `RangeTracker`: one check per line of its contract, a random comparison with the model, and bad rows.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use gravitonfs::backend::memory_device::MemoryDirectory;
use gravitonfs::backend::memory_kv::MemoryKv;
use gravitonfs::backend::range_tracker::{KvRangeTracker, MemoryRangeTracker};
use gravitonfs::backend::redb::RedbKv;
use gravitonfs::base::range::ByteRange;
use gravitonfs::base::range_set::RangeSet;
use gravitonfs::store::device::Directory as _;
use gravitonfs::store::kv::{Durability, KeyValueStore, Table, Write};
use gravitonfs::store::range_tracker::{RangeTracker, Tracked};
use gravitonfs::store::{Kind, Result};
use proptest::prelude::*;

const TABLE: Table = Table(9);

type Check = fn(&dyn RangeTracker);

const CHECKS: &[(Check, Fault)] = &[
    (unknown_is_not_empty, Fault::UnknownIsEmpty),
    (what_is_inserted_is_there, Fault::LosesInserts),
    (what_is_removed_is_not_there, Fault::LosesRemovals),
    (neighbours_join, Fault::KeepsPieces),
    (gaps_are_what_is_missing_in_the_window, Fault::GapsIgnoreTheWindow),
    (changes_need_a_known_subject, Fault::ChangesBegin),
    (changes_need_the_current_generation, Fault::AnyGeneration),
    (beginning_again_changes_nothing, Fault::BeginAlwaysClears),
    (a_newer_generation_starts_empty, Fault::GenerationKeepsRanges),
    (an_older_generation_is_refused, Fault::BeginGoesBack),
    (forgetting_makes_unknown, Fault::ForgetEmpties),
    (subjects_are_apart, Fault::OneSubject),
    (all_subjects_are_listed, Fault::ListsOne),
];

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end)
}

fn ranges(tracker: &dyn RangeTracker, subject: &[u8]) -> Option<Vec<ByteRange>> {
    tracker.get(subject).expect("get").map(|tracked| tracked.ranges.iter().collect())
}

/// A tracker that knows `s` at generation 1, with `parts` of it there.
fn begun<'a>(tracker: &'a dyn RangeTracker, parts: &[ByteRange]) -> &'a dyn RangeTracker {
    tracker.begin(b"s", 1).expect("begin");
    parts.iter().for_each(|part| tracker.insert(b"s", 1, *part).expect("insert"));
    tracker
}

fn unknown_is_not_empty(tracker: &dyn RangeTracker) {
    assert_eq!((ranges(tracker, b"s"), tracker.gaps(b"s", range(0, 9)).expect("gaps")), (None, None));
    begun(tracker, &[]);
    assert_eq!(ranges(tracker, b"s"), Some(vec![]));
    assert_eq!(tracker.gaps(b"s", range(0, 9)).expect("gaps"), Some(vec![range(0, 9)]));
}

fn what_is_inserted_is_there(tracker: &dyn RangeTracker) {
    begun(tracker, &[range(5, 7), range(0, 2), range(5, 7), range(3, 3)]);
    assert_eq!(ranges(tracker, b"s"), Some(vec![range(0, 2), range(5, 7)]));
    tracker.insert(b"s", 1, range(1, u64::MAX)).expect("insert");
    assert_eq!(ranges(tracker, b"s"), Some(vec![range(0, u64::MAX)]));
}

fn what_is_removed_is_not_there(tracker: &dyn RangeTracker) {
    begun(tracker, &[range(0, 10), range(20, 30)]);
    for part in [range(4, 5), range(8, 25), range(8, 25), range(1, 1)] {
        tracker.remove(b"s", 1, part).expect("remove");
    }
    assert_eq!(ranges(tracker, b"s"), Some(vec![range(0, 4), range(5, 8), range(25, 30)]));
}

fn neighbours_join(tracker: &dyn RangeTracker) {
    begun(tracker, &[range(0, 2), range(4, 6), range(2, 4), range(6, 8)]);
    assert_eq!(ranges(tracker, b"s"), Some(vec![range(0, 8)]));
}

fn gaps_are_what_is_missing_in_the_window(tracker: &dyn RangeTracker) {
    begun(tracker, &[range(10, 20), range(30, 40)]);
    let gaps = |start, end| tracker.gaps(b"s", range(start, end)).expect("gaps").expect("known");
    assert_eq!(gaps(0, 50), [range(0, 10), range(20, 30), range(40, 50)]);
    assert_eq!(gaps(15, 35), [range(20, 30)]);
    assert_eq!(gaps(12, 18), []);
    assert_eq!(gaps(25, 25), []);
}

fn changes_need_a_known_subject(tracker: &dyn RangeTracker) {
    for change in [tracker.insert(b"s", 1, range(0, 1)), tracker.remove(b"s", 1, range(0, 1))] {
        assert_eq!(change.map_err(|error| error.kind), Err(Kind::NotFound));
    }
    assert_eq!(ranges(tracker, b"s"), None);
}

fn changes_need_the_current_generation(tracker: &dyn RangeTracker) {
    tracker.begin(b"s", 5).expect("begin");
    tracker.insert(b"s", 5, range(0, 4)).expect("insert");
    for other in [4, 6] {
        for change in [tracker.insert(b"s", other, range(8, 9)), tracker.remove(b"s", other, range(0, 1))] {
            assert_eq!(change.map_err(|error| error.kind), Err(Kind::Precondition));
        }
    }
    assert_eq!(ranges(tracker, b"s"), Some(vec![range(0, 4)]));
}

fn beginning_again_changes_nothing(tracker: &dyn RangeTracker) {
    begun(tracker, &[range(0, 4)]);
    tracker.begin(b"s", 1).expect("begin");
    assert_eq!(ranges(tracker, b"s"), Some(vec![range(0, 4)]));
}

fn a_newer_generation_starts_empty(tracker: &dyn RangeTracker) {
    begun(tracker, &[range(0, 4), range(8, 9)]);
    tracker.begin(b"s", 7).expect("begin");
    assert_eq!(tracker.get(b"s").expect("get"), Some(Tracked { generation: 7, ranges: RangeSet::new() }));
}

fn an_older_generation_is_refused(tracker: &dyn RangeTracker) {
    begun(tracker, &[range(0, 4)]);
    assert_eq!(tracker.begin(b"s", 0).map_err(|error| error.kind), Err(Kind::Precondition));
    assert_eq!(ranges(tracker, b"s"), Some(vec![range(0, 4)]));
}

fn forgetting_makes_unknown(tracker: &dyn RangeTracker) {
    begun(tracker, &[range(0, 4), range(8, 9)]);
    tracker.forget(b"s").expect("forget");
    assert_eq!(ranges(tracker, b"s"), None);
    tracker.forget(b"s").expect("forget again");
    tracker.begin(b"s", 0).expect("a forgotten subject has no generation");
    assert_eq!(ranges(tracker, b"s"), Some(vec![]));
}

/// Each a trap for a store that joins subject and offset carelessly.
const SUBJECTS: [&[u8]; 6] =
    [b"", b"s", b"s\0", b"s\0\0\0\0\0\0\0\0\0", b"\xff", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"];

fn subjects_are_apart(tracker: &dyn RangeTracker) {
    for (n, subject) in SUBJECTS.iter().enumerate() {
        tracker.begin(subject, n as u64).expect("begin");
        tracker.insert(subject, n as u64, range(n as u64, 100)).expect("insert");
    }
    tracker.forget(SUBJECTS[1]).expect("forget");
    for (n, subject) in SUBJECTS.iter().enumerate() {
        let expected = (n != 1).then(|| vec![range(n as u64, 100)]);
        assert_eq!(ranges(tracker, subject), expected, "{subject:?}");
    }
}

fn all_subjects_are_listed(tracker: &dyn RangeTracker) {
    assert_eq!(tracker.subjects().expect("subjects"), Vec::<Vec<u8>>::new());
    for subject in SUBJECTS {
        tracker.begin(subject, 1).expect("begin");
        tracker.insert(subject, 1, range(0, 1)).expect("insert");
        tracker.insert(subject, 1, range(u64::MAX - 1, u64::MAX)).expect("insert");
    }
    let mut listed = tracker.subjects().expect("subjects");
    listed.sort();
    assert_eq!(listed, SUBJECTS);
}

fn over_memory_kv() -> (Arc<MemoryKv>, KvRangeTracker) {
    let store = Arc::new(MemoryKv::new());
    (store.clone(), KvRangeTracker::new(store, TABLE))
}

#[test]
fn memory_keeps_the_contract() {
    CHECKS.iter().for_each(|(check, _)| check(&MemoryRangeTracker::new()));
}

#[test]
fn rows_in_memory_keep_the_contract() {
    CHECKS.iter().for_each(|(check, _)| check(&over_memory_kv().1));
}

#[test]
fn rows_in_redb_keep_the_contract() {
    for (check, _) in CHECKS {
        let device = MemoryDirectory::new().create("meta.redb").expect("new");
        let store = Arc::new(RedbKv::open(device, 1 << 20).expect("an empty device"));
        check(&KvRangeTracker::new(store, TABLE));
    }
}

proptest! {
    #[test]
    fn rows_agree_with_the_model(
        changes in prop::collection::vec((any::<bool>(), 0..64_u64, 0..16_u64), 0..30),
        window in (0..64_u64, 0..64_u64),
    ) {
        let (model, (_, rows)) = (MemoryRangeTracker::new(), over_memory_kv());
        for tracker in [&model as &dyn RangeTracker, &rows] {
            tracker.begin(b"s", 1).expect("begin");
            for &(insert, start, len) in &changes {
                let part = ByteRange::at(start, len);
                let change = if insert { tracker.insert(b"s", 1, part) } else { tracker.remove(b"s", 1, part) };
                change.expect("change");
            }
        }
        prop_assert_eq!(model.get(b"s").expect("get"), rows.get(b"s").expect("get"));
        let window = ByteRange::at(window.0, window.1);
        prop_assert_eq!(model.gaps(b"s", window).expect("gaps"), rows.gaps(b"s", window).expect("gaps"));
    }
}

/// A cache that took a broken row for an empty one would only fetch again; an upload that did would skip bytes. So
/// neither may: the answer is an error until the subject is forgotten.
#[test]
fn malformed_rows_are_errors_and_can_be_forgotten() {
    let row =
        |key: &[u8], value: &[u8]| Write { table: TABLE, key: key.to_vec(), value: Some(value.to_vec()) };
    let end = 9_u64.to_be_bytes();
    let malformed = [
        row(b"\0\x01s", b"\x01short"),
        row(b"\0\x01s", b"\x02\x01\0\0\0\0\0\0\0"),
        row(&[b"\0\x01s", &end[..]].concat(), b"short"),
        row(&[b"\0\x01s", &end[..]].concat(), &9_u64.to_le_bytes()),
        row(&[b"\0\x01s", &end[..]].concat(), &2_u64.to_le_bytes()),
    ];
    for row in malformed {
        let (store, tracker) = over_memory_kv();
        begun(&tracker, &[range(0, 4)]);
        store.commit(std::slice::from_ref(&row), Durability::Visible).expect("commit");
        assert_eq!(tracker.get(b"s").err().map(|error| error.kind), Some(Kind::Corrupt), "{row:?}");
        let gaps = tracker.gaps(b"s", range(0, 20));
        assert_eq!(gaps.err().map(|error| error.kind), Some(Kind::Corrupt), "{row:?}");
        tracker.forget(b"s").expect("forget");
        assert_eq!(ranges(&tracker, b"s"), None);
    }
}

#[test]
fn stored_rows_are_the_documented_ones() {
    let (store, tracker) = over_memory_kv();
    tracker.begin(b"ab", 3).expect("begin");
    tracker.insert(b"ab", 3, range(1, 258)).expect("insert");
    let snapshot = store.snapshot().expect("snapshot");
    let get = |key: &[u8]| snapshot.get(TABLE, key).expect("get");
    assert_eq!(get(b"\0\x02ab").as_deref(), Some(&b"\x01\x03\0\0\0\0\0\0\0"[..]));
    assert_eq!(get(b"\0\x02ab\0\0\0\0\0\0\x01\x02").as_deref(), Some(&b"\x01\0\0\0\0\0\0\0"[..]));
}

/// What a broken tracker does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    UnknownIsEmpty,
    LosesInserts,
    LosesRemovals,
    KeepsPieces,
    GapsIgnoreTheWindow,
    ChangesBegin,
    AnyGeneration,
    BeginAlwaysClears,
    GenerationKeepsRanges,
    BeginGoesBack,
    ForgetEmpties,
    OneSubject,
    ListsOne,
}

struct Faulty {
    fault: Fault,
    inner: MemoryRangeTracker,
}

impl Faulty {
    fn new(fault: Fault) -> Self {
        Self { fault, inner: MemoryRangeTracker::new() }
    }

    fn subject<'a>(&self, subject: &'a [u8]) -> &'a [u8] {
        if self.fault == Fault::OneSubject { b"one" } else { subject }
    }

    fn known_generation(&self, subject: &[u8]) -> Result<Option<u64>> {
        Ok(self.inner.get(subject)?.map(|tracked| tracked.generation))
    }

    /// The generation to change with, made acceptable where the fault is to accept it.
    fn accepted(&self, subject: &[u8], generation: u64) -> Result<u64> {
        let known = self.known_generation(subject)?;
        match (self.fault, known) {
            (Fault::ChangesBegin, None) => self.inner.begin(subject, generation).map(|()| generation),
            (Fault::AnyGeneration, Some(known)) => Ok(known),
            _ => Ok(generation),
        }
    }

    fn begin_over(&self, subject: &[u8], generation: u64, keep: &RangeSet) -> Result<()> {
        self.inner.forget(subject)?;
        self.inner.begin(subject, generation)?;
        keep.iter().try_for_each(|range| self.inner.insert(subject, generation, range))
    }
}

impl RangeTracker for Faulty {
    fn begin(&self, subject: &[u8], generation: u64) -> Result<()> {
        let subject = self.subject(subject);
        let Some(known) = self.inner.get(subject)? else { return self.inner.begin(subject, generation) };
        match self.fault {
            Fault::BeginAlwaysClears => self.begin_over(subject, generation, &RangeSet::new()),
            Fault::GenerationKeepsRanges if known.generation < generation => {
                self.begin_over(subject, generation, &known.ranges)
            }
            Fault::BeginGoesBack if known.generation > generation => {
                self.begin_over(subject, generation, &known.ranges)
            }
            _ => self.inner.begin(subject, generation),
        }
    }

    fn insert(&self, subject: &[u8], generation: u64, range: ByteRange) -> Result<()> {
        let subject = self.subject(subject);
        if self.fault == Fault::LosesInserts {
            return Ok(());
        }
        // A hole at the seam is what a tracker would show that does not join neighbours.
        let start = if self.fault == Fault::KeepsPieces { range.start + 1 } else { range.start };
        let range = ByteRange::new(start, range.end);
        self.inner.insert(subject, self.accepted(subject, generation)?, range)
    }

    fn remove(&self, subject: &[u8], generation: u64, range: ByteRange) -> Result<()> {
        let subject = self.subject(subject);
        if self.fault == Fault::LosesRemovals {
            return Ok(());
        }
        self.inner.remove(subject, self.accepted(subject, generation)?, range)
    }

    fn get(&self, subject: &[u8]) -> Result<Option<Tracked>> {
        let found = self.inner.get(self.subject(subject))?;
        Ok(if self.fault == Fault::UnknownIsEmpty { Some(found.unwrap_or_default()) } else { found })
    }

    fn gaps(&self, subject: &[u8], window: ByteRange) -> Result<Option<Vec<ByteRange>>> {
        let all = self.fault == Fault::GapsIgnoreTheWindow;
        self.inner.gaps(self.subject(subject), if all { ByteRange::new(0, 100) } else { window })
    }

    fn forget(&self, subject: &[u8]) -> Result<()> {
        let subject = self.subject(subject);
        match (self.fault, self.known_generation(subject)?) {
            (Fault::ForgetEmpties, Some(known)) => self.begin_over(subject, known, &RangeSet::new()),
            _ => self.inner.forget(subject),
        }
    }

    fn subjects(&self) -> Result<Vec<Vec<u8>>> {
        let mut subjects = self.inner.subjects()?;
        if self.fault == Fault::ListsOne {
            subjects.truncate(1);
        }
        Ok(subjects)
    }
}

#[test]
fn every_check_finds_its_fault_and_only_faults() {
    for (check, fault) in CHECKS {
        check(&Faulty::new(Fault::None));
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&Faulty::new(*fault))));
        assert!(outcome.is_err(), "no check noticed {fault:?}");
    }
}
