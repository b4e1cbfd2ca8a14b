//! The block store of layout Framed: blocks staged in local packs, packs sent whole, frames fetched by range.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};

use super::fetch::Fetcher;
use super::frame::{Compression, EncodedFrame, FrameEncoder};
use super::pack_cache::PackCache;
use super::pack_listing::{self, PackPages};
use super::spill::SpillBudget;
use super::staging::{Appended, Staging, StagingParts};
use super::upload::{Progress, Uploads};
use crate::base::hash::BlockId;
use crate::base::ids::{PackId, WriterId};
use crate::base::limits::PACK_BYTES_TARGET;
use crate::base::time::Clock;
use crate::rt::{Gate, SemaphoreLimit, Spawner, run_blocking};
use crate::store::block::{Block, BlockIndex, BlockLocation, BlockStore, BlockTicket, UploadTicket};
use crate::store::device::Directory;
use crate::store::object::ImmutableObjectStore;
use crate::store::{Error, Kind, Result, keys};

/// Plain bytes of blocks that one thread encodes at a time: long enough to be worth a hand-over, short enough that
/// both cores of a small machine get some of a 4 MiB flush.
const GROUP_BYTES: u64 = 1 << 20;

/// Groups of one call in the works at once.
const GROUPS_AT_ONCE: usize = 4;

/// What a [`FramedBlockStore`] is made of.
pub struct FramedParts {
    /// The volume's objects, wrapped with retry and limits.
    pub objects: Arc<dyn ImmutableObjectStore>,
    /// The directory of staged packs; nobody else's.
    pub staged: Arc<dyn Directory>,
    pub index: Arc<dyn BlockIndex>,
    pub clock: Arc<dyn Clock>,
    pub spawner: Arc<dyn Spawner>,
    /// Charged with the bytes of packs that are not acknowledged.
    pub budget: SpillBudget,
    /// None: fetched ranges are not kept, and a staged file goes when its pack is stored. Its second directory must be
    /// `staged`.
    pub cache: Option<Arc<PackCache>>,
    /// Bytes of packs in memory for upload, and of ranges in memory for download.
    pub uploads: SemaphoreLimit,
    pub downloads: SemaphoreLimit,
}

/// How a [`FramedBlockStore`] behaves.
#[derive(Clone, Copy, Debug)]
pub struct FramedOptions {
    /// Must be new: no earlier process may have written packs with it.
    pub writer: WriterId,
    pub compression: Compression,
    /// A pack is sealed before it would exceed this many bytes of frames.
    pub pack_bytes_target: u64,
    /// A pack is sealed this long after its first frame at the latest.
    pub seal_after: Duration,
    /// Bytes of plain blocks being compressed at once.
    pub encode_bytes_max: u64,
    /// Uploads to a store that takes them as fast as a disk wait up to 5 s for a burst of writing to end: they would take
    /// from the writers and be done hardly sooner. Not where fsync waits for them.
    pub give_way: bool,
}

impl FramedOptions {
    /// The defaults for `writer`.
    #[must_use]
    pub fn new(writer: WriterId) -> Self {
        Self {
            writer,
            compression: Compression::default(),
            pack_bytes_target: PACK_BYTES_TARGET,
            seal_after: Duration::from_secs(2),
            encode_bytes_max: 32 << 20,
            give_way: false,
        }
    }
}

/// What waits to be acknowledged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    /// Bytes of frames in packs, open or sealed.
    pub bytes: u64,
    /// How long ago the oldest of these packs was begun.
    pub oldest: Option<Duration>,
    /// What the last upload attempt failed with; None after a success.
    pub last_error: Option<String>,
}

/// What a start found in the staged directory.
#[derive(Debug, Default)]
pub struct RecoveredBlocks {
    /// All complete blocks. Keep the tickets until the overlay that needs them is attached again: without one a block
    /// is let go as soon as its pack is acknowledged.
    pub tickets: Vec<BlockTicket>,
    pub packs: usize,
    /// Bytes dropped behind the last complete frame of each pack.
    pub torn_bytes: u64,
}

