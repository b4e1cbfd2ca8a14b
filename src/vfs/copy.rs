//! copy_file_range(2): bytes are never moved. Committed content is shared by windows on the same segments; content that
//! is still staged is shared by the same blocks.

use std::sync::Arc;

use super::attr::put_seal;
use super::change::Change;
use super::error::{Error, Result};
use super::inode::{Inode, State};
use super::locks::LockSet;
use super::lookup::ready;
use super::orphan::ROWS_PER_STEP;
use super::{Pending, Vfs};
use crate::base::hash::BlockId;
use crate::base::ids::{Fh, Ino};
use crate::base::limits::FILE_BYTES_MAX;
use crate::base::range::ByteRange;
use crate::content::extent_map::ExtentMap;
use crate::content::manifest::{Edit, Stored, Window, rows};
use crate::content::overlay::{Overlay, Source};
use crate::content::seal::Sealed;
use crate::store::block::{BlockTicket, Receipt, UploadTicket};
use crate::store::kv::Snapshot;
use crate::store::schema::BLOCK;
use crate::store::schema::inode::ContentForm;
use crate::store::schema::pack::BlockRow;
use crate::store::{self, Kind};

/// Attempts to find both files without bytes that are only in memory; a writer that never pauses makes the caller fall
/// back to reading and writing.
const ATTEMPTS: usize = 16;

impl Vfs {
    /// Copies up to `len` bytes from `from` to `to`; fewer at the end of the source, or where the source is in very many
    /// pieces.
    ///
    /// # Errors
    /// `BadHandle`, `Invalid` for overlapping ranges of one file, `FileTooLarge`, `ReadOnly`; `NotSupported` if the files
    /// are written to all the time.
    pub fn copy_file_range(self: &Arc<Self>, from: (Fh, u64), to: (Fh, u64), len: u64) -> Pending<u64> {
        let resolved = self.writable().and_then(|()| {
            let (source, target) = (self.handles.get(from.0)?, self.handles.get(to.0)?);
            Ok((Arc::clone(&source.inode), Arc::clone(&target.inode)))
        });
        let (source, target) = match resolved {
            Ok(both) => both,
            Err(error) => return ready(Err(error)),
        };
        let vfs = Arc::clone(self);
        Box::pin(async move { vfs.copy_inode((&source, from.1), (&target, to.1), len).await })
    }

    /// As [`Self::copy_file_range`], for inodes.
    pub(super) async fn copy_inode(
        self: &Arc<Self>,
        from: (&Arc<Inode>, u64),
        to: (&Arc<Inode>, u64),
        len: u64,
    ) -> Result<u64> {
        for _ in 0..ATTEMPTS {
            if let Some(copied) = self.try_copy(from, to, len)? {
                return Ok(copied);
            }
            self.stage_as_blocks(from.0).await?;
            self.stage_as_blocks(to.0).await?;
        }
        Err(Error::NotSupported)
    }

    /// Copies if nothing of either file is hot; None if something is.
    fn try_copy(
        self: &Arc<Self>,
        from: (&Arc<Inode>, u64),
        to: (&Arc<Inode>, u64),
        len: u64,
    ) -> Result<Option<u64>> {
        let (source, target) = (from.0, to.0);
        let mut locks = LockSet::of(&[source, target]);

        let size = locks.get(source).size();
        let source_range = ByteRange::at(from.1, len).intersect(&ByteRange::new(0, size));
        let target_range = ByteRange::at(to.1, source_range.len());
        if source_range.is_empty() {
            return Ok(Some(0));
        }
        if FILE_BYTES_MAX < target_range.end {
            return Err(Error::FileTooLarge);
        }
        if source.ino == target.ino && source_range.overlaps(&target_range) {
            return Err(Error::Invalid);
        }
        for inode in [source, target] {
            let state = locks.get(inode);
            if state.row.form == ContentForm::Inline {
                self.lift_inline(inode, state)?;
            }
            let committed = state.row.size;
            if state.overlay.as_ref().is_some_and(|overlay| overlay.has_unsealed(committed)) {
                let small = self.small_content(locks.get(source));
                drop(locks);
                let Some(bytes) = small else { return Ok(None) };
                return self.copy_small(&bytes, source_range, (target, target_range.start)).map(Some);
            }
        }

        let committed_only = locks.get(source).overlay.is_none() && locks.get(target).overlay.is_none();
        if committed_only {
            self.share_windows((source, source_range), (target, target_range), &mut locks).map(Some)
        } else {
            self.share_blocks((source, source_range), (target, target_range), &mut locks).map(Some)
        }
    }

