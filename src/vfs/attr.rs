//! Changing attributes: chmod, chown, utimens, and truncate, which is where they meet content.

use std::sync::Arc;

use super::change::Change;
use super::error::{Error, Result};
use super::inode::{Attr, Inode, State};
use super::orphan::ROWS_PER_STEP;
use super::privileges::clear_set_id;

use super::{Caller, Vfs};
use crate::base::attr::{FileKind, MODE_BITS, S_ISGID, S_ISUID};
use crate::base::ids::{Generation, Ino};
use crate::base::limits::FILE_BYTES_MAX;
use crate::base::range::ByteRange;
use crate::base::time::Timestamp;
use crate::content::manifest::{Edit, hole_bytes, rows};
use crate::content::overlay::{Discard, Overlay};
use crate::content::seal::Seal;
use crate::store;
use crate::store::schema::inode::{ContentForm, InodeRow};
use crate::store::schema::{INLINE, OVERLAY, ino_key, pair_key};

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    Now,
    At(Timestamp),
}

/// What to change; None stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

impl SetAttr {
    /// True for a change of owner or content; to change nothing is one too.
    fn takes_privileges(&self) -> bool {
        let owner = self.uid.is_some() || self.gid.is_some();
        owner || self.size.is_some() || *self == Self::default()
    }
}

impl Vfs {
    /// Changes attributes. The kernel has checked permissions. To change nothing is chown without owner and group, or the
    /// kernel's wish before it changes content by other means than write: privileges go.
    ///
    /// # Errors
    /// `Stale`, `ReadOnly`, `IsDirectory` or `Invalid` for the size of what is not a regular file, `FileTooLarge`.
    pub fn setattr(self: &Arc<Self>, caller: &Caller<'_>, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.writable()?;
        let inode = self.inode(ino)?;
        if let Some(size) = set.size {
            check_size(&inode, size)?;
        }

        let mut state = inode.lock();

        let now = self.clock.now();
        let mut change = Change::default();
        let (mut row, resize) = match set.size {
            Some(size) => self.plan_size(&inode, &mut state, size, &mut change)?,
            None => (state.row.clone(), Resize::Committed),
        };
        if let Some(mode) = set.mode {
            self.plan_chmod(&inode, &mut state, mode, &mut change)?;
        }
        let mut xattrs = state.xattrs;
        if set.takes_privileges() && inode.kind != FileKind::Directory {
            xattrs = Some(self.xattrs(&inode, &mut state)?.plan_no_capability(ino, &mut change));
        }
        apply(&mut row, caller, set, now);
        let cut = match resize {
            Resize::Shorter(range) => self.plan_cut(ino, &state, &row, range, &mut change)?,
            Resize::Committed | Resize::Uncommitted(_) => None,
        };
        // A truncate to the same size changes nothing but the time.
        let sets_time = set.mtime.is_some() || (set.size.is_some() && resize == Resize::Committed);
        let mark = match (&state.overlay, &cut) {
            (Some(overlay), None) if sets_time => overlay.plan_time(row.mtime),
            _ => None,
        };
        put_seal(&mut change, ino, mark.as_ref());
        change.put_inode(ino, &state.row, &row);

        let _ticket = change.submit(&self.commit)?;

        state.row = row;
        state.xattrs = xattrs;
        if let Resize::Uncommitted(size) = resize {
            self.overlay(&mut state).grow(size, now);
            self.note_hot(&inode, &state);
        }
        if sets_time {
            let mtime = state.row.mtime;
            state.overlay.iter_mut().for_each(|overlay| overlay.set_time(mtime, mark.clone()));
        }
        self.cut(&mut state, cut);
        Ok(state.attr(ino))
    }

