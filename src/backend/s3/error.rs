//! What S3's errors mean to us: HTTP status and code become a kind, the rest one line.

use std::error::Error as StdError;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::store::{Error, Kind};

/// The error of the request `what` (`get packs/ab/...`) to `bucket`.
pub(super) fn classify<E>(what: &str, bucket: &str, error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let (kind, cause) = match &error {
        SdkError::ServiceError(service) => {
            let answer = Answer {
                status: service.raw().status().as_u16(),
                code: service.err().code().unwrap_or_default(),
                message: service.err().message().unwrap_or_default(),
                region: service.raw().headers().get("x-amz-bucket-region"),
            };
            (answer.kind(), answer.describe(bucket))
        }
        SdkError::ConstructionFailure(_) => (Kind::Internal, innermost(&error)),
        // What the connector classified failed on the wire. The rest failed before anything was sent.
        SdkError::DispatchFailure(failure)
            if failure.is_io() || failure.is_timeout() || failure.as_other().is_some() =>
        {
            (Kind::Unavailable, innermost(&error))
        }
        SdkError::DispatchFailure(_) => before_sending(&error),
        SdkError::TimeoutError(_) => (Kind::Unavailable, "timed out".to_owned()),
        SdkError::ResponseError(_) => (Kind::Unavailable, format!("broken answer: {}", innermost(&error))),
        _ => (Kind::Internal, innermost(&error)),
    };
    Error::new(kind, format!("{what}: {cause}")).with_source(error)
}

/// The error of one key in an answer that succeeded for others.
pub(super) fn of_code(what: &str, code: &str, message: &str) -> Error {
    // Status 500 decides only where the code says nothing.
    let answer =
        Answer { status: if code == "AccessDenied" { 403 } else { 500 }, code, message, region: None };
    Error::new(answer.kind(), format!("{what}: {}", answer.describe("")))
}

/// What went wrong in the client itself: our own refusal of an endpoint, or the credential chain. A chain whose
/// services (role, single sign-on, machine metadata) did not answer will work later; one that found nothing will not.
fn before_sending(error: &(dyn StdError + 'static)) -> (Kind, String) {
    let mut causes =
        std::iter::successors(Some(error), |error: &&(dyn StdError + 'static)| (*error).source());
    let passing = causes.any(|cause| {
        // The SDK does not let us name the type of its time-outs.
        cause.downcast_ref::<std::io::Error>().is_some() || cause.to_string().contains("timed out")
    });
    let cause = innermost(error);
    // What follows lists every provider and how it was not configured.
    let cause = cause.split(". Attempted").next().unwrap_or(&cause).to_owned();
    (if passing { Kind::Unavailable } else { Kind::Denied }, cause)
}

/// An error answer of the server.
struct Answer<'a> {
    status: u16,
    /// S3's name of the error; empty if there was no body to carry it (HEAD).
    code: &'a str,
    message: &'a str,
    /// Where the bucket really is, if the server says so.
    region: Option<&'a str>,
}

impl Answer<'_> {
    fn kind(&self) -> Kind {
        match self.code {
            "NoSuchKey" | "NoSuchBucket" | "InvalidBucketName" | "NotFound" => return Kind::NotFound,
            "SlowDown" | "TooManyRequests" | "ThrottlingException" | "RequestLimitExceeded" => {
                return Kind::Throttled;
            }
            // Two conditional writes met; the server wants one of them again. And bodies that were damaged or cut
            // on their way, or came too slowly.
            "ConditionalRequestConflict"
            | "OperationAborted"
            | "RequestTimeout"
            | "IncompleteBody"
            | "BadDigest"
            | "XAmzContentSHA256Mismatch"
            | "XAmzContentChecksumMismatch" => {
                return Kind::Unavailable;
            }
            "AuthorizationHeaderMalformed"
            | "ExpiredToken"
            | "InvalidToken"
            | "NotSignedUp"
            | "IllegalLocationConstraintException" => return Kind::Denied,
            "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" => return Kind::Full,
            _ => {}
        }
        match self.status {
            301 | 307 | 401 | 403 => Kind::Denied,
            404 => Kind::NotFound,
            408 | 409 => Kind::Unavailable,
            412 => Kind::Precondition,
            416 => Kind::Corrupt,
            429 => Kind::Throttled,
            501 | 505 => Kind::Internal,
            503 if self.code.is_empty() => Kind::Throttled,
            507 => Kind::Full,
            500.. => Kind::Unavailable,
            _ => Kind::Internal,
        }
    }

    fn describe(&self, bucket: &str) -> String {
        if matches!(self.code, "NoSuchBucket" | "InvalidBucketName") {
            return format!("no such bucket: {bucket}");
        }
        if matches!(self.status, 301 | 307)
            && let Some(region) = self.region
        {
            return format!("bucket {bucket} is in another region: region={region}");
        }
        match (self.code, self.message) {
            ("", "") => format!("status {}", self.status),
            ("", message) => one_line(message),
            (code, "") => format!("{code} (status {})", self.status),
            (code, message) => format!("{code}: {}", one_line(message)),
        }
    }
}

/// The cause at the end of the chain, which is the one that names the thing: `Connection refused (os error 111)`.
pub(super) fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    one_line(&cause.to_string())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, code: &str) -> Kind {
        Answer { status, code, message: "", region: None }.kind()
    }

    #[test]
    fn answers_mean_what_the_caller_does_next() {
        for (status, code, expected) in [
            (404, "NoSuchKey", Kind::NotFound),
            (404, "", Kind::NotFound),
            (400, "InvalidBucketName", Kind::NotFound),
            (403, "InvalidAccessKeyId", Kind::Denied),
            (403, "SignatureDoesNotMatch", Kind::Denied),
            (400, "ExpiredToken", Kind::Denied),
            (301, "PermanentRedirect", Kind::Denied),
            (412, "PreconditionFailed", Kind::Precondition),
            (409, "ConditionalRequestConflict", Kind::Unavailable),
            (503, "SlowDown", Kind::Throttled),
            (429, "", Kind::Throttled),
            (500, "InternalError", Kind::Unavailable),
            (503, "ServiceUnavailable", Kind::Unavailable),
            (400, "BadDigest", Kind::Unavailable),
            (416, "InvalidRange", Kind::Corrupt),
            (507, "XMinioStorageFull", Kind::Full),
            (501, "NotImplemented", Kind::Internal),
            (400, "InvalidRequest", Kind::Internal),
        ] {
            assert_eq!(kind(status, code), expected, "{status} {code}");
        }
    }

    #[test]
    fn messages_name_bucket_and_region() {
        let mut answer = Answer { status: 404, code: "NoSuchBucket", message: "", region: None };
        assert_eq!(answer.describe("b"), "no such bucket: b");
        answer = Answer { status: 301, code: "PermanentRedirect", message: "x", region: Some("eu-west-1") };
        assert_eq!(answer.describe("b"), "bucket b is in another region: region=eu-west-1");
        answer = Answer { status: 400, code: "X", message: "two\n  lines", region: None };
        assert_eq!(answer.describe("b"), "X: two lines");
    }
}
