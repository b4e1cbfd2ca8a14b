//! Hot bytes become staged blocks: frozen under the inode's lock, cut and hashed beside it, sealed under it again.
//!
//! Bytes are staged when a file has gathered a run of them, when they are a second old, when memory is short, and when
//! somebody waits for them (fsync, sync, rename over a name, copy).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::{FuturesOrdered, StreamExt as _};
use tokio::sync::{Notify, Semaphore, mpsc};

use super::Vfs;
use super::attr::put_seal;
use super::change::Change;
use super::error::Result;
use super::inode::{Inode, State};
use crate::base::range::ByteRange;
use crate::base::sync::lock;
use crate::content::chunker::{ChunkSizes, Chunker};
use crate::content::overlay::{Frozen, Run};
use crate::rt::run_blocking;
use crate::store::block::{Block, BlockTicket};
use crate::store::schema::inode::ContentForm;
use crate::store::schema::{INLINE, ino_key};

/// Written bytes stay in memory only for this long, whatever happens.
const HOT_AGE_MAX: Duration = Duration::from_millis(900);

/// How often the age of hot bytes is looked at while there are any.
const TICK: Duration = Duration::from_millis(100);

/// Files staged at once: one per core that cuts and hashes, and one that writes meanwhile.
const STAGING_MAX: usize = 3;

/// Bytes of blocks that are stored together while the next are being cut.
const PUT_BYTES: u64 = 1 << 20;

/// Such batches of one file in the works at once: some are encoded while others are written. More would only scatter the
/// file in its packs.
const PUTS_AT_ONCE: usize = 6;

/// What to do with bytes after the last cut of a file's last run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tail {
    /// They stay hot: more will follow, and a cut made by content is found again by deduplication.
    Leave,
    /// They become a block.
    Take,
}

/// Inodes with hot bytes, by the time of the first.
pub(super) struct HotQueue {
    /// Leaf lock.
    waiting: Mutex<VecDeque<(Duration, Arc<Inode>)>>,
    wake: Notify,
    permits: Semaphore,
    /// Held while inodes are out of the queue to be staged, so that a sync of everything cannot overlook one; awaited,
    /// because staging waits for the disk.
    taking: tokio::sync::Mutex<()>,
}

impl Default for HotQueue {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            wake: Notify::new(),
            permits: Semaphore::new(STAGING_MAX),
            taking: tokio::sync::Mutex::default(),
        }
    }
}

impl HotQueue {
    /// Has the queue looked at now.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    fn push(&self, since: Duration, inode: &Arc<Inode>) {
        let mut waiting = lock(&self.waiting);
        waiting.push_back((since, Arc::clone(inode)));
        if waiting.len() == 1 {
            self.wake();
        }
    }

    /// Takes those that have waited since before `until`.
    fn due(&self, until: Duration) -> Vec<Arc<Inode>> {
        let mut waiting = lock(&self.waiting);
        let due = waiting.iter().take_while(|(since, _)| *since <= until).count();
        waiting.drain(..due).map(|(_, inode)| inode).collect()
    }

    fn is_empty(&self) -> bool {
        lock(&self.waiting).is_empty()
    }
}

impl Vfs {
    /// Queues an inode that has something to stage, once, and has it staged at once if memory is short.
    pub(super) fn note_hot(&self, inode: &Arc<Inode>, state: &State) {
        self.queue_hot(inode, state);
        if self.hot_budget.is_pressed() {
            self.hot.wake();
        }
    }

    fn queue_hot(&self, inode: &Arc<Inode>, state: &State) {
        let unsealed = state.overlay.as_ref().is_some_and(|overlay| overlay.has_unsealed(state.row.size));
        if unsealed && !inode.queue() {
            self.hot.push(self.clock.monotonic(), inode);
        }
    }

    /// Starts the loop that stages by age and under pressure.
    pub(super) fn start_staging(self: &Arc<Self>) {
        let vfs = Arc::downgrade(self);
        self.spawner.spawn(
            "stage by age",
            Box::pin(async move {
                while let Some(vfs) = vfs.upgrade() {
                    vfs.stage_tick().await;
                }
            }),
        );
    }

    async fn stage_tick(self: &Arc<Self>) {
        if self.hot.is_empty() {
            // Ends after a while without work too, so that a filesystem that is dropped is not kept by its own loop.
            let clock_says = self.clock.sleep(Duration::from_secs(1));
            tokio::select! { () = self.hot.wake.notified() => {} () = clock_says => return }
        }
        let clock_says = self.clock.sleep(TICK);
        tokio::select! { () = self.hot.wake.notified() => {} () = clock_says => {} }
        let now = self.clock.monotonic();
        let pressed = self.hot_budget.is_pressed();
        let until = if pressed { now } else { now.saturating_sub(HOT_AGE_MAX) };
        let _taking = self.hot.taking.lock().await;
        let due = self.hot.due(until);
        let staged = due.iter().map(|inode| self.stage_queued(inode, now, pressed));
        futures_util::future::join_all(staged).await;
    }

