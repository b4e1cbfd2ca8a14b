//! The S3 store against a server that misbehaves: classes of errors, lost answers, damaged bodies, what is counted.

#![allow(clippy::disallowed_methods, reason = "tests run on the machine and not in a simulation")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gravitonfs::backend::s3::{AccessKey, S3ObjectStore, S3Options};
use gravitonfs::backend::wrap::{RequestCounters, Retry, RetryPolicy};
use gravitonfs::base::ids::WriterId;
use gravitonfs::base::limits::MIB;
use gravitonfs::base::range::ByteRange;
use gravitonfs::rt::{SeededRandom, SystemClock};
use gravitonfs::store::object::{Fencing, ImmutableObjectStore, MutableObjectStore, ObjectKey};
use gravitonfs::store::probe::{probe_conditional_writes, probe_conditional_writes_briefly};
use gravitonfs::store::{Error, Kind};

#[path = "s3/branches.rs"]
mod branches;
#[path = "s3/credentials.rs"]
mod credentials;
#[path = "common/s3/mod.rs"]
mod s3;

use s3::{Action, Fault, Mode, S3Server};

const BUCKET: &str = "bucket";

fn server() -> S3Server {
    let server = S3Server::start(Mode::Atomic);
    server.create_bucket(BUCKET);
    server
}

fn options(server: &S3Server) -> S3Options {
    S3Options {
        bucket: BUCKET.to_owned(),
        prefix: "volume".to_owned(),
        endpoint: Some(server.endpoint()),
        region: Some(s3::REGION.to_owned()),
        path_style: true,
        access_key: Some(AccessKey { id: s3::ACCESS_KEY.into(), secret: s3::SECRET_KEY.into() }),
        ..S3Options::default()
    }
}

async fn open(options: S3Options) -> S3ObjectStore {
    S3ObjectStore::open(options, Arc::default()).await.expect("open the store")
}

fn retrying(store: S3ObjectStore) -> Retry {
    let clock = Arc::new(SystemClock::new(tokio::runtime::Handle::current()));
    let policy = RetryPolicy {
        base: Duration::from_millis(1),
        wait_max: Duration::from_millis(10),
        give_up_after: Duration::from_secs(60),
    };
    Retry::new(Arc::new(store), policy, clock, Arc::new(SeededRandom::new(1)))
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text.to_owned())
}

const BODY: Bytes = Bytes::from_static(b"some content");

/// One line, written for people.
fn assert_readable(error: &Error) {
    assert!(!error.detail.contains(['\n', '{', '}']), "{}", error.detail);
    assert!(!error.detail.contains("ServiceError"), "{}", error.detail);
}

#[tokio::test]
async fn every_error_of_access_has_its_class_and_names_its_cause() {
    let server = server();
    let account = |id: &str, secret: &str| Some(AccessKey { id: id.into(), secret: secret.into() });
    let wrong_secret = S3Options { access_key: account(s3::ACCESS_KEY, "wrong"), ..options(&server) };
    let unknown_key = S3Options { access_key: account("UNKNOWN", s3::SECRET_KEY), ..options(&server) };
    let no_bucket = S3Options { bucket: "nowhere".to_owned(), ..options(&server) };
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("find a free port");
        format!("http://{}", listener.local_addr().expect("a bound listener has an address"))
    };
    let unreachable = S3Options { endpoint: Some(closed), ..options(&server) };
    for (options, kind, words) in [
        (wrong_secret, Kind::Denied, "SignatureDoesNotMatch"),
        (unknown_key, Kind::Denied, "NotSignedUp"),
        (no_bucket, Kind::NotFound, "no such bucket: nowhere"),
        (unreachable, Kind::Unavailable, "refused"),
    ] {
        let store = open(options).await;
        for result in [
            store.put_new(&key("packs/a"), BODY).await.map(drop),
            store.get(&key("packs/a"), None).await.map(drop),
            store.list("packs/", None).await.map(drop),
        ] {
            let error = result.expect_err(words);
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.detail.contains(words), "{error}");
            assert!(error.detail.contains("packs/"), "{error}");
            assert_readable(&error);
        }
    }
}

