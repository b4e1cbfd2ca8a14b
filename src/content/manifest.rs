//! Committed content of one file: reading manifest rows, and planning how a change edits them. Pure over a snapshot.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use lru::LruCache;

use super::extent_map::{Cut, ExtentMap};
use super::seal::Sealed;
use crate::base::hash::BlockId;
use crate::base::ids::{Ino, SegmentId};
use crate::base::limits::SEGMENT_ENTRIES_MAX;
use crate::base::range::ByteRange;
use crate::base::sync::lock;
use crate::store::block::BlockLocation;
use crate::store::kv::Snapshot;
use crate::store::schema::manifest::{BlockSlice, ManifestRow, Segment, UNWRITTEN};
use crate::store::schema::{MANIFEST, SEGMENT, pair_key, parse_pair_key, segment_key};
use crate::store::{Error, Kind, Result};

/// Decoded segments kept in memory; they are immutable, so one is never stale. About 14 KiB each when full: 3.5 MiB.
const SEGMENTS_CACHED: usize = 256;

/// A part of a segment, as a value that can be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    pub segment: SegmentId,
    pub skip: u64,
}

impl Cut for Window {
    fn cut(&self, part: ByteRange) -> Self {
        Self { segment: self.segment, skip: self.skip + part.start }
    }
}

/// What committed content is at some range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// From `skip` on of a block.
    Block { block: BlockId, skip: u32 },
    /// Allocated, reads as zeros.
    Unwritten,
}

/// Reads rows and segments.
pub struct Manifests {
    segments: Mutex<LruCache<SegmentId, Arc<Segment>>>,
}

impl Default for Manifests {
    fn default() -> Self {
        let capacity = NonZeroUsize::new(SEGMENTS_CACHED).expect("not zero");
        Self { segments: Mutex::new(LruCache::new(capacity)) }
    }
}

impl Manifests {
    /// The stored parts of `window`, ascending; what they leave out is hole.
    ///
    /// # Errors
    /// `Corrupt` for rows that do not decode or name a segment that is not there.
    pub fn read(&self, view: &dyn Snapshot, ino: Ino, window: ByteRange) -> Result<Vec<(ByteRange, Stored)>> {
        let mut parts = Vec::new();
        for (range, row) in rows(view, ino, window, usize::MAX)? {
            let part = range.intersect(&window);
            if row.segment == UNWRITTEN {
                parts.push((part, Stored::Unwritten));
                continue;
            }
            let skip = row.skip + (part.start - range.start);
            let mut at = part.start;
            for slice in self.segment(view, row.segment)?.window(ByteRange::at(skip, part.len())) {
                let stored = Stored::Block { block: slice.block, skip: slice.skip };
                parts.push((ByteRange::at(at, u64::from(slice.len)), stored));
                at += u64::from(slice.len);
            }
            if at != part.end {
                return Err(corrupt(ino, &format!("segment {} is too short", row.segment.0)));
            }
        }
        Ok(parts)
    }

    fn segment(&self, view: &dyn Snapshot, id: SegmentId) -> Result<Arc<Segment>> {
        if let Some(segment) = lock(&self.segments).get(&id) {
            return Ok(Arc::clone(segment));
        }
        let bytes = view.get(SEGMENT, &segment_key(id))?;
        let missing = || Error::new(Kind::Corrupt, format!("read manifest: segment {} is missing", id.0));
        let segment = Arc::new(Segment::decode(&bytes.ok_or_else(missing)?)?);
        lock(&self.segments).put(id, Arc::clone(&segment));
        Ok(segment)
    }
}