    /// The content of a file that will be committed inline and is all in memory: to write it again is less than to make
    /// blocks of it.
    fn small_content(&self, source: &State) -> Option<Vec<u8>> {
        let is_small =
            source.size() <= self.options.inline_bytes_max && source.row.form != ContentForm::Manifest;
        source.overlay.as_ref().filter(|_| is_small)?.whole()
    }

    fn copy_small(self: &Arc<Self>, bytes: &[u8], from: ByteRange, to: (&Arc<Inode>, u64)) -> Result<u64> {
        let range = from.start as usize..from.end as usize;
        let part = bytes.get(range).unwrap_or_default();
        self.hot_budget.take(part.len() as u64);
        self.write_reserved(to.0, to.1, part).inspect_err(|_| self.hot_budget.release(part.len() as u64))?;
        Ok(part.len() as u64)
    }

    fn share_windows(
        &self,
        from: (&Arc<Inode>, ByteRange),
        to: (&Arc<Inode>, ByteRange),
        locks: &mut LockSet<'_>,
    ) -> Result<u64> {
        let view = self.commit.view()?;
        let mut source_range = from.1;
        let found = rows(&view, from.0.ino, source_range, ROWS_PER_STEP)?;
        if let (ROWS_PER_STEP, Some((last, _))) = (found.len(), found.last()) {
            source_range.end = source_range.end.min(last.end);
        }
        let target_range = bounded(&view, to.0.ino, ByteRange::at(to.1.start, source_range.len()))?;
        source_range = ByteRange::at(source_range.start, target_range.len());

        let mut edit = Edit::new(&view, to.0.ino);
        edit.remove(target_range)?;
        for (range, row) in found {
            let part = range.intersect(&source_range);
            if part.is_empty() {
                break;
            }
            let place = ByteRange::at(target_range.start + (part.start - source_range.start), part.len());
            let window = Window { segment: row.segment, skip: row.skip + (part.start - range.start) };
            edit.share(place, window)?;
        }
        let changes = edit.finish();
        let state = locks.get(to.0);
        let now = self.clock.now();
        let mut row = state.row.clone();
        row.form = ContentForm::Manifest;
        row.size = row.size.max(target_range.end);
        row.allocated = row.allocated.saturating_add_signed(changes.allocated);
        (row.mtime, row.ctime) = (now, now);
        let mut change = Change::default();
        change.put_content(to.0.ino, &changes);
        change.put_inode(to.0.ino, &state.row, &row);

        let _ticket = change.submit(&self.commit)?;

        state.row = row;
        Ok(source_range.len())
    }

