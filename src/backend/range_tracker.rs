//! Range trackers: the model in memory, and the one in any key-value store.
//!
//! Stored rows, integers big-endian in keys and little-endian in values:
//!
//! | key | value |
//! |---|---|
//! | subject length `u16`, subject | version `u8` = 1, generation `u64` |
//! | subject length `u16`, subject, end of a range `u64` | start of the range `u64` |
//!
//! Ranges are keyed by their end because a scan only goes up: the first row with an end above an offset is the range
//! that holds it, if any does.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::codec::{Reader, Writer};
use crate::base::range::ByteRange;
use crate::base::range_set::RangeSet;
use crate::store::kv::{Durability, KeyValueStore, Snapshot, Table, Write};
use crate::store::range_tracker::{RangeTracker, Tracked};
use crate::store::{Error, Kind, Result};

const VERSION: u8 = 1;

/// Range sets in memory.
#[derive(Default)]
pub struct MemoryRangeTracker {
    subjects: Mutex<BTreeMap<Vec<u8>, Tracked>>,
}

impl MemoryRangeTracker {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Tracked>> {
        self.subjects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, subject: &[u8], generation: u64, change: impl FnOnce(&mut RangeSet)) -> Result<()> {
        let mut subjects = self.lock();
        let tracked = subjects.get_mut(subject).ok_or_else(unknown)?;
        check_generation(tracked.generation, generation)?;
        change(&mut tracked.ranges);
        Ok(())
    }
}

fn unknown() -> Error {
    Error::new(Kind::NotFound, "change ranges: unknown subject")
}

fn check_generation(known: u64, given: u64) -> Result<()> {
    if known == given {
        return Ok(());
    }
    Err(Error::new(Kind::Precondition, format!("change ranges: generation={known} given={given}")))
}

/// What [`RangeTracker::begin`] demands; true if there is anything to do.
fn check_begin(known: Option<u64>, given: u64) -> Result<bool> {
    match known {
        Some(known) if known > given => {
            Err(Error::new(Kind::Precondition, format!("begin ranges: generation={known} given={given}")))
        }
        _ => Ok(known != Some(given)),
    }
}

impl RangeTracker for MemoryRangeTracker {
    fn begin(&self, subject: &[u8], generation: u64) -> Result<()> {
        let mut subjects = self.lock();
        if check_begin(subjects.get(subject).map(|tracked| tracked.generation), generation)? {
            subjects.insert(subject.to_vec(), Tracked { generation, ranges: RangeSet::new() });
        }
        Ok(())
    }

    fn insert(&self, subject: &[u8], generation: u64, range: ByteRange) -> Result<()> {
        self.change(subject, generation, |ranges| ranges.insert(range))
    }

    fn remove(&self, subject: &[u8], generation: u64, range: ByteRange) -> Result<()> {
        self.change(subject, generation, |ranges| ranges.remove(range))
    }

    fn get(&self, subject: &[u8]) -> Result<Option<Tracked>> {
        Ok(self.lock().get(subject).cloned())
    }

    fn gaps(&self, subject: &[u8], window: ByteRange) -> Result<Option<Vec<ByteRange>>> {
        Ok(self.lock().get(subject).map(|tracked| tracked.ranges.gaps(window).collect()))
    }

    fn forget(&self, subject: &[u8]) -> Result<()> {
        self.lock().remove(subject);
        Ok(())
    }

    fn subjects(&self) -> Result<Vec<Vec<u8>>> {
        Ok(self.lock().keys().cloned().collect())
    }
}

/// Ranges as rows of one table that nobody else writes. A change costs a commit and touches only the rows around it.
pub struct KvRangeTracker {
    store: Arc<dyn KeyValueStore>,
    table: Table,
    /// Held from reading the rows until the commit that changes them.
    changing: Mutex<()>,
}

impl KvRangeTracker {
    #[must_use]
    pub fn new(store: Arc<dyn KeyValueStore>, table: Table) -> Self {
        Self { store, table, changing: Mutex::new(()) }
    }

    fn view(&self, subject: &[u8]) -> Result<View> {
        Ok(View { snapshot: self.store.snapshot()?, table: self.table, head_key: head_key(subject)? })
    }

    fn commit(&self, writes: &[Write]) -> Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        self.store.commit(writes, Durability::Visible)
    }

    /// Replaces the ranges that touch `range` by what `change` makes of them.
    fn change(
        &self,
        subject: &[u8],
        generation: u64,
        range: ByteRange,
        change: impl FnOnce(&mut RangeSet),
    ) -> Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let view = self.view(subject)?;
        check_generation(view.generation()?.ok_or_else(unknown)?, generation)?;
        if range.is_empty() {
            return Ok(());
        }
        let before: RangeSet = view.touching(range)?.into_iter().collect();
        let mut after = before.clone();
        change(&mut after);
        let gone = before.iter().filter(|old| !after.iter().any(|new| new == *old));
        let mut writes: Vec<_> = gone.map(|old| view.write(old.end, None)).collect();
        let come = after.iter().filter(|new| !before.iter().any(|old| old == *new));
        writes.extend(come.map(|new| view.write(new.end, Some(new.start))));
        self.commit(&writes)
    }
}

