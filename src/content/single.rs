//! The block store of layout Single: every block an object of its own, one frame long; staged as a file of its own and
//! sent at once. For few large files, and for reading single blocks with nothing but an S3 client; there is no disk
//! cache and no packing, so a small block costs a request.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tracing::warn;

use super::frame::{self, Compression, FrameEncoder, FrameHeader};
use super::framed::{Pending, RecoveredBlocks};
use super::spill::{Reservation, SpillBudget};
use super::upload::{Backoff, Progress};
use crate::base::hash::{BlockId, Hash};
use crate::base::time::Clock;
use crate::rt::{Gate, SemaphoreLimit, Spawner, run_blocking};
use crate::store::block::{
    Block, BlockIndex, BlockLocation, BlockStore, BlockTicket, Receipt, UploadPromise, UploadTicket,
};
use crate::store::device::Directory;
use crate::store::object::{ImmutableObjectStore, ObjectKey};
use crate::store::{Error, Kind, Result, keys};

const SUFFIX: &str = ".block";

/// Requests of one call in flight at once; permits bound them over all calls.
const REQUESTS_AT_ONCE: usize = 8;

pub(super) fn file_name(id: BlockId) -> String {
    format!("{}-{}{SUFFIX}", id.hash, id.len)
}

/// The block that is staged in a file of this name.
pub(super) fn parse_file_name(name: &str) -> Option<BlockId> {
    let (hash, len) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    let id = BlockId { hash: Hash::parse(hash)?, len: len.parse().ok()? };
    (file_name(id) == name).then_some(id)
}

/// What a [`SingleBlockStore`] is made of.
pub struct SingleParts {
    /// The volume's objects, wrapped with retry and limits.
    pub objects: Arc<dyn ImmutableObjectStore>,
    /// The directory of staged blocks; nobody else's.
    pub staged: Arc<dyn Directory>,
    pub index: Arc<dyn BlockIndex>,
    pub clock: Arc<dyn Clock>,
    pub spawner: Arc<dyn Spawner>,
    /// Charged with the bytes of blocks that are not acknowledged.
    pub budget: SpillBudget,
    pub compression: Compression,
    /// Bytes of blocks in memory for upload, and for download.
    pub uploads: SemaphoreLimit,
    pub downloads: SemaphoreLimit,
}

/// See the module. Dropping it stops the uploads; what is staged then waits for the next mount.
pub struct SingleBlockStore {
    inner: Arc<Inner>,
}

struct Inner {
    parts: SingleParts,
    gate: Gate,
    progress: Progress,
    /// Held while files are made, so that no block is staged twice.
    staging: Mutex<Staging>,
    /// Taken under `staging` or alone; never held across file or network access.
    blocks: Mutex<HashMap<BlockId, Arc<Staged>>>,
}

#[derive(Default)]
struct Staging {
    sync_failed: bool,
}

/// A block with a file in the staged directory.
struct Staged {
    id: BlockId,
    /// When it was staged, on the monotonic clock.
    born: Duration,
    frame_len: u64,
    promise: UploadPromise,
    synced: AtomicBool,
    /// Given back when the store has the block.
    reservation: Mutex<Option<Reservation>>,
}

impl Staged {
    fn ticket(&self) -> BlockTicket {
        BlockTicket { id: self.id, location: BlockLocation::Object, upload: self.promise.ticket() }
    }

    fn fulfil(&self, receipt: Receipt) {
        *self.reservation.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.promise.fulfil(receipt);
    }
}

