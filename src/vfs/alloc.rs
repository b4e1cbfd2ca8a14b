//! fallocate(2) and the search for data and holes.

use std::sync::Arc;

use super::change::Change;
use super::error::{Error, Result};
use super::inode::{Inode, State};
use super::{Caller, SetAttr, SetTime, Vfs};
use crate::base::ids::Fh;
use crate::base::limits::FILE_BYTES_MAX;
use crate::base::range::ByteRange;
use crate::base::range_set::RangeSet;
use crate::content::manifest::rows;
use crate::store::schema::inode::ContentForm;
use crate::store::schema::manifest::UNWRITTEN;

/// What fallocate does with a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AllocateMode {
    /// Holes become allocated zeros.
    Allocate,
    /// Everything becomes hole; the size stays.
    PunchHole,
    /// Everything becomes allocated zeros.
    ZeroRange,
}

/// What lseek searches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whence {
    Data,
    Hole,
}

impl Vfs {
    /// Changes the allocation of `range`; it grows the file unless `keep_size`.
    ///
    /// # Errors
    /// `BadHandle`, `Invalid` for an empty range, `FileTooLarge`, `ReadOnly`.
    pub fn fallocate(
        self: &Arc<Self>,
        fh: Fh,
        range: ByteRange,
        mode: AllocateMode,
        keep_size: bool,
    ) -> Result<()> {
        self.writable()?;
        let inode = Arc::clone(&self.handles.get(fh)?.inode);
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        if FILE_BYTES_MAX < range.end {
            return Err(Error::FileTooLarge);
        }
        let mut state = inode.lock();
        self.lift_inline(&inode, &mut state)?;
        if mode != AllocateMode::Allocate {
            self.discard(&inode, &mut state, range)?;
        }
        if mode == AllocateMode::PunchHole {
            return Ok(());
        }
        let committed = self.committed_ranges(&inode, &state, range, |_| true)?;
        let gaps: Vec<ByteRange> = committed.gaps(range).collect();
        let size = if keep_size { state.size() } else { state.size().max(range.end) };
        let is_covered = |gap: &ByteRange| {
            let parts = state.overlay.as_ref().map(|overlay| overlay.read(*gap)).unwrap_or_default();
            parts.iter().map(|(part, _)| part.len()).sum::<u64>() == gap.len()
        };
        if size == state.size() && gaps.iter().all(is_covered) {
            // Only the time changes, which no staged content will carry.
            drop(state);
            let caller = Caller::ROOT;
            let set = SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() };
            return self.setattr(&caller, inode.ino, &set).map(drop);
        }
        let now = self.clock.now();
        self.overlay(&mut state).allocate(&gaps, size, now);
        self.count_uncommitted(&mut state);
        self.note_hot(&inode, &state);
        Ok(())
    }

    /// Makes `range` hole, committed and overlay; commits.
    fn discard(&self, inode: &Inode, state: &mut State, range: ByteRange) -> Result<()> {
        self.thin_out(inode.ino, state, range)?;
        let now = self.clock.now();
        let mut row = state.row.clone();
        let mut change = Change::default();
        self.plan_discard(inode, state, &mut row, range, &mut change)?;
        (row.mtime, row.ctime) = (now, now);
        let cut = self.plan_cut(inode.ino, state, &row, range, &mut change)?;
        change.put_inode(inode.ino, &state.row, &row);
        let _ticket = change.submit(&self.commit)?;
        state.row = row;
        self.cut(state, cut);
        Ok(())
    }

    /// The first data or hole at or after `offset`; the end of the file counts as hole.
    ///
    /// # Errors
    /// `BadHandle`, `NoSuchOffset` beyond the end or if no data follows.
    pub fn lseek(&self, fh: Fh, offset: u64, whence: Whence) -> Result<u64> {
        let inode = Arc::clone(&self.handles.get(fh)?.inode);
        let state = inode.lock();
        let size = state.size();
        if size <= offset {
            return Err(Error::NoSuchOffset);
        }
        let window = ByteRange::new(offset, size);
        let mut data = self.committed_ranges(&inode, &state, window, |written| written)?;
        for (range, is_data) in state.overlay.iter().flat_map(|overlay| overlay.data_ranges(window)) {
            if is_data { data.insert(range) } else { data.remove(range) }
        }
        match whence {
            Whence::Data => data.overlaps(window).next().map(|range| range.start).ok_or(Error::NoSuchOffset),
            Whence::Hole => Ok(data.gaps(window).next().map_or(size, |range| range.start)),
        }
    }

    /// True if room is allocated from `size` on, which is the end of the file. A truncate to the same size gives it back,
    /// as on ext4.
    pub(super) fn is_allocated_beyond(&self, inode: &Inode, state: &State, size: u64) -> Result<bool> {
        let tail = ByteRange::new(size, u64::MAX);
        let uncommitted = state.overlay.as_ref().is_some_and(|overlay| !overlay.read(tail).is_empty());
        Ok(uncommitted
            || self.committed_ranges(inode, state, tail, |_| true)?.overlaps(tail).next().is_some())
    }

    /// Committed parts of `window`; `wanted` is asked whether to count those that are written (or only allocated).
    fn committed_ranges(
        &self,
        inode: &Inode,
        state: &State,
        window: ByteRange,
        wanted: impl Fn(bool) -> bool,
    ) -> Result<RangeSet> {
        match state.row.form {
            ContentForm::Empty => Ok(RangeSet::new()),
            ContentForm::Inline => {
                let range = window.intersect(&ByteRange::new(0, state.row.size));
                Ok([range].into_iter().collect())
            }
            ContentForm::Manifest => {
                let view = self.commit.view()?;
                let rows = rows(&view, inode.ino, window, usize::MAX)?;
                let counted = rows.into_iter().filter(|(_, row)| wanted(row.segment != UNWRITTEN));
                Ok(counted.map(|(range, _)| range.intersect(&window)).collect())
            }
        }
    }
}
