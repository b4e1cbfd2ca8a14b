//! `BlockStore`: one check per line of its contract.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use gravitonfs::backend::dir::DirObjectStore;
use gravitonfs::backend::memory_block::InMemoryBlockStore;
use gravitonfs::backend::memory_device::MemoryDirectory;
use gravitonfs::backend::memory_object::MemoryObjectStore;
use gravitonfs::base::hash::{BlockId, Hash};
use gravitonfs::base::ids::WriterId;
use gravitonfs::base::time::Random as _;
use gravitonfs::content::block_cache::BlockCache;
use gravitonfs::content::frame::Compression;
use gravitonfs::content::framed::{FramedBlockStore, FramedOptions, FramedParts};
use gravitonfs::content::pack_cache::{PackCache, PackCacheLimits};
use gravitonfs::content::single::{SingleBlockStore, SingleParts};
use gravitonfs::content::spill::{SpillBudget, SpillLimits};
use gravitonfs::rt::{SeededRandom, SemaphoreLimit, TokioRuntime};
use gravitonfs::store::block::{
    Block, BlockIndex, BlockLocation, BlockStore, BlockTicket, Receipt, UploadTicket,
};
use gravitonfs::store::object::{ImmutableObjectStore, ObjectKey};
use gravitonfs::store::{Error, Kind, Result, keys};

/// A store under test and what can happen to it.
trait Fixture {
    fn runtime(&self) -> &TokioRuntime;

    /// Opens the store: the first time, or by a new process that takes over what the one before left.
    fn open(&self) -> Arc<dyn BlockStore>;

    /// Names committed blocks for all stores opened from here. None where the store needs no such help.
    fn index(&self) -> Option<&TestIndex>;

    /// The objects behind it, for damage. None if there are none.
    fn objects(&self) -> Option<Arc<dyn ImmutableObjectStore>>;

    /// The disk that blocks are staged on. None if there is none.
    fn disk(&self) -> Option<&MemoryDirectory>;

    /// Waits until no file is staged any more. Nobody may hold a ticket.
    fn settle(&self);
}

impl dyn Fixture + '_ {
    fn run<F: Future>(&self, future: F) -> F::Output {
        self.runtime().block_on(future)
    }

    fn put(&self, store: &dyn BlockStore, texts: &[&str]) -> Vec<BlockTicket> {
        self.run(store.put_many(texts.iter().map(|text| block(text)).collect())).expect("put")
    }

    /// Puts blocks, waits until they are stored, commits them and lets their tickets go, as the filesystem does.
    fn store(&self, store: &dyn BlockStore, texts: &[&str]) -> Vec<Stored> {
        let tickets = self.put(store, texts);
        self.run(store.seal()).expect("seal");
        let commit = |ticket: BlockTicket| {
            let receipt = self.run(ticket.upload.acknowledged()).expect("acknowledged");
            if let Some(index) = self.index() {
                index.rows.lock().expect("lock").insert(ticket.id, (ticket.location, receipt));
            }
            Stored { id: ticket.id, location: ticket.location, receipt }
        };
        let stored = tickets.into_iter().map(commit).collect();
        self.settle();
        stored
    }

    fn get(&self, store: &dyn BlockStore, texts: &[&str]) -> Result<Vec<Bytes>> {
        self.run(store.get_many(&ids(texts)))
    }

    fn listed(&self, store: &dyn BlockStore) -> BTreeSet<BlockId> {
        let mut listed = BTreeSet::new();
        let mut visit = |id, _| {
            assert!(listed.insert(id), "listed twice: {id}");
            ControlFlow::Continue(())
        };
        self.run(store.list(&mut visit)).expect("list");
        listed
    }

    /// Every object with its content.
    fn snapshot(&self) -> Vec<(ObjectKey, Bytes)> {
        let Some(objects) = self.objects() else { return Vec::new() };
        self.run(async {
            let page = objects.list("", None).await.expect("list");
            let mut contents = Vec::new();
            for object in page.objects {
                contents.push((object.key.clone(), objects.get(&object.key, None).await.expect("get")));
            }
            contents
        })
    }

    /// Flips one bit in the middle of the stored form of a block.
    fn damage(&self, stored: &Stored) {
        let objects = self.objects().expect("a store with objects");
        let (key, at) = match stored.location {
            BlockLocation::Frame { offset, len, .. } => (stored.object(), offset + len - 1),
            BlockLocation::Object => (stored.object(), 70),
        };
        self.run(async {
            let mut body = objects.get(&key, None).await.expect("stored").to_vec();
            body[at as usize] ^= 1;
            objects.delete(std::slice::from_ref(&key)).await.expect("delete");
            objects.put_new(&key, body.into()).await.expect("put");
        });
    }

    fn lose(&self, stored: &Stored) {
        let objects = self.objects().expect("a store with objects");
        self.run(objects.delete(&[stored.object()])).expect("delete");
    }
}

