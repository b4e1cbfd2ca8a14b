//! A batch: what a caller asks to be changed at once, and what the committer makes of it (rules R4, R5).

use std::collections::BTreeMap;
use std::collections::VecDeque;

use crate::base::ids::{BatchNo, PackId};
use crate::base::limits::BATCH_BYTES_MAX;
use crate::store::block::UploadTicket;
use crate::store::kv::{Table, Write};
use crate::store::merge::{Delta, MergeRules};
use crate::store::schema::LOCAL_FIRST;
use crate::store::{Error, Kind, Result};

/// Changes that become true together, or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// What must hold when the batch is ordered.
    pub expects: Vec<Expect>,
    /// Carried out in order. Rows of tables from [`LOCAL_FIRST`] on never leave this machine.
    pub ops: Vec<Op>,
    /// Packs the batch names that the store has not acknowledged yet. The batch is visible and logged at once; the
    /// journal record that holds it is not sent before (rule R1; every other batch waits before it is submitted).
    pub needs: Vec<(PackId, UploadTicket)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    Put {
        table: Table,
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        table: Table,
        key: Vec<u8>,
    },
    /// Changes a shared row relative to what it holds when the batch is ordered.
    Delta(Delta),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expect {
    Present { table: Table, key: Vec<u8> },
    Absent { table: Table, key: Vec<u8> },
    Equals { table: Table, key: Vec<u8>, value: Vec<u8> },
}

/// A place in the commit order: this batch and all before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[must_use]
pub struct Ticket(pub(super) BatchNo);

impl Ticket {
    #[must_use]
    pub fn batch(self) -> BatchNo {
        self.0
    }
}

impl Batch {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> &mut Self {
        self.ops.push(Op::Put { table, key: key.into(), value: value.into() });
        self
    }

    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) -> &mut Self {
        self.ops.push(Op::Delete { table, key: key.into() });
        self
    }

    pub fn delta(&mut self, delta: Delta) -> &mut Self {
        self.ops.push(Op::Delta(delta));
        self
    }

    pub fn expect(&mut self, expect: Expect) -> &mut Self {
        self.expects.push(expect);
        self
    }
}

/// Follow-up deltas of one batch at most: rules that feed each other in a circle end here.
const FOLLOW_MAX: usize = 1 << 16;

/// Bytes a row costs beside key and value, in the log and in memory.
const ROW_OVERHEAD: usize = 8;

/// Longest key in bytes: its length is stored in 16 bits.
const KEY_BYTES_MAX: usize = u16::MAX as usize;

/// Answers what a row is before the batch.
pub(super) type Read<'a> = dyn Fn(Table, &[u8]) -> Result<Option<Vec<u8>>> + 'a;

/// Rows as a batch or a record leaves them; None for one that is removed.
pub(super) type Rows = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// Checks `batch` against what `read` answers and turns it into absolute writes, one per row, in order of table and key.
/// Pure: changes nothing.
///
/// # Errors
/// `Precondition` if an expectation does not hold; `Internal` for a batch beyond [`BATCH_BYTES_MAX`] or rules that do
/// not end; of the rules and of `read`.
pub(super) fn resolve(batch: &Batch, rules: &dyn MergeRules, read: &Read<'_>) -> Result<Vec<Write>> {
    for expect in &batch.expects {
        check(expect, read)?;
    }
    let mut rows = Rows::new();
    for op in &batch.ops {
        match op {
            Op::Put { table, key, value } => rows.insert((*table, key.clone()), Some(value.clone())),
            Op::Delete { table, key } => rows.insert((*table, key.clone()), None),
            Op::Delta(delta) => {
                merge(delta, rules, read, &mut rows)?;
                None
            }
        };
    }
    let writes: Vec<_> = rows.into_iter().map(|((table, key), value)| Write { table, key, value }).collect();
    check_size(&writes)?;
    Ok(writes)
}

fn check(expect: &Expect, read: &Read<'_>) -> Result<()> {
    let (table, key, holds) = match expect {
        Expect::Present { table, key } => (table, key, read(*table, key)?.is_some()),
        Expect::Absent { table, key } => (table, key, read(*table, key)?.is_none()),
        Expect::Equals { table, key, value } => {
            (table, key, read(*table, key)?.as_ref().is_some_and(|found| found == value))
        }
    };
    if holds {
        return Ok(());
    }
    let what = match expect {
        Expect::Present { .. } => "is gone",
        Expect::Absent { .. } => "exists",
        Expect::Equals { .. } => "has changed",
    };
    Err(Error::new(Kind::Precondition, format!("submit: row {what} table={} key={key:02x?}", table.0)))
}

fn merge(delta: &Delta, rules: &dyn MergeRules, read: &Read<'_>, rows: &mut Rows) -> Result<()> {
    let mut queue = VecDeque::from([delta.clone()]);
    for _ in 0..FOLLOW_MAX {
        let Some(delta) = queue.pop_front() else { return Ok(()) };
        let row = (delta.table, delta.key.clone());
        let old = match rows.get(&row) {
            Some(value) => value.clone(),
            None => read(delta.table, &delta.key)?,
        };
        let merged = rules.merge(&delta, old.as_deref())?;
        rows.insert(row, merged.value);
        queue.extend(merged.follow);
    }
    Err(Error::new(Kind::Internal, format!("submit: deltas without end table={}", delta.table.0)))
}

fn check_size(writes: &[Write]) -> Result<()> {
    let bytes = writes_bytes(writes);
    if bytes > BATCH_BYTES_MAX {
        return Err(Error::new(
            Kind::Internal,
            format!("submit: batch too large bytes={bytes} max={BATCH_BYTES_MAX}"),
        ));
    }
    if let Some(write) = writes.iter().find(|write| write.key.len() > KEY_BYTES_MAX) {
        return Err(Error::new(Kind::Internal, format!("submit: key too long bytes={}", write.key.len())));
    }
    Ok(())
}

/// What the rows weigh, for limits.
pub(super) fn writes_bytes(writes: &[Write]) -> usize {
    let row = |write: &Write| ROW_OVERHEAD + write.key.len() + write.value.as_ref().map_or(0, Vec::len);
    writes.iter().map(row).sum()
}

/// True for rows that journal and checkpoint carry.
pub(super) fn is_synced(table: Table) -> bool {
    table.0 < LOCAL_FIRST
}
