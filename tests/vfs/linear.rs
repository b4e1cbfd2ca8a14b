//! Eight threads on few names and few files: whatever they see at once, there is an order in which one after the other
//! would have seen it, and which ends in the state that is there afterwards.
//!
//! The order is searched among all that the beginnings and ends of the operations allow (Wing and Gong), states that
//! were seen already left out. Only copies are not among the operations: they read and write, and promise no moment at
//! which both happen. `GRAVITONFS_MODEL_OPS` sets how many operations in all, `GRAVITONFS_MODEL_SEED` the first seed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use gravitonfs::base::attr::FileKind;
use gravitonfs::base::ids::{Fh, Ino};
use gravitonfs::base::name::Name;
use gravitonfs::base::range::ByteRange;
use gravitonfs::base::time::{Random, Timestamp};
use gravitonfs::rt::SeededRandom;
use gravitonfs::vfs::{
    AllocateMode, Attr, DirEntry, DirSink, Error, OpenFlags, RenameMode, SetAttr, Written,
};

use super::model::tree::{Answer, Id, Op, Outcome, Place, ROOT_ID, Tree};
use super::random_tree::{errno, number_from};
use super::world::{ROOT, World};

const THREADS: usize = 8;
const OPS_PER_THREAD: usize = 2;
const OPS_PER_ROUND: usize = THREADS * OPS_PER_THREAD;

/// In all, unless the environment says something else.
const OPS: u64 = 32_000;

/// Rounds on one volume.
const ROUNDS_PER_VOLUME: u64 = 100;

/// What operation `n` of a round makes is called this plus `n`.
const MADE_ID: Id = 1_000;

/// The model knows no time: order is what is asked for.
const NOW: Timestamp = Timestamp { secs: 0, nanos: 0 };

#[test]
fn what_eight_threads_see_at_once_can_have_happened_in_some_order() {
    let rounds = number_from("GRAVITONFS_MODEL_OPS").unwrap_or(OPS).div_ceil(OPS_PER_ROUND as u64);
    let first_seed = number_from("GRAVITONFS_MODEL_SEED").unwrap_or(1);
    println!("seeds {first_seed} to {}", first_seed + rounds - 1);
    let mut world = World::yielding(first_seed);
    for round in 0..rounds {
        if round % ROUNDS_PER_VOLUME == ROUNDS_PER_VOLUME - 1 {
            world = World::yielding(first_seed + round);
        }
        Round::new(&world, first_seed + round).run();
    }
}

/// A search that accepts everything would find nothing.
#[test]
fn a_history_without_an_order_is_refused() {
    let mut tree = Tree::new(0, NOW);
    let make =
        |name: &[u8]| Op::Make { at: (ROOT_ID, name.to_vec()), mode: libc::S_IFREG, rdev: 0, owner: (0, 0) };
    tree.apply(&make(b"f"), NOW).unwrap();
    let file = tree.child(&(ROOT_ID, b"f".to_vec())).unwrap();
    let write = Op::Write { node: file, offset: 0, data: vec![1; 10], kill_privileges: false };
    let event = |op: Op, begin, end, outcome| Event { op, begin, end, outcome };
    let stat = |size| Ok(Answer::Stat { nlink: 1, size });
    let mut last = tree.clone();
    last.apply(&write, NOW).unwrap();
    // A reader that begins after the write has ended sees it; one beside it may or may not.
    for (begin, size, is_possible) in
        [(3, 10, true), (3, 0, false), (1, 0, true), (1, 10, true), (1, 5, false)]
    {
        let history =
            [event(write.clone(), 0, 2, Ok(Answer::Count(10))), event(Op::Stat(file), begin, 9, stat(size))];
        assert_eq!(has_order(&history, &tree, &|end| end.nodes == last.nodes), is_possible, "{begin} {size}");
    }
    assert!(!has_order(&[], &tree, &|end| end.nodes == last.nodes), "the last state counts too");
}

/// An operation, when it began and ended, and what came of it.
#[derive(Clone, Debug)]
struct Event {
    op: Op,
    begin: u64,
    end: u64,
    outcome: Outcome,
}

/// As an event, before it is known who made which inode.
type Ran = (Op, u64, u64, Result<Found, i32>);

