//! What to do next: names, attributes, handles, listings.

use gravitonfs::base::ids::Ino;
use gravitonfs::base::name::Name;
use gravitonfs::base::time::{Clock, Timestamp};
use gravitonfs::vfs::{Error, OpenFlags, RenameMode, SetAttr, SetTime, SetXattr};

use super::super::model::tree::{Id, Op, Place, ROOT_ID};
use super::super::world::ROOT;
use super::perform::errno;
use super::{FUTURE_SECS, HANDLES_MAX, Handle, Moment, NODES_MAX, Run};

impl Run {
    pub(super) fn step(&mut self) {
        match self.below(1000) {
            0..=379 => self.name_step(),
            380..=409 => self.open_step(),
            410..=439 => self.close_step(),
            440..=459 => self.forget_step(),
            460..=509 => self.attribute_step(),
            510..=559 => self.xattr_step(),
            560..=599 => self.listing_step(),
            600..=964 => self.content_step(),
            965..=984 => self.sync_step(),
            985..=992 => {
                self.note("settle".to_owned());
                self.settle();
            }
            993..=996 => self.kill(),
            _ => self.stale_step(),
        }
    }

    pub(super) fn a_dir(&self) -> Id {
        let dirs: Vec<Id> =
            self.tree.nodes.iter().filter(|(_, node)| node.is_dir()).map(|(id, _)| *id).collect();
        if self.one_in(40) { self.a_node() } else { self.pick(&dirs) }
    }

    pub(super) fn a_node(&self) -> Id {
        let nodes: Vec<Id> = self.tree.nodes.keys().copied().collect();
        self.pick(&nodes)
    }

    pub(super) fn a_name(&self) -> Vec<u8> {
        format!("{}", self.below(12)).into_bytes()
    }

    pub(super) fn a_place(&self) -> Place {
        (self.a_dir(), self.a_name())
    }

    /// A name that exists, most of the time.
    pub(super) fn a_used_place(&self) -> Place {
        let dir = self.a_dir();
        let names: Vec<&Vec<u8>> = self.tree.nodes[&dir].entries.keys().collect();
        if names.is_empty() || self.one_in(10) {
            (dir, self.a_name())
        } else {
            (dir, self.pick(&names).clone())
        }
    }

    pub(super) fn name_step(&mut self) {
        let is_crowded = NODES_MAX < self.tree.nodes.len();
        let owner = (self.below(2) as u32 * 1000, self.below(2) as u32 * 100);
        let op = match self.below(if is_crowded { 38 } else { 60 }) {
            0..=2 => Op::Lookup(self.a_used_place()),
            3 => Op::Stat(self.a_node()),
            4..=11 => Op::Unlink(self.a_used_place()),
            12..=15 => Op::Rmdir(self.a_used_place()),
            16..=31 => {
                let to = if self.one_in(3) { self.a_used_place() } else { self.a_place() };
                let mode = match self.below(6) {
                    0 => RenameMode::NoReplace,
                    1 => RenameMode::Exchange,
                    _ => RenameMode::Replace,
                };
                Op::Rename { from: self.a_used_place(), to, mode }
            }
            32..=35 => Op::Link { node: self.a_node(), at: self.a_place() },
            36..=37 => Op::Readlink(self.a_node()),
            38..=49 => Op::Make { at: self.a_place(), mode: libc::S_IFREG | 0o640, rdev: 0, owner },
            50..=55 => Op::Make { at: self.a_place(), mode: libc::S_IFDIR | 0o755, rdev: 0, owner },
            56..=57 => {
                let kind = self.pick(&[libc::S_IFIFO, libc::S_IFCHR, libc::S_IFBLK, libc::S_IFSOCK]);
                Op::Make { at: self.a_place(), mode: kind | 0o600, rdev: self.below(1 << 16) as u32, owner }
            }
            _ => {
                let len = match self.below(8) {
                    0 => 0,
                    1 => 4094 + self.below(4),
                    _ => 1 + self.below(60),
                };
                Op::Symlink { at: self.a_place(), target: vec![b'x'; len as usize], owner }
            }
        };
        self.introduce_names(&op);
        if let Op::Rename { from, to, mode } = &op {
            let (source, target) = (self.tree.child(from), self.tree.child(to));
            if self.perform(&op) {
                self.renamed_over(source, target, *mode);
            }
            return;
        }
        self.perform(&op);
        if let Op::Make { at, mode, .. } = &op
            && mode & libc::S_IFMT == libc::S_IFREG
            && self.one_in(2)
            && let Some(node) = self.tree.child(at)
        {
            self.open(node, OpenFlags::default());
        }
    }