/// A block that the store has and the index knows.
#[derive(Clone, Copy, Debug)]
struct Stored {
    id: BlockId,
    location: BlockLocation,
    receipt: Receipt,
}

impl Stored {
    fn object(&self) -> ObjectKey {
        self.location.pack().map_or_else(|| keys::block(self.id), keys::pack)
    }

    /// What identifies the object in messages.
    fn name(&self) -> String {
        self.location.pack().map_or_else(|| self.id.to_string(), |pack| pack.to_string())
    }
}

/// The committed blocks.
#[derive(Default)]
struct TestIndex {
    rows: Mutex<HashMap<BlockId, (BlockLocation, Receipt)>>,
}

impl BlockIndex for TestIndex {
    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<(BlockLocation, Receipt)>>> {
        let rows = self.rows.lock().expect("lock");
        Ok(ids.iter().map(|id| rows.get(id).copied()).collect())
    }
}

/// A block of some length with `text` at its start.
fn block(text: &str) -> Block {
    let data = Bytes::from(format!("{text:-<100}"));
    Block { id: BlockId::of(&data), data }
}

fn id(text: &str) -> BlockId {
    block(text).id
}

fn noise(len: usize) -> Bytes {
    let random = SeededRandom::new(1);
    (0..len).map(|_| random.next_u64() as u8).collect()
}

fn ids(texts: &[&str]) -> Vec<BlockId> {
    texts.iter().map(|text| id(text)).collect()
}

fn data(texts: &[&str]) -> Vec<Bytes> {
    texts.iter().map(|text| block(text).data).collect()
}

type Check = fn(&dyn Fixture);

const CHECKS: &[(&str, Check)] = &[
    ("tickets are in the order of the blocks", tickets_are_in_the_order_of_the_blocks),
    ("a put block is readable at once", a_put_block_is_readable_at_once),
    ("a staged block survives the death of the process", a_staged_block_survives_the_death_of_the_process),
    ("a staged block is not stored again", a_staged_block_is_not_stored_again),
    ("a stored block is not stored again", a_stored_block_is_not_stored_again),
    ("a full disk is Full and loses nothing", a_full_disk_is_full_and_loses_nothing),
    ("sync makes staged blocks durable", sync_makes_staged_blocks_durable),
    ("seal sends what is staged", seal_sends_what_is_staged),
    ("a receipt tells the length of the object", a_receipt_tells_the_length_of_the_object),
    ("blocks come in the order asked for", blocks_come_in_the_order_asked_for),
    ("an unknown block is NotFound and named", an_unknown_block_is_not_found_and_named),
    ("a block whose object is gone is NotFound", a_block_whose_object_is_gone_is_not_found),
    ("a changed block is Corrupt and others are not", a_changed_block_is_corrupt_and_others_are_not),
    ("contains tells staged, stored and unknown blocks", contains_tells_staged_stored_and_unknown_blocks),
    ("verify looks past every cache", verify_looks_past_every_cache),
    ("list visits what is stored, once each", list_visits_what_is_stored_once_each),
    ("list ends where the visitor breaks", list_ends_where_the_visitor_breaks),
    ("delete removes whole objects", delete_removes_whole_objects),
    ("delete leaves and reports what others need", delete_leaves_and_reports_what_others_need),
];

fn tickets_are_in_the_order_of_the_blocks(fixture: &dyn Fixture) {
    let store = fixture.open();
    fixture.store(&*store, &["b"]);
    let tickets = fixture.put(&*store, &["c", "b", "a", "c"]);
    let order: Vec<_> = tickets.iter().map(|ticket| ticket.id).collect();
    assert_eq!(order, ids(&["c", "b", "a", "c"]));
}

fn a_put_block_is_readable_at_once(fixture: &dyn Fixture) {
    let store = fixture.open();
    let _tickets = fixture.put(&*store, &["a", "b"]);
    assert_eq!(fixture.get(&*store, &["a", "b"]).expect("get"), data(&["a", "b"]));
}

