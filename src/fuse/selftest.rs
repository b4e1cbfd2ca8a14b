//! Does this kernel drop cached pages when a file is written past its page cache? Found out on the mount itself, with
//! one page that exists for a moment under a name nobody can guess.
//!
//! Writes past the page cache cost half the CPU, but kernels before 6.6 let readers of the same file keep old pages.

use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::UNIX_EPOCH;

use fuser::{FileAttr, FileType, INodeNo};

use crate::base::time::Random;

/// Length of the page, in bytes.
pub const PROBE_BYTES: usize = 4096;

/// No file has this number: files count up from 1.
pub(super) const PROBE_INO: INodeNo = INodeNo(u64::MAX);

/// The page. Reads give its current byte, writes set it.
pub struct SelfTest {
    name: String,
    /// Whose file it seems to be: the daemon's.
    owner: (u32, u32),
    byte: AtomicU8,
    is_open: AtomicBool,
    /// The verdict: write-only files bypass the page cache.
    direct_writes: AtomicBool,
}

impl SelfTest {
    /// A page below the root, owned by `owner` (uid, gid).
    #[must_use]
    pub fn new(random: &dyn Random, owner: (u32, u32)) -> Self {
        Self {
            name: format!(".gravitonfs-selftest-{:032x}", random.next_u128()),
            owner,
            byte: AtomicU8::new(0),
            is_open: AtomicBool::new(true),
            direct_writes: AtomicBool::new(false),
        }
    }

    /// The page's name in the root directory.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends the test: the page is gone, and `direct_writes` says how write-only files are opened from now on.
    pub fn conclude(&self, direct_writes: bool) {
        self.direct_writes.store(direct_writes, Ordering::Relaxed);
        self.is_open.store(false, Ordering::Relaxed);
    }

    pub(super) fn direct_writes(&self) -> bool {
        self.direct_writes.load(Ordering::Relaxed)
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    pub(super) fn is_named(&self, parent: INodeNo, name: &OsStr) -> bool {
        self.is_open() && parent == INodeNo::ROOT && name == OsStr::new(&self.name)
    }

    pub(super) fn attr(&self) -> FileAttr {
        FileAttr {
            ino: PROBE_INO,
            size: PROBE_BYTES as u64,
            blocks: 8,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: 0o600,
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    pub(super) fn read(&self, offset: u64, size: u32) -> Vec<u8> {
        let left = (PROBE_BYTES as u64).saturating_sub(offset).min(u64::from(size));
        vec![self.byte.load(Ordering::Relaxed); usize::try_from(left).expect("a page at most")]
    }

    pub(super) fn write(&self, data: &[u8]) {
        if let Some(byte) = data.first() {
            self.byte.store(*byte, Ordering::Relaxed);
        }
    }
}
