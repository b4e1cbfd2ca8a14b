//! Nodes, names and attributes, and what each operation does to them.

use std::collections::BTreeMap;

use gravitonfs::base::limits::{
    FILE_BYTES_MAX, SYMLINK_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX,
};
use gravitonfs::base::range::ByteRange;
use gravitonfs::base::time::Timestamp;
use gravitonfs::vfs::{AllocateMode, RenameMode, SetAttr, SetTime, SetXattr};

use super::content::Content;

/// A node's number in the model.
pub(crate) type Id = u64;

pub(crate) const ROOT_ID: Id = 1;

/// A name in a directory.
pub(crate) type Place = (Id, Vec<u8>);

/// One operation; nodes are named by their numbers, for the kernel has resolved paths.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Lookup(Place),
    Stat(Id),
    /// Of any kind but symlink; the mode has the kind's bits.
    Make {
        at: Place,
        mode: u32,
        rdev: u32,
        owner: (u32, u32),
    },
    Symlink {
        at: Place,
        target: Vec<u8>,
        owner: (u32, u32),
    },
    Readlink(Id),
    Link {
        node: Id,
        at: Place,
    },
    Unlink(Place),
    Rmdir(Place),
    Rename {
        from: Place,
        to: Place,
        mode: RenameMode,
    },
    Setattr {
        node: Id,
        uid: u32,
        set: SetAttr,
    },
    Read {
        node: Id,
        window: ByteRange,
    },
    Write {
        node: Id,
        offset: u64,
        data: Vec<u8>,
        kill_privileges: bool,
    },
    Allocate {
        node: Id,
        range: ByteRange,
        mode: AllocateMode,
        keep_size: bool,
    },
    Copy {
        from: (Id, u64),
        to: (Id, u64),
        len: u64,
    },
    SetXattr {
        node: Id,
        name: Vec<u8>,
        value: Vec<u8>,
        mode: SetXattr,
    },
    GetXattr {
        node: Id,
        name: Vec<u8>,
    },
    ListXattr(Id),
    RemoveXattr {
        node: Id,
        name: Vec<u8>,
    },
}

/// What an operation that succeeds returns.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Answer {
    Done,
    Node(Option<Id>),
    Stat {
        nlink: u32,
        size: u64,
    },
    Bytes(Vec<u8>),
    Count(u64),
    /// Sorted.
    Names(Vec<Vec<u8>>),
}

/// An answer, or the errno.
pub(crate) type Outcome = Result<Answer, i32>;

/// An inode.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Node {
    /// Bits of `S_IFMT`.
    pub(crate) kind: u32,
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) rdev: u32,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    /// Of a file.
    pub(crate) content: Content,
    /// Of a directory.
    pub(crate) entries: BTreeMap<Vec<u8>, Id>,
    pub(crate) parent: Id,
    /// Of a symlink.
    pub(crate) target: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A filesystem.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Tree {
    pub(crate) nodes: BTreeMap<Id, Node>,
    next: Id,
    /// Zeros in this many bytes at the start of a file may be kept as data.
    loose_bytes: u64,
}

impl Node {
    fn new(mode: u32, owner: (u32, u32), now: Timestamp) -> Self {
        let kind = mode & libc::S_IFMT;
        Self {
            kind,
            mode: mode & 0o7777,
            nlink: if kind == libc::S_IFDIR { 2 } else { 1 },
            owner,
            rdev: 0,
            atime: now,
            mtime: now,
            ctime: now,
            content: Content::default(),
            entries: BTreeMap::new(),
            parent: 0,
            target: Vec::new(),
            xattrs: BTreeMap::new(),
        }
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    pub(crate) fn is_file(&self) -> bool {
        self.kind == libc::S_IFREG
    }

    fn changed(&mut self, now: Timestamp) {
        self.mtime = now;
        self.ctime = now;
    }

    /// Moves the atime as relatime has it.
    pub(crate) fn is_read(&mut self, now: Timestamp) {
        let is_stale = self.atime <= self.mtime || self.atime <= self.ctime;
        if is_stale || self.atime.secs + 24 * 3600 <= now.secs {
            self.atime = now;
        }
    }

    fn clear_privileges(&mut self) {
        self.mode &= !libc::S_ISUID;
        if self.mode & libc::S_IXGRP != 0 {
            self.mode &= !libc::S_ISGID;
        }
    }
}

impl Tree {
    pub(crate) fn new(loose_bytes: u64, now: Timestamp) -> Self {
        let root = Node { parent: ROOT_ID, ..Node::new(libc::S_IFDIR | 0o755, (0, 0), now) };
        Self { nodes: [(ROOT_ID, root)].into(), next: ROOT_ID + 1, loose_bytes }
    }

