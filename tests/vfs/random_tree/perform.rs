//! Carrying an operation out on the volume and on the model.

use gravitonfs::base::attr::FileKind;
use gravitonfs::base::name::Name;
use gravitonfs::base::time::{Clock, Timestamp};
use gravitonfs::vfs::{AllocateMode, Attr, Caller, Error, OpenFlags, Rights, SetAttr, Written};

use super::super::model::tree::{Answer, Id, Node, Op, Outcome, Place};
use super::{Moment, Run, Version};

/// Somebody in all groups and without capabilities.
struct Member;

impl Rights for Member {
    fn is_in_group(&self, _: u32) -> bool {
        true
    }

    fn keeps_set_id(&self) -> bool {
        false
    }
}

impl Run {
    pub(super) fn perform(&mut self, op: &Op) -> bool {
        self.perform_by(op, None)
    }

    /// Carries it out on the volume and on the model, and compares what came of it; true if it succeeded.
    pub(super) fn perform_by(&mut self, op: &Op, handle: Option<usize>) -> bool {
        let begin = self.clock.now();
        let before = self.touched(op);
        for id in &before {
            self.find_atime(*id);
        }
        let (found, attr) = self.execute(op, handle);
        let moment = Moment { begin, end: self.clock.now() };
        let expected = self.apply(op, begin);
        self.note(format!("{} -> {}", show(op), show_outcome(&found)));
        assert!(found == expected, "{op:?}\nis {}\nnot {}", show_outcome(&found), show_outcome(&expected));
        if let (Some(attr), Ok(Answer::Node(Some(id)))) = (attr, &expected) {
            let is_new = !self.inos.contains_key(id);
            assert!(!is_new || self.newest < attr.ino, "a number is used twice");
            self.newest = self.newest.max(attr.ino);
            let known = *self.inos.entry(*id).or_insert(attr.ino);
            assert_eq!(attr.ino, known, "another inode");
            *self.lookups.entry(*id).or_default() += 1;
            self.check_attr(*id, moment);
            assert_eq!(self.world.vfs().getattr(known).unwrap(), attr, "the reply and getattr differ");
        }
        for id in before.into_iter().chain(self.touched(op)) {
            self.check_attr(id, moment);
        }
        if handle.is_some_and(|handle| self.handles[handle].sync)
            && matches!(op, Op::Write { .. })
            && found.is_ok()
        {
            self.versions.remove(&self.handles[handle.unwrap()].node);
        }
        if let Op::Write { node, .. }
        | Op::Allocate { node, .. }
        | Op::Copy { to: (node, _), .. }
        | Op::Setattr { node, .. } = op
        {
            self.check_some_content(*node);
        }
        expected.is_ok()
    }

    /// Nodes whose attributes it may change.
    pub(super) fn touched(&self, op: &Op) -> Vec<Id> {
        let child = |at: &Place| self.tree.child(at);
        let ids = match op {
            Op::Lookup(at)
            | Op::Make { at, .. }
            | Op::Symlink { at, .. }
            | Op::Unlink(at)
            | Op::Rmdir(at) => {
                vec![Some(at.0), child(at)]
            }
            Op::Link { node, at } => vec![Some(*node), Some(at.0), child(at)],
            Op::Rename { from, to, .. } => vec![Some(from.0), child(from), Some(to.0), child(to)],
            Op::Copy { from, to, .. } => vec![Some(from.0), Some(to.0)],
            Op::Stat(node)
            | Op::Readlink(node)
            | Op::Setattr { node, .. }
            | Op::Read { node, .. }
            | Op::Write { node, .. }
            | Op::Allocate { node, .. }
            | Op::SetXattr { node, .. }
            | Op::GetXattr { node, .. }
            | Op::ListXattr(node)
            | Op::RemoveXattr { node, .. } => vec![Some(*node)],
        };
        ids.into_iter().flatten().filter(|id| self.inos.contains_key(id)).collect()
    }

