//! Bounds what object store calls hold at once: bytes in flight each way, and time.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{Either, select};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::base::limits::{KIB, MIB};
use crate::base::range::ByteRange;
use crate::base::time::Clock;
use crate::store::object::{
    Etag, Fencing, ImmutableObjectStore, ListPage, MutableObjectStore, ObjectKey, ObjectMeta,
};
use crate::store::{Error, Kind, Result};

/// What the smallest call weighs, so that a budget also bounds the number of requests in flight.
const WEIGHT_BYTES_MIN: u64 = 64 * KIB;

/// What reading a whole object of unknown length weighs: superblock, journal records and parts of checkpoints are
/// read so, and are about this long at most.
const WEIGHT_BYTES_UNKNOWN: u64 = MIB;

/// The slowest that a call may move its bytes, in the company of those that share its link: an uplink of 1 Mbit/s and
/// eight packs under way. Bounds a call's time together with `wait_max`; a link that moves nothing is noticed by the
/// store long before.
const BYTES_PER_SECOND_MIN: u64 = 8 * KIB;

/// Bounds of [`Limit`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of object content being sent at any time; one larger object passes alone.
    pub upload_bytes_max: u64,
    /// Bytes being received at any time; one larger read passes alone.
    pub download_bytes_max: u64,
    /// How long a call may take that moves no bytes; others get a second more per 8 KiB. Waiting for
    /// one's turn does not count.
    pub wait_max: Duration,
}

/// Lets calls through as far as [`Limits`] allow, first come first served; the rest wait. A call that exceeds its time
/// is dropped and answers `Unavailable`: its outcome is unknown.
pub struct Limit {
    inner: Arc<dyn MutableObjectStore>,
    clock: Arc<dyn Clock>,
    wait_max: Duration,
    upload: Budget,
    download: Budget,
}

/// Permits in KiB; tokio counts them in 32 bits.
struct Budget {
    permits: Semaphore,
    kib_max: u32,
}

impl Budget {
    fn new(bytes_max: u64) -> Self {
        let kib_max = u32::try_from(bytes_max.div_ceil(KIB)).unwrap_or(u32::MAX >> 4).clamp(1, u32::MAX >> 4);
        Self { permits: Semaphore::new(kib_max as usize), kib_max }
    }

    /// The right to move `bytes`, given back on drop.
    async fn acquire(&self, bytes: u64) -> SemaphorePermit<'_> {
        let kib = bytes.max(WEIGHT_BYTES_MIN).div_ceil(KIB);
        let kib = u32::try_from(kib).unwrap_or(u32::MAX).min(self.kib_max);
        self.permits.acquire_many(kib).await.expect("the semaphore is never closed")
    }
}

impl Limit {
    #[must_use]
    pub fn new(inner: Arc<dyn MutableObjectStore>, limits: Limits, clock: Arc<dyn Clock>) -> Self {
        Self {
            inner,
            clock,
            wait_max: limits.wait_max,
            upload: Budget::new(limits.upload_bytes_max),
            download: Budget::new(limits.download_bytes_max),
        }
    }

    /// Runs `call`, which moves `bytes`, within its time.
    async fn within<T>(
        &self,
        what: &str,
        bytes: u64,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let time = self.wait_max + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
        match select(pin!(call), self.clock.sleep(time)).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => {
                Err(Error::new(Kind::Unavailable, format!("{what}: no answer within {} s", time.as_secs())))
            }
        }
    }
}

