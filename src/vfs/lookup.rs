//! Finding names, and counting what the kernel knows.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::error::{Error, Result};
use super::inode::{Attr, Inode};
use super::{Pending, Vfs};
use crate::base::ids::Ino;
use crate::base::name::Name;
use crate::store;
use crate::store::schema::inode::DentryRow;
use crate::store::schema::{COOKIES_PER_HASH, Cookie, DENTRY};

impl Vfs {
    /// The inode called `name` in `parent`, or None. Some counts as one kernel lookup.
    ///
    /// # Errors
    /// `NotDirectory`, `Stale`, of the metadata.
    pub fn lookup(&self, parent: Ino, name: &Name) -> Result<Option<Attr>> {
        let parent = self.directory(parent)?;
        let Some((_, entry)) = self.find(parent.ino, name)? else { return Ok(None) };
        let inode = match self.inode(entry.ino) {
            // Unlinked and reaped since the entry was read.
            Err(Error::Stale) => return Ok(None),
            found => found?,
        };
        Ok(Some(self.introduce(&inode)))
    }

    /// The parent of a directory, for `..`.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn parent(&self, dir: Ino) -> Result<Ino> {
        Ok(self.directory(dir)?.lock().row.parent)
    }

    /// Takes back `count` kernel lookups of an inode.
    pub fn forget(self: &Arc<Self>, ino: Ino, count: u64) {
        if let Some(inode) = self.table.forget(ino, count) {
            self.keep_atime(&inode);
            self.reap_if_unused(&inode);
        }
    }

    /// Attributes for a reply that makes the kernel know the inode.
    pub(super) fn introduce(&self, inode: &Arc<Inode>) -> Attr {
        let attr = inode.lock().attr(inode.ino);
        self.table.looked_up(inode);
        attr
    }

    /// The entry called `name`, and its place.
    pub(super) fn find(&self, parent: Ino, name: &Name) -> store::Result<Option<(Cookie, DentryRow)>> {
        let mut found = None;
        self.probe(parent, name, &mut |cookie, entry| {
            if entry.name == *name {
                found = Some((cookie, entry));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// A free place for `name`, which must not be in `parent`.
    ///
    /// # Errors
    /// `NoSpace` if all places of the name's hash are taken.
    pub(super) fn free_cookie(&self, parent: Ino, name: &Name) -> Result<Cookie> {
        let first = Cookie::first_of(name);
        let mut free = first;
        self.probe(parent, name, &mut |cookie, _| {
            if cookie != free {
                return ControlFlow::Break(());
            }
            free = Cookie(cookie.0 + 1);
            ControlFlow::Continue(())
        })?;
        if free.0 - first.0 < COOKIES_PER_HASH { Ok(free) } else { Err(Error::NoSpace) }
    }

    /// Visits the entries whose names share `name`'s hash.
    fn probe(
        &self,
        parent: Ino,
        name: &Name,
        visit: &mut dyn FnMut(Cookie, DentryRow) -> ControlFlow<()>,
    ) -> store::Result<()> {
        let first = Cookie::first_of(name);
        let end = Cookie(first.0 + COOKIES_PER_HASH).key(parent);
        let view = self.commit.view()?;
        store::kv::Snapshot::scan(&view, DENTRY, &first.key(parent), Some(&end), &mut |key, value| {
            let cookie = parse_cookie(key)?;
            Ok(visit(cookie, DentryRow::decode(value)?))
        })
    }

    /// Attributes of an inode the kernel knows.
    ///
    /// # Errors
    /// `Stale`, of the metadata.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        let inode = self.inode(ino)?;
        Ok(inode.lock().attr(ino))
    }

    /// Target of a symlink.
    ///
    /// # Errors
    /// `Invalid` if it is not one.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        if inode.kind != crate::base::attr::FileKind::Symlink {
            return Err(Error::Invalid);
        }
        let target = self.commit.get(store::schema::INLINE, &store::schema::ino_key(ino))?;
        target.ok_or_else(|| {
            Error::Io(store::Error::new(store::Kind::Corrupt, format!("readlink {ino}: no target")))
        })
    }
}

/// The place in a key of the entry table.
pub(super) fn parse_cookie(key: &[u8]) -> store::Result<Cookie> {
    let malformed = || store::Error::new(store::Kind::Corrupt, "directory entry: malformed key");
    store::schema::parse_pair_key(key).map(|(_, cookie)| Cookie(cookie)).ok_or_else(malformed)
}

/// An answer that is known already.
pub(super) fn ready<T: Send + 'static>(answer: Result<T>) -> Pending<T> {
    Box::pin(std::future::ready(answer))
}
