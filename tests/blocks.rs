//! What the framed block store does when time passes, stores fail, disks lie and processes die.

#![allow(clippy::disallowed_methods, reason = "tests run on the machine and not in a simulation")]

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use gravitonfs::backend::memory_device::MemoryDirectory;
use gravitonfs::backend::memory_object::MemoryObjectStore;
use gravitonfs::base::hash::{BlockId, Hash};
use gravitonfs::base::ids::{PackId, WriterId};
use gravitonfs::base::limits::MIB;
use gravitonfs::base::range::ByteRange;
use gravitonfs::base::time::Random as _;
use gravitonfs::content::framed::{FramedBlockStore, FramedOptions, FramedParts};
use gravitonfs::content::pack_cache::{PackCache, PackCacheLimits};
use gravitonfs::content::pack_reader::PackFooter;
use gravitonfs::content::spill::{SpillBudget, SpillLimits};
use gravitonfs::rt::{ManualClock, SeededRandom, SemaphoreLimit, Spawner, TokioRuntime};
use gravitonfs::store::block::{Block, BlockIndex, BlockLocation, BlockStore as _, BlockTicket, Receipt};
use gravitonfs::store::device::Directory;
use gravitonfs::store::object::{Fencing, ImmutableObjectStore, ListPage, ObjectKey, ObjectMeta};
use gravitonfs::store::{Error, Kind, Result, keys};

/// Objects that fail when told to and count what is asked of them.
#[derive(Default)]
struct Objects {
    inner: MemoryObjectStore,
    down: AtomicBool,
    /// How much time passes while a pack is sent.
    put_takes: Mutex<Option<(Arc<ManualClock>, Duration)>>,
    puts: AtomicU64,
    gets: AtomicU64,
    get_bytes: AtomicU64,
}

impl Objects {
    fn check(&self) -> Result<()> {
        let down = self.down.load(Ordering::SeqCst);
        if down { Err(Error::new(Kind::Unavailable, "store is down")) } else { Ok(()) }
    }

