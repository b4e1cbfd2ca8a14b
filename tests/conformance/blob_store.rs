//! `BlobStore`: one check per line of its contract. Another store is checked by calling [`check_all`] with it. Stores that
//! live in a runtime of their own go on there while a check waits.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use async_trait::async_trait;
use bytes::Bytes;
use gravitonfs::backend::memory_blob::InMemoryBlobStore;
use gravitonfs::base::range::ByteRange;
use gravitonfs::store::blob::{BlobKey, BlobSource, BlobStat, BlobStore};
use gravitonfs::store::{Error, Kind, Result};
use gravitonfs::vfs::VolumeBlobs;

use super::world::World;

type Check = fn(&dyn BlobStore);

const CHECKS: &[(&str, Check)] = &[
    ("a blob reads back whole and in parts", a_blob_reads_back_whole_and_in_parts),
    ("a range is cut to the blob", a_range_is_cut_to_the_blob),
    ("an empty blob is a blob", an_empty_blob_is_a_blob),
    ("a key is put once", a_key_is_put_once),
    ("a put that fails leaves nothing", a_put_that_fails_leaves_nothing),
    ("a missing blob is NotFound", a_missing_blob_is_not_found),
    ("stat tells the length", stat_tells_the_length),
    ("delete removes one blob and missing is success", delete_removes_one_blob_and_missing_is_success),
    ("a clone outlives its origin", a_clone_outlives_its_origin),
    ("a clone does not replace", a_clone_does_not_replace),
    ("list is ordered and ends where the visitor breaks", list_is_ordered_and_ends_where_the_visitor_breaks),
];

/// Runs every check; `on_new_store` makes a store and lends it.
fn check_all(on_new_store: impl Fn(&Check)) {
    for (name, check) in CHECKS {
        println!("{name}");
        on_new_store(check);
    }
}

/// Some pieces, and at the end an error or none.
struct Pieces {
    left: VecDeque<Bytes>,
    fails: bool,
}

#[async_trait]
impl BlobSource for Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        match self.left.pop_front() {
            None if self.fails => Err(Error::new(Kind::Internal, "the source broke")),
            piece => Ok(piece),
        }
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime for the test").block_on(future)
}

fn key(text: &str) -> BlobKey {
    BlobKey::parse(text).expect("valid key")
}

fn put(store: &dyn BlobStore, name: &str, text: &str) -> Result<BlobStat> {
    let pieces = text.as_bytes().chunks(1 + text.len() / 5).map(Bytes::copy_from_slice).collect();
    now(store.put(&key(name), &mut Pieces { left: pieces, fails: false }))
}

fn get(store: &dyn BlobStore, name: &str, range: Option<(u64, u64)>) -> Result<Bytes> {
    now(store.get(&key(name), range.map(|(start, end)| ByteRange::new(start, end))))
}

/// More than fits a block or lives in metadata.
fn long_text() -> String {
    (0..20_000u32).map(|line| format!("{line:05}")).collect()
}

fn kind<T>(result: Result<T>) -> Option<Kind> {
    result.err().map(|error| error.kind)
}