fn a_staged_block_survives_the_death_of_the_process(fixture: &dyn Fixture) {
    if fixture.disk().is_none() {
        return;
    }
    // Held until that process is dead: a ticket let go says that nobody needs the local bytes any more.
    let tickets = fixture.put(&*fixture.open(), &["a", "b"]);
    let store = fixture.open();
    drop(tickets);
    assert_eq!(fixture.get(&*store, &["a", "b"]).expect("get"), data(&["a", "b"]));
}

fn a_staged_block_is_not_stored_again(fixture: &dyn Fixture) {
    let store = fixture.open();
    let first = fixture.put(&*store, &["a"]);
    let second = fixture.put(&*store, &["a", "a"]);
    assert!(second.iter().all(|ticket| ticket.location == first[0].location));
    fixture.run(store.seal()).expect("seal");
    for ticket in first.iter().chain(&second) {
        fixture.run(ticket.upload.acknowledged()).expect("acknowledged");
    }
    assert!(fixture.snapshot().len() <= 1, "one object at most");
    assert_eq!(fixture.listed(&*store), BTreeSet::from([id("a")]));
}

fn a_stored_block_is_not_stored_again(fixture: &dyn Fixture) {
    let store = fixture.open();
    let first = fixture.store(&*store, &["a"]);
    let before = fixture.snapshot();
    let again = fixture.put(&*store, &["a"]);
    assert_eq!(again[0].location, first[0].location);
    assert!(again[0].upload.receipt().is_some(), "stored already");
    fixture.run(store.seal()).expect("seal");
    assert_eq!(fixture.snapshot(), before);
}

fn a_full_disk_is_full_and_loses_nothing(fixture: &dyn Fixture) {
    if fixture.disk().is_none() {
        return;
    }
    let store = fixture.open();
    let first = fixture.put(&*store, &["a"]);
    let large = noise(DISK_BYTES as usize + 1);
    let large = Block { id: BlockId::of(&large), data: large };
    let error = fixture.run(store.put_many(vec![large.clone()])).expect_err("no room");
    assert_eq!(error.kind, Kind::Full, "{error}");
    assert_eq!(fixture.get(&*store, &["a"]).expect("get"), data(&["a"]));
    assert!(fixture.run(store.contains_many(&[large.id])).expect("contains")[0].is_none());
    let more = fixture.put(&*store, &["b"]);
    fixture.run(store.seal()).expect("seal");
    for ticket in first.iter().chain(&more) {
        fixture.run(ticket.upload.acknowledged()).expect("acknowledged");
        fixture.run(store.verify(ticket.id)).expect("whole");
    }
}

fn sync_makes_staged_blocks_durable(fixture: &dyn Fixture) {
    let Some(disk) = fixture.disk() else { return };
    let random = SeededRandom::new(11);
    for round in 0..16 {
        let text = format!("round {round}");
        let store = fixture.open();
        let tickets = fixture.put(&*store, &[&text]);
        fixture.run(store.sync()).expect("sync");
        disk.crash(&random);
        let store = fixture.open();
        assert_eq!(fixture.get(&*store, &[&text]).expect("get"), data(&[&text]));
        drop(tickets);
    }
}

fn seal_sends_what_is_staged(fixture: &dyn Fixture) {
    let store = fixture.open();
    let tickets = fixture.put(&*store, &["a"]);
    fixture.run(store.seal()).expect("seal");
    fixture.run(tickets[0].upload.acknowledged()).expect("acknowledged");
    fixture.run(store.verify(id("a"))).expect("in the store");
}

fn a_receipt_tells_the_length_of_the_object(fixture: &dyn Fixture) {
    if fixture.objects().is_none() {
        return;
    }
    let store = fixture.open();
    let stored = fixture.store(&*store, &["a"]).remove(0);
    let objects = fixture.snapshot();
    let (_, body) = objects.iter().find(|(key, _)| *key == stored.object()).expect("stored");
    assert_eq!(stored.receipt.len, body.len() as u64);
}

fn blocks_come_in_the_order_asked_for(fixture: &dyn Fixture) {
    let store = fixture.open();
    fixture.store(&*store, &["a", "b", "c"]);
    let _staged = fixture.put(&*store, &["d"]);
    let asked = ["c", "a", "d", "c", "b", "a"];
    assert_eq!(fixture.get(&*store, &asked).expect("get"), data(&asked));
}

