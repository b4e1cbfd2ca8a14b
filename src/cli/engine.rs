//! The engine behind a mount: objects, volume, local files, blocks, metadata and filesystem, stacked in one place.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{getegid, geteuid};

use super::daemon::Reporter;
use super::environment::LocalRoots;
use super::exit::{Code, Failure, Result};
use super::format::{open_or_create, weak_fencing};
use super::host;
use super::lock::LocalLock;
use super::options::{Durability, MountOptions};
use super::report::{Progress, Requests, SCHEMA, State, Status};
use super::stores::{Machine, Missing, Objects, Probe};
use super::volume::Volume;
use crate::backend::local::LocalDirectory;
use crate::backend::redb::RedbKv;
use crate::base::ids::{Epoch, Ino, WriterId};
use crate::base::limits::{GIB, KIB, MIB};
use crate::base::time::Random;
use crate::commit::{Committer, Limits};
use crate::content::block_cache::BlockCache;
use crate::content::chunker::ChunkSizes;
use crate::content::frame::Compression;
use crate::content::framed::{FramedBlockStore, FramedOptions, FramedParts, Pending, RecoveredBlocks};
use crate::content::pack_cache::{PackCache, PackCacheLimits};
use crate::content::single::{SingleBlockStore, SingleParts};
use crate::content::spill::{SpillBudget, SpillLimits};
use crate::maint::recovery::{self, Access, Claim, MountError, MountParts};
use crate::rt::{SemaphoreLimit, SystemRandom, TokioRuntime};
use crate::store;
use crate::store::block::{BlockIndex, BlockStore};
use crate::store::device::Directory;
use crate::store::object::Fencing;
use crate::store::schema::merge::SchemaMerge;
use crate::store::superblock::{BlockCodec, Layout, Superblock};
use crate::vfs::{
    self, Caller, MetadataIndex, SetAttr, StagedUploads, Tier, Vfs, VfsOptions, VfsParts, VolumeBlobs,
};

/// Memory for buffers and caches unless `-o memory` says otherwise, in bytes.
const MEMORY_BYTES_DEFAULT: u64 = 256 * MIB;
/// Less than this cannot hold one pack in each of the places that need one.
const MEMORY_BYTES_MIN: u64 = 64 * MIB;
/// Local disk for cached parts of packs, and for what is not in the store yet, in bytes.
const CACHE_BYTES_DEFAULT: u64 = 10 * GIB;
const SPILL_BYTES_DEFAULT: u64 = 16 * GIB;
/// Disk left to others, to the metadata and to the log.
const FREE_BYTES_MIN: u64 = 512 * MIB;

/// What `statfs` calls the size of a volume: 1 PiB. Stores do not say how much they take.
const REPORTED_BYTES: u64 = 1 << 50;

const METADATA_FILE: &str = "meta.redb";

/// Threads for futures; the CPU work of flushing has threads of its own.
const WORKER_THREADS: usize = 2;
/// Threads for file I/O and for cutting, hashing and compressing.
const BLOCKING_THREADS_MAX: usize = 16;

/// The runtime that everything below works on. Called after the daemon has forked.
///
/// # Errors
/// If the system refuses the threads.
pub fn start_runtime() -> Result<TokioRuntime> {
    let started = TokioRuntime::new(WORKER_THREADS, BLOCKING_THREADS_MAX);
    started.map_err(|error| Failure::io("runtime", "start threads", error))
}

/// What to open, and for whom.
pub struct EngineConfig<'a> {
    pub volume: &'a Volume,
    /// The mountpoint, or what else it is opened for: told to those who find it locked.
    pub purpose: &'a Path,
    pub create: bool,
    pub options: &'a MountOptions,
    pub roots: &'a LocalRoots,
    pub log_filter: Option<&'a str>,
}

/// An open volume.
pub struct Engine {
    volume: Volume,
    superblock: Superblock,
    fencing: Fencing,
    read_only: bool,
    state_dir: PathBuf,
    random: Arc<dyn Random>,
    objects: Objects,
    cache: Option<Arc<PackCache>>,
    blocks: Blocks,
    commit: Arc<Committer>,
    vfs: Arc<Vfs>,
    /// Released when the process exits.
    _lock: LocalLock,
}

/// How the volume's blocks are laid out.
enum Blocks {
    Framed(Arc<FramedBlockStore>),
    Single(Arc<SingleBlockStore>),
}

impl Blocks {
    fn store(&self) -> Arc<dyn BlockStore> {
        match self {
            Self::Framed(store) => store.clone(),
            Self::Single(store) => store.clone(),
        }
    }

    fn pending(&self) -> Pending {
        match self {
            Self::Framed(store) => store.pending(),
            Self::Single(store) => store.pending(),
        }
    }