    /// Carries it out on the model, and remembers what a kill may leave.
    pub(super) fn apply(&mut self, op: &Op, now: Timestamp) -> Outcome {
        let version =
            |node: &Node| Version { bytes: node.content.bytes.clone(), mtime: node.mtime, ctime: node.ctime };
        let changed = match op {
            Op::Write { node, .. } | Op::Allocate { node, .. } | Op::Copy { to: (node, _), .. } => {
                Some(*node)
            }
            Op::Setattr { node, set, .. } if set.size.is_some() => Some(*node),
            _ => None,
        };
        let old = changed.and_then(|id| Some((id, version(self.tree.nodes.get(&id)?))));
        let is_kept = !matches!(op, Op::Write { .. } | Op::Copy { .. })
            && !matches!(op, Op::Allocate { mode: AllocateMode::Allocate, .. });
        let outcome = self.tree.apply(op, now);
        if let (Some((id, old)), Ok(_)) = (old, &outcome) {
            let versions = self.versions.entry(id).or_default();
            let old_len = old.bytes.len();
            if versions.is_empty() {
                versions.push(old);
            }
            // What is discarded is discarded at once, whatever becomes of the bytes around it.
            match op {
                Op::Setattr { set: SetAttr { size: Some(size), .. }, .. } => {
                    versions.iter_mut().for_each(|version| version.bytes.truncate(*size as usize));
                }
                Op::Allocate { range, mode: AllocateMode::PunchHole | AllocateMode::ZeroRange, .. } => {
                    for version in versions.iter_mut() {
                        let end = version.bytes.len().min(range.end as usize);
                        version.bytes[(range.start as usize).min(end)..end].fill(0);
                    }
                }
                _ => {}
            }
            let node = &self.tree.nodes[&id];
            let discards = node.content.bytes.len() < old_len || matches!(op, Op::Allocate { .. });
            for version in versions.iter_mut().filter(|_| is_kept) {
                version.ctime = node.ctime;
                version.mtime = if discards { node.mtime } else { version.mtime };
            }
            versions.push(version(&self.tree.nodes[&id]));
        }
        if is_kept {
            self.keep_times();
        }
        let entries = |dir: Id| self.tree.nodes.get(&dir).map(|node| &node.entries);
        for listing in &mut self.listings {
            listing
                .stable
                .retain(|name| entries(listing.dir).is_some_and(|entries| entries.contains_key(name)));
        }
        outcome
    }

    /// A change of attributes is kept with whatever version a kill leaves of the content.
    pub(super) fn keep_times(&mut self) {
        for (id, versions) in &mut self.versions {
            let Some(node) = self.tree.nodes.get(id) else { continue };
            let (mtime, ctime) =
                versions.last().map_or((node.mtime, node.ctime), |last| (last.mtime, last.ctime));
            for version in versions {
                version.mtime = if node.mtime == mtime { version.mtime } else { node.mtime };
                version.ctime = if node.ctime == ctime { version.ctime } else { node.ctime };
            }
        }
    }

    pub(super) fn execute(&mut self, op: &Op, handle: Option<usize>) -> (Outcome, Option<Attr>) {
        let done =
            |result: Result<(), Error>| (result.map(|()| Answer::Done).map_err(|error| errno(&error)), None);
        let bytes =
            |result: Result<Vec<u8>, Error>| (result.map(Answer::Bytes).map_err(|error| errno(&error)), None);
        let ino = |id: &Id| self.inos[id];
        let fh = |node: &Id| {
            let own = handle.map(|at| &self.handles[at]).filter(|handle| handle.node == *node);
            own.or_else(|| self.handles.iter().find(|handle| handle.node == *node)).expect("open").fh
        };
        let named = |at: &Place| (ino(&at.0), Name::new(&at.1).unwrap());
        let vfs = self.world.vfs();
        let wait = &self.world.runtime;
        let entry = |result: Result<Attr, Error>, id: Option<Id>| match result {
            Ok(attr) => (Ok(Answer::Node(id)), Some(attr)),
            Err(error) => (Err(errno(&error)), None),
        };
        let owner = |owner: &(u32, u32)| Caller { uid: owner.0, gid: owner.1, ..Caller::ROOT };
        match op {
            Op::Lookup(at) => {
                let (dir, name) = named(at);
                match vfs.lookup(dir, &name) {
                    Ok(None) => (Ok(Answer::Node(None)), None),
                    Ok(Some(attr)) => entry(Ok(attr), self.tree.child(at).or(Some(0))),
                    Err(error) => (Err(errno(&error)), None),
                }
            }
            Op::Stat(node) => {
                let stat = vfs.getattr(ino(node)).map(|attr| {
                    // What the length of anything else means is compared with all attributes.
                    let size = if attr.kind == FileKind::Regular { attr.size } else { 0 };
                    Answer::Stat { nlink: attr.nlink, size }
                });
                (stat.map_err(|error| errno(&error)), None)
            }
            Op::Make { at, mode, rdev, owner: by } => {
                let (dir, name) = named(at);
                let made = match mode & libc::S_IFMT {
                    libc::S_IFDIR => vfs.mkdir(&owner(by), dir, &name, *mode),
                    // As open(2) makes it, or as mknod(2) does.
                    libc::S_IFREG if by.0 == 0 => {
                        vfs.create(&owner(by), dir, &name, *mode, OpenFlags::default()).map(|(attr, fh)| {
                            vfs.release(fh);
                            attr
                        })
                    }
                    _ => vfs.mknod(&owner(by), dir, &name, *mode, *rdev),
                };
                entry(made, Some(self.tree.next_id()))
            }
            Op::Symlink { at, target, owner: by } => {
                let (dir, name) = named(at);
                entry(vfs.symlink(&owner(by), dir, &name, target), Some(self.tree.next_id()))
            }
            Op::Readlink(node) => bytes(vfs.readlink(ino(node))),
            Op::Link { node, at } => {
                let (dir, name) = named(at);
                entry(vfs.link(ino(node), dir, &name), Some(*node))
            }
            Op::Unlink(at) => {
                let (dir, name) = named(at);
                done(vfs.unlink(dir, &name))
            }
            Op::Rmdir(at) => {
                let (dir, name) = named(at);
                done(vfs.rmdir(dir, &name))
            }
            Op::Rename { from, to, mode } => {
                let (from, to) = (named(from), named(to));
                done(wait.block_on(vfs.rename((from.0, &from.1), (to.0, &to.1), *mode)))
            }
            Op::Setattr { node, uid, set } => {
                let rights: &dyn Rights = if *uid == 0 { Caller::ROOT.rights } else { &Member };
                done(vfs.setattr(&Caller { uid: *uid, rights, ..Caller::ROOT }, ino(node), set).map(drop))
            }
            Op::Read { node, window } => {
                let read = vfs.read(fh(node), window.start, window.len() as u32);
                bytes(wait.block_on(read).map(|data| data.to_vec()))
            }
            Op::Write { node, offset, data, kill_privileges } => {
                let written = match vfs.write(fh(node), *offset, data) {
                    Ok(Written::Now(len)) => Ok(len),
                    Ok(Written::Later(later)) => wait.block_on(later),
                    Err(error) => Err(error),
                };
                if *kill_privileges && written.is_ok() {
                    let writer = Caller { uid: 1, rights: &Member, ..Caller::ROOT };
                    vfs.kill_privileges(fh(node), Some(&writer)).expect("the handle is open");
                }
                (written.map(|len| Answer::Count(u64::from(len))).map_err(|error| errno(&error)), None)
            }
            Op::Allocate { node, range, mode, keep_size } => {
                done(vfs.fallocate(fh(node), *range, *mode, *keep_size))
            }
            Op::Copy { from, to, len } => {
                let copied = vfs.copy_file_range((fh(&from.0), from.1), (fh(&to.0), to.1), *len);
                (wait.block_on(copied).map(Answer::Count).map_err(|error| errno(&error)), None)
            }
            Op::SetXattr { node, name, value, mode } => done(vfs.setxattr(ino(node), name, value, *mode)),
            Op::GetXattr { node, name } => bytes(vfs.getxattr(ino(node), name)),
            Op::ListXattr(node) => (self.list_xattr(*node), None),
            Op::RemoveXattr { node, name } => done(vfs.removexattr(ino(node), name)),
        }
    }

