//! A block store in memory: the model that tests compare the others with.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::base::hash::{BlockId, Hash};
use crate::store::block::{
    Block, BlockLocation, BlockStore, BlockTicket, Receipt, UploadPromise, UploadTicket,
};
use crate::store::{Error, Kind, Result};

/// Blocks of one process, each an object of its own. "Durable" means here: until the store is dropped.
#[derive(Default)]
pub struct InMemoryBlockStore {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    blocks: BTreeMap<BlockId, Stored>,
    /// Uploads wait until they are let go.
    holding: bool,
}

struct Stored {
    data: Bytes,
    promise: UploadPromise,
}

impl InMemoryBlockStore {
    /// An empty store that acknowledges at once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Acknowledges nothing from now on: blocks put after this are staged.
    pub fn hold_uploads(&self) {
        self.state().holding = true;
    }

    /// Acknowledges what was held back, and everything else at once again.
    pub fn let_uploads_go(&self) {
        let mut state = self.state();
        state.holding = false;
        state.blocks.values().for_each(Stored::acknowledge);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&self, id: BlockId) -> Result<&Stored> {
        let unknown = || Error::new(Kind::NotFound, format!("get block={id}: no such block"));
        self.blocks.get(&id).ok_or_else(unknown)
    }

    /// The block as its name says it is.
    fn get(&self, id: BlockId) -> Result<Bytes> {
        let data = self.find(id)?.data.clone();
        let changed = || Error::new(Kind::Corrupt, format!("get block={id}: it is another"));
        if id.verifies(&data) { Ok(data) } else { Err(changed()) }
    }
}

impl Stored {
    fn new(data: Bytes) -> Self {
        Self { data, promise: UploadTicket::pending().0 }
    }

    fn acknowledge(&self) {
        self.promise.fulfil(Receipt { len: self.data.len() as u64, footer: Hash::ZERO });
    }

    fn ticket(&self, id: BlockId) -> BlockTicket {
        BlockTicket { id, location: BlockLocation::Object, upload: self.promise.ticket() }
    }
}

#[async_trait]
impl BlockStore for InMemoryBlockStore {
    async fn put_many(&self, blocks: Vec<Block>) -> Result<Vec<BlockTicket>> {
        let mut state = self.state();
        let holding = state.holding;
        let put = |Block { id, data }| {
            let stored = state.blocks.entry(id).or_insert_with(|| Stored::new(data));
            if !holding {
                stored.acknowledge();
            }
            stored.ticket(id)
        };
        Ok(blocks.into_iter().map(put).collect())
    }

    async fn sync(&self) -> Result<()> {
        Ok(())
    }

    async fn seal(&self) -> Result<()> {
        Ok(())
    }

    async fn get_many(&self, ids: &[BlockId]) -> Result<Vec<Bytes>> {
        let state = self.state();
        ids.iter().map(|&id| state.get(id)).collect()
    }

    async fn contains_many(&self, ids: &[BlockId]) -> Result<Vec<Option<BlockTicket>>> {
        let state = self.state();
        Ok(ids.iter().map(|id| Some(state.blocks.get(id)?.ticket(*id))).collect())
    }

    async fn verify(&self, id: BlockId) -> Result<()> {
        let state = self.state();
        if state.find(id)?.promise.receipt().is_none() {
            return Err(Error::new(Kind::NotFound, format!("verify block={id}: only staged")));
        }
        state.get(id).map(drop)
    }

    async fn list(
        &self,
        visit: &mut (dyn FnMut(BlockId, BlockLocation) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        let state = self.state();
        let stored = |stored: &Stored| stored.promise.receipt().is_some();
        let ids: Vec<_> = state.blocks.iter().filter(|(_, block)| stored(block)).map(|(id, _)| *id).collect();
        drop(state);
        // Broken off is no failure.
        let _ = ids.into_iter().try_for_each(|id| visit(id, BlockLocation::Object));
        Ok(())
    }

    async fn delete(&self, ids: &[BlockId]) -> Result<Vec<BlockId>> {
        let mut state = self.state();
        let staged = |state: &State, id| {
            state.blocks.get(&id).is_some_and(|stored: &Stored| stored.promise.receipt().is_none())
        };
        let (kept, deleted): (Vec<_>, Vec<_>) = ids.iter().partition(|id| staged(&state, **id));
        for id in &deleted {
            state.blocks.remove(*id);
        }
        Ok(kept.into_iter().copied().collect())
    }
}
