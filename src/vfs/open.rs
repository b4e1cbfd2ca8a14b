//! Opening and closing regular files.

use std::sync::{Arc, Mutex};

use super::error::{Error, Result};
use super::handle::{Handle, OpenFlags};
use super::inode::Inode;
use super::read::Readahead;
use super::{Caller, SetAttr, Vfs};
use crate::base::attr::FileKind;
use crate::base::ids::{Fh, Ino};

impl Vfs {
    /// Opens a regular file.
    ///
    /// # Errors
    /// `IsDirectory`, `Invalid` for other kinds (the kernel opens those itself), `Stale`; as `setattr` if it truncates.
    pub fn open_file(self: &Arc<Self>, caller: &Caller<'_>, ino: Ino, flags: OpenFlags) -> Result<Fh> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Error::IsDirectory),
            _ => return Err(Error::Invalid),
        }
        if flags.truncate {
            self.setattr(caller, ino, &SetAttr { size: Some(0), ..SetAttr::default() })?;
        }
        Ok(self.open_inode(inode, flags))
    }

    pub(super) fn open_inode(&self, inode: Arc<Inode>, flags: OpenFlags) -> Fh {
        let failures_seen = {
            let mut state = inode.lock();
            state.opens += 1;
            state.failures
        };
        self.handles.add(Handle {
            inode,
            flags,
            readahead: Mutex::new(Readahead::default()),
            failures_seen: Mutex::new(failures_seen),
        })
    }

    /// Closes a handle. Nothing durable waits for this: the kernel sends it when it likes.
    pub fn release(self: &Arc<Self>, fh: Fh) {
        let Some(handle) = self.handles.remove(fh) else { return };
        handle.inode.lock().opens -= 1;
        self.reap_if_unused(&handle.inode);
    }
}