    async fn recover(&self) -> store::Result<RecoveredBlocks> {
        match self {
            Self::Framed(store) => store.recover().await,
            Self::Single(store) => store.recover().await,
        }
    }

    async fn drain(&self) -> store::Result<()> {
        match self {
            Self::Framed(store) => store.drain().await,
            Self::Single(store) => store.drain().await,
        }
    }

    async fn shutdown(&self) {
        match self {
            Self::Framed(store) => store.shutdown().await,
            Self::Single(store) => store.shutdown().await,
        }
    }
}

/// How much memory each part may take; together what `-o memory` says.
struct Shares {
    hot: u64,
    blocks: u64,
    uploads: u64,
    downloads: u64,
    encode: u64,
    metadata: u64,
}

impl Shares {
    fn of(memory: u64) -> Self {
        let eighth = memory.max(MEMORY_BYTES_MIN) / 8;
        Self {
            hot: 2 * eighth,
            blocks: 2 * eighth,
            uploads: eighth,
            downloads: eighth,
            encode: eighth,
            metadata: eighth,
        }
    }
}

impl Engine {
    /// Opens the volume and takes it for this process: objects, superblock, local lock and log, probe, local files,
    /// blocks, metadata, filesystem, in this order.
    ///
    /// # Errors
    /// `NotFound` if it is not formatted, `Busy` if it is mounted on this host already; of the store and the disk.
    pub async fn open(
        runtime: &TokioRuntime,
        config: &EngineConfig<'_>,
        reporter: &mut Reporter,
    ) -> Result<Self> {
        let EngineConfig { volume, options, roots, .. } = *config;
        let (spawner, clock) = (runtime.spawner(), runtime.clock());
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let machine = Machine { clock: clock.clone(), random: random.clone() };
        let failed = |error: store::Error| Failure::store(volume, &error);

        let is_new = *volume == Volume::Memory;
        let missing = if config.create || is_new { Missing::Create } else { Missing::Fail };
        let objects = Objects::open(volume, &options.store, missing, &machine).await.map_err(failed)?;
        let superblock = open_or_create(&objects, volume, missing, &machine).await?;

        let state_dir = roots.volume_state(superblock.volume_id());
        let local = |path: &Path| -> Result<Arc<dyn Directory>> {
            let opened = LocalDirectory::open_or_create(path);
            Ok(Arc::new(opened.map_err(|error| Failure::store(path.display(), &error))?))
        };
        let state = local(&state_dir)?;
        let lock = LocalLock::take(&volume.to_string(), &state_dir, config.purpose)?;
        reporter.open_log(&state_dir.join("daemon.log"), config.log_filter)?;

        let read_only = options.read_only || !superblock.is_writable();
        let writer = WriterId(random.next_u128());
        let fencing = match read_only {
            true => objects.store.fencing(),
            false => objects.probe(writer, &*random, Probe::AtMount).await.map_err(failed)?,
        };
        if fencing == Fencing::Lease && !read_only {
            reporter.note(&weak_fencing(volume));
        }

        let shares = Shares::of(options.memory_bytes.unwrap_or(MEMORY_BYTES_DEFAULT));
        let staged = local(&state_dir.join("staged"))?;
        let spill = SpillBudget::new(
            SpillLimits {
                bytes_max: options.spill_bytes.unwrap_or(SPILL_BYTES_DEFAULT),
                free_bytes_min: FREE_BYTES_MIN,
            },
            staged.clone(),
            clock.clone(),
        );
        let index = Arc::new(MetadataIndex::default());
        let wiring = Wiring {
            objects: &objects,
            runtime,
            superblock: &superblock,
            shares: &shares,
            staged,
            fetched: local(&roots.volume_cache(superblock.volume_id()).join("packs"))?,
            cache_bytes: options.cache_bytes.unwrap_or(CACHE_BYTES_DEFAULT),
            index: index.clone(),
            spill: spill.clone(),
            writer,
        };
        let (blocks, cache) = wiring.blocks().map_err(failed)?;

        let device = match state.open(METADATA_FILE) {
            Err(error) if error.kind == store::Kind::NotFound => state.create(METADATA_FILE),
            opened => opened,
        };
        let kv = RedbKv::open(device.map_err(failed)?, shares.metadata / 2).map_err(failed)?;
        let access = match read_only {
            true => Access::ReadOnly,
            false => Access::Write(Claim {
                host: host::name(&roots.state, &*random)
                    .map_err(|error| Failure::io(roots.state.display(), "read host-id", error))?,
                boot_id: host::boot_id(),
                writer,
                tier: options.durability.as_str().to_owned(),
                takeover: options.takeover,
            }),
        };
        let parts = MountParts {
            kv: Arc::new(kv),
            log: local(&state_dir.join("log"))?,
            objects: objects.store.clone(),
            rules: Arc::new(SchemaMerge),
            clock: clock.clone(),
            spawner: spawner.clone(),
            limits: Limits::default(),
            volume: superblock.volume_id(),
            access,
        };
        let report = |progress| tracing::info!(?progress, "recover");
        let mounted = recovery::mount(parts, &report).await.map_err(|error| not_taken(volume, error))?;
        let commit = mounted.committer;
        index.attach(commit.clone());

        // A reader sends nothing, so what is staged waits for the next writer.
        let staged_blocks = match read_only {
            true => RecoveredBlocks::default(),
            false => blocks.recover().await.map_err(failed)?,
        };
        commit.attach_staging(Arc::new(StagedUploads::new(blocks.store(), &staged_blocks.tickets)));
        let chunks = superblock.block_bytes;
        let vfs = Vfs::open(VfsParts {
            commit: commit.clone(),
            blocks: Arc::new(BlockCache::new(blocks.store(), shares.blocks)),
            spill,
            clock,
            spawner,
            options: VfsOptions {
                tier: match options.durability {
                    Durability::Local => Tier::Local,
                    Durability::Remote => Tier::Remote,
                },
                read_only,
                chunk_sizes: ChunkSizes::new(chunks.min, chunks.avg, chunks.max)
                    .ok_or_else(|| unusable(volume))?,
                inline_bytes_max: superblock.inline_bytes_max,
                hot_bytes_max: shares.hot,
                reported_bytes: REPORTED_BYTES,
            },
        });
        let vfs = vfs.map_err(|error| vfs_failure(volume, error))?;
        let owner = (geteuid().as_raw(), getegid().as_raw());
        if !read_only {
            let files = vfs.recover_overlays().await.map_err(|error| vfs_failure(volume, error))?;
            tracing::info!(packs = staged_blocks.packs, files, "take up what was staged");
        }
        if mounted.epoch == Epoch(1) && !read_only {
            // Who makes a volume owns its root; root does already.
            let (uid, gid) = owner;
            let (caller, set) = (
                Caller { uid, gid, pid: 0 },
                SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() },
            );
            vfs.setattr(&caller, Ino::ROOT, &set).map_err(|error| vfs_failure(volume, error))?;
        }
        let (volume_id, epoch, rebuilt) = (superblock.volume_id(), mounted.epoch.0, mounted.rebuilt);
        tracing::info!(%volume_id, epoch, rebuilt, "open");
        Ok(Self {
            volume: volume.clone(),
            superblock,
            fencing,
            read_only,
            state_dir,
            random,
            objects,
            cache,
            blocks,
            commit,
            vfs,
            _lock: lock,
        })
    }

    /// Where the volume is, in canonical form.
    #[must_use]
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    #[must_use]
    pub fn random(&self) -> &dyn Random {
        &*self.random
    }

    #[must_use]
    pub fn vfs(&self) -> Arc<Vfs> {
        self.vfs.clone()
    }

    /// The volume's blobs.
    #[must_use]
    pub fn blobs(&self) -> VolumeBlobs {
        VolumeBlobs(self.vfs())
    }

    /// True if nothing may be changed.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// What is not in the store yet.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let (_, dirty_bytes) = self.vfs.unpublished();
        Progress {
            dirty_bytes,
            pending_upload_bytes: self.blocks.pending().bytes + self.commit.pending().bytes,
        }
    }

    /// Everything written before the call is in the store when it returns.
    ///
    /// # Errors
    /// Of the store and the disk.
    pub async fn sync(&self) -> Result<()> {
        self.vfs.sync_all().await.map_err(|error| vfs_failure(&self.volume, error))
    }

    /// Sends everything to the store, releases the volume and ends the work in the background. Nothing may use the
    /// filesystem any more.
    ///
    /// # Errors
    /// Of the store and the disk; what has not reached the store is safe on this machine then.
    pub async fn close(&self) -> Result<()> {
        let failed = |error: store::Error| Failure::store(&self.volume, &error);
        if self.read_only {
            self.blocks.shutdown().await;
            return self.commit.stop().await.map_err(failed);
        }
        self.sync().await?;
        self.blocks.drain().await.map_err(failed)?;
        let closed = self.commit.close().await.map_err(failed);
        self.blocks.shutdown().await;
        if self.volume == Volume::Memory {
            // Its objects go with this process, so what is here describes nothing.
            let _ = std::fs::remove_dir_all(&self.state_dir);
        }
        closed
    }

    /// Everything `status` reports but where the volume is mounted.
    ///
    /// # Errors
    /// If the metadata cannot be read.
    pub fn status(&self) -> Result<Status> {
        let stat = self.vfs.statfs().map_err(|error| vfs_failure(&self.volume, error))?;
        let counts = self.objects.counters.counts();
        let Progress { dirty_bytes, pending_upload_bytes } = self.progress();
        let oldest = self.blocks.pending().oldest.max(self.commit.pending().oldest);
        Ok(Status {
            schema: SCHEMA,
            volume: self.volume.to_string(),
            volume_id: self.superblock.volume_id().to_string(),
            mountpoint: None,
            pid: None,
            state: State::Unmounted,
            durability: None,
            fencing: self.fencing.as_str().to_owned(),
            files: stat.files,
            logical_bytes: stat.logical_bytes,
            stored_bytes: stat.stored_bytes,
            dirty_bytes,
            pending_upload_bytes,
            oldest_pending_seconds: oldest.map_or(0, |age| age.as_secs()),
            cache_bytes: self.cache.as_ref().map_or(0, |cache| cache.used_bytes()),
            memory_bytes: resident_bytes(),
            object_requests: Requests {
                put: counts.put,
                get: counts.get,
                head: counts.head,
                list: counts.list,
                delete: counts.delete,
            },
            sent_bytes: counts.sent_bytes,
            received_bytes: counts.received_bytes,
        })
    }
}

