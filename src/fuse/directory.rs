//! Filling the two kinds of directory replies.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::Duration;

use fuser::{Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::convert::{Presentation, file_type};
use crate::store;
use crate::vfs::{Attr, DirEntry, DirSink, Error, Result, Vfs};

/// Names and kinds.
pub(super) struct Listing {
    pub(super) reply: ReplyDirectory,
}

impl DirSink for Listing {
    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        let name = OsStr::from_bytes(entry.name);
        let is_full = self.reply.add(INodeNo(entry.ino.0), entry.cookie, file_type(entry.kind), name);
        !is_full
    }
}

/// Names and attributes; each entry but the dots counts as a lookup.
pub(super) struct ListingPlus<'a> {
    pub(super) reply: ReplyDirectoryPlus,
    vfs: &'a Arc<Vfs>,
    presentation: Presentation,
    ttl: Duration,
    /// What ended the listing before it was full.
    pub(super) failure: Option<Error>,
}

impl<'a> ListingPlus<'a> {
    pub(super) fn new(
        reply: ReplyDirectoryPlus,
        vfs: &'a Arc<Vfs>,
        presentation: Presentation,
        ttl: Duration,
    ) -> Self {
        Self { reply, vfs, presentation, ttl, failure: None }
    }

    /// Attributes to send; None if the entry has gone meanwhile.
    fn attr(&self, entry: &DirEntry<'_>) -> Result<Option<Attr>> {
        match is_dot(entry.name) {
            // The kernel takes these as names only, and never forgets them.
            true => self.vfs.getattr(entry.ino).map(Some),
            false => self.vfs.introduce_entry(entry.ino),
        }
    }
}

impl DirSink for ListingPlus<'_> {
    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        let attr = match self.attr(entry) {
            Ok(Some(attr)) => self.presentation.show(&attr),
            Ok(None) => return true,
            Err(error) => {
                self.failure = Some(error);
                return false;
            }
        };
        let (number, name) = (INodeNo(entry.ino.0), OsStr::from_bytes(entry.name));
        let is_full = self.reply.add(number, entry.cookie, name, &self.ttl, &attr, Generation(0));
        if is_full && !is_dot(entry.name) {
            self.vfs.forget(entry.ino, 1);
        }
        !is_full
    }
}

fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// The outcome of a request whose work panicked while its reply was elsewhere.
pub(super) fn panicked() -> Result<()> {
    let detail = "request panicked";
    Err(Error::Io(store::Error::new(store::Kind::Internal, detail)))
}
