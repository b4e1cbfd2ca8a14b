//! A FUSE filesystem that does nothing: names in memory, written data dropped, every byte read is zero. What it reaches
//! is what the kernel and fuser leave to any filesystem, with the settings GravitonFS uses.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};

/// The kernel keeps names and attributes this long; nobody else changes them.
const TTL: Duration = Duration::from_secs(3600);

/// As GravitonFS does: writes that nobody can map go past the page cache, and no open empties it.
fn fopen_flags(flags: OpenFlags) -> FopenFlags {
    match flags.acc_mode() {
        OpenAccMode::O_WRONLY => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_KEEP_CACHE,
        OpenAccMode::O_RDONLY | OpenAccMode::O_RDWR => FopenFlags::FOPEN_KEEP_CACHE,
    }
}

/// Serves `mountpoint` until it is unmounted.
pub fn serve(mountpoint: &Path) -> io::Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("null".to_owned()),
        MountOption::Subtype("null".to_owned()),
        MountOption::DefaultPermissions,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(2);
    config.clone_fd = true;
    fuser::mount(NullFs::new(), mountpoint, &config)
}

struct Node {
    attr: FileAttr,
    /// By number, which is the cookie of a listing and stays true while entries go.
    children: BTreeMap<u64, OsString>,
}

struct Tree {
    nodes: HashMap<u64, Node>,
    by_name: HashMap<(u64, OsString), u64>,
    next: u64,
}

impl Tree {
    fn add(&mut self, place: (u64, OsString), kind: FileType, mode: u32, request: &Request) -> FileAttr {
        let ino = self.next;
        self.next += 1;
        let attr = new_attr(ino, kind, mode, (request.uid(), request.gid()));
        if let Some(parent) = self.nodes.get_mut(&place.0) {
            parent.children.insert(ino, place.1.clone());
        }
        self.by_name.insert(place, ino);
        self.nodes.insert(ino, Node { attr, children: BTreeMap::new() });
        attr
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Option<u64> {
        self.by_name.get(&(parent.0, name.to_owned())).copied()
    }

    fn detach(&mut self, parent: INodeNo, name: &OsStr) -> Option<u64> {
        let ino = self.by_name.remove(&(parent.0, name.to_owned()))?;
        self.nodes.get_mut(&parent.0)?.children.remove(&ino);
        Some(ino)
    }

    fn grow(&mut self, ino: INodeNo, end: u64) {
        if let Some(node) = self.nodes.get_mut(&ino.0) {
            node.attr.size = node.attr.size.max(end);
            node.attr.blocks = node.attr.size.div_ceil(512);
        }
    }
}

fn new_attr(ino: u64, kind: FileType, mode: u32, owner: (u32, u32)) -> FileAttr {
    let now = SystemTime::now();
    let perm = u16::try_from(mode & 0o7777).expect("twelve bits fit");
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind,
        perm,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid: owner.0,
        gid: owner.1,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

struct NullFs {
    tree: Mutex<Tree>,
    zeros: Vec<u8>,
}

impl NullFs {
    fn new() -> Self {
        let mut tree = Tree { nodes: HashMap::new(), by_name: HashMap::new(), next: INodeNo::ROOT.0 + 1 };
        let root = new_attr(INodeNo::ROOT.0, FileType::Directory, 0o755, (0, 0));
        tree.nodes.insert(INodeNo::ROOT.0, Node { attr: root, children: BTreeMap::new() });
        Self { tree: Mutex::new(tree), zeros: vec![0; 16 << 20] }
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().expect("no callback panics")
    }
}

impl Filesystem for NullFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_ASYNC_DIO;
        for flag in wanted.iter() {
            // An older kernel lacks some; the filesystem works without them.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let tree = self.tree();
        match tree.find(parent, name).and_then(|ino| tree.nodes.get(&ino)) {
            Some(node) => reply.entry(&TTL, &node.attr, Generation(0)),
            None => {
                // Number 0 lets the kernel remember that there is nothing.
                let absent = new_attr(0, FileType::RegularFile, 0, (0, 0));
                reply.entry(&TTL, &absent, Generation(0));
            }
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree().nodes.get(&ino.0) {
            Some(node) => reply.attr(&TTL, &node.attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut tree = self.tree();
        let Some(node) = tree.nodes.get_mut(&ino.0) else { return reply.error(Errno::ENOENT) };
        if let Some(mode) = mode {
            node.attr.perm = u16::try_from(mode & 0o7777).expect("twelve bits fit");
        }
        if let Some(size) = size {
            node.attr.size = size;
            node.attr.blocks = size.div_ceil(512);
        }
        reply.attr(&TTL, &node.attr);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let place = (parent.0, name.to_owned());
        let attr = self.tree().add(place, FileType::Directory, mode, request);
        reply.entry(&TTL, &attr, Generation(0));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let place = (parent.0, name.to_owned());
        let attr = self.tree().add(place, FileType::RegularFile, mode, request);
        reply.created(&TTL, &attr, Generation(0), FileHandle(0), fopen_flags(OpenFlags(flags)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.tree().detach(parent, name) {
            // Forgotten numbers stay in the table: an open file may still be asked about.
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.unlink(request, parent, name, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut tree = self.tree();
        let Some(ino) = tree.detach(parent, name) else { return reply.error(Errno::ENOENT) };
        tree.detach(newparent, newname);
        tree.by_name.insert((newparent.0, newname.to_owned()), ino);
        if let Some(parent) = tree.nodes.get_mut(&newparent.0) {
            parent.children.insert(ino, newname.to_owned());
        }
        reply.ok();
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_TRUNC != 0
            && let Some(node) = self.tree().nodes.get_mut(&ino.0)
        {
            node.attr.size = 0;
        }
        reply.opened(FileHandle(0), fopen_flags(flags));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let end = self.tree().nodes.get(&ino.0).map_or(0, |node| node.attr.size);
        let len = u64::from(size).min(end.saturating_sub(offset));
        let len = usize::try_from(len).expect("a request fits memory");
        reply.data(self.zeros.get(..len).unwrap_or(&self.zeros));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.tree().grow(ino, offset + data.len() as u64);
        reply.written(u32::try_from(data.len()).expect("the kernel asks for 32 bits"));
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let len = u32::try_from(len).unwrap_or(!4095);
        self.tree().grow(ino_out, offset_out + u64::from(len));
        reply.written(len);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let tree = self.tree();
        let Some(node) = tree.nodes.get(&ino.0) else { return reply.error(Errno::ENOENT) };
        for (child, name) in node.children.range(offset + 1..) {
            let Some(entry) = tree.nodes.get(child) else { continue };
            if reply.add(INodeNo(*child), *child, entry.attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let tree = self.tree();
        let Some(node) = tree.nodes.get(&ino.0) else { return reply.error(Errno::ENOENT) };
        for (child, name) in node.children.range(offset + 1..) {
            let Some(entry) = tree.nodes.get(child) else { continue };
            if reply.add(INodeNo(*child), *child, name, &TTL, &entry.attr, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }
}
