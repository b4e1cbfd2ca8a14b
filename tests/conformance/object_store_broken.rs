//! Object stores that break one line of the contract each: the check of that line must fail on them.

use std::panic::AssertUnwindSafe;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use gravitonfs::backend::memory_object::MemoryObjectStore;
use gravitonfs::base::range::ByteRange;
use gravitonfs::store::object::{
    Etag, Fencing, ImmutableObjectStore, ListPage, MutableObjectStore, ObjectKey, ObjectMeta,
    PAGE_OBJECTS_MAX,
};
use gravitonfs::store::{Error, Kind, Result};

use super::{CHECKS, runtime};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    PutDropsTheLastByte,
    PutReplaces,
    PutReportsSuccessOnExisting,
    PutChecksThenWrites,
    GetIgnoresTheRange,
    GetShortensTheRange,
    GetOfMissingIsEmpty,
    HeadHasAnotherVersion,
    HeadOfMissingIsEmpty,
    ListIsReversed,
    ListTakesPrefixesForFolders,
    ListIncludesTheStart,
    ListForgetsThatThereIsMore,
    ListSkipsBetweenPages,
    DeleteOfMissingFails,
    DeleteForgetsTheSecondKey,
    DeleteLeavesATombstone,
    PutIfLosesTheNewLength,
    PutIfIgnoresTheVersion,
    PutIfCreates,
    PutIfChecksThenWrites,
    VersionsRepeat,
    CopyIsEmpty,
    CopyKeepsTheTarget,
    CopyOfMissingMakesAnEmptyObject,
    LargePutReplaces,
    LargePutIfIgnoresTheVersion,
}

const FAULTS: &[(&str, Fault)] = &[
    ("put_new_creates_the_whole_object", Fault::PutDropsTheLastByte),
    ("put_new_refuses_an_existing_key", Fault::PutReplaces),
    ("put_new_refuses_an_existing_key", Fault::PutReportsSuccessOnExisting),
    ("of_concurrent_creates_one_succeeds", Fault::PutChecksThenWrites),
    ("get_answers_exactly_the_range", Fault::GetIgnoresTheRange),
    ("get_beyond_the_end_is_corrupt", Fault::GetShortensTheRange),
    ("get_of_a_missing_object_is_not_found", Fault::GetOfMissingIsEmpty),
    ("head_answers_length_and_version", Fault::HeadHasAnotherVersion),
    ("head_of_a_missing_object_is_not_found", Fault::HeadOfMissingIsEmpty),
    ("list_is_in_byte_order", Fault::ListIsReversed),
    ("list_prefix_is_plain_text", Fault::ListTakesPrefixesForFolders),
    ("list_starts_after_the_given_key", Fault::ListIncludesTheStart),
    ("list_pages_cover_everything_once", Fault::ListForgetsThatThereIsMore),
    ("list_pages_cover_everything_once", Fault::ListSkipsBetweenPages),
    ("delete_removes_and_a_missing_object_counts_as_deleted", Fault::DeleteOfMissingFails),
    ("delete_removes_and_a_missing_object_counts_as_deleted", Fault::DeleteForgetsTheSecondKey),
    ("a_deleted_key_can_be_created_again", Fault::DeleteLeavesATombstone),
    ("put_if_replaces_the_expected_version", Fault::PutIfLosesTheNewLength),
    ("put_if_refuses_another_version", Fault::PutIfIgnoresTheVersion),
    ("put_if_never_creates", Fault::PutIfCreates),
    ("of_concurrent_overwrites_one_succeeds", Fault::PutIfChecksThenWrites),
    ("every_overwrite_changes_the_version", Fault::VersionsRepeat),
    ("copy_makes_an_equal_object", Fault::CopyIsEmpty),
    ("copy_replaces_its_target", Fault::CopyKeepsTheTarget),
    ("copy_of_a_missing_object_is_not_found", Fault::CopyOfMissingMakesAnEmptyObject),
    ("a_large_object_comes_back_and_is_created_once", Fault::LargePutReplaces),
    ("a_large_object_replaces_the_expected_version_only", Fault::LargePutIfIgnoresTheVersion),
];

struct Broken {
    inner: MemoryObjectStore,
    fault: Fault,
}

