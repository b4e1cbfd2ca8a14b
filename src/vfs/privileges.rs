//! What a change of owner or content takes from an executable: suid, sgid and file capabilities. Whoever changes a program
//! must not act with its rights.

use super::change::Change;
use super::error::Result;
use super::inode::Inode;
use super::xattr::XattrSummary;
use super::{Caller, Vfs};
use crate::base::attr::{S_ISGID, S_ISUID, S_IXGRP};
use crate::base::ids::{Fh, Ino};
use crate::store::schema::inode::InodeRow;
use crate::store::schema::{XATTR, xattr_key};

/// The attribute with a file's capabilities.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

impl Vfs {
    /// Takes file capabilities before a write; if the kernel wishes so, because `writer` lacks CAP_FSETID, suid and sgid
    /// too. True if something was taken: what the kernel has cached is no longer so.
    ///
    /// # Errors
    /// `BadHandle`, `ReadOnly`, of the metadata.
    pub fn kill_privileges(&self, fh: Fh, writer: Option<&Caller<'_>>) -> Result<bool> {
        self.writable()?;
        let handle = self.handles.get(fh)?;
        let inode: &Inode = &handle.inode;

        let mut state = inode.lock();

        let before = self.xattrs(inode, &mut state)?;
        let mut row = state.row.clone();
        let mut change = Change::default();
        let after = before.plan_no_capability(inode.ino, &mut change);
        let is_cleared = writer.is_some_and(|writer| clear_set_id(&mut row, writer));
        if before == after && !is_cleared {
            return Ok(false);
        }
        row.ctime = self.clock.now();
        change.put_inode(inode.ino, &state.row, &row);

        let _ticket = change.submit(&self.commit)?;

        state.row = row;
        state.xattrs = Some(after);
        Ok(true)
    }
}

impl XattrSummary {
    /// Plans that file capabilities go, if there are any; returns what is left.
    pub(super) fn plan_no_capability(mut self, ino: Ino, change: &mut Change) -> Self {
        if self.has_capability {
            change.batch.delete(XATTR, xattr_key(ino, CAPABILITY));
            self.remove(CAPABILITY);
        }
        self
    }
}

/// Clears suid; and sgid, but for a caller who may have it on files that their group may not execute, where it gives
/// nobody anything. True if a bit was set.
pub(super) fn clear_set_id(row: &mut InodeRow, caller: &Caller<'_>) -> bool {
    let before = row.mode;
    row.mode &= !S_ISUID;
    // Most files have neither bit, and then who asks is not looked up.
    if row.mode & S_ISGID != 0 && (row.mode & S_IXGRP != 0 || !caller.may_have_sgid_of(row.gid)) {
        row.mode &= !S_ISGID;
    }
    row.mode != before
}
