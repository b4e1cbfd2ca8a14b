//! The committer: orders batches, makes them visible, and answers what the newest state is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::apply::{Applying, run_applier};
use super::batch::{Batch, Ticket, is_synced, resolve};
use super::journal::{Journal, JournalRequests, JournalTask};
use super::latch::Latch;
use super::local::LocalState;
use super::log::{Log, LogTail, encode_batch};
use super::memtable::Layer;
use super::sync::Staging;
use super::system::{Holder, JournalRow};
use super::view::{Layers, View};
use crate::base::ids::{BatchNo, VolumeId};
use crate::base::limits::MIB;
use crate::base::time::Clock;
use crate::rt::{Gate, Spawner};
use crate::store::device::Directory;
use crate::store::kv::{KeyValueStore, Snapshot as _, Table, Write};
use crate::store::merge::MergeRules;
use crate::store::object::ImmutableObjectStore;
use crate::store::{Kind, Result};

/// What a committer is made of.
pub struct CommitterParts {
    /// Nobody else commits to it while the committer lives.
    pub kv: Arc<dyn KeyValueStore>,
    /// Directory of the log's own.
    pub log: Arc<dyn Directory>,
    pub rules: Arc<dyn MergeRules>,
    pub clock: Arc<dyn Clock>,
    pub spawner: Arc<dyn Spawner>,
    pub limits: Limits,
}

/// What a committer is made of besides the state that recovery has opened.
pub(crate) struct RecoveredParts {
    pub(crate) rules: Arc<dyn MergeRules>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) spawner: Arc<dyn Spawner>,
    pub(crate) limits: Limits,
}

/// What the committer may use, and how long it may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of recent rows in memory; a submit beyond it first applies some itself.
    pub memtable_bytes: usize,
    /// Bytes a layer is frozen and applied at. Several fit `memtable_bytes`, so that one fills while another is applied.
    pub layer_bytes: usize,
    /// Bytes of one log segment.
    pub segment_bytes: u64,
    /// Bytes of rows one journal record is cut at. Larger records compress better and cost fewer requests; a record is
    /// in memory twice while it is made, and readers accept 64 MiB.
    pub record_bytes: usize,
    /// How long a change may wait in memory before it is applied.
    pub apply_age: Duration,
    /// How long an applied change may wait before it is applied durably: bounds the replay of the next mount.
    pub durable_age: Duration,
    /// How long a change may wait for its journal record to be cut.
    pub record_age: Duration,
    /// Journal records, and their bytes, after which a checkpoint is due.
    pub checkpoint_records: u64,
    pub checkpoint_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memtable_bytes: 32 << 20,
            layer_bytes: 4 << 20,
            segment_bytes: 16 * MIB,
            record_bytes: 4 << 20,
            apply_age: Duration::from_secs(1),
            durable_age: Duration::from_secs(30),
            record_age: Duration::from_secs(5),
            checkpoint_records: 1000,
            checkpoint_bytes: 64 * MIB,
        }
    }
}

/// What is not in the bucket yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    pub batches: u64,
    /// Bytes of their log records.
    pub bytes: u64,
    /// Age of the oldest, exact to a second.
    pub oldest: Option<Duration>,
}

/// Orders the batches of one volume. Dropped without [`stop`](Self::stop) it leaves what a killed process would.
pub struct Committer {
    pub(super) shared: Arc<Shared>,
}

/// What becomes of batches beyond this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bucket {
    /// There is no bucket: the local tier is all there is.
    None,
    /// The bucket is only read; what the log holds for it is kept.
    Keep,
    /// The journal sends them.
    Send,
}

