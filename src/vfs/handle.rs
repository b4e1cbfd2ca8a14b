//! Open files.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::error::{Error, Result};
use super::inode::Inode;
use super::read::Readahead;
use crate::base::ids::Fh;
use crate::base::sync::lock;

/// Flags of `open(2)` that concern us. O_APPEND and the access mode are the kernel's business: it sends the offsets, and
/// it reads through write-only handles to fill pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenFlags {
    /// Discard the content.
    pub truncate: bool,
    /// O_SYNC or O_DSYNC: every write is an fsync too.
    pub sync: bool,
}

/// An open file.
pub(super) struct Handle {
    pub(super) inode: Arc<Inode>,
    pub(super) flags: OpenFlags,
    /// Where reads have been; leaf lock.
    pub(super) readahead: Mutex<Readahead>,
    /// Failures of the inode this handle has reported; leaf lock.
    pub(super) failures_seen: Mutex<u64>,
}

/// Handles by the number the kernel sends.
#[derive(Default)]
pub(super) struct HandleTable {
    /// Leaf lock.
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    by_fh: HashMap<Fh, Arc<Handle>>,
    last: u64,
}

impl HandleTable {
    pub(super) fn add(&self, handle: Handle) -> Fh {
        let mut open = lock(&self.open);
        open.last += 1;
        let fh = Fh(open.last);
        open.by_fh.insert(fh, Arc::new(handle));
        fh
    }

    /// # Errors
    /// `BadHandle` for one that is not open.
    pub(super) fn get(&self, fh: Fh) -> Result<Arc<Handle>> {
        lock(&self.open).by_fh.get(&fh).cloned().ok_or(Error::BadHandle)
    }

    pub(super) fn remove(&self, fh: Fh) -> Option<Arc<Handle>> {
        lock(&self.open).by_fh.remove(&fh)
    }
}
