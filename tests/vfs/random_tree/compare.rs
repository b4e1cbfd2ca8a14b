//! Comparing what there is with the model.

use std::collections::BTreeSet;

use gravitonfs::base::attr::FileKind;
use gravitonfs::base::ids::{Fh, Ino};
use gravitonfs::base::range::ByteRange;
use gravitonfs::base::time::Clock;
use gravitonfs::vfs::{DirEntry, DirSink, OpenFlags, Whence};

use super::super::model::tree::{Answer, Id, Node, Op, ROOT_ID};
use super::super::world::ROOT;
use super::{Listing, Moment, Run};

impl Run {
    pub(super) fn listing_step(&mut self) {
        let at = self.below(3) as usize;
        if self.listings.len() <= at {
            let dir = self.a_dir();
            if self.tree.nodes[&dir].is_dir() {
                let stable = self.tree.nodes[&dir].entries.keys().cloned().collect();
                self.listings.push(Listing { dir, after: 0, seen: BTreeSet::new(), stable });
            }
            return;
        }
        let room = self.below(5) as usize + 1;
        let (dir, after) = (self.listings[at].dir, self.listings[at].after);
        let mut sink = Page { room, after, entries: Vec::new() };
        self.readdir(dir, after, &mut sink);
        let listing = &mut self.listings[at];
        listing.after = sink.after;
        let names: Vec<Vec<u8>> = sink.entries.iter().map(|entry| entry.0.clone()).collect();
        for name in &names {
            assert!(listing.seen.insert(name.clone()), "{dir} lists {name:?} twice");
        }
        for (name, ino, kind) in &sink.entries {
            self.check_entry(dir, name, *ino, *kind);
        }
        if names.len() < room {
            let listing = self.listings.swap_remove(at);
            let missed: Vec<_> = listing.stable.difference(&listing.seen).collect();
            assert!(missed.is_empty(), "{dir} does not list {missed:?}");
        }
        self.note(format!("list {dir} after {after}: {}", names.len()));
    }

    pub(super) fn check_entry(&self, dir: Id, name: &[u8], ino: Ino, kind: FileKind) {
        let node = &self.tree.nodes[&dir];
        let id = match name {
            b"." => Some(dir),
            b".." => Some(node.parent),
            _ => node.entries.get(name).copied(),
        };
        let Some(id) = id else { panic!("{dir} lists {name:?}, which is not there") };
        if let Some(child) = self.tree.nodes.get(&id) {
            assert_eq!((kind as u32) << 12, child.kind, "kind of {name:?} in {dir}");
        }
        if let Some(known) = self.inos.get(&id) {
            assert_eq!(ino, *known, "inode of {name:?} in {dir}");
        }
    }

    /// Takes over an atime that may have been lost.
    pub(super) fn find_atime(&mut self, id: Id) {
        if self.unknown.remove(&id) {
            let node = self.tree.nodes.get_mut(&id).unwrap();
            let found = self.world.vfs().getattr(self.inos[&id]).unwrap().atime;
            // A directory's may go back from now to what was set by hand, which may be later.
            let is_older = found <= node.atime || node.is_dir();
            assert!(is_older, "atime of {id} is {found:?} not {:?}", node.atime);
            node.atime = found;
        }
    }

    pub(super) fn check_attr(&mut self, id: Id, moment: Moment) {
        if !self.tree.nodes.contains_key(&id) {
            return;
        }
        self.find_atime(id);
        let node = self.tree.nodes.get_mut(&id).unwrap();
        let attr = self.world.vfs().getattr(self.inos[&id]).unwrap();
        for (name, expected, found) in [
            ("atime", &mut node.atime, attr.atime),
            ("mtime", &mut node.mtime, attr.mtime),
            ("ctime", &mut node.ctime, attr.ctime),
        ] {
            // What takes a while has happened at some time in between.
            let meanwhile = *expected == moment.begin && moment.begin <= found && found <= moment.end;
            assert!(*expected == found || meanwhile, "{name} of {id} is {found:?} not {expected:?}");
            *expected = found;
        }
        let (size, allocated) = match node.kind {
            libc::S_IFDIR => (4096, (4096, 4096)),
            libc::S_IFLNK => (node.target.len() as u64, (0, 0)),
            libc::S_IFREG => (node.content.len(), node.content.allocated()),
            _ => (0, (0, 0)),
        };
        let expected = (node.kind, node.mode, node.nlink, node.owner, node.rdev, size);
        let found =
            ((attr.kind as u32) << 12, attr.mode, attr.nlink, (attr.uid, attr.gid), attr.rdev, attr.size);
        assert_eq!(found, expected, "kind, mode, links, owner, device, size of {id}");
        let blocks = allocated.0.div_ceil(512)..=allocated.1.div_ceil(512);
        assert!(blocks.contains(&attr.blocks), "{} blocks of {id}, not {blocks:?}", attr.blocks);
    }