/// What a block store of either layout is made of.
struct Wiring<'a> {
    objects: &'a Objects,
    runtime: &'a TokioRuntime,
    superblock: &'a Superblock,
    shares: &'a Shares,
    staged: Arc<dyn Directory>,
    fetched: Arc<dyn Directory>,
    cache_bytes: u64,
    index: Arc<dyn BlockIndex>,
    spill: SpillBudget,
    writer: WriterId,
}

impl Wiring<'_> {
    fn blocks(self) -> store::Result<(Blocks, Option<Arc<PackCache>>)> {
        let compression = match self.superblock.codec {
            BlockCodec::Zstd => Compression::Zstd,
            BlockCodec::None => Compression::None,
        };
        let uploads = SemaphoreLimit::new(self.shares.uploads);
        let downloads = SemaphoreLimit::new(self.shares.downloads);
        let (clock, spawner) = (self.runtime.clock(), self.runtime.spawner());
        if self.superblock.layout == Layout::Single {
            let parts = SingleParts {
                objects: self.objects.store.clone(),
                staged: self.staged,
                index: self.index,
                clock,
                spawner,
                budget: self.spill,
                compression,
                uploads,
                downloads,
            };
            return Ok((Blocks::Single(Arc::new(SingleBlockStore::new(parts))), None));
        }
        let limits = PackCacheLimits { bytes_max: self.cache_bytes, free_bytes_min: FREE_BYTES_MIN };
        let cache = Arc::new(PackCache::open(self.fetched, self.staged.clone(), limits)?);
        let parts = FramedParts {
            objects: self.objects.store.clone(),
            staged: self.staged,
            index: self.index,
            clock,
            spawner,
            budget: self.spill,
            cache: Some(cache.clone()),
            uploads,
            downloads,
        };
        let defaults = FramedOptions::new(self.writer);
        let options = FramedOptions { compression, encode_bytes_max: self.shares.encode, ..defaults };
        Ok((Blocks::Framed(Arc::new(FramedBlockStore::new(parts, options))), Some(cache)))
    }
}

