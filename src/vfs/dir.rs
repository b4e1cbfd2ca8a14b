//! Reading directories. An entry's cookie is part of its row, so a position stays good whatever is created or removed
//! around it, and across remounts.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::Vfs;
use super::error::{Error, Result};
use super::inode::Attr;
use super::lookup::parse_cookie;
use crate::base::attr::FileKind;
use crate::base::ids::Ino;
use crate::store::kv::Snapshot;
use crate::store::schema::inode::DentryRow;
use crate::store::schema::{Cookie, DENTRY, ino_key_end};

/// Positions of `.` and `..`; stored cookies are above.
const DOT: u64 = 1;
const DOTDOT: u64 = 2;

/// Entries taken from the metadata at once, between which nothing is held.
const ENTRIES_PER_SCAN: usize = 512;

/// An entry as readdir reports it.
#[derive(Debug)]
pub struct DirEntry<'a> {
    pub ino: Ino,
    pub kind: FileKind,
    pub name: &'a [u8],
    /// Ask from here to go on after this entry.
    pub cookie: u64,
}

/// Takes entries until it is full.
pub trait DirSink {
    /// Takes an entry; false if there was no room for it.
    fn add(&mut self, entry: &DirEntry<'_>) -> bool;
}

impl Vfs {
    /// Reports entries after position `after` (0 is the start) until `sink` is full.
    ///
    /// # Errors
    /// `NotDirectory`, `Stale`, of the metadata.
    pub fn readdir(&self, dir: Ino, after: u64, sink: &mut dyn DirSink) -> Result<()> {
        let inode = self.directory(dir)?;
        let parent = {
            let mut state = inode.lock();
            if after == 0 {
                self.touch_atime(&mut state);
            }
            state.row.parent
        };
        let dots = [(DOT, dir, &b"."[..]), (DOTDOT, parent, b"..")];
        for (cookie, ino, name) in dots.into_iter().filter(|(cookie, ..)| after < *cookie) {
            if !sink.add(&DirEntry { ino, kind: FileKind::Directory, name, cookie }) {
                return Ok(());
            }
        }
        let mut after = Cookie(after.max(DOTDOT));
        loop {
            let entries = self.entries(dir, after)?;
            for (cookie, entry) in &entries {
                let name = entry.name.as_bytes();
                if !sink.add(&DirEntry { ino: entry.ino, kind: entry.kind, name, cookie: cookie.0 }) {
                    return Ok(());
                }
                after = *cookie;
            }
            if entries.len() < ENTRIES_PER_SCAN {
                return Ok(());
            }
        }
    }

    fn entries(&self, dir: Ino, after: Cookie) -> Result<Vec<(Cookie, DentryRow)>> {
        let mut entries = Vec::new();
        let view = self.commit.view()?;
        let from = Cookie(after.0 + 1).key(dir);
        view.scan(DENTRY, &from, Some(&ino_key_end(dir)), &mut |key, value| {
            entries.push((parse_cookie(key)?, DentryRow::decode(value)?));
            let full = entries.len() == ENTRIES_PER_SCAN;
            Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(entries)
    }

    /// Attributes of an entry for readdirplus; counts as a kernel lookup. None if it has been removed meanwhile.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn introduce_entry(&self, ino: Ino) -> Result<Option<Attr>> {
        match self.inode(ino) {
            Err(Error::Stale) => Ok(None),
            inode => Ok(Some(self.introduce(&inode?))),
        }
    }

    /// Checks that a directory can be opened.
    ///
    /// # Errors
    /// `NotDirectory`, `Stale`.
    pub fn opendir(self: &Arc<Self>, dir: Ino) -> Result<()> {
        self.directory(dir).map(drop)
    }
}
