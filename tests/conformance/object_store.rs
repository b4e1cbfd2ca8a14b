//! `ImmutableObjectStore` and `MutableObjectStore`: one check per line of their contracts.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use gravitonfs::backend::dir::DirObjectStore;
use gravitonfs::backend::memory_object::MemoryObjectStore;
use gravitonfs::backend::s3::{AccessKey, S3ObjectStore, S3Options};
use gravitonfs::backend::wrap::{Limit, Limits, Measure, RequestCounters, Retry, RetryPolicy};
use gravitonfs::base::ids::WriterId;
use gravitonfs::base::limits::MIB;
use gravitonfs::base::range::ByteRange;
use gravitonfs::rt::{SeededRandom, SystemClock};
use gravitonfs::store::object::{ListPage, MutableObjectStore, ObjectKey, ObjectMeta, PAGE_OBJECTS_MAX};
use gravitonfs::store::probe::probe_conditional_writes;
use gravitonfs::store::{Kind, Result};

use crate::s3::{self, Mode, S3Server};

#[path = "object_store_broken.rs"]
mod broken;

type Check = for<'a> fn(&'a dyn MutableObjectStore) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

macro_rules! checks {
    ($($name:ident,)*) => {
        &[$((stringify!($name), |store| Box::pin($name(store)))),*]
    };
}

/// Every line of the contracts, by name.
const CHECKS: &[(&str, Check)] = checks![
    put_new_creates_the_whole_object,
    put_new_refuses_an_existing_key,
    of_concurrent_creates_one_succeeds,
    get_answers_exactly_the_range,
    get_beyond_the_end_is_corrupt,
    get_of_a_missing_object_is_not_found,
    head_answers_length_and_version,
    head_of_a_missing_object_is_not_found,
    list_is_in_byte_order,
    list_prefix_is_plain_text,
    list_starts_after_the_given_key,
    list_pages_cover_everything_once,
    delete_removes_and_a_missing_object_counts_as_deleted,
    a_deleted_key_can_be_created_again,
    put_if_replaces_the_expected_version,
    put_if_refuses_another_version,
    put_if_never_creates,
    of_concurrent_overwrites_one_succeeds,
    every_overwrite_changes_the_version,
    copy_makes_an_equal_object,
    copy_replaces_its_target,
    copy_of_a_missing_object_is_not_found,
    a_large_object_comes_back_and_is_created_once,
    a_large_object_replaces_the_expected_version_only,
];

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text.to_owned())
}