/// Up to `limit` manifest rows that overlap `window`, ascending, with the range each stands for.
///
/// # Errors
/// `Corrupt` for rows that do not decode or overlap.
pub fn rows(
    view: &dyn Snapshot,
    ino: Ino,
    window: ByteRange,
    limit: usize,
) -> Result<Vec<(ByteRange, ManifestRow)>> {
    let mut found = Vec::new();
    if window.is_empty() {
        return Ok(found);
    }
    // Keyed by end: the first row that ends above the window's start is the first that can overlap it.
    let (from, to) = (pair_key(ino.0, window.start + 1), pair_key(ino.0 + 1, 0));
    view.scan(MANIFEST, &from, Some(&to), &mut |key, value| {
        let row = ManifestRow::decode(value)?;
        let (_, end) = parse_pair_key(key).ok_or_else(|| corrupt(ino, "malformed manifest key"))?;
        let start = end.checked_sub(row.len).ok_or_else(|| corrupt(ino, "manifest row before offset 0"))?;
        if window.end <= start || found.len() == limit {
            return Ok(ControlFlow::Break(()));
        }
        found.push((ByteRange::new(start, end), row));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// Bytes of `range` that no row covers.
///
/// # Errors
/// As [`rows`].
pub fn hole_bytes(view: &dyn Snapshot, ino: Ino, range: ByteRange) -> Result<u64> {
    let covered = rows(view, ino, range, usize::MAX)?;
    Ok(range.len() - covered.iter().map(|(row, _)| row.intersect(&range).len()).sum::<u64>())
}

fn corrupt(ino: Ino, what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("read manifest of inode {ino}: {what}"))
}

/// A planned change of one file's rows. Changes are applied to a picture of the rows they touch; [`Edit::finish`]
/// compares it with what was there.
pub struct Edit<'a> {
    view: &'a dyn Snapshot,
    ino: Ino,
    /// Rows as they are, by end offset.
    before: BTreeMap<u64, (ByteRange, ManifestRow)>,
    /// Rows as they shall be.
    after: ExtentMap<Window>,
    segments: Vec<(SegmentId, Segment)>,
    locations: HashMap<BlockId, BlockLocation>,
}

/// What an edit comes to.
#[derive(Debug, Default)]
pub struct RowChanges {
    /// End offsets of rows to remove.
    pub removed: Vec<u64>,
    /// Rows to write, by end offset.
    pub written: Vec<(u64, ManifestRow)>,
    /// New segments.
    pub segments: Vec<(SegmentId, Segment)>,
    /// Blocks the new segments name, once per slice.
    pub blocks: Vec<(BlockId, BlockLocation)>,
    /// Change of the number of rows that name a segment; no zeros.
    pub segment_refs: Vec<(SegmentId, i64)>,
    /// Change of allocated bytes.
    pub allocated: i64,
}

impl<'a> Edit<'a> {
    #[must_use]
    pub fn new(view: &'a dyn Snapshot, ino: Ino) -> Self {
        Self {
            view,
            ino,
            before: BTreeMap::new(),
            after: ExtentMap::default(),
            segments: Vec::new(),
            locations: HashMap::new(),
        }
    }

    /// Makes `range` hole.
    ///
    /// # Errors
    /// As [`rows`]; the same for all that follow.
    pub fn remove(&mut self, range: ByteRange) -> Result<()> {
        for (row_range, row) in rows(self.view, self.ino, range, usize::MAX)? {
            if self.before.insert(row_range.end, (row_range, row)).is_none() {
                self.after.insert(row_range, Window { segment: row.segment, skip: row.skip });
            }
        }
        self.after.remove(range);
        Ok(())
    }

    /// Makes `range` a part of an existing segment.
    pub fn share(&mut self, range: ByteRange, window: Window) -> Result<()> {
        self.remove(range)?;
        self.after.insert(range, window);
        Ok(())
    }

    /// Puts sealed extents in place: contiguous blocks become segments with numbers from `next`.
    pub fn apply(
        &mut self,
        extents: &[(ByteRange, Sealed)],
        next: &mut dyn FnMut() -> Result<SegmentId>,
    ) -> Result<()> {
        let mut run: Vec<BlockSlice> = Vec::new();
        let mut run_range = ByteRange::new(0, 0);
        for (range, sealed) in extents {
            let Sealed::Block { ticket, skip } = sealed else {
                self.share(*range, Window { segment: UNWRITTEN, skip: 0 })?;
                continue;
            };
            if run_range.end != range.start || run.len() == SEGMENT_ENTRIES_MAX {
                self.add_segment(run_range, std::mem::take(&mut run), next)?;
                run_range = ByteRange::new(range.start, range.start);
            }
            let len = u32::try_from(range.len()).expect("a slice lies within one block");
            run.push(BlockSlice { block: ticket.id, skip: *skip, len });
            run_range.end = range.end;
            self.locations.insert(ticket.id, ticket.location);
        }
        self.add_segment(run_range, run, next)
    }

    fn add_segment(
        &mut self,
        range: ByteRange,
        slices: Vec<BlockSlice>,
        next: &mut dyn FnMut() -> Result<SegmentId>,
    ) -> Result<()> {
        if slices.is_empty() {
            return Ok(());
        }
        let id = next()?;
        self.segments.push((id, Segment::new(slices)));
        self.share(range, Window { segment: id, skip: 0 })
    }

    /// The rows to write and remove, and what follows for shared rows.
    #[must_use]
    pub fn finish(self) -> RowChanges {
        let mut refs: BTreeMap<SegmentId, i64> = BTreeMap::new();
        let mut changes = RowChanges::default();
        let mut before = self.before;
        for (range, window) in self.after.iter() {
            let row = ManifestRow { len: range.len(), segment: window.segment, skip: window.skip };
            changes.allocated += range.len().cast_signed();
            *refs.entry(window.segment).or_default() += 1;
            match before.get(&range.end) {
                Some((_, old)) if *old == row => {}
                _ => changes.written.push((range.end, row)),
            }
            if let Some((old_range, old)) = before.remove(&range.end) {
                changes.allocated -= old_range.len().cast_signed();
                *refs.entry(old.segment).or_default() -= 1;
            }
        }
        for (end, (range, row)) in before {
            changes.removed.push(end);
            changes.allocated -= range.len().cast_signed();
            *refs.entry(row.segment).or_default() -= 1;
        }
        refs.remove(&UNWRITTEN);
        for (id, segment) in self.segments {
            // A segment whose every byte a later seal replaced is never written.
            if !refs.contains_key(&id) {
                continue;
            }
            let located = |slice: &BlockSlice| Some((slice.block, *self.locations.get(&slice.block)?));
            changes.blocks.extend(segment.slices().iter().filter_map(located));
            changes.segments.push((id, segment));
        }
        changes.segment_refs = refs.into_iter().filter(|(_, by)| *by != 0).collect();
        changes
    }
}
