//! An object store in an S3 bucket.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumMode, Delete, ObjectIdentifier};
use bytes::Bytes;

mod error;
mod multipart;
mod options;

pub use options::{AccessKey, S3Options};

use super::wrap::measure::{RequestCounters, RequestKind};
use crate::base::limits::{KIB, MIB, PACK_BYTES_TARGET};
use crate::base::page_buffer::PageBuffers;
use crate::base::range::ByteRange;
use crate::store::object::{
    Etag, Fencing, ImmutableObjectStore, ListPage, MutableObjectStore, ObjectKey, ObjectMeta,
    PAGE_OBJECTS_MAX,
};
use crate::store::{Error, Kind, Result};

/// Objects longer than this go up in parts. One request is cheaper and its checksum covers the whole object; packs
/// (16 MiB) are always one.
const SINGLE_PUT_BYTES_MAX: u64 = 64 * MIB;

/// How long the server may take to answer once it has the request, and between two pieces of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The slowest that a body may go up, in the company of those that share its uplink: sending gets a second more per
/// this many bytes. The SDK itself gives up an upload that stands still for 20 s.
const SEND_BYTES_PER_SECOND_MIN: u64 = 8 * KIB;

/// Objects under a prefix of one bucket.
pub struct S3ObjectStore {
    client: Client,
    bucket: String,
    /// Prefix of all keys: "" or ending in `/`.
    prefix: String,
    /// Signatures cover the SHA-256 of a body only where others could change it on its way; its CRC32 they always cover.
    sign_bodies: bool,
    counters: Arc<RequestCounters>,
    bodies: Arc<PageBuffers>,
    fencing: OnceLock<Fencing>,
}

/// What a conditional write asks of the object it replaces.
#[derive(Clone, Copy)]
enum Condition<'a> {
    Absent,
    Version(&'a Etag),
}

impl Condition<'_> {
    fn if_none_match(self) -> Option<String> {
        matches!(self, Self::Absent).then(|| "*".to_owned())
    }

    fn if_match(self) -> Option<String> {
        match self {
            Self::Absent => None,
            Self::Version(etag) => Some(etag.0.clone()),
        }
    }
}

impl S3ObjectStore {
    /// Prepares access; sends no request. `counters` gets every request sent from now on.
    ///
    /// # Errors
    /// `Denied` if the options' endpoint is plain `http` and may not be.
    pub async fn open(options: S3Options, counters: Arc<RequestCounters>) -> Result<Self> {
        let client = options::connect(&options).await?;
        let prefix = match options.prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let sign_bodies = options.endpoint.as_deref().is_some_and(options::is_exposed);
        let (bodies, fencing) = (PageBuffers::for_ranges(), OnceLock::new());
        Ok(Self { client, bucket: options.bucket, prefix, sign_bodies, counters, bodies, fencing })
    }

    /// Notes what the probe found out about this server; before that the store answers `Lease`, the cautious
    /// assumption. Only the first call counts.
    pub fn set_fencing(&self, fencing: Fencing) {
        let _ = self.fencing.set(fencing);
    }