fn body(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn put(store: &dyn MutableObjectStore, name: &str, text: &str) -> ObjectMeta {
    store.put_new(&key(name), body(text)).await.expect("create an object")
}

async fn read(store: &dyn MutableObjectStore, name: &str) -> Bytes {
    store.get(&key(name), None).await.expect("read an object")
}

fn kind<T>(result: Result<T>) -> Option<Kind> {
    result.err().map(|error| error.kind)
}

async fn put_new_creates_the_whole_object(store: &dyn MutableObjectStore) {
    for (name, text) in [("packs/00/a", "content"), ("empty", "")] {
        let meta = put(store, name, text).await;
        assert_eq!((meta.key.as_str(), meta.len), (name, text.len() as u64));
        assert_eq!(read(store, name).await, text);
    }
}

async fn put_new_refuses_an_existing_key(store: &dyn MutableObjectStore) {
    put(store, "a", "first").await;
    for text in ["second", "first"] {
        assert_eq!(kind(store.put_new(&key("a"), body(text)).await), Some(Kind::Precondition));
    }
    assert_eq!(read(store, "a").await, "first");
}

async fn of_concurrent_creates_one_succeeds(store: &dyn MutableObjectStore) {
    for round in 0..4 {
        let name = key(&format!("race/{round}"));
        let bodies: Vec<_> = (0..8).map(|racer| body(&format!("racer {racer}"))).collect();
        let results = join_all(bodies.iter().map(|body| store.put_new(&name, body.clone()))).await;
        let won: Vec<_> =
            results.iter().zip(&bodies).filter(|(result, _)| result.is_ok()).map(|(_, body)| body).collect();
        assert_eq!(won.len(), 1, "{results:?}");
        assert_eq!(read(store, name.as_str()).await, won[0]);
        let mut lost = results.into_iter().filter_map(kind);
        assert!(lost.all(|kind| kind == Kind::Precondition));
    }
}

async fn get_answers_exactly_the_range(store: &dyn MutableObjectStore) {
    put(store, "a", "0123456789").await;
    for (start, end) in [(0, 10), (0, 1), (3, 7), (9, 10), (4, 4), (10, 10)] {
        let range = ByteRange::new(start, end);
        let got = store.get(&key("a"), Some(range)).await.expect("read a range");
        assert_eq!(got, "0123456789"[start as usize..end as usize], "{range:?}");
    }
}

async fn get_beyond_the_end_is_corrupt(store: &dyn MutableObjectStore) {
    put(store, "a", "0123456789").await;
    for (start, end) in [(0, 11), (9, 11), (10, 11), (500, 600), (11, 11)] {
        let range = ByteRange::new(start, end);
        assert_eq!(kind(store.get(&key("a"), Some(range)).await), Some(Kind::Corrupt), "{range:?}");
    }
}

async fn get_of_a_missing_object_is_not_found(store: &dyn MutableObjectStore) {
    put(store, "dir/a", "").await;
    for name in ["b", "dir", "dir/b", "dir/a/b"] {
        for range in [None, Some(ByteRange::new(0, 1)), Some(ByteRange::new(0, 0))] {
            assert_eq!(kind(store.get(&key(name), range).await), Some(Kind::NotFound), "{name} {range:?}");
        }
    }
}

async fn head_answers_length_and_version(store: &dyn MutableObjectStore) {
    let created = put(store, "a", "content").await;
    assert_eq!(store.head(&key("a")).await.expect("head"), created);
}

async fn head_of_a_missing_object_is_not_found(store: &dyn MutableObjectStore) {
    put(store, "dir/a", "").await;
    for name in ["b", "dir", "dir/a/b"] {
        assert_eq!(kind(store.head(&key(name)).await), Some(Kind::NotFound), "{name}");
    }
}

/// In the order of their bytes; in a tree of directories `a/` and `a-` invite another one.
const NAMES: [&str; 9] = ["a", "a-b", "a.b", "a/b", "a/b-c", "a0", "b/a/a", "b/aa", "c"];

async fn put_names(store: &dyn MutableObjectStore) -> Vec<ObjectMeta> {
    // Not every store can hold both `a` and `a/b`; no two of our own keys are so.
    let mut metas = Vec::new();
    for name in NAMES.iter().filter(|name| **name != "a").rev() {
        metas.push(put(store, name, name).await);
    }
    metas.reverse();
    metas
}

fn names(page: &ListPage) -> Vec<&str> {
    page.objects.iter().map(|object| object.key.as_str()).collect()
}

async fn list_is_in_byte_order(store: &dyn MutableObjectStore) {
    let created = put_names(store).await;
    let page = store.list("", None).await.expect("list");
    assert_eq!(page.objects, created);
    assert!(!page.more);
}

async fn list_prefix_is_plain_text(store: &dyn MutableObjectStore) {
    put_names(store).await;
    for prefix in ["a", "a/", "a/b", "a/b-", "b/a", "b/a/", "c", "d", "a/b/"] {
        let page = store.list(prefix, None).await.expect("list");
        let expected: Vec<_> = NAMES[1..].iter().copied().filter(|name| name.starts_with(prefix)).collect();
        assert_eq!(names(&page), expected, "{prefix}");
    }
}

async fn list_starts_after_the_given_key(store: &dyn MutableObjectStore) {
    put_names(store).await;
    for after in ["a", "a-b", "a/b", "a/bb", "a/b-c", "b", "b/a", "b/a/a", "c", "d"] {
        for prefix in ["", "a", "b/"] {
            let page = store.list(prefix, Some(&key(after))).await.expect("list");
            let expected: Vec<_> =
                NAMES[1..].iter().copied().filter(|name| name.starts_with(prefix) && after < *name).collect();
            assert_eq!(names(&page), expected, "prefix={prefix} after={after}");
        }
    }
}

async fn list_pages_cover_everything_once(store: &dyn MutableObjectStore) {
    let mut expected: Vec<_> =
        (0..PAGE_OBJECTS_MAX + 5).map(|number| format!("many/{}/{number:04}", number % 3)).collect();
    let created = stream::iter(&expected).map(|name| put(store, name, "")).buffer_unordered(32);
    assert_eq!(created.count().await, PAGE_OBJECTS_MAX + 5);
    expected.sort();
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = store.list("many/", after.as_ref()).await.expect("list");
        assert!(page.objects.len() <= PAGE_OBJECTS_MAX);
        listed.extend(page.objects.iter().map(|object| object.key.to_string()));
        after = page.objects.last().map(|object| object.key.clone());
        if !page.more {
            break;
        }
    }
    assert_eq!(listed, expected);
    let keys: Vec<_> = expected.iter().map(|name| key(name)).collect();
    store.delete(&keys).await.expect("delete more keys than fit into one request");
    assert!(store.list("", None).await.expect("list").objects.is_empty());
}

