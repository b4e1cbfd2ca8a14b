//! The filesystem as the kernel calls it: each request becomes one call of the vfs, and its outcome one reply.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;
use tracing::error;

use super::asker::Asker;
use super::convert::{self, Presentation, ino, name};
use super::directory::{Listing, ListingPlus, panicked};
use super::handoff::Handoff;
use super::negotiate::negotiate;
use super::notice::Notices;
use super::reply::{Refuse, What, refuse, reply_xattr};
use super::selftest::{PROBE_INO, SelfTest};
use crate::base::acl::AclKind;
use crate::base::ids::Fh;
use crate::base::range::ByteRange;
use crate::base::time::Clock;
use crate::rt::Spawner;
use crate::vfs::{self, Attr, Error, RenameMode, SetAttr, SetXattr, Vfs, Whence, Written};

/// How long the kernel may believe what it was told. Everything that changes goes through it, so this only bounds how
/// long it keeps what nobody asks for.
const TTL: Duration = Duration::from_secs(24 * 3600);

/// Inode numbers are never used twice, so one generation is enough.
const GENERATION: Generation = Generation(0);

/// Unit of `statfs`, in bytes.
const STATFS_BYTES: u32 = 4096;

/// What an adapter is made of.
pub struct AdapterParts {
    pub vfs: Arc<Vfs>,
    pub spawner: Arc<dyn Spawner>,
    pub clock: Arc<dyn Clock>,
    pub runtime: Handle,
    pub presentation: Presentation,
    pub selftest: Arc<SelfTest>,
    /// Files and directories that the kernel has open, counted here.
    pub open_count: Arc<AtomicU64>,
}

/// Translates between the kernel and the vfs; holds no state of files itself.
pub struct Adapter {
    vfs: Arc<Vfs>,
    handoff: Handoff,
    presentation: Presentation,
    selftest: Arc<SelfTest>,
    open_count: Arc<AtomicU64>,
    notices: Arc<Notices>,
    /// The kernel checks access by ACLs, so they are not refused.
    has_acls: bool,
}

impl Adapter {
    #[must_use]
    pub fn new(parts: AdapterParts) -> Self {
        let AdapterParts { vfs, spawner, clock, runtime, presentation, selftest, open_count } = parts;
        let handoff = Handoff { spawner, clock, runtime };
        let notices = Arc::default();
        Self { vfs, handoff, presentation, selftest, open_count, notices, has_acls: false }
    }

    pub(super) fn notices(&self) -> Arc<Notices> {
        Arc::clone(&self.notices)
    }

    fn asker<'a>(&'a self, request: &'a Request) -> Asker<'a> {
        Asker::new(request, &self.presentation)
    }

    /// The ACL that the attribute called `name` holds.
    ///
    /// # Errors
    /// `NotSupported` if the kernel would not check access by it.
    fn acl_kind(&self, name: &[u8]) -> vfs::Result<Option<AclKind>> {
        match AclKind::of_attribute(name) {
            Some(_) if !self.has_acls => Err(Error::NotSupported),
            kind => Ok(kind),
        }
    }