    fn share_blocks(
        self: &Arc<Self>,
        from: (&Arc<Inode>, ByteRange),
        to: (&Arc<Inode>, ByteRange),
        locks: &mut LockSet<'_>,
    ) -> Result<u64> {
        let view = self.commit.view()?;
        let target_range = bounded(&view, to.0.ino, to.1)?;
        let source_range = ByteRange::at(from.1.start, target_range.len());
        let mut extents = ExtentMap::default();
        let mut end = source_range.end;
        for (count, (range, sealed)) in
            self.sealed_parts(from.0, locks.get(from.0), source_range)?.into_iter().enumerate()
        {
            if count == ROWS_PER_STEP {
                end = range.start;
                break;
            }
            let place = ByteRange::at(to.1.start + (range.start - from.1.start), range.len());
            extents.insert(place, sealed);
        }
        let copied = end - from.1.start;
        let target_range = ByteRange::at(to.1.start, copied);

        let (state, ino) = (locks.get(to.0), to.0.ino);
        let now = self.clock.now();
        let mut row = state.row.clone();
        let mut change = Change::default();
        self.plan_discard(to.0, state, &mut row, target_range, &mut change)?;
        (row.mtime, row.ctime) = (now, now);
        let empty = Overlay::new(state.row.size, state.row.allocated, 1);
        let overlay = state.overlay.as_deref().unwrap_or(&empty);
        let size = state.size().max(target_range.end);
        let cut = self.plan_cut_of(overlay, ino, &row, target_range)?;
        let counted = if row.form == ContentForm::Inline { row.allocated } else { 0 };
        let adopted = overlay.plan_adopt(cut, extents, size, counted);
        put_seal(&mut change, ino, adopted.seal.as_ref());
        change.put_inode(ino, &state.row, &row);

        let _ticket = change.submit(&self.commit)?;

        state.row = row;
        self.overlay(state).discard(adopted);
        self.count_uncommitted(state);
        self.enqueue_publication(to.0, state);
        Ok(copied)
    }

    /// What a range is made of, as extents another file can have too: nothing of it may be hot.
    fn sealed_parts(
        &self,
        inode: &Inode,
        state: &State,
        range: ByteRange,
    ) -> Result<Vec<(ByteRange, Sealed)>> {
        let overlay = state.overlay.as_ref().map(|overlay| overlay.read(range)).unwrap_or_default();
        let mut parts = Vec::new();
        let mut at = range.start;
        for (part, source) in overlay {
            self.committed_sealed(inode, state, ByteRange::new(at, part.start), &mut parts)?;
            at = part.end;
            parts.push(match source {
                Source::Block(ticket, skip) => (part, Sealed::Block { ticket, skip }),
                Source::Zeros => (part, Sealed::Unwritten),
                Source::Memory(_) => return Err(Error::NotSupported),
            });
        }
        self.committed_sealed(inode, state, ByteRange::new(at, range.end), &mut parts)?;
        Ok(parts)
    }

    fn committed_sealed(
        &self,
        inode: &Inode,
        state: &State,
        window: ByteRange,
        parts: &mut Vec<(ByteRange, Sealed)>,
    ) -> Result<()> {
        // Not cut at the committed size: room that was allocated beyond it may lie inside the file by now.
        if state.row.form != ContentForm::Manifest || window.is_empty() {
            return Ok(());
        }
        let view = self.commit.view()?;
        for (part, stored) in self.manifests.read(&view, inode.ino, window)? {
            parts.push(match stored {
                Stored::Unwritten => (part, Sealed::Unwritten),
                Stored::Block { block, skip } => {
                    (part, Sealed::Block { ticket: self.committed_ticket(block)?, skip })
                }
            });
        }
        Ok(())
    }

    /// A ticket for a block that a committed manifest names: its journal record waits for it if need be.
    fn committed_ticket(&self, id: BlockId) -> store::Result<BlockTicket> {
        let missing = || store::Error::new(Kind::Corrupt, format!("copy: {id} has no row"));
        let row = self.commit.get(BLOCK, &id.to_key())?.ok_or_else(missing)?;
        let location = BlockRow::decode(&row)?.location;
        let upload = UploadTicket::fulfilled(Receipt::UNKNOWN);
        Ok(BlockTicket { id, location, upload })
    }
}

/// As much of `range`, from its start, as holds no more rows than one batch may replace (rule R17).
fn bounded(view: &dyn Snapshot, ino: Ino, range: ByteRange) -> store::Result<ByteRange> {
    let found = rows(view, ino, range, ROWS_PER_STEP)?;
    let end = match found.last() {
        Some((last, _)) if found.len() == ROWS_PER_STEP => last.end.min(range.end),
        _ => range.end,
    };
    Ok(ByteRange::new(range.start, end))
}
