//! What one thread has been told about its directory, kept outside of the mount: what must be there after a kill.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::content::Content;
use crate::syscall::xattrs;
use crate::tree::Noise;

/// Bytes to write, made from a seed again when they are needed.
#[derive(Clone)]
pub(super) struct Data {
    pub(super) seed: u64,
    pub(super) len: usize,
}

impl Data {
    /// Some of it compressible.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut noise = Noise::new(self.seed);
        if self.seed.is_multiple_of(4) {
            let mut bytes = noise.take(8).repeat(self.len / 8 + 1);
            bytes.truncate(self.len);
            return bytes;
        }
        noise.take(self.len)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum How {
    Plain,
    Append,
    /// O_SYNC, or O_DSYNC.
    Sync(bool),
}

/// An operation that changes something, or makes something safe. Paths are below the thread's directory.
#[derive(Clone)]
pub(super) enum Op {
    Create(String),
    Write { path: String, offset: usize, data: Data, how: How },
    Sync { path: String, data_only: bool },
    SyncDirectory,
    Truncate(String, usize),
    Allocate { path: String, offset: usize, len: usize, keep_size: bool },
    Punch { path: String, offset: usize, len: usize },
    Mkdir(String),
    Rmdir(String),
    Unlink(String),
    Rename(String, String),
    Exchange(String, String),
    Link(String, String),
    Symlink { path: String, target: String },
    SetXattr { path: String, name: CString, value: Vec<u8> },
    RemoveXattr { path: String, name: CString },
    Chmod(String, u32),
    SetTime(String, i64),
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(path) => write!(f, "create {path}"),
            Self::Write { path, offset, data, how } => {
                write!(f, "write {path} {offset}..{} {how:?}", offset + data.len)
            }
            Self::Sync { path, data_only: false } => write!(f, "fsync {path}"),
            Self::Sync { path, data_only: true } => write!(f, "fdatasync {path}"),
            Self::SyncDirectory => write!(f, "fsync of the directory"),
            Self::Truncate(path, size) => write!(f, "truncate {path} {size}"),
            Self::Allocate { path, offset, len, keep_size } => {
                write!(f, "allocate {path} {offset}..{} keep size {keep_size}", offset + len)
            }
            Self::Punch { path, offset, len } => write!(f, "punch {path} {offset}..{}", offset + len),
            Self::Mkdir(path) => write!(f, "mkdir {path}"),
            Self::Rmdir(path) => write!(f, "rmdir {path}"),
            Self::Unlink(path) => write!(f, "unlink {path}"),
            Self::Rename(from, to) => write!(f, "rename {from} {to}"),
            Self::Exchange(from, to) => write!(f, "exchange {from} {to}"),
            Self::Link(from, to) => write!(f, "link {from} {to}"),
            Self::Symlink { path, target } => write!(f, "symlink {path} -> {target}"),
            Self::SetXattr { path, name, value } => write!(f, "setxattr {path} {name:?} {}", value.len()),
            Self::RemoveXattr { path, name } => write!(f, "removexattr {path} {name:?}"),
            Self::Chmod(path, mode) => write!(f, "chmod {path} {mode:o}"),
            Self::SetTime(path, seconds) => write!(f, "utimens {path} {seconds}"),
        }
    }
}

impl Op {
    /// True if with the remote tier all metadata from before it is in the store when it returns.
    pub(super) fn is_barrier(&self) -> bool {
        matches!(self, Self::Sync { .. } | Self::SyncDirectory | Self::Write { how: How::Sync(_), .. })
    }
}

#[derive(Clone)]
pub(super) enum Kind {
    File(Content),
    Directory,
    Symlink(String),
}

