//! One inode in memory: its committed row, and what has been written since.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::xattr::XattrSummary;
use crate::base::attr::FileKind;
use crate::base::ids::Ino;
use crate::base::sync::lock;
use crate::base::time::Timestamp;
use crate::content::overlay::Overlay;
use crate::content::spill::Reservation;
use crate::store::schema::inode::InodeRow;

/// An inode that the kernel, a handle or unflushed content needs in memory.
pub(crate) struct Inode {
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
    /// Held while hot bytes are out to be staged; awaited, because staging waits for the disk.
    pub(super) hand_out: tokio::sync::Mutex<()>,
    /// True while in the queue of inodes with hot bytes.
    queued: AtomicBool,
    /// Its rows are gone; only work that is about to end still knows it. Set under the lock.
    reaped: AtomicBool,
    state: Mutex<State>,
}

/// What an inode's lock guards. Taken in the order of `locks.rs`; never held across a wait.
pub(crate) struct State {
    /// As committed.
    pub(crate) row: InodeRow,
    /// Content and times that are not committed yet; None for all but regular files that were written to.
    pub(crate) overlay: Option<Box<Overlay>>,
    /// The row's atime is newer than the committed one.
    pub(crate) atime_renewed: bool,
    /// Open handles.
    pub(crate) opens: u32,
    /// A run of hot bytes is being staged beside the writer.
    pub(crate) staging: bool,
    /// Local disk reserved for the hot bytes.
    pub(crate) spill: Option<Reservation>,
    /// What the overlay adds to the committed allocation, as last told to the volume's total.
    pub(crate) uncommitted_bytes: i64,
    /// How often content could not be staged; told once to each handle open at the time.
    pub(crate) failures: u64,
    /// What is known of its extended attributes; None until somebody asks.
    pub(crate) xattrs: Option<XattrSummary>,
}

impl Inode {
    pub(crate) fn new(ino: Ino, row: InodeRow) -> Self {
        let kind = row.kind;
        Self {
            ino,
            kind,
            hand_out: tokio::sync::Mutex::new(()),
            queued: AtomicBool::new(false),
            reaped: AtomicBool::new(false),
            state: Mutex::new(State {
                row,
                overlay: None,
                atime_renewed: false,
                opens: 0,
                staging: false,
                spill: None,
                uncommitted_bytes: 0,
                failures: 0,
                xattrs: None,
            }),
        }
    }

    /// One that is made with these attributes.
    pub(crate) fn made(ino: Ino, row: InodeRow, xattrs: XattrSummary) -> Self {
        let inode = Self::new(ino, row);
        inode.lock().xattrs = Some(xattrs);
        inode
    }

    /// Marks it queued; true if it was.
    pub(super) fn queue(&self) -> bool {
        self.queued.swap(true, Ordering::AcqRel)
    }

    pub(super) fn is_reaped(&self) -> bool {
        self.reaped.load(Ordering::Acquire)
    }

    pub(super) fn set_reaped(&self) {
        self.reaped.store(true, Ordering::Release);
    }

    pub(super) fn unqueue(&self) {
        self.queued.store(false, Ordering::Release);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Attributes as `stat(2)` reports them: committed state and overlay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attr {
    pub ino: Ino,
    pub kind: FileKind,
    /// Permission bits, suid, sgid, sticky.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
}

impl State {
    /// Current length in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.overlay.as_ref().map_or(self.row.size, |overlay| overlay.size())
    }

    pub(crate) fn attr(&self, ino: Ino) -> Attr {
        let row = &self.row;
        let overlay = self.overlay.as_deref();
        let allocated = overlay.map_or(row.allocated, |overlay| overlay.allocated());
        let touched = overlay.and_then(Overlay::touched);
        Attr {
            ino,
            kind: row.kind,
            mode: row.mode,
            nlink: row.nlink,
            uid: row.uid,
            gid: row.gid,
            rdev: row.rdev,
            size: self.size(),
            blocks: allocated.div_ceil(512),
            atime: row.atime,
            mtime: touched.unwrap_or(row.mtime),
            ctime: touched.map_or(row.ctime, |touched| touched.max(row.ctime)),
            btime: row.btime,
        }
    }
}