    /// Rule R1: what took another's name has its content under it.
    pub(super) fn renamed_over(&mut self, source: Option<Id>, target: Option<Id>, mode: RenameMode) {
        if target.is_none() || target == source {
            return;
        }
        let exchanged = target.filter(|_| mode == RenameMode::Exchange);
        for id in source.into_iter().chain(exchanged) {
            self.versions.remove(&id);
        }
    }

    /// The kernel looks up what it is about to change.
    pub(super) fn introduce_names(&mut self, op: &Op) {
        let places: Vec<Place> = match op {
            Op::Unlink(at) | Op::Rmdir(at) => vec![at.clone()],
            Op::Rename { from, to, .. } => vec![from.clone(), to.clone()],
            _ => Vec::new(),
        };
        for at in places {
            if self.tree.child(&at).is_some_and(|id| self.lookups.get(&id).copied().unwrap_or(0) == 0) {
                self.perform(&Op::Lookup(at));
            }
        }
    }

    pub(super) fn files(&self) -> Vec<Id> {
        self.tree.nodes.iter().filter(|(_, node)| node.is_file()).map(|(id, _)| *id).collect()
    }

    pub(super) fn open_step(&mut self) {
        if HANDLES_MAX <= self.handles.len() {
            return self.close_step();
        }
        let node = if self.one_in(20) {
            self.a_node()
        } else {
            self.pick(&[&self.files()[..], &[ROOT_ID]].concat())
        };
        let flags = OpenFlags { truncate: self.one_in(5), sync: self.one_in(6) };
        self.open(node, flags);
    }

    pub(super) fn open(&mut self, node: Id, flags: OpenFlags) {
        let kind = self.tree.nodes[&node].kind;
        self.note(format!("open {node} {flags:?}"));
        self.find_atime(node);
        let now = self.clock.now();
        let opened =
            self.world.vfs().open_file(&ROOT, self.inos[&node], flags).map_err(|error| errno(&error));
        match kind {
            libc::S_IFREG => {}
            libc::S_IFDIR => return assert_eq!(opened, Err(libc::EISDIR)),
            _ => return assert_eq!(opened, Err(libc::EINVAL)),
        }
        self.handles.push(Handle { fh: opened.unwrap(), node, sync: flags.sync });
        if flags.truncate {
            let set = SetAttr { size: Some(0), ..SetAttr::default() };
            let op = Op::Setattr { node, uid: 0, set };
            self.apply(&op, now).unwrap();
            self.check_attr(node, Moment { begin: now, end: now });
        }
    }

    pub(super) fn close_step(&mut self) {
        if self.handles.is_empty() {
            return;
        }
        let handle = self.handles.swap_remove(self.below(self.handles.len() as u64) as usize);
        self.note(format!("close {}", handle.node));
        self.world.vfs().flush(handle.fh).unwrap();
        self.world.vfs().release(handle.fh);
        self.drop_unused(handle.node);
    }

    pub(super) fn forget_step(&mut self) {
        let known: Vec<(Id, u64)> =
            self.lookups.iter().map(|(id, count)| (*id, *count)).filter(|(_, count)| 0 < *count).collect();
        if known.is_empty() {
            return;
        }
        let (id, count) = self.pick(&known);
        let count = 1 + self.below(count);
        self.note(format!("forget {id} {count}"));
        self.world.vfs().forget(self.inos[&id], count);
        *self.lookups.get_mut(&id).unwrap() -= count;
        self.drop_unused(id);
    }

    pub(super) fn drop_unused(&mut self, id: Id) {
        let is_open = self.handles.iter().any(|handle| handle.node == id);
        let is_known = 0 < self.lookups.get(&id).copied().unwrap_or(0);
        if self.tree.nodes[&id].nlink == 0 && !is_open && !is_known {
            self.remove_node(id);
        } else if !is_open && !is_known {
            self.unknown.insert(id);
        }
    }