async fn delete_removes_and_a_missing_object_counts_as_deleted(store: &dyn MutableObjectStore) {
    for name in ["a", "b", "c"] {
        put(store, name, "content").await;
    }
    store.delete(&[key("a")]).await.expect("delete one");
    store.delete(&[key("a")]).await.expect("delete it again");
    store.delete(&[key("a"), key("b"), key("never/was"), key("c/d")]).await.expect("delete several");
    assert_eq!(kind(store.get(&key("a"), None).await), Some(Kind::NotFound));
    assert_eq!(names(&store.list("", None).await.expect("list")), ["c"]);
    store.delete(&[]).await.expect("delete nothing");
}

async fn a_deleted_key_can_be_created_again(store: &dyn MutableObjectStore) {
    put(store, "a", "first").await;
    store.delete(&[key("a")]).await.expect("delete");
    put(store, "a", "second").await;
    assert_eq!(read(store, "a").await, "second");
}

async fn put_if_replaces_the_expected_version(store: &dyn MutableObjectStore) {
    let first = put(store, "a", "first").await;
    let second = store.put_if(&key("a"), body("second one"), &first.etag).await.expect("overwrite");
    assert_eq!(second.len, 10);
    assert_eq!(store.head(&key("a")).await.expect("head"), second);
    assert_eq!(read(store, "a").await, "second one");
}

async fn put_if_refuses_another_version(store: &dyn MutableObjectStore) {
    let first = put(store, "a", "first").await;
    store.put_if(&key("a"), body("second"), &first.etag).await.expect("overwrite");
    let late = store.put_if(&key("a"), body("third"), &first.etag).await;
    assert_eq!(kind(late), Some(Kind::Precondition));
    assert_eq!(read(store, "a").await, "second");
}

async fn put_if_never_creates(store: &dyn MutableObjectStore) {
    let created = put(store, "a", "first").await;
    store.delete(&[key("a")]).await.expect("delete");
    let refused = kind(store.put_if(&key("a"), body("second"), &created.etag).await);
    assert!(matches!(refused, Some(Kind::NotFound | Kind::Precondition)), "{refused:?}");
    assert_eq!(kind(store.head(&key("a")).await), Some(Kind::NotFound));
}

async fn of_concurrent_overwrites_one_succeeds(store: &dyn MutableObjectStore) {
    let mut current = put(store, "a", "first").await;
    for round in 0..4 {
        let bodies: Vec<_> = (0..8).map(|racer| body(&format!("{round} {racer}"))).collect();
        let writes = bodies.iter().map(|body| store.put_if(&current.key, body.clone(), &current.etag));
        let results = join_all(writes).await;
        let won: Vec<_> = results.iter().zip(&bodies).filter(|(result, _)| result.is_ok()).collect();
        assert_eq!(won.len(), 1, "{results:?}");
        assert_eq!(read(store, "a").await, won[0].1);
        current = store.head(&current.key).await.expect("head");
    }
}

