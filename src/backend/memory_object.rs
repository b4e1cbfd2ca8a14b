//! An object store in memory: `mem:` volumes, and the model that tests compare the others with.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::base::range::ByteRange;
use crate::store::object::{
    Etag, Fencing, ImmutableObjectStore, ListPage, MutableObjectStore, ObjectKey, ObjectMeta,
    PAGE_OBJECTS_MAX,
};
use crate::store::{Error, Kind, Result};

/// Objects of one process. "Durable" means here: until the store is dropped.
#[derive(Default)]
pub struct MemoryObjectStore {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<ObjectKey, Stored>,
    /// Versions handed out so far; never reused, so no two contents of a key share an etag.
    versions: u64,
}

struct Stored {
    body: Bytes,
    version: u64,
}

impl MemoryObjectStore {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing panics while the lock is held half-way through a change, so a poisoned state is still whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn insert(&mut self, key: &ObjectKey, body: Bytes) -> ObjectMeta {
        self.versions += 1;
        let stored = Stored { body, version: self.versions };
        let meta = stored.meta(key);
        self.objects.insert(key.clone(), stored);
        meta
    }

    fn find(&self, operation: &str, key: &ObjectKey) -> Result<&Stored> {
        let missing = || Error::new(Kind::NotFound, format!("{operation} {key}: no such object"));
        self.objects.get(key).ok_or_else(missing)
    }
}

impl Stored {
    fn meta(&self, key: &ObjectKey) -> ObjectMeta {
        ObjectMeta { key: key.clone(), len: self.body.len() as u64, etag: Etag(self.version.to_string()) }
    }
}

#[async_trait]
impl ImmutableObjectStore for MemoryObjectStore {
    async fn put_new(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta> {
        let mut state = self.state();
        if state.objects.contains_key(key) {
            return Err(Error::new(Kind::Precondition, format!("put {key}: exists already")));
        }
        Ok(state.insert(key, body))
    }

    async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
        let body = self.state().find("get", key)?.body.clone();
        let Some(range) = range else { return Ok(body) };
        if (body.len() as u64) < range.end {
            let detail = format!("get {key}: range {range:?} ends beyond the object's {} bytes", body.len());
            return Err(Error::new(Kind::Corrupt, detail));
        }
        // Both ends are at most a length in memory, so they fit.
        Ok(body.slice(range.start as usize..range.end as usize))
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        Ok(self.state().find("head", key)?.meta(key))
    }

    async fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
        let state = self.state();
        let from = start_after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()));
        let mut matching = state
            .objects
            .range((from, Bound::Unbounded))
            .skip_while(|(key, _)| key.as_str() < prefix)
            .take_while(|(key, _)| key.as_str().starts_with(prefix));
        let objects =
            matching.by_ref().take(PAGE_OBJECTS_MAX).map(|(key, stored)| stored.meta(key)).collect();
        Ok(ListPage { objects, more: matching.next().is_some() })
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        let mut state = self.state();
        for key in keys {
            state.objects.remove(key);
        }
        Ok(())
    }

    fn fencing(&self) -> Fencing {
        Fencing::None
    }

    fn location(&self) -> String {
        "mem:".to_owned()
    }
}

#[async_trait]
impl MutableObjectStore for MemoryObjectStore {
    async fn put_if(&self, key: &ObjectKey, body: Bytes, expected: &Etag) -> Result<ObjectMeta> {
        let mut state = self.state();
        if state.find("put", key)?.meta(key).etag != *expected {
            return Err(Error::new(Kind::Precondition, format!("put {key}: has changed since it was read")));
        }
        Ok(state.insert(key, body))
    }

    async fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<ObjectMeta> {
        let mut state = self.state();
        let body = state.find("copy", from)?.body.clone();
        Ok(state.insert(to, body))
    }
}