fn listed(store: &dyn BlobStore, count: usize) -> Vec<(String, u64)> {
    let mut blobs = Vec::new();
    let mut visit = |key: &BlobKey, stat: BlobStat| {
        blobs.push((key.to_string(), stat.len));
        if blobs.len() == count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    now(store.list(&mut visit)).expect("list");
    blobs
}

fn a_blob_reads_back_whole_and_in_parts(store: &dyn BlobStore) {
    put(store, "k", "some content").expect("put");
    assert_eq!(get(store, "k", None).expect("get"), "some content");
    assert_eq!(get(store, "k", Some((5, 9))).expect("get"), "cont");
    let long = long_text();
    put(store, "long", &long).expect("put");
    assert!(get(store, "long", None).expect("get") == long);
    assert!(get(store, "long", Some((20_000, 90_001))).expect("get") == long[20_000..90_001]);
}

fn a_range_is_cut_to_the_blob(store: &dyn BlobStore) {
    put(store, "k", "abc").expect("put");
    assert_eq!(get(store, "k", Some((1, 100))).expect("get"), "bc");
    assert_eq!(get(store, "k", Some((3, 4))).expect("get"), "");
    assert_eq!(get(store, "k", Some((u64::MAX - 1, u64::MAX))).expect("get"), "");
}

fn an_empty_blob_is_a_blob(store: &dyn BlobStore) {
    assert_eq!(put(store, "k", "").expect("put"), BlobStat { len: 0, blocks: 0 });
    assert_eq!(get(store, "k", None).expect("get"), "");
    assert_eq!(listed(store, usize::MAX), [("k".to_owned(), 0)]);
}

fn a_key_is_put_once(store: &dyn BlobStore) {
    put(store, "k", "old").expect("put");
    assert_eq!(kind(put(store, "k", "new")), Some(Kind::Precondition));
    assert_eq!(get(store, "k", None).expect("get"), "old");
}

fn a_put_that_fails_leaves_nothing(store: &dyn BlobStore) {
    let mut source = Pieces { left: [Bytes::from("abc")].into(), fails: true };
    assert_eq!(kind(now(store.put(&key("k"), &mut source))), Some(Kind::Internal));
    assert_eq!(kind(get(store, "k", None)), Some(Kind::NotFound));
    assert_eq!(listed(store, usize::MAX), []);
    put(store, "k", "abc").expect("the key is still free");
}

fn a_missing_blob_is_not_found(store: &dyn BlobStore) {
    put(store, "other", "abc").expect("put");
    assert_eq!(kind(get(store, "k", None)), Some(Kind::NotFound));
    assert_eq!(kind(now(store.stat(&key("k")))), Some(Kind::NotFound));
    assert_eq!(kind(now(store.clone_as(&key("k"), &key("l")))), Some(Kind::NotFound));
}

fn stat_tells_the_length(store: &dyn BlobStore) {
    for text in ["some content", &long_text()] {
        let stat = put(store, &text.len().to_string(), text).expect("put");
        assert_eq!(stat.len, text.len() as u64);
        assert_eq!(now(store.stat(&key(&text.len().to_string()))).expect("stat"), stat);
    }
    assert!(0 < now(store.stat(&key("100000"))).expect("stat").blocks);
}

fn delete_removes_one_blob_and_missing_is_success(store: &dyn BlobStore) {
    put(store, "a", "same").expect("put");
    put(store, "b", "same").expect("put");
    for _ in 0..2 {
        now(store.delete(&key("a"))).expect("delete");
    }
    assert_eq!(kind(get(store, "a", None)), Some(Kind::NotFound));
    assert_eq!(get(store, "b", None).expect("get"), "same");
}

fn a_clone_outlives_its_origin(store: &dyn BlobStore) {
    put(store, "a", "content").expect("put");
    now(store.clone_as(&key("a"), &key("b"))).expect("clone");
    now(store.delete(&key("a"))).expect("delete");
    assert_eq!(get(store, "b", None).expect("get"), "content");
}

fn a_clone_does_not_replace(store: &dyn BlobStore) {
    put(store, "a", "new").expect("put");
    put(store, "b", "old").expect("put");
    assert_eq!(kind(now(store.clone_as(&key("a"), &key("b")))), Some(Kind::Precondition));
    assert_eq!(get(store, "b", None).expect("get"), "old");
}

fn list_is_ordered_and_ends_where_the_visitor_breaks(store: &dyn BlobStore) {
    for name in ["b", "a/2", "a", "B"] {
        put(store, name, name).expect("put");
    }
    let names = |count| listed(store, count).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(usize::MAX), ["B", "a", "a/2", "b"]);
    assert_eq!(names(2), ["B", "a"]);
}

#[test]
fn the_memory_store_keeps_the_contract() {
    check_all(|check| check(&InMemoryBlobStore::new()));
}

#[test]
fn the_blobs_of_a_volume_keep_the_contract() {
    check_all(|check| {
        let world = World::new(1);
        check(&VolumeBlobs(world.vfs().clone()));
    });
}

// Broken stores: each breaks one line, and that line's check must notice.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    IgnoresRange,
    RefusesLongRanges,
    NoEmptyBlobs,
    Replaces,
    KeepsTornPuts,
    MissingIsEmpty,
    StatCountsPieces,
    DeletesAll,
    CloneMoves,
    CloneReplaces,
    ListsBackwards,
}