    pub(crate) fn apply(&mut self, op: &Op, now: Timestamp) -> Outcome {
        match op {
            Op::Lookup((dir, name)) => Ok(Answer::Node(self.dir(*dir)?.entries.get(name).copied())),
            Op::Stat(node) => {
                let node = self.node(*node)?;
                Ok(Answer::Stat { nlink: node.nlink, size: node.content.len() })
            }
            Op::Make { at, mode, rdev, owner } => {
                let node = Node { rdev: *rdev, ..Node::new(*mode, *owner, now) };
                self.add(at, node, now)
            }
            Op::Symlink { at, target, owner } => {
                match target.len() {
                    0 => return Err(libc::ENOENT),
                    1..=SYMLINK_BYTES_MAX => {}
                    _ => return Err(libc::ENAMETOOLONG),
                }
                let node = Node::new(libc::S_IFLNK | 0o777, *owner, now);
                self.add(at, Node { target: target.clone(), ..node }, now)
            }
            Op::Readlink(node) => {
                let node = self.node(*node)?;
                let is_link = node.kind == libc::S_IFLNK;
                if is_link { Ok(Answer::Bytes(node.target.clone())) } else { Err(libc::EINVAL) }
            }
            Op::Link { node, at } => self.link(*node, at, now),
            Op::Unlink(at) => self.remove(at, false, now),
            Op::Rmdir(at) => self.remove(at, true, now),
            Op::Rename { from, to, mode } => self.rename(from, to, *mode, now),
            Op::Setattr { node, uid, set } => self.setattr(*node, *uid, set, now),
            Op::Read { node, window } => {
                let node = self.node_mut(*node)?;
                node.is_read(now);
                Ok(Answer::Bytes(node.content.read(*window)))
            }
            Op::Write { node, offset, data, kill_privileges } => {
                self.write(*node, *offset, data, *kill_privileges, now)
            }
            Op::Allocate { node, range, mode, keep_size } => {
                if range.is_empty() {
                    return Err(libc::EINVAL);
                }
                if FILE_BYTES_MAX < range.end {
                    return Err(libc::EFBIG);
                }
                let loose = self.loose_bytes;
                let node = self.node_mut(*node)?;
                node.content.allocate(*range, *mode, *keep_size);
                node.content.loosen(loose);
                node.changed(now);
                Ok(Answer::Done)
            }
            Op::Copy { from, to, len } => self.copy(*from, *to, *len, now),
            Op::SetXattr { node, name, value, mode } => {
                check_xattr_name(name)?;
                if XATTR_VALUE_BYTES_MAX < value.len() {
                    return Err(libc::E2BIG);
                }
                let node = self.node_mut(*node)?;
                match (mode, node.xattrs.contains_key(name)) {
                    (SetXattr::Create, true) => return Err(libc::EEXIST),
                    (SetXattr::Replace, false) => return Err(libc::ENODATA),
                    _ => {}
                }
                node.xattrs.insert(name.clone(), value.clone());
                node.ctime = now;
                Ok(Answer::Done)
            }
            Op::GetXattr { node, name } => {
                check_xattr_name(name)?;
                self.node(*node)?.xattrs.get(name).cloned().map(Answer::Bytes).ok_or(libc::ENODATA)
            }
            Op::ListXattr(node) => Ok(Answer::Names(self.node(*node)?.xattrs.keys().cloned().collect())),
            Op::RemoveXattr { node, name } => {
                check_xattr_name(name)?;
                let node = self.node_mut(*node)?;
                node.xattrs.remove(name).ok_or(libc::ENODATA)?;
                node.ctime = now;
                Ok(Answer::Done)
            }
        }
    }

    /// Says what the next new node will be called.
    pub(crate) fn set_next_id(&mut self, id: Id) {
        self.next = id;
    }

    /// What the next new node will be called.
    pub(crate) fn next_id(&self) -> Id {
        self.next
    }

    fn node(&self, id: Id) -> Result<&Node, i32> {
        self.nodes.get(&id).ok_or(libc::ESTALE)
    }

    fn node_mut(&mut self, id: Id) -> Result<&mut Node, i32> {
        self.nodes.get_mut(&id).ok_or(libc::ESTALE)
    }

