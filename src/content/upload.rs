//! Sends sealed packs to the store until it has them, however long that takes, and lets go of their files afterwards.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tracing::warn;

use super::pack_cache::PackCache;
use super::pack_listing;
use super::staging::{PackBody, StagedPack, Staging, file_name};
use crate::base::time::Clock;
use crate::rt::{Gate, SemaphoreLimit, Spawner, run_blocking};
use crate::store::block::Receipt;
use crate::store::device::Directory;
use crate::store::object::ImmutableObjectStore;
use crate::store::{Error, Kind, Result, keys};

/// Waits between attempts: short at first, since the wrappers below have done their own repeating already.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A store that takes a pack at this many bytes per second is as near as the disk, or on this machine: what is sent later is
/// there hardly later, and what is sent now takes CPU and disk from those who write. One request to Amazon S3 moves about
/// 90 MB/s (its performance guidelines: 85 to 90).
const NEAR_BYTES_PER_SECOND: u64 = 200_000_000;

/// How often an upload that gives way looks whether it still has to, and for how long after its pack was begun.
const GIVE_WAY_STEP: Duration = Duration::from_millis(50);
const GIVE_WAY_MAX: Duration = Duration::from_secs(5);

/// The uploads of one store.
pub(super) struct Uploads {
    pub(super) objects: Arc<dyn ImmutableObjectStore>,
    pub(super) directory: Arc<dyn Directory>,
    pub(super) staging: Arc<Staging>,
    pub(super) cache: Option<Arc<PackCache>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) spawner: Arc<dyn Spawner>,
    /// Bytes of packs in memory for sending.
    pub(super) permits: SemaphoreLimit,
    /// As in [`super::framed::FramedOptions`].
    pub(super) give_way: bool,
    /// Bytes per second of the last pack that was sent; 0 before the first.
    pub(super) speed: AtomicU64,
    pub(super) gate: Gate,
    pub(super) progress: Progress,
}

/// What became of the uploads so far.
pub(super) struct Progress {
    /// Packs sealed and not acknowledged.
    waiting: AtomicU64,
    changed: Notify,
    last_error: Mutex<Option<String>>,
    stop: watch::Sender<bool>,
}