fn an_unknown_block_is_not_found_and_named(fixture: &dyn Fixture) {
    let store = fixture.open();
    fixture.store(&*store, &["a"]);
    let error = fixture.get(&*store, &["a", "b"]).expect_err("unknown");
    assert_eq!(error.kind, Kind::NotFound);
    assert!(error.detail.contains(&id("b").to_string()), "{error}");
    let error = fixture.run(store.verify(id("b"))).expect_err("unknown");
    assert_eq!(error.kind, Kind::NotFound);
}

fn a_block_whose_object_is_gone_is_not_found(fixture: &dyn Fixture) {
    if fixture.objects().is_none() {
        return;
    }
    let stored = fixture.store(&*fixture.open(), &["a"]).remove(0);
    fixture.lose(&stored);
    let store = fixture.open();
    for error in [fixture.get(&*store, &["a"]).map(drop), fixture.run(store.verify(id("a")))] {
        let error = error.expect_err("gone");
        assert_eq!(error.kind, Kind::NotFound, "{error}");
        assert!(error.detail.contains(&id("a").to_string()), "{error}");
        assert!(error.detail.contains(&stored.name()), "{error}");
    }
}

fn a_changed_block_is_corrupt_and_others_are_not(fixture: &dyn Fixture) {
    if fixture.objects().is_none() {
        return;
    }
    let stored = fixture.store(&*fixture.open(), &["a", "b", "c"]);
    fixture.damage(&stored[1]);
    let store = fixture.open();
    let error = fixture.get(&*store, &["a", "b", "c"]).expect_err("changed");
    assert_eq!(error.kind, Kind::Corrupt, "{error}");
    assert!(error.detail.contains(&id("b").to_string()), "{error}");
    assert!(error.detail.contains(&stored[1].name()), "{error}");
    assert_eq!(fixture.get(&*store, &["a", "c"]).expect("get"), data(&["a", "c"]));
}

fn contains_tells_staged_stored_and_unknown_blocks(fixture: &dyn Fixture) {
    let store = fixture.open();
    let stored = fixture.store(&*store, &["a"]);
    let staged = fixture.put(&*store, &["b"]);
    let found = fixture.run(store.contains_many(&ids(&["b", "x", "a"]))).expect("contains");
    let locations: Vec<_> = found.iter().map(|found| found.as_ref().map(|ticket| ticket.location)).collect();
    assert_eq!(locations, [Some(staged[0].location), None, Some(stored[0].location)]);
    assert!(found[2].as_ref().is_some_and(|ticket| ticket.upload.receipt().is_some()));
}

fn verify_looks_past_every_cache(fixture: &dyn Fixture) {
    if fixture.objects().is_none() {
        return;
    }
    let stored = fixture.store(&*fixture.open(), &["a"]).remove(0);
    let store = fixture.open();
    fixture.get(&*store, &["a"]).expect("get");
    fixture.run(store.verify(id("a"))).expect("whole");
    fixture.damage(&stored);
    let error = fixture.run(store.verify(id("a"))).expect_err("changed");
    assert_eq!(error.kind, Kind::Corrupt, "{error}");
}

fn list_visits_what_is_stored_once_each(fixture: &dyn Fixture) {
    let store = fixture.open();
    let stored = fixture.store(&*store, &["a", "b"]);
    fixture.store(&*store, &["c"]);
    // Blocks of packs stay where they are until something seals their pack.
    let _staged = stored[0].location.pack().map(|_| fixture.put(&*store, &["d"]));
    assert_eq!(fixture.listed(&*store), ids(&["a", "b", "c"]).into_iter().collect());
}

fn list_ends_where_the_visitor_breaks(fixture: &dyn Fixture) {
    let store = fixture.open();
    fixture.store(&*store, &["a", "b", "c"]);
    let mut visited = 0;
    let mut visit = |_, _| {
        visited += 1;
        ControlFlow::Break(())
    };
    fixture.run(store.list(&mut visit)).expect("list");
    assert_eq!(visited, 1);
}

