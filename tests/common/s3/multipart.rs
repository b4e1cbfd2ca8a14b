//! Multipart uploads of the test server.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::bucket::{Conditions, Objects};
use super::checksum;
use super::service::read;

/// The least length of every part but the last, as at AWS.
const PART_BYTES_MIN: usize = 5 << 20;

pub(super) struct Upload {
    bucket: String,
    key: String,
    parts: BTreeMap<i32, Part>,
}

struct Part {
    body: Bytes,
    etag: String,
}

fn no_such_upload() -> s3s::S3Error {
    s3_error!(NoSuchUpload, "The specified multipart upload does not exist.")
}

pub(super) fn create(
    objects: &Objects,
    req: S3Request<CreateMultipartUploadInput>,
) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
    let input = req.input;
    let mut state = objects.state();
    state.bucket(&input.bucket)?;
    let id = format!("upload-{}", state.next_number());
    let upload = Upload { bucket: input.bucket.clone(), key: input.key.clone(), parts: BTreeMap::new() };
    state.uploads.insert(id.clone(), upload);
    Ok(S3Response::new(CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(id),
        ..CreateMultipartUploadOutput::default()
    }))
}

pub(super) async fn upload_part(
    objects: &Objects,
    req: S3Request<UploadPartInput>,
) -> S3Result<S3Response<UploadPartOutput>> {
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
    let mut state = objects.state();
    let etag = format!("{:032x}", state.next_number());
    let upload = state.uploads.get_mut(&input.upload_id).ok_or_else(no_such_upload)?;
    upload.parts.insert(input.part_number, Part { body, etag: etag.clone() });
    Ok(S3Response::new(UploadPartOutput {
        e_tag: Some(ETag::Strong(etag)),
        checksum_crc32: sum.checksum_crc32,
        checksum_crc32c: sum.checksum_crc32c,
        checksum_crc64nvme: sum.checksum_crc64nvme,
        checksum_sha1: sum.checksum_sha1,
        checksum_sha256: sum.checksum_sha256,
        ..UploadPartOutput::default()
    }))
}

pub(super) async fn complete(
    objects: &Objects,
    req: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
    let input = req.input;
    let wanted = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
    let body = {
        let state = objects.state();
        let upload = state.uploads.get(&input.upload_id).ok_or_else(no_such_upload)?;
        if (upload.bucket.as_str(), upload.key.as_str()) != (&*input.bucket, &*input.key) {
            return Err(no_such_upload());
        }
        assemble(upload, &wanted)?
    };
    let conditions = Conditions { if_match: input.if_match, if_none_match: input.if_none_match };
    // Of such objects AWS answers a checksum of checksums, which clients do not verify: none is kept.
    let e_tag = objects.put(&input.bucket, &input.key, body, Checksum::default(), &conditions).await?;
    objects.state().uploads.remove(&input.upload_id);
    Ok(S3Response::new(CompleteMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(e_tag),
        ..CompleteMultipartUploadOutput::default()
    }))
}

/// The object that the listed parts make, if they are all there, in order, and large enough.
fn assemble(upload: &Upload, wanted: &[CompletedPart]) -> S3Result<Bytes> {
    let mut body = BytesMut::new();
    let mut last = 0;
    for (index, part) in wanted.iter().enumerate() {
        let number = part.part_number.unwrap_or_default();
        if number <= last {
            return Err(s3_error!(InvalidPartOrder, "part {number} comes after part {last}"));
        }
        last = number;
        let stored = upload.parts.get(&number);
        let declared = part.e_tag.as_ref().map(ETag::value);
        let Some(stored) = stored.filter(|stored| declared == Some(stored.etag.as_str())) else {
            return Err(s3_error!(InvalidPart, "part {number} was not uploaded"));
        };
        if stored.body.len() < PART_BYTES_MIN && index + 1 < wanted.len() {
            return Err(s3_error!(EntityTooSmall, "part {number} is too small"));
        }
        body.extend_from_slice(&stored.body);
    }
    if wanted.is_empty() {
        return Err(s3_error!(MalformedXML, "an upload without parts"));
    }
    Ok(body.freeze())
}

pub(super) fn abort(
    objects: &Objects,
    req: S3Request<AbortMultipartUploadInput>,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    objects.state().uploads.remove(&req.input.upload_id).ok_or_else(no_such_upload)?;
    Ok(S3Response::new(AbortMultipartUploadOutput::default()))
}
