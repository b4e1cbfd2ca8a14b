//! Reading tables in parts, and what concerns rows of no table in particular.

use std::ops::ControlFlow;

use super::{FindingKind, Seen};
use crate::commit::system::{Applied, Holder, JournalRow, LOCAL_SYSTEM, SYSTEM};
use crate::store::Result;
use crate::store::kv::{Snapshot, Table};
use crate::store::schema::{
    BLOB, BLOCK, COUNTER, DEAD_SEGMENT, DENTRY, INLINE, INODE, MANIFEST, ORPHAN, OVERLAY, PACK, SEGMENT,
    SEGMENT_REFS, XATTR,
};

const TABLES: &[Table] = &[
    SYSTEM,
    INODE,
    DENTRY,
    INLINE,
    MANIFEST,
    SEGMENT,
    SEGMENT_REFS,
    BLOCK,
    PACK,
    XATTR,
    ORPHAN,
    COUNTER,
    BLOB,
    DEAD_SEGMENT,
    OVERLAY,
    LOCAL_SYSTEM,
];

/// How many rows a part has at most. About 60 MiB of memory each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) inodes: usize,
    pub(super) segments: usize,
    pub(super) blocks: usize,
    pub(super) packs: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { inodes: 250_000, segments: 1_000_000, blocks: 600_000, packs: 500_000 }
    }
}

/// A range of keys: from the first, to before the second if there is one.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) from: Vec<u8>,
    pub(super) to: Option<Vec<u8>>,
}

impl Keys {
    pub(super) fn contains(&self, key: &[u8]) -> bool {
        self.from.as_slice() <= key && self.to.as_ref().is_none_or(|to| key < to.as_slice())
    }

    /// True of the part that a table begins with.
    pub(super) fn is_first(&self) -> bool {
        self.from.is_empty()
    }
}

/// Visits up to `limit` rows from `from` on. Returns the keys it has covered.
pub(super) fn visit_part(
    view: &dyn Snapshot,
    table: Table,
    from: &[u8],
    limit: usize,
    visit: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<Keys> {
    let mut keys = Keys { from: from.to_vec(), to: None };
    let mut count = 0;
    view.scan(table, from, None, &mut |key, value| {
        if count == limit {
            keys.to = Some(key.to_vec());
            return Ok(ControlFlow::Break(()));
        }
        count += 1;
        visit(key, value);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(keys)
}

/// Visits all rows of `table` within `keys`.
pub(super) fn visit_keys(
    view: &dyn Snapshot,
    table: Table,
    keys: &Keys,
    visit: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<()> {
    view.scan(table, &keys.from, keys.to.as_deref(), &mut |key, value| {
        visit(key, value);
        Ok(ControlFlow::Continue(()))
    })
}

/// Visits all rows of `table`.
pub(super) fn visit_all(
    view: &dyn Snapshot,
    table: Table,
    visit: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<()> {
    visit_keys(view, table, &Keys { from: Vec::new(), to: None }, visit)
}

/// A key as it is told.
pub(super) fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tables that nobody knows are empty, and the rows of the protocol decode.
pub(super) fn check_known_tables(view: &dyn Snapshot, seen: &mut Seen) -> Result<()> {
    for number in 0..=u8::MAX {
        let table = Table(number);
        if TABLES.contains(&table) {
            continue;
        }
        view.scan(table, &[], None, &mut |key, _| {
            seen.find(
                FindingKind::Row,
                format_args!("table {number}"),
                format_args!("unknown, has key {}", hex(key)),
            );
            Ok(ControlFlow::Break(()))
        })?;
    }
    let mut decoded = |name: &str, error: Option<crate::store::Error>| {
        if let Some(error) = error {
            seen.find(FindingKind::Row, name, error);
        }
    };
    decoded("holder", Holder::read(view).err());
    decoded("applied", Applied::read(view).err());
    decoded("journal", JournalRow::read(view).err());
    Ok(())
}
