//! The lock order, and the only code that locks several inodes.
//!
//! 1. `rename` token of the mount, for a directory that moves to another parent: keeps the tree's shape still.
//! 2. Inode locks, all that an operation needs at once, ascending by number. An operation that learns from a locked
//!    directory which child it needs unlocks, locks both, and checks again.
//! 3. Leaves, each alone and short: inode table, handle table, committer, block store, queues.
//!
//! Never wait for the object store, a byte budget or a disk sync under 1 or 2, and reply after unlocking.

use std::sync::{Arc, MutexGuard};

use super::inode::{Inode, State};
use crate::base::ids::Ino;

/// Several locked inodes.
pub(super) struct LockSet<'a>(Vec<(Ino, MutexGuard<'a, State>)>);

impl<'a> LockSet<'a> {
    /// Locks all of `inodes`; one may be named twice.
    pub(super) fn of(inodes: &[&'a Arc<Inode>]) -> Self {
        let mut sorted = inodes.to_vec();
        sorted.sort_by_key(|inode| inode.ino);
        sorted.dedup_by_key(|inode| inode.ino);
        Self(sorted.into_iter().map(|inode| (inode.ino, inode.lock())).collect())
    }

    /// The state of `inode`, which must be one of the set.
    pub(super) fn get(&mut self, inode: &Inode) -> &mut State {
        let locked = self.0.iter_mut().find(|(ino, _)| *ino == inode.ino);
        &mut locked.expect("asked only for inodes that were locked").1
    }
}
