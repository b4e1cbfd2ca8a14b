//! Verifies what clients declare about their bodies: Content-MD5 and the `x-amz-checksum-*` headers and trailers.

use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use s3s::dto::Checksum;
use s3s::{S3Result, TrailingHeaders, s3_error};

/// Adds checksums that came behind the body to those that came before it.
pub(super) fn with_trailers(mut declared: Checksum, trailers: Option<TrailingHeaders>) -> Checksum {
    let Some(trailers) = trailers.and_then(|trailers| trailers.take()) else { return declared };
    let value = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    for (name, field) in [
        ("x-amz-checksum-crc32", &mut declared.checksum_crc32),
        ("x-amz-checksum-crc32c", &mut declared.checksum_crc32c),
        ("x-amz-checksum-crc64nvme", &mut declared.checksum_crc64nvme),
        ("x-amz-checksum-sha1", &mut declared.checksum_sha1),
        ("x-amz-checksum-sha256", &mut declared.checksum_sha256),
    ] {
        *field = field.take().or_else(|| value(name));
    }
    declared
}

/// The declared checksums, if all of them are right.
pub(super) fn verify(declared: Checksum, content_md5: Option<&str>, body: &[u8]) -> S3Result<Checksum> {
    if content_md5.is_some_and(|declared| declared != base64(&Md5::checksum(body))) {
        return Err(s3_error!(BadDigest, "The Content-MD5 you specified did not match what we received."));
    }
    let mut hasher = ChecksumHasher {
        crc32: declared.checksum_crc32.is_some().then(Crc32::new),
        crc32c: declared.checksum_crc32c.is_some().then(Crc32c::new),
        crc64nvme: declared.checksum_crc64nvme.is_some().then(Crc64Nvme::new),
        sha1: declared.checksum_sha1.is_some().then(Sha1::new),
        sha256: declared.checksum_sha256.is_some().then(Sha256::new),
    };
    hasher.update(body);
    let computed = hasher.finalize();
    let same = computed.checksum_crc32 == declared.checksum_crc32
        && computed.checksum_crc32c == declared.checksum_crc32c
        && computed.checksum_crc64nvme == declared.checksum_crc64nvme
        && computed.checksum_sha1 == declared.checksum_sha1
        && computed.checksum_sha256 == declared.checksum_sha256;
    if same {
        Ok(computed)
    } else {
        Err(s3_error!(BadDigest, "The checksum does not match what we received."))
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let sextet = (group >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() { char::from(DIGITS[sextet as usize]) } else { '=' });
        }
    }
    text
}