#[tokio::test]
async fn every_error_of_the_server_has_its_class() {
    let server = server();
    let store = open(options(&server)).await;
    for (status, code, kind) in [
        (503, "SlowDown", Kind::Throttled),
        (429, "TooManyRequests", Kind::Throttled),
        (500, "InternalError", Kind::Unavailable),
        (503, "ServiceUnavailable", Kind::Unavailable),
        (409, "ConditionalRequestConflict", Kind::Unavailable),
        (412, "PreconditionFailed", Kind::Precondition),
        (403, "AccessDenied", Kind::Denied),
        (507, "XMinioStorageFull", Kind::Full),
    ] {
        server.faults().clear();
        server.faults().add(Fault::on_any(Action::Respond { status, code }));
        let error = store.put_new(&key("a"), BODY).await.expect_err(code);
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.detail.contains(code), "{error}");
        assert_readable(&error);
    }
}

#[tokio::test]
async fn plain_http_is_refused_except_to_this_machine() {
    let server = server();
    let with = |endpoint: &str, allow_http| S3Options {
        endpoint: Some(endpoint.to_owned()),
        allow_http,
        ..options(&server)
    };
    for endpoint in ["http://s3.example.com", "http://10.0.0.1:9000", "http://127.0.0.1.example.com"] {
        let error = S3ObjectStore::open(with(endpoint, false), Arc::default()).await.err();
        assert_eq!(error.map(|error| error.kind), Some(Kind::Denied), "{endpoint}");
        assert!(S3ObjectStore::open(with(endpoint, true), Arc::default()).await.is_ok(), "{endpoint}");
    }
    for endpoint in ["http://localhost:9000", "http://[::1]:9000/", "https://s3.example.com"] {
        assert!(S3ObjectStore::open(with(endpoint, false), Arc::default()).await.is_ok(), "{endpoint}");
    }
    assert!(S3ObjectStore::open(with("ftp://x", true), Arc::default()).await.is_err());
}

#[tokio::test]
async fn a_create_whose_answer_is_lost_succeeds_once() {
    let server = server();
    let store = retrying(open(options(&server)).await);
    server.faults().add(Fault::on("put", Action::LoseResponse).times(1));
    store.put_new(&key("a"), BODY).await.expect("it is our own object");
    let kinds: Vec<_> = server.requests().iter().map(s3::Request::kind).collect();
    assert_eq!(kinds, ["put", "put", "head", "get"]);
    let error = store.put_new(&key("a"), BODY).await.expect_err("now it exists");
    assert_eq!(error.kind, Kind::Precondition);
}

#[tokio::test]
async fn lost_connections_and_refusals_are_repeated() {
    let server = server();
    let store = retrying(open(options(&server)).await);
    for action in [
        Action::CutBefore,
        Action::Respond { status: 500, code: "InternalError" },
        Action::Respond { status: 503, code: "SlowDown" },
    ] {
        server.faults().add(Fault::on_any(action).times(2));
    }
    store.put_new(&key("a"), BODY).await.expect("put");
    server.faults().add(Fault::on("get", Action::CutBody).times(2));
    assert_eq!(store.get(&key("a"), None).await.expect("get"), BODY);
    let range = ByteRange::new(2, 9);
    server.faults().add(Fault::on("get", Action::CutBody).times(1));
    assert_eq!(store.get(&key("a"), Some(range)).await.expect("get"), BODY.slice(2..9));
}

#[tokio::test]
async fn a_cut_body_is_never_a_short_object() {
    let server = server();
    let store = open(options(&server)).await;
    store.put_new(&key("a"), BODY).await.expect("put");
    server.faults().add(Fault::on("get", Action::CutBody));
    for range in [None, Some(ByteRange::new(0, 8))] {
        let error = store.get(&key("a"), range).await.expect_err("half of it is missing");
        assert_eq!(error.kind, Kind::Unavailable, "{error}");
        assert_readable(&error);
    }
}

