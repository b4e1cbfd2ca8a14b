//! Opening a volume: objects, superblock, lock, blocks, metadata and filesystem, stacked in one place.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{getegid, geteuid};

use super::blocks::{Blocks, Shares, Wiring, spill_budget};
use super::daemon::Reporter;
use super::engine::{Engine, vfs_failure};
use super::environment::LocalRoots;
use super::exit::{Code, Failure, Result};
use super::format::{open_or_create, other_branches, weak_fencing};
use super::host;
use super::lock::LocalLock;
use super::options::{Durability, MountOptions};
use super::stores::{Machine, Missing, Objects, Probe};
use super::volume::Volume;
use crate::backend::local::LocalDirectory;
use crate::backend::redb::RedbKv;
use crate::base::ids::{Epoch, Ino, VolumeId, WriterId};
use crate::base::time::Random;
use crate::commit::{Committer, Limits};
use crate::content::block_cache::BlockCache;
use crate::content::chunker::ChunkSizes;
use crate::content::framed::RecoveredBlocks;
use crate::content::spill::SpillBudget;
use crate::maint::recovery::{self, Access, Claim, MountError, MountParts, Mounted};
use crate::rt::{SystemRandom, TokioRuntime};
use crate::store;
use crate::store::device::Directory;
use crate::store::object::Fencing;
use crate::store::schema::merge::SchemaMerge;
use crate::store::superblock::Superblock;
use crate::vfs::{Caller, MetadataIndex, SetAttr, StagedUploads, Tier, Vfs, VfsOptions, VfsParts};

/// What `statfs` calls the size of a volume: 1 PiB. Stores do not say how much they take.
const REPORTED_BYTES: u64 = 1 << 50;

/// How long a daemon that has been unmounted may still be draining before a new mount gives up.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

pub(super) const METADATA_FILE: &str = "meta.redb";
pub(super) const LOG_DIRECTORY: &str = "log";
pub(super) const STAGED_DIRECTORY: &str = "staged";

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

/// What the steps of opening have in common.
struct Opening<'a> {
    runtime: &'a TokioRuntime,
    config: &'a EngineConfig<'a>,
    random: Arc<dyn Random>,
    superblock: Superblock,
    state_dir: PathBuf,
    /// Minted for this mount.
    writer: WriterId,
    read_only: bool,
    shares: Shares,
}

