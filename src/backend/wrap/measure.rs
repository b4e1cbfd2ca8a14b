//! Counts what an object store costs: requests by kind and bytes both ways.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::base::range::ByteRange;
use crate::store::Result;
use crate::store::object::{
    Etag, Fencing, ImmutableObjectStore, ListPage, MutableObjectStore, ObjectKey, ObjectMeta,
    PAGE_OBJECTS_MAX,
};

/// What a request is billed as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestKind {
    /// Also copies and every call of a multipart upload.
    Put,
    Get,
    Head,
    List,
    Delete,
}

/// Totals since the mount, shared by all that send requests and by `status`. Every request on the wire counts,
/// whatever becomes of it: repeated ones, parts, and requests that are never answered.
#[derive(Default, Debug)]
pub struct RequestCounters {
    put: AtomicU64,
    get: AtomicU64,
    head: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

/// The totals at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RequestCounts {
    pub put: u64,
    pub get: u64,
    pub head: u64,
    pub list: u64,
    pub delete: u64,
    /// Object content sent, without headers.
    pub sent_bytes: u64,
    /// Object content received, without headers.
    pub received_bytes: u64,
}

impl RequestCounters {
    /// A request is about to go out, with `body_bytes` of object content.
    pub fn request(&self, kind: RequestKind, body_bytes: u64) {
        let counter = match kind {
            RequestKind::Put => &self.put,
            RequestKind::Get => &self.get,
            RequestKind::Head => &self.head,
            RequestKind::List => &self.list,
            RequestKind::Delete => &self.delete,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.sent_bytes.fetch_add(body_bytes, Ordering::Relaxed);
    }

    /// Object content has arrived.
    pub fn received(&self, body_bytes: u64) {
        self.received_bytes.fetch_add(body_bytes, Ordering::Relaxed);
    }

    /// The totals; each is exact, together they may be a request apart.
    #[must_use]
    pub fn counts(&self) -> RequestCounts {
        RequestCounts {
            put: self.put.load(Ordering::Relaxed),
            get: self.get.load(Ordering::Relaxed),
            head: self.head.load(Ordering::Relaxed),
            list: self.list.load(Ordering::Relaxed),
            delete: self.delete.load(Ordering::Relaxed),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Counts for stores of which one call is one request (`dir`, `memory`). The S3 store counts by itself, because only
/// it knows how many requests a call becomes; it is not wrapped in this.
pub struct Measure {
    inner: Arc<dyn MutableObjectStore>,
    counters: Arc<RequestCounters>,
}

impl Measure {
    #[must_use]
    pub fn new(inner: Arc<dyn MutableObjectStore>, counters: Arc<RequestCounters>) -> Self {
        Self { inner, counters }
    }
}

#[async_trait]
impl ImmutableObjectStore for Measure {
    async fn put_new(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta> {
        self.counters.request(RequestKind::Put, body.len() as u64);
        self.inner.put_new(key, body).await
    }

    async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
        self.counters.request(RequestKind::Get, 0);
        let body = self.inner.get(key, range).await?;
        self.counters.received(body.len() as u64);
        Ok(body)
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.counters.request(RequestKind::Head, 0);
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
        self.counters.request(RequestKind::List, 0);
        self.inner.list(prefix, start_after).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        for _ in keys.chunks(PAGE_OBJECTS_MAX) {
            self.counters.request(RequestKind::Delete, 0);
        }
        self.inner.delete(keys).await
    }

    fn fencing(&self) -> Fencing {
        self.inner.fencing()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

#[async_trait]
impl MutableObjectStore for Measure {
    async fn put_if(&self, key: &ObjectKey, body: Bytes, expected: &Etag) -> Result<ObjectMeta> {
        self.counters.request(RequestKind::Put, body.len() as u64);
        self.inner.put_if(key, body, expected).await
    }

    async fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<ObjectMeta> {
        self.counters.request(RequestKind::Put, 0);
        self.inner.copy(from, to).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory_object::MemoryObjectStore;
    use crate::store::keys;

    #[tokio::test]
    async fn calls_count_by_kind_and_bytes_by_direction() {
        let counters = Arc::new(RequestCounters::default());
        let store = Measure::new(Arc::new(MemoryObjectStore::new()), Arc::clone(&counters));
        let key = keys::superblock();
        let meta = store.put_new(&key, Bytes::from_static(b"12345")).await.expect("put");
        store.put_new(&key, Bytes::from_static(b"123")).await.expect_err("a refused request was sent too");
        store.put_if(&key, Bytes::from_static(b"1234567"), &meta.etag).await.expect("overwrite");
        store.copy(&key, &keys::journal_floor()).await.expect("copy");
        store.get(&key, Some(ByteRange::new(1, 4))).await.expect("get");
        store.head(&key).await.expect("head");
        store.list("", None).await.expect("list");
        store.delete(&vec![key; PAGE_OBJECTS_MAX + 1]).await.expect("delete");
        let expected =
            RequestCounts { put: 4, get: 1, head: 1, list: 1, delete: 2, sent_bytes: 15, received_bytes: 3 };
        assert_eq!(counters.counts(), expected);
    }
}