/// True if the events, each at some moment between its beginning and its end, lead from `first` to a state that `is_last`
/// takes.
fn has_order(history: &[Event], first: &Tree, is_last: &dyn Fn(&Tree) -> bool) -> bool {
    let mut seen = HashSet::new();
    let mut states = vec![(0_u32, first.clone())];
    while let Some((done, tree)) = states.pop() {
        let is_open = |at: &usize| done & (1 << at) == 0;
        let open: Vec<usize> = (0..history.len()).filter(is_open).collect();
        if open.is_empty() && is_last(&tree) {
            return true;
        }
        let first_end = open.iter().map(|at| history[*at].end).min().unwrap_or(0);
        for at in open.into_iter().filter(|at| history[*at].begin < first_end) {
            let mut after = tree.clone();
            after.set_next_id(MADE_ID + at as Id);
            let outcome = after.apply(&history[at].op, NOW);
            after.set_next_id(0);
            let state = (done | (1 << at), after);
            if outcome == history[at].outcome && !seen.contains(&state) {
                seen.insert(state.clone());
                states.push(state);
            }
        }
    }
    false
}

/// What can be seen of a node afterwards.
#[derive(PartialEq, Eq, Debug)]
struct Seen {
    nlink: u32,
    bytes: Vec<u8>,
    entries: BTreeMap<Vec<u8>, Id>,
}

/// A few operations at once, in directories of their own.
struct Round<'a> {
    world: &'a World,
    seed: u64,
    random: SeededRandom,
    tree: Tree,
    inos: BTreeMap<Id, Ino>,
    handles: BTreeMap<Id, Fh>,
    dirs: Vec<Id>,
    files: Vec<Id>,
}

impl<'a> Round<'a> {
    /// Directories `a`, `b` and `a/c`, files `a/0`, `b/0` and `b/1`.
    fn new(world: &'a World, seed: u64) -> Self {
        let mut round = Self {
            world,
            seed,
            random: SeededRandom::new(seed),
            tree: Tree::new(0, NOW),
            inos: BTreeMap::new(),
            handles: BTreeMap::new(),
            dirs: vec![ROOT_ID],
            files: Vec::new(),
        };
        let top = Name::new(format!("round-{seed}").as_bytes()).unwrap();
        round.inos.insert(ROOT_ID, world.vfs().mkdir(&ROOT, Ino::ROOT, &top, 0o755).unwrap().ino);
        let a = round.add((ROOT_ID, b"0".to_vec()), libc::S_IFDIR);
        let b = round.add((ROOT_ID, b"1".to_vec()), libc::S_IFDIR);
        let c = round.add((a, b"1".to_vec()), libc::S_IFDIR);
        round.dirs.extend([a, b, c]);
        for at in [(a, b"0"), (b, b"0"), (b, b"1")] {
            let file = round.add((at.0, at.1.to_vec()), libc::S_IFREG);
            let fh = world.vfs().open_file(&ROOT, round.inos[&file], OpenFlags::default()).unwrap();
            round.handles.insert(file, fh);
            round.files.push(file);
        }
        round
    }

    fn add(&mut self, at: Place, mode: u32) -> Id {
        let op = Op::Make { at: at.clone(), mode: mode | 0o755, rdev: 0, owner: (0, 0) };
        self.tree.apply(&op, NOW).unwrap();
        let made = self.execute(&op).unwrap();
        let id = self.tree.child(&at).unwrap();
        self.inos.insert(id, made.expect_ino());
        id
    }

