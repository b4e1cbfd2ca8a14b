//! Object stores: named byte strings in a bucket, immutable by default.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use super::Result;
use crate::base::range::ByteRange;

/// Objects in one page of a listing, and keys in one delete request: the limits of S3.
pub const PAGE_OBJECTS_MAX: usize = 1000;

/// Name of an object below the volume's prefix: `/`-separated parts of `[a-z0-9._-]`, no part empty, `.` or `..`.
/// Spelled in [`super::keys`] only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// # Panics
    /// If `key` breaks the rule above; keys are made from ids by our own code, never from outside input.
    #[must_use]
    pub fn new(key: String) -> Self {
        assert!(Self::is_valid(&key), "not an object key: {key}");
        Self(key)
    }

    /// Checks a key that came from outside (a listing).
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        Self::is_valid(key).then(|| Self(key.to_owned()))
    }

    fn is_valid(key: &str) -> bool {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        key.split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && part.bytes().all(allowed))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Opaque version of one object's content; changes whenever the object is overwritten.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Etag(pub String);

/// What the store knows of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectMeta {
    pub key: ObjectKey,
    /// Length in bytes.
    pub len: u64,
    pub etag: Etag,
}

/// One page of a listing.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// Ascending by the bytes of their keys.
    pub objects: Vec<ObjectMeta>,
    /// True if keys beyond the last one may exist: ask again with `start_after` that key.
    pub more: bool,
}

/// Create, read, list and delete; nothing here changes an object that exists.
#[async_trait]
pub trait ImmutableObjectStore: Send + Sync + 'static {
    /// Creates `key`. Atomic and durable: until it returns, `get` answers `NotFound` or the whole body. Of concurrent
    /// calls for one key exactly one succeeds (where [`fencing`](Self::fencing) is `Cas`).
    /// After an unknown outcome (`Unavailable`) the object may exist; the retry then answers `Precondition`.
    ///
    /// # Errors
    /// `Precondition` if the key exists, whatever its content.
    async fn put_new(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta>;

    /// Reads `range` of the object, or all of it. Returns exactly the bytes asked for, never fewer.
    ///
    /// # Errors
    /// `NotFound` if there is no such object; `Corrupt` if it ends before the range does.
    async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes>;

    /// Length and version of an object.
    ///
    /// # Errors
    /// `NotFound` if there is no such object.
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta>;

    /// Up to [`PAGE_OBJECTS_MAX`] objects whose keys start with `prefix` and sort after `start_after`, in byte order. An object whose
    /// `put_new` returned before the call is in its page. `prefix` is plain text, not a folder; "" lists all.
    async fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage>;

    /// Deletes the objects; one that does not exist counts as deleted. Idempotent, not atomic across keys.
    async fn delete(&self, keys: &[ObjectKey]) -> Result<()>;

    /// What `put_new` and `put_if` are worth on this store.
    fn fencing(&self) -> Fencing;

    /// Where the objects are, for messages and locators: `scheme://bucket/prefix`, without trailing slash.
    fn location(&self) -> String;
}

/// Adds what the few changing objects need.
#[async_trait]
pub trait MutableObjectStore: ImmutableObjectStore {
    /// Replaces `key` if its version is still `expected`. Atomic and durable; of concurrent calls with one expected
    /// version exactly one succeeds (where `fencing` is `Cas`).
    ///
    /// # Errors
    /// `Precondition` if the version differs, `NotFound` or `Precondition` if the object is gone.
    async fn put_if(&self, key: &ObjectKey, body: Bytes, expected: &Etag) -> Result<ObjectMeta>;

    /// Copies an object inside the store without moving its bytes through this machine. Atomic and durable; replaces
    /// `to` if it exists.
    ///
    /// # Errors
    /// `NotFound` if `from` does not exist.
    async fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<ObjectMeta>;
}

/// How a second writer is kept out, by what the store can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fencing {
    /// Conditional writes are atomic: journal records fence.
    Cas,
    /// Conditional writes are ignored or race: an advisory lease is all there is.
    Lease,
    /// Nobody else can reach the store (`mem:`).
    None,
}

impl Fencing {
    /// As `status` prints it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cas => "cas",
            Self::Lease => "lease",
            Self::None => "none",
        }
    }
}
