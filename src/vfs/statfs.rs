//! Usage of the whole volume.

use super::Vfs;
use super::error::Result;
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
    /// Bytes as `st_blocks` counts them.
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
        Ok(VolumeStat {
            inodes: self.counter(Counter::Inodes)?,
            files: self.counter(Counter::Files)?,
            logical_bytes: self.counter(Counter::LogicalBytes)?,
            allocated_bytes: self.counter(Counter::AllocatedBytes)?,
            stored_bytes: self.counter(Counter::StoredBytes)?,
            reported_bytes: self.options.reported_bytes,
        })
    }

    fn counter(&self, counter: Counter) -> store::Result<u64> {
        let Some(row) = self.commit.get(COUNTER, &counter.key())? else { return Ok(0) };
        let value = Reader::new("counter", &row).i64()?;
        // A negative total can only be a counting error, which `check` reports; statfs must not wrap.
        Ok(u64::try_from(value).unwrap_or(0))
    }
}
