//! The S3 operations of the test server, except multipart uploads.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use s3s::dto::*;
use s3s::{Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::bucket::{Conditions, Objects};
use super::{checksum, multipart};

/// Listed at once, whatever the client wants.
const PAGE_MAX: i32 = 1000;

/// More is not reserved on a client's word.
const BODY_BYTES_MAX: usize = 256 << 20;

pub(super) struct Service {
    pub(super) objects: Arc<Objects>,
}

/// Reads a request body of `len` bytes, if it is as long as its head says, to its end.
pub(super) async fn read(body: Option<StreamingBlob>, len: Option<i64>) -> S3Result<Bytes> {
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    let len = len.and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
    let mut whole = BytesMut::with_capacity(len.min(BODY_BYTES_MAX));
    loop {
        match body.try_next().await {
            Ok(Some(piece)) => whole.extend_from_slice(&piece),
            Ok(None) => return Ok(whole.freeze()),
            Err(error) => return Err(S3Error::with_source(S3ErrorCode::IncompleteBody, error)),
        }
    }
}

pub(super) fn blob(body: Bytes) -> StreamingBlob {
    StreamingBlob::from(Body::from(body))
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        self.objects.create_bucket(&req.input.bucket);
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.objects.state().bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        let body = read(input.body, input.content_length).await?;
        let declared = Checksum {
            checksum_crc32: input.checksum_crc32,
            checksum_crc32c: input.checksum_crc32c,
            checksum_crc64nvme: input.checksum_crc64nvme,
            checksum_sha1: input.checksum_sha1,
            checksum_sha256: input.checksum_sha256,
            ..Checksum::default()
        };
        let declared = checksum::with_trailers(declared, req.trailing_headers);
        let sum = checksum::verify(declared, input.content_md5.as_deref(), &body)?;
        let conditions = Conditions { if_match: input.if_match, if_none_match: input.if_none_match };
        let e_tag = self.objects.put(&input.bucket, &input.key, body, sum.clone(), &conditions).await?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(e_tag),
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            ..PutObjectOutput::default()
        }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let object = self.objects.state().find(&input.bucket, &input.key)?.clone();
        let len = object.body.len() as u64;
        let mut output = GetObjectOutput {
            e_tag: Some(ETag::Strong(object.etag)),
            last_modified: Some(object.modified.into()),
            accept_ranges: Some("bytes".to_owned()),
            ..GetObjectOutput::default()
        };
        let body = match input.range {
            Some(range) => {
                let range = range.check(len)?;
                let content_range = format!("bytes {}-{}/{len}", range.start, range.end - 1);
                output.content_range = Some(content_range);
                object.body.slice(range.start as usize..range.end as usize)
            }
            None => {
                if input.checksum_mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED) {
                    output.checksum_crc32 = object.checksum.checksum_crc32;
                    output.checksum_crc32c = object.checksum.checksum_crc32c;
                    output.checksum_sha256 = object.checksum.checksum_sha256;
                }
                object.body
            }
        };
        output.content_length = Some(body.len() as i64);
        output.body = Some(blob(body));
        Ok(S3Response::new(output))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.objects.state().find(&req.input.bucket, &req.input.key)?.clone();
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(object.body.len() as i64),
            e_tag: Some(ETag::Strong(object.etag)),
            last_modified: Some(object.modified.into()),
            ..HeadObjectOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        if input.delimiter.is_some() {
            return Err(s3_error!(NotImplemented, "this server lists without delimiter"));
        }
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.clone().or(input.start_after).unwrap_or_default();
        let max = input.max_keys.unwrap_or(PAGE_MAX).clamp(0, PAGE_MAX);
        let (page, more) = self.objects.state().page(&input.bucket, &prefix, &after, max as usize)?;
        let next = page.last().filter(|_| more).map(|(key, _)| key.clone());
        let contents: Vec<_> = page
            .into_iter()
            .map(|(key, object)| Object {
                key: Some(key),
                size: Some(object.body.len() as i64),
                e_tag: Some(ETag::Strong(object.etag)),
                last_modified: Some(object.modified.into()),
                ..Object::default()
            })
            .collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(prefix),
            max_keys: Some(max),
            key_count: Some(contents.len() as i32),
            is_truncated: Some(more),
            next_continuation_token: next,
            contents: Some(contents),
            ..ListObjectsV2Output::default()
        }))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.objects.state().bucket(&req.input.bucket)?.remove(&req.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let DeleteObjectsInput { bucket, delete, .. } = req.input;
        if PAGE_MAX < delete.objects.len() as i32 {
            return Err(s3_error!(MalformedXML, "more than 1,000 keys"));
        }
        let mut state = self.objects.state();
        let objects = state.bucket(&bucket)?;
        let mut output = DeleteObjectsOutput::default();
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for object in delete.objects {
            let mut refused = None;
            if object.key.contains(REFUSED_KEY_PART) {
                refused = Some(Error {
                    code: Some("AccessDenied".to_owned()),
                    key: Some(object.key.clone()),
                    message: Some("Access Denied".to_owned()),
                    ..Error::default()
                });
            } else {
                objects.remove(&object.key);
                deleted.push(DeletedObject { key: Some(object.key), ..DeletedObject::default() });
            }
            errors.extend(refused);
        }
        if delete.quiet != Some(true) {
            output.deleted = Some(deleted);
        }
        output.errors = Some(errors).filter(|errors| !errors.is_empty());
        Ok(S3Response::new(output))
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let CopySource::Bucket { bucket, key, .. } = &req.input.copy_source else {
            return Err(s3_error!(NotImplemented, "this server copies from buckets"));
        };
        let mut state = self.objects.state();
        let source = state.find(bucket, key)?.clone();
        let e_tag = state.insert(&req.input.bucket, &req.input.key, source.body, source.checksum)?;
        let result = CopyObjectResult { e_tag: Some(e_tag), ..CopyObjectResult::default() };
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(result),
            ..CopyObjectOutput::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        multipart::create(&self.objects, req)
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        multipart::upload_part(&self.objects, req).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        multipart::complete(&self.objects, req).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        multipart::abort(&self.objects, req)
    }
}

/// Keys with this in them cannot be deleted in a batch: the server's answer is per key.
pub const REFUSED_KEY_PART: &str = "undeletable";
