//! A thread that does random operations in a directory of its own until the daemon is gone.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::SyncSender;

use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::oracle::{Data, Found, How, Kind, NEW_DIRECTORY_MODE, NEW_FILE_MODE, Op, Tree, find_below};
use crate::syscall::{remove_xattr, set_xattr};
use crate::tree::Noise;

const DIRECTORIES: [&str; 5] = ["", "a/", "b/", "a/c/", "b/d1/"];
const LEAVES: [&str; 8] = ["f1", "f2", "f3", "f4", "f5", "d1", "d2", "l1"];
const XATTRS: [&std::ffi::CStr; 3] = [c"user.one", c"user.two", c"trusted.three"];

/// Files grow to several blocks, and to several of the pieces that the kernel cuts writes into.
const SIZE_MAX: u64 = 4 << 20;
const SMALL_BYTES: u64 = 9_000;
const LARGE_BYTES: u64 = 1 << 20;

/// Says when it is time to kill: after so many operations of all threads, counted where they begin or where they return.
pub(super) struct Trigger {
    left: AtomicI64,
    at_begin: bool,
    fire: SyncSender<()>,
    /// Set just before the kill.
    pub(super) is_killed: AtomicBool,
}

impl Trigger {
    pub(super) fn new(operations: u64, at_begin: bool, fire: SyncSender<()>) -> Self {
        Self { left: AtomicI64::new(operations.cast_signed()), at_begin, fire, is_killed: false.into() }
    }

    fn count(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.fire.send(()).expect("somebody waits to kill");
        }
    }
}

/// See the module.
pub(super) struct Worker {
    name: String,
    dice: Noise,
    /// As it was when all metadata was last known to be in the store.
    stored: Tree,
    /// What was acknowledged since then.
    since: Vec<Op>,
    /// As it is with all that.
    now: Tree,
    /// What was not answered when the daemon died.
    in_flight: Option<Op>,
    trace: Vec<String>,
    is_remote: bool,
}