    pub(super) fn remove_node(&mut self, id: Id) {
        self.tree.nodes.remove(&id);
        self.unknown.remove(&id);
        self.versions.remove(&id);
        self.lookups.remove(&id);
        self.listings.retain(|listing| listing.dir != id);
        self.reaped.extend(self.inos.remove(&id));
    }

    pub(super) fn attribute_step(&mut self) {
        let node = self.a_node();
        let time = || match self.below(3) {
            0 => None,
            1 => Some(SetTime::Now),
            _ => Some(SetTime::At(Timestamp {
                secs: self.pick(&[-1_000, -1, 0, FUTURE_SECS]),
                nanos: self.below(1_000_000_000) as u32,
            })),
        };
        let set = match self.below(4) {
            0 => SetAttr { mode: Some(self.below(0o10000) as u32), ..SetAttr::default() },
            1 => SetAttr {
                uid: Some(self.below(2) as u32),
                gid: self.one_in(2).then_some(self.below(2) as u32),
                ..SetAttr::default()
            },
            2 => SetAttr { atime: time(), mtime: time(), ..SetAttr::default() },
            _ => SetAttr {
                size: Some(self.a_size()),
                mode: self.one_in(4).then_some(0o6777),
                ..SetAttr::default()
            },
        };
        self.perform(&Op::Setattr { node, uid: self.below(2) as u32, set });
    }

    pub(super) fn xattr_step(&mut self) {
        let node = self.a_node();
        let name = match self.below(30) {
            0 => b"other.x".to_vec(),
            1 => b"user.".to_vec(),
            2 => [b"user.".to_vec(), vec![b'n'; 249 + self.below(3) as usize]].concat(),
            _ => self.pick(&[&b"user.a"[..], b"user.ab", b"trusted.a", b"security.c"]).to_vec(),
        };
        let op = match self.below(8) {
            0..=3 => {
                let len = if self.one_in(40) { 65_535 + self.below(3) } else { self.below(200) };
                let mode = self.pick(&[SetXattr::Either, SetXattr::Create, SetXattr::Replace]);
                Op::SetXattr { node, name, value: vec![self.below(256) as u8; len as usize], mode }
            }
            4..=5 => Op::GetXattr { node, name },
            6 => Op::ListXattr(node),
            _ => Op::RemoveXattr { node, name },
        };
        self.perform(&op);
    }

    pub(super) fn sync_step(&mut self) {
        if self.handles.is_empty() {
            return;
        }
        let Handle { fh, node, .. } = self.handles[self.below(self.handles.len() as u64) as usize];
        if self.one_in(8) {
            self.note("fsync of a directory".to_owned());
            return self.world.runtime.block_on(self.world.vfs().fsyncdir(Ino::ROOT)).unwrap();
        }
        self.note(format!("fsync {node}"));
        self.world.runtime.block_on(self.world.vfs().fsync(fh)).unwrap();
        self.versions.remove(&node);
    }

    pub(super) fn settle(&mut self) {
        self.world.settle();
        self.versions.clear();
    }

    /// Numbers are never used twice: what is gone stays gone.
    pub(super) fn stale_step(&mut self) {
        if self.reaped.is_empty() {
            return;
        }
        let ino = self.pick(&self.reaped);
        let stale = |outcome: Result<(), Error>| {
            assert_eq!(outcome.map_err(|error| errno(&error)), Err(libc::ESTALE))
        };
        let name = Name::new(b"x").unwrap();
        let vfs = self.world.vfs();
        stale(vfs.getattr(ino).map(drop));
        stale(vfs.lookup(ino, &name).map(drop));
        stale(vfs.open_file(&ROOT, ino, OpenFlags::default()).map(drop));
        stale(vfs.setattr(&ROOT, ino, &SetAttr::default()).map(drop));
        stale(vfs.setxattr(ino, b"user.a", b"", SetXattr::Either));
        stale(vfs.link(ino, Ino::ROOT, &Name::new(b"no such name").unwrap()).map(drop));
    }
}