    /// Does `work` and answers with what it gives; a panic is answered with EIO and concerns this request only.
    fn answer<R: Refuse, T>(
        &self,
        operation: &'static str,
        target: INodeNo,
        reply: R,
        work: impl FnOnce() -> vfs::Result<T>,
        accept: impl FnOnce(R, T),
    ) {
        let what = What { operation, ino: target.0 };
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(answer)) => accept(reply, answer),
            Ok(Err(error)) => refuse(reply, what, &error),
            Err(_) => {
                error!(operation, ino = target.0, "request panicked");
                reply.refuse(Errno::EIO);
            }
        }
    }

    /// As [`Self::answer`], for what may have to wait.
    fn answer_later<R: Refuse, T: Send + 'static>(
        &self,
        operation: &'static str,
        target: INodeNo,
        reply: R,
        work: impl FnOnce() -> vfs::Result<vfs::Pending<T>>,
        accept: impl FnOnce(R, T) + Send + 'static,
    ) {
        self.answer(operation, target, reply, work, |reply, pending| {
            self.handoff.answer(What { operation, ino: target.0 }, reply, pending, accept);
        });
    }

    fn entry(&self, reply: ReplyEntry, attr: &Attr) {
        reply.entry(&TTL, &self.presentation.show(attr), GENERATION);
    }

    /// How the kernel shall cache a file opened with `flags`: write-only files bypass the page cache (half the CPU per
    /// byte) where that is safe; no open empties it.
    fn cache_mode(&self, flags: OpenFlags) -> FopenFlags {
        if flags.acc_mode() == OpenAccMode::O_WRONLY && self.selftest.direct_writes() {
            DIRECT_WRITER
        } else {
            FopenFlags::FOPEN_KEEP_CACHE
        }
    }

    fn opened(&self) {
        self.open_count.fetch_add(1, Ordering::Relaxed);
    }

    fn closed(&self) {
        self.open_count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A file whose writes bypass the page cache. Without the second flag the open itself drops every cached page of the file:
/// a small edit then costs the whole cache, and the self-test could not tell whether the write invalidates anything.
const DIRECT_WRITER: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_KEEP_CACHE);

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.has_acls = negotiate(config).has_acls;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, child: &OsStr, reply: ReplyEntry) {
        if self.selftest.is_named(parent, child) {
            return reply.entry(&Duration::ZERO, &self.selftest.attr(), GENERATION);
        }
        let work = || match child.as_bytes() {
            // Asked by handle, for an inode the kernel has forgotten (FUSE_EXPORT_SUPPORT).
            b"." => self.vfs.introduce_entry(ino(parent)),
            b".." => self.vfs.introduce_entry(self.vfs.parent(ino(parent))?),
            _ => self.vfs.lookup(ino(parent), &name(child)?),
        };
        self.answer("lookup", parent, reply, work, |reply, found| match found {
            Some(attr) => self.entry(reply, &attr),
            None => reply.entry(&TTL, &convert::negative_entry(), GENERATION),
        });
    }

    fn forget(&self, _: &Request, target: INodeNo, count: u64) {
        let work = || self.vfs.forget(ino(target), count);
        if target != PROBE_INO && catch_unwind(AssertUnwindSafe(work)).is_err() {
            error!(ino = target.0, "forget panicked");
        }
    }

    fn getattr(&self, _: &Request, target: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if target == PROBE_INO {
            return reply.attr(&Duration::ZERO, &self.selftest.attr());
        }
        let work = || self.vfs.getattr(ino(target));
        self.answer("getattr", target, reply, work, |reply, attr| {
            reply.attr(&TTL, &self.presentation.show(&attr));
        });
    }

    fn setattr(
        &self,
        request: &Request,
        target: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (atime, mtime) = (atime.map(convert::set_time), mtime.map(convert::set_time));
        let set = SetAttr { mode, uid, gid, size, atime, mtime };
        let asker = self.asker(request);
        let work = || self.vfs.setattr(&asker.caller(0), ino(target), &set);
        self.answer("setattr", target, reply, work, |reply, attr| {
            reply.attr(&TTL, &self.presentation.show(&attr));
        });
    }

    fn readlink(&self, _: &Request, target: INodeNo, reply: ReplyData) {
        let work = || self.vfs.readlink(ino(target));
        self.answer("readlink", target, reply, work, |reply, text| reply.data(&text));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        child: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let asker = self.asker(request);
        let work = || self.vfs.mknod(&asker.caller(umask), ino(parent), &name(child)?, mode, rdev);
        self.answer("mknod", parent, reply, work, |reply, attr| self.entry(reply, &attr));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        child: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let asker = self.asker(request);
        let work = || self.vfs.mkdir(&asker.caller(umask), ino(parent), &name(child)?, mode);
        self.answer("mkdir", parent, reply, work, |reply, attr| self.entry(reply, &attr));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, child: &OsStr, reply: ReplyEmpty) {
        let work = || self.vfs.unlink(ino(parent), &name(child)?);
        self.answer("unlink", parent, reply, work, |reply, ()| reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, child: &OsStr, reply: ReplyEmpty) {
        let work = || self.vfs.rmdir(ino(parent), &name(child)?);
        self.answer("rmdir", parent, reply, work, |reply, ()| reply.ok());
    }

    fn symlink(&self, request: &Request, parent: INodeNo, child: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let asker = self.asker(request);
        let work = || self.vfs.symlink(&asker.caller(0), ino(parent), &name(child)?, target);
        self.answer("symlink", parent, reply, work, |reply, attr| self.entry(reply, &attr));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        child: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let work = || {
            let mode = match flags {
                _ if flags.is_empty() => RenameMode::Replace,
                RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
                RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
                _ => return Err(Error::Invalid),
            };
            let (from, to) = (name(child)?, name(newname)?);
            Ok(self.vfs.rename((ino(parent), &from), (ino(newparent), &to), mode))
        };
        self.answer_later("rename", parent, reply, work, |reply, ()| reply.ok());
    }

    fn link(&self, _: &Request, target: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let work = || self.vfs.link(ino(target), ino(newparent), &name(newname)?);
        self.answer("link", target, reply, work, |reply, attr| self.entry(reply, &attr));
    }

    fn open(&self, request: &Request, target: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if target == PROBE_INO {
            let is_writer = flags.acc_mode() == OpenAccMode::O_WRONLY;
            let cache = if is_writer { DIRECT_WRITER } else { FopenFlags::FOPEN_KEEP_CACHE };
            self.opened();
            return reply.opened(FileHandle(0), cache);
        }
        let cache = self.cache_mode(flags);
        let asker = self.asker(request);
        let flags = convert::open_flags(flags.0);
        let work = || self.vfs.open_file(&asker.caller(0), ino(target), flags);
        self.answer("open", target, reply, work, |reply, fh| {
            self.opened();
            // The reply does not say that suid and sgid have gone with the content.
            if flags.truncate {
                self.notices.forget_attributes(target);
            }
            reply.opened(FileHandle(fh.0), cache);
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        child: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let cache = self.cache_mode(OpenFlags(flags));
        let flags = convert::open_flags(flags);
        let asker = self.asker(request);
        let work = || self.vfs.create(&asker.caller(umask), ino(parent), &name(child)?, mode, flags);
        self.answer("create", parent, reply, work, |reply, (attr, fh)| {
            self.opened();
            reply.created(&TTL, &self.presentation.show(&attr), GENERATION, FileHandle(fh.0), cache);
        });
    }

    fn read(
        &self,
        _: &Request,
        target: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if target == PROBE_INO {
            return reply.data(&self.selftest.read(offset, size));
        }
        let work = || Ok(self.vfs.read(Fh(fh.0), offset, size));
        self.answer_later("read", target, reply, work, |reply, data| reply.data(&data));
    }

    fn write(
        &self,
        request: &Request,
        target: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if target == PROBE_INO {
            self.selftest.write(data);
            return reply.written(u32::try_from(data.len()).expect("a request has at most 16 MiB"));
        }
        let asker = self.asker(request);
        let work = || {
            let writer = asker.caller(0);
            let kills_set_id = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            // The kernel does not know what a write past its page cache has taken, and would execute the file with it.
            if self.vfs.kill_privileges(Fh(fh.0), kills_set_id.then_some(&writer))? {
                self.notices.forget_attributes(target);
            }
            self.vfs.write(Fh(fh.0), offset, data)
        };
        self.answer("write", target, reply, work, |reply, outcome| match outcome {
            Written::Now(len) => reply.written(len),
            Written::Later(pending) => {
                let what = What { operation: "write", ino: target.0 };
                self.handoff.answer(what, reply, pending, ReplyWrite::written);
            }
        });
    }

    fn flush(&self, _: &Request, target: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        if target == PROBE_INO {
            return reply.ok();
        }
        let work = || self.vfs.flush(Fh(fh.0));
        self.answer("flush", target, reply, work, |reply, ()| reply.ok());
    }

    fn release(
        &self,
        _: &Request,
        target: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.closed();
        if target == PROBE_INO {
            return reply.ok();
        }
        let work = || {
            self.vfs.release(Fh(fh.0));
            Ok(())
        };
        self.answer("release", target, reply, work, |reply, ()| reply.ok());
    }

    fn fsync(&self, _: &Request, target: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let work = || Ok(self.vfs.fsync(Fh(fh.0)));
        self.answer_later("fsync", target, reply, work, |reply, ()| reply.ok());
    }

    fn opendir(&self, _: &Request, target: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let work = || self.vfs.opendir(ino(target));
        self.answer("opendir", target, reply, work, |reply, ()| {
            self.opened();
            reply.opened(FileHandle(0), FopenFlags::empty());
        });
    }

    fn readdir(&self, _: &Request, target: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        let mut listing = Listing { reply };
        let work = || self.vfs.readdir(ino(target), offset, &mut listing);
        let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| panicked());
        self.answer("readdir", target, listing.reply, || outcome, |reply, ()| reply.ok());
    }

    fn readdirplus(
        &self,
        _: &Request,
        target: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let mut listing = ListingPlus::new(reply, &self.vfs, self.presentation, TTL);
        let work = || {
            self.vfs.readdir(ino(target), offset, &mut listing)?;
            listing.failure.take().map_or(Ok(()), Err)
        };
        let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| panicked());
        self.answer("readdirplus", target, listing.reply, || outcome, |reply, ()| reply.ok());
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.closed();
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, target: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let work = || Ok(self.vfs.fsyncdir(ino(target)));
        self.answer_later("fsyncdir", target, reply, work, |reply, ()| reply.ok());
    }

    fn statfs(&self, _: &Request, target: INodeNo, reply: ReplyStatfs) {
        let work = || self.vfs.statfs();
        self.answer("statfs", target, reply, work, |reply, stat| {
            let unit = u64::from(STATFS_BYTES);
            let blocks = stat.reported_bytes / unit;
            let free = blocks.saturating_sub(stat.allocated_bytes.div_ceil(unit));
            // The store sets no limit to files; programs want one, so there are always as many again.
            let free_inodes = u64::from(u32::MAX);
            let names_max = u32::try_from(crate::base::limits::NAME_BYTES_MAX).expect("255");
            let inodes = stat.inodes + free_inodes;
            reply.statfs(blocks, free, free, inodes, free_inodes, STATFS_BYTES, names_max, STATFS_BYTES);
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        target: INodeNo,
        key: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let asker = self.asker(request);
        let work = || {
            if let Some(kind) = self.acl_kind(key.as_bytes())? {
                return self.vfs.set_acl(&asker.caller(0), ino(target), kind, value);
            }
            let mode = match flags {
                0 => SetXattr::Either,
                libc::XATTR_CREATE => SetXattr::Create,
                libc::XATTR_REPLACE => SetXattr::Replace,
                both if both == libc::XATTR_CREATE | libc::XATTR_REPLACE => SetXattr::CreateAndReplace,
                _ => return Err(Error::Invalid),
            };
            self.vfs.setxattr(ino(target), key.as_bytes(), value, mode)
        };
        self.answer("setxattr", target, reply, work, |reply, ()| reply.ok());
    }

    fn getxattr(&self, _: &Request, target: INodeNo, key: &OsStr, size: u32, reply: ReplyXattr) {
        let name = key.as_bytes();
        let work = || {
            self.acl_kind(name)?;
            Ok(self.presentation.show_xattr(name, self.vfs.getxattr(ino(target), name)?))
        };
        self.answer("getxattr", target, reply, work, |reply, value| reply_xattr(reply, size, &value));
    }

    fn listxattr(&self, request: &Request, target: INodeNo, size: u32, reply: ReplyXattr) {
        let work = || {
            let names = self.vfs.listxattr(ino(target))?;
            Ok(convert::shown_names(names, || self.asker(request).sees_trusted()))
        };
        self.answer("listxattr", target, reply, work, |reply, names| reply_xattr(reply, size, &names));
    }

    fn removexattr(&self, _: &Request, target: INodeNo, key: &OsStr, reply: ReplyEmpty) {
        let name = key.as_bytes();
        let work = || match self.acl_kind(name)? {
            Some(kind) => self.vfs.remove_acl(ino(target), kind),
            None => self.vfs.removexattr(ino(target), name),
        };
        self.answer("removexattr", target, reply, work, |reply, ()| reply.ok());
    }

    fn fallocate(
        &self,
        _: &Request,
        target: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let work = || {
            let (mode, keep_size) = convert::allocate_mode(mode).ok_or(Error::NotSupported)?;
            let range = ByteRange::at(offset, length);
            self.vfs.fallocate(Fh(fh.0), range, mode, keep_size)
        };
        self.answer("fallocate", target, reply, work, |reply, ()| reply.ok());
    }

    fn lseek(
        &self,
        _: &Request,
        target: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let work = || {
            let whence = match whence {
                libc::SEEK_DATA => Whence::Data,
                libc::SEEK_HOLE => Whence::Hole,
                _ => return Err(Error::Invalid),
            };
            let from = u64::try_from(offset).map_err(|_| Error::NoSuchOffset)?;
            let found = self.vfs.lseek(Fh(fh.0), from, whence)?;
            i64::try_from(found).map_err(|_| Error::FileTooLarge)
        };
        self.answer("lseek", target, reply, work, |reply, found| reply.offset(found));
    }

    fn copy_file_range(
        &self,
        _: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The reply counts in 32 bits; the kernel asks again for the rest.
        let len = len.min(u64::from(u32::MAX) & !0xfff);
        let work = || Ok(self.vfs.copy_file_range((Fh(fh_in.0), offset_in), (Fh(fh_out.0), offset_out), len));
        self.answer_later("copy_file_range", ino_in, reply, work, |reply, copied: u64| {
            reply.written(u32::try_from(copied).expect("bounded by the request"));
        });
    }
}