    fn dir(&self, id: Id) -> Result<&Node, i32> {
        let node = self.node(id)?;
        if node.is_dir() { Ok(node) } else { Err(libc::ENOTDIR) }
    }

    /// The directory, which takes new names.
    fn living_dir(&self, id: Id) -> Result<&Node, i32> {
        let dir = self.dir(id)?;
        if dir.nlink == 0 { Err(libc::ENOENT) } else { Ok(dir) }
    }

    pub(crate) fn child(&self, at: &Place) -> Option<Id> {
        self.nodes.get(&at.0)?.entries.get(&at.1).copied()
    }

    fn add(&mut self, at: &Place, mut node: Node, now: Timestamp) -> Outcome {
        let dir = self.living_dir(at.0)?;
        if dir.entries.contains_key(&at.1) {
            return Err(libc::EEXIST);
        }
        if dir.mode & libc::S_ISGID != 0 {
            node.owner.1 = dir.owner.1;
            if node.is_dir() {
                node.mode |= libc::S_ISGID;
            }
        }
        let id = self.next;
        self.next += 1;
        let is_dir = node.is_dir();
        if is_dir {
            node.parent = at.0;
        }
        self.nodes.insert(id, node);
        let dir = self.node_mut(at.0)?;
        dir.entries.insert(at.1.clone(), id);
        dir.nlink += u32::from(is_dir);
        dir.changed(now);
        Ok(Answer::Node(Some(id)))
    }

    fn link(&mut self, id: Id, at: &Place, now: Timestamp) -> Outcome {
        let node = self.node(id)?;
        if node.is_dir() {
            self.dir(at.0)?;
            return Err(libc::EPERM);
        }
        if self.dir(at.0)?.entries.contains_key(&at.1) {
            return Err(libc::EEXIST);
        }
        self.living_dir(at.0)?;
        if self.node(id)?.nlink == 0 {
            return Err(libc::ENOENT);
        }
        let node = self.node_mut(id)?;
        node.nlink += 1;
        node.ctime = now;
        let dir = self.node_mut(at.0)?;
        dir.entries.insert(at.1.clone(), id);
        dir.changed(now);
        Ok(Answer::Node(Some(id)))
    }

    fn remove(&mut self, at: &Place, wants_dir: bool, now: Timestamp) -> Outcome {
        self.dir(at.0)?;
        let id = self.child(at).ok_or(libc::ENOENT)?;
        let node = self.node(id)?;
        match (wants_dir, node.is_dir()) {
            (true, false) => return Err(libc::ENOTDIR),
            (false, true) => return Err(libc::EISDIR),
            (true, true) if !node.entries.is_empty() => return Err(libc::ENOTEMPTY),
            _ => {}
        }
        self.drop_link(id, now)?;
        let dir = self.node_mut(at.0)?;
        dir.entries.remove(&at.1);
        dir.nlink -= u32::from(wants_dir);
        dir.changed(now);
        Ok(Answer::Done)
    }

    fn drop_link(&mut self, id: Id, now: Timestamp) -> Result<(), i32> {
        let node = self.node_mut(id)?;
        node.nlink = if node.is_dir() { 0 } else { node.nlink - 1 };
        node.ctime = now;
        Ok(())
    }

    fn is_at_or_above(&self, above: Id, mut below: Id) -> bool {
        while below != above {
            match self.nodes.get(&below) {
                Some(node) if below != ROOT_ID => below = node.parent,
                _ => return false,
            }
        }
        true
    }

    fn rename(&mut self, from: &Place, to: &Place, mode: RenameMode, now: Timestamp) -> Outcome {
        self.dir(from.0)?;
        self.dir(to.0)?;
        let source = self.child(from).ok_or(libc::ENOENT)?;
        let target = self.child(to);
        let is_dir = |id: Id| self.nodes[&id].is_dir();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(libc::EEXIST),
            (RenameMode::Exchange, None) => return Err(libc::ENOENT),
            _ => {}
        }
        if target == Some(source) {
            return Ok(Answer::Done);
        }
        if let (Some(target), RenameMode::Replace) = (target, mode) {
            match (is_dir(source), is_dir(target)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.nodes[&target].entries.is_empty() => return Err(libc::ENOTEMPTY),
                _ => {}
            }
        }
        self.living_dir(to.0)?;
        if is_dir(source) && self.is_at_or_above(source, to.0) {
            return Err(libc::EINVAL);
        }
        let exchanged = target.filter(|target| mode == RenameMode::Exchange && is_dir(*target));
        if exchanged.is_some_and(|target| self.is_at_or_above(target, from.0)) {
            return Err(libc::EINVAL);
        }
        self.take(from, source);
        if let Some(target) = target {
            self.take(to, target);
            if mode == RenameMode::Exchange {
                self.give(from, target, now);
            } else {
                self.drop_link(target, now)?;
            }
        }
        self.give(to, source, now);
        for dir in [from.0, to.0] {
            self.node_mut(dir)?.changed(now);
        }
        Ok(Answer::Done)
    }

