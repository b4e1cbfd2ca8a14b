//! Tests of the retry wrapper on a store that fails by script and a clock that jumps.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Mutex;

use super::*;
use crate::backend::memory_object::MemoryObjectStore;
use crate::base::time::Timestamp;
use crate::rt::SeededRandom;
use crate::store::keys;

/// What becomes of a call.
#[derive(Clone, Copy)]
enum Fate {
    Works,
    Fails(Kind),
    /// Applied, and the answer is lost.
    Lost,
}

#[derive(Default)]
struct Scripted {
    inner: MemoryObjectStore,
    /// The next calls' fates; those behind work.
    script: Mutex<VecDeque<Fate>>,
}

impl Scripted {
    async fn play<T>(&self, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let fate = self.script.lock().expect("no panics").pop_front();
        match fate.unwrap_or(Fate::Works) {
            Fate::Works => call.await,
            Fate::Fails(kind) => Err(Error::new(kind, "put superblock: told to fail")),
            Fate::Lost => {
                call.await?;
                Err(Error::new(Kind::Unavailable, "put superblock: told to lose the answer"))
            }
        }
    }
}

#[async_trait]
impl ImmutableObjectStore for Scripted {
    async fn put_new(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta> {
        self.play(self.inner.put_new(key, body)).await
    }
    async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
        self.play(self.inner.get(key, range)).await
    }
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.play(self.inner.head(key)).await
    }
    async fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
        self.play(self.inner.list(prefix, start_after)).await
    }
    async fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        self.play(self.inner.delete(keys)).await
    }
    fn fencing(&self) -> Fencing {
        self.inner.fencing()
    }
    fn location(&self) -> String {
        self.inner.location()
    }
}

#[async_trait]
impl MutableObjectStore for Scripted {
    async fn put_if(&self, key: &ObjectKey, body: Bytes, expected: &Etag) -> Result<ObjectMeta> {
        self.play(self.inner.put_if(key, body, expected)).await
    }
    async fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<ObjectMeta> {
        self.play(self.inner.copy(from, to)).await
    }
}

/// Jumps ahead instead of sleeping, and notes how far.
#[derive(Default)]
struct JumpingClock {
    sleeps: Mutex<Vec<Duration>>,
}

impl Clock for JumpingClock {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }
    fn monotonic(&self) -> Duration {
        self.sleeps.lock().expect("no panics").iter().sum()
    }
    fn sleep(&self, delay: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        self.sleeps.lock().expect("no panics").push(delay);
        Box::pin(std::future::ready(()))
    }
}

struct Fixture {
    store: Arc<Scripted>,
    clock: Arc<JumpingClock>,
    retry: Retry,
}

fn fixture(script: &[Fate]) -> Fixture {
    let store = Arc::new(Scripted::default());
    store.script.lock().expect("no panics").extend(script);
    let clock = Arc::new(JumpingClock::default());
    let policy = RetryPolicy {
        base: Duration::from_millis(100),
        wait_max: Duration::from_secs(2),
        give_up_after: Duration::from_secs(20),
    };
    let retry = Retry::new(store.clone(), policy, clock.clone(), Arc::new(SeededRandom::new(7)));
    Fixture { store, clock, retry }
}

const BODY: Bytes = Bytes::from_static(b"body");

#[tokio::test]
async fn passing_failures_are_repeated_with_growing_waits() {
    let fails = [Fate::Fails(Kind::Unavailable), Fate::Fails(Kind::Throttled)].repeat(8);
    let Fixture { clock, retry, .. } = fixture(&fails);
    retry.put_new(&keys::superblock(), BODY).await.expect("works at last");
    let sleeps = clock.sleeps.lock().expect("no panics").clone();
    assert_eq!(sleeps.len(), 16);
    for (number, sleep) in sleeps.iter().enumerate() {
        let ceiling = Duration::from_millis(100 << number.min(10)).min(Duration::from_secs(2));
        assert!(*sleep <= ceiling, "wait {number} is {sleep:?}");
    }
    let long = sleeps.iter().filter(|sleep| Duration::from_millis(500) < **sleep).count();
    assert!(4 <= long, "the waits must grow: {sleeps:?}");
}

#[tokio::test]
async fn lasting_failures_are_passed_on_at_once() {
    for kind in [Kind::Denied, Kind::Corrupt, Kind::Full, Kind::NotFound, Kind::Internal, Kind::Fenced] {
        let Fixture { clock, retry, .. } = fixture(&[Fate::Fails(kind)]);
        assert_eq!(retry.get(&keys::superblock(), None).await.expect_err("told to").kind, kind);
        assert!(clock.sleeps.lock().expect("no panics").is_empty());
    }
}

#[tokio::test]
async fn it_gives_up_in_time_and_says_how_often_it_tried() {
    let Fixture { clock, retry, .. } = fixture(&[Fate::Fails(Kind::Unavailable); 1000]);
    let error = retry.list("", None).await.expect_err("never works");
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(clock.monotonic() <= Duration::from_secs(20));
    let attempts = clock.sleeps.lock().expect("no panics").len() + 1;
    assert!(error.detail.contains(&format!("attempts={attempts} in ")), "{}", error.detail);
}

/// An upload whose answer was lost was repeated, met its own object, and was reported as another writer's: the mount
/// believed itself fenced.
#[tokio::test]
async fn a_create_whose_answer_was_lost_is_a_success() {
    let Fixture { store, retry, .. } = fixture(&[Fate::Lost]);
    let meta = retry.put_new(&keys::superblock(), BODY).await.expect("it is our own object");
    assert_eq!(store.inner.head(&keys::superblock()).await.expect("head"), meta);
}

#[tokio::test]
async fn the_comparison_after_a_lost_answer_is_repeated_too() {
    let passing = Fate::Fails(Kind::Unavailable);
    let script = [Fate::Lost, Fate::Works, passing, Fate::Works, passing];
    let Fixture { retry, .. } = fixture(&script);
    retry.put_new(&keys::superblock(), BODY).await.expect("it is our own object");
}

#[tokio::test]
async fn anothers_object_stays_a_precondition_also_after_an_unknown_outcome() {
    for other in [Bytes::from_static(b"other"), Bytes::from_static(b"bode")] {
        let Fixture { store, retry, .. } = fixture(&[Fate::Fails(Kind::Unavailable)]);
        store.inner.put_new(&keys::superblock(), other).await.expect("the other writer was first");
        let error = retry.put_new(&keys::superblock(), BODY).await.expect_err("it is not ours");
        assert_eq!(error.kind, Kind::Precondition);
    }
}

#[tokio::test]
async fn an_identical_object_is_no_success_where_every_answer_arrived() {
    let Fixture { store, retry, .. } = fixture(&[]);
    store.inner.put_new(&keys::superblock(), BODY).await.expect("the other writer was first");
    let error = retry.put_new(&keys::superblock(), BODY).await.expect_err("it is not ours");
    assert_eq!(error.kind, Kind::Precondition);
}

#[tokio::test]
async fn an_overwrite_whose_answer_was_lost_is_a_success() {
    let Fixture { store, retry, .. } = fixture(&[Fate::Lost]);
    let old = store.inner.put_new(&keys::superblock(), Bytes::new()).await.expect("create");
    let meta = retry.put_if(&keys::superblock(), BODY, &old.etag).await.expect("it is our own object");
    assert_eq!(store.inner.head(&keys::superblock()).await.expect("head"), meta);
}