    fn name(&self, key: &ObjectKey) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Counts a request with `bytes` of content, sends it, and waits for the head of its answer.
    async fn send<T, E>(
        &self,
        what: &str,
        kind: RequestKind,
        bytes: u64,
        request: impl Future<Output = std::result::Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        self.counters.request(kind, bytes);
        let time = ANSWER_TIMEOUT + Duration::from_secs(bytes / SEND_BYTES_PER_SECOND_MIN);
        match tokio::time::timeout(time, request).await {
            Ok(answer) => answer.map_err(|error| error::classify(what, &self.bucket, error)),
            Err(_) => Err(timed_out(what, time)),
        }
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition<'_>) -> Result<ObjectMeta> {
        let len = body.len() as u64;
        if SINGLE_PUT_BYTES_MAX < len {
            return self.put_parts(key, body, condition).await;
        }
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.name(key))
            .set_if_none_match(condition.if_none_match())
            .set_if_match(condition.if_match())
            .body(ByteStream::from(body));
        let request = async {
            match self.sign_bodies {
                true => request.send().await,
                false => request.customize().disable_payload_signing().send().await,
            }
        };
        let what = format!("put {key}");
        let answer = self.send(&what, RequestKind::Put, len, request).await?;
        Ok(ObjectMeta { key: key.clone(), len, etag: etag(&what, answer.e_tag)? })
    }

    /// Reads a body that must be `expected` bytes long.
    async fn receive(&self, what: &str, mut body: ByteStream, expected: u64) -> Result<Bytes> {
        // The length is the server's word until the bytes are here: reserve at most a pack on it.
        let mut buffer = self.bodies.take(expected.min(PACK_BYTES_TARGET) as usize, 0);
        loop {
            let Ok(piece) = tokio::time::timeout(ANSWER_TIMEOUT, body.next()).await else {
                return Err(timed_out(what, ANSWER_TIMEOUT));
            };
            match piece {
                Some(Ok(piece)) => {
                    self.counters.received(piece.len() as u64);
                    buffer.extend(&piece);
                }
                Some(Err(error)) => return Err(body_error(what, error)),
                None => break,
            }
            if expected < buffer.bytes().len() as u64 {
                break;
            }
        }
        let got = buffer.bytes().len() as u64;
        if got != expected {
            let detail = format!("{what}: body length differs: expected={expected} got={got}");
            return Err(Error::new(Kind::Corrupt, detail));
        }
        Ok(buffer.share())
    }

    async fn delete_one(&self, key: &ObjectKey) -> Result<()> {
        let request = self.client.delete_object().bucket(&self.bucket).key(self.name(key));
        match self.send(&format!("delete {key}"), RequestKind::Delete, 0, request.send()).await {
            Err(error) if error.kind == Kind::NotFound && !names_bucket(&error) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn delete_batch(&self, keys: &[ObjectKey]) -> Result<()> {
        let internal = |error| Error::new(Kind::Internal, format!("delete: {error}"));
        let mut delete = Delete::builder().quiet(true);
        for key in keys {
            delete =
                delete.objects(ObjectIdentifier::builder().key(self.name(key)).build().map_err(internal)?);
        }
        let delete = delete.build().map_err(internal)?;
        let what = format!("delete {} objects", keys.len());
        let request = self.client.delete_objects().bucket(&self.bucket).delete(delete);
        let answer = self.send(&what, RequestKind::Delete, 0, request.send()).await?;
        let failed = answer.errors().iter().find(|error| error.code() != Some("NoSuchKey"));
        let Some(failed) = failed else { return Ok(()) };
        let key = failed.key().unwrap_or_default();
        let key = key.strip_prefix(&self.prefix).unwrap_or(key);
        Err(error::of_code(
            &format!("delete {key}"),
            failed.code().unwrap_or_default(),
            failed.message().unwrap_or_default(),
        ))
    }
}

#[async_trait]
impl ImmutableObjectStore for S3ObjectStore {
    async fn put_new(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta> {
        self.put(key, body, Condition::Absent).await
    }

    async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
        let what = format!("get {key}");
        let mut request = self.client.get_object().bucket(&self.bucket).key(self.name(key));
        match range {
            // HTTP has no spelling for an empty range.
            Some(range) if range.is_empty() => {
                let len = self.head(key).await?.len;
                return if range.end <= len { Ok(Bytes::new()) } else { Err(short(&what, range, len)) };
            }
            Some(range) => request = request.range(format!("bytes={}-{}", range.start, range.end - 1)),
            None => request = request.checksum_mode(ChecksumMode::Enabled),
        }
        let answer = self.send(&what, RequestKind::Get, 0, request.send()).await?;
        let len = answer.content_length().and_then(|len| u64::try_from(len).ok()).unwrap_or(u64::MAX);
        if let Some(range) = range {
            // Only a 206 carries this; a server or proxy that ignored the range sent the object from its start.
            let from = format!("bytes {}-", range.start);
            if !answer.content_range().is_some_and(|content| content.starts_with(&from)) {
                let detail = format!("{what}: the answer to a ranged request is not that range");
                return Err(Error::new(Kind::Corrupt, detail));
            }
            if len != range.len() {
                return Err(short(&what, range, range.start.saturating_add(len)));
            }
        }
        self.receive(&what, answer.body, len).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let what = format!("head {key}");
        let request = self.client.head_object().bucket(&self.bucket).key(self.name(key));
        let answer = self.send(&what, RequestKind::Head, 0, request.send()).await?;
        let len = length(&what, answer.content_length())?;
        Ok(ObjectMeta { key: key.clone(), len, etag: etag(&what, answer.e_tag)? })
    }

    async fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
        let what = format!("list {prefix}");
        let prefix = format!("{}{prefix}", self.prefix);
        // Garage lists nothing if told to start before the prefix, where starting at its beginning is meant.
        let start_after = start_after.map(|key| self.name(key)).filter(|name| prefix <= *name);
        let mut token = None;
        loop {
            let request = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(&prefix)
                .max_keys(PAGE_OBJECTS_MAX as i32)
                .set_start_after(start_after.clone())
                .set_continuation_token(token.take());
            let answer = self.send(&what, RequestKind::List, 0, request.send()).await?;
            let mut objects = Vec::with_capacity(answer.contents().len());
            for object in answer.contents.iter().flatten() {
                let name = object.key().unwrap_or_default();
                // Somebody else's object below our prefix is none of our business.
                let Some(key) = name.strip_prefix(&self.prefix).and_then(ObjectKey::parse) else { continue };
                let len = length(&what, object.size())?;
                objects.push(ObjectMeta { key, len, etag: etag(&what, object.e_tag.clone())? });
            }
            let more = answer.is_truncated == Some(true);
            token = answer.next_continuation_token;
            // A page without any of our objects would not tell the caller where to go on.
            if !(more && objects.is_empty() && token.is_some()) {
                return Ok(ListPage { objects, more });
            }
        }
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        if let [key] = keys {
            return self.delete_one(key).await;
        }
        for batch in keys.chunks(PAGE_OBJECTS_MAX) {
            self.delete_batch(batch).await?;
        }
        Ok(())
    }

    fn fencing(&self) -> Fencing {
        self.fencing.get().copied().unwrap_or(Fencing::Lease)
    }

    fn location(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix).trim_end_matches('/').to_owned()
    }
}

