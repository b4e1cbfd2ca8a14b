//! New names for new inodes: create, mknod, mkdir, symlink.

use std::sync::Arc;

use super::change::Change;
use super::error::{Error, Result};
use super::inode::{Attr, Inode};
use super::{Caller, Vfs, new_row};
use crate::base::attr::{FileKind, S_ISGID};
use crate::base::ids::{Fh, Ino};
use crate::base::limits::{LINKS_MAX, SYMLINK_BYTES_MAX};
use crate::base::name::Name;
use crate::store::schema::inode::{ContentForm, DentryRow, InodeRow};
use crate::store::schema::{INLINE, ino_key};
use crate::vfs::OpenFlags;

impl Vfs {
    /// Makes a file of any kind but directory and symlink. `mode` has the kind's bits.
    ///
    /// # Errors
    /// `Exists`, `NotDirectory`, `Invalid` for a mode of another kind, `ReadOnly`, `NoSpace`.
    pub fn mknod(&self, caller: &Caller<'_>, parent: Ino, name: &Name, mode: u32, rdev: u32) -> Result<Attr> {
        let kind = FileKind::from_mode(mode).ok_or(Error::Invalid)?;
        if matches!(kind, FileKind::Directory | FileKind::Symlink) {
            return Err(Error::Invalid);
        }
        let row = InodeRow { rdev, ..self.row_for(kind, mode, caller) };
        let inode = self.add_entry(caller, parent, name, row, None)?;
        Ok(self.introduce(&inode))
    }

    /// Makes a regular file and opens it. If the name exists already, `Exists`: the kernel looks up first and sends
    /// `open` for what is there.
    ///
    /// # Errors
    /// As [`Self::mknod`].
    pub fn create(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        parent: Ino,
        name: &Name,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Fh)> {
        let row = self.row_for(FileKind::Regular, mode, caller);
        let inode = self.add_entry(caller, parent, name, row, None)?;
        let attr = self.introduce(&inode);
        Ok((attr, self.open_inode(inode, flags)))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`Self::mknod`]; `TooManyLinks` if the parent has 65,000 links.
    pub fn mkdir(&self, caller: &Caller<'_>, parent: Ino, name: &Name, mode: u32) -> Result<Attr> {
        let row = self.row_for(FileKind::Directory, mode, caller);
        let inode = self.add_entry(caller, parent, name, row, None)?;
        Ok(self.introduce(&inode))
    }

    /// Makes a symlink to `target`.
    ///
    /// # Errors
    /// As [`Self::mknod`]; `NameTooLong` above 4,095 bytes, `NotFound` for an empty target.
    pub fn symlink(&self, caller: &Caller<'_>, parent: Ino, name: &Name, target: &[u8]) -> Result<Attr> {
        if target.is_empty() {
            return Err(Error::NotFound);
        }
        if target.len() > SYMLINK_BYTES_MAX {
            return Err(Error::NameTooLong);
        }
        let row = InodeRow {
            size: target.len() as u64,
            form: ContentForm::Inline,
            ..self.row_for(FileKind::Symlink, 0o777, caller)
        };
        let inode = self.add_entry(caller, parent, name, row, Some(target))?;
        Ok(self.introduce(&inode))
    }

    fn row_for(&self, kind: FileKind, mode: u32, caller: &Caller) -> InodeRow {
        new_row(kind, mode, (caller.uid, caller.gid), self.clock.now())
    }

    /// Commits a new inode and its entry.
    fn add_entry(
        &self,
        caller: &Caller<'_>,
        parent: Ino,
        name: &Name,
        mut row: InodeRow,
        target: Option<&[u8]>,
    ) -> Result<Arc<Inode>> {
        self.writable()?;
        let dir = self.directory(parent)?;
        let ino = Ino(self.inode_numbers.next(&self.commit)?);

        let mut state = dir.lock();

        let is_directory = row.kind == FileKind::Directory;
        if state.row.nlink == 0 {
            return Err(Error::NotFound);
        }
        if self.find(parent, name)?.is_some() {
            return Err(Error::Exists);
        }
        if is_directory && LINKS_MAX <= state.row.nlink {
            return Err(Error::TooManyLinks);
        }
        let cookie = self.free_cookie(parent, name)?;

        inherit_group(&state.row, &mut row);
        row.parent = if is_directory { parent } else { Ino(0) };
        let mut parent_row = state.row.clone();
        parent_row.mtime = row.ctime;
        parent_row.ctime = row.ctime;
        parent_row.nlink += u32::from(is_directory);
        let mut change = Change::default();
        let xattrs = self.plan_inheritance((&dir, &mut state), (ino, &mut row), caller.umask, &mut change)?;
        change.add_inode(ino, &row);
        change.put_dentry(parent, cookie, &DentryRow { ino, kind: row.kind, name: name.clone() });
        change.put_inode(parent, &state.row, &parent_row);
        if let Some(target) = target {
            change.batch.put(INLINE, ino_key(ino), target);
        }

        let _ticket = change.submit(&self.commit)?;

        state.row = parent_row;
        drop(state);
        Ok(self.table.adopt(Inode::made(ino, row, xattrs)))
    }
}

/// In a directory with the setgid bit new files get its group, and new directories the bit too.
fn inherit_group(parent: &InodeRow, row: &mut InodeRow) {
    if parent.mode & S_ISGID == 0 {
        return;
    }
    row.gid = parent.gid;
    if row.kind == FileKind::Directory {
        row.mode |= S_ISGID;
    }
}