    pub(super) fn list_xattr(&self, node: Id) -> Outcome {
        let listed = self.world.vfs().listxattr(self.inos[&node]).map_err(|error| errno(&error))?;
        let mut names: Vec<_> =
            listed.split_inclusive(|&byte| byte == 0).map(|name| name[..name.len() - 1].to_vec()).collect();
        names.sort();
        Ok(Answer::Names(names))
    }
}

fn show(op: &Op) -> String {
    match op {
        Op::Write { node, offset, data, kill_privileges } => {
            format!("Write {node} {offset}..{} {kill_privileges}", offset + data.len() as u64)
        }
        Op::SetXattr { node, name, value, mode } => {
            format!("SetXattr {node} {:?} {} {mode:?}", String::from_utf8_lossy(name), value.len())
        }
        Op::Symlink { at, target, .. } => format!("Symlink {at:?} {}", target.len()),
        op => format!("{op:?}"),
    }
}

fn show_outcome(outcome: &Outcome) -> String {
    match outcome {
        Ok(Answer::Bytes(bytes)) => format!("{} bytes {}", bytes.len(), &blake3::hash(bytes).to_hex()[..8]),
        outcome => format!("{outcome:?}"),
    }
}

pub(crate) fn errno(error: &Error) -> i32 {
    match error {
        Error::NotFound => libc::ENOENT,
        Error::Exists => libc::EEXIST,
        Error::NotDirectory => libc::ENOTDIR,
        Error::IsDirectory => libc::EISDIR,
        Error::NotEmpty => libc::ENOTEMPTY,
        Error::NameTooLong => libc::ENAMETOOLONG,
        Error::Invalid => libc::EINVAL,
        Error::NotPermitted => libc::EPERM,
        Error::TooManyLinks => libc::EMLINK,
        Error::FileTooLarge => libc::EFBIG,
        Error::NoAttribute => libc::ENODATA,
        Error::AttributeTooLarge => libc::E2BIG,
        Error::BufferTooSmall => libc::ERANGE,
        Error::NotSupported => libc::EOPNOTSUPP,
        Error::BadHandle => libc::EBADF,
        Error::Stale => libc::ESTALE,
        Error::NoSuchOffset => libc::ENXIO,
        error => panic!("no such thing can happen here: {error}"),
    }
}