    async fn stage_queued(self: &Arc<Self>, inode: &Arc<Inode>, now: Duration, pressed: bool) {
        inode.unqueue();
        let tail_bytes = u64::from(self.options.chunk_sizes.max());
        let (hot, oldest) = inode
            .lock()
            .overlay
            .as_ref()
            .map_or((0, None), |overlay| (overlay.hot_bytes(), overlay.oldest_of_last_hot(tail_bytes)));
        // A file that is being written fast keeps its young tail, so that blocks are cut by content alone. Under pressure
        // it does so too where what is before the tail goes.
        let young = oldest.is_some_and(|oldest| now < oldest + HOT_AGE_MAX);
        let tail = if young && (tail_bytes < hot || !pressed) { Tail::Leave } else { Tail::Take };
        self.stage_and_report(inode, tail).await;
    }

    /// Stages, and leaves a failure for whoever closes or syncs the file; the bytes stay hot and are tried again.
    pub(super) async fn stage_and_report(self: &Arc<Self>, inode: &Arc<Inode>, tail: Tail) {
        let staged = self.stage(inode, tail).await;
        let mut state = inode.lock();
        match staged {
            Ok(()) => self.note_hot(inode, &state),
            Err(error) => {
                tracing::error!(ino = inode.ino.0, %error, "stage written bytes");
                state.failures += 1;
                // Not at once, however short memory is: what failed just now would fail again.
                self.queue_hot(inode, &state);
            }
        }
    }