#[derive(Clone)]
pub(super) struct Node {
    pub(super) kind: Kind,
    mode: u32,
    /// Seconds, if it was set and nothing has changed it since.
    mtime: Option<i64>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub(super) const NEW_FILE_MODE: u32 = 0o640;
pub(super) const NEW_DIRECTORY_MODE: u32 = 0o750;

/// Files and names of one thread.
#[derive(Clone, Default)]
pub(super) struct Tree {
    pub(super) nodes: BTreeMap<u64, Node>,
    pub(super) names: BTreeMap<String, u64>,
    next_id: u64,
}

/// What is at a path after a kill.
pub(super) struct Found {
    ino: u64,
    mode: u32,
    links: u64,
    mtime: (i64, i64),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a file the bytes, of a link the target.
    content: Vec<u8>,
}

/// Everything below `root`, by path.
pub(super) fn find_below(root: &Path) -> BTreeMap<String, Found> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in
            fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        {
            let path = entry.expect("a directory entry").path();
            let stat =
                fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let content = if stat.is_file() {
                let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                assert_eq!(bytes.len() as u64, stat.len(), "{}", path.display());
                bytes
            } else if stat.is_symlink() {
                fs::read_link(&path).expect("readlink").into_os_string().into_encoded_bytes()
            } else {
                directories.push(path.clone());
                Vec::new()
            };
            let name = path.strip_prefix(root).expect("below the root").to_str().expect("text").to_owned();
            let seen = Found {
                ino: stat.ino(),
                mode: stat.mode(),
                links: stat.nlink(),
                mtime: (stat.mtime(), stat.mtime_nsec()),
                xattrs: xattrs(&path).into_iter().collect(),
                content,
            };
            found.insert(name, seen);
        }
    }
    found
}

impl Tree {
    pub(super) fn node(&self, path: &str) -> Option<&Node> {
        Some(&self.nodes[self.names.get(path)?])
    }

    fn node_mut(&mut self, path: &str) -> &mut Node {
        self.nodes.get_mut(&self.names[path]).expect("every name has a node")
    }

    pub(super) fn is_directory(&self, path: &str) -> bool {
        path.is_empty() || self.node(path).is_some_and(|node| matches!(node.kind, Kind::Directory))
    }

    pub(super) fn is_empty(&self, directory: &str) -> bool {
        self.below(directory).next().is_none()
    }