const FAULTS: &[Fault] = &[
    Fault::IgnoresRange,
    Fault::RefusesLongRanges,
    Fault::NoEmptyBlobs,
    Fault::Replaces,
    Fault::KeepsTornPuts,
    Fault::MissingIsEmpty,
    Fault::StatCountsPieces,
    Fault::DeletesAll,
    Fault::CloneMoves,
    Fault::CloneReplaces,
    Fault::ListsBackwards,
];

struct Faulty {
    inner: InMemoryBlobStore,
    fault: Fault,
}

impl Faulty {
    async fn keys(&self) -> Vec<BlobKey> {
        let mut keys = Vec::new();
        let mut visit = |key: &BlobKey, _| {
            keys.push(key.clone());
            ControlFlow::Continue(())
        };
        self.inner.list(&mut visit).await.expect("list");
        keys
    }
}

#[async_trait]
impl BlobStore for Faulty {
    async fn put(&self, key: &BlobKey, source: &mut dyn BlobSource) -> Result<BlobStat> {
        let (mut left, mut outcome) = (VecDeque::new(), Ok(()));
        loop {
            match source.next().await {
                Ok(Some(piece)) => left.push_back(piece),
                Ok(None) => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        if self.fault == Fault::Replaces {
            self.inner.delete(key).await?;
        }
        let is_empty = left.is_empty();
        if outcome.is_ok() || self.fault == Fault::KeepsTornPuts {
            let stat = self.inner.put(key, &mut Pieces { left, fails: false }).await?;
            if is_empty && self.fault == Fault::NoEmptyBlobs {
                self.inner.delete(key).await?;
            }
            return outcome.map(|()| stat);
        }
        outcome.map(|()| BlobStat { len: 0, blocks: 0 })
    }

    async fn get(&self, key: &BlobKey, range: Option<ByteRange>) -> Result<Bytes> {
        match self.fault {
            Fault::IgnoresRange => self.inner.get(key, None).await,
            Fault::RefusesLongRanges => {
                let len = self.inner.stat(key).await?.len;
                match range {
                    Some(range) if len < range.end => Err(Error::new(Kind::Internal, "range beyond the end")),
                    _ => self.inner.get(key, range).await,
                }
            }
            Fault::MissingIsEmpty => match self.inner.get(key, range).await {
                Err(error) if error.kind == Kind::NotFound => Ok(Bytes::new()),
                other => other,
            },
            _ => self.inner.get(key, range).await,
        }
    }

    async fn stat(&self, key: &BlobKey) -> Result<BlobStat> {
        let stat = self.inner.stat(key).await?;
        let counted = BlobStat { len: stat.blocks, ..stat };
        Ok(if self.fault == Fault::StatCountsPieces { counted } else { stat })
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        if self.fault == Fault::DeletesAll {
            for key in self.keys().await {
                self.inner.delete(&key).await?;
            }
        }
        self.inner.delete(key).await
    }

    async fn clone_as(&self, from: &BlobKey, to: &BlobKey) -> Result<()> {
        if self.fault == Fault::CloneReplaces {
            self.inner.delete(to).await?;
        }
        self.inner.clone_as(from, to).await?;
        // As a link to the origin would be: gone with it.
        if self.fault == Fault::CloneMoves {
            self.inner.delete(to).await?;
        }
        Ok(())
    }

    async fn list(
        &self,
        visit: &mut (dyn for<'a> FnMut(&'a BlobKey, BlobStat) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        if self.fault != Fault::ListsBackwards {
            return self.inner.list(visit).await;
        }
        for key in self.keys().await.into_iter().rev() {
            let stat = self.inner.stat(&key).await?;
            if visit(&key, stat).is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[test]
fn every_check_finds_its_fault_and_only_faults() {
    assert_eq!(CHECKS.len(), FAULTS.len());
    for ((name, check), fault) in CHECKS.iter().zip(FAULTS) {
        let store = |fault| Faulty { inner: InMemoryBlobStore::new(), fault };
        check(&store(Fault::None));
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&store(*fault))));
        assert!(outcome.is_err(), "the check did not notice: {name} ({fault:?})");
    }
}