#[async_trait]
impl ImmutableObjectStore for Limit {
    async fn put_new(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta> {
        let bytes = body.len() as u64;
        let _permit = self.upload.acquire(bytes).await;
        self.within(&format!("put {key}"), bytes, self.inner.put_new(key, body)).await
    }

    async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
        let bytes = range.map_or(WEIGHT_BYTES_UNKNOWN, |range| range.len());
        let _permit = self.download.acquire(bytes).await;
        self.within(&format!("get {key}"), bytes, self.inner.get(key, range)).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.within(&format!("head {key}"), 0, self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
        self.within(&format!("list {prefix}"), 0, self.inner.list(prefix, start_after)).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        // A key is at most 1 KiB of request.
        let bytes = keys.len() as u64 * KIB;
        self.within("delete", bytes, self.inner.delete(keys)).await
    }

    fn fencing(&self) -> Fencing {
        self.inner.fencing()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

#[async_trait]
impl MutableObjectStore for Limit {
    async fn put_if(&self, key: &ObjectKey, body: Bytes, expected: &Etag) -> Result<ObjectMeta> {
        let bytes = body.len() as u64;
        let _permit = self.upload.acquire(bytes).await;
        self.within(&format!("put {key}"), bytes, self.inner.put_if(key, body, expected)).await
    }

    async fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<ObjectMeta> {
        self.within(&format!("copy {from}"), 0, self.inner.copy(from, to)).await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_immediate;
    use tokio::sync::Semaphore as Gate;

    use super::*;
    use crate::backend::memory_object::MemoryObjectStore;
    use crate::rt::ManualClock;
    use crate::store::keys;

    /// Answers a write or a read only when the gate lets it.
    struct Slow {
        inner: MemoryObjectStore,
        gate: Gate,
    }

    impl Slow {
        async fn pass(&self) {
            self.gate.acquire().await.expect("the gate stays open").forget();
        }
    }

    #[async_trait]
    impl ImmutableObjectStore for Slow {
        async fn put_new(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta> {
            self.pass().await;
            self.inner.put_new(key, body).await
        }
        async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
            self.pass().await;
            self.inner.get(key, range).await
        }
        async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
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

    #[async_trait]
    impl MutableObjectStore for Slow {
        async fn put_if(&self, key: &ObjectKey, body: Bytes, expected: &Etag) -> Result<ObjectMeta> {
            self.inner.put_if(key, body, expected).await
        }
        async fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<ObjectMeta> {
            self.inner.copy(from, to).await
        }
    }

    struct Fixture {
        slow: Arc<Slow>,
        clock: Arc<ManualClock>,
        limit: Limit,
    }

    fn fixture() -> Fixture {
        let slow = Arc::new(Slow { inner: MemoryObjectStore::new(), gate: Gate::new(0) });
        let clock = Arc::new(ManualClock::new());
        let limits = Limits {
            upload_bytes_max: 2 * MIB,
            download_bytes_max: 2 * MIB,
            wait_max: Duration::from_secs(30),
        };
        let limit = Limit::new(slow.clone(), limits, clock.clone());
        Fixture { slow, clock, limit }
    }

    fn mib(mib: u64) -> Bytes {
        vec![0; (mib * MIB) as usize].into()
    }

    #[tokio::test]
    async fn uploads_beyond_the_budget_wait_and_smaller_ones_do_not_overtake() {
        let Fixture { slow, limit, .. } = fixture();
        let (first_key, large_key, small_key) =
            (keys::superblock(), keys::journal_floor(), keys::journal_floor());
        let no_version = Etag(String::new());
        let mut first = pin!(limit.put_new(&first_key, mib(1)));
        let mut large = pin!(limit.put_new(&large_key, mib(8)));
        let mut small = pin!(limit.put_if(&small_key, mib(0), &no_version));
        assert!(poll_immediate(&mut first).await.is_none());
        assert!(poll_immediate(&mut large).await.is_none());
        slow.gate.add_permits(1);
        assert!(poll_immediate(&mut small).await.is_none(), "it came after the large one");
        first.await.expect("the first has its permit");
        slow.gate.add_permits(1);
        large.await.expect("larger than the budget passes alone");
        small.await.expect_err("there is no such version");
    }

    #[tokio::test]
    async fn uploads_do_not_wait_for_downloads() {
        let Fixture { slow, limit, .. } = fixture();
        let (read_key, key) = (keys::superblock(), keys::journal_floor());
        let mut read = pin!(limit.get(&read_key, Some(ByteRange::new(0, 8 * MIB))));
        assert!(poll_immediate(&mut read).await.is_none());
        slow.gate.add_permits(2);
        limit.put_new(&key, mib(2)).await.expect("its own budget is free");
        read.await.expect_err("there is no such object");
    }

    #[tokio::test]
    async fn a_call_that_takes_too_long_is_given_up_and_gives_its_permits_back() {
        let Fixture { slow, clock, limit } = fixture();
        let key = keys::superblock();
        let mut stuck = pin!(limit.put_new(&key, mib(2)));
        assert!(poll_immediate(&mut stuck).await.is_none());
        clock.advance(Duration::from_secs(30 + 255));
        assert!(poll_immediate(&mut stuck).await.is_none(), "2 MiB may take 256 s longer than none");
        clock.advance(Duration::from_secs(1));
        let error = stuck.await.expect_err("time is up");
        assert_eq!(error.kind, Kind::Unavailable);
        assert_eq!(error.detail, "put superblock: no answer within 286 s");
        slow.gate.add_permits(1);
        limit.put_new(&key, mib(2)).await.expect("the permits are back");
    }
}