async fn every_overwrite_changes_the_version(store: &dyn MutableObjectStore) {
    let mut current = put(store, "a", "0").await;
    let mut seen = vec![current.etag.clone()];
    for number in 1..20 {
        current = store.put_if(&key("a"), body(&number.to_string()), &current.etag).await.expect("overwrite");
        assert!(!seen.contains(&current.etag), "version {number} looks like an older one");
        seen.push(current.etag.clone());
    }
}

async fn copy_makes_an_equal_object(store: &dyn MutableObjectStore) {
    let source = put(store, "a", "content").await;
    let copied = store.copy(&key("a"), &key("dir/b")).await.expect("copy");
    assert_eq!((copied.key.as_str(), copied.len), ("dir/b", 7));
    assert_eq!(store.head(&key("dir/b")).await.expect("head"), copied);
    assert_eq!(read(store, "dir/b").await, "content");
    assert_eq!(store.head(&key("a")).await.expect("head"), source);
}

async fn copy_replaces_its_target(store: &dyn MutableObjectStore) {
    put(store, "a", "new").await;
    let old = put(store, "b", "old").await;
    store.copy(&key("a"), &key("b")).await.expect("copy");
    assert_eq!(read(store, "b").await, "new");
    let late = store.put_if(&key("b"), body("later"), &old.etag).await;
    assert_eq!(kind(late), Some(Kind::Precondition), "the copy must be a new version");
}

async fn copy_of_a_missing_object_is_not_found(store: &dyn MutableObjectStore) {
    assert_eq!(kind(store.copy(&key("a"), &key("b")).await), Some(Kind::NotFound));
}

/// Above the size that S3 takes in one request of ours, and no multiple of anything.
fn large_body() -> Bytes {
    Bytes::from_iter((0..65 * MIB as u32 + 3).map(|index| (index >> 12) as u8))
}

async fn a_large_object_comes_back_and_is_created_once(store: &dyn MutableObjectStore) {
    let (name, large) = (key("large"), large_body());
    store.put_new(&name, large.clone()).await.expect("create a large object");
    assert_eq!(kind(store.put_new(&name, large.slice(1..)).await), Some(Kind::Precondition));
    assert!(store.get(&name, None).await.expect("read it") == large, "the content differs");
    let end = ByteRange::new(65 * MIB, 65 * MIB + 3);
    let tail = store.get(&name, Some(end)).await.expect("read its end");
    assert_eq!(tail, large.slice(65 * MIB as usize..));
}

async fn a_large_object_replaces_the_expected_version_only(store: &dyn MutableObjectStore) {
    let (name, large) = (key("large"), large_body());
    let first = put(store, "large", "small").await;
    let second = store.put_if(&name, large.clone(), &first.etag).await.expect("overwrite");
    assert_eq!(second.len, large.len() as u64);
    assert_eq!(kind(store.put_if(&name, large.slice(1..), &first.etag).await), Some(Kind::Precondition));
    assert_eq!(store.head(&name).await.expect("head"), second);
}

// What the checks run on.

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("start a runtime")
}

/// The store as a mount stacks it.
fn stacked(store: Arc<dyn MutableObjectStore>) -> Arc<dyn MutableObjectStore> {
    let clock = Arc::new(SystemClock::new(tokio::runtime::Handle::current()));
    let limits =
        Limits { upload_bytes_max: 8 * MIB, download_bytes_max: 8 * MIB, wait_max: Duration::from_secs(60) };
    let policy = RetryPolicy {
        base: Duration::from_millis(10),
        wait_max: Duration::from_secs(1),
        give_up_after: Duration::from_secs(60),
    };
    let measured = Arc::new(Measure::new(store, Arc::new(RequestCounters::default())));
    let limited = Arc::new(Limit::new(measured, limits, clock.clone()));
    Arc::new(Retry::new(limited, policy, clock, Arc::new(SeededRandom::new(1))))
}