/// What the committer and its tasks share.
pub(super) struct Shared {
    pub(super) kv: Arc<dyn KeyValueStore>,
    rules: Arc<dyn MergeRules>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) spawner: Arc<dyn Spawner>,
    pub(super) staging: OnceLock<Arc<dyn Staging>>,

    pub(super) limits: Limits,
    pub(super) bucket: Bucket,
    /// The bucket, if this mount holds the volume.
    pub(super) remote: Option<Remote>,

    // Lock order: `syncing`, `applying`, `order`, `layers`. Only `syncing` is held across a wait for the disk,
    // `applying` across a commit to the key-value store.
    pub(super) syncing: Arc<tokio::sync::Mutex<()>>,
    pub(super) applying: Mutex<Applying>,
    order: Mutex<Order>,
    pub(super) layers: RwLock<Arc<Layers>>,
    /// Number of the newest batch that readers see.
    visible: AtomicU64,

    /// Closed when it is no longer certain what is durable here.
    pub(super) latch: Latch,
    /// Closed when the bucket takes no more from us; what is here can still be made durable.
    pub(super) fenced: Latch,
    /// All batches up to this one are in the bucket, or have nothing for it.
    pub(super) journaled: watch::Sender<BatchNo>,
    /// The journal as of the newest acknowledged record.
    pub(super) head: watch::Sender<JournalRow>,
    /// What the journal task will own once it is started.
    journal: Mutex<Option<Journal>>,
    /// Held by whoever takes a checkpoint.
    pub(super) checkpointing: Arc<tokio::sync::Mutex<()>>,
    pub(super) wake_applier: Notify,
    pub(super) wake_journal: Notify,
    pub(super) stopping: watch::Sender<bool>,
    gate: Gate,
}

/// A bucket that is written to.
pub(super) struct Remote {
    pub(super) objects: Arc<dyn ImmutableObjectStore>,
    pub(super) volume: VolumeId,
    /// This mount.
    holder: Holder,
}

/// The commit order and what follows from a place in it.
pub(super) struct Order {
    pub(super) log: Log,
    /// When the oldest batch of the active layer came.
    pub(super) active_since: Option<Duration>,
    pub(super) backlog: Backlog,
    pub(super) requests: JournalRequests,
}

/// What the journal has still to send.
#[derive(Default)]
pub(super) struct Backlog {
    pub(super) batches: u64,
    pub(super) bytes: u64,
    /// Newest batch with rows for the journal.
    pub(super) last: BatchNo,
    /// Arrival of batches not yet in the bucket, ascending, at most one per second.
    pub(super) since: VecDeque<(BatchNo, Duration)>,
}

/// Arrivals closer than this are remembered as one.
const ARRIVAL_STEP: Duration = Duration::from_secs(1);

impl Committer {
    /// Opens the state on this machine and applies what its log holds, without a bucket: nothing is journaled, and
    /// [`flush`](Self::flush) means the local disk.
    ///
    /// # Errors
    /// `Corrupt` if something durable is missing.
    pub fn open(parts: CommitterParts) -> Result<Arc<Self>> {
        let state = LocalState::open(parts.kv, parts.log, parts.limits.segment_bytes)?;
        Self::start(state, parts.rules, parts.clock, parts.spawner, parts.limits, Bucket::None, None)
    }

    /// Starts on a state that recovery has brought together with the bucket: to read only, or to write as `journal`
    /// says.
    pub(crate) fn open_recovered(
        state: LocalState,
        parts: RecoveredParts,
        journal: Option<Journal>,
    ) -> Result<Arc<Self>> {
        let bucket = if journal.is_some() { Bucket::Send } else { Bucket::Keep };
        let RecoveredParts { rules, clock, spawner, limits } = parts;
        Self::start(state, rules, clock, spawner, limits, bucket, journal)
    }

    fn start(
        state: LocalState,
        rules: Arc<dyn MergeRules>,
        clock: Arc<dyn Clock>,
        spawner: Arc<dyn Spawner>,
        limits: Limits,
        bucket: Bucket,
        journal: Option<Journal>,
    ) -> Result<Arc<Self>> {
        let last = state.log.last();
        let base = Arc::from(state.kv.snapshot()?);
        let layers = Layers { active: Arc::default(), frozen: Vec::new(), base };
        let row = state.journal.unwrap_or_default();
        let mut backlog = Backlog::default();
        if bucket != Bucket::None {
            let now = clock.monotonic();
            state.log.read_above(row.batch, &mut |batch, bytes| backlog.add(batch, bytes, now))?;
        }
        let order =
            Order { log: state.log, active_since: None, backlog, requests: JournalRequests::default() };
        let shared = Arc::new(Shared {
            kv: state.kv,
            rules,
            clock,
            spawner,
            staging: OnceLock::new(),
            limits,
            bucket,
            syncing: Arc::default(),
            applying: Mutex::new(Applying::new(state.applied)),
            order: Mutex::new(order),
            layers: RwLock::new(Arc::new(layers)),
            visible: AtomicU64::new(last.0),
            latch: Latch::default(),
            fenced: Latch::default(),
            journaled: watch::Sender::new(row.batch),
            head: watch::Sender::new(row),
            remote: journal.as_ref().map(Remote::of),
            journal: Mutex::new(journal),
            checkpointing: Arc::default(),
            wake_applier: Notify::new(),
            wake_journal: Notify::new(),
            stopping: watch::Sender::new(false),
            gate: Gate::new(),
        });
        shared.spawn("apply", run_applier(shared.clone()));
        Ok(Arc::new(Self { shared }))
    }

