//! Upload in parts, for objects too long for one request.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Condition, S3ObjectStore, etag};
use crate::backend::wrap::measure::RequestKind;
use crate::base::limits::MIB;
use crate::store::object::{ObjectKey, ObjectMeta};
use crate::store::{Error, Kind, Result};

/// Bytes per part. S3 takes 10,000 parts, so objects up to 156 GiB: more than fits in the memory they come from.
const PART_BYTES: usize = 16 * MIB as usize;

/// Parts of one object under way at once.
const PARTS_IN_FLIGHT: usize = 8;

impl S3ObjectStore {
    /// Uploads `body` in parts; the object appears, whole, when the last request succeeds, and the condition is
    /// decided by that request. A failed part fails the call: the `Retry` wrapper begins anew.
    pub(super) async fn put_parts(
        &self,
        key: &ObjectKey,
        body: Bytes,
        condition: Condition<'_>,
    ) -> Result<ObjectMeta> {
        let what = format!("put {key}");
        let request = self
            .client
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(self.name(key))
            .checksum_algorithm(ChecksumAlgorithm::Crc32);
        let answer = self.send(&what, RequestKind::Put, 0, request.send()).await?;
        let id = answer
            .upload_id
            .ok_or_else(|| Error::new(Kind::Internal, format!("{what}: the server sent no upload id")))?;
        let mut upload = Upload { store: self, name: self.name(key), id, complete: false };
        let len = body.len() as u64;
        let parts = upload.send_parts(&what, body).await?;
        let etag = upload.complete(&what, parts, condition).await?;
        Ok(ObjectMeta { key: key.clone(), len, etag })
    }
}

/// An upload begun; aborted on drop unless complete, else its parts would be stored and billed for ever.
struct Upload<'a> {
    store: &'a S3ObjectStore,
    name: String,
    id: String,
    complete: bool,
}

impl Upload<'_> {
    async fn send_parts(&self, what: &str, body: Bytes) -> Result<Vec<CompletedPart>> {
        let starts = (0..body.len()).step_by(PART_BYTES);
        let parts = starts.zip(1..).map(|(start, number)| {
            let end = body.len().min(start + PART_BYTES);
            self.send_part(what, number, body.slice(start..end))
        });
        stream::iter(parts).buffered(PARTS_IN_FLIGHT).try_collect().await
    }

    async fn send_part(&self, what: &str, number: i32, part: Bytes) -> Result<CompletedPart> {
        let len = part.len() as u64;
        let request = self
            .store
            .client
            .upload_part()
            .bucket(&self.store.bucket)
            .key(&self.name)
            .upload_id(&self.id)
            .part_number(number)
            .body(ByteStream::from(part));
        let request = async {
            match self.store.sign_bodies {
                true => request.send().await,
                false => request.customize().disable_payload_signing().send().await,
            }
        };
        let answer = self.store.send(what, RequestKind::Put, len, request).await?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag)
            .set_checksum_crc32(answer.checksum_crc32)
            .build())
    }

    async fn complete(
        &mut self,
        what: &str,
        parts: Vec<CompletedPart>,
        condition: Condition<'_>,
    ) -> Result<crate::store::object::Etag> {
        let request = self
            .store
            .client
            .complete_multipart_upload()
            .bucket(&self.store.bucket)
            .key(&self.name)
            .upload_id(&self.id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
            .set_if_none_match(condition.if_none_match())
            .set_if_match(condition.if_match());
        let answer = self.store.send(what, RequestKind::Put, 0, request.send()).await?;
        self.complete = true;
        etag(what, answer.e_tag)
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if self.complete {
            return;
        }
        // Best effort, also when the call was dropped at its deadline: an upload whose completion was applied but
        // never answered is gone from the server, and aborting it changes nothing.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let request = self
            .store
            .client
            .abort_multipart_upload()
            .bucket(&self.store.bucket)
            .key(&self.name)
            .upload_id(&self.id);
        self.store.counters.request(RequestKind::Put, 0);
        runtime.spawn(async move { tokio::time::timeout(super::ANSWER_TIMEOUT, request.send()).await });
    }
}