    /// Stages everything written so far.
    ///
    /// # Errors
    /// `NoSpace`, of the local disk; the bytes stay hot.
    pub(super) async fn stage_all(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<()> {
        self.stage(inode, Tail::Take).await
    }

    async fn stage(self: &Arc<Self>, inode: &Arc<Inode>, tail: Tail) -> Result<()> {
        self.try_stage(inode, tail).await.inspect_err(|error| self.note_failure(inode.ino, error))
    }

    async fn try_stage(self: &Arc<Self>, inode: &Arc<Inode>, tail: Tail) -> Result<()> {
        let _one_hand_out_at_a_time = inode.hand_out.lock().await;
        match self.freeze_or_inline(inode)? {
            Some(frozen) => self.stage_frozen(inode, frozen, tail).await,
            None => Ok(()),
        }
    }

    /// Stages everything written so far as blocks, however little it is: they can be shared.
    ///
    /// # Errors
    /// As [`Self::stage_all`].
    pub(super) async fn stage_as_blocks(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<()> {
        let _one_hand_out_at_a_time = inode.hand_out.lock().await;
        let frozen = {
            let mut state = inode.lock();
            let committed = state.row.size;
            let overlay = state.overlay.as_mut().filter(|overlay| overlay.has_unsealed(committed));
            overlay.map(|overlay| overlay.freeze(committed))
        };
        match frozen {
            Some(frozen) => self.stage_frozen(inode, frozen, Tail::Take).await,
            None => Ok(()),
        }
    }

    async fn stage_frozen(self: &Arc<Self>, inode: &Arc<Inode>, frozen: Frozen, tail: Tail) -> Result<()> {
        let frozen = Arc::new(frozen);
        let permit = self.hot.permits.acquire().await;
        let staged = self.cut_and_put(&frozen, tail).await;
        drop(permit);
        match staged {
            Ok(staged) if !staged.is_empty() || tail == Tail::Take => self.install(inode, &frozen, staged),
            nothing => {
                inode.lock().overlay.iter_mut().for_each(|overlay| overlay.thaw());
                nothing.map(drop)
            }
        }
    }

    /// Cuts what was handed out and stores the blocks. One core cuts while others look up, compress and write what was cut
    /// before.
    async fn cut_and_put(&self, frozen: &Arc<Frozen>, tail: Tail) -> Result<Vec<(ByteRange, BlockTicket)>> {
        let (sender, mut receiver) = mpsc::channel::<Vec<(ByteRange, Block)>>(1);
        let (runs, sizes) = (Arc::clone(frozen), self.options.chunk_sizes);
        // Runs beside this and ends by itself when nobody receives any more.
        let cut = move || cut_runs(&runs.runs, sizes, tail, &sender);
        let cutting = run_blocking(&*self.spawner, "cut blocks", cut);
        let mut staged = Vec::new();
        let mut putting = FuturesOrdered::new();
        loop {
            tokio::select! {
                batch = receiver.recv(), if putting.len() < PUTS_AT_ONCE => match batch {
                    Some(batch) => putting.push_back(self.put(batch)),
                    None => break,
                },
                Some(put) = putting.next(), if !putting.is_empty() => staged.extend(put?),
            }
        }
        while let Some(put) = putting.next().await {
            staged.extend(put?);
        }
        cutting.await;
        Ok(staged)
    }

    async fn put(&self, batch: Vec<(ByteRange, Block)>) -> Result<Vec<(ByteRange, BlockTicket)>> {
        let (ranges, blocks): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        Ok(ranges.into_iter().zip(self.blocks.put_many(blocks).await?).collect())
    }

    /// Takes the hot bytes of a file out for staging, or commits a small file's content with its row. None if there is
    /// nothing left to stage.
    fn freeze_or_inline(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<Option<Frozen>> {
        let mut state = inode.lock();
        let committed = state.row.size;
        let Some(overlay) = &mut state.overlay else { return Ok(None) };
        if !overlay.has_unsealed(committed) {
            return Ok(None);
        }
        let small = overlay.size() <= self.options.inline_bytes_max;
        if small && state.row.form != ContentForm::Manifest && self.commit_inline(inode, &mut state)? {
            return Ok(None);
        }
        Ok(state.overlay.as_mut().map(|overlay| overlay.freeze(committed)))
    }

    /// Commits content that is all in memory and has no hole; false if it is not so.
    fn commit_inline(&self, inode: &Inode, state: &mut State) -> Result<bool> {
        let Some(overlay) = &state.overlay else { return Ok(false) };
        let Some(bytes) = overlay.whole() else { return Ok(false) };
        let mut row = state.row.clone();
        row.form = if bytes.is_empty() { ContentForm::Empty } else { ContentForm::Inline };
        row.size = bytes.len() as u64;
        row.allocated = row.size;
        if let Some(touched) = overlay.touched() {
            row.mtime = touched;
            row.ctime = row.ctime.max(touched);
        }
        let mut change = Change::default();
        match row.form {
            ContentForm::Inline => change.batch.put(INLINE, ino_key(inode.ino), bytes),
            ContentForm::Empty | ContentForm::Manifest => change.batch.delete(INLINE, ino_key(inode.ino)),
        };
        change.put_inode(inode.ino, &state.row, &row);
        let _ticket = change.submit(&self.commit)?;
        state.row = row;
        self.drop_overlay(state);
        Ok(true)
    }

    /// Forgets an overlay whose content is committed or gone, and what it held of the budgets.
    pub(super) fn drop_overlay(&self, state: &mut State) {
        if let Some(overlay) = state.overlay.take() {
            self.hot_budget.release(overlay.hot_bytes());
        }
        state.spill = None;
        self.count_uncommitted(state);
    }

    fn install(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        frozen: &Frozen,
        staged: Vec<(ByteRange, BlockTicket)>,
    ) -> Result<()> {
        let mut state = inode.lock();
        let committed = (state.row.mtime, state.row.size);
        let Some(overlay) = &state.overlay else { return Ok(()) };
        let hot_before = overlay.hot_bytes();
        let seals = overlay.plan_seals(frozen, &staged, committed);
        let installed = seals.into_iter().try_for_each(|seal| {
            let mut change = Change::default();
            put_seal(&mut change, inode.ino, Some(&seal));
            let _ticket = change.submit(&self.commit)?;
            self.overlay(&mut state).install(frozen, seal);
            self.enqueue_publication(inode, &state);
            Ok(())
        });
        let overlay = self.overlay(&mut state);
        overlay.thaw();
        let hot = overlay.hot_bytes();
        self.hot_budget.release(hot_before - hot);
        state.spill.iter_mut().for_each(|held| held.shrink_to(hot));
        let size = state.row.size;
        if state.overlay.as_ref().is_some_and(|overlay| overlay.is_clean(size)) {
            // All that was out was discarded meanwhile.
            self.drop_overlay(&mut state);
        }
        installed
    }

    /// Stages until nothing is hot that was so when it was called.
    pub(super) async fn stage_everything(self: &Arc<Self>) -> Result<()> {
        let _taking = self.hot.taking.lock().await;
        let due = self.hot.due(Duration::MAX);
        for inode in &due {
            inode.unqueue();
        }
        let mut outcome = Ok(());
        for staged in futures_util::future::join_all(due.iter().map(|inode| self.stage_all(inode))).await {
            outcome = outcome.and(staged);
        }
        for inode in &due {
            let state = inode.lock();
            self.note_hot(inode, &state);
        }
        outcome
    }
}

/// Cuts runs into blocks by content and sends them, with the file range each stands for, in batches.
fn cut_runs(runs: &[Run], sizes: ChunkSizes, tail: Tail, batches: &mpsc::Sender<Vec<(ByteRange, Block)>>) {
    let mut batch = Vec::new();
    let mut bytes = 0;
    for (index, run) in runs.iter().enumerate() {
        let mut at = run.start;
        let mut place = |block: Block| {
            let range = ByteRange::at(at, u64::from(block.id.len));
            at = range.end;
            (range, block)
        };
        let mut chunker = Chunker::new(sizes);
        for data in &run.data {
            batch.extend(
                chunker
                    .push(data.clone())
                    .into_iter()
                    .map(&mut place)
                    .inspect(|(range, _)| bytes += range.len()),
            );
            if PUT_BYTES <= bytes {
                bytes = 0;
                if batches.blocking_send(std::mem::take(&mut batch)).is_err() {
                    return;
                }
            }
        }
        if tail == Tail::Take || index + 1 < runs.len() {
            batch.extend(chunker.finish().into_iter().map(&mut place));
        }
    }
    if !batch.is_empty() {
        // An error means that an earlier batch failed, and whoever waits knows of it.
        let _ = batches.blocking_send(batch);
    }
}