    /// Orders a batch. When it returns the batch is visible, and in the log: the death of this process does not lose
    /// it. Takes microseconds, on the caller's thread; when more than `memtable_bytes` wait to be applied, it first
    /// applies them.
    ///
    /// # Errors
    /// `Precondition` if an expectation does not hold, `Full` if the log has no room: nothing has changed. `Fenced` if
    /// another writer has taken the volume. Any other: nothing is visible, and changes are refused from then on if what
    /// the log holds has become uncertain.
    pub fn submit(&self, batch: Batch) -> Result<Ticket> {
        self.shared.submit(batch)
    }

    /// All tables as of now.
    ///
    /// # Errors
    /// None so far; reading it may fail.
    pub fn view(&self) -> Result<View> {
        Ok(self.shared.view())
    }

    /// The row as of now.
    ///
    /// # Errors
    /// Of the key-value store.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.shared.view().get(table, key)
    }

    /// A ticket for everything that is visible now.
    pub fn newest(&self) -> Ticket {
        Ticket(BatchNo(self.shared.visible.load(Ordering::Acquire)))
    }

    /// Names what has staged the bytes that batches refer to, and starts the journal. To be called once, before the
    /// first such batch.
    pub fn attach_staging(&self, staging: Arc<dyn Staging>) {
        // A second one would mean two block stores for one volume; the first stays.
        let _ = self.shared.staging.set(staging);
        let journal = self.shared.journal.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(journal) = journal {
            let tail = LogTail::above(journal.row.batch);
            let stopping = self.shared.stopping.subscribe();
            let task = JournalTask { shared: self.shared.clone(), journal, tail, stopping };
            self.shared.spawn("journal", task.run());
        }
    }

    /// Waits until everything up to the ticket survives a power cut here. Callers at the same time share a disk sync.
    ///
    /// # Errors
    /// Of the disk. A failed sync is not repeated: this and every later call fails, and so does every submit (R14).
    pub async fn sync_local(&self, ticket: Ticket) -> Result<()> {
        self.shared.sync_local(ticket.0).await
    }

    /// Waits until everything up to the ticket survives the loss of this machine: the journal is cut now and does not
    /// wait for more. Without a bucket to write to: survives a power cut.
    ///
    /// # Errors
    /// `Fenced` if another writer has taken the volume; `Unavailable` if the volume is unmounted first; of the disk. A
    /// bucket that does not answer is waited for.
    pub async fn flush(&self, ticket: Ticket) -> Result<()> {
        self.shared.flush(ticket.0).await
    }

    /// Releases the volume, so that any host may take it next, flushes everything and [`stop`](Self::stop)s.
    ///
    /// # Errors
    /// As both. Everything has been stopped then too, and what did not reach the bucket is safe on this machine.
    pub async fn close(&self) -> Result<()> {
        let released = self.release().await;
        let stopped = self.stop().await;
        released.and(stopped)
    }

    async fn release(&self) -> Result<()> {
        let Some(remote) = &self.shared.remote else { return self.flush(self.newest()).await };
        let row = Holder { released: true, ..remote.holder.clone() }.write();
        let mut batch = Batch::new();
        batch.put(row.table, row.key, row.value.unwrap_or_default());
        let ticket = self.submit(batch)?;
        self.flush(ticket).await
    }

    /// # Errors
    /// Why changes are refused, if they are: `Fenced`, or what left it uncertain what is durable here.
    pub fn check(&self) -> Result<()> {
        self.shared.latch.check()?;
        self.shared.fenced.check()
    }

    /// What the bucket lacks.
    #[must_use]
    pub fn pending(&self) -> Pending {
        let order = self.shared.order();
        let oldest = order.backlog.since.front().map(|&(_, since)| since);
        Pending {
            batches: order.backlog.batches,
            bytes: order.backlog.bytes,
            oldest: oldest.map(|since| self.shared.clock.monotonic().saturating_sub(since)),
        }
    }

    /// Ends the work behind the callers, without waiting for the bucket, and leaves everything durable on this machine.
    /// Nothing may be submitted any more.
    ///
    /// # Errors
    /// Of the disk; of an earlier failure that made changes be refused.
    pub async fn stop(&self) -> Result<()> {
        self.shared.stopping.send_replace(true);
        self.shared.gate.close().await;
        self.shared.make_durable().await
    }
}

