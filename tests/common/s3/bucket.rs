//! The objects of the test server: conditions and writes under one lock, and ways around the protocol for tests.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use s3s::dto::{Checksum, ETag, ETagCondition};
use s3s::{S3Result, s3_error};

use super::Mode;

/// All buckets.
pub struct Objects {
    pub(super) mode: Mode,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    buckets: HashMap<String, BTreeMap<String, Object>>,
    pub(super) uploads: HashMap<String, super::multipart::Upload>,
    /// Etags and upload ids handed out so far.
    numbers: u64,
}

#[derive(Clone)]
pub(super) struct Object {
    pub(super) body: Bytes,
    pub(super) etag: String,
    /// What the client declared and the server verified.
    pub(super) checksum: Checksum,
    pub(super) modified: SystemTime,
}

/// The conditional headers of a write.
#[derive(Clone, Default)]
pub(super) struct Conditions {
    pub(super) if_match: Option<ETagCondition>,
    pub(super) if_none_match: Option<ETagCondition>,
}

impl State {
    pub(super) fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn bucket(&mut self, bucket: &str) -> S3Result<&mut BTreeMap<String, Object>> {
        let Some(objects) = self.buckets.get_mut(bucket) else {
            return Err(s3_error!(NoSuchBucket, "The specified bucket does not exist"));
        };
        Ok(objects)
    }

    pub(super) fn find(&mut self, bucket: &str, key: &str) -> S3Result<&mut Object> {
        let object = self.bucket(bucket)?.get_mut(key);
        object.ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist."))
    }

    pub(super) fn check(&mut self, bucket: &str, key: &str, conditions: &Conditions) -> S3Result<()> {
        let current = self.bucket(bucket)?.get(key);
        let fails = |condition| s3_error!(PreconditionFailed, "the condition {condition} does not hold");
        if conditions.if_none_match.as_ref().is_some_and(ETagCondition::is_any) && current.is_some() {
            return Err(fails("If-None-Match"));
        }
        let Some(expected) = &conditions.if_match else { return Ok(()) };
        let Some(current) = current else { return Err(s3_error!(NoSuchKey, "no object to match")) };
        let matches = expected.as_etag().is_none_or(|etag| etag.value() == current.etag);
        if matches { Ok(()) } else { Err(fails("If-Match")) }
    }

    pub(super) fn insert(
        &mut self,
        bucket: &str,
        key: &str,
        body: Bytes,
        checksum: Checksum,
    ) -> S3Result<ETag> {
        // Looks like the digest others use, and differs for every write: no client may rely on what it is.
        let etag = format!("{:032x}", u128::from(self.next_number()) << 64 | body.len() as u128);
        let object = Object { body, etag: etag.clone(), checksum, modified: SystemTime::now() };
        self.bucket(bucket)?.insert(key.to_owned(), object);
        Ok(ETag::Strong(etag))
    }

    /// Objects behind `after` whose keys begin with `prefix`, at most `max`, and whether there are more.
    pub(super) fn page(
        &mut self,
        bucket: &str,
        prefix: &str,
        after: &str,
        max: usize,
    ) -> S3Result<(Vec<(String, Object)>, bool)> {
        let from = (Bound::Excluded(after.to_owned()), Bound::Unbounded);
        let mut matching =
            self.bucket(bucket)?.range::<String, _>(from).filter(|(key, _)| key.starts_with(prefix));
        let page = matching.by_ref().take(max).map(|(key, object)| (key.clone(), object.clone())).collect();
        Ok((page, matching.next().is_some()))
    }
}

impl Objects {
    pub(super) fn new(mode: Mode) -> Self {
        Self { mode, state: Mutex::default() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides the conditions, as well as the mode does it, and writes.
    pub(super) async fn put(
        &self,
        bucket: &str,
        key: &str,
        body: Bytes,
        checksum: Checksum,
        conditions: &Conditions,
    ) -> S3Result<ETag> {
        match self.mode {
            Mode::Atomic => {
                let mut state = self.state();
                state.check(bucket, key, conditions)?;
                state.insert(bucket, key, body, checksum)
            }
            Mode::IgnoreConditional => self.state().insert(bucket, key, body, checksum),
            Mode::RacyConditional => {
                self.state().check(bucket, key, conditions)?;
                // Long enough for every racer to have checked.
                tokio::time::sleep(std::time::Duration::from_millis(30)).await;
                self.state().insert(bucket, key, body, checksum)
            }
        }
    }

    pub(super) fn create_bucket(&self, bucket: &str) {
        self.state().buckets.entry(bucket.to_owned()).or_default();
    }

    /// Keys and lengths of a bucket's objects, in order.
    pub fn list(&self, bucket: &str) -> Vec<(String, u64)> {
        let mut state = self.state();
        let objects = state.bucket(bucket).expect("the bucket exists");
        objects.iter().map(|(key, object)| (key.clone(), object.body.len() as u64)).collect()
    }

    /// Sum of the lengths of the objects whose keys contain `part`.
    pub fn bytes_of(&self, bucket: &str, part: &str) -> u64 {
        self.list(bucket).iter().filter(|(key, _)| key.contains(part)).map(|(_, len)| len).sum()
    }

    /// The content of an object.
    pub fn read(&self, bucket: &str, key: &str) -> Option<Bytes> {
        self.state().find(bucket, key).ok().map(|object| object.body.clone())
    }

    /// Puts an object there, whatever was there before.
    pub fn write(&self, bucket: &str, key: &str, body: impl Into<Bytes>) {
        let checksum = Checksum::default();
        self.state().insert(bucket, key, body.into(), checksum).expect("the bucket exists");
    }

    /// Damages an object as a failing disk would: one bit differs, the declared checksum stays.
    pub fn flip_bit(&self, bucket: &str, key: &str, offset: usize) {
        let mut state = self.state();
        let object = state.find(bucket, key).expect("the object exists");
        let mut body = object.body.to_vec();
        *body.get_mut(offset).expect("the offset lies in the object") ^= 1;
        object.body = body.into();
    }

    /// Loses an object.
    pub fn delete(&self, bucket: &str, key: &str) {
        self.state().bucket(bucket).expect("the bucket exists").remove(key).expect("the object exists");
    }

    /// Number of multipart uploads neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.state().uploads.len()
    }
}
