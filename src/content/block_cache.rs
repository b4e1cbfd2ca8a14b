//! Verified blocks in memory, least recently used first out, before any block store; whoever asks for a block that is
//! being fetched waits for that instead of fetching it again.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use lru::LruCache;
use tokio::sync::watch;

use crate::base::hash::BlockId;
use crate::store::Result;
use crate::store::block::{Block, BlockLocation, BlockStore, BlockTicket};

/// Wraps a block store. What is put is not cached: it was in memory just now, and those who write seldom read it back.
pub struct BlockCache {
    inner: Arc<dyn BlockStore>,
    bytes_max: u64,
    state: Mutex<State>,
}

struct State {
    /// Unbounded by count: `bytes` bounds it.
    blocks: LruCache<BlockId, Bytes>,
    bytes: u64,
    /// Blocks being fetched. The sender is with the caller that fetches; when it goes without a word, the fetch failed.
    fetching: HashMap<BlockId, watch::Receiver<Option<Bytes>>>,
}

/// The blocks one call fetches for itself and for whoever waits.
struct Lead<'a> {
    cache: &'a BlockCache,
    blocks: Vec<(BlockId, watch::Sender<Option<Bytes>>)>,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.state();
        for (id, _) in &self.blocks {
            state.fetching.remove(id);
        }
    }
}