/// Opens the volume and takes it for this process.
///
/// # Errors
/// `NotFound` if it is not formatted, `Busy` if it is mounted on this host already, `Fenced` if another host holds it;
/// of the store and the disk.
pub async fn open(
    runtime: &TokioRuntime,
    config: &EngineConfig<'_>,
    reporter: &mut Reporter,
) -> Result<Engine> {
    let EngineConfig { volume, options, roots, .. } = *config;
    let random: Arc<dyn Random> = Arc::new(SystemRandom);
    let machine = Machine { clock: runtime.clock(), random: random.clone() };
    let failed = |error: store::Error| Failure::store(volume, &error);

    let is_new = config.create || *volume == Volume::Memory;
    let missing = if is_new { Missing::Create } else { Missing::Fail };
    let objects = Objects::open(volume, &options.store, missing, &machine).await.map_err(failed)?;
    let superblock = open_or_create(&objects, volume, missing, &machine).await?;
    let opening = Opening {
        runtime,
        config,
        state_dir: roots.volume_state(superblock.volume_id()),
        writer: WriterId(random.next_u128()),
        read_only: options.read_only || !superblock.is_writable(),
        shares: Shares::of(options.memory_bytes),
        superblock,
        random,
    };

    let state = directory(&opening.state_dir)?;
    let lock = LocalLock::take(&volume.to_string(), &opening.state_dir, config.purpose, LOCK_PATIENCE)?;
    reporter.open_log(&opening.state_dir.join("daemon.log"), config.log_filter)?;
    let fencing = opening.probe(&objects, reporter).await?;

    let staged = directory(&opening.state_dir.join(STAGED_DIRECTORY))?;
    let spill = spill_budget(options.spill_bytes, staged.clone(), runtime);
    let index = Arc::new(MetadataIndex::default());
    let fetched = directory(&roots.volume_cache(opening.superblock.volume_id()).join("packs"))?;
    let wiring = Wiring {
        objects: &objects,
        runtime,
        superblock: &opening.superblock,
        shares: &opening.shares,
        staged,
        fetched,
        is_near: is_near(volume, &opening.state_dir),
        durability: options.durability,
        cache_bytes: options.cache_bytes,
        index: index.clone(),
        spill: spill.clone(),
        writer: opening.writer,
    };
    let (blocks, cache) = wiring.blocks().map_err(failed)?;
    let mounted = opening.metadata(&objects, &*state).await?;
    if let Some(first) = mounted.other_branches.first() {
        reporter.note(&other_branches(volume, first, mounted.other_branches.len()));
    }
    let commit = mounted.committer.clone();
    index.attach(commit.clone());
    let vfs = opening.filesystem(&mounted, &blocks, spill).await?;

    let Opening { superblock, read_only, state_dir, random, .. } = opening;
    let volume_id = superblock.volume_id();
    tracing::info!(%volume_id, epoch = mounted.epoch.0, rebuilt = mounted.rebuilt, read_only, "open");
    let volume = volume.clone();
    Ok(Engine {
        volume,
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

/// What metadata are opened from.
pub(super) struct MetadataParts<'a> {
    pub(super) runtime: &'a TokioRuntime,
    pub(super) objects: &'a Objects,
    /// Where the database is or will be, and the log beside it.
    pub(super) state: &'a dyn Directory,
    pub(super) log: Arc<dyn Directory>,
    pub(super) volume: VolumeId,
    /// Memory for them.
    pub(super) bytes: u64,
    pub(super) access: Access,
}

impl MetadataParts<'_> {
    /// Brings the local state together with the bucket.
    ///
    /// # Errors
    /// As [`recovery::mount`].
    pub(super) async fn open(self) -> std::result::Result<Mounted, MountError> {
        let device = match self.state.open(METADATA_FILE) {
            Err(error) if error.kind == store::Kind::NotFound => self.state.create(METADATA_FILE),
            opened => opened,
        };
        // Half is redb's, the other half the recent rows'.
        let cache_bytes = self.bytes / 2;
        let memtable_bytes = usize::try_from(cache_bytes).unwrap_or(usize::MAX);
        let parts = MountParts {
            kv: Arc::new(RedbKv::open(device?, cache_bytes)?),
            log: self.log,
            objects: self.objects.store.clone(),
            rules: Arc::new(SchemaMerge),
            clock: self.runtime.clock(),
            spawner: self.runtime.spawner(),
            limits: Limits { memtable_bytes, ..Limits::default() },
            volume: self.volume,
            access: self.access,
        };
        recovery::mount(parts, &|progress| tracing::info!(?progress, "recover")).await
    }
}

/// True if the volume's objects are on the filesystem that holds the local files.
fn is_near(volume: &Volume, local: &Path) -> bool {
    let filesystem = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
    matches!(volume, Volume::Dir(store) if filesystem(store) == filesystem(local))
}

/// # Errors
/// Of the disk.
pub(super) fn directory(path: &Path) -> Result<Arc<dyn Directory>> {
    let opened = LocalDirectory::open_or_create(path);
    Ok(Arc::new(opened.map_err(|error| Failure::store(path.display(), &error))?))
}

impl Opening<'_> {
    fn failed(&self, error: &store::Error) -> Failure {
        Failure::store(self.config.volume, error)
    }

    /// Finds out what the store's conditional writes are worth, unless nothing is going to be written.
    async fn probe(&self, objects: &Objects, reporter: &mut Reporter) -> Result<Option<Fencing>> {
        if self.read_only {
            return Ok(objects.known_fencing());
        }
        let fencing = objects.probe(self.writer, &*self.random, Probe::AtMount).await;
        let fencing = fencing.map_err(|error| self.failed(&error))?;
        if fencing == Fencing::Lease {
            reporter.note(&weak_fencing(self.config.volume));
        }
        Ok(Some(fencing))
    }

    /// Brings the local state together with the bucket, and takes the volume.
    async fn metadata(&self, objects: &Objects, state: &dyn Directory) -> Result<Mounted> {
        let log = directory(&self.state_dir.join(LOG_DIRECTORY))?;
        let parts = MetadataParts {
            runtime: self.runtime,
            objects,
            state,
            log,
            volume: self.superblock.volume_id(),
            bytes: self.shares.metadata,
            access: self.access()?,
        };
        parts.open().await.map_err(|error| not_taken(self.config.volume, error))
    }

    fn access(&self) -> Result<Access> {
        if self.read_only {
            return Ok(Access::ReadOnly);
        }
        let EngineConfig { options, roots, .. } = self.config;
        let host = host::name(&roots.state, &*self.random);
        Ok(Access::Write(Claim {
            host: host.map_err(|error| Failure::io(roots.state.display(), "read host-id", error))?,
            boot_id: host::boot_id(),
            writer: self.writer,
            tier: options.durability.as_str().to_owned(),
            takeover: options.takeover,
        }))
    }

    /// Takes up what was staged, and opens the filesystem over it.
    async fn filesystem(&self, mounted: &Mounted, blocks: &Blocks, spill: SpillBudget) -> Result<Arc<Vfs>> {
        let volume = self.config.volume;
        // A reader sends nothing, so what is staged waits for the next writer.
        let staged = match self.read_only {
            true => RecoveredBlocks::default(),
            false => blocks.recover().await.map_err(|error| self.failed(&error))?,
        };
        let commit: &Arc<Committer> = &mounted.committer;
        commit.attach_staging(Arc::new(StagedUploads::new(blocks.store(), &staged.tickets)));
        let vfs = Vfs::open(VfsParts {
            commit: commit.clone(),
            blocks: Arc::new(BlockCache::new(blocks.store(), self.shares.blocks)),
            spill,
            clock: self.runtime.clock(),
            spawner: self.runtime.spawner(),
            options: self.vfs_options()?,
        });
        let vfs = vfs.map_err(|error| vfs_failure(volume, error))?;
        if self.read_only {
            return Ok(vfs);
        }
        let files = vfs.recover_overlays().await.map_err(|error| vfs_failure(volume, error))?;
        tracing::info!(packs = staged.packs, files, "take up what was staged");
        if mounted.epoch == Epoch(1) {
            self.own_root(&vfs)?;
        }
        Ok(vfs)
    }

    fn vfs_options(&self) -> Result<VfsOptions> {
        let lengths = self.superblock.block_bytes;
        let chunk_sizes = ChunkSizes::new(lengths.min, lengths.avg, lengths.max);
        Ok(VfsOptions {
            tier: match self.config.options.durability {
                Durability::Local => Tier::Local,
                Durability::Remote => Tier::Remote,
            },
            read_only: self.read_only,
            chunk_sizes: chunk_sizes.ok_or_else(|| unusable(self.config.volume))?,
            inline_bytes_max: self.superblock.inline_bytes_max,
            hot_bytes_max: self.shares.hot,
            reported_bytes: REPORTED_BYTES,
        })
    }

    /// Who makes a volume owns its root directory; else nobody but root could put anything into it.
    fn own_root(&self, vfs: &Arc<Vfs>) -> Result<()> {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let set = SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
        let owned = vfs.setattr(&Caller::ROOT, Ino::ROOT, &set);
        owned.map(drop).map_err(|error| vfs_failure(self.config.volume, error))
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

pub(super) fn not_taken(volume: &Volume, error: MountError) -> Failure {
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