    pub(super) fn with_handle<T>(&mut self, node: Id, check: impl FnOnce(&mut Self, Fh) -> T) -> T {
        if let Some(handle) = self.handles.iter().find(|handle| handle.node == node) {
            let fh = handle.fh;
            return check(self, fh);
        }
        let fh = self.world.vfs().open_file(&ROOT, self.inos[&node], OpenFlags::default()).unwrap();
        let checked = check(self, fh);
        self.world.vfs().release(fh);
        checked
    }

    pub(super) fn read(&mut self, node: Id, fh: Fh, window: ByteRange) -> Vec<u8> {
        self.find_atime(node);
        let begin = self.clock.now();
        let read = self.world.vfs().read(fh, window.start, window.len() as u32);
        let found = self.world.runtime.block_on(read).unwrap();
        self.tree.apply(&Op::Read { node, window }, begin).unwrap();
        self.check_attr(node, Moment { begin, end: self.clock.now() });
        found.to_vec()
    }

    /// Reads somewhere around what may have changed.
    pub(super) fn check_some_content(&mut self, node: Id) {
        if !self.tree.nodes.get(&node).is_some_and(Node::is_file)
            || !self.handles.iter().any(|handle| handle.node == node)
        {
            return;
        }
        let size = self.tree.nodes[&node].content.len();
        let start = if self.one_in(2) { 0 } else { self.below(size + 1) };
        self.check_window(node, ByteRange::new(start, size));
    }

    pub(super) fn check_window(&mut self, node: Id, window: ByteRange) {
        let found = self.with_handle(node, |run, fh| run.read(node, fh, window));
        let expected = self.tree.nodes[&node].content.read(window);
        if found != expected {
            let at = found.iter().zip(&expected).position(|(found, expected)| found != expected);
            let at = at.map(|at| at as u64 + window.start);
            panic!("bytes of {node} differ at {at:?} of {window:?}: {} and {}", found.len(), expected.len());
        }
    }

    pub(super) fn check_everything(&mut self) {
        let now = self.clock.now();
        self.look_up_everything();
        let ids: Vec<Id> = self.tree.nodes.keys().copied().collect();
        for id in ids {
            self.check_attr(id, Moment { begin: now, end: now });
            let node = &self.tree.nodes[&id];
            let xattrs: Vec<_> = node.xattrs.clone().into_iter().collect();
            assert_eq!(
                self.list_xattr(id),
                Ok(Answer::Names(xattrs.iter().map(|(name, _)| name.clone()).collect()))
            );
            for (name, value) in xattrs {
                assert!(
                    self.world.vfs().getxattr(self.inos[&id], &name).unwrap() == value,
                    "{name:?} of {id}"
                );
            }
            if node.is_file() {
                self.check_file(id);
            } else if node.is_dir() {
                self.check_dir(id);
            } else if node.kind == libc::S_IFLNK {
                assert!(self.world.vfs().readlink(self.inos[&id]).unwrap() == node.target);
            }
        }
    }

    /// Everything with a name becomes known to the kernel.
    pub(super) fn look_up_everything(&mut self) {
        let mut dirs = vec![ROOT_ID];
        while let Some(dir) = dirs.pop() {
            for (name, id) in self.tree.nodes[&dir].entries.clone() {
                self.perform(&Op::Lookup((dir, name)));
                if self.tree.nodes[&id].is_dir() {
                    dirs.push(id);
                }
            }
        }
    }