impl Broken {
    async fn replace(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta> {
        self.inner.delete(std::slice::from_ref(key)).await?;
        self.inner.put_new(key, body).await
    }

    fn tombstone(key: &ObjectKey) -> ObjectKey {
        ObjectKey::new(format!("{key}.deleted"))
    }
}

fn nothing(key: &ObjectKey) -> ObjectMeta {
    ObjectMeta { key: key.clone(), len: 0, etag: Etag("0".to_owned()) }
}

fn fake_success<T>(result: Result<T>, kind: Kind, value: T) -> Result<T> {
    match result {
        Err(error) if error.kind == kind => Ok(value),
        other => other,
    }
}

#[async_trait]
impl ImmutableObjectStore for Broken {
    async fn put_new(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta> {
        match self.fault {
            Fault::PutDropsTheLastByte => {
                let cut = body.slice(..body.len().saturating_sub(1));
                self.inner.put_new(key, cut).await?;
                Ok(ObjectMeta { len: body.len() as u64, ..self.inner.head(key).await? })
            }
            Fault::PutReplaces => self.replace(key, body).await,
            Fault::LargePutReplaces if 1 << 20 < body.len() => self.replace(key, body).await,
            Fault::PutReportsSuccessOnExisting => {
                fake_success(self.inner.put_new(key, body).await, Kind::Precondition, nothing(key))
            }
            Fault::PutChecksThenWrites if self.inner.head(key).await.is_err() => {
                tokio::task::yield_now().await;
                self.replace(key, body).await
            }
            Fault::DeleteLeavesATombstone if self.inner.head(&Self::tombstone(key)).await.is_ok() => {
                Err(Error::new(Kind::Precondition, "told to"))
            }
            _ => self.inner.put_new(key, body).await,
        }
    }

    async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
        match self.fault {
            Fault::GetIgnoresTheRange => self.inner.get(key, None).await,
            Fault::GetShortensTheRange => {
                let len = self.inner.head(key).await?.len;
                let whole = ByteRange::new(0, len);
                self.inner.get(key, range.map(|range| range.intersect(&whole))).await
            }
            Fault::GetOfMissingIsEmpty => {
                fake_success(self.inner.get(key, range).await, Kind::NotFound, Bytes::new())
            }
            _ => self.inner.get(key, range).await,
        }
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        match self.fault {
            Fault::HeadHasAnotherVersion => {
                Ok(ObjectMeta { etag: Etag("other".into()), ..self.inner.head(key).await? })
            }
            Fault::HeadOfMissingIsEmpty => {
                fake_success(self.inner.head(key).await, Kind::NotFound, nothing(key))
            }
            _ => self.inner.head(key).await,
        }
    }

    async fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
        let mut page = self.inner.list(prefix, start_after).await?;
        match self.fault {
            Fault::ListIsReversed => page.objects.reverse(),
            Fault::ListTakesPrefixesForFolders => {
                let folder = format!("{}/", prefix.trim_end_matches('/'));
                page.objects.retain(|object| object.key.as_str().starts_with(&folder));
            }
            Fault::ListIncludesTheStart => {
                if let Some(start) = start_after.filter(|key| key.as_str().starts_with(prefix))
                    && let Ok(meta) = self.inner.head(start).await
                {
                    page.objects.insert(0, meta);
                }
            }
            Fault::ListForgetsThatThereIsMore => page.more = false,
            Fault::ListSkipsBetweenPages if start_after.is_some() => drop(page.objects.remove(0)),
            _ => {}
        }
        assert!(page.objects.len() <= PAGE_OBJECTS_MAX + 1);
        Ok(page)
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        match self.fault {
            Fault::DeleteOfMissingFails => {
                for key in keys {
                    self.inner.head(key).await?;
                }
                self.inner.delete(keys).await
            }
            Fault::DeleteForgetsTheSecondKey => self.inner.delete(keys.get(..1).unwrap_or(keys)).await,
            Fault::DeleteLeavesATombstone => {
                for key in keys {
                    let _ = self.inner.put_new(&Self::tombstone(key), Bytes::new()).await;
                }
                self.inner.delete(keys).await
            }
            _ => self.inner.delete(keys).await,
        }
    }

    fn fencing(&self) -> Fencing {
        self.inner.fencing()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

#[async_trait]
impl MutableObjectStore for Broken {
    async fn put_if(&self, key: &ObjectKey, body: Bytes, expected: &Etag) -> Result<ObjectMeta> {
        match self.fault {
            Fault::PutIfLosesTheNewLength => {
                Ok(ObjectMeta { len: 0, ..self.inner.put_if(key, body, expected).await? })
            }
            Fault::PutIfIgnoresTheVersion => {
                let current = self.inner.head(key).await?.etag;
                self.inner.put_if(key, body, &current).await
            }
            Fault::LargePutIfIgnoresTheVersion if 1 << 20 < body.len() => self.replace(key, body).await,
            Fault::PutIfCreates if self.inner.head(key).await.is_err() => self.inner.put_new(key, body).await,
            Fault::PutIfChecksThenWrites if self.inner.head(key).await?.etag == *expected => {
                tokio::task::yield_now().await;
                self.replace(key, body).await
            }
            Fault::VersionsRepeat => {
                self.inner.put_if(key, body, &self.inner.head(key).await?.etag).await?;
                Ok(ObjectMeta { etag: expected.clone(), ..self.inner.head(key).await? })
            }
            _ => self.inner.put_if(key, body, expected).await,
        }
    }

    async fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<ObjectMeta> {
        match self.fault {
            Fault::CopyIsEmpty => self.inner.put_new(to, Bytes::new()).await,
            Fault::CopyKeepsTheTarget if self.inner.head(to).await.is_ok() => self.inner.head(to).await,
            Fault::CopyOfMissingMakesAnEmptyObject => {
                fake_success(self.inner.copy(from, to).await, Kind::NotFound, nothing(to))
            }
            _ => self.inner.copy(from, to).await,
        }
    }
}

#[test]
fn every_check_fails_on_a_store_that_breaks_its_line() {
    for (name, _) in CHECKS {
        assert!(FAULTS.iter().any(|(checked, _)| checked == name), "no broken store for {name}");
    }
    for (name, fault) in FAULTS {
        let (_, check) = CHECKS.iter().find(|(check, _)| check == name).expect("the check exists");
        let store = Broken { inner: MemoryObjectStore::new(), fault: *fault };
        let outcome = runtime().block_on(AssertUnwindSafe(check(&store)).catch_unwind());
        assert!(outcome.is_err(), "the check did not notice: {name} ({fault:?})");
    }
}
