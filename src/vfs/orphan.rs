//! The end of an inode: rows of what has neither name nor user go, in bounded steps (rule R17).

use std::ops::ControlFlow;
use std::sync::Arc;

use super::Vfs;
use super::change::Change;
use super::error::Result;
use super::inode::{Inode, State};
use crate::base::ids::{Ino, SegmentId};
use crate::base::range::ByteRange;
use crate::base::sync::lock;
use crate::commit::Batch;
use crate::content::manifest::{Edit, rows};
use crate::store;
use crate::store::kv::{Snapshot, Table};
use crate::store::schema::manifest::Segment;
use crate::store::schema::merge::block_released;
use crate::store::schema::{
    DEAD_SEGMENT, INLINE, ORPHAN, OVERLAY, SEGMENT, XATTR, ino_key, ino_key_end, parse_ino_key,
};

/// Rows one batch removes at most: with keys, references and follow-up deltas far below a batch's size.
pub(super) const ROWS_PER_STEP: usize = 2048;

/// Segments released in one batch at most: each gives back up to 256 blocks.
const SEGMENTS_PER_STEP: usize = 8;

impl Vfs {
    /// Removes the inode's rows if it has no link, no handle and the kernel has forgotten it.
    pub(super) fn reap_if_unused(self: &Arc<Self>, inode: &Arc<Inode>) {
        let mut state = inode.lock();
        if state.row.nlink > 0 || state.opens > 0 || inode.is_reaped() || self.table.is_looked_up(inode.ino) {
            return;
        }
        inode.set_reaped();
        self.drop_overlay(&mut state);
        drop(state);
        if let Err(error) = self.reap(inode) {
            // The orphan's row stays; the next mount reaps it.
            tracing::error!(ino = inode.ino.0, %error, "reap inode");
        }
    }

    /// Drops what a crash left without a name.
    pub(super) fn recover_orphans(&self) -> Result<()> {
        let mut orphans = Vec::new();
        self.commit.view()?.scan(ORPHAN, &[], None, &mut |key, _| {
            orphans.extend(parse_ino_key(key));
            Ok(ControlFlow::Continue(()))
        })?;
        orphans.into_iter().try_for_each(|ino| self.reap(&*self.inode(ino)?))?;
        self.release_dead_segments()
    }

    fn reap(&self, inode: &Inode) -> Result<()> {
        let ino = inode.ino;
        let everything = ByteRange::new(0, u64::MAX);
        while self.remove_rows(ino, &mut inode.lock(), everything)? {}
        for table in [XATTR, OVERLAY] {
            while self.delete_rows_of(table, ino)? {}
        }
        let row = inode.lock().row.clone();
        let mut change = Change::default();
        change.remove_inode(ino, &row);
        change.batch.delete(ORPHAN, ino_key(ino));
        change.batch.delete(INLINE, ino_key(ino));
        let _ticket = change.submit(&self.commit)?;
        self.release_dead_segments()
    }

    /// Removes up to a step's worth of manifest rows in `range`; true if that many were there.
    pub(super) fn remove_rows(&self, ino: Ino, state: &mut State, range: ByteRange) -> Result<bool> {
        let view = self.commit.view()?;
        let step = rows(&view, ino, range, ROWS_PER_STEP)?;
        let Some((last, _)) = step.last() else { return Ok(false) };
        let mut edit = Edit::new(&view, ino);
        edit.remove(ByteRange::new(range.start, last.end.min(range.end)))?;
        let rows = edit.finish();
        let mut row = state.row.clone();
        row.allocated = row.allocated.saturating_add_signed(rows.allocated);
        let mut change = Change::default();
        change.put_content(ino, &rows);
        change.put_inode(ino, &state.row, &row);
        let _ticket = change.submit(&self.commit)?;
        state.row = row;
        self.count_uncommitted(state);
        Ok(step.len() == ROWS_PER_STEP)
    }

    /// Deletes up to a step's worth of an inode's rows in `table`; true if that many were there.
    fn delete_rows_of(&self, table: Table, ino: Ino) -> Result<bool> {
        let mut batch = Batch::default();
        let mut found = 0;
        let view = self.commit.view()?;
        view.scan(table, &ino_key(ino), Some(&ino_key_end(ino)), &mut |key, _| {
            batch.delete(table, key);
            found += 1;
            let full = found == ROWS_PER_STEP;
            Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        let _ticket = self.commit.submit(batch)?;
        Ok(found == ROWS_PER_STEP)
    }

    /// Gives back the blocks of segments that no manifest names any more.
    pub(super) fn release_dead_segments(&self) -> Result<()> {
        loop {
            // Of two that read the same rows both would give back the same blocks.
            let _one_at_a_time = lock(&self.releasing);
            let view = self.commit.view()?;
            let mut dead = Vec::new();
            view.scan(DEAD_SEGMENT, &[], None, &mut |key, _| {
                dead.extend(parse_ino_key(key).map(|number| SegmentId(number.0)));
                let full = dead.len() == SEGMENTS_PER_STEP;
                Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            if dead.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::default();
            for id in dead {
                let key = store::schema::segment_key(id);
                if let Some(segment) = view.get(SEGMENT, &key)? {
                    let segment = Segment::decode(&segment).map_err(store::Error::from)?;
                    for slice in segment.slices() {
                        batch.delta(block_released(slice.block));
                    }
                }
                batch.delete(SEGMENT, key.clone());
                batch.delete(DEAD_SEGMENT, key);
            }
            let _ticket = self.commit.submit(batch)?;
        }
    }
}
