//! The POSIX namespace: inodes, directory entries, handles, and the life of a file's content from write to commit.
//!
//! A metadata change has six steps, visible as paragraphs in each file named after an operation: resolve, lock, re-read
//! and check, plan, commit (wait until visible), publish and unlock. `rename.rs` is the model of a mutation,
//! `stage.rs` and `publish.rs` are the way of written bytes.
//!
//! What only touches memory and local metadata is a plain function. What may wait for the store, a disk sync or a byte
//! budget returns a [`Pending`].

mod acl;
mod alloc;
mod atime;
mod attr;
mod blob;
mod budget;
mod caller;
mod change;
mod copy;
mod create;
mod dir;
mod error;
mod handle;
mod index;
mod inode;
mod link;
mod locks;
mod lookup;
mod numbers;
mod open;
mod orphan;
mod privileges;
mod publish;
mod read;
mod rename;
mod stage;
mod staging;
mod statfs;
mod sync;
mod table;
mod unlink;
mod write;
mod xattr;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

pub use alloc::{AllocateMode, Whence};
pub use attr::{SetAttr, SetTime};
pub use blob::VolumeBlobs;
pub use caller::{Caller, Rights};
pub use dir::{DirEntry, DirSink};
pub use error::{Error, Result};
pub use handle::OpenFlags;
pub use index::MetadataIndex;
pub use inode::Attr;
pub use rename::RenameMode;
pub use staging::StagedUploads;
pub use statfs::VolumeStat;
pub use sync::WriteFailure;
pub use write::Written;
pub use xattr::SetXattr;

use self::budget::HotBudget;
use self::handle::HandleTable;
use self::inode::Inode;
use self::numbers::NumberRange;
use self::publish::PublishQueue;
use self::stage::HotQueue;
use self::table::InodeTable;
use crate::base::attr::FileKind;
use crate::base::ids::{Generation, Ino, SegmentId};
use crate::base::time::{Clock, Timestamp};
use crate::commit::Committer;
use crate::content::chunker::ChunkSizes;
use crate::content::manifest::Manifests;
use crate::content::spill::SpillBudget;
use crate::rt::Spawner;
use crate::store::block::BlockStore;
use crate::store::schema::inode::{ContentForm, InodeRow};
use crate::store::schema::{Counter, INODE, ino_key};

/// An answer that may take a while. Poll it once where it was made: most are ready then.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'static>>;

/// What fsync promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// Survives power loss of this machine.
    Local,
    /// Survives loss of this machine.
    Remote,
}

/// What does not change while mounted.
#[derive(Clone, Debug)]
pub struct VfsOptions {
    pub tier: Tier,
    pub read_only: bool,
    pub chunk_sizes: ChunkSizes,
    /// Files up to this many bytes live in the metadata.
    pub inline_bytes_max: u64,
    /// Written bytes held in memory at most; writers wait beyond.
    pub hot_bytes_max: u64,
    /// Size `statfs` reports, in bytes: the store never fills, but programs divide by it.
    pub reported_bytes: u64,
}

/// What the filesystem is made of.
pub struct VfsParts {
    pub commit: Arc<Committer>,
    pub blocks: Arc<dyn BlockStore>,
    pub spill: SpillBudget,
    pub clock: Arc<dyn Clock>,
    pub spawner: Arc<dyn Spawner>,
    pub options: VfsOptions,
}

/// A mounted filesystem, without a kernel.
pub struct Vfs {
    commit: Arc<Committer>,
    blocks: Arc<dyn BlockStore>,
    spill: SpillBudget,
    clock: Arc<dyn Clock>,
    spawner: Arc<dyn Spawner>,

    options: VfsOptions,

    table: InodeTable,
    handles: HandleTable,
    manifests: Manifests,
    inode_numbers: NumberRange,
    segment_numbers: NumberRange,
    hot: HotQueue,
    hot_budget: HotBudget,
    /// Leaf lock.
    last_failure: std::sync::Mutex<Option<WriteFailure>>,
    /// Bytes that overlays add to the committed allocation; less than 0 while they shorten files.
    uncommitted: AtomicI64,
    publishing: Arc<PublishQueue>,
    /// Lock order 1: held by a rename that moves a directory to another parent.
    rename_token: std::sync::Mutex<()>,
    /// Leaf lock: held by whoever gives back the blocks of dead segments, from reading which they are to the commit.
    releasing: std::sync::Mutex<()>,
}