fn delete_removes_whole_objects(fixture: &dyn Fixture) {
    let store = fixture.open();
    fixture.store(&*store, &["a", "b"]);
    fixture.store(&*store, &["c"]);
    let doomed = ids(&["a", "b", "never there"]);
    assert_eq!(fixture.run(store.delete(&doomed)).expect("delete"), []);
    assert_eq!(fixture.run(store.delete(&doomed)).expect("delete again"), []);
    assert_eq!(fixture.listed(&*store), BTreeSet::from([id("c")]));
    let error = fixture.get(&*store, &["a"]).expect_err("deleted");
    assert_eq!(error.kind, Kind::NotFound);
    assert_eq!(fixture.get(&*store, &["c"]).expect("get"), data(&["c"]));
}

fn delete_leaves_and_reports_what_others_need(fixture: &dyn Fixture) {
    let store = fixture.open();
    let stored = fixture.store(&*store, &["a", "b"]);
    let shared = stored[0].location.pack().is_some();
    let left = fixture.run(store.delete(&ids(&["a"]))).expect("delete");
    let expected = if shared { ids(&["a"]) } else { Vec::new() };
    assert_eq!(left, expected);
    assert_eq!(fixture.listed(&*store).contains(&id("a")), shared);
    assert_eq!(fixture.get(&*store, &["b"]).expect("get"), data(&["b"]));
}

// The stores under test.

/// Room of the disk that blocks are staged on.
const DISK_BYTES: u64 = 1 << 20;

struct Memory {
    runtime: TokioRuntime,
    store: Arc<InMemoryBlockStore>,
}

impl Memory {
    fn new() -> Self {
        Self { runtime: runtime(), store: Arc::default() }
    }
}

impl Fixture for Memory {
    fn runtime(&self) -> &TokioRuntime {
        &self.runtime
    }

    fn open(&self) -> Arc<dyn BlockStore> {
        self.store.clone()
    }

    fn index(&self) -> Option<&TestIndex> {
        None
    }

    fn objects(&self) -> Option<Arc<dyn ImmutableObjectStore>> {
        None
    }

    fn disk(&self) -> Option<&MemoryDirectory> {
        None
    }

    fn settle(&self) {}
}

fn runtime() -> TokioRuntime {
    TokioRuntime::new(2, 4).expect("threads for a test")
}

/// A store over objects that stages on a disk.
struct Staged {
    runtime: TokioRuntime,
    objects: Arc<dyn ImmutableObjectStore>,
    disk: MemoryDirectory,
    index: Arc<TestIndex>,
    /// Processes so far; each has its own writer id.
    opened: AtomicU64,
    layout: Layout,
    running: Mutex<Option<Running>>,
}

#[derive(Clone, Copy)]
enum Layout {
    Framed,
    FramedCached,
    Single,
}

/// The process that has the disk.
enum Running {
    /// With the tickets of what it recovered: nobody has committed that.
    Framed {
        store: Arc<FramedBlockStore>,
        _recovered: Vec<BlockTicket>,
    },
    Single {
        store: Arc<SingleBlockStore>,
        _recovered: Vec<BlockTicket>,
    },
}

impl Staged {
    fn new(objects: Arc<dyn ImmutableObjectStore>, layout: Layout) -> Self {
        Self {
            runtime: runtime(),
            objects,
            disk: MemoryDirectory::with_capacity(DISK_BYTES),
            index: Arc::default(),
            opened: AtomicU64::new(1),
            layout,
            running: Mutex::default(),
        }
    }

    fn in_memory(layout: Layout) -> Self {
        Self::new(Arc::new(MemoryObjectStore::new()), layout)
    }

    /// Names of files that hold blocks the store may not have.
    fn staged_files(&self) -> Vec<String> {
        use gravitonfs::store::device::Directory as _;
        let files = self.disk.list().expect("list").into_iter().map(|(name, _)| name);
        files.filter(|name| name.ends_with(".staged") || name.ends_with(".block")).collect()
    }

    fn drop_caches(&self) {
        use gravitonfs::store::device::Directory as _;
        let staged = self.staged_files();
        for (name, _) in self.disk.list().expect("list") {
            if !staged.contains(&name) {
                self.disk.remove(&name).expect("remove");
            }
        }
    }

    fn stop(&self) {
        match self.running.lock().expect("lock").take() {
            None => {}
            Some(Running::Framed { store, .. }) => self.runtime.block_on(store.shutdown()),
            Some(Running::Single { store, .. }) => self.runtime.block_on(store.shutdown()),
        }
    }

    fn budget(&self) -> SpillBudget {
        let limits = SpillLimits { bytes_max: DISK_BYTES, free_bytes_min: 0 };
        SpillBudget::new(limits, Arc::new(self.disk.clone()), self.runtime.clock())
    }