impl SingleBlockStore {
    /// A store that knows nothing of what is staged until [`recover`](Self::recover).
    #[must_use]
    pub fn new(parts: SingleParts) -> Self {
        let inner = Inner {
            parts,
            gate: Gate::new(),
            progress: Progress::new(),
            staging: Mutex::default(),
            blocks: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Takes over what an earlier process staged and sends it on its way. Call it once, before the first block is put.
    ///
    /// # Errors
    /// Of the local disk.
    pub async fn recover(&self) -> Result<RecoveredBlocks> {
        let inner = self.inner.clone();
        run_blocking(&*self.inner.parts.spawner, "recover staged blocks", move || inner.recover()).await
    }

    /// What is not acknowledged yet.
    #[must_use]
    pub fn pending(&self) -> Pending {
        let blocks = self.inner.blocks();
        let waiting = || blocks.values().filter(|staged| staged.promise.receipt().is_none());
        let now = self.inner.parts.clock.monotonic();
        Pending {
            bytes: waiting().map(|staged| staged.frame_len).sum(),
            oldest: waiting().map(|staged| now.saturating_sub(staged.born)).max(),
            last_error: self.inner.progress.last_error(),
        }
    }

    /// Waits until the store has acknowledged every block.
    ///
    /// # Errors
    /// `Unavailable` if the store was shut down meanwhile.
    pub async fn drain(&self) -> Result<()> {
        self.inner.progress.all_acknowledged().await;
        if self.inner.progress.is_stopped() {
            return Err(Error::new(Kind::Unavailable, "drain: the block store has shut down"));
        }
        Ok(())
    }

    /// Stops uploads, also those under way, and waits until no task is left. What is staged stays on disk for the next
    /// mount; this store does not know it any more, and tickets not fulfilled say so.
    pub async fn shutdown(&self) {
        self.inner.progress.stop();
        self.inner.gate.close().await;
        self.inner.blocks().clear();
    }
}

impl Drop for SingleBlockStore {
    fn drop(&mut self) {
        self.inner.progress.stop();
    }
}

impl Inner {
    fn blocks(&self) -> MutexGuard<'_, HashMap<BlockId, Arc<Staged>>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, ids: &[BlockId]) -> Result<Vec<Option<BlockTicket>>> {
        // In this order: a block leaves the staged ones only once the index has it.
        let staged: Vec<_> = {
            let blocks = self.blocks();
            ids.iter().map(|id| blocks.get(id).map(|staged| staged.ticket())).collect()
        };
        let located = self.parts.index.locate(ids)?;
        let stored = |id: BlockId, found: Option<(BlockLocation, Receipt)>| {
            let (location, receipt) = found?;
            Some(BlockTicket { id, location, upload: UploadTicket::fulfilled(receipt) })
        };
        let each = ids.iter().zip(staged).zip(located);
        Ok(each.map(|((id, staged), found)| staged.or_else(|| stored(*id, found))).collect())
    }

    /// Stages what is not known yet.
    fn stage(self: &Arc<Self>, blocks: &[Block]) -> Result<Vec<BlockTicket>> {
        let ids: Vec<_> = blocks.iter().map(|block| block.id).collect();
        let mut encoder = FrameEncoder::new(self.parts.compression);
        let mut frame = Vec::new();
        let _staging = self.staging();
        let mut tickets = Vec::with_capacity(blocks.len());
        for (block, known) in blocks.iter().zip(self.known(&ids)?) {
            // Asked again, for a block that comes twice.
            let known = known.or_else(|| self.blocks().get(&block.id).map(|staged| staged.ticket()));
            tickets.push(match known {
                Some(ticket) => ticket,
                None => {
                    frame.clear();
                    encoder.encode(block.id, &block.data).write_to(|part| frame.extend_from_slice(part));
                    self.stage_one(block.id, &frame)?
                }
            });
        }
        Ok(tickets)
    }

    fn stage_one(self: &Arc<Self>, id: BlockId, frame: &[u8]) -> Result<BlockTicket> {
        let SingleParts { staged: directory, budget, .. } = &self.parts;
        let (name, reservation) = (file_name(id), budget.charge(frame.len() as u64));
        let written = directory.create(&name)?.write_at(frame, 0);
        if let Err(error) = written {
            // Torn: the next start would drop it, and the next put of this block must not trip over it.
            if let Err(error) = directory.remove(&name) {
                warn!(block = %id, %error, "remove torn staged block");
            }
            return Err(error);
        }
        Ok(self.register(id, frame.len() as u64, reservation))
    }

    /// Makes a complete file known and sends it.
    fn register(self: &Arc<Self>, id: BlockId, frame_len: u64, reservation: Reservation) -> BlockTicket {
        let staged = Arc::new(Staged {
            id,
            born: self.parts.clock.monotonic(),
            frame_len,
            promise: UploadTicket::pending().0,
            synced: AtomicBool::new(false),
            reservation: Mutex::new(Some(reservation)),
        });
        self.blocks().insert(id, staged.clone());
        let ticket = staged.ticket();
        self.start(staged);
        ticket
    }

    fn recover(self: &Arc<Self>) -> Result<RecoveredBlocks> {
        let _staging = self.staging();
        let directory = &self.parts.staged;
        let mut found = RecoveredBlocks::default();
        let mut files = directory.list()?;
        files.sort_unstable();
        for (name, len) in files {
            if !name.ends_with(SUFFIX) {
                continue;
            }
            match whole_frame(&**directory, &name, len)? {
                Some(header) => {
                    let ticket = self.register(header.id, len, self.parts.budget.charge(len));
                    found.tickets.push(ticket);
                }
                None => {
                    found.torn_bytes += len;
                    directory.remove(&name)?;
                }
            }
        }
        Ok(found)
    }

    fn sync(&self) -> Result<()> {
        let mut staging = self.staging();
        if staging.sync_failed {
            return Err(Error::new(Kind::Internal, "sync staged blocks: an earlier sync failed"));
        }
        // Acknowledged blocks too: until they are committed, the local files are all that says that they exist.
        let unsynced = |staged: &&Arc<Staged>| !staged.synced.load(Ordering::Acquire);
        let waiting: Vec<_> = self.blocks().values().filter(unsynced).cloned().collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let all = || -> Result<()> {
            self.parts.staged.sync()?;
            for staged in &waiting {
                match self.parts.staged.open(&file_name(staged.id)) {
                    Ok(device) => device.sync()?,
                    // Let go since.
                    Err(error) if error.kind == Kind::NotFound => {}
                    Err(error) => return Err(error),
                }
                staged.synced.store(true, Ordering::Release);
            }
            Ok(())
        };
        let outcome = all();
        staging.sync_failed = outcome.is_err();
        outcome
    }

    fn start(self: &Arc<Self>, staged: Arc<Staged>) {
        let Some(pass) = self.gate.enter() else { return };
        self.progress.begun();
        let inner = self.clone();
        let work = async move {
            let _pass = pass;
            let is_released = tokio::select! {
                () = inner.send_until_released(&staged) => true,
                () = inner.progress.stopped() => false,
            };
            if is_released {
                inner.let_file_go(staged.id).await;
            }
        };
        self.parts.spawner.spawn("upload block", Box::pin(work));
    }

    async fn send_until_released(self: &Arc<Self>, staged: &Arc<Staged>) {
        let mut backoff = Backoff::new();
        let receipt = loop {
            match self.attempt(staged).await {
                Ok(receipt) => break receipt,
                Err(error) => self.progress.pause_after(&error, &mut backoff, &*self.parts.clock).await,
            }
        };
        self.progress.note(None);
        staged.fulfil(receipt);
        self.progress.done();
        loop {
            staged.promise.released().await;
            let mut blocks = self.blocks();
            if !staged.promise.is_held() {
                blocks.remove(&staged.id);
                return;
            }
        }
    }

    async fn let_file_go(self: &Arc<Self>, id: BlockId) {
        let inner = self.clone();
        run_blocking(&*self.parts.spawner, "release staged block", move || {
            let _staging = inner.staging();
            // Somebody may have staged the block anew since.
            if !inner.blocks().contains_key(&id)
                && let Err(error) = inner.parts.staged.remove(&file_name(id))
            {
                warn!(block = %id, %error, "remove staged block");
            }
        })
        .await;
    }

    async fn attempt(self: &Arc<Self>, staged: &Arc<Staged>) -> Result<Receipt> {
        let _permit = self.parts.uploads.acquire(staged.frame_len).await;
        let (inner, id) = (self.clone(), staged.id);
        let body =
            run_blocking(&*self.parts.spawner, "read staged block", move || inner.read_file(id)).await?;
        let key = keys::block(id);
        match self.parts.objects.put_new(&key, body).await {
            Ok(meta) => Ok(Receipt { len: meta.len, footer: Hash::ZERO }),
            // The name says what is in it: the same block, if perhaps compressed otherwise. Believed when seen.
            Err(error) if error.kind == Kind::Precondition => {
                let stored = self.parts.objects.get(&key, None).await?;
                self.decode(stored, id).await.map(|(_, len)| Receipt { len, footer: Hash::ZERO })
            }
            Err(error) => Err(error),
        }
    }

    /// The frame of a staged block, checked.
    fn read_file(&self, id: BlockId) -> Result<Bytes> {
        let device = self.parts.staged.open(&file_name(id))?;
        let len = self.blocks().get(&id).map_or(0, |staged| staged.frame_len);
        let mut frame = vec![0; usize::try_from(len).expect("frames fit 32 bits")];
        device.read_at(&mut frame, 0)?;
        match frame::check(&frame) {
            Ok(header) if header.id == id => Ok(frame.into()),
            _ => {
                let detail = format!("read staged block={id}: local disk changed it");
                Err(Error::new(Kind::Corrupt, detail))
            }
        }
    }

    /// The plain bytes of a fetched frame, and its length.
    async fn decode(&self, stored: Bytes, id: BlockId) -> Result<(Bytes, u64)> {
        let len = stored.len() as u64;
        let decode = move || frame::decode(&stored, id);
        let plain = run_blocking(&*self.parts.spawner, "decode block", decode).await;
        let corrupt = |error: frame::FrameError| {
            let detail = format!("get block={id} object={}: {error}", keys::block(id));
            Error::new(Kind::Corrupt, detail).with_source(error)
        };
        Ok((plain.map_err(corrupt)?, len))
    }

    async fn fetch(&self, id: BlockId) -> Result<Bytes> {
        let _permit = self.parts.downloads.acquire(id.len.into()).await;
        let name = |error: Error| Error { detail: format!("get block={id}: {error}"), ..error };
        let stored = self.parts.objects.get(&keys::block(id), None).await.map_err(name)?;
        Ok(self.decode(stored, id).await?.0)
    }

    /// What needs no request, and what does.
    fn read_local(&self, ids: &[BlockId]) -> Result<(HashMap<BlockId, Bytes>, Vec<BlockId>)> {
        let (mut found, mut elsewhere) = (HashMap::new(), Vec::new());
        for &id in ids {
            let Some(staged) = self.blocks().get(&id).cloned() else {
                elsewhere.push(id);
                continue;
            };
            let plain = self.read_file(id).and_then(|frame| {
                let damaged = |error| Error::new(Kind::Corrupt, format!("read staged block={id}: {error}"));
                frame::decode(&frame, id).map_err(damaged)
            });
            match plain {
                Ok(plain) => drop(found.insert(id, plain)),
                Err(error) if staged.promise.receipt().is_none() => return Err(error),
                Err(_) => elsewhere.push(id),
            }
        }
        let located = self.parts.index.locate(&elsewhere)?;
        for (id, _) in elsewhere.iter().zip(located).filter(|(_, found)| found.is_none()) {
            // Staged, acknowledged and damaged on the local disk is no reason to say that it is unknown.
            if !self.blocks().contains_key(id) {
                return Err(Error::new(Kind::NotFound, format!("get block={id}: no such block is known")));
            }
        }
        Ok((found, elsewhere))
    }
}

/// The header of the file's frame, if it is complete and the file holds nothing else.
fn whole_frame(directory: &dyn Directory, name: &str, len: u64) -> Result<Option<FrameHeader>> {
    let Ok(size) = u32::try_from(len) else { return Ok(None) };
    let mut frame = vec![0; size as usize];
    directory.open(name)?.read_at(&mut frame, 0)?;
    let header = frame::check(&frame).ok();
    Ok(header.filter(|header| header.frame_len() == size && file_name(header.id) == name))
}

#[async_trait]
impl BlockStore for SingleBlockStore {
    async fn put_many(&self, blocks: Vec<Block>) -> Result<Vec<BlockTicket>> {
        let inner = self.inner.clone();
        run_blocking(&*self.inner.parts.spawner, "stage blocks", move || inner.stage(&blocks)).await
    }