    /// Plans the new size: the row, and what else there is to do. What grows a file whose bytes are not all committed is
    /// left to the overlay, so that nobody ever reads zeros where those bytes belong (rule R2).
    fn plan_size(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        state: &mut State,
        size: u64,
        change: &mut Change,
    ) -> Result<(InodeRow, Resize)> {
        if state.row.form == ContentForm::Inline && self.options.inline_bytes_max < size {
            self.lift_inline(inode, state)?;
        }
        let shortens = size < state.size();
        if shortens || (size == state.size() && self.is_allocated_beyond(inode, state, size)?) {
            let tail = ByteRange::new(size, u64::MAX);
            self.thin_out(inode.ino, state, tail)?;
            let mut row = state.row.clone();
            self.plan_discard(inode, state, &mut row, tail, change)?;
            row.size = row.size.min(size);
            return Ok((row, Resize::Shorter(tail)));
        }
        let mut row = state.row.clone();
        if state.overlay.is_some() {
            let grows = state.size() < size;
            return Ok((row, if grows { Resize::Uncommitted(size) } else { Resize::Committed }));
        }
        if row.form == ContentForm::Inline && row.size < size {
            let mut bytes = self.inline_bytes(inode.ino)?;
            bytes.resize(usize::try_from(size).expect("at most inline_bytes_max"), 0);
            row.allocated = size;
            change.batch.put(INLINE, ino_key(inode.ino), bytes);
        }
        row.size = size;
        Ok((row, Resize::Committed))
    }

    /// Plans that `range` becomes hole in the committed content; raises the generation (rule R10). The caller cuts the
    /// overlay.
    pub(super) fn plan_discard(
        &self,
        inode: &Inode,
        state: &State,
        row: &mut InodeRow,
        range: ByteRange,
        change: &mut Change,
    ) -> Result<()> {
        row.generation = Generation(state.row.generation.0 + 1);
        match row.form {
            ContentForm::Empty => {}
            ContentForm::Inline => {
                let mut bytes = self.inline_bytes(inode.ino)?;
                let len = bytes.len() as u64;
                let cut = range.intersect(&ByteRange::new(0, len));
                // As long as the row says it is: content in the metadata has no holes.
                if range.end == u64::MAX {
                    bytes.truncate(usize::try_from(cut.start).expect("inline"));
                } else if let Some(part) = bytes.get_mut(cut.start as usize..cut.end as usize) {
                    part.fill(0);
                }
                row.allocated = bytes.len() as u64;
                change.batch.put(INLINE, ino_key(inode.ino), bytes);
            }
            ContentForm::Manifest => {
                let view = self.commit.view()?;
                let mut edit = Edit::new(&view, inode.ino);
                edit.remove(range)?;
                let rows = edit.finish();
                row.allocated = row.allocated.saturating_add_signed(rows.allocated);
                change.put_content(inode.ino, &rows);
            }
        }
        Ok(())
    }

    /// Plans what a discard of `range` means for bytes that are not committed: one row tells recovery, however many seals
    /// there are (rule R17). `row` is as it will be committed.
    pub(super) fn plan_cut(
        &self,
        ino: Ino,
        state: &State,
        row: &InodeRow,
        range: ByteRange,
        change: &mut Change,
    ) -> Result<Option<Discard>> {
        let Some(overlay) = &state.overlay else { return Ok(None) };
        let cut = self.plan_cut_of(overlay, ino, row, range)?;
        put_seal(change, ino, cut.seal.as_ref());
        Ok(Some(cut))
    }

    /// As [`Self::plan_cut`], without the row.
    pub(super) fn plan_cut_of(
        &self,
        overlay: &Overlay,
        ino: Ino,
        row: &InodeRow,
        range: ByteRange,
    ) -> Result<Discard> {
        // Rows in what is discarded still show in the view, but it is asked only about what is outside.
        let view = self.commit.view()?;
        let mut uncovered = |part| self.hole_bytes(&view, ino, row, part);
        Ok(overlay.plan_discard(range, row.mtime, row.allocated, &mut uncovered)?)
    }