    fn gets(&self) -> u64 {
        self.gets.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl ImmutableObjectStore for Objects {
    async fn put_new(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.check()?;
        if let Some((clock, takes)) = &*self.put_takes.lock().expect("lock") {
            clock.advance(*takes);
        }
        self.inner.put_new(key, body).await
    }

    async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.check()?;
        // Lets others run, as a network would: requests overlap.
        tokio::task::yield_now().await;
        let bytes = self.inner.get(key, range).await?;
        self.get_bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok(bytes)
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.check()?;
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
        self.inner.list(prefix, start_after).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        self.inner.delete(keys).await
    }

    fn fencing(&self) -> Fencing {
        self.inner.fencing()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

#[derive(Default)]
struct Index {
    rows: Mutex<HashMap<BlockId, (BlockLocation, Receipt)>>,
}

impl BlockIndex for Index {
    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<(BlockLocation, Receipt)>>> {
        let rows = self.rows.lock().expect("lock");
        Ok(ids.iter().map(|id| rows.get(id).copied()).collect())
    }
}

/// A machine with one volume.
struct Machine {
    runtime: TokioRuntime,
    clock: Arc<ManualClock>,
    objects: Arc<Objects>,
    index: Arc<Index>,
    staged: MemoryDirectory,
    cached: MemoryDirectory,
    cache_bytes_max: u64,
    budget: SpillBudget,
    writers: AtomicU64,
}

impl Machine {
    fn new() -> Self {
        let (staged, clock) = (MemoryDirectory::new(), Arc::new(ManualClock::new()));
        let limits = SpillLimits { bytes_max: 64 * MIB, free_bytes_min: 0 };
        Self {
            runtime: TokioRuntime::new(2, 4).expect("threads for a test"),
            objects: Arc::default(),
            index: Arc::default(),
            budget: SpillBudget::new(limits, Arc::new(staged.clone()), clock.clone()),
            staged,
            clock,
            cached: MemoryDirectory::new(),
            cache_bytes_max: 0,
            writers: AtomicU64::new(1),
        }
    }

    fn with_cache(bytes_max: u64) -> Self {
        Self { cache_bytes_max: bytes_max, ..Self::new() }
    }

    /// A process that takes the volume.
    fn open(&self) -> (FramedBlockStore, Vec<BlockTicket>) {
        self.open_with(|_| ())
    }

    fn open_with(&self, set: impl FnOnce(&mut FramedOptions)) -> (FramedBlockStore, Vec<BlockTicket>) {
        let staged: Arc<dyn Directory> = Arc::new(self.staged.clone());
        let limits = PackCacheLimits { bytes_max: self.cache_bytes_max, free_bytes_min: 0 };
        let cache = (self.cache_bytes_max != 0).then(|| {
            let cache = PackCache::open(Arc::new(self.cached.clone()), staged.clone(), limits);
            Arc::new(cache.expect("open cache"))
        });
        let parts = FramedParts {
            objects: self.objects.clone(),
            staged,
            index: self.index.clone(),
            clock: self.clock.clone(),
            spawner: self.runtime.spawner(),
            budget: self.budget.clone(),
            cache,
            uploads: SemaphoreLimit::new(64 * MIB),
            downloads: SemaphoreLimit::new(64 * MIB),
        };
        let writer = WriterId(self.writers.fetch_add(1, Ordering::SeqCst).into());
        let mut options = FramedOptions::new(writer);
        options.pack_bytes_target = 2 * MIB;
        set(&mut options);
        let store = FramedBlockStore::new(parts, options);
        let recovered = self.run(store.recover()).expect("recover");
        (store, recovered.tickets)
    }

    fn run<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    fn put(&self, store: &FramedBlockStore, blocks: &[Block]) -> Vec<BlockTicket> {
        self.run(store.put_many(blocks.to_vec())).expect("put")
    }

    /// Puts blocks and commits them once they are stored.
    fn store(&self, store: &FramedBlockStore, blocks: &[Block]) -> Vec<(PackId, ByteRange)> {
        let tickets = self.put(store, blocks);
        self.run(store.drain()).expect("drain");
        let commit = |ticket: BlockTicket| {
            let receipt = ticket.upload.receipt().expect("drained");
            self.index.rows.lock().expect("lock").insert(ticket.id, (ticket.location, receipt));
            let BlockLocation::Frame { pack, offset, len } = ticket.location else {
                panic!("not in a pack: {ticket:?}")
            };
            (pack, ByteRange::at(offset.into(), len.into()))
        };
        let stored = tickets.into_iter().map(commit).collect();
        while self.files(&self.staged).iter().any(|name| name.ends_with(".staged")) {
            std::thread::yield_now();
        }
        stored
    }

    fn get(&self, store: &FramedBlockStore, blocks: &[Block]) -> Result<()> {
        let ids: Vec<_> = blocks.iter().map(|block| block.id).collect();
        let found = self.run(store.get_many(&ids))?;
        assert!(found.iter().zip(blocks).all(|(found, block)| *found == block.data), "other bytes");
        Ok(())
    }

    fn files(&self, directory: &MemoryDirectory) -> Vec<String> {
        directory.list().expect("list").into_iter().map(|(name, _)| name).collect()
    }

    /// Advances the clock until `done`, as time passes while tasks run.
    fn pass_time_until(&self, mut done: impl FnMut() -> bool) {
        while !done() {
            self.clock.advance(Duration::from_secs(1));
            std::thread::yield_now();
        }
    }
}

impl Machine {
    /// A store whose uploads may give way; one pack is stored, another just sealed.
    fn with_a_second_pack_sealed(&self) -> FramedBlockStore {
        let (store, _) = self.open_with(|options| options.give_way = true);
        let all = blocks(14, 300_000);
        let (first, second) = all.split_at(7);
        let tickets = self.put(&store, first);
        while tickets[0].upload.receipt().is_none() {
            std::thread::yield_now();
        }
        self.clock.advance(Duration::from_secs(1));
        self.put(&store, second);
        store
    }

    fn puts(&self) -> u64 {
        self.objects.puts.load(Ordering::SeqCst)
    }
}

#[test]
fn uploads_to_a_fast_store_wait_until_writing_pauses() {
    let machine = Machine::new();
    let store = machine.with_a_second_pack_sealed();
    machine.clock.advance(Duration::from_millis(200));
    machine.run(tokio::task::yield_now());
    assert_eq!(machine.puts(), 1, "packs are being filled");
    machine.pass_time_until(|| 2 <= machine.puts());
    machine.run(store.shutdown());
}

#[test]
fn uploads_to_a_slow_store_do_not_wait() {
    let machine = Machine::new();
    let second = Duration::from_secs(1);
    *machine.objects.put_takes.lock().expect("lock") = Some((machine.clock.clone(), second));
    let store = machine.with_a_second_pack_sealed();
    while machine.puts() < 2 {
        std::thread::yield_now();
    }
    machine.run(store.shutdown());
}

/// Incompressible blocks of `len` bytes, all different.
fn blocks(count: usize, len: usize) -> Vec<Block> {
    let random = SeededRandom::new(count as u64 ^ len as u64);
    let block = |_| {
        let data: Bytes = (0..len).map(|_| random.next_u64() as u8).collect();
        Block { id: BlockId::of(&data), data }
    };
    (0..count).map(block).collect()
}

#[test]
fn a_pack_is_sealed_by_age_and_not_before() {
    let machine = Machine::new();
    let (store, _) = machine.open();
    let tickets = machine.put(&store, &blocks(1, 100));
    machine.clock.advance(Duration::from_millis(1999));
    assert_eq!(store.pending().oldest, Some(Duration::from_millis(1999)));
    assert_eq!(machine.objects.puts.load(Ordering::SeqCst), 0);
    machine.pass_time_until(|| tickets[0].upload.receipt().is_some());
    assert_eq!(store.pending(), Default::default());
    machine.run(store.shutdown());
}

#[test]
fn a_pack_is_sealed_by_size_and_none_is_larger() {
    let machine = Machine::new();
    let (store, _) = machine.open();
    let stored = machine.store(&store, &blocks(30, 300_000));
    let mut packs: Vec<_> = stored.iter().map(|(pack, _)| pack.number).collect();
    packs.dedup();
    assert_eq!(packs, [0, 1, 2, 3, 4], "six blocks fit a pack, in the order they were put");
    assert!(stored.iter().all(|(_, range)| range.end <= 2 * MIB));
    machine.run(store.shutdown());
}

#[test]
fn an_upload_is_repeated_until_the_store_answers_and_says_why_it_waits() {
    let machine = Machine::new();
    let (store, _) = machine.open();
    machine.objects.down.store(true, Ordering::SeqCst);
    let tickets = machine.put(&store, &blocks(1, 100));
    machine.run(store.seal()).expect("seal");
    machine.pass_time_until(|| 5 <= machine.objects.puts.load(Ordering::SeqCst));
    assert_eq!(store.pending().last_error.as_deref(), Some("store is down"));
    assert_eq!(tickets[0].upload.receipt(), None);
    assert_eq!(machine.budget.used_bytes(), store.pending().bytes);
    machine.get(&store, &blocks(1, 100)).expect("readable meanwhile");
    machine.objects.down.store(false, Ordering::SeqCst);
    machine.pass_time_until(|| tickets[0].upload.receipt().is_some());
    assert_eq!((store.pending(), machine.budget.used_bytes()), (Default::default(), 0));
    machine.run(store.shutdown());
}

#[test]
fn shutdown_tells_those_who_wait_and_keeps_what_is_staged() {
    let machine = Machine::new();
    let (store, _) = machine.open();
    machine.objects.down.store(true, Ordering::SeqCst);
    let tickets = machine.put(&store, &blocks(1, 100));
    machine.run(store.seal()).expect("seal");
    machine.run(store.shutdown());
    let error = machine.run(tickets[0].upload.acknowledged()).expect_err("it will not come");
    assert_eq!(error.kind, Kind::Unavailable);
    machine.objects.down.store(false, Ordering::SeqCst);
    let (store, recovered) = machine.open();
    machine.run(recovered[0].upload.acknowledged()).expect("sent by the next process");
    machine.get(&store, &blocks(1, 100)).expect("readable");
    machine.run(store.shutdown());
}

/// A pack was stored, the answer was lost, and a power cut took the last of its frames from the local disk. The next
/// process must not wait for ever for a name that is taken.
#[test]
fn a_pack_that_is_stored_already_is_accepted_also_if_it_holds_more() {
    let machine = Machine::new();
    let all = blocks(3, 1000);
    let (store, _) = machine.open();
    let tickets = machine.put(&store, &all);
    machine.run(store.drain()).expect("drain");
    machine.run(store.shutdown());
    let name = machine.files(&machine.staged).pop().expect("held by the tickets");
    machine.staged.open(&name).expect("open").set_len(2 * 1060 + 17).expect("tear");
    let (store, recovered) = machine.open();
    assert_eq!(recovered.iter().map(|ticket| ticket.id).collect::<Vec<_>>(), [all[0].id, all[1].id]);
    let receipt = machine.run(recovered[0].upload.acknowledged()).expect("accepted");
    assert_eq!(Some(receipt), tickets[0].upload.receipt());
    machine.run(store.shutdown());
}

#[test]
fn recovery_keeps_exactly_the_complete_frames_wherever_the_file_is_torn() {
    let machine = Machine::new();
    let all = blocks(3, 40);
    machine.objects.down.store(true, Ordering::SeqCst);
    let (store, _) = machine.open();
    machine.put(&store, &all);
    machine.run(store.shutdown());
    let name = machine.files(&machine.staged).pop().expect("staged");
    let device = machine.staged.open(&name).expect("open");
    let len = device.len().expect("len");
    assert_eq!(len, 3 * 100);
    for torn in (0..=len).rev() {
        device.set_len(torn).expect("tear");
        let (store, recovered) = machine.open();
        assert_eq!(recovered.len() as u64, torn / 100, "torn at {torn}");
        let kept = all.get(..recovered.len()).expect("no more than were put");
        machine.get(&store, kept).expect("readable");
        machine.run(store.shutdown());
    }
}

#[test]
fn a_receipt_names_the_footer_that_is_stored() {
    let machine = Machine::new();
    let (store, _) = machine.open();
    let block = blocks(1, 100).remove(0);
    let (pack, _) = machine.store(&store, std::slice::from_ref(&block))[0];
    let body = machine.run(machine.objects.get(&keys::pack(pack), None)).expect("stored");
    let footer = PackFooter::parse(&body[body.len() - 64..], body.len() as u64).expect("footer");
    let (_, receipt) = machine.index.rows.lock().expect("lock")[&block.id];
    assert_eq!(receipt.footer, Hash::of(&body[footer.directory.start as usize..]));
    assert_eq!((receipt.len, footer.id), (body.len() as u64, pack));
    machine.run(store.shutdown());
}

#[test]
fn blocks_side_by_side_come_with_one_request() {
    let machine = Machine::new();
    let (store, _) = machine.open();
    let all = blocks(20, 10_000);
    machine.store(&store, &all);
    machine.get(&store, &all).expect("get");
    assert_eq!(machine.objects.gets(), 1);
    machine.run(store.shutdown());
}

/// Runs blocking work at once, so that calls polled one after the other meet where the test wants them to.
struct Inline(Arc<dyn Spawner>);

impl Spawner for Inline {
    fn spawn(&self, name: &'static str, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(name, future);
    }

    fn spawn_blocking(&self, _: &'static str, work: Box<dyn FnOnce() + Send>) {
        work();
    }
}

#[test]
fn callers_that_miss_the_same_range_share_its_request() {
    let machine = Machine::new();
    let (store, _) = machine.open();
    let all = blocks(5, 10_000);
    machine.store(&store, &all);
    let reader = machine.reader(machine.index.clone(), Arc::new(Inline(machine.runtime.spawner())));
    let ids: Vec<_> = all.iter().map(|block| block.id).collect();
    machine.run(async {
        let calls = (0..8).map(|n| reader.get_many(&ids[n % 4..]));
        for (n, outcome) in futures_util::future::join_all(calls).await.into_iter().enumerate() {
            assert_eq!(outcome.expect("get")[0], all[n % 4].data);
        }
    });
    assert_eq!(machine.objects.gets(), 1);
    machine.run(reader.shutdown());
    machine.run(store.shutdown());
}

#[test]
fn what_is_on_its_way_is_not_asked_for_again_though_more_is_wanted() {
    let machine = Machine::new();
    let (store, _) = machine.open();
    let all = blocks(5, 10_000);
    let frames = machine.store(&store, &all);
    let reader = machine.reader(machine.index.clone(), Arc::new(Inline(machine.runtime.spawner())));
    let ids: Vec<_> = all.iter().map(|block| block.id).collect();
    machine.run(async {
        let (first, second) = tokio::join!(reader.get_many(&ids[..3]), reader.get_many(&ids[1..]));
        assert_eq!(first.expect("get").last(), Some(&all[2].data));
        assert_eq!(second.expect("get"), all[1..].iter().map(|block| block.data.clone()).collect::<Vec<_>>());
    });
    let stored: u64 = frames.iter().map(|(_, range)| range.len()).sum();
    assert_eq!((machine.objects.gets(), machine.objects.get_bytes.load(Ordering::SeqCst)), (2, stored));
    machine.run(reader.shutdown());
    machine.run(store.shutdown());
}

#[test]
fn from_the_second_miss_on_the_neighbourhood_comes_too() {
    let machine = Machine::with_cache(64 * MIB);
    let (store, _) = machine.open();
    let all = blocks(100, 10_000);
    machine.store(&store, &all);
    machine.run(store.shutdown());
    machine.cached_files_lost();
    let (store, _) = machine.open();
    for block in &all {
        machine.get(&store, std::slice::from_ref(block)).expect("get");
    }
    assert_eq!(machine.objects.gets(), 2);
    machine.run(store.shutdown());
    let (store, _) = machine.open();
    machine.get(&store, &all).expect("get");
    assert_eq!(machine.objects.gets(), 2, "the cache outlives the process");
    machine.run(store.shutdown());
}

#[test]
fn an_uploaded_pack_is_read_where_it_was_staged() {
    let machine = Machine::with_cache(64 * MIB);
    let (store, _) = machine.open();
    let all = blocks(10, 10_000);
    machine.store(&store, &all);
    machine.get(&store, &all).expect("get");
    assert_eq!(machine.objects.gets(), 0);
    machine.run(store.shutdown());
}

#[test]
fn a_damaged_cache_costs_a_request_and_nothing_else() {
    let machine = Machine::with_cache(64 * MIB);
    let (store, _) = machine.open();
    let all = blocks(3, 1000);
    machine.store(&store, &all);
    for (name, len) in machine.staged.list().expect("list") {
        let device = machine.staged.open(&name).expect("open");
        device.write_at(&[0xff], len - 500).expect("damage");
    }
    machine.get(&store, &all).expect("fetched anew");
    assert_eq!(machine.objects.gets(), 1);
    machine.run(store.shutdown());
}

#[test]
fn the_cache_keeps_its_limit() {
    let machine = Machine::with_cache(100_000);
    let (store, _) = machine.open();
    let all = blocks(40, 10_000);
    for block in &all {
        machine.store(&store, std::slice::from_ref(block));
        machine.get(&store, std::slice::from_ref(block)).expect("get");
    }
    let held = |directory: &MemoryDirectory| -> u64 {
        directory.list().expect("list").iter().map(|(_, len)| len).sum()
    };
    let bytes = held(&machine.staged) + held(&machine.cached);
    assert!((50_000..=100_000).contains(&bytes), "bytes={bytes}");
    machine.get(&store, &all).expect("the rest is fetched");
    machine.run(store.shutdown());
}

#[test]
fn a_block_that_moved_to_another_pack_is_found_there() {
    let machine = Machine::new();
    let (store, _) = machine.open();
    let all = blocks(2, 1000);
    let old = machine.store(&store, &all[..1])[0].0;
    // Collection rewrites the pack: the block goes to a new one, and the old one goes.
    let row = machine.index.rows.lock().expect("lock").remove(&all[0].id).expect("committed");
    machine.store(&store, &all);
    let moved = machine.index.rows.lock().expect("lock")[&all[0].id];
    machine.index.rows.lock().expect("lock").insert(all[0].id, row);
    machine.run(machine.objects.delete(&[keys::pack(old)])).expect("delete");
    let index = MovingIndex { first: Mutex::new(Some(row)), then: moved };
    let reader = machine.reader(Arc::new(index), machine.runtime.spawner());
    machine.get(&reader, &all[..1]).expect("found where it went");
    machine.run(reader.shutdown());
    machine.run(store.shutdown());
}

/// Says where a block was, then where it is.
struct MovingIndex {
    first: Mutex<Option<(BlockLocation, Receipt)>>,
    then: (BlockLocation, Receipt),
}

impl BlockIndex for MovingIndex {
    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<(BlockLocation, Receipt)>>> {
        let now = self.first.lock().expect("lock").take().unwrap_or(self.then);
        Ok(ids.iter().map(|_| Some(now)).collect())
    }
}

impl Machine {
    /// A store on another disk that finds blocks by `index`.
    fn reader(&self, index: Arc<dyn BlockIndex>, spawner: Arc<dyn Spawner>) -> FramedBlockStore {
        let parts = FramedParts {
            objects: self.objects.clone(),
            staged: Arc::new(MemoryDirectory::new()),
            index,
            clock: self.clock.clone(),
            spawner,
            budget: self.budget.clone(),
            cache: None,
            uploads: SemaphoreLimit::new(64 * MIB),
            downloads: SemaphoreLimit::new(64 * MIB),
        };
        FramedBlockStore::new(parts, FramedOptions::new(WriterId(99)))
    }

    /// What may be deleted while unmounted is.
    fn cached_files_lost(&self) {
        for name in self.files(&self.staged).iter().filter(|name| !name.ends_with(".staged")) {
            self.staged.remove(name).expect("remove");
        }
    }
}

#[test]
fn a_staged_file_that_the_disk_changed_is_neither_read_nor_sent() {
    let machine = Machine::new();
    let (store, _) = machine.open();
    let all = blocks(2, 1000);
    let tickets = machine.put(&store, &all);
    let name = machine.files(&machine.staged).pop().expect("staged");
    machine.staged.open(&name).expect("open").write_at(&[0], 1060 + 70).expect("damage");
    let error = machine.get(&store, &all[1..]).expect_err("changed");
    assert_eq!(error.kind, Kind::Corrupt);
    assert!(error.detail.contains(&all[1].id.to_string()), "{error}");
    machine.get(&store, &all[..1]).expect("the other one is whole");
    // The first attempt sends what is still in memory, the next ones what the disk has.
    machine.objects.down.store(true, Ordering::SeqCst);
    machine.run(store.seal()).expect("seal");
    let says = |what: &str| store.pending().last_error.is_some_and(|error| error.contains(what));
    machine.pass_time_until(|| says("store is down"));
    machine.objects.down.store(false, Ordering::SeqCst);
    machine.pass_time_until(|| says("local disk changed it"));
    assert_eq!((machine.objects.puts.load(Ordering::SeqCst), tickets[0].upload.receipt()), (1, None));
    machine.run(store.shutdown());
}

#[test]
fn a_failed_sync_is_never_retried() {
    let machine = Machine::new();
    let (store, _) = machine.open();
    let tickets = machine.put(&store, &blocks(1, 100));
    // The device belongs to a machine that lost power: every call on it fails.
    machine.staged.crash(&SeededRandom::new(3));
    assert!(machine.run(store.sync()).is_err());
    assert!(machine.run(store.sync()).is_err(), "what was lost stays unknown");
    drop(tickets);
    machine.run(store.shutdown());
}

#[test]
fn an_index_that_points_behind_its_pack_is_corrupt() {
    let machine = Machine::new();
    let pack = PackId { writer: WriterId(7), number: 0 };
    let location = BlockLocation::Frame { pack, offset: 1000, len: 100 };
    let receipt = Receipt { len: 1050, footer: Hash::ZERO };
    let index = MovingIndex { first: Mutex::default(), then: (location, receipt) };
    let reader = machine.reader(Arc::new(index), machine.runtime.spawner());
    let error = machine.get(&reader, &blocks(1, 100)).expect_err("impossible place");
    assert_eq!(error.kind, Kind::Corrupt);
    assert!(error.detail.contains(&pack.to_string()), "{error}");
}