    fn below<'a>(&'a self, directory: &str) -> impl Iterator<Item = &'a String> + use<'a> {
        let prefix = format!("{directory}/");
        self.names.keys().filter(move |name| name.starts_with(&prefix))
    }

    /// The content of the file at `path`, which is about to change.
    fn change(&mut self, path: &str) -> &mut Content {
        let node = self.node_mut(path);
        node.mtime = None;
        content_of(node)
    }

    fn make(&mut self, path: &str, kind: Kind, mode: u32) {
        self.next_id += 1;
        let node = Node { kind, mode, mtime: None, xattrs: BTreeMap::new() };
        self.nodes.insert(self.next_id, node);
        self.names.insert(path.to_owned(), self.next_id);
    }

    fn remove(&mut self, path: &str) {
        let id = self.names.remove(path).expect("the name exists");
        if !self.names.values().any(|other| *other == id) {
            self.nodes.remove(&id);
        }
        // What a directory's entries do to its own times is compared by other tests.
        self.touch_parent(path);
    }

    fn touch_parent(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.node_mut(parent).mtime = None;
        }
    }

    /// Takes names out with everything below them; the paths are relative to `path` and begin with a slash or are empty.
    fn take(&mut self, path: &str) -> Vec<(String, u64)> {
        let mut moved: Vec<String> = self.below(path).cloned().collect();
        moved.push(path.to_owned());
        let take = |name: String| {
            let id = self.names.remove(&name).expect("listed just now");
            (name[path.len()..].to_owned(), id)
        };
        moved.into_iter().map(take).collect()
    }

    fn put(&mut self, path: &str, taken: Vec<(String, u64)>) {
        self.names.extend(taken.into_iter().map(|(below, id)| (format!("{path}{below}"), id)));
        self.touch_parent(path);
    }

    /// A name that showed something else shows all of a file's content.
    fn settle(&mut self, path: &str) {
        if let Kind::File(content) = &mut self.node_mut(path).kind {
            content.settle();
        }
    }

    /// What an operation does that has returned.
    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(path) => {
                self.make(path, Kind::File(Content::default()), NEW_FILE_MODE);
                self.touch_parent(path);
            }
            Op::Mkdir(path) => {
                self.make(path, Kind::Directory, NEW_DIRECTORY_MODE);
                self.touch_parent(path);
            }
            Op::Symlink { path, target } => {
                self.make(path, Kind::Symlink(target.clone()), 0o777);
                self.touch_parent(path);
            }
            Op::Write { path, offset, data, how } => {
                self.change(path).write(*offset, &data.bytes());
                if matches!(how, How::Sync(_)) {
                    self.settle(path);
                }
            }
            Op::Sync { path, .. } => self.settle(path),
            Op::SyncDirectory => {}
            Op::Truncate(path, size) => self.change(path).resize(*size),
            Op::Allocate { path, offset, len, keep_size } => {
                let content = self.change(path);
                if !keep_size && content.len() < offset + len {
                    content.resize(offset + len);
                }
            }
            Op::Punch { path, offset, len } => self.change(path).punch(*offset, offset + len),
            Op::Rmdir(path) | Op::Unlink(path) => self.remove(path),
            Op::Rename(from, to) => self.rename(from, to),
            Op::Exchange(from, to) => {
                if self.names[from] == self.names[to] {
                    return;
                }
                self.settle(from);
                self.settle(to);
                let (one, other) = (self.take(from), self.take(to));
                self.put(to, one);
                self.put(from, other);
            }
            Op::Link(from, to) => {
                self.names.insert(to.clone(), self.names[from]);
                self.touch_parent(to);
            }
            Op::SetXattr { path, name, value } => {
                self.node_mut(path).xattrs.insert(name.as_bytes().to_vec(), value.clone());
            }
            Op::RemoveXattr { path, name } => {
                self.node_mut(path).xattrs.remove(name.as_bytes());
            }
            Op::Chmod(path, mode) => self.node_mut(path).mode = *mode,
            Op::SetTime(path, seconds) => self.node_mut(path).mtime = Some(*seconds),
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        if self.names.get(to) == Some(&self.names[from]) {
            return;
        }
        if self.names.contains_key(to) {
            self.settle(from);
            self.remove(to);
        }
        let taken = self.take(from);
        self.touch_parent(from);
        self.put(to, taken);
    }

    /// Why a kill cannot have left `found`.
    pub(super) fn refute(&self, found: &BTreeMap<String, Found>) -> Option<String> {
        if let Some(name) = self.names.keys().find(|name| !found.contains_key(*name)) {
            return Some(format!("{name} is missing"));
        }
        if let Some(name) = found.keys().find(|name| !self.names.contains_key(*name)) {
            return Some(format!("{name} should not be there"));
        }
        let mut inos = BTreeMap::new();
        for (name, id) in &self.names {
            let seen = &found[name];
            let known = inos.entry(seen.ino).or_insert(*id);
            if known != id {
                return Some(format!("{name} is the same file as another"));
            }
            if let Some(why) = self.refute_node(name, *id, seen) {
                return Some(format!("{name}: {why}"));
            }
        }
        (inos.len() != self.nodes.len()).then(|| "a file has become two".to_owned())
    }

    fn refute_node(&self, name: &str, id: u64, found: &Found) -> Option<String> {
        let node = &self.nodes[&id];
        let is_child = |other: &&String| other[name.len() + 1..].find('/').is_none();
        let (format, links) = match &node.kind {
            Kind::Directory => {
                let inside = self.below(name).filter(is_child);
                (libc::S_IFDIR, 2 + inside.filter(|name| self.is_directory(name)).count())
            }
            Kind::File(_) => (libc::S_IFREG, self.names.values().filter(|other| **other == id).count()),
            Kind::Symlink(_) => (libc::S_IFLNK, self.names.values().filter(|other| **other == id).count()),
        };
        if found.mode != format | node.mode {
            return Some(format!("mode {:o}, not {:o}", found.mode, format | node.mode));
        }
        if found.links != links as u64 {
            return Some(format!("{} links, not {links}", found.links));
        }
        if found.xattrs != node.xattrs {
            return Some(format!("attributes {:?}, not {:?}", lengths(&found.xattrs), lengths(&node.xattrs)));
        }
        if let Some(seconds) = node.mtime
            && found.mtime != (seconds, 0)
        {
            return Some(format!("mtime {:?}, not {seconds}", found.mtime));
        }
        match &node.kind {
            Kind::Directory => None,
            Kind::File(content) => content.refute(&found.content),
            Kind::Symlink(target) => {
                (found.content != target.as_bytes()).then(|| format!("target is not {target}"))
            }
        }
    }

    /// Takes over what was found, which [`Self::refute`] had nothing against.
    pub(super) fn adopt(&mut self, found: BTreeMap<String, Found>) {
        for (name, seen) in found {
            if let Kind::File(content) = &mut self.node_mut(&name).kind {
                *content = Content::safe(seen.content);
            }
        }
    }
}

pub(super) fn content_of(node: &mut Node) -> &mut Content {
    match &mut node.kind {
        Kind::File(content) => content,
        Kind::Directory | Kind::Symlink(_) => panic!("not a file"),
    }
}

fn lengths(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<(String, usize)> {
    xattrs.iter().map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.len())).collect()
}
