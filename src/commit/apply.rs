//! The applier: brings frozen layers into the key-value store, many batches per commit.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;

use super::committer::{Bucket, Shared};
use super::log::discard_spare;
use super::memtable::Layer;
use super::system::Applied;
use super::view::Layers;
use crate::base::ids::BatchNo;
use crate::rt::run_blocking;
use crate::store::kv::Durability;
use crate::store::{Error, Result};

/// How far the key-value store has got. Whoever holds the lock commits.
pub(super) struct Applying {
    pub(super) applied: Applied,
    /// All batches up to this one are in the store for good.
    durable: BatchNo,
}

impl Applying {
    /// What was found on opening may not be durable: the replay is not.
    pub(super) fn new(applied: Applied) -> Self {
        Self { applied, durable: BatchNo(0) }
    }
}

impl Shared {
    pub(super) fn applying(&self) -> MutexGuard<'_, Applying> {
        self.applying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies on this thread if too much waits in memory: the memory is bounded without anybody to wait for.
    pub(super) fn make_room(&self) -> Result<()> {
        let bytes = || self.layers().bytes();
        if bytes() < self.limits.memtable_bytes {
            return Ok(());
        }
        let mut applying = self.applying();
        // Somebody else may have done it meanwhile.
        if bytes() < self.limits.memtable_bytes {
            return Ok(());
        }
        self.freeze(&mut self.order());
        self.apply(&mut applying, BatchNo(u64::MAX), Durability::Visible)
    }

    /// Freezes what is in memory and applies it.
    fn apply_all(&self) -> Result<()> {
        let mut applying = self.applying();
        self.freeze(&mut self.order());
        self.apply(&mut applying, BatchNo(u64::MAX), Durability::Visible)
    }

    /// Applies the frozen layers that hold no batch above `upto`. `Immediate` makes all that is applied durable, and
    /// with it the end of log segments nobody needs; it becomes `Visible` if some of what is applied is not yet durable
    /// in the log: the store must not know more than the log after a power cut, or the journal would lack it.
    pub(super) fn apply(&self, applying: &mut Applying, upto: BatchNo, want: Durability) -> Result<()> {
        let mut layers = self.layers().frozen.clone();
        layers.retain(|layer| layer.last() <= upto);
        let mut applied = applying.applied;
        if let Some(layer) = layers.last() {
            applied.batch = layer.last();
        }
        let durable = want == Durability::Immediate && applied.batch <= self.order().log.synced();
        if layers.is_empty() && !durable {
            return Ok(());
        }
        if durable {
            // Never back: batches without rows for the journal may be gone though it has not been told of them.
            let needed_from = BatchNo(applied.batch.min(self.journaled()).0 + 1);
            applied.log_from = applied.log_from.max(needed_from);
        }
        let mut writes: Vec<_> = layers.iter().flat_map(|layer| layer.newest()).collect();
        writes.push(applied.write());
        let durability = if durable { Durability::Immediate } else { Durability::Visible };
        let commit = self.kv.commit(&writes, durability).and_then(|()| self.kv.snapshot());
        let base = commit.inspect_err(|error| self.latch.close(error))?;
        self.publish(&layers, Arc::from(base));
        applying.applied = applied;
        if durable {
            applying.durable = applied.batch;
            self.trim_log(applied.log_from);
        }
        Ok(())
    }

    /// Shows the new snapshot and drops the layers it holds, in one step (rule R16).
    fn publish(&self, done: &[Arc<Layer>], base: Arc<dyn crate::store::kv::Snapshot>) {
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        let is_done = |layer: &Arc<Layer>| done.iter().any(|done| Arc::ptr_eq(done, layer));
        let frozen = layers.frozen.iter().filter(|layer| !is_done(layer)).cloned().collect();
        *layers = Arc::new(Layers { active: layers.active.clone(), frozen, base });
    }