/// Runs every check on a new store, bare and in its wrappers.
fn run(skipped: &[&str], mut open: impl AsyncFnMut(&str) -> Arc<dyn MutableObjectStore>) {
    runtime().block_on(async {
        for (name, check) in CHECKS.iter().filter(|(name, _)| !skipped.contains(name)) {
            println!("check={name}");
            check(&*open(&format!("bare/{name}")).await).await;
            check(&*stacked(open(&format!("stacked/{name}")).await)).await;
        }
    });
}

#[test]
fn memory_keeps_the_contract() {
    run(&[], async |_| Arc::new(MemoryObjectStore::new()) as Arc<_>);
}

#[test]
fn a_directory_keeps_the_contract() {
    let root = tempfile::tempdir().expect("make a directory");
    run(&[], async |name| {
        Arc::new(DirObjectStore::create(root.path().join(name)).expect("open a directory store")) as Arc<_>
    });
}

#[test]
fn s3_keeps_the_contract() {
    let server = S3Server::start(Mode::Atomic);
    server.create_bucket("bucket");
    let access_key = AccessKey { id: s3::ACCESS_KEY.into(), secret: s3::SECRET_KEY.into() };
    run_s3(&server.endpoint(), "bucket", &access_key, &[]);
}

/// Checks that only hold where conditional writes do.
const CONDITIONAL: &[&str] = &[
    "put_new_refuses_an_existing_key",
    "of_concurrent_creates_one_succeeds",
    "put_if_refuses_another_version",
    "put_if_never_creates",
    "of_concurrent_overwrites_one_succeeds",
    "copy_replaces_its_target",
    "a_large_object_comes_back_and_is_created_once",
    "a_large_object_replaces_the_expected_version_only",
];

/// Run by the scripts in tests/external, which start a server that nobody here wrote and name it in the environment.
#[test]
fn external_s3_keeps_the_contract() {
    let variable = |name: &str| std::env::var(format!("GRAVITONFS_TEST_S3_{name}"));
    let Ok(endpoint) = variable("ENDPOINT") else {
        println!("skipped: GRAVITONFS_TEST_S3_ENDPOINT names no server");
        return;
    };
    let required = |name: &str| variable(name).expect("the script sets every variable");
    let access_key = AccessKey { id: required("KEY"), secret: required("SECRET") };
    let fencing = variable("FENCING").unwrap_or("cas".to_owned());
    let unsupported = variable("SKIP").unwrap_or_default();
    let mut skipped: Vec<_> = unsupported.split(' ').collect();
    if fencing != "cas" {
        skipped.extend(CONDITIONAL);
    }
    let bucket = required("BUCKET");
    let found = runtime().block_on(async {
        let store = open_s3(&endpoint, &bucket, &access_key, "probe").await;
        probe_conditional_writes(&*store, WriterId(1), &SeededRandom::new(1)).await.expect("probe")
    });
    assert_eq!(found.as_str(), fencing);
    run_s3(&endpoint, &bucket, &access_key, &skipped);
}

fn run_s3(endpoint: &str, bucket: &str, access_key: &AccessKey, skipped: &[&str]) {
    run(skipped, async |name| {
        open_s3(endpoint, bucket, access_key, &format!("some prefix/{name}")).await as Arc<_>
    });
}

async fn open_s3(endpoint: &str, bucket: &str, access_key: &AccessKey, prefix: &str) -> Arc<S3ObjectStore> {
    let options = S3Options {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: Some(endpoint.to_owned()),
        region: Some(s3::REGION.to_owned()),
        path_style: true,
        access_key: Some(access_key.clone()),
        ..S3Options::default()
    };
    Arc::new(S3ObjectStore::open(options, Arc::default()).await.expect("open the store"))
}
