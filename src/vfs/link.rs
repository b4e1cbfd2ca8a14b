//! Another name for an inode.

use super::Vfs;
use super::change::Change;
use super::error::{Error, Result};
use super::inode::Attr;
use super::locks::LockSet;
use crate::base::attr::FileKind;
use crate::base::ids::Ino;
use crate::base::limits::LINKS_MAX;
use crate::base::name::Name;
use crate::store::schema::inode::DentryRow;

impl Vfs {
    /// Makes `name` in `parent` another link to `ino`.
    ///
    /// # Errors
    /// `NotPermitted` for a directory, `NotFound` if the inode has no link left, `Exists`, `TooManyLinks`.
    pub fn link(&self, ino: Ino, parent: Ino, name: &Name) -> Result<Attr> {
        self.writable()?;
        let (inode, dir) = (self.inode(ino)?, self.directory(parent)?);
        if inode.kind == FileKind::Directory {
            return Err(Error::NotPermitted);
        }

        let mut locks = LockSet::of(&[&inode, &dir]);

        if self.find(parent, name)?.is_some() {
            return Err(Error::Exists);
        }
        let (file_row, dir_row) = (locks.get(&inode).row.clone(), locks.get(&dir).row.clone());
        if file_row.nlink == 0 || dir_row.nlink == 0 {
            return Err(Error::NotFound);
        }
        if LINKS_MAX <= file_row.nlink {
            return Err(Error::TooManyLinks);
        }
        let cookie = self.free_cookie(parent, name)?;

        let now = self.clock.now();
        let (mut new_file, mut new_dir) = (file_row.clone(), dir_row.clone());
        new_file.nlink += 1;
        new_file.ctime = now;
        (new_dir.mtime, new_dir.ctime) = (now, now);
        let mut change = Change::default();
        change.put_dentry(parent, cookie, &DentryRow { ino, kind: inode.kind, name: name.clone() });
        change.put_inode(ino, &file_row, &new_file);
        change.put_inode(parent, &dir_row, &new_dir);

        let _ticket = change.submit(&self.commit)?;

        locks.get(&inode).row = new_file;
        locks.get(&dir).row = new_dir;
        drop(locks);
        Ok(self.introduce(&inode))
    }
}
