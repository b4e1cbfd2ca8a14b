//! What the tests of the committer share: a machine that can lose power, rules for counters, a model.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use gravitonfs::backend::memory_device::MemoryDirectory;
use gravitonfs::backend::memory_object::MemoryObjectStore;
use gravitonfs::backend::redb::RedbKv;
use gravitonfs::base::ids::{PackId, VolumeId, WriterId};
use gravitonfs::base::range::ByteRange;
use gravitonfs::base::time::Random;
use gravitonfs::commit::{Batch, Committer, CommitterParts, Limits, Staging};
use gravitonfs::maint::recovery::{Access, Claim, MountError, MountParts, Mounted, mount};
use gravitonfs::rt::{SeededRandom, SystemRandom, TokioRuntime};
use gravitonfs::store::block::UploadTicket;
use gravitonfs::store::device::Directory as _;
use gravitonfs::store::kv::{Snapshot, Table};
use gravitonfs::store::merge::{Delta, MergeRules, Merged};
use gravitonfs::store::object::{Fencing, ImmutableObjectStore, ListPage, ObjectKey, ObjectMeta};
use gravitonfs::store::{Error, Kind, Result, keys};

pub(crate) const ROWS: Table = Table(1);
pub(crate) const OTHER: Table = Table(2);
pub(crate) const COUNT: Table = Table(3);
pub(crate) const TOTAL: Table = Table(4);
pub(crate) const LOCAL: Table = Table(0x90);

/// Counters in [`COUNT`]; each change is also added to the one row of [`TOTAL`].
pub(crate) struct Counters;

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

pub(crate) fn add(key: &[u8], by: i64) -> Delta {
    Delta { table: COUNT, key: key.to_vec(), bytes: by.to_le_bytes().to_vec() }
}

pub(crate) fn number(row: Option<Vec<u8>>) -> i64 {
    row.map_or(0, |row| i64::from_le_bytes(row.try_into().expect("eight bytes")))
}

pub(crate) fn put(table: Table, key: &[u8], value: &[u8]) -> Batch {
    let mut batch = Batch::new();
    batch.put(table, key, value);
    batch
}

/// Small enough that a test of a few hundred batches meets every limit.
pub(crate) fn small_limits() -> Limits {
    Limits {
        memtable_bytes: 16 << 10,
        layer_bytes: 4 << 10,
        segment_bytes: 4 << 10,
        record_bytes: 4 << 10,
        ..Limits::default()
    }
}