impl BlockCache {
    /// A cache of at most `bytes_max` bytes of blocks before `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockStore>, bytes_max: u64) -> Self {
        let state = State { blocks: LruCache::unbounded(), bytes: 0, fetching: HashMap::new() };
        Self { inner, bytes_max, state: Mutex::new(state) }
    }

    /// A block that is in the cache: what a caller that must not wait asks for first.
    #[must_use]
    pub fn get_cached(&self, id: &BlockId) -> Option<Bytes> {
        self.state().blocks.get(id).cloned()
    }

    /// Bytes of blocks held.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.state().bytes
    }

    fn insert(&self, id: BlockId, data: &Bytes) {
        let mut state = self.state();
        let len = data.len() as u64;
        if self.bytes_max < len || state.blocks.contains(&id) {
            return;
        }
        state.bytes += len;
        state.blocks.put(id, data.clone());
        while self.bytes_max < state.bytes {
            let Some((_, evicted)) = state.blocks.pop_lru() else { break };
            state.bytes -= evicted.len() as u64;
        }
    }

    /// Fetches the blocks of `lead` and tells those who wait.
    async fn fetch(&self, lead: Lead<'_>) -> Result<Vec<(BlockId, Bytes)>> {
        let ids: Vec<_> = lead.blocks.iter().map(|(id, _)| *id).collect();
        let fetched = self.inner.get_many(&ids).await?;
        for ((id, sender), data) in lead.blocks.iter().zip(&fetched) {
            self.insert(*id, data);
            sender.send_replace(Some(data.clone()));
        }
        Ok(ids.into_iter().zip(fetched).collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl BlockStore for BlockCache {
    async fn put_many(&self, blocks: Vec<Block>) -> Result<Vec<BlockTicket>> {
        self.inner.put_many(blocks).await
    }

    async fn sync(&self) -> Result<()> {
        self.inner.sync().await
    }

    async fn seal(&self) -> Result<()> {
        self.inner.seal().await
    }

    async fn get_many(&self, ids: &[BlockId]) -> Result<Vec<Bytes>> {
        let mut found: HashMap<BlockId, Bytes> = HashMap::with_capacity(ids.len());
        let mut lead = Lead { cache: self, blocks: Vec::new() };
        let mut others = HashMap::new();
        {
            let mut state = self.state();
            for &id in ids {
                if let Some(data) = state.blocks.get(&id) {
                    found.insert(id, data.clone());
                } else if lead.blocks.iter().any(|(mine, _)| *mine == id) {
                    // Asked for twice.
                } else if let Some(landing) = state.fetching.get(&id) {
                    others.insert(id, landing.clone());
                } else {
                    let (sender, landing) = watch::channel(None);
                    state.fetching.insert(id, landing);
                    lead.blocks.push((id, sender));
                }
            }
        }
        if lead.blocks.is_empty() {
            drop(lead);
        } else {
            found.extend(self.fetch(lead).await?);
        }
        let mut failed = Vec::new();
        for (id, mut landing) in others {
            let landed = landing.wait_for(Option::is_some).await.ok().and_then(|data| data.clone());
            match landed {
                Some(data) => drop(found.insert(id, data)),
                None => failed.push(id),
            }
        }
        if !failed.is_empty() {
            // Perhaps because of another block of that call: for an error of its own each block is asked for here.
            let fetched = self.inner.get_many(&failed).await?;
            failed.iter().zip(&fetched).for_each(|(id, data)| self.insert(*id, data));
            found.extend(failed.into_iter().zip(fetched));
        }
        Ok(ids.iter().map(|id| found.get(id).expect("all were found, or it is an error").clone()).collect())
    }

    async fn contains_many(&self, ids: &[BlockId]) -> Result<Vec<Option<BlockTicket>>> {
        self.inner.contains_many(ids).await
    }

    async fn verify(&self, id: BlockId) -> Result<()> {
        self.inner.verify(id).await
    }

    async fn list(
        &self,
        visit: &mut (dyn FnMut(BlockId, BlockLocation) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        self.inner.list(visit).await
    }

    async fn delete(&self, ids: &[BlockId]) -> Result<Vec<BlockId>> {
        let kept = self.inner.delete(ids).await?;
        let mut state = self.state();
        for id in ids {
            if let Some(data) = state.blocks.pop(id) {
                state.bytes -= data.len() as u64;
            }
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::FutureExt as _;
    use tokio::sync::Notify;

    use super::*;
    use crate::store::{Error, Kind};

    /// Counts what it is asked for; answers when told to.
    struct Slow {
        asked: AtomicU64,
        go: Notify,
        fails: bool,
    }

    fn text(id: &BlockId) -> Bytes {
        Bytes::from(vec![id.hash.0[0]; id.len as usize])
    }

    fn id(byte: u8, len: u32) -> BlockId {
        BlockId { hash: crate::base::hash::Hash([byte; 32]), len }
    }

    #[async_trait]
    impl BlockStore for Slow {
        async fn put_many(&self, _: Vec<Block>) -> Result<Vec<BlockTicket>> {
            unreachable!("reads only")
        }
        async fn sync(&self) -> Result<()> {
            unreachable!("reads only")
        }
        async fn seal(&self) -> Result<()> {
            unreachable!("reads only")
        }
        async fn get_many(&self, ids: &[BlockId]) -> Result<Vec<Bytes>> {
            self.asked.fetch_add(ids.len() as u64, Ordering::Relaxed);
            self.go.notified().await;
            if self.fails && ids.len() > 1 {
                return Err(Error::new(Kind::Corrupt, "one of them"));
            }
            Ok(ids.iter().map(text).collect())
        }
        async fn contains_many(&self, _: &[BlockId]) -> Result<Vec<Option<BlockTicket>>> {
            unreachable!("reads only")
        }
        async fn verify(&self, _: BlockId) -> Result<()> {
            unreachable!("reads only")
        }
        async fn list(
            &self,
            _: &mut (dyn FnMut(BlockId, BlockLocation) -> ControlFlow<()> + Send),
        ) -> Result<()> {
            unreachable!("reads only")
        }
        async fn delete(&self, _: &[BlockId]) -> Result<Vec<BlockId>> {
            Ok(Vec::new())
        }
    }

    fn cache(bytes_max: u64, fails: bool) -> (BlockCache, Arc<Slow>) {
        let slow = Arc::new(Slow { asked: AtomicU64::new(0), go: Notify::new(), fails });
        (BlockCache::new(slow.clone(), bytes_max), slow)
    }

    /// Gets blocks that the store answers for at once.
    fn get(cache: &BlockCache, slow: &Slow, ids: &[BlockId]) -> Vec<Bytes> {
        slow.go.notify_one();
        let blocks = cache.get_many(ids).now_or_never().expect("no need to wait").expect("get");
        // A permit that was not needed must not answer a later call.
        let _ = slow.go.notified().now_or_never();
        blocks
    }

    #[test]
    fn a_block_is_fetched_once_and_kept_within_the_limit() {
        let (cache, slow) = cache(100, false);
        let asked = [id(1, 60), id(2, 40), id(1, 60)];
        assert_eq!(get(&cache, &slow, &asked), asked.iter().map(text).collect::<Vec<_>>());
        get(&cache, &slow, &asked);
        assert_eq!((slow.asked.load(Ordering::Relaxed), cache.used_bytes()), (2, 100));
        get(&cache, &slow, &[id(2, 40)]);
        get(&cache, &slow, &[id(3, 10)]);
        assert_eq!(cache.get_cached(&id(1, 60)), None, "the least recently used went");
        assert_eq!((cache.get_cached(&id(2, 40)).is_some(), cache.used_bytes()), (true, 50));
        get(&cache, &slow, &[id(4, 101)]);
        assert_eq!(cache.used_bytes(), 50, "a block beyond the limit is not kept");
    }

    #[test]
    fn who_asks_for_a_block_under_way_waits_for_it() {
        let (cache, slow) = cache(100, false);
        let first_ids = [id(1, 1)];
        let mut first = Box::pin(cache.get_many(&first_ids));
        assert!(first.as_mut().now_or_never().is_none());
        let second_ids = [id(1, 1)];
        let mut second = Box::pin(cache.get_many(&second_ids));
        assert!(second.as_mut().now_or_never().is_none());
        slow.go.notify_one();
        assert!(first.now_or_never().is_some());
        assert_eq!(second.now_or_never().expect("landed").expect("get"), [text(&id(1, 1))]);
        assert_eq!(slow.asked.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn who_waited_in_vain_asks_for_itself() {
        let (cache, slow) = cache(100, true);
        let both = [id(1, 1), id(2, 1)];
        let mut failing = Box::pin(cache.get_many(&both));
        assert!(failing.as_mut().now_or_never().is_none());
        let ids = [id(1, 1)];
        let mut second = Box::pin(cache.get_many(&ids));
        assert!(second.as_mut().now_or_never().is_none());
        slow.go.notify_one();
        assert!(failing.now_or_never().expect("answered").is_err());
        slow.go.notify_one();
        assert_eq!(second.now_or_never().expect("answered").expect("get"), [text(&id(1, 1))]);
    }

    #[test]
    fn a_fetch_that_is_given_up_leaves_nobody_waiting() {
        let (cache, slow) = cache(100, false);
        let ids = [id(1, 1)];
        let mut dropped = Box::pin(cache.get_many(&ids));
        assert!(dropped.as_mut().now_or_never().is_none());
        let mut second = Box::pin(cache.get_many(&ids));
        assert!(second.as_mut().now_or_never().is_none());
        drop(dropped);
        slow.go.notify_one();
        assert_eq!(second.now_or_never().expect("answered").expect("get"), [text(&id(1, 1))]);
    }
}
