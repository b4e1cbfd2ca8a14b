//! The blob port: whole contents by key, for `gravitonfs blob` and for tests.

use std::fmt;
use std::ops::ControlFlow;

use async_trait::async_trait;
use bytes::Bytes;

use super::Result;
use crate::base::range::ByteRange;

/// Name of a blob: 1 to 255 printable ASCII characters without spaces.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobKey(String);

impl BlobKey {
    /// None if `text` is not a key.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let valid = (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        valid.then(|| Self(text.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlobStat {
    /// Length in bytes.
    pub len: u64,
    /// Blocks it is cut into; 0 for one so small that it lives in the metadata.
    pub blocks: u64,
}

/// Where a blob's bytes come from, piece by piece.
#[async_trait]
pub trait BlobSource: Send {
    /// The next bytes, or None at the end.
    async fn next(&mut self) -> Result<Option<Bytes>>;
}

/// Whole contents by key. Empty blobs are fine.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// Stores what `source` yields as `key`. Atomic: until it returns, `key` is absent or what it was. Durable.
    ///
    /// # Errors
    /// `Precondition` if `key` exists.
    async fn put(&self, key: &BlobKey, source: &mut dyn BlobSource) -> Result<BlobStat>;

    /// Reads the part of `range` that lies within the blob, or all of it.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if a block is missing or not what it was.
    async fn get(&self, key: &BlobKey, range: Option<ByteRange>) -> Result<Bytes>;

    /// # Errors
    /// `NotFound`.
    async fn stat(&self, key: &BlobKey) -> Result<BlobStat>;

    /// Removes the blob; its blocks stay for others that share them. Missing is success.
    async fn delete(&self, key: &BlobKey) -> Result<()>;

    /// Makes `to` the same content as `from` without moving a byte.
    ///
    /// # Errors
    /// `NotFound` if `from` is missing, `Precondition` if `to` exists.
    async fn clone_as(&self, from: &BlobKey, to: &BlobKey) -> Result<()>;

    /// Visits all blobs in the order of their keys.
    async fn list(
        &self,
        visit: &mut (dyn for<'a> FnMut(&'a BlobKey, BlobStat) -> ControlFlow<()> + Send),
    ) -> Result<()>;
}