    fn single(&self) -> (Arc<SingleBlockStore>, Vec<BlockTicket>) {
        let store = SingleBlockStore::new(SingleParts {
            objects: self.objects.clone(),
            staged: Arc::new(self.disk.clone()),
            index: self.index.clone(),
            clock: self.runtime.clock(),
            spawner: self.runtime.spawner(),
            budget: self.budget(),
            compression: Compression::Zstd,
            uploads: SemaphoreLimit::new(64 << 20),
            downloads: SemaphoreLimit::new(64 << 20),
        });
        let recovered = self.runtime.block_on(store.recover()).expect("recover");
        (Arc::new(store), recovered.tickets)
    }

    fn framed(&self, cached: bool) -> (Arc<FramedBlockStore>, Vec<BlockTicket>) {
        let staged = Arc::new(self.disk.clone());
        let limits = PackCacheLimits { bytes_max: DISK_BYTES, free_bytes_min: 0 };
        let cache = PackCache::open(Arc::new(MemoryDirectory::new()), staged.clone(), limits).expect("open");
        let parts = FramedParts {
            objects: self.objects.clone(),
            staged,
            index: self.index.clone(),
            clock: self.runtime.clock(),
            spawner: self.runtime.spawner(),
            budget: self.budget(),
            cache: cached.then(|| Arc::new(cache)),
            uploads: SemaphoreLimit::new(64 << 20),
            downloads: SemaphoreLimit::new(64 << 20),
        };
        let writer = WriterId(self.opened.fetch_add(1, Ordering::Relaxed).into());
        let mut options = FramedOptions::new(writer);
        // Only what a check asks for is sent.
        options.seal_after = Duration::from_secs(3600);
        let store = Arc::new(FramedBlockStore::new(parts, options));
        let recovered = self.runtime.block_on(store.recover()).expect("recover");
        (store, recovered.tickets)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Fixture for Staged {
    fn runtime(&self) -> &TokioRuntime {
        &self.runtime
    }

    fn open(&self) -> Arc<dyn BlockStore> {
        self.stop();
        self.drop_caches();
        let cached = matches!(self.layout, Layout::FramedCached);
        let (running, store): (_, Arc<dyn BlockStore>) = match self.layout {
            Layout::Framed | Layout::FramedCached => {
                let (store, _recovered) = self.framed(cached);
                (Running::Framed { store: store.clone(), _recovered }, store)
            }
            Layout::Single => {
                let (store, _recovered) = self.single();
                (Running::Single { store: store.clone(), _recovered }, store)
            }
        };
        *self.running.lock().expect("lock") = Some(running);
        // As it is mounted: behind the cache in memory.
        if cached { Arc::new(BlockCache::new(store, DISK_BYTES)) } else { store }
    }

    fn index(&self) -> Option<&TestIndex> {
        Some(&self.index)
    }

    fn objects(&self) -> Option<Arc<dyn ImmutableObjectStore>> {
        Some(self.objects.clone())
    }

    fn disk(&self) -> Option<&MemoryDirectory> {
        Some(&self.disk)
    }

    fn settle(&self) {
        while !self.staged_files().is_empty() {
            std::thread::yield_now();
        }
    }
}

fn check_all(fixture: impl Fn() -> Box<dyn Fixture>) {
    for (name, check) in CHECKS {
        println!("{name}");
        check(&*fixture());
    }
}

#[test]
fn the_memory_store_keeps_the_contract() {
    check_all(|| Box::new(Memory::new()));
}

#[test]
fn the_framed_store_keeps_the_contract() {
    check_all(|| Box::new(Staged::in_memory(Layout::Framed)));
    check_all(|| Box::new(Staged::in_memory(Layout::FramedCached)));
}

#[test]
fn the_single_store_keeps_the_contract() {
    check_all(|| Box::new(Staged::in_memory(Layout::Single)));
}

#[test]
fn framed_and_single_stores_keep_the_contract_over_a_directory() {
    for layout in [Layout::Framed, Layout::Single] {
        let root = tempfile::tempdir().expect("temporary directory");
        let made = AtomicU64::new(0);
        check_all(|| {
            let volume = root.path().join(made.fetch_add(1, Ordering::Relaxed).to_string());
            let objects = DirObjectStore::create(volume).expect("create");
            Box::new(Staged::new(Arc::new(objects), layout))
        });
    }
}

// Broken stores: each breaks one line, and that line's check must notice.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    TicketsSorted,
    PutForgets,
    StagesInMemory,
    StagesTwice,
    StoresTwice,
    FullSwallowed,
    SyncDoesNothing,
    SealDoesNothing,
    ReceiptOfNothing,
    SortsAnswers,
    UnknownIsEmpty,
    GoneIsUnavailable,
    ChangedIsBelieved,
    ContainsEverything,
    VerifyAsksTheCache,
    ListsTwice,
    IgnoresBreak,
    DeletesNothing,
    DeletesTooMuch,
}

const FAULTS: &[(&str, Fault)] = &[
    ("tickets are in the order of the blocks", Fault::TicketsSorted),
    ("a put block is readable at once", Fault::PutForgets),
    ("a staged block survives the death of the process", Fault::StagesInMemory),
    ("a staged block is not stored again", Fault::StagesTwice),
    ("a stored block is not stored again", Fault::StoresTwice),
    ("a full disk is Full and loses nothing", Fault::FullSwallowed),
    ("sync makes staged blocks durable", Fault::SyncDoesNothing),
    ("seal sends what is staged", Fault::SealDoesNothing),
    ("a receipt tells the length of the object", Fault::ReceiptOfNothing),
    ("blocks come in the order asked for", Fault::SortsAnswers),
    ("an unknown block is NotFound and named", Fault::UnknownIsEmpty),
    ("a block whose object is gone is NotFound", Fault::GoneIsUnavailable),
    ("a changed block is Corrupt and others are not", Fault::ChangedIsBelieved),
    ("contains tells staged, stored and unknown blocks", Fault::ContainsEverything),
    ("verify looks past every cache", Fault::VerifyAsksTheCache),
    ("list visits what is stored, once each", Fault::ListsTwice),
    ("list ends where the visitor breaks", Fault::IgnoresBreak),
    ("delete removes whole objects", Fault::DeletesNothing),
    ("delete leaves and reports what others need", Fault::DeletesTooMuch),
];

struct FaultyFixture {
    inner: Staged,
    fault: Fault,
}

struct Faulty {
    inner: Arc<dyn BlockStore>,
    fault: Fault,
    objects: Arc<dyn ImmutableObjectStore>,
    /// What it should have passed on.
    kept: InMemoryBlockStore,
}

impl Fixture for FaultyFixture {
    fn runtime(&self) -> &TokioRuntime {
        self.inner.runtime()
    }