    fn run(mut self) {
        let is_about_names = self.one_in(2);
        let is_about_one_file = !is_about_names && self.one_in(2);
        let plans: Vec<Vec<Op>> = (0..THREADS)
            .map(|_| (0..OPS_PER_THREAD).map(|_| self.plan(is_about_names, is_about_one_file)).collect())
            .collect();
        let clock = AtomicU64::new(0);
        let barrier = Barrier::new(THREADS);
        let round = &self;
        let results: Vec<Vec<Ran>> = std::thread::scope(|scope| {
            let run = |plan: Vec<Op>| {
                barrier.wait();
                let run = |op: Op| {
                    let begin = clock.fetch_add(1, Ordering::SeqCst);
                    let found = round.execute(&op);
                    (op, begin, clock.fetch_add(1, Ordering::SeqCst), found)
                };
                plan.into_iter().map(run).collect()
            };
            let threads: Vec<_> = plans.into_iter().map(|plan| scope.spawn(move || run(plan))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let results: Vec<_> = results.into_iter().flatten().collect();
        for (number, (op, _, _, found)) in results.iter().enumerate() {
            if let (Op::Make { .. }, Ok(made)) = (op, found) {
                self.inos.insert(MADE_ID + number as Id, made.expect_ino());
            }
        }
        let ids: BTreeMap<Ino, Id> = self.inos.iter().map(|(id, ino)| (*ino, *id)).collect();
        let history: Vec<Event> = results
            .into_iter()
            .map(|(op, begin, end, found)| Event {
                op,
                begin,
                end,
                outcome: found.map(|found| found.answer(&ids)),
            })
            .collect();
        let last = self.look(&ids);
        self.tree.set_next_id(0);
        if !has_order(&history, &self.tree, &|tree| seen(tree) == last) {
            let mut lines: Vec<String> = history
                .iter()
                .map(|event| format!("{}..{} {:?} -> {:?}", event.begin, event.end, event.op, event.outcome))
                .collect();
            lines.sort_by_key(|line| line.split('.').next().unwrap().parse::<u64>().unwrap());
            panic!("GRAVITONFS_MODEL_SEED={}\n{}\nends in {last:?}", self.seed, lines.join("\n"));
        }
        self.handles.values().for_each(|fh| self.world.vfs().release(*fh));
    }

    fn below(&self, limit: u64) -> u64 {
        self.random.next_u64() % limit
    }

    fn one_in(&self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    fn pick<T: Clone>(&self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }

    fn place(&self) -> Place {
        (self.pick(&self.dirs), self.pick(&[b"0".to_vec(), b"1".to_vec()]))
    }

    fn plan(&self, is_about_names: bool, is_about_one_file: bool) -> Op {
        let file = if is_about_one_file { self.files[0] } else { self.pick(&self.files) };
        let make = |kind| Op::Make { at: self.place(), mode: kind | 0o755, rdev: 0, owner: (0, 0) };
        let choice = if is_about_names { self.below(16) } else { 14 + self.below(10) };
        match choice {
            0..=4 => {
                let mode = self.pick(&[
                    RenameMode::Replace,
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                ]);
                Op::Rename { from: self.place(), to: self.place(), mode }
            }
            5..=6 => make(libc::S_IFREG),
            7 => make(libc::S_IFDIR),
            8..=9 => Op::Unlink(self.place()),
            10..=11 => Op::Rmdir(self.place()),
            12 => Op::Link { node: file, at: self.place() },
            13 => Op::Lookup(self.place()),
            14 => Op::Stat(if is_about_names { self.pick(&self.dirs) } else { file }),
            15 | 16 => Op::Stat(file),
            17..=19 => {
                // Some fit the metadata and some do not.
                let len = self.pick(&[3, 1_500, 6_000]);
                let data = vec![1 + self.below(250) as u8; len];
                Op::Write { node: file, offset: self.below(4) * 1_000, data, kill_privileges: false }
            }
            20 => {
                let set = SetAttr { size: Some(self.below(5) * 1_200), ..SetAttr::default() };
                Op::Setattr { node: file, uid: 0, set }
            }
            21 => {
                let mode = self.pick(&[AllocateMode::PunchHole, AllocateMode::ZeroRange]);
                let range = ByteRange::at(self.below(4) * 700, 900);
                Op::Allocate { node: file, range, mode, keep_size: true }
            }
            _ => Op::Read { node: file, window: ByteRange::new(0, 20_000) },
        }
    }

    fn execute(&self, op: &Op) -> Result<Found, i32> {
        let vfs = self.world.vfs();
        let at = |place: &Place| (self.inos[&place.0], Name::new(&place.1).unwrap());
        let found: Result<Found, Error> = match op {
            Op::Lookup(place) => {
                let (dir, name) = at(place);
                vfs.lookup(dir, &name).map(|attr| Found::Ino(attr.map(|attr| attr.ino)))
            }
            Op::Stat(node) => vfs.getattr(self.inos[node]).map(|attr| Found::Answer(stat(&attr))),
            Op::Make { at: place, mode, rdev, .. } => {
                let (dir, name) = at(place);
                let made = match mode & libc::S_IFMT {
                    libc::S_IFDIR => vfs.mkdir(&ROOT, dir, &name, *mode),
                    _ => vfs.mknod(&ROOT, dir, &name, *mode, *rdev),
                };
                made.map(|attr| Found::Ino(Some(attr.ino)))
            }
            Op::Link { node, at: place } => {
                let (dir, name) = at(place);
                vfs.link(self.inos[node], dir, &name).map(|attr| Found::Ino(Some(attr.ino)))
            }
            Op::Unlink(place) => {
                let (dir, name) = at(place);
                vfs.unlink(dir, &name).map(|()| Found::Answer(Answer::Done))
            }
            Op::Rmdir(place) => {
                let (dir, name) = at(place);
                vfs.rmdir(dir, &name).map(|()| Found::Answer(Answer::Done))
            }
            Op::Rename { from, to, mode } => {
                let (from, to) = (at(from), at(to));
                let renamed = vfs.rename((from.0, &from.1), (to.0, &to.1), *mode);
                self.world.runtime.block_on(renamed).map(|()| Found::Answer(Answer::Done))
            }
            Op::Setattr { node, set, .. } => {
                vfs.setattr(&ROOT, self.inos[node], set).map(|_| Found::Answer(Answer::Done))
            }
            Op::Read { node, window } => {
                let read = vfs.read(self.handles[node], window.start, window.len() as u32);
                self.world.runtime.block_on(read).map(|data| Found::Answer(Answer::Bytes(data.to_vec())))
            }
            Op::Write { node, offset, data, .. } => {
                let written = vfs.write(self.handles[node], *offset, data);
                let written = written.and_then(|written| match written {
                    Written::Now(len) => Ok(len),
                    Written::Later(later) => self.world.runtime.block_on(later),
                });
                written.map(|len| Found::Answer(Answer::Count(u64::from(len))))
            }
            Op::Allocate { node, range, mode, keep_size } => vfs
                .fallocate(self.handles[node], *range, *mode, *keep_size)
                .map(|()| Found::Answer(Answer::Done)),
            _ => unreachable!("not planned"),
        };
        found.map_err(|error| errno(&error))
    }

    /// What is there when all have ended.
    fn look(&self, ids: &BTreeMap<Ino, Id>) -> BTreeMap<Id, Seen> {
        let look = |(id, ino): (&Id, &Ino)| {
            let attr = self.world.vfs().getattr(*ino).unwrap();
            let (mut bytes, mut entries) = (Vec::new(), BTreeMap::new());
            if attr.kind == FileKind::Directory {
                let mut names = Names(&mut entries, ids);
                self.world.vfs().readdir(*ino, 2, &mut names).unwrap();
            } else {
                let fh = self.world.vfs().open_file(&ROOT, *ino, OpenFlags::default()).unwrap();
                let read = self.world.vfs().read(fh, 0, attr.size as u32);
                bytes = self.world.runtime.block_on(read).unwrap().to_vec();
                assert_eq!(bytes.len() as u64, attr.size);
                self.world.vfs().release(fh);
            }
            (*id, Seen { nlink: attr.nlink, bytes, entries })
        };
        self.inos.iter().map(look).collect()
    }
}

fn seen(tree: &Tree) -> BTreeMap<Id, Seen> {
    let nodes = tree.nodes.iter();
    let seen = nodes.map(|(id, node)| {
        let (bytes, entries) = (node.content.bytes.clone(), node.entries.clone());
        (*id, Seen { nlink: node.nlink, bytes, entries })
    });
    seen.collect()
}

fn stat(attr: &Attr) -> Answer {
    let size = if attr.kind == FileKind::Regular { attr.size } else { 0 };
    Answer::Stat { nlink: attr.nlink, size }
}

/// What an operation returned, before it is known who made which inode.
enum Found {
    Ino(Option<Ino>),
    Answer(Answer),
}

impl Found {
    fn expect_ino(&self) -> Ino {
        match self {
            Self::Ino(Some(ino)) => *ino,
            Self::Ino(None) | Self::Answer(_) => panic!("what makes an inode returns it"),
        }
    }

    fn answer(self, ids: &BTreeMap<Ino, Id>) -> Answer {
        match self {
            Self::Ino(ino) => Answer::Node(ino.map(|ino| ids[&ino])),
            Self::Answer(answer) => answer,
        }
    }
}

struct Names<'a>(&'a mut BTreeMap<Vec<u8>, Id>, &'a BTreeMap<Ino, Id>);

impl DirSink for Names<'_> {
    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        assert!(self.0.insert(entry.name.to_vec(), self.1[&entry.ino]).is_none(), "listed twice");
        true
    }
}
