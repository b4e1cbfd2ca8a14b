//! Names that go: unlink and rmdir.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::Vfs;
use super::change::Change;
use super::error::{Error, Result};
use super::inode::Inode;
use super::locks::LockSet;
use crate::base::attr::FileKind;
use crate::base::ids::Ino;
use crate::base::name::Name;
use crate::base::time::Timestamp;
use crate::store::kv::Snapshot;
use crate::store::schema::inode::InodeRow;
use crate::store::schema::{Cookie, DENTRY, ORPHAN, ino_key, ino_key_end};

impl Vfs {
    /// Removes a name of anything but a directory. The inode lives on while it has names, handles or kernel lookups.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `ReadOnly`.
    pub fn unlink(&self, parent: Ino, name: &Name) -> Result<()> {
        self.remove_entry(parent, name, |kind| match kind {
            FileKind::Directory => Err(Error::IsDirectory),
            _ => Ok(()),
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NotEmpty`, `ReadOnly`.
    pub fn rmdir(&self, parent: Ino, name: &Name) -> Result<()> {
        self.remove_entry(parent, name, |kind| match kind {
            FileKind::Directory => Ok(()),
            _ => Err(Error::NotDirectory),
        })
    }

    fn remove_entry(
        &self,
        parent: Ino,
        name: &Name,
        check_kind: impl Fn(FileKind) -> Result<()>,
    ) -> Result<()> {
        self.writable()?;
        let dir = self.directory(parent)?;
        let (child, cookie) = self.child(parent, name)?;
        check_kind(child.kind)?;

        let mut locks = LockSet::of(&[&dir, &child]);

        if !self.is_still(parent, name, &child)? {
            drop(locks);
            return self.remove_entry(parent, name, check_kind);
        }
        self.check_empty(&child)?;

        let now = self.clock.now();
        let (dir_row, child_row) = (locks.get(&dir).row.clone(), locks.get(&child).row.clone());
        let mut change = Change::default();
        change.remove_dentry(parent, cookie);
        let new_child = drop_link(&mut change, child.ino, &child_row, now);
        let mut new_dir = dir_row.clone();
        (new_dir.mtime, new_dir.ctime) = (now, now);
        new_dir.nlink -= u32::from(child.kind == FileKind::Directory);
        change.put_inode(parent, &dir_row, &new_dir);

        let _ticket = change.submit(&self.commit)?;

        locks.get(&dir).row = new_dir;
        locks.get(&child).row = new_child;
        Ok(())
    }

    /// The inode called `name`, and the entry's place.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) fn child(&self, parent: Ino, name: &Name) -> Result<(Arc<Inode>, Cookie)> {
        let (cookie, entry) = self.find(parent, name)?.ok_or(Error::NotFound)?;
        match self.inode(entry.ino) {
            Err(Error::Stale) => Err(Error::NotFound),
            found => Ok((found?, cookie)),
        }
    }

    /// True if the entry read before locking still names `child`.
    pub(super) fn is_still(&self, parent: Ino, name: &Name, child: &Inode) -> Result<bool> {
        Ok(self.find(parent, name)?.is_some_and(|(_, entry)| entry.ino == child.ino))
    }

    /// # Errors
    /// `NotEmpty` if `inode`, which must be locked, is a directory with entries.
    pub(super) fn check_empty(&self, inode: &Inode) -> Result<()> {
        if inode.kind != FileKind::Directory {
            return Ok(());
        }
        let mut empty = true;
        let view = self.commit.view()?;
        view.scan(DENTRY, &ino_key(inode.ino), Some(&ino_key_end(inode.ino)), &mut |_, _| {
            empty = false;
            Ok(ControlFlow::Break(()))
        })?;
        if empty { Ok(()) } else { Err(Error::NotEmpty) }
    }
}

/// Takes a link off an inode's row; without any left it becomes an orphan, reaped when nothing uses it.
pub(super) fn drop_link(change: &mut Change, ino: Ino, row: &InodeRow, now: Timestamp) -> InodeRow {
    let mut new = row.clone();
    new.ctime = now;
    // A directory's second link is its own `.`.
    new.nlink = if row.kind == FileKind::Directory { 0 } else { row.nlink - 1 };
    if new.nlink == 0 {
        change.batch.put(ORPHAN, ino_key(ino), Vec::new());
    }
    change.put_inode(ino, row, &new);
    new
}