/// See the module. Dropping it stops the uploads; what is staged then waits for the next mount.
pub struct FramedBlockStore {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Arc<dyn ImmutableObjectStore>,
    index: Arc<dyn BlockIndex>,
    clock: Arc<dyn Clock>,
    spawner: Arc<dyn Spawner>,
    staging: Arc<Staging>,
    uploads: Arc<Uploads>,
    fetcher: Arc<Fetcher>,
    cache: Option<Arc<PackCache>>,
    encoding: SemaphoreLimit,
    encoders: Arc<IdleEncoders>,
    options: FramedOptions,
}

impl FramedBlockStore {
    /// A store that knows nothing of earlier packs until [`recover`](Self::recover).
    #[must_use]
    pub fn new(parts: FramedParts, options: FramedOptions) -> Self {
        let FramedParts { objects, staged, index, clock, spawner, budget, cache, uploads, downloads } = parts;
        let FramedOptions { writer, pack_bytes_target, give_way, .. } = options;
        let staging = Arc::new(Staging::new(StagingParts {
            directory: staged.clone(),
            clock: clock.clone(),
            budget,
            uploads: uploads.clone(),
            writer,
            pack_bytes_target,
        }));
        let uploads = Arc::new(Uploads {
            objects: objects.clone(),
            directory: staged,
            staging: staging.clone(),
            cache: cache.clone(),
            clock: clock.clone(),
            spawner: spawner.clone(),
            permits: uploads,
            give_way,
            speed: AtomicU64::new(0),
            gate: Gate::new(),
            progress: Progress::new(),
        });
        let fetcher = Arc::new(Fetcher::new(
            objects.clone(),
            index.clone(),
            staging.clone(),
            cache.clone(),
            spawner.clone(),
            downloads,
        ));
        let encoding = SemaphoreLimit::new(options.encode_bytes_max);
        let encoders = Arc::default();
        let inner = Inner {
            objects,
            index,
            clock,
            spawner,
            staging,
            uploads,
            fetcher,
            cache,
            encoding,
            encoders,
            options,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Takes over what an earlier process staged and sends it on its way. Call it once, before the first block is put.
    ///
    /// # Errors
    /// Of the local disk.
    pub async fn recover(&self) -> Result<RecoveredBlocks> {
        let staging = self.inner.staging.clone();
        let found = run_blocking(&*self.inner.spawner, "recover staged packs", move || staging.recover());
        let found = found.await?;
        let packs = found.packs.len();
        found.packs.into_iter().for_each(|pack| self.inner.uploads.start(pack));
        Ok(RecoveredBlocks { tickets: found.tickets, packs, torn_bytes: found.torn_bytes })
    }

    /// What is not acknowledged yet.
    #[must_use]
    pub fn pending(&self) -> Pending {
        let (bytes, born) = self.inner.staging.unacknowledged();
        let oldest = born.map(|born| self.inner.clock.monotonic().saturating_sub(born));
        Pending { bytes, oldest, last_error: self.inner.uploads.progress.last_error() }
    }

    /// Seals, and waits until the store has acknowledged every pack.
    ///
    /// # Errors
    /// `Unavailable` if the store was shut down meanwhile.
    pub async fn drain(&self) -> Result<()> {
        loop {
            self.seal().await?;
            self.inner.uploads.progress.all_acknowledged().await;
            if self.pending().bytes == 0 {
                return Ok(());
            }
            if self.inner.uploads.progress.is_stopped() {
                return Err(Error::new(Kind::Unavailable, "drain: the block store has shut down"));
            }
        }
    }

    /// Stops uploads, also those under way, and waits until no task is left. What is staged stays on disk for the next
    /// mount; this store does not know it any more, and tickets not fulfilled say so.
    pub async fn shutdown(&self) {
        self.inner.uploads.progress.stop();
        self.inner.uploads.gate.close().await;
        self.inner.staging.forget_all();
    }
}

impl Drop for FramedBlockStore {
    fn drop(&mut self) {
        self.inner.uploads.progress.stop();
    }
}

impl Inner {
    /// Tickets for blocks that are staged or stored.
    fn known(&self, ids: &[BlockId]) -> Result<Vec<Option<BlockTicket>>> {
        let mut tickets: Vec<_> = ids.iter().map(|id| self.staging.ticket(id)).collect();
        let unknown: Vec<_> =
            ids.iter().zip(&tickets).filter(|(_, ticket)| ticket.is_none()).map(|(id, _)| *id).collect();
        if unknown.is_empty() {
            return Ok(tickets);
        }
        let mut located = unknown.iter().zip(self.index.locate(&unknown)?);
        for ticket in tickets.iter_mut().filter(|ticket| ticket.is_none()) {
            let Some((id, found)) = located.next() else { break };
            *ticket = found.map(|(location, receipt)| BlockTicket {
                id: *id,
                location,
                upload: UploadTicket::fulfilled(receipt),
            });
        }
        Ok(tickets)
    }

    /// Appends encoded blocks and starts what follows from it. In one piece, so that it is not left half done when the
    /// caller gives up.
    fn stage(self: &Arc<Self>, frames: &[EncodedFrame]) -> Result<Vec<BlockTicket>> {
        let mut done = Appended::default();
        let outcome = self.staging.append(frames, &mut done);
        done.sealed.into_iter().for_each(|pack| self.uploads.start(pack));
        if let Some(pack) = done.opened {
            self.seal_later(pack);
        }
        outcome.map(|()| done.tickets)
    }

    fn seal_later(self: &Arc<Self>, pack: PackId) {
        let Some(pass) = self.uploads.gate.enter() else { return };
        let inner = self.clone();
        let work = async move {
            let _pass = pass;
            tokio::select! {
                () = inner.clock.sleep(inner.options.seal_after) => inner.seal(Some(pack)).await,
                () = inner.uploads.progress.stopped() => {}
            }
        };
        self.spawner.spawn("seal pack", Box::pin(work));
    }

    /// Seals the open pack, if it is `only` (or whichever it is).
    async fn seal(self: &Arc<Self>, only: Option<PackId>) {
        let inner = self.clone();
        run_blocking(&*self.spawner, "seal pack", move || {
            if let Some(pack) = inner.staging.seal(only) {
                inner.uploads.start(pack);
            }
        })
        .await;
    }

    async fn encoded(&self, blocks: Vec<Block>) -> Vec<EncodedFrame> {
        let bytes = blocks.iter().map(|block| u64::from(block.id.len)).sum();
        let _permit = self.encoding.acquire(bytes).await;
        let (encoders, compression) = (self.encoders.clone(), self.options.compression);
        run_blocking(&*self.spawner, "encode blocks", move || {
            let mut encoder = encoders.take().unwrap_or_else(|| FrameEncoder::new(compression));
            let frames = blocks.iter().map(|block| encoder.encode(block.id, &block.data)).collect();
            encoders.give_back(encoder);
            frames
        })
        .await
    }
}

/// Encoders not in use just now: their tables cost more to make than a block to encode. No more than threads that encode.
#[derive(Default)]
struct IdleEncoders(Mutex<Vec<FrameEncoder>>);

impl IdleEncoders {
    fn take(&self) -> Option<FrameEncoder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give_back(&self, encoder: FrameEncoder) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(encoder);
    }
}

#[async_trait]
impl BlockStore for FramedBlockStore {
    async fn put_many(&self, blocks: Vec<Block>) -> Result<Vec<BlockTicket>> {
        let ids: Vec<_> = blocks.iter().map(|block| block.id).collect();
        let mut tickets: HashMap<BlockId, BlockTicket> = HashMap::with_capacity(ids.len());
        let known = {
            let (inner, ids) = (self.inner.clone(), ids.clone());
            run_blocking(&*self.inner.spawner, "look up blocks", move || inner.known(&ids)).await?
        };
        let mut distinct = HashSet::with_capacity(ids.len());
        let mut new = Vec::new();
        for (block, known) in blocks.into_iter().zip(known) {
            if !distinct.insert(block.id) {
                continue;
            }
            match known {
                Some(ticket) => drop(tickets.insert(block.id, ticket)),
                None => new.push(block),
            }
        }
        let encoded = groups(new).into_iter().map(|group| self.inner.encoded(group));
        // In the order they came: what is written together is read together.
        let mut encoded = stream::iter(encoded).buffered(GROUPS_AT_ONCE).ready_chunks(GROUPS_AT_ONCE);
        while let Some(groups) = encoded.next().await {
            let inner = self.inner.clone();
            let frames: Vec<_> = groups.into_iter().flatten().collect();
            let staged = run_blocking(&*self.inner.spawner, "stage blocks", move || inner.stage(&frames));
            tickets.extend(staged.await?.into_iter().map(|ticket| (ticket.id, ticket)));
        }
        Ok(ids.iter().map(|id| tickets.get(id).expect("known or staged just now").clone()).collect())
    }

