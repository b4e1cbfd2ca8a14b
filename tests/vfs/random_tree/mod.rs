//! Every operation of the vfs against the model, on a simulated machine that is killed now and then.
//!
//! `GRAVITONFS_MODEL_OPS` sets how many operations in all, `GRAVITONFS_MODEL_SEED` the first seed.

mod choose;
mod compare;
mod content;
mod perform;
mod survive;

pub(crate) use self::perform::errno;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gravitonfs::base::ids::{Fh, Ino};
use gravitonfs::base::time::{Random, Timestamp};
use gravitonfs::rt::{ManualClock, SeededRandom};

use super::model::tree::{Id, ROOT_ID, Tree};
use super::world::World;

const OPS: u64 = 200_000;

/// Operations on one volume; then another seed begins.
const OPS_PER_VOLUME: u64 = 5_000;

/// Longest file, in bytes: some blocks of the small size that these volumes have.
const SIZE_MAX: u64 = 40_000;

/// Files up to this size live in the metadata, and say what they like of the zeros in them.
const INLINE_BYTES_MAX: u64 = 512;

/// Nodes beyond this are made less often than removed.
const NODES_MAX: usize = 40;
const HANDLES_MAX: usize = 12;

/// Everything is compared after this many operations.
const CHECK_EVERY: u64 = 500;

/// A time to set that no clock of a run reaches, in seconds.
const FUTURE_SECS: i64 = 1 << 33;

const TRACE_LINES: usize = 60;

#[test]
fn all_operations_agree_with_the_model_through_kills() {
    let ops = number_from("GRAVITONFS_MODEL_OPS").unwrap_or(OPS);
    let first_seed = number_from("GRAVITONFS_MODEL_SEED").unwrap_or(1);
    let volumes = ops.div_ceil(OPS_PER_VOLUME);
    println!("seeds {first_seed} to {}", first_seed + volumes - 1);
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let volume = next.fetch_add(1, Ordering::Relaxed);
                    if volumes <= volume {
                        return;
                    }
                    Run::new(first_seed + volume).run(OPS_PER_VOLUME.min(ops - volume * OPS_PER_VOLUME));
                }
            });
        }
    });
}

#[test]
fn the_same_seed_makes_the_same_run() {
    let digest = || Run::new(7).run(1_500);
    assert_eq!(digest(), digest());
}

pub(crate) fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

/// Says what led to a failure.
struct Trace {
    seed: u64,
    op: u64,
    lines: VecDeque<String>,
}

impl Trace {
    fn note(&mut self, line: String) {
        if self.lines.len() == TRACE_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{}: {line}", self.op));
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines: Vec<_> = self.lines.iter().map(String::as_str).collect();
            eprintln!("GRAVITONFS_MODEL_SEED={} operation {}\n{}", self.seed, self.op, lines.join("\n"));
        }
    }
}

/// A file's state that a kill may leave.
#[derive(Clone)]
struct Version {
    bytes: Vec<u8>,
    mtime: Timestamp,
    ctime: Timestamp,
}

struct Handle {
    fh: Fh,
    node: Id,
    sync: bool,
}

/// A directory that is being read a few entries at a time.
struct Listing {
    dir: Id,
    after: u64,
    seen: BTreeSet<Vec<u8>>,
    /// There since the beginning.
    stable: BTreeSet<Vec<u8>>,
}

struct Run {
    world: World,
    clock: std::sync::Arc<ManualClock>,
    random: SeededRandom,
    tree: Tree,
    inos: BTreeMap<Id, Ino>,
    /// Lookups that the kernel would have to take back.
    lookups: BTreeMap<Id, u64>,
    handles: Vec<Handle>,
    listings: Vec<Listing>,
    /// What a kill may make of files that were changed since they were last durable, oldest first.
    versions: BTreeMap<Id, Vec<Version>>,
    /// Nobody knew these for a while: a renewed atime, which is in memory only, may be lost.
    unknown: BTreeSet<Id>,
    newest: Ino,
    /// Gone for good.
    reaped: Vec<Ino>,
    digest: u64,
    trace: Trace,
}

/// When an operation may have happened.
#[derive(Clone, Copy)]
struct Moment {
    begin: Timestamp,
    end: Timestamp,
}

impl Run {
    fn new(seed: u64) -> Self {
        let world = World::simulated(seed, INLINE_BYTES_MAX);
        let clock = world.simulation().clock();
        Self {
            tree: Tree::new(INLINE_BYTES_MAX, world.vfs().getattr(Ino::ROOT).unwrap().ctime),
            random: SeededRandom::new(seed),
            clock,
            world,
            inos: [(ROOT_ID, Ino::ROOT)].into(),
            lookups: BTreeMap::new(),
            handles: Vec::new(),
            listings: Vec::new(),
            versions: BTreeMap::new(),
            unknown: BTreeSet::new(),
            newest: Ino::ROOT,
            reaped: Vec::new(),
            digest: 0,
            trace: Trace { seed, op: 0, lines: VecDeque::new() },
        }
    }

    /// Returns a number that depends on everything that was seen.
    fn run(mut self, ops: u64) -> u64 {
        for op in 1..=ops {
            self.trace.op = op;
            self.pass_time();
            self.step();
            if op.is_multiple_of(CHECK_EVERY) {
                self.check_everything();
            }
        }
        self.settle();
        self.check_everything();
        self.check_totals();
        self.check_volume();
        self.remove_everything();
        self.check_volume();
        self.digest
    }

    fn below(&self, limit: u64) -> u64 {
        self.random.next_u64() % limit
    }

    fn one_in(&self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    fn pick<T: Copy>(&self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn pass_time(&mut self) {
        let nanos = match self.below(50) {
            0 => self.below(3_000_000_000),
            1..=5 => self.below(200_000_000),
            _ => self.below(2_000_000),
        };
        self.clock.advance(Duration::from_nanos(1 + nanos));
        for _ in 0..self.below(6) {
            self.world.simulation().step();
        }
    }

    fn note(&mut self, line: String) {
        let seen = blake3::hash(line.as_bytes());
        let seen = u64::from_le_bytes(seen.as_bytes()[..8].try_into().unwrap());
        self.digest = self.digest.rotate_left(7) ^ seen;
        self.trace.note(line);
    }
}
