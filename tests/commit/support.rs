//! What the tests of the committer share: a machine that can lose power, rules for counters, a model.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use gravitonfs::backend::memory_device::MemoryDirectory;
use gravitonfs::backend::redb::RedbKv;
use gravitonfs::base::time::Random;
use gravitonfs::commit::{Batch, Committer, CommitterParts, Limits};
use gravitonfs::rt::{SeededRandom, TokioRuntime};
use gravitonfs::store::device::Directory as _;
use gravitonfs::store::kv::{Snapshot, Table};
use gravitonfs::store::merge::{Delta, MergeRules, Merged};
use gravitonfs::store::{Error, Kind, Result};

pub const ROWS: Table = Table(1);
pub const OTHER: Table = Table(2);
pub const COUNT: Table = Table(3);
pub const TOTAL: Table = Table(4);
pub const LOCAL: Table = Table(0x90);

/// Counters in [`COUNT`]; each change is also added to the one row of [`TOTAL`].
pub struct Counters;

impl MergeRules for Counters {
    fn merge(&self, delta: &Delta, old: Option<&[u8]>) -> Result<Merged> {
        let number = |bytes: &[u8]| bytes.try_into().map(i64::from_le_bytes);
        let broken = |_| Error::new(Kind::Internal, "not a number");
        let old = old.map_or(Ok(0), number).map_err(broken)?;
        let new = old + number(&delta.bytes).map_err(broken)?;
        let follow = match delta.table {
            COUNT => vec![Delta { table: TOTAL, key: b"sum".to_vec(), bytes: delta.bytes.clone() }],
            _ => Vec::new(),
        };
        Ok(Merged { value: (new != 0).then(|| new.to_le_bytes().to_vec()), follow })
    }
}

pub fn add(key: &[u8], by: i64) -> Delta {
    Delta { table: COUNT, key: key.to_vec(), bytes: by.to_le_bytes().to_vec() }
}

pub fn number(row: Option<Vec<u8>>) -> i64 {
    row.map_or(0, |row| i64::from_le_bytes(row.try_into().expect("eight bytes")))
}

pub fn put(table: Table, key: &[u8], value: &[u8]) -> Batch {
    let mut batch = Batch::new();
    batch.put(table, key, value);
    batch
}

/// Small enough that a test of a few hundred batches meets every limit.
pub fn small_limits() -> Limits {
    Limits {
        memtable_bytes: 16 << 10,
        layer_bytes: 4 << 10,
        segment_bytes: 4 << 10,
        record_bytes: 4 << 10,
        ..Limits::default()
    }
}

/// Two directories of one machine, and threads.
pub struct Machine {
    pub runtime: TokioRuntime,
    pub log: MemoryDirectory,
    pub state: MemoryDirectory,
}

impl Machine {
    pub fn new() -> Self {
        let runtime = TokioRuntime::new(2, 4).expect("threads for a test");
        let state = MemoryDirectory::new();
        state.create("meta.redb").expect("empty");
        state.sync().expect("memory");
        Self { runtime, log: MemoryDirectory::new(), state }
    }

    pub fn parts(&self, limits: Limits) -> Result<CommitterParts> {
        let kv = RedbKv::open(self.state.open("meta.redb")?, 1 << 20)?;
        Ok(CommitterParts {
            kv: Arc::new(kv),
            log: Arc::new(self.log.clone()),
            rules: Arc::new(Counters),
            clock: self.runtime.clock(),
            spawner: self.runtime.spawner(),
            limits,
        })
    }

    pub fn open(&self, limits: Limits) -> Result<Arc<Committer>> {
        Committer::open(self.parts(limits)?)
    }

    pub fn power_cut(&self, random: &dyn Random) {
        self.log.crash(random);
        self.state.crash(random);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let empty = TokioRuntime::new(1, 1).expect("threads for a test");
        std::mem::replace(&mut self.runtime, empty).shutdown(Duration::from_secs(5));
    }
}

/// Rows as a plain map.
pub type Model = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// All rows of the tables the tests write.
pub fn dump(view: &dyn Snapshot, tables: &[Table]) -> Model {
    let mut rows = Model::new();
    for &table in tables {
        let mut last: Option<Vec<u8>> = None;
        let visit = &mut |key: &[u8], value: &[u8]| {
            assert!(last.as_deref().is_none_or(|last| last < key), "keys ascend");
            last = Some(key.to_vec());
            rows.insert((table, key.to_vec()), value.to_vec());
            Ok(ControlFlow::Continue(()))
        };
        view.scan(table, b"", None, visit).expect("readable");
    }
    rows
}

pub const ALL: [Table; 5] = [ROWS, OTHER, COUNT, TOTAL, LOCAL];
pub const SYNCED: [Table; 4] = [ROWS, OTHER, COUNT, TOTAL];

/// A batch at random and what it does to the model.
pub fn random_batch(random: &SeededRandom, model: &mut Model) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..=random.next_u64() % 4 {
        let key = vec![b'k', (random.next_u64() % 40) as u8];
        let table = [ROWS, OTHER, LOCAL][(random.next_u64() % 3) as usize];
        match random.next_u64() % 6 {
            0 => {
                batch.delete(table, key.clone());
                model.remove(&(table, key));
            }
            1 => {
                let by = (random.next_u64() % 5) as i64 - 2;
                batch.delta(add(&key, by));
                for row in [(COUNT, key), (TOTAL, b"sum".to_vec())] {
                    let new = number(model.get(&row).cloned()) + by;
                    match new {
                        0 => model.remove(&row),
                        _ => model.insert(row, new.to_le_bytes().to_vec()),
                    };
                }
            }
            _ => {
                let value = vec![random.next_u64() as u8; (random.next_u64() % 100) as usize];
                batch.put(table, key.clone(), value.clone());
                model.insert((table, key), value);
            }
        }
    }
    batch
}