#[tokio::test]
async fn a_damaged_object_fails_its_checksum() {
    let server = server();
    let store = open(options(&server)).await;
    store.put_new(&key("a"), BODY).await.expect("put");
    server.objects().flip_bit(BUCKET, "volume/a", 3);
    let error = store.get(&key("a"), None).await.expect_err("one bit differs");
    assert_eq!(error.kind, Kind::Corrupt, "{error}");
    assert_readable(&error);
}

#[tokio::test]
async fn the_counters_agree_with_what_the_server_saw() {
    let server = server();
    let counters = Arc::new(RequestCounters::default());
    let store = S3ObjectStore::open(options(&server), Arc::clone(&counters)).await.expect("open");
    let store = retrying(store);
    server.faults().add(Fault::on("put", Action::LoseResponse).times(1));
    let small = store.put_new(&key("small"), BODY).await.expect("put");
    let large = Bytes::from(vec![7; 65 * MIB as usize]);
    store.put_new(&key("large"), large).await.expect("put in parts");
    store.put_if(&key("small"), BODY, &small.etag).await.expect("overwrite");
    store.copy(&key("small"), &key("copy")).await.expect("copy");
    store.get(&key("large"), Some(ByteRange::new(5, 1005))).await.expect("get");
    store.list("", None).await.expect("list");
    store.delete(&[key("small")]).await.expect("delete one");
    store.delete(&[key("large"), key("copy")]).await.expect("delete two");

    let (counts, requests) = (counters.counts(), server.requests());
    let seen = |kind: &str| requests.iter().filter(|request| request.kind() == kind).count() as u64;
    let counted = [counts.put, counts.get, counts.head, counts.list, counts.delete];
    assert_eq!(counted, ["put", "get", "head", "list", "delete"].map(seen), "{requests:#?}");
    // Two for the lost answer, seven for the parts (create, 5 of 16 MiB, complete), overwrite, copy.
    assert_eq!(counts.put, 2 + 7 + 1 + 1);
    assert_eq!(counts.sent_bytes, 3 * BODY.len() as u64 + 65 * MIB);
    assert_eq!(counts.received_bytes, BODY.len() as u64 + 1000);
}

#[tokio::test]
async fn an_upload_that_fails_leaves_no_parts_behind() {
    let server = server();
    let store = open(options(&server)).await;
    let large = Bytes::from(vec![7; 65 * MIB as usize]);
    let refusal = Action::Respond { status: 500, code: "InternalError" };
    server.faults().add(Fault::on("put", refusal).after(3).times(1));
    let error = store.put_new(&key("large"), large).await.expect_err("a part failed");
    assert_eq!(error.kind, Kind::Unavailable);
    let aborted = async {
        while server.objects().open_uploads() != 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), aborted).await.expect("the upload is aborted");
    assert!(server.objects().list(BUCKET).is_empty());
}

#[tokio::test]
async fn a_large_create_whose_answer_is_lost_succeeds_once() {
    let server = server();
    let store = retrying(open(options(&server)).await);
    let large = Bytes::from(vec![7; 65 * MIB as usize]);
    // The last of create, five parts, complete.
    server.faults().add(Fault::on("put", Action::LoseResponse).after(6).times(1));
    store.put_new(&key("large"), large.clone()).await.expect("it is our own object");
    let stored = server.objects().read(BUCKET, "volume/large");
    assert!(stored.as_ref() == Some(&large));
}

#[tokio::test]
async fn one_refused_key_of_a_batch_is_an_error() {
    let server = server();
    let store = open(options(&server)).await;
    let stuck = key(&format!("packs/{}", s3::REFUSED_KEY_PART));
    store.put_new(&stuck, BODY).await.expect("put");
    let error = store.delete(&[key("packs/a"), stuck.clone()]).await.expect_err("one key is refused");
    assert_eq!(error.kind, Kind::Denied);
    assert!(error.detail.contains(stuck.as_str()), "{error}");
    assert_readable(&error);
}

