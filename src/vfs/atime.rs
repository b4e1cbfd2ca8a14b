//! Access times: renewed in memory by reads, as relatime has it, and committed when the inode leaves memory, when everything is
//! brought into the store, and with whatever else changes the inode.

use std::sync::Arc;

use super::Vfs;
use super::change::Change;
use super::error::Result;
use super::inode::{Inode, State};

/// atime is renewed after this long even if nothing changed, as the kernel's relatime has it.
const ATIME_AGE_SECS: i64 = 24 * 3600;

impl Vfs {
    /// relatime: atime moves when it is not newer than the last change, or a day old.
    pub(super) fn touch_atime(&self, state: &mut State) {
        if self.options.read_only {
            return;
        }
        let now = self.clock.now();
        let written = state.overlay.as_ref().and_then(|overlay| overlay.touched());
        let row = &mut state.row;
        let changed = written.unwrap_or(row.mtime).max(row.ctime);
        if row.atime <= changed || row.atime.secs + ATIME_AGE_SECS <= now.secs {
            row.atime = now;
            state.atime_renewed = true;
        }
    }

    /// Commits a renewed atime. Losing one to an error harms nobody: the next read renews it.
    pub(super) fn keep_atime(&self, inode: &Inode) {
        if let Err(error) = self.commit_atime(inode) {
            tracing::debug!(ino = inode.ino.0, %error, "keep atime");
        }
    }

    /// Commits all renewed atimes of inodes in memory.
    pub(super) fn keep_atimes(&self) {
        self.table.all().iter().for_each(|inode: &Arc<Inode>| self.keep_atime(inode));
    }

    fn commit_atime(&self, inode: &Inode) -> Result<()> {
        let mut state = inode.lock();
        let is_renewed = std::mem::take(&mut state.atime_renewed);
        if !is_renewed || state.row.nlink == 0 || inode.is_reaped() {
            return Ok(());
        }
        self.writable()?;
        let mut change = Change::default();
        change.put_inode(inode.ino, &state.row, &state.row);
        let _ticket = change.submit(&self.commit)?;
        Ok(())
    }
}
