//! A store that can be unreachable, a local disk that can be full, and metadata that let threads meet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use gravitonfs::backend::memory_device::MemoryDirectory;
use gravitonfs::backend::memory_kv::MemoryKv;
use gravitonfs::backend::memory_object::MemoryObjectStore;
use gravitonfs::base::range::ByteRange;
use gravitonfs::store::device::{Device, Directory};
use gravitonfs::store::kv::{Durability, KeyValueStore, Snapshot, Table, Visit, Write};
use gravitonfs::store::object::{Fencing, ImmutableObjectStore, ListPage, ObjectKey, ObjectMeta};
use gravitonfs::store::{Error, Kind, Result};

/// A store in memory that takes nothing while it is unreachable.
#[derive(Default)]
pub(crate) struct UnreliableStore {
    inner: MemoryObjectStore,
    pub(crate) unreachable: AtomicBool,
}

#[async_trait]
impl ImmutableObjectStore for UnreliableStore {
    async fn put_new(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta> {
        if self.unreachable.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::Unavailable, "put: unreachable"));
        }
        self.inner.put_new(key, body).await
    }

    async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
        self.inner.get(key, range).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
        self.inner.list(prefix, start_after).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        self.inner.delete(keys).await
    }

    fn fencing(&self) -> Fencing {
        self.inner.fencing()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

/// A directory in memory whose files take nothing while the disk is full.
#[derive(Default)]
pub(crate) struct FillableDirectory {
    inner: MemoryDirectory,
    pub(crate) full: Arc<AtomicBool>,
}

impl Directory for FillableDirectory {
    fn create(&self, name: &str) -> Result<Arc<dyn Device>> {
        Ok(Arc::new(FillableDevice { inner: self.inner.create(name)?, full: self.full.clone() }))
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Device>> {
        Ok(Arc::new(FillableDevice { inner: self.inner.open(name)?, full: self.full.clone() }))
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.inner.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.inner.rename(from, to)
    }

    fn list(&self) -> Result<Vec<(String, u64)>> {
        self.inner.list()
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    fn free_bytes(&self) -> Result<u64> {
        self.inner.free_bytes()
    }
}

struct FillableDevice {
    inner: Arc<dyn Device>,
    full: Arc<AtomicBool>,
}

impl Device for FillableDevice {
    fn len(&self) -> Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::Full, "write: disk full"));
        }
        self.inner.write_at(data, offset)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.inner.set_len(len)
    }

    fn reserve(&self, len: u64) -> Result<()> {
        self.inner.reserve(len)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
}

/// Rows in memory; every look lets other threads go on, so that few cores do not run one operation after the other.
#[derive(Default)]
pub(crate) struct YieldingKv(MemoryKv);

impl KeyValueStore for YieldingKv {
    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(YieldingSnapshot(self.0.snapshot()?)))
    }

    fn commit(&self, writes: &[Write], durability: Durability) -> Result<()> {
        self.0.commit(writes, durability)
    }
}

struct YieldingSnapshot(Box<dyn Snapshot>);

impl Snapshot for YieldingSnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        std::thread::yield_now();
        self.0.get(table, key)
    }

    fn scan(&self, table: Table, from: &[u8], to: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        std::thread::yield_now();
        self.0.scan(table, from, to, visit)
    }
}