    async fn sync(&self) -> Result<()> {
        let staging = self.inner.staging.clone();
        run_blocking(&*self.inner.spawner, "sync staged packs", move || staging.sync()).await
    }

    async fn seal(&self) -> Result<()> {
        self.inner.seal(None).await;
        Ok(())
    }

    async fn get_many(&self, ids: &[BlockId]) -> Result<Vec<Bytes>> {
        self.inner.fetcher.get_many(ids).await
    }

    async fn contains_many(&self, ids: &[BlockId]) -> Result<Vec<Option<BlockTicket>>> {
        let (inner, ids) = (self.inner.clone(), ids.to_vec());
        run_blocking(&*self.inner.spawner, "look up blocks", move || inner.known(&ids)).await
    }

    async fn verify(&self, id: BlockId) -> Result<()> {
        self.inner.fetcher.verify(id).await
    }

    async fn list(
        &self,
        visit: &mut (dyn FnMut(BlockId, BlockLocation) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        let objects = &*self.inner.objects;
        let mut pages = PackPages::new(objects);
        while let Some(page) = pages.next().await? {
            for (id, len) in page {
                let stored = pack_listing::read_directory(objects, id, len).await?;
                let mut entries = stored.entries.iter();
                if entries.try_for_each(|entry| visit(entry.id, entry.location(id))).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Reads the directory of every pack: for repair, not for daily collection, which knows its packs.
    async fn delete(&self, ids: &[BlockId]) -> Result<Vec<BlockId>> {
        let objects = &*self.inner.objects;
        let doomed: HashSet<_> = ids.iter().copied().collect();
        let mut kept = HashSet::new();
        let mut packs = Vec::new();
        let mut pages = PackPages::new(objects);
        while let Some(page) = pages.next().await? {
            for (id, len) in page {
                let stored = pack_listing::read_directory(objects, id, len).await?;
                let (inside, others): (Vec<_>, Vec<_>) =
                    stored.entries.iter().map(|entry| entry.id).partition(|id| doomed.contains(id));
                // A pack with a staged file is wanted by somebody who has not committed it yet.
                if others.is_empty() && self.inner.staging.pack(id).is_none() {
                    packs.push(id);
                } else {
                    kept.extend(inside);
                }
            }
        }
        let keys: Vec<_> = packs.iter().map(|id| keys::pack(*id)).collect();
        objects.delete(&keys).await?;
        if let Some(cache) = self.inner.cache.clone() {
            let forget = move || packs.into_iter().for_each(|id| cache.forget(id));
            run_blocking(&*self.inner.spawner, "forget packs", forget).await;
        }
        Ok(ids.iter().copied().filter(|id| kept.contains(id)).collect())
    }
}

/// Splits blocks into runs of about [`GROUP_BYTES`].
fn groups(blocks: Vec<Block>) -> Vec<Vec<Block>> {
    let mut groups: Vec<Vec<Block>> = Vec::new();
    let mut bytes = u64::MAX;
    for block in blocks {
        let len = u64::from(block.id.len);
        match groups.last_mut() {
            Some(group) if bytes.saturating_add(len) <= GROUP_BYTES => {
                bytes += len;
                group.push(block);
            }
            _ => {
                bytes = len;
                groups.push(vec![block]);
            }
        }
    }
    groups
}