    fn open(&self) -> Arc<dyn BlockStore> {
        let (inner, objects) = (self.inner.open(), self.inner.objects.clone());
        Arc::new(Faulty { inner, fault: self.fault, objects, kept: InMemoryBlockStore::new() })
    }

    fn index(&self) -> Option<&TestIndex> {
        self.inner.index()
    }

    fn objects(&self) -> Option<Arc<dyn ImmutableObjectStore>> {
        self.inner.objects()
    }

    fn disk(&self) -> Option<&MemoryDirectory> {
        self.inner.disk()
    }

    fn settle(&self) {
        // Some faults leave files staged for ever.
        if self.fault == Fault::None {
            self.inner.settle();
        }
    }
}

fn with_receipt(ticket: BlockTicket, len: u64) -> BlockTicket {
    let receipt = Receipt { len, footer: Hash::ZERO };
    BlockTicket { upload: UploadTicket::fulfilled(receipt), ..ticket }
}

#[async_trait]
impl BlockStore for Faulty {
    async fn put_many(&self, blocks: Vec<Block>) -> Result<Vec<BlockTicket>> {
        match self.fault {
            Fault::TicketsSorted => {
                let mut tickets = self.inner.put_many(blocks).await?;
                tickets.sort_by_key(|ticket| ticket.id);
                Ok(tickets)
            }
            Fault::PutForgets => InMemoryBlockStore::new().put_many(blocks).await,
            Fault::StagesInMemory => self.kept.put_many(blocks).await,
            Fault::StagesTwice | Fault::StoresTwice => {
                let stored = |block: &Block| keys::block(block.id);
                let tickets = self.inner.put_many(blocks.clone()).await?;
                let is_stored = tickets.iter().any(|ticket| ticket.upload.receipt().is_some());
                if is_stored == (self.fault == Fault::StoresTwice) {
                    for block in &blocks {
                        // Another copy, under another name.
                        let _ = self.objects.put_new(&stored(block), block.data.clone()).await;
                    }
                }
                Ok(tickets)
            }
            Fault::FullSwallowed => match self.inner.put_many(blocks.clone()).await {
                Err(error) if error.kind == Kind::Full => self.kept.put_many(blocks).await,
                other => other,
            },
            Fault::ReceiptOfNothing => {
                let tickets = self.inner.put_many(blocks).await?;
                self.inner.seal().await?;
                let mut shortened = Vec::new();
                for ticket in tickets {
                    ticket.upload.acknowledged().await?;
                    shortened.push(with_receipt(ticket, 1));
                }
                Ok(shortened)
            }
            _ => self.inner.put_many(blocks).await,
        }
    }