    pub(super) fn check_file(&mut self, id: Id) {
        let size = self.tree.nodes[&id].content.len();
        self.check_window(id, ByteRange::new(0, size));
        self.with_handle(id, |run, fh| {
            let mut at = 0;
            while at < size {
                let Some(data) = run.check_lseek(id, fh, at, Whence::Data) else { return };
                at = run.check_lseek(id, fh, data, Whence::Hole).expect("a file ends in a hole");
                assert!(data < at, "data at {data} is empty");
            }
        });
    }

    fn readdir(&mut self, id: Id, after: u64, page: &mut Page) {
        self.find_atime(id);
        let begin = self.clock.now();
        self.world.vfs().readdir(self.inos[&id], after, page).unwrap();
        if after != 0 {
            return;
        }
        let end = self.clock.now();
        let is_known = 0 < self.lookups.get(&id).copied().unwrap_or(0);
        let node = self.tree.nodes.get_mut(&id).expect("listed");
        if is_known {
            node.is_read(begin);
            self.check_attr(id, Moment { begin, end });
        } else {
            node.is_read(end);
            self.unknown.insert(id);
        }
    }

    pub(super) fn check_dir(&mut self, id: Id) {
        let mut page = Page { room: usize::MAX, after: 0, entries: Vec::new() };
        self.readdir(id, 0, &mut page);
        assert_eq!(page.entries.len(), self.tree.nodes[&id].entries.len() + 2, "entries of {id}");
        for (name, ino, kind) in &page.entries {
            self.check_entry(id, name, *ino, *kind);
        }
        if let Some(parent) = self.inos.get(&self.tree.nodes[&id].parent) {
            assert_eq!(self.world.vfs().parent(self.inos[&id]).unwrap(), *parent, "parent of {id}");
        }
    }

    /// The counters of the volume are the sums over its files.
    pub(super) fn check_totals(&self) {
        let stat = self.world.vfs().statfs().unwrap();
        let nodes = self.tree.nodes.values();
        assert_eq!(stat.inodes, nodes.len() as u64, "inodes");
        assert_eq!(stat.files, nodes.clone().filter(|node| node.is_file()).count() as u64, "files");
        assert_eq!(stat.logical_bytes, nodes.map(|node| node.content.len()).sum::<u64>(), "bytes of files");
        let blocks: u64 = self.inos.values().map(|ino| self.world.vfs().getattr(*ino).unwrap().blocks).sum();
        let (least, most) = ((blocks * 512).saturating_sub(511 * self.inos.len() as u64), blocks * 512);
        assert!(
            (least..=most).contains(&stat.allocated_bytes),
            "{} not {least} to {most}",
            stat.allocated_bytes
        );
    }

    /// What is removed leaves nothing behind.
    pub(super) fn remove_everything(&mut self) {
        while !self.handles.is_empty() {
            self.close_step();
        }
        loop {
            let empty = |id: &Id| self.tree.nodes[id].entries.is_empty();
            let next = self.tree.nodes.iter().find_map(|(dir, node)| {
                node.entries.iter().find(|(_, id)| empty(id)).map(|(name, id)| ((*dir, name.clone()), *id))
            });
            let Some((at, id)) = next else { break };
            let is_dir = self.tree.nodes[&id].is_dir();
            assert!(self.perform(&if is_dir { Op::Rmdir(at) } else { Op::Unlink(at) }));
        }
        for (id, count) in std::mem::take(&mut self.lookups) {
            self.world.vfs().forget(self.inos[&id], count);
            self.drop_unused(id);
        }
        assert_eq!(self.tree.nodes.len(), 1);
        self.world.settle();
        let stat = self.world.vfs().statfs().unwrap();
        assert_eq!((stat.inodes, stat.files, stat.logical_bytes, stat.allocated_bytes), (1, 0, 0, 4096));
        assert_eq!(stat.stored_bytes, 0, "blocks are still referred to");
    }
}

/// Takes so many entries.
struct Page {
    room: usize,
    after: u64,
    entries: Vec<(Vec<u8>, Ino, FileKind)>,
}

impl DirSink for Page {
    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        if self.entries.len() == self.room {
            return false;
        }
        self.after = entry.cookie;
        self.entries.push((entry.name.to_vec(), entry.ino, entry.kind));
        true
    }
}
