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
use crate::content::overlay::Overlay;
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
            self.shorten_in_steps(&inode, size)?;
        }

        let mut state = inode.lock();

        let now = self.clock.now();
        let mut row = state.row.clone();
        let mut change = Change::default();
        let cut = match set.size {
            Some(size) => Some(self.plan_size(&inode, &mut state, &mut row, size, &mut change)?),
            None => None,
        };
        if let Some(mode) = set.mode {
            self.plan_chmod(&inode, &mut state, mode, &mut change)?;
        }
        let mut xattrs = state.xattrs;
        if set.takes_privileges() && inode.kind != FileKind::Directory {
            xattrs = Some(self.xattrs(&inode, &mut state)?.plan_no_capability(ino, &mut change));
        }
        apply(&mut row, caller, set, now);
        change.put_inode(ino, &state.row, &row);

        let _ticket = change.submit(&self.commit)?;

        state.row = row;
        state.xattrs = xattrs;
        if cut == Some(Resize::Uncommitted) {
            let size = set.size.expect("only a size is uncommitted");
            self.overlay(&mut state).truncate(size, now);
            self.note_hot(&inode, &state);
        }
        if set.mtime.is_some() {
            let mtime = state.row.mtime;
            state.overlay.iter_mut().for_each(|overlay| overlay.clear_touched(mtime));
        }
        Ok(state.attr(ino))
    }

    /// Plans the new size. What shrinks is cut at once; what grows a file whose bytes are not all committed is left to
    /// the overlay, so that nobody ever reads zeros where those bytes belong (rule R2).
    fn plan_size(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        state: &mut State,
        row: &mut InodeRow,
        size: u64,
        change: &mut Change,
    ) -> Result<Resize> {
        if row.form == ContentForm::Inline && self.options.inline_bytes_max < size {
            self.lift_inline(inode, state)?;
        }
        if size < state.size() {
            self.plan_discard(inode, state, row, ByteRange::new(size, u64::MAX), change)?;
            row.size = row.size.min(size);
            if let Some(overlay) = &mut state.overlay {
                self.cut_overlay(overlay, |overlay| overlay.truncate(size, row.mtime));
                self.recount(inode.ino, state, row)?;
                self.put_seals(inode.ino, state, change);
            }
            return Ok(Resize::Committed);
        }
        if state.overlay.is_some() {
            return Ok(Resize::Uncommitted);
        }
        if row.form == ContentForm::Inline && row.size < size {
            let mut bytes = self.inline_bytes(inode.ino)?;
            bytes.resize(usize::try_from(size).expect("at most inline_bytes_max"), 0);
            row.allocated = size;
            change.batch.put(INLINE, ino_key(inode.ino), bytes);
        }
        row.size = size;
        Ok(Resize::Committed)
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
                if cut.end == len {
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

    /// Runs `cut` on the overlay and gives back the memory budget of what it discarded.
    pub(super) fn cut_overlay(&self, overlay: &mut Overlay, cut: impl FnOnce(&mut Overlay)) {
        let before = overlay.hot_bytes();
        cut(overlay);
        self.hot_budget.release(before - overlay.hot_bytes());
    }

    /// Recounts allocated bytes after a discard, against `row`, which is not committed yet: rows in what was discarded
    /// still show in the view, but so far nothing of the overlay lies over them.
    pub(super) fn recount(&self, ino: Ino, state: &mut State, row: &InodeRow) -> Result<()> {
        let Some(overlay) = &mut state.overlay else { return Ok(()) };
        let view = self.commit.view()?;
        let mut failed = None;
        overlay.recount(row.allocated, &mut |range| {
            self.hole_bytes(&view, ino, row, range).unwrap_or_else(|error| {
                failed = Some(error);
                0
            })
        });
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Bytes of `range` that are hole in the committed content that `row` describes.
    pub(super) fn hole_bytes(
        &self,
        view: &dyn store::kv::Snapshot,
        ino: Ino,
        row: &InodeRow,
        range: ByteRange,
    ) -> store::Result<u64> {
        let inside = range.intersect(&ByteRange::new(0, row.size));
        let beyond = range.len() - inside.len();
        if inside.is_empty() || row.size <= row.allocated {
            return Ok(beyond);
        }
        match row.form {
            ContentForm::Empty => Ok(range.len()),
            ContentForm::Inline => Ok(beyond),
            ContentForm::Manifest => Ok(beyond + hole_bytes(view, ino, inside)?),
        }
    }

    /// Writes the rows of all seals anew, after bytes of theirs were discarded.
    pub(super) fn put_seals(&self, ino: Ino, state: &State, change: &mut Change) {
        for seal in state.overlay.iter().flat_map(|overlay| overlay.seals()) {
            change.batch.put(OVERLAY, pair_key(ino.0, seal.number), seal.encode());
        }
    }

    /// Truncating a file of very many rows takes them off in batches of bounded size (rule R17); a crash in between
    /// leaves holes only where the caller asked for nothing.
    fn shorten_in_steps(&self, inode: &Inode, size: u64) -> Result<()> {
        let tail = ByteRange::new(size, u64::MAX);
        loop {
            let view = self.commit.view()?;
            if rows(&view, inode.ino, tail, ROWS_PER_STEP)?.len() < ROWS_PER_STEP {
                return Ok(());
            }
            self.remove_rows(inode, tail)?;
        }
    }

    pub(super) fn inline_bytes(&self, ino: Ino) -> store::Result<Vec<u8>> {
        let missing =
            || store::Error::new(store::Kind::Corrupt, format!("inline content of inode {ino} is missing"));
        self.commit.get(INLINE, &ino_key(ino))?.ok_or_else(missing)
    }
}

/// What became of a new size.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resize {
    Committed,
    Uncommitted,
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