    async fn sync(&self) -> Result<()> {
        if self.fault == Fault::SyncDoesNothing { Ok(()) } else { self.inner.sync().await }
    }

    async fn seal(&self) -> Result<()> {
        if self.fault == Fault::SealDoesNothing {
            // Also a store that would be waited for without end is found out here.
            return Err(Error::new(Kind::Internal, "nothing was sealed"));
        }
        self.inner.seal().await
    }

    async fn get_many(&self, ids: &[BlockId]) -> Result<Vec<Bytes>> {
        if self.fault == Fault::StagesInMemory {
            return self.kept.get_many(ids).await;
        }
        let mut outcome = self.inner.get_many(ids).await;
        match (self.fault, &mut outcome) {
            (Fault::SortsAnswers, Ok(blocks)) => blocks.sort(),
            (Fault::UnknownIsEmpty, Err(error)) if error.kind == Kind::NotFound => {
                outcome = Ok(vec![Bytes::new(); ids.len()]);
            }
            (Fault::GoneIsUnavailable, Err(error)) if error.kind == Kind::NotFound => {
                error.kind = Kind::Unavailable;
            }
            (Fault::ChangedIsBelieved, Err(error)) if error.kind == Kind::Corrupt => {
                outcome = Ok(vec![Bytes::new(); ids.len()]);
            }
            _ => {}
        }
        outcome
    }

    async fn contains_many(&self, ids: &[BlockId]) -> Result<Vec<Option<BlockTicket>>> {
        let found = self.inner.contains_many(ids).await?;
        if self.fault != Fault::ContainsEverything {
            return Ok(found);
        }
        let invented = |id: &BlockId| BlockTicket {
            id: *id,
            location: BlockLocation::Object,
            upload: UploadTicket::fulfilled(Receipt { len: 1, footer: Hash::ZERO }),
        };
        Ok(ids.iter().zip(found).map(|(id, found)| found.or_else(|| Some(invented(id)))).collect())
    }

    async fn verify(&self, id: BlockId) -> Result<()> {
        if self.fault == Fault::VerifyAsksTheCache {
            return self.inner.get_many(&[id]).await.map(drop);
        }
        self.inner.verify(id).await
    }

    async fn list(
        &self,
        visit: &mut (dyn FnMut(BlockId, BlockLocation) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        match self.fault {
            Fault::ListsTwice => {
                self.inner.list(visit).await?;
                self.inner.list(visit).await
            }
            Fault::IgnoresBreak => {
                let mut visit_all = |id, location| {
                    let _ = visit(id, location);
                    ControlFlow::Continue(())
                };
                self.inner.list(&mut visit_all).await
            }
            _ => self.inner.list(visit).await,
        }
    }

    async fn delete(&self, ids: &[BlockId]) -> Result<Vec<BlockId>> {
        match self.fault {
            Fault::DeletesNothing => Ok(Vec::new()),
            Fault::DeletesTooMuch => {
                let page = self.objects.list("", None).await?;
                let keys: Vec<_> = page.objects.into_iter().map(|object| object.key).collect();
                self.objects.delete(&keys).await?;
                Ok(Vec::new())
            }
            _ => self.inner.delete(ids).await,
        }
    }
}

#[test]
fn every_check_finds_its_fault_and_only_faults() {
    assert_eq!(CHECKS.len(), FAULTS.len());
    for ((name, check), (fault_name, fault)) in CHECKS.iter().zip(FAULTS) {
        assert_eq!(name, fault_name);
        let fixture = |fault| FaultyFixture { inner: Staged::in_memory(Layout::FramedCached), fault };
        check(&fixture(Fault::None));
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&fixture(*fault))));
        assert!(outcome.is_err(), "the check did not notice: {name} ({fault:?})");
    }
}