    async fn sync(&self) -> Result<()> {
        let inner = self.inner.clone();
        run_blocking(&*self.inner.parts.spawner, "sync staged blocks", move || inner.sync()).await
    }

    /// Nothing to do: blocks are on their way as soon as they are staged.
    async fn seal(&self) -> Result<()> {
        Ok(())
    }

    async fn get_many(&self, ids: &[BlockId]) -> Result<Vec<Bytes>> {
        let mut distinct = ids.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let inner = self.inner.clone();
        let local = move || inner.read_local(&distinct);
        let (mut found, wanted) =
            run_blocking(&*self.inner.parts.spawner, "read local blocks", local).await?;
        let fetches = wanted.into_iter().map(async |id| Ok::<_, Error>((id, self.inner.fetch(id).await?)));
        let fetched: Vec<_> = stream::iter(fetches).buffer_unordered(REQUESTS_AT_ONCE).try_collect().await?;
        found.extend(fetched);
        Ok(ids.iter().map(|id| found.get(id).expect("all were found, or it is an error").clone()).collect())
    }

    async fn contains_many(&self, ids: &[BlockId]) -> Result<Vec<Option<BlockTicket>>> {
        let (inner, ids) = (self.inner.clone(), ids.to_vec());
        run_blocking(&*self.inner.parts.spawner, "look up blocks", move || inner.known(&ids)).await
    }

    async fn verify(&self, id: BlockId) -> Result<()> {
        self.inner.fetch(id).await.map(drop)
    }

    async fn list(
        &self,
        visit: &mut (dyn FnMut(BlockId, BlockLocation) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        let mut after: Option<ObjectKey> = None;
        loop {
            let page = self.inner.parts.objects.list(keys::BLOCKS, after.as_ref()).await?;
            let mut ids = page.objects.iter().filter_map(|object| keys::parse_block(&object.key));
            if ids.try_for_each(|id| visit(id, BlockLocation::Object)).is_break() {
                return Ok(());
            }
            after = page.objects.last().map(|object| object.key.clone());
            if !page.more || after.is_none() {
                return Ok(());
            }
        }
    }

    async fn delete(&self, ids: &[BlockId]) -> Result<Vec<BlockId>> {
        // A staged block is wanted by somebody who has not committed it yet.
        let staged: HashSet<_> = self.inner.blocks().keys().copied().collect();
        let (kept, doomed): (Vec<_>, Vec<_>) = ids.iter().copied().partition(|id| staged.contains(id));
        let keys: Vec<_> = doomed.into_iter().map(keys::block).collect();
        self.inner.parts.objects.delete(&keys).await?;
        Ok(kept)
    }
}
