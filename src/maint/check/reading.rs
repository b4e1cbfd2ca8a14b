//! A store that can only be read, and counts what is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::base::range::ByteRange;
use crate::store::object::{Fencing, ImmutableObjectStore, ListPage, ObjectKey, ObjectMeta};
use crate::store::{Error, Kind, Result};

/// See the module.
pub(super) struct ReadOnlyStore {
    inner: Arc<dyn ImmutableObjectStore>,
    bytes_read: AtomicU64,
}

impl ReadOnlyStore {
    pub(super) fn new(inner: Arc<dyn ImmutableObjectStore>) -> Self {
        Self { inner, bytes_read: AtomicU64::new(0) }
    }

    /// Bytes of bodies so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }
}

fn refused() -> Error {
    Error::new(Kind::Internal, "a check writes nothing")
}

#[async_trait]
impl ImmutableObjectStore for ReadOnlyStore {
    async fn put_new(&self, _: &ObjectKey, _: Bytes) -> Result<ObjectMeta> {
        Err(refused())
    }

    async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
        let bytes = self.inner.get(key, range).await?;
        self.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
        self.inner.list(prefix, start_after).await
    }

    async fn delete(&self, _: &[ObjectKey]) -> Result<()> {
        Err(refused())
    }

    fn fencing(&self) -> Fencing {
        self.inner.fencing()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}