#[tokio::test]
async fn objects_of_others_below_the_prefix_are_skipped() {
    let server = server();
    let store = open(options(&server)).await;
    for number in 0..1500 {
        server.objects().write(BUCKET, &format!("volume/Notes {number}"), "not ours");
    }
    server.objects().write(BUCKET, "volumes/a", "another volume");
    store.put_new(&key("a"), BODY).await.expect("put");
    let page = store.list("", None).await.expect("list");
    let names: Vec<_> = page.objects.iter().map(|object| object.key.as_str()).collect();
    assert_eq!((names.as_slice(), page.more), (&["a"][..], false));
}

#[tokio::test]
async fn the_probe_finds_out_what_conditions_are_worth() {
    let random = SeededRandom::new(9);
    for (mode, verdict) in [
        (Mode::Atomic, Fencing::Cas),
        (Mode::IgnoreConditional, Fencing::Lease),
        (Mode::RacyConditional, Fencing::Lease),
    ] {
        let server = S3Server::start(mode);
        server.create_bucket(BUCKET);
        let store = open(options(&server)).await;
        let found = probe_conditional_writes(&store, WriterId(1), &random).await.expect("probe");
        assert_eq!(found, verdict, "{mode:?}");
        assert!(server.requests().len() <= 12, "{mode:?}: {} requests", server.requests().len());
        assert!(server.objects().list(BUCKET).is_empty(), "{mode:?}: scratch objects are left");

        let before = server.requests().len();
        let found = probe_conditional_writes_briefly(&store, WriterId(2), &random).await.expect("probe");
        assert_eq!(found, verdict, "{mode:?}, briefly");
        assert_eq!(server.requests().len() - before, 3);
        store.set_fencing(found);
        assert_eq!(store.fencing(), verdict);
    }
}

#[tokio::test]
async fn a_probe_of_an_unreachable_store_says_so() {
    let server = server();
    let store = open(options(&server)).await;
    server.faults().add(Fault::on("put", Action::Respond { status: 403, code: "AccessDenied" }));
    let result = probe_conditional_writes(&store, WriterId(1), &SeededRandom::new(9)).await;
    assert_eq!(result.expect_err("writes are denied").kind, Kind::Denied);
}

/// A server that takes any checksum would make the tests above prove less than they say.
#[tokio::test]
async fn the_test_server_refuses_a_wrong_checksum() {
    use aws_sdk_s3::config::{BehaviorVersion, Config, Credentials, Region};
    let server = server();
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(Credentials::new(s3::ACCESS_KEY, s3::SECRET_KEY, None, None, "test"))
        .region(Region::new(s3::REGION))
        .retry_config(aws_sdk_s3::config::retry::RetryConfig::disabled())
        .endpoint_url(server.endpoint())
        .force_path_style(true);
    let client = aws_sdk_s3::Client::from_conf(config.build());
    let put = || client.put_object().bucket(BUCKET).key("a").body(BODY.into());
    for request in [
        put().checksum_crc32("AAAAAA=="),
        put().checksum_crc32_c("AAAAAA=="),
        put().checksum_sha256("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        put().content_md5("AAAAAAAAAAAAAAAAAAAAAA=="),
    ] {
        let error = request.send().await.expect_err("the checksum is wrong");
        let code = error.as_service_error().and_then(|error| error.meta().code().map(str::to_owned));
        assert_eq!(code.as_deref(), Some("BadDigest"));
    }
    put().checksum_crc32("LjIYzg==").send().await.expect_err("another content's");
    put().send().await.expect("the client's own checksum is right");
    assert_eq!(server.objects().list(BUCKET), [("a".to_owned(), BODY.len() as u64)]);
}
