//! The state on this machine: key-value store and log, brought together after a stop of any kind.

use std::sync::Arc;

use super::batch::writes_bytes;
use super::log::Log;
use super::system::{Applied, JournalRow, is_rebuilding};
use crate::store::device::Directory;
use crate::store::kv::{Durability, KeyValueStore, Write};
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
}

/// Not durable, and need not be: the log still has it all.
fn commit(kv: &dyn KeyValueStore, writes: &mut Vec<Write>, upto: Applied) -> Result<()> {
    writes.push(upto.write());
    kv.commit(writes, Durability::Visible)?;
    writes.clear();
    Ok(())
}
