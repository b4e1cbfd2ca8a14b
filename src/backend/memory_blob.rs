//! A blob store in memory: the model that tests compare the others with.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use crate::base::range::ByteRange;
use crate::store::blob::{BlobKey, BlobSource, BlobStat, BlobStore};
use crate::store::{Error, Kind, Result};

/// Blobs of one process. "Durable" means here: until the store is dropped.
#[derive(Default)]
pub struct InMemoryBlobStore {
    blobs: Mutex<BTreeMap<BlobKey, Bytes>>,
}

impl InMemoryBlobStore {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn blobs(&self) -> MutexGuard<'_, BTreeMap<BlobKey, Bytes>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &BlobKey) -> Result<Bytes> {
        let missing = || Error::new(Kind::NotFound, format!("get blob {key}: no such blob"));
        self.blobs().get(key).cloned().ok_or_else(missing)
    }

    fn create(&self, key: &BlobKey, content: Bytes) -> Result<()> {
        let mut blobs = self.blobs();
        if blobs.contains_key(key) {
            return Err(Error::new(Kind::Precondition, format!("put blob {key}: it exists")));
        }
        blobs.insert(key.clone(), content);
        Ok(())
    }
}

/// A blob that is not empty is one block here.
fn stat(content: &Bytes) -> BlobStat {
    BlobStat { len: content.len() as u64, blocks: u64::from(!content.is_empty()) }
}

#[async_trait]
impl BlobStore for InMemoryBlobStore {
    async fn put(&self, key: &BlobKey, source: &mut dyn BlobSource) -> Result<BlobStat> {
        let mut content = BytesMut::new();
        while let Some(bytes) = source.next().await? {
            content.extend_from_slice(&bytes);
        }
        let content = content.freeze();
        let stat = stat(&content);
        self.create(key, content)?;
        Ok(stat)
    }

    async fn get(&self, key: &BlobKey, range: Option<ByteRange>) -> Result<Bytes> {
        let content = self.find(key)?;
        let whole = ByteRange::new(0, content.len() as u64);
        let part = range.map_or(whole, |range| range.intersect(&whole));
        let offset = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(content.len());
        Ok(content.slice(offset(part.start)..offset(part.end)))
    }

    async fn stat(&self, key: &BlobKey) -> Result<BlobStat> {
        self.find(key).map(|content| stat(&content))
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        self.blobs().remove(key);
        Ok(())
    }

    async fn clone_as(&self, from: &BlobKey, to: &BlobKey) -> Result<()> {
        let content = self.find(from)?;
        self.create(to, content)
    }

    async fn list(
        &self,
        visit: &mut (dyn for<'a> FnMut(&'a BlobKey, BlobStat) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        let blobs = self.blobs().clone();
        for (key, content) in &blobs {
            if visit(key, stat(content)).is_break() {
                break;
            }
        }
        Ok(())
    }
}