    fn trim_log(&self, from: BatchNo) {
        let (directory, files) = {
            let mut order = self.order();
            (order.log.directory(), order.log.trim(from))
        };
        // A file that reappears after a power cut is below `log_from` and ignored: no sync.
        for file in files {
            if let Err(error) = directory.remove(&file) {
                warn!(%error, file, "a log segment that is not needed stays until the next mount");
            }
        }
    }

    fn layers(&self) -> Arc<Layers> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The log may be needed from the batch after this one on to reach the bucket.
    fn journaled(&self) -> BatchNo {
        let sent = *self.journaled.borrow();
        let nothing_to_send = self.order().backlog.last <= sent;
        if self.bucket == Bucket::None || nothing_to_send { BatchNo(u64::MAX) } else { sent }
    }

    /// Makes everything submitted so far durable in the key-value store.
    pub(super) async fn make_durable(self: &Arc<Self>) -> Result<()> {
        loop {
            let newest = {
                let mut order = self.order();
                self.freeze(&mut order);
                order.log.last()
            };
            self.sync_local(newest).await?;
            let shared = self.clone();
            let durable = run_blocking(&*self.spawner, "apply", move || {
                let mut applying = shared.applying();
                shared.apply(&mut applying, newest, Durability::Immediate)?;
                Ok::<_, Error>(applying.durable)
            });
            // A submit that made room may have applied more than was synced: once more then.
            if newest <= durable.await? {
                return Ok(());
            }
        }
    }
}

/// Applies layers when they are full or old enough, makes the store durable now and then, keeps a log segment ready.
pub(super) async fn run_applier(shared: Arc<Shared>) {
    let mut stopping = shared.stopping.subscribe();
    // When the first change since the last durable commit was applied, and how long the log was then.
    let mut undurable_since = None;
    let mut durable_at_bytes = 0;
    while !*stopping.borrow() && shared.latch.check().is_ok() {
        keep_spare(&shared).await;
        let now = shared.clock.monotonic();
        let durable_due = undurable_since.map(|since: Duration| since + shared.limits.durable_age);
        let due = shared.apply_due().into_iter().chain(durable_due).min();
        if due.is_none_or(|due| now < due) {
            let timer = async {
                match due {
                    Some(due) => shared.clock.sleep(due - now).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = timer => {}
                () = shared.wake_applier.notified() => {}
                _ = stopping.changed() => {}
            }
            continue;
        }
        let log_bytes = shared.order().log.appended_bytes;
        let segment_full = durable_at_bytes + shared.limits.segment_bytes <= log_bytes;
        let outcome = if segment_full || durable_due.is_some_and(|due| due <= now) {
            (undurable_since, durable_at_bytes) = (None, log_bytes);
            shared.make_durable().await
        } else {
            undurable_since = undurable_since.or(Some(now));
            let shared = shared.clone();
            run_blocking(&*shared.clone().spawner, "apply", move || shared.apply_all()).await
        };
        // What failed has closed the latch, which says so; nothing can be applied any more.
        if outcome.is_err() {
            return;
        }
    }
}

async fn keep_spare(shared: &Arc<Shared>) {
    let Some(work) = shared.order().log.spare_wanted() else { return };
    let shared = shared.clone();
    run_blocking(&*shared.clone().spawner, "prepare log segment", move || {
        // On a full disk the append that needs the segment tries again, and reports it.
        let Ok((id, device)) = work.run() else { return };
        let (kept, directory) = {
            let mut order = shared.order();
            (order.log.provide_spare(id, device), order.log.directory())
        };
        if !kept {
            // An empty file that stays is removed when the log is opened.
            let _ = discard_spare(&*directory, id);
        }
    })
    .await;
}

impl Shared {
    /// When the applier is to work next: at once for full layers, later for the one being filled.
    fn apply_due(&self) -> Option<Duration> {
        let order = self.order();
        if !self.layers().frozen.is_empty() {
            return Some(Duration::ZERO);
        }
        order.active_since.map(|since| since + self.limits.apply_age)
    }
}