impl Vfs {
    /// Opens the filesystem: makes the root if there is none, takes up what was staged and not committed, drops inodes
    /// that were unlinked but open, and starts the background work.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn open(parts: VfsParts) -> Result<Arc<Self>> {
        let VfsParts { commit, blocks, spill, clock, spawner, options } = parts;
        let vfs = Arc::new(Self {
            inode_numbers: NumberRange::new(Counter::NextIno, Ino::ROOT.0 + 1),
            segment_numbers: NumberRange::new(Counter::NextSegment, 1),
            hot_budget: HotBudget::new(options.hot_bytes_max),
            commit,
            blocks,
            spill,
            clock,
            spawner,
            options,
            table: InodeTable::default(),
            handles: HandleTable::default(),
            manifests: Manifests::default(),
            hot: HotQueue::default(),
            last_failure: std::sync::Mutex::default(),
            uncommitted: AtomicI64::new(0),
            publishing: Arc::default(),
            rename_token: std::sync::Mutex::new(()),
            releasing: std::sync::Mutex::new(()),
        });
        if !vfs.options.read_only {
            vfs.make_root()?;
            vfs.recover_orphans()?;
        }
        let root = vfs.inode(Ino::ROOT)?;
        vfs.table.looked_up(&root);
        vfs.start_staging();
        vfs.start_publishing();
        Ok(vfs)
    }

    /// Takes up staged content that was not committed when the volume was last in use.
    ///
    /// # Errors
    /// Of the metadata, and if staged blocks that a row names are neither here nor in the store.
    pub fn recover_overlays(self: &Arc<Self>) -> Pending<u64> {
        let vfs = Arc::clone(self);
        Box::pin(async move { vfs.recover_seals().await })
    }

    fn make_root(&self) -> Result<()> {
        if self.commit.get(INODE, &ino_key(Ino::ROOT))?.is_some() {
            return Ok(());
        }
        let now = self.clock.now();
        let row = new_row(FileKind::Directory, 0o755, (0, 0), now);
        let mut change = change::Change::default();
        change.add_inode(Ino::ROOT, &InodeRow { parent: Ino::ROOT, ..row });
        let _ticket = change.submit(&self.commit)?;
        Ok(())
    }

    /// The inode; every operation resolves its arguments with this.
    fn inode(&self, ino: Ino) -> Result<Arc<Inode>> {
        self.table.get(ino, &self.commit)
    }

    /// The inode, which must be a directory.
    fn directory(&self, ino: Ino) -> Result<Arc<Inode>> {
        let inode = self.inode(ino)?;
        if inode.kind == FileKind::Directory { Ok(inode) } else { Err(Error::NotDirectory) }
    }

    /// First step of every operation that changes something: also of a write, whose bytes could not be kept once changes
    /// are refused.
    fn writable(&self) -> Result<()> {
        if self.options.read_only { Err(Error::ReadOnly) } else { Ok(self.commit.check()?) }
    }

    fn next_segment(&self) -> crate::store::Result<SegmentId> {
        self.segment_numbers.next(&self.commit).map(SegmentId)
    }
}

/// A row for something new. Directories start with two links, `.` and the entry in their parent.
fn new_row(kind: FileKind, mode: u32, owner: (u32, u32), now: Timestamp) -> InodeRow {
    let directory = kind == FileKind::Directory;
    InodeRow {
        kind,
        mode: mode & crate::base::attr::MODE_BITS,
        nlink: if directory { 2 } else { 1 },
        uid: owner.0,
        gid: owner.1,
        rdev: 0,
        size: if directory { DIRECTORY_BYTES } else { 0 },
        allocated: if directory { DIRECTORY_BYTES } else { 0 },
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        form: ContentForm::Empty,
        generation: Generation(0),
        parent: Ino(0),
    }
}

/// What `st_size` says of a directory, as on ext4.
const DIRECTORY_BYTES: u64 = 4096;