impl RangeTracker for KvRangeTracker {
    fn begin(&self, subject: &[u8], generation: u64) -> Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let view = self.view(subject)?;
        if !check_begin(view.generation()?, generation)? {
            return Ok(());
        }
        let mut writes = view.removals()?;
        let mut head = Writer::new();
        head.u8(VERSION).u64(generation);
        writes.push(Write { table: self.table, key: view.head_key, value: Some(head.buf) });
        self.commit(&writes)
    }

    fn insert(&self, subject: &[u8], generation: u64, range: ByteRange) -> Result<()> {
        self.change(subject, generation, range, |ranges| ranges.insert(range))
    }

    fn remove(&self, subject: &[u8], generation: u64, range: ByteRange) -> Result<()> {
        self.change(subject, generation, range, |ranges| ranges.remove(range))
    }

    fn get(&self, subject: &[u8]) -> Result<Option<Tracked>> {
        let view = self.view(subject)?;
        let Some(generation) = view.generation()? else { return Ok(None) };
        let ranges = view.touching(ByteRange::new(0, u64::MAX))?.into_iter().collect();
        Ok(Some(Tracked { generation, ranges }))
    }

    fn gaps(&self, subject: &[u8], window: ByteRange) -> Result<Option<Vec<ByteRange>>> {
        let view = self.view(subject)?;
        if view.generation()?.is_none() {
            return Ok(None);
        }
        let ranges: RangeSet = view.touching(window)?.into_iter().collect();
        Ok(Some(ranges.gaps(window).collect()))
    }

    fn forget(&self, subject: &[u8]) -> Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let view = self.view(subject)?;
        let mut writes = view.removals()?;
        writes.push(Write { table: self.table, key: view.head_key, value: None });
        self.commit(&writes)
    }

    fn subjects(&self) -> Result<Vec<Vec<u8>>> {
        let snapshot = self.store.snapshot()?;
        let (mut subjects, mut from) = (Vec::new(), Vec::new());
        loop {
            let mut found = None;
            snapshot.scan(self.table, &from, None, &mut |key, _| {
                found = Some(key.to_vec());
                Ok(ControlFlow::Break(()))
            })?;
            let Some(key) = found else { return Ok(subjects) };
            let (len, subject) = key.split_first_chunk::<2>().ok_or_else(|| malformed(&key))?;
            if usize::from(u16::from_be_bytes(*len)) != subject.len() {
                return Err(malformed(&key));
            }
            subjects.push(subject.to_vec());
            // Past all ranges of this subject: their keys have eight bytes more.
            from = key;
            from.extend_from_slice(&[0xff; 9]);
        }
    }
}

/// The rows of one subject at one moment.
struct View {
    snapshot: Box<dyn Snapshot>,
    table: Table,
    head_key: Vec<u8>,
}

impl View {
    /// None if the subject is unknown.
    fn generation(&self) -> Result<Option<u64>> {
        let head = self.snapshot.get(self.table, &self.head_key)?;
        head.map(|head| self.decode_head(&head)).transpose()
    }

    /// The ranges that overlap `window` or lie beside it, ascending.
    fn touching(&self, window: ByteRange) -> Result<Vec<ByteRange>> {
        let mut ranges: Vec<ByteRange> = Vec::new();
        let (from, to) = (self.range_key(window.start), [&*self.head_key, &[0xff; 9]].concat());
        self.snapshot.scan(self.table, &from, Some(&to), &mut |key, value| {
            let range = self.decode_range(key, value)?;
            if range.start > window.end {
                return Ok(ControlFlow::Break(()));
            }
            if ranges.last().is_some_and(|last| last.end >= range.start) {
                return Err(malformed(&self.head_key));
            }
            ranges.push(range);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(ranges)
    }

    /// Writes that remove every range. Rows are removed unread: this is also how a malformed subject is got rid of.
    fn removals(&self) -> Result<Vec<Write>> {
        let (from, to) = (self.range_key(0), [&*self.head_key, &[0xff; 9]].concat());
        let mut writes = Vec::new();
        self.snapshot.scan(self.table, &from, Some(&to), &mut |key, _| {
            writes.push(Write { table: self.table, key: key.to_vec(), value: None });
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(writes)
    }

    fn range_key(&self, end: u64) -> Vec<u8> {
        [&*self.head_key, &end.to_be_bytes()].concat()
    }

    fn write(&self, end: u64, start: Option<u64>) -> Write {
        let value = start.map(|start| start.to_le_bytes().to_vec());
        Write { table: self.table, key: self.range_key(end), value }
    }

    fn decode_head(&self, head: &[u8]) -> Result<u64> {
        let mut reader = Reader::new("range tracker head", head);
        let version = reader.u8()?;
        let generation = reader.u64()?;
        reader.finish()?;
        if version == VERSION { Ok(generation) } else { Err(malformed(&self.head_key)) }
    }

    fn decode_range(&self, key: &[u8], value: &[u8]) -> Result<ByteRange> {
        let end =
            key.strip_prefix(&*self.head_key).and_then(|end| end.try_into().ok()).map(u64::from_be_bytes);
        let start = value.try_into().ok().map(u64::from_le_bytes);
        match (start, end) {
            (Some(start), Some(end)) if start < end => Ok(ByteRange { start, end }),
            _ => Err(malformed(&self.head_key)),
        }
    }
}

fn head_key(subject: &[u8]) -> Result<Vec<u8>> {
    let len = u16::try_from(subject.len());
    let len = len.map_err(|_| Error::new(Kind::Internal, format!("subject too long: {}", subject.len())))?;
    Ok([&len.to_be_bytes(), subject].concat())
}

fn malformed(key: &[u8]) -> Error {
    Error::new(Kind::Corrupt, format!("malformed range row key={}", key.escape_ascii()))
}
