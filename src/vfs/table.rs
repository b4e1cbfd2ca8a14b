//! Inodes in memory by number, and how often the kernel has looked each of them up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use super::error::{Error, Result};
use super::inode::Inode;
use crate::base::ids::Ino;
use crate::base::sync::lock;
use crate::commit::Committer;
use crate::store::schema::inode::InodeRow;
use crate::store::schema::{INODE, ino_key};

/// Slots beyond twice the live ones trigger a sweep, but not below this.
const SWEEP_SLOTS_MIN: usize = 4096;

/// The kernel's references keep an inode here; so do handles and unflushed content, which hold the `Arc`.
#[derive(Default)]
pub(super) struct InodeTable {
    /// Leaf lock: nothing else is taken under it.
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    by_ino: HashMap<Ino, Slot>,
    sweep_at: usize,
}

struct Slot {
    inode: Weak<Inode>,
    /// The kernel's reference, present while `lookups` is not 0.
    kernel: Option<Arc<Inode>>,
    lookups: u64,
}

impl InodeTable {
    /// The inode, from memory or from its row.
    ///
    /// # Errors
    /// `Stale` if it has no row.
    pub(super) fn get(&self, ino: Ino, commit: &Committer) -> Result<Arc<Inode>> {
        if let Some(inode) = self.known(ino) {
            return if inode.is_reaped() { Err(Error::Stale) } else { Ok(inode) };
        }
        let row = commit.get(INODE, &ino_key(ino))?.ok_or(Error::Stale)?;
        let row = InodeRow::decode(&row).map_err(crate::store::Error::from)?;
        Ok(self.adopt(Inode::new(ino, row)))
    }

    /// The inode if it is in memory.
    pub(super) fn known(&self, ino: Ino) -> Option<Arc<Inode>> {
        lock(&self.slots).by_ino.get(&ino)?.inode.upgrade()
    }

    /// All inodes in memory.
    pub(super) fn all(&self) -> Vec<Arc<Inode>> {
        lock(&self.slots).by_ino.values().filter_map(|slot| slot.inode.upgrade()).collect()
    }

    /// Adds an inode; if another thread was first, that one is returned.
    pub(super) fn adopt(&self, inode: Inode) -> Arc<Inode> {
        let mut slots = lock(&self.slots);
        if let Some(first) = slots.by_ino.get(&inode.ino).and_then(|slot| slot.inode.upgrade()) {
            return first;
        }
        if slots.sweep_at.max(SWEEP_SLOTS_MIN) <= slots.by_ino.len() {
            slots.by_ino.retain(|_, slot| slot.inode.strong_count() > 0);
            slots.sweep_at = 2 * slots.by_ino.len();
        }
        let inode = Arc::new(inode);
        let slot = Slot { inode: Arc::downgrade(&inode), kernel: None, lookups: 0 };
        slots.by_ino.insert(inode.ino, slot);
        inode
    }

    /// Counts a reply that tells the kernel of the inode.
    pub(super) fn looked_up(&self, inode: &Arc<Inode>) {
        let mut slots = lock(&self.slots);
        let slot = slots.by_ino.entry(inode.ino).or_insert_with(|| Slot {
            inode: Arc::downgrade(inode),
            kernel: None,
            lookups: 0,
        });
        slot.lookups += 1;
        slot.kernel.get_or_insert_with(|| Arc::clone(inode));
    }

    /// Takes back `count` lookups; returns the inode if the kernel knows it no longer.
    pub(super) fn forget(&self, ino: Ino, count: u64) -> Option<Arc<Inode>> {
        let mut slots = lock(&self.slots);
        let slot = slots.by_ino.get_mut(&ino)?;
        slot.lookups = slot.lookups.saturating_sub(count);
        if slot.lookups == 0 { slot.kernel.take() } else { None }
    }

    /// True if the kernel knows the inode.
    pub(super) fn is_looked_up(&self, ino: Ino) -> bool {
        lock(&self.slots).by_ino.get(&ino).is_some_and(|slot| slot.lookups > 0)
    }
}
