//! Usage of the whole volume.

use std::sync::atomic::Ordering;

use super::Vfs;
use super::error::Result;
use super::inode::State;
use crate::base::codec::Reader;
use crate::store;
use crate::store::schema::{COUNTER, Counter};

/// Totals of the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VolumeStat {
    pub inodes: u64,
    pub files: u64,
    /// Bytes of all regular files by their committed size.
    pub logical_bytes: u64,
    /// Bytes as `st_blocks` counts them, also those that are written and not committed.
    pub allocated_bytes: u64,
    /// Bytes of stored frames that some file needs.
    pub stored_bytes: u64,
    /// What `statfs` calls the size of the volume.
    pub reported_bytes: u64,
}

impl Vfs {
    /// Totals, as counted.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn statfs(&self) -> Result<VolumeStat> {
        let committed = self.counter(Counter::AllocatedBytes)?;
        Ok(VolumeStat {
            inodes: self.counter(Counter::Inodes)?,
            files: self.counter(Counter::Files)?,
            logical_bytes: self.counter(Counter::LogicalBytes)?,
            allocated_bytes: committed.saturating_add_signed(self.uncommitted.load(Ordering::Relaxed)),
            stored_bytes: self.counter(Counter::StoredBytes)?,
            reported_bytes: self.options.reported_bytes,
        })
    }

    /// Tells the volume's total of what an inode's overlay adds to its committed allocation. To be called whenever either
    /// has changed while there is an overlay, and when that goes.
    pub(super) fn count_uncommitted(&self, state: &mut State) {
        let overlay = state.overlay.as_ref().map_or(state.row.allocated, |overlay| overlay.allocated());
        let now = overlay.wrapping_sub(state.row.allocated).cast_signed();
        let before = std::mem::replace(&mut state.uncommitted_bytes, now);
        if now != before {
            self.uncommitted.fetch_add(now - before, Ordering::Relaxed);
        }
    }

    fn counter(&self, counter: Counter) -> store::Result<u64> {
        let Some(row) = self.commit.get(COUNTER, &counter.key())? else { return Ok(0) };
        let value = Reader::new("counter", &row).i64()?;
        // A negative total can only be a counting error, which `check` reports; statfs must not wrap.
        Ok(u64::try_from(value).unwrap_or(0))
    }
}