#[async_trait]
impl MutableObjectStore for S3ObjectStore {
    async fn put_if(&self, key: &ObjectKey, body: Bytes, expected: &Etag) -> Result<ObjectMeta> {
        self.put(key, body, Condition::Version(expected)).await
    }

    async fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<ObjectMeta> {
        let source = percent_encode(&format!("{}/{}", self.bucket, self.name(from)));
        let request = self.client.copy_object().bucket(&self.bucket).copy_source(source).key(self.name(to));
        self.send(&format!("copy {from}"), RequestKind::Put, 0, request.send()).await?;
        // The answer has no length.
        self.head(to).await
    }
}

fn timed_out(what: &str, time: Duration) -> Error {
    Error::new(Kind::Unavailable, format!("{what}: no answer within {} s", time.as_secs()))
}

fn short(what: &str, range: ByteRange, len: u64) -> Error {
    Error::new(Kind::Corrupt, format!("{what}: range {range:?} ends beyond the object's {len} bytes"))
}

/// A body that broke off is worth another try; one that fails its checksum is not what was stored.
fn body_error(what: &str, error: aws_sdk_s3::primitives::ByteStreamError) -> Error {
    let cause = error::innermost(&error);
    // The SDK does not let us name the type of this error; a test keeps the words.
    let kind = if cause.contains("checksum mismatch") { Kind::Corrupt } else { Kind::Unavailable };
    Error::new(kind, format!("{what}: {cause}")).with_source(error)
}

fn names_bucket(error: &Error) -> bool {
    error.detail.contains("no such bucket")
}

fn etag(what: &str, etag: Option<String>) -> Result<Etag> {
    let missing = || Error::new(Kind::Internal, format!("{what}: the server sent no etag"));
    etag.map(Etag).ok_or_else(missing)
}

fn length(what: &str, length: Option<i64>) -> Result<u64> {
    let missing = || Error::new(Kind::Internal, format!("{what}: the server sent no length"));
    length.and_then(|length| u64::try_from(length).ok()).ok_or_else(missing)
}

/// Writes a copy source as the header wants it.
fn percent_encode(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