/// Two directories of one machine, and threads.
pub(crate) struct Machine {
    pub(crate) runtime: TokioRuntime,
    pub(crate) log: MemoryDirectory,
    pub(crate) state: MemoryDirectory,
    random: SystemRandom,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let runtime = TokioRuntime::new(2, 4).expect("threads for a test");
        let state = MemoryDirectory::new();
        state.create("meta.redb").expect("empty");
        state.sync().expect("memory");
        Self { runtime, log: MemoryDirectory::new(), state, random: SystemRandom }
    }

    pub(crate) fn parts(&self, limits: Limits) -> Result<CommitterParts> {
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

    pub(crate) fn open(&self, limits: Limits) -> Result<Arc<Committer>> {
        Committer::open(self.parts(limits)?)
    }

    /// Ends everything the process does. A thread of its that went on would work on the disk of its successor.
    pub(crate) fn end_process(&mut self) {
        let next = TokioRuntime::new(2, 4).expect("threads for a test");
        std::mem::replace(&mut self.runtime, next).shutdown(Duration::from_secs(60));
    }

    pub(crate) fn power_cut(&mut self, random: &dyn Random) {
        self.end_process();
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
pub(crate) type Model = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// All rows of the tables the tests write.
pub(crate) fn dump(view: &dyn Snapshot, tables: &[Table]) -> Model {
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

pub(crate) const ALL: [Table; 5] = [ROWS, OTHER, COUNT, TOTAL, LOCAL];
pub(crate) const SYNCED: [Table; 4] = [ROWS, OTHER, COUNT, TOTAL];

/// A batch at random and what it does to the model.
pub(crate) fn random_batch(random: &SeededRandom, model: &mut Model) -> Batch {
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

/// A bucket in memory that counts requests and can misbehave.
pub(crate) struct Bucket {
    pub(crate) inner: MemoryObjectStore,
    pub(crate) requests: AtomicUsize,
    /// Journal records are stored, and the answer is lost: so many times.
    pub(crate) lose_answers: AtomicUsize,
    /// PUTs fail while this is set.
    pub(crate) down: AtomicBool,
    /// Conditions are ignored, and the answer is success.
    pub(crate) weak: AtomicBool,
    /// Objects that a PUT replaced by something else.
    pub(crate) overwritten: Mutex<Vec<String>>,
}

impl Bucket {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryObjectStore::new(),
            requests: AtomicUsize::new(0),
            lose_answers: AtomicUsize::new(0),
            down: AtomicBool::new(false),
            weak: AtomicBool::new(false),
            overwritten: Mutex::default(),
        })
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn count(&self) {
        self.requests.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl ImmutableObjectStore for Bucket {
    async fn put_new(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta> {
        self.count();
        if self.down.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::Unavailable, "down"));
        }
        if self.weak.load(Ordering::SeqCst)
            && let Ok(old) = self.inner.get(key, None).await
        {
            if old != body {
                self.overwritten.lock().expect("no panic").push(key.to_string());
            }
            self.inner.delete(std::slice::from_ref(key)).await?;
        }
        let stored = self.inner.put_new(key, body).await?;
        let lose = |left: usize| left.checked_sub(1);
        if key.as_str().starts_with(keys::JOURNAL)
            && self.lose_answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose).is_ok()
        {
            return Err(Error::new(Kind::Unavailable, "answer lost"));
        }
        Ok(stored)
    }

    async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
        self.count();
        self.inner.get(key, range).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.count();
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
        self.count();
        self.inner.list(prefix, start_after).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        self.count();
        self.inner.delete(keys).await
    }

    fn fencing(&self) -> Fencing {
        if self.weak.load(Ordering::SeqCst) { Fencing::Lease } else { self.inner.fencing() }
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

/// Packs on their way, as a staging area knows them after a restart.
#[derive(Default)]
pub(crate) struct Packs(pub(crate) Mutex<BTreeMap<PackId, UploadTicket>>);

#[async_trait]
impl Staging for Packs {
    async fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn upload(&self, pack: PackId) -> Result<Option<UploadTicket>> {
        Ok(self.0.lock().expect("no panic").get(&pack).cloned())
    }
}

pub(crate) fn claim(machine: &Machine, host: &str) -> Claim {
    Claim {
        host: host.into(),
        boot_id: "boot".into(),
        writer: WriterId(machine.random.next_u128()),
        tier: "local".into(),
        takeover: false,
    }
}

impl Machine {
    pub(crate) fn recover(
        &self,
        bucket: &Arc<Bucket>,
        access: Access,
        limits: Limits,
    ) -> std::result::Result<Mounted, MountError> {
        let CommitterParts { kv, log, rules, clock, spawner, limits } = self.parts(limits)?;
        let (objects, volume) = (bucket.clone(), VolumeId(1));
        let parts = MountParts { kv, log, objects, rules, clock, spawner, limits, volume, access };
        self.runtime.block_on(mount(parts, &|_| {}))
    }

    /// Mounts for writing, with nothing staged.
    pub(crate) fn mount(&self, bucket: &Arc<Bucket>, limits: Limits) -> Mounted {
        let access = Access::Write(claim(self, "host"));
        let mounted = self.recover(bucket, access, limits).expect("mounts");
        mounted.committer.attach_staging(Arc::new(Packs::default()));
        mounted
    }
}