impl Remote {
    fn of(journal: &Journal) -> Self {
        Self { objects: journal.objects.clone(), volume: journal.volume, holder: journal.holder.clone() }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.shared.stopping.send_replace(true);
    }
}

impl Shared {
    pub(super) fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let Some(pass) = self.gate.enter() else { return };
        let task = async move {
            let _pass = pass;
            task.await;
        };
        self.spawner.spawn(name, Box::pin(task));
    }

    pub(super) fn view(&self) -> View {
        // Layers before the number: the layers then hold every batch up to it (rule R16).
        let layers = self.layers.read().unwrap_or_else(PoisonError::into_inner).clone();
        View { layers, upto: BatchNo(self.visible.load(Ordering::Acquire)) }
    }

    pub(super) fn submit(&self, batch: Batch) -> Result<Ticket> {
        self.latch.check()?;
        self.fenced.check()?;
        self.make_room()?;
        let mut order = self.order();
        let view = self.view();
        let writes = resolve(&batch, &*self.rules, &|table, key| view.get(table, key))?;
        if writes.is_empty() {
            return Ok(Ticket(view.upto));
        }
        let payload = encode_batch(batch.needs.iter().map(|(pack, _)| *pack), &writes);
        let needs: Vec<_> = batch.needs.into_iter().map(|(_, ticket)| ticket).collect();
        let number = order.log.append(&payload).inspect_err(|error| {
            // A full disk has room again some day; after anything else nobody knows what the log holds.
            if error.kind != Kind::Full {
                self.latch.close(error);
            }
        })?;
        if !needs.is_empty() && self.bucket == Bucket::Send {
            order.requests.needs.insert(number, needs);
        }
        self.note_arrival(&mut order, number, payload.len(), &writes);
        view.layers.active.insert(number, writes);
        self.visible.store(number.0, Ordering::Release);
        let full = self.limits.layer_bytes <= view.layers.active.bytes();
        if full {
            self.freeze(&mut order);
        }
        drop(order);
        if full {
            self.wake_applier.notify_one();
        }
        Ok(Ticket(number))
    }

    fn note_arrival(&self, order: &mut Order, number: BatchNo, bytes: usize, writes: &[Write]) {
        let now = self.clock.monotonic();
        if order.active_since.is_none() {
            order.active_since = Some(now);
            self.wake_applier.notify_one();
        }
        if self.bucket != Bucket::None && writes.iter().any(|write| is_synced(write.table)) {
            let (idle, was) = (order.backlog.batches == 0, order.backlog.bytes);
            order.backlog.add(number, bytes, now);
            let due = self.limits.record_bytes as u64;
            if idle || (was < due && due <= order.backlog.bytes) {
                self.wake_journal.notify_one();
            }
        }
    }

    /// Sets the active layer aside for the applier and starts a new one.
    pub(super) fn freeze(&self, order: &mut Order) {
        order.active_since = None;
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        if layers.active.bytes() == 0 {
            return;
        }
        let frozen = layers.frozen.iter().chain([&layers.active]).cloned().collect();
        *layers = Arc::new(Layers { active: Arc::new(Layer::default()), frozen, base: layers.base.clone() });
    }
}

impl Backlog {
    fn add(&mut self, number: BatchNo, bytes: usize, now: Duration) {
        self.batches += 1;
        self.bytes += bytes as u64;
        self.last = number;
        if self.since.back().is_none_or(|&(_, last)| last + ARRIVAL_STEP <= now) {
            self.since.push_back((number, now));
        }
    }

    /// Batches up to `upto` have been sent, `batches` of them with rows for the journal.
    pub(super) fn remove(&mut self, upto: BatchNo, batches: u64, bytes: u64) {
        self.batches = self.batches.saturating_sub(batches);
        self.bytes = self.bytes.saturating_sub(bytes);
        // An arrival stands for all up to the next one: the last that may still be waiting stays.
        while self.since.get(1).is_some_and(|&(next, _)| next.0 <= upto.0 + 1) {
            self.since.pop_front();
        }
        if self.last <= upto {
            self.since.clear();
        }
    }
}