    fn take(&mut self, at: &Place, id: Id) {
        let is_dir = self.nodes[&id].is_dir();
        let dir = self.nodes.get_mut(&at.0).expect("checked");
        dir.entries.remove(&at.1);
        dir.nlink -= u32::from(is_dir);
    }

    fn give(&mut self, at: &Place, id: Id, now: Timestamp) {
        let node = self.nodes.get_mut(&id).expect("checked");
        node.ctime = now;
        let is_dir = node.is_dir();
        if is_dir {
            node.parent = at.0;
        }
        let dir = self.nodes.get_mut(&at.0).expect("checked");
        dir.entries.insert(at.1.clone(), id);
        dir.nlink += u32::from(is_dir);
    }

    fn setattr(&mut self, id: Id, uid: u32, set: &SetAttr, now: Timestamp) -> Outcome {
        let loose = self.loose_bytes;
        let node = self.node_mut(id)?;
        if let Some(size) = set.size {
            match node.kind {
                libc::S_IFDIR => return Err(libc::EISDIR),
                libc::S_IFREG if size <= FILE_BYTES_MAX => {}
                libc::S_IFREG => return Err(libc::EFBIG),
                _ => return Err(libc::EINVAL),
            }
            node.content.resize(size);
            node.content.loosen(loose);
            node.mtime = now;
        }
        let changes_owner = set.uid.is_some() || set.gid.is_some();
        let takes_privileges = changes_owner || set.size.is_some() || *set == SetAttr::default();
        if let Some(mode) = set.mode {
            node.mode = mode & 0o7777;
        } else if takes_privileges && !node.is_dir() && (set.size.is_none() || uid != 0) {
            node.clear_privileges();
        }
        node.owner = (set.uid.unwrap_or(node.owner.0), set.gid.unwrap_or(node.owner.1));
        let time = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(at) => at,
        };
        node.atime = set.atime.map_or(node.atime, time);
        node.mtime = set.mtime.map_or(node.mtime, time);
        node.ctime = now;
        Ok(Answer::Done)
    }

    fn write(&mut self, id: Id, offset: u64, data: &[u8], kill: bool, now: Timestamp) -> Outcome {
        if FILE_BYTES_MAX < offset.saturating_add(data.len() as u64) {
            return Err(libc::EFBIG);
        }
        let loose = self.loose_bytes;
        let node = self.node_mut(id)?;
        if kill {
            node.clear_privileges();
        }
        if !data.is_empty() {
            node.content.write(offset, data);
            node.content.loosen(loose);
            node.changed(now);
        }
        Ok(Answer::Count(data.len() as u64))
    }

    fn copy(&mut self, from: (Id, u64), to: (Id, u64), len: u64, now: Timestamp) -> Outcome {
        let source = &self.node(from.0)?.content;
        let inside = ByteRange::at(from.1, len).intersect(&ByteRange::new(0, source.len()));
        if inside.is_empty() {
            return Ok(Answer::Count(0));
        }
        let place = ByteRange::at(to.1, inside.len());
        if FILE_BYTES_MAX < place.end {
            return Err(libc::EFBIG);
        }
        if from.0 == to.0 && inside.overlaps(&place) {
            return Err(libc::EINVAL);
        }
        let part = source.take(inside);
        let loose = self.loose_bytes;
        let node = self.node_mut(to.0)?;
        node.content.put(to.1, inside.start, &part);
        node.content.loosen(loose);
        node.changed(now);
        Ok(Answer::Count(inside.len()))
    }
}

fn check_xattr_name(name: &[u8]) -> Result<(), i32> {
    if XATTR_NAME_BYTES_MAX < name.len() {
        return Err(libc::ERANGE);
    }
    let spaces: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match spaces.iter().find(|space| name.starts_with(space)) {
        None => Err(libc::EOPNOTSUPP),
        Some(space) if space.len() == name.len() => Err(libc::EINVAL),
        Some(_) => Ok(()),
    }
}