    /// Carries out a planned and committed discard, and gives back what the discarded bytes held of the budgets.
    pub(super) fn cut(&self, state: &mut State, cut: Option<Discard>) {
        let (Some(overlay), Some(cut)) = (&mut state.overlay, cut) else { return };
        let before = overlay.hot_bytes();
        overlay.discard(cut);
        let hot = overlay.hot_bytes();
        self.hot_budget.release(before - hot);
        state.spill.iter_mut().for_each(|held| held.shrink_to(hot));
        if overlay.is_clean(state.row.size) {
            self.drop_overlay(state);
        }
        self.count_uncommitted(state);
    }

    /// Bytes of `range` that are hole in the committed content that `row` describes.
    pub(super) fn hole_bytes(
        &self,
        view: &dyn store::kv::Snapshot,
        ino: Ino,
        row: &InodeRow,
        range: ByteRange,
    ) -> store::Result<u64> {
        match row.form {
            ContentForm::Empty => Ok(range.len()),
            ContentForm::Inline => Ok(range.len() - range.intersect(&ByteRange::new(0, row.size)).len()),
            // Also beyond the end, where room may have been allocated.
            ContentForm::Manifest => hole_bytes(view, ino, range),
        }
    }

    /// Takes rows in `range` off in batches of bounded size (rule R17) until the rest fits one; a crash in between leaves
    /// holes only where the caller asked for them.
    pub(super) fn thin_out(&self, ino: Ino, state: &mut State, range: ByteRange) -> Result<()> {
        loop {
            let view = self.commit.view()?;
            if rows(&view, ino, range, ROWS_PER_STEP)?.len() < ROWS_PER_STEP {
                return Ok(());
            }
            self.remove_rows(ino, state, range)?;
        }
    }

    pub(super) fn inline_bytes(&self, ino: Ino) -> store::Result<Vec<u8>> {
        let missing =
            || store::Error::new(store::Kind::Corrupt, format!("inline content of inode {ino} is missing"));
        self.commit.get(INLINE, &ino_key(ino))?.ok_or_else(missing)
    }
}

/// What there is to do for a new size.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resize {
    /// Nothing but to commit the row.
    Committed,
    /// The overlay grows to this size.
    Uncommitted(u64),
    /// This range goes.
    Shorter(ByteRange),
}

/// Adds the row of a seal, if there is one.
pub(super) fn put_seal(change: &mut Change, ino: Ino, seal: Option<&Seal>) {
    if let Some(seal) = seal {
        change.batch.put(OVERLAY, pair_key(ino.0, seal.number), seal.encode());
    }
}

fn check_size(inode: &Inode, size: u64) -> Result<()> {
    match inode.kind {
        FileKind::Directory => Err(Error::IsDirectory),
        FileKind::Regular if size <= FILE_BYTES_MAX => Ok(()),
        FileKind::Regular => Err(Error::FileTooLarge),
        _ => Err(Error::Invalid),
    }
}

/// Applies everything but the size.
fn apply(row: &mut InodeRow, caller: &Caller<'_>, set: &SetAttr, now: Timestamp) {
    let time = |time: SetTime| match time {
        SetTime::Now => now,
        SetTime::At(at) => at,
    };
    if let Some(mode) = set.mode {
        row.mode = mode & MODE_BITS;
    } else if row.kind != FileKind::Directory && set.takes_privileges() {
        let is_kept =
            row.mode & (S_ISUID | S_ISGID) == 0 || set.size.is_some() && caller.rights.keeps_set_id();
        if !is_kept {
            clear_set_id(row, caller);
        }
    }
    row.uid = set.uid.unwrap_or(row.uid);
    row.gid = set.gid.unwrap_or(row.gid);
    if set.size.is_some() {
        row.mtime = now;
    }
    row.atime = set.atime.map_or(row.atime, time);
    row.mtime = set.mtime.map_or(row.mtime, time);
    row.ctime = now;
}