/// How long to wait after the next failure.
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Self {
        Self(BACKOFF_MIN)
    }
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            waiting: AtomicU64::new(0),
            changed: Notify::new(),
            last_error: Mutex::default(),
            stop: watch::Sender::new(false),
        }
    }

    /// Waits until every sealed pack is acknowledged, or uploads were stopped.
    pub(super) async fn all_acknowledged(&self) {
        loop {
            let changed = self.changed.notified();
            if self.waiting.load(Ordering::Acquire) == 0 || *self.stop.borrow() {
                return;
            }
            changed.await;
        }
    }

    /// What the last attempt failed with, until one succeeds.
    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends all tasks at their next await.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
        self.changed.notify_waiters();
    }

    /// Completes when [`Self::stop`] was called.
    pub(super) async fn stopped(&self) {
        // The sender is a field of ours: it outlives this call.
        let _ = self.stop.subscribe().wait_for(|&stop| stop).await;
    }

    pub(super) fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Counts one upload more to wait for.
    pub(super) fn begun(&self) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts one less.
    pub(super) fn done(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    /// Reports a failed attempt and waits before the next: also after errors that no repetition cures by itself,
    /// because credentials and full buckets are put right by people, and what is staged must not be lost meanwhile.
    pub(super) async fn pause_after(&self, error: &Error, backoff: &mut Backoff, clock: &dyn Clock) {
        let wait = backoff.0;
        warn!(%error, retry_in_ms = wait.as_millis() as u64, "upload");
        self.note(Some(error.to_string()));
        clock.sleep(wait).await;
        backoff.0 = (wait * 2).min(BACKOFF_MAX);
    }

    pub(super) fn note(&self, error: Option<String>) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

impl Uploads {
    /// Sends `pack` in the background.
    pub(super) fn start(self: &Arc<Self>, pack: Arc<StagedPack>) {
        let Some(pass) = self.gate.enter() else { return };
        self.progress.begun();
        let uploads = self.clone();
        let work = async move {
            let _pass = pass;
            let is_released = tokio::select! {
                () = uploads.send_until_released(&pack) => true,
                () = uploads.progress.stopped() => false,
            };
            if is_released {
                uploads.let_file_go(pack).await;
            }
        };
        self.spawner.spawn("upload pack", Box::pin(work));
    }

    async fn send_until_released(&self, pack: &Arc<StagedPack>) {
        self.send(pack).await;
        self.progress.done();
        // The file stays until whoever waited has made the pack's blocks known: after a crash it is all that says
        // where they are.
        loop {
            pack.released().await;
            if self.staging.release(pack) {
                break;
            }
        }
    }

    async fn let_file_go(&self, pack: Arc<StagedPack>) {
        let (directory, cache) = (self.directory.clone(), self.cache.clone());
        run_blocking(&*self.spawner, "release staged pack", move || {
            let name = file_name(pack.id);
            let adopted = cache.is_some_and(|cache| cache.adopt(pack.id, &name, pack.len()));
            if !adopted && let Err(error) = directory.remove(&name) {
                warn!(pack = %pack.id, %error, "remove staged pack");
            }
        })
        .await;
    }

    async fn send(&self, pack: &Arc<StagedPack>) {
        let mut backoff = Backoff::new();
        loop {
            match self.attempt(pack).await {
                Ok(receipt) => {
                    self.progress.note(None);
                    return pack.fulfil(receipt);
                }
                Err(error) => self.progress.pause_after(&error, &mut backoff, &*self.clock).await,
            }
        }
    }

    /// Holds the permit and the body only while it sends.
    async fn attempt(&self, pack: &Arc<StagedPack>) -> Result<Receipt> {
        let gives_way = self.give_way && NEAR_BYTES_PER_SECOND <= self.speed.load(Ordering::Relaxed);
        while gives_way && self.staging.is_filling() && self.clock.monotonic() < pack.born + GIVE_WAY_MAX {
            self.clock.sleep(GIVE_WAY_STEP).await;
        }
        let (body, _permit) = match pack.take_resident() {
            Some(resident) => resident,
            None => {
                let permit = self.permits.acquire(pack.len()).await;
                let reader = pack.clone();
                let read = run_blocking(&*self.spawner, "read staged pack", move || reader.body());
                (read.await?, permit)
            }
        };
        let key = keys::pack(pack.id);
        let begun = self.clock.monotonic();
        match self.objects.put_new(&key, body.bytes.clone()).await {
            Ok(_) => {
                let took = self.clock.monotonic().saturating_sub(begun).as_secs_f64();
                self.speed.store((body.bytes.len() as f64 / took.max(1e-6)) as u64, Ordering::Relaxed);
                Ok(body.receipt)
            }
            // The name is ours alone: an earlier attempt, perhaps of an earlier process, has stored it.
            Err(error) if error.kind == Kind::Precondition => self.compare(pack, &body).await,
            Err(error) => Err(error),
        }
    }

    /// Accepts the stored pack of our name if all our frames are in it where we say. It may hold more: frames that were
    /// sent before a power cut took them from the local disk.
    async fn compare(&self, pack: &StagedPack, body: &PackBody) -> Result<Receipt> {
        let key = keys::pack(pack.id);
        let len = self.objects.head(&key).await?.len;
        let stored = pack_listing::read_directory(&*self.objects, pack.id, len).await?;
        let pairs = body.entries.iter().zip(&stored.entries);
        let all_there = body.entries.len() <= stored.entries.len() && pairs.into_iter().all(|(a, b)| a == b);
        if !all_there {
            return Err(Error::new(Kind::Corrupt, format!("put {key}: exists and holds other blocks")));
        }
        Ok(stored.receipt)
    }
}
