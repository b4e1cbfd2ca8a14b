//! A volume in memory that can be unmounted and mounted again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use gravitonfs::backend::memory_device::MemoryDirectory;
use gravitonfs::backend::memory_kv::MemoryKv;
use gravitonfs::base::ids::{Fh, Ino, VolumeId, WriterId};
use gravitonfs::base::limits::GIB;
use gravitonfs::base::name::Name;
use gravitonfs::base::time::{Clock, Random};
use gravitonfs::commit::{Committer, CommitterParts, Limits};
use gravitonfs::content::chunker::ChunkSizes;
use gravitonfs::content::framed::{FramedBlockStore, FramedOptions, FramedParts};
use gravitonfs::content::spill::{SpillBudget, SpillLimits};
use gravitonfs::content::staged_files::StagedFiles;
use gravitonfs::maint::check::{CheckParts, Data, Outcome, check};
use gravitonfs::rt::{SeededRandom, SemaphoreLimit, Spawner, TokioRuntime};
use gravitonfs::store::kv::KeyValueStore;
use gravitonfs::store::schema::merge::SchemaMerge;
use gravitonfs::vfs::{
    Caller, MetadataIndex, OpenFlags, StagedUploads, Tier, Vfs, VfsOptions, VfsParts, Written,
};

use super::faults::{FillableDirectory, UnreliableStore, YieldingKv};
use super::simulation::Simulation;

pub(crate) const ROOT: Caller<'_> = Caller::ROOT;

/// Small blocks, so that small tests have many.
pub(crate) fn small_chunks() -> ChunkSizes {
    ChunkSizes::around(4096).expect("in range")
}

/// What survives an unmount.
pub(crate) struct World {
    pub(crate) runtime: Machine,
    options: VfsOptions,
    objects: Arc<UnreliableStore>,
    kv: Arc<dyn KeyValueStore>,
    log: Arc<FillableDirectory>,
    staged: Arc<MemoryDirectory>,
    random: SeededRandom,
    mounted: Option<Mounted>,
}

/// What runs the volume: the threads of the daemon, or a seed.
pub(crate) enum Machine {
    Threads(TokioRuntime),
    Simulated(Simulation),
}

impl Machine {
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self {
            Self::Threads(runtime) => runtime.block_on(future),
            Self::Simulated(simulation) => simulation.block_on(future),
        }
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        match self {
            Self::Threads(runtime) => runtime.clock(),
            Self::Simulated(simulation) => simulation.clock(),
        }
    }

    fn spawner(&self) -> Arc<dyn Spawner> {
        match self {
            Self::Threads(runtime) => runtime.spawner(),
            Self::Simulated(simulation) => simulation.spawner(),
        }
    }
}

fn threads() -> Machine {
    Machine::Threads(TokioRuntime::new(2, 8).unwrap())
}

struct Mounted {
    vfs: Arc<Vfs>,
    commit: Arc<Committer>,
    blocks: Arc<FramedBlockStore>,
}

impl World {
    /// A volume on threads.
    pub(crate) fn new(seed: u64) -> Self {
        Self::on(threads(), Arc::new(MemoryKv::new()), seed, 2048)
    }

    /// A volume on threads whose metadata lets other threads go on at every look.
    pub(crate) fn yielding(seed: u64) -> Self {
        Self::on(threads(), Arc::<YieldingKv>::default(), seed, 2048)
    }

    /// A volume whose every step the seed decides. Files up to `inline_bytes_max` live in the metadata.
    pub(crate) fn simulated(seed: u64, inline_bytes_max: u64) -> Self {
        let machine = Machine::Simulated(Simulation::new(seed));
        Self::on(machine, Arc::new(MemoryKv::new()), seed, inline_bytes_max)
    }

    fn on(runtime: Machine, kv: Arc<dyn KeyValueStore>, seed: u64, inline_bytes_max: u64) -> Self {
        let mut world = Self {
            runtime,
            options: VfsOptions {
                tier: Tier::Local,
                read_only: false,
                chunk_sizes: small_chunks(),
                inline_bytes_max,
                hot_bytes_max: 1 << 20,
                reported_bytes: 1 << 50,
            },
            objects: Arc::default(),
            kv,
            log: Arc::default(),
            staged: Arc::new(MemoryDirectory::new()),
            random: SeededRandom::new(seed),
            mounted: None,
        };
        world.mount();
        world
    }

    pub(crate) fn vfs(&self) -> &Arc<Vfs> {
        &self.mounted.as_ref().expect("mounted").vfs
    }

    /// While it is unreachable nothing that is staged becomes committed.
    pub(crate) fn set_unreachable(&self, unreachable: bool) {
        self.objects.unreachable.store(unreachable, Ordering::SeqCst);
    }