impl Worker {
    /// A thread with an empty directory, which it makes itself.
    pub(super) fn new(name: String, is_remote: bool) -> Self {
        Self {
            name,
            dice: Noise::new(0),
            stored: Tree::default(),
            since: Vec::new(),
            now: Tree::default(),
            in_flight: None,
            trace: Vec::new(),
            is_remote,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Works until the daemon is gone; returns how many operations were acknowledged.
    pub(super) fn work(&mut self, mountpoint: &Path, seed: u64, trigger: &Trigger) -> u64 {
        self.dice = Noise::new(seed);
        self.trace.clear();
        let root = mountpoint.join(&self.name);
        let mut acknowledged = 0;
        loop {
            let op = self.choose();
            if trigger.at_begin {
                trigger.count();
            }
            match perform(&op, &root) {
                Ok(()) => {
                    acknowledged += 1;
                    self.acknowledge(op);
                }
                Err(error) if is_death(&error, &trigger.is_killed) => {
                    self.trace.push(format!("{op:?} -> {error}"));
                    self.in_flight = Some(op);
                    return acknowledged;
                }
                Err(error) => panic!("{op:?}: {error}\n{}", self.trace()),
            }
            if !trigger.at_begin {
                trigger.count();
            }
        }
    }

    fn acknowledge(&mut self, op: Op) {
        self.trace.push(format!("{op:?}"));
        self.now.apply(&op);
        let is_barrier = op.is_barrier();
        if self.is_remote {
            self.since.push(op);
            if is_barrier {
                self.note_stored();
            }
        }
    }

    /// All metadata that was acknowledged is in the store, and the content of what was synced.
    fn note_stored(&mut self) {
        for op in self.since.drain(..) {
            self.stored.apply(&op);
        }
    }

    /// Everything that was acknowledged is in the store.
    pub(super) fn note_all_stored(&mut self) {
        for node in self.now.nodes.values_mut() {
            if let Kind::File(content) = &mut node.kind {
                content.settle();
            }
        }
        self.since.clear();
        self.stored = self.now.clone();
    }

    /// Asserts that what is there after a kill is all that was acknowledged, with or without what was in flight.
    pub(super) fn check_survivors(&mut self, mountpoint: &Path) {
        let found = find_below(&mountpoint.join(&self.name));
        let mut with = None;
        if let Some(op) = self.in_flight.take() {
            let mut tree = self.now.clone();
            tree.apply(&op);
            with = Some(tree);
        }
        let without = self.now.refute(&found);
        let with_refuted = with.as_ref().map(|tree| tree.refute(&found));
        match (without, with_refuted) {
            (None, _) => {}
            (Some(_), Some(None)) => self.now = with.expect("compared just now"),
            (Some(why), Some(Some(with))) => {
                panic!("{}: after a kill {why}; with what was in flight: {with}\n{}", self.name, self.trace())
            }
            (Some(why), None) => panic!("{}: after a kill {why}\n{}", self.name, self.trace()),
        }
        self.adopt(found);
    }

    /// Asserts that what the store alone knows is what was acknowledged up to some moment, and that this is not before the
    /// last sync.
    pub(super) fn check_what_was_stored(&mut self, mountpoint: &Path) {
        let found = find_below(&mountpoint.join(&self.name));
        let mut tree = self.stored.clone();
        let mut best = tree.refute(&found).is_none().then(|| tree.clone());
        let mut refused = vec![format!("at the last sync: {:?}", tree.refute(&found))];
        for op in self.since.drain(..).chain(self.in_flight.take()) {
            tree.apply(&op);
            match tree.refute(&found) {
                None => best = Some(tree.clone()),
                Some(why) => refused.push(format!("after {op:?}: {why}")),
            }
        }
        let Some(best) = best else {
            panic!(
                "{}: the store has nothing that was there since the last sync\n{}\n--\n{}",
                self.name,
                refused.join("\n"),
                self.trace()
            );
        };
        self.now = best;
        self.adopt(found);
    }

    /// No second kill takes what was found after one.
    fn adopt(&mut self, found: BTreeMap<String, Found>) {
        self.now.adopt(found);
        self.stored = self.now.clone();
        self.since.clear();
    }

    pub(super) fn trace(&self) -> String {
        let from = self.trace.len().saturating_sub(150);
        format!("{}, what it did before the kill:\n{}", self.name, self.trace[from..].join("\n"))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.dice.number() % limit
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() {
            return None;
        }
        let at = self.below(from.len() as u64);
        from.get(usize::try_from(at).expect("an index")).cloned()
    }

    fn small(&mut self, limit: u64) -> usize {
        usize::try_from(self.below(limit)).expect("small")
    }

    fn choose(&mut self) -> Op {
        loop {
            if let Some(op) = self.propose() {
                return op;
            }
        }
    }

    /// An operation that succeeds, if the one that the dice say does.
    fn propose(&mut self) -> Option<Op> {
        match self.below(100) {
            0..=7 => Some(Op::Create(self.a_new_name()?)),
            8..=36 => self.propose_write(),
            37..=43 => Some(Op::Sync { path: self.a_file()?, data_only: self.one_in(2) }),
            44 => Some(Op::SyncDirectory),
            45..=49 => {
                let path = self.a_file()?;
                let size = self.content_len(&path);
                Some(Op::Truncate(
                    path,
                    if self.one_in(2) { self.small(size + 1) } else { self.small(size + SMALL_BYTES) },
                ))
            }
            50..=52 => {
                let path = self.a_file()?;
                let offset = self.an_offset(&path);
                let len = 1 + self.small(SMALL_BYTES);
                Some(Op::Allocate { path, offset, len, keep_size: self.one_in(2) })
            }
            53..=56 => {
                let path = self.a_file()?;
                let offset = self.an_offset(&path);
                let len = 1 + self.small(3 * SMALL_BYTES);
                Some(Op::Punch { path, offset, len })
            }
            57..=60 => Some(Op::Mkdir(self.a_new_directory()?)),
            61..=62 => {
                let path = self.a_name(|tree, path| tree.is_directory(path) && tree.is_empty(path))?;
                Some(Op::Rmdir(path))
            }
            63..=67 => Some(Op::Unlink(self.a_name(|tree, path| !tree.is_directory(path))?)),
            68..=77 => self.propose_rename(),
            78..=80 => {
                let from = self.a_name(|tree, path| !tree.is_directory(path))?;
                Some(Op::Link(from, self.a_new_name()?))
            }
            81..=82 => {
                let target = format!("somewhere/{}", self.below(1 << 40));
                Some(Op::Symlink { path: self.a_new_name()?, target })
            }
            83..=88 => self.propose_xattr(),
            89..=93 => {
                let mode = u32::try_from(self.below(0o1000)).expect("small");
                Some(Op::Chmod(self.a_name(is_no_symlink)?, mode))
            }
            _ => {
                let seconds = self.below(3_000_000_000).cast_signed();
                Some(Op::SetTime(self.a_name(|_, _| true)?, seconds))
            }
        }
    }

    fn propose_write(&mut self) -> Option<Op> {
        let path = self.a_file()?;
        let size = self.content_len(&path);
        let len = match self.below(30) {
            0 => 1 + self.small(LARGE_BYTES),
            1..=10 => 1 + self.small(100),
            _ => 1 + self.small(SMALL_BYTES),
        };
        let how = match self.below(20) {
            0 => How::Sync(self.one_in(2)),
            1..=7 => How::Append,
            _ => How::Plain,
        };
        let offset = match how {
            How::Append => usize::try_from(size).expect("small"),
            How::Plain | How::Sync(_) => self.an_offset(&path),
        };
        let is_too_long = SIZE_MAX < (offset + len) as u64;
        (!is_too_long).then(|| Op::Write { path, offset, data: Data { seed: self.dice.number(), len }, how })
    }

    fn propose_rename(&mut self) -> Option<Op> {
        let from = self.a_name(|_, _| true)?;
        if self.one_in(4) {
            let to = self.a_name(|_, _| true)?;
            let is_inside = to.starts_with(&format!("{from}/")) || from.starts_with(&format!("{to}/"));
            return (from != to && !is_inside).then_some(Op::Exchange(from, to));
        }
        let to = if self.one_in(2) { self.a_place()? } else { self.a_name(|_, _| true)? };
        let moves_directory = self.now.is_directory(&from);
        let fits = match self.now.node(&to) {
            None => true,
            Some(_) if moves_directory => self.now.is_directory(&to) && self.now.is_empty(&to),
            Some(_) => !self.now.is_directory(&to),
        };
        (fits && from != to && !to.starts_with(&format!("{from}/"))).then_some(Op::Rename(from, to))
    }

    fn propose_xattr(&mut self) -> Option<Op> {
        let path = self.a_name(is_no_symlink)?;
        let name = self.pick(&XATTRS)?;
        let exists = self.now.node(&path).is_some_and(|node| node.xattrs.contains_key(name.to_bytes()));
        if exists && self.one_in(2) {
            return Some(Op::RemoveXattr { path, name: name.to_owned() });
        }
        let len = if self.one_in(5) { self.small(3_000) } else { self.small(40) };
        Some(Op::SetXattr { path, name: name.to_owned(), value: self.dice.take(len) })
    }

    fn a_name(&mut self, fits: impl Fn(&Tree, &str) -> bool) -> Option<String> {
        let names: Vec<String> =
            self.now.names.keys().filter(|name| fits(&self.now, name)).cloned().collect();
        self.pick(&names)
    }

    fn a_file(&mut self) -> Option<String> {
        let is_file =
            |tree: &Tree, path: &str| tree.node(path).is_some_and(|node| matches!(node.kind, Kind::File(_)));
        self.a_name(is_file)
    }

    /// A path in a directory that is there.
    fn a_place(&mut self) -> Option<String> {
        let directory = self.pick(&DIRECTORIES)?;
        let leaf = self.pick(&LEAVES)?;
        self.now.is_directory(directory.trim_end_matches('/')).then(|| format!("{directory}{leaf}"))
    }

    fn a_new_name(&mut self) -> Option<String> {
        self.a_place().filter(|path| self.now.node(path).is_none())
    }

    /// Those that others are made in more often than the rest.
    fn a_new_directory(&mut self) -> Option<String> {
        let common = self.pick(&["a", "b", "a/c"])?.to_owned();
        let parent_is_there = self.now.is_directory(common.rsplit_once('/').map_or("", |(parent, _)| parent));
        if parent_is_there && self.now.node(&common).is_none() {
            return Some(common);
        }
        self.a_new_name()
    }

    fn content_len(&self, path: &str) -> u64 {
        match self.now.node(path).map(|node| &node.kind) {
            Some(Kind::File(content)) => content.len() as u64,
            _ => panic!("{path} is no file"),
        }
    }

    /// Somewhere in the file, at a multiple of a page now and then, or some way beyond its end.
    fn an_offset(&mut self, path: &str) -> usize {
        let size = self.content_len(path);
        match self.below(6) {
            0 => 0,
            1 => self.small(size + SMALL_BYTES),
            2 => self.small(size / 4096 + 1) * 4096,
            _ => self.small(size + 1),
        }
    }
}

fn is_no_symlink(tree: &Tree, path: &str) -> bool {
    tree.node(path).is_some_and(|node| !matches!(node.kind, Kind::Symlink(_)))
}

/// What a program gets from a mount whose daemon has died, or dies while it waits. Where it dies while it takes a request
/// from the kernel, the kernel answers that with EIO.
pub(super) fn is_death(error: &io::Error, is_killed: &AtomicBool) -> bool {
    match error.raw_os_error() {
        Some(libc::ENOTCONN | libc::ECONNABORTED) => true,
        Some(libc::EIO) => is_killed.load(Ordering::SeqCst),
        _ => false,
    }
}

fn open(path: PathBuf, flags: i32) -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(flags).open(path)
}

/// Each is one call that changes something; opening before it and closing behind it do not.
fn perform(op: &Op, root: &Path) -> io::Result<()> {
    let at = |path: &str| root.join(path);
    let offset_of = |at: usize| i64::try_from(at).expect("small");
    match op {
        Op::Create(path) => {
            OpenOptions::new().write(true).create_new(true).mode(NEW_FILE_MODE).open(at(path)).map(drop)
        }
        Op::Write { path, offset, data, how } => {
            let flags = match how {
                How::Plain => 0,
                How::Append => libc::O_APPEND,
                How::Sync(true) => libc::O_DSYNC,
                How::Sync(false) => libc::O_SYNC,
            };
            open(at(path), flags)?.write_all_at(&data.bytes(), *offset as u64)
        }
        Op::Sync { path, data_only: true } => open(at(path), 0)?.sync_data(),
        Op::Sync { path, data_only: false } => open(at(path), 0)?.sync_all(),
        Op::SyncDirectory => File::open(root)?.sync_all(),
        Op::Truncate(path, size) => open(at(path), 0)?.set_len(*size as u64),
        Op::Allocate { path, offset, len, keep_size } => {
            let mode = if *keep_size { FallocateFlags::FALLOC_FL_KEEP_SIZE } else { FallocateFlags::empty() };
            Ok(fallocate(open(at(path), 0)?, mode, offset_of(*offset), offset_of(*len))?)
        }
        Op::Punch { path, offset, len } => {
            let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            Ok(fallocate(open(at(path), 0)?, mode, offset_of(*offset), offset_of(*len))?)
        }
        Op::Mkdir(path) => DirBuilder::new().mode(NEW_DIRECTORY_MODE).create(at(path)),
        Op::Rmdir(path) => fs::remove_dir(at(path)),
        Op::Unlink(path) => fs::remove_file(at(path)),
        Op::Rename(from, to) => fs::rename(at(from), at(to)),
        Op::Exchange(from, to) => {
            let flags = RenameFlags::RENAME_EXCHANGE;
            Ok(renameat2(AT_FDCWD, &at(from), AT_FDCWD, &at(to), flags)?)
        }
        Op::Link(from, to) => fs::hard_link(at(from), at(to)),
        Op::Symlink { path, target } => symlink(target, at(path)),
        Op::SetXattr { path, name, value } => set_xattr(&at(path), name, value, 0),
        Op::RemoveXattr { path, name } => remove_xattr(&at(path), name),
        Op::Chmod(path, mode) => fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)),
        Op::SetTime(path, seconds) => {
            let time = TimeSpec::new(*seconds, 0);
            Ok(utimensat(AT_FDCWD, &at(path), &time, &time, UtimensatFlags::NoFollowSymlink)?)
        }
    }
}
