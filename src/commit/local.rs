//! The state on this machine: key-value store and log, brought together after a stop of any kind.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::batch::writes_bytes;
use super::log::Log;
use super::system::{Applied, Holder, JournalRow, LOCAL_SYSTEM, is_rebuilding, rebuilding};
use crate::base::ids::BatchNo;
use crate::store::device::Directory;
use crate::store::kv::{Durability, KeyValueStore, Table, Write};
use crate::store::{Error, Kind, Result};

/// Bytes of rows one commit of the replay takes.
const REPLAY_BYTES: usize = 4 << 20;

/// Everything committed on this machine, in the key-value store. What the journal lacks is in the log.
pub(crate) struct LocalState {
    pub(crate) kv: Arc<dyn KeyValueStore>,
    pub(super) log: Log,
    pub(crate) applied: Applied,
    /// What this machine knows of the journal; None for an empty state.
    pub(crate) journal: Option<JournalRow>,
}

impl LocalState {
    /// Opens the state and applies what the log holds above the store.
    ///
    /// # Errors
    /// `Corrupt` if something durable is missing; `Precondition` if a newer version wrote it.
    pub(crate) fn open(
        kv: Arc<dyn KeyValueStore>,
        log: Arc<dyn Directory>,
        segment_bytes: u64,
    ) -> Result<Self> {
        let view = kv.snapshot()?;
        if is_rebuilding(&*view)? {
            return Err(Error::new(Kind::Internal, "open state: it is only half rebuilt"));
        }
        let mut applied = Applied::read(&*view)?.unwrap_or_default();
        drop(view);
        let mut writes: Vec<Write> = Vec::new();
        let mut bytes = 0;
        let mut upto = applied;
        let log = Log::open(log, segment_bytes, applied, &mut |batch, logged| {
            bytes += writes_bytes(&logged.writes);
            writes.extend(logged.writes);
            upto.batch = batch;
            if REPLAY_BYTES <= bytes {
                commit(&*kv, &mut writes, upto)?;
                bytes = 0;
            }
            Ok(())
        })?;
        if applied.batch < upto.batch {
            commit(&*kv, &mut writes, upto)?;
            applied = upto;
        }
        let journal = JournalRow::read(&*kv.snapshot()?)?;
        Ok(Self { kv, log, applied, journal })
    }

    /// Empties a store that a rebuild was interrupted in: what is in it is no state of anything.
    ///
    /// # Errors
    /// Of the store.
    pub(crate) fn clear_half_rebuilt(kv: &dyn KeyValueStore) -> Result<()> {
        let view = kv.snapshot()?;
        if !is_rebuilding(&*view)? {
            return Ok(());
        }
        for table in (0..=u8::MAX).map(Table).filter(|table| *table != LOCAL_SYSTEM) {
            let mut writes = Vec::new();
            view.scan(table, b"", None, &mut |key, _| {
                writes.push(Write { table, key: key.to_vec(), value: None });
                if CLEAR_ROWS <= writes.len() {
                    kv.commit(&writes, Durability::Visible)?;
                    writes.clear();
                }
                Ok(ControlFlow::Continue(()))
            })?;
            kv.commit(&writes, Durability::Visible)?;
        }
        // The mark goes last, together with the rows that say how far the rebuild had got.
        let mut marks = Vec::new();
        view.scan(LOCAL_SYSTEM, b"", None, &mut |key, _| {
            marks.push(Write { table: LOCAL_SYSTEM, key: key.to_vec(), value: None });
            Ok(ControlFlow::Continue(()))
        })?;
        kv.commit(&marks, Durability::Immediate)
    }

    /// Newest batch of the local order.
    pub(crate) fn last(&self) -> BatchNo {
        self.log.last()
    }

    /// Who holds the volume, as far as this state knows.
    pub(crate) fn holder(&self) -> Result<Option<Holder>> {
        Holder::read(&*self.kv.snapshot()?)
    }

    /// True if batches above `sent` have rows for the journal.
    pub(crate) fn has_unsent(&self, sent: BatchNo) -> Result<bool> {
        let mut any = false;
        self.log.read_above(sent, &mut |_, _| any = true)?;
        Ok(any)
    }

    /// The local order continues above `batch`: another history has taken the numbers up to it.
    pub(crate) fn skip_to(&mut self, batch: BatchNo) {
        self.log.skip_to(batch);
        self.applied = Applied { batch, log_from: BatchNo(batch.0 + 1) };
    }

    /// Applies rows of the bucket together with where they come from.
    pub(crate) fn commit(&self, row: &JournalRow, rows: Vec<Write>) -> Result<()> {
        self.put(row, rows, Durability::Visible)
    }

    /// The same, durably, with all before it.
    pub(crate) fn save(&self, row: &JournalRow, rows: Vec<Write>) -> Result<()> {
        self.put(row, rows, Durability::Immediate)
    }

    fn put(&self, row: &JournalRow, mut rows: Vec<Write>, durability: Durability) -> Result<()> {
        rows.extend([self.applied.write(), row.write()]);
        self.kv.commit(&rows, durability)
    }

    /// Marks the store as being filled.
    pub(crate) fn begin_rebuild(&self) -> Result<()> {
        self.kv.commit(&[rebuilding(true)], Durability::Immediate)
    }

    /// Adds rows of a checkpoint.
    pub(crate) fn load(&self, rows: &[Write]) -> Result<()> {
        self.kv.commit(rows, Durability::Visible)
    }

    /// Makes what was filled the state of this machine.
    pub(crate) fn end_rebuild(&self, row: &JournalRow) -> Result<()> {
        self.save(row, vec![rebuilding(false)])
    }
}

/// Rows deleted in one commit.
const CLEAR_ROWS: usize = 10_000;

/// Not durable, and need not be: the log still has it all.
fn commit(kv: &dyn KeyValueStore, writes: &mut Vec<Write>, upto: Applied) -> Result<()> {
    writes.push(upto.write());
    kv.commit(writes, Durability::Visible)?;
    writes.clear();
    Ok(())
}