    /// While it is full nothing can be committed.
    pub(crate) fn set_log_full(&self, full: bool) {
        self.log.full.store(full, Ordering::SeqCst);
    }

    pub(crate) fn simulation(&self) -> &Simulation {
        match &self.runtime {
            Machine::Simulated(simulation) => simulation,
            Machine::Threads(_) => panic!("this volume is on threads"),
        }
    }

    fn mount(&mut self) {
        let (clock, spawner) = (self.runtime.clock(), self.runtime.spawner());
        let commit = Committer::open(CommitterParts {
            kv: self.kv.clone(),
            log: self.log.clone(),
            rules: Arc::new(SchemaMerge),
            clock: clock.clone(),
            spawner: spawner.clone(),
            limits: Limits::default(),
        })
        .unwrap();
        let index = Arc::new(MetadataIndex::default());
        index.attach(commit.clone());
        let limits = SpillLimits { bytes_max: GIB, free_bytes_min: 0 };
        let spill = SpillBudget::new(limits, self.staged.clone(), clock.clone());
        let parts = FramedParts {
            objects: self.objects.clone(),
            staged: self.staged.clone(),
            index,
            clock: clock.clone(),
            spawner: spawner.clone(),
            budget: spill.clone(),
            cache: None,
            uploads: SemaphoreLimit::new(GIB),
            downloads: SemaphoreLimit::new(GIB),
        };
        let writer = WriterId(self.random.next_u128());
        let options = FramedOptions { pack_bytes_target: 64 << 10, ..FramedOptions::new(writer) };
        let blocks = Arc::new(FramedBlockStore::new(parts, options));
        let recovered = self.runtime.block_on(blocks.recover()).unwrap();
        commit.attach_staging(Arc::new(StagedUploads::new(blocks.clone(), &recovered.tickets)));
        let vfs = Vfs::open(VfsParts {
            commit: commit.clone(),
            blocks: blocks.clone(),
            spill,
            clock,
            spawner,
            options: self.options.clone(),
        })
        .unwrap();
        self.runtime.block_on(vfs.recover_overlays()).unwrap();
        drop(recovered);
        self.mounted = Some(Mounted { vfs, commit, blocks });
    }

    /// Everything becomes staged and acknowledged; only metadata can still be in the log.
    pub(crate) fn settle(&self) {
        self.runtime.block_on(self.vfs().settle()).unwrap();
    }

    /// What `check` finds in the volume as it is now, every stored byte included.
    pub(crate) fn check(&self) -> Outcome {
        let view = Arc::new(self.mounted.as_ref().expect("mounted").commit.view().unwrap());
        let staged = StagedFiles::list(&*self.staged).unwrap();
        let objects = self.objects.clone();
        let parts = CheckParts { view, staged, objects, volume: VolumeId(0), data: Data::Hashed };
        self.runtime.block_on(check(parts, &mut |_| {})).unwrap()
    }

    /// Stops without a word, as a killed process does, and mounts again.
    pub(crate) fn kill_and_remount(&mut self) {
        let Mounted { vfs, commit, blocks } = self.mounted.take().expect("mounted");
        match &self.runtime {
            // Threads cannot be stopped where they are: what they work on ends first.
            Machine::Threads(runtime) => runtime.block_on(async {
                blocks.shutdown().await;
                commit.stop().await.unwrap();
            }),
            Machine::Simulated(simulation) => simulation.kill(),
        }
        drop((vfs, commit, blocks));
        self.mount();
    }

    pub(crate) fn create(&self, name: &str) -> (Ino, Fh) {
        let (attr, fh) =
            self.vfs().create(&ROOT, Ino::ROOT, &named(name), 0o644, OpenFlags::default()).unwrap();
        (attr.ino, fh)
    }

    pub(crate) fn open(&self, name: &str) -> (Ino, Fh) {
        let attr = self.vfs().lookup(Ino::ROOT, &named(name)).unwrap().expect("exists");
        (attr.ino, self.vfs().open_file(&ROOT, attr.ino, OpenFlags::default()).unwrap())
    }

    pub(crate) fn write(&self, fh: Fh, offset: u64, data: &[u8]) {
        match self.vfs().write(fh, offset, data).unwrap() {
            Written::Now(len) => assert_eq!(len as usize, data.len()),
            Written::Later(later) => assert_eq!(self.runtime.block_on(later).unwrap() as usize, data.len()),
        }
    }

    pub(crate) fn read(&self, fh: Fh, offset: u64, len: u32) -> Bytes {
        self.runtime.block_on(self.vfs().read(fh, offset, len)).unwrap()
    }

    pub(crate) fn read_all(&self, fh: Fh, ino: Ino) -> Vec<u8> {
        let size = self.vfs().getattr(ino).unwrap().size;
        self.read(fh, 0, u32::try_from(size).unwrap()).to_vec()
    }
}

pub(crate) fn named(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}