fn unusable(volume: &Volume) -> Failure {
    Failure::new(
        Code::Corrupt,
        volume,
        "the superblock's block lengths cannot be cut",
        "restore it from a copy",
    )
}

fn not_taken(volume: &Volume, error: MountError) -> Failure {
    match error {
        MountError::Held(_) => {
            let advice = "unmount it there; if that host is gone for good: -o takeover";
            Failure::new(Code::Fenced, volume, error, advice)
        }
        MountError::Diverged { .. } => {
            let advice = "move this volume's state directory away to mount what the bucket holds";
            Failure::new(Code::Fenced, volume, error, advice)
        }
        MountError::Store(error) => Failure::store(volume, &error),
    }
}

fn vfs_failure(volume: &Volume, error: vfs::Error) -> Failure {
    match error {
        // Only of the root, and only in a volume that nobody has written to.
        vfs::Error::Stale => {
            Failure::new(Code::NotFound, volume, "the volume is empty", "mount it once without ro")
        }
        vfs::Error::Io(error) => Failure::store(volume, &error),
        other => Failure::new(Code::Internal, volume, other, "look into the log and report a bug"),
    }
}

/// Memory of this process that is in use, in bytes; 0 where /proc does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.map_or(0, |kib| kib * KIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_memory_are_what_was_given() {
        let Shares { hot, blocks, uploads, downloads, encode, metadata } = Shares::of(256 * MIB);
        assert_eq!(hot + blocks + uploads + downloads + encode + metadata, 256 * MIB);
        assert_eq!(Shares::of(1).uploads, MEMORY_BYTES_MIN / 8);
    }

    #[test]
    fn the_process_knows_its_size() {
        assert!(MIB < resident_bytes());
    }
}
