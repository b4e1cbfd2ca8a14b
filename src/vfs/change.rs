//! A batch in the making, in terms of the schema.

use crate::base::attr::FileKind;
use crate::base::ids::Ino;
use crate::commit::{Batch, Committer, Ticket};
use crate::content::manifest::RowChanges;
use crate::store::Result;
use crate::store::block::BlockLocation;
use crate::store::block::{Receipt, UploadTicket};
use crate::store::merge::Delta;
use crate::store::schema::inode::{DentryRow, InodeRow};
use crate::store::schema::merge::{block_referenced, count, pack_acknowledged, segment_refs};
use crate::store::schema::{
    Cookie, Counter, DENTRY, INODE, MANIFEST, SEGMENT, ino_key, pair_key, segment_key,
};

/// See the module. The vfs holds the locks of all rows it puts absolutely; shared rows change by deltas (rule R4).
#[derive(Default)]
pub(super) struct Change {
    pub(super) batch: Batch,
}

impl Change {
    /// A new inode's row, counted.
    pub(super) fn add_inode(&mut self, ino: Ino, row: &InodeRow) {
        self.batch.put(INODE, ino_key(ino), row.encode());
        self.count(Counter::Inodes, 1);
        self.count(Counter::AllocatedBytes, row.allocated.cast_signed());
        if row.kind == FileKind::Regular {
            self.count(Counter::Files, 1);
            self.count(Counter::LogicalBytes, row.size.cast_signed());
        }
    }

    /// An inode's row after a change; the totals follow its size and allocation.
    pub(super) fn put_inode(&mut self, ino: Ino, old: &InodeRow, new: &InodeRow) {
        self.batch.put(INODE, ino_key(ino), new.encode());
        self.count(Counter::AllocatedBytes, new.allocated.wrapping_sub(old.allocated).cast_signed());
        if new.kind == FileKind::Regular {
            self.count(Counter::LogicalBytes, new.size.wrapping_sub(old.size).cast_signed());
        }
    }

    /// The last row of an inode goes.
    pub(super) fn remove_inode(&mut self, ino: Ino, row: &InodeRow) {
        self.batch.delete(INODE, ino_key(ino));
        self.count(Counter::Inodes, -1);
        self.count(Counter::AllocatedBytes, -row.allocated.cast_signed());
        if row.kind == FileKind::Regular {
            self.count(Counter::Files, -1);
            self.count(Counter::LogicalBytes, -row.size.cast_signed());
        }
    }

    pub(super) fn put_dentry(&mut self, parent: Ino, cookie: Cookie, row: &DentryRow) {
        self.batch.put(DENTRY, cookie.key(parent), row.encode());
    }

    pub(super) fn remove_dentry(&mut self, parent: Ino, cookie: Cookie) {
        self.batch.delete(DENTRY, cookie.key(parent));
    }

    /// Rows of a file's content, and the references they take and give back.
    pub(super) fn put_content(&mut self, ino: Ino, rows: &RowChanges) {
        for end in &rows.removed {
            self.batch.delete(MANIFEST, pair_key(ino.0, *end));
        }
        for (end, row) in &rows.written {
            self.batch.put(MANIFEST, pair_key(ino.0, *end), row.encode());
        }
        for (id, segment) in &rows.segments {
            self.batch.put(SEGMENT, segment_key(*id), segment.encode());
        }
        for (block, location) in &rows.blocks {
            self.delta(block_referenced(*block, location));
        }
        for (segment, by) in &rows.segment_refs {
            self.delta(segment_refs(*segment, *by));
        }
    }

    /// A pack that the batch names: what the store acknowledged, or, if it has not yet, that the journal must wait.
    pub(super) fn name_pack(&mut self, location: &BlockLocation, upload: &UploadTicket) {
        let Some(pack) = location.pack() else { return };
        match upload.receipt() {
            // Not known here: the row that committed the pack has it.
            Some(Receipt::UNKNOWN) => {}
            Some(receipt) => self.delta(pack_acknowledged(pack, receipt)),
            None if self.batch.needs.iter().any(|(known, _)| *known == pack) => {}
            None => self.batch.needs.push((pack, upload.clone())),
        }
    }

    pub(super) fn count(&mut self, counter: Counter, by: i64) {
        if by != 0 {
            self.delta(count(counter, by));
        }
    }

    pub(super) fn delta(&mut self, delta: Delta) {
        self.batch.delta(delta);
    }

    /// Commits; what was put is visible when it returns.
    pub(super) fn submit(self, commit: &Committer) -> Result<Ticket> {
        commit.submit(self.batch)
    }
}
