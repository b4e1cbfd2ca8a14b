//! Local files as a port, so that tests can lose what was not synced and tear what was.

use std::sync::Arc;

use super::Result;

/// One open local file. Reads and writes may run concurrently; the caller keeps overlapping ones apart.
#[expect(
    clippy::len_without_is_empty,
    reason = "nobody asks whether a file is empty, and the length can fail"
)]
pub trait Device: Send + Sync + 'static {
    /// Current length in bytes.
    fn len(&self) -> Result<u64>;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `Corrupt` if the file ends before the buffer is full.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes all of `data` at `offset`, growing the file as needed. Not durable before [`sync`](Self::sync); a crash
    /// may keep any part of it.
    ///
    /// # Errors
    /// `Full` if the disk has no room.
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()>;

    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, len: u64) -> Result<()>;

    /// Reserves room for the first `len` bytes without changing the length that `len` reports.
    ///
    /// # Errors
    /// `Full` if the disk has no room.
    fn reserve(&self, len: u64) -> Result<()>;

    /// Makes everything written so far durable. After an error nothing is known of what was written before it, and the
    /// call must not be repeated (rule R14).
    fn sync(&self) -> Result<()>;
}

/// One local directory of devices. Names are plain file names.
pub trait Directory: Send + Sync + 'static {
    /// Creates a file that must not exist.
    ///
    /// # Errors
    /// `Precondition` if it exists.
    fn create(&self, name: &str) -> Result<Arc<dyn Device>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` if it does not exist.
    fn open(&self, name: &str) -> Result<Arc<dyn Device>>;

    /// Removes a file; one that does not exist counts as removed. Open devices stay usable.
    fn remove(&self, name: &str) -> Result<()>;

    /// Renames a file, replacing `to`. Atomic.
    fn rename(&self, from: &str, to: &str) -> Result<()>;

    /// Names and lengths of all files, in no order.
    fn list(&self) -> Result<Vec<(String, u64)>>;

    /// Makes creations, removals and renames so far durable.
    fn sync(&self) -> Result<()>;

    /// Bytes the filesystem below has left for us.
    fn free_bytes(&self) -> Result<u64>;
}
