//! Where credentials come from: each source of the standard chain, served on loopback.
//!
//! The chain looks at the environment, which a test cannot change in its own process: each test runs itself again.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use gravitonfs::backend::s3::S3Options;
use gravitonfs::store::object::ImmutableObjectStore;
use gravitonfs::store::{Kind, Result};

use super::{BODY, assert_readable, key, open, s3, server};

/// Set in the second run, to the endpoint of the server of the first.
const CHILD: &str = "GRAVITONFS_TEST_CHILD";

/// In the first run: the test `name` again, with nothing but `environment`.
fn run_again(name: &str, environment: &[(&str, &str)]) {
    let server = server();
    let mut child = Command::new(std::env::current_exe().expect("this test has a path"));
    child.args(["--exact", &format!("credentials::{name}"), "--nocapture"]).env_clear();
    child.env(CHILD, server.endpoint()).env("AWS_ENDPOINT_URL_S3", server.endpoint());
    child.env("AWS_EC2_METADATA_DISABLED", "true");
    let output = child.envs(environment.iter().copied()).output().expect("run this test again");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("1 passed"), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
}

/// In the second run: writes an object with the credentials of the chain.
fn put(endpoint: String, profile: Option<&str>) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().expect("start a runtime");
    runtime.block_on(async {
        let options = S3Options {
            bucket: super::BUCKET.to_owned(),
            endpoint: Some(endpoint),
            profile: profile.map(str::to_owned),
            path_style: true,
            ..S3Options::default()
        };
        open(options).await.put_new(&key("a"), BODY).await.map(drop)
    })
}

fn second_run() -> Option<String> {
    std::env::var(CHILD).ok()
}

/// A server that knows a few paths by heart.
fn fake(routes: Vec<(&'static str, String)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("a bound listener has an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream, &routes);
        }
    });
    endpoint
}

fn answer(stream: TcpStream, routes: &[(&'static str, String)]) -> std::io::Result<()> {
    let mut reader = BufReader::new(&stream);
    let (mut request, mut length) = (String::new(), 0);
    reader.read_line(&mut request)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    reader.read_exact(&mut vec![0; length])?;
    let route = routes.iter().find(|(prefix, _)| request.starts_with(prefix));
    let (status, body) = route.map_or(("404 Not Found", ""), |(_, body)| ("200 OK", body));
    let head =
        "content-type: application/json\r\nx-aws-ec2-metadata-token-ttl-seconds: 60\r\nconnection: close";
    write!(&stream, "HTTP/1.1 {status}\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn the_environment_comes_first() {
    let Some(endpoint) = second_run() else {
        return run_again(
            "the_environment_comes_first",
            &[("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY)],
        );
    };
    put(endpoint, None).expect("put");
}

#[test]
fn a_profile_is_read_from_the_files_and_may_start_a_process() {
    let Some(endpoint) = second_run() else {
        let dir = tempfile::tempdir().expect("make a directory");
        let (config, credentials) = (dir.path().join("config"), dir.path().join("credentials"));
        let json = format!(
            r#"{{"Version":1,"AccessKeyId":"{}","SecretAccessKey":"{}"}}"#,
            s3::ACCESS_KEY,
            s3::SECRET_KEY
        );
        let output = dir.path().join("output");
        std::fs::write(&output, json).expect("write");
        let process = format!("[profile process]\ncredential_process = /bin/cat {}\n", output.display());
        std::fs::write(&config, process).expect("write");
        let written = format!(
            "[written]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            s3::ACCESS_KEY,
            s3::SECRET_KEY
        );
        std::fs::write(&credentials, written).expect("write");
        let paths = [&config, &credentials].map(|path| path.to_str().expect("temporary names are ASCII"));
        let environment = [("AWS_CONFIG_FILE", paths[0]), ("AWS_SHARED_CREDENTIALS_FILE", paths[1])];
        return run_again("a_profile_is_read_from_the_files_and_may_start_a_process", &environment);
    };
    put(endpoint.clone(), Some("written")).expect("put with the keys of a profile");
    let again = put(endpoint.clone(), Some("process")).expect_err("it is there already");
    assert_eq!(again.kind, Kind::Precondition, "{again}");
    let missing = put(endpoint, Some("no-such-profile")).expect_err("there is no such profile");
    assert_eq!(missing.kind, Kind::Denied, "{missing}");
    assert_readable(&missing);
}

const EXPIRES: &str = "2999-01-01T00:00:00Z";

#[test]
fn a_machine_role_is_asked_of_its_metadata_service() {
    let Some(endpoint) = second_run() else {
        let keys = format!(
            r#"{{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"{}","SecretAccessKey":"{}","Token":"session",
               "LastUpdated":"2020-01-01T00:00:00Z","Expiration":"{EXPIRES}"}}"#,
            s3::ACCESS_KEY,
            s3::SECRET_KEY
        );
        let imds = fake(vec![
            ("PUT /latest/api/token", "token".to_owned()),
            ("GET /latest/meta-data/iam/security-credentials/role", keys.clone()),
            ("GET /latest/meta-data/iam/security-credentials-extended/role", keys),
            ("GET /latest/meta-data/iam/security-credentials", "role".to_owned()),
        ]);
        let environment =
            [("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &imds)];
        return run_again("a_machine_role_is_asked_of_its_metadata_service", &environment);
    };
    put(endpoint, None).expect("put");
}

#[test]
fn a_web_identity_is_exchanged_for_a_role() {
    let Some(endpoint) = second_run() else {
        let dir = tempfile::tempdir().expect("make a directory");
        let token = dir.path().join("token");
        std::fs::write(&token, "a token").expect("write");
        let xml = format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{}</AccessKeyId>\
             <SecretAccessKey>{}</SecretAccessKey><SessionToken>session</SessionToken>\
             <Expiration>{EXPIRES}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
             </AssumeRoleWithWebIdentityResponse>",
            s3::ACCESS_KEY,
            s3::SECRET_KEY
        );
        let sts = fake(vec![("POST /", xml)]);
        let environment = [
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().expect("temporary names are ASCII")),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/test"),
            ("AWS_ENDPOINT_URL_STS", &sts),
            ("AWS_REGION", s3::REGION),
        ];
        return run_again("a_web_identity_is_exchanged_for_a_role", &environment);
    };
    put(endpoint, None).expect("put");
}

/// A mount whose credentials run out while the service that renews them is away must wait, not fail for good.
#[test]
fn a_credential_service_that_does_not_answer_is_unavailable_and_not_denied() {
    let Some(endpoint) = second_run() else {
        let dir = tempfile::tempdir().expect("make a directory");
        let token = dir.path().join("token");
        std::fs::write(&token, "a token").expect("write");
        let environment = [
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().expect("temporary names are ASCII")),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/test"),
            ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1"),
            ("AWS_REGION", s3::REGION),
        ];
        return run_again(
            "a_credential_service_that_does_not_answer_is_unavailable_and_not_denied",
            &environment,
        );
    };
    let error = put(endpoint, None).expect_err("nobody answers");
    assert_eq!(error.kind, Kind::Unavailable, "{error}");
    assert_readable(&error);
}

#[test]
fn without_any_credentials_the_error_is_denied() {
    let Some(endpoint) = second_run() else {
        return run_again("without_any_credentials_the_error_is_denied", &[]);
    };
    let error = put(endpoint, None).expect_err("there are no credentials");
    assert_eq!(error.kind, Kind::Denied, "{error}");
    assert!(error.detail.contains("no credentials found"), "{error}");
    assert_readable(&error);
}

#[test]
fn a_single_sign_on_session_is_exchanged_for_keys() {
    use s3s::crypto::{Checksum, Sha1};
    let Some(endpoint) = second_run() else {
        let home = tempfile::tempdir().expect("make a directory");
        let cache = home.path().join(".aws/sso/cache");
        std::fs::create_dir_all(&cache).expect("make the cache of sessions");
        let start = "https://example.awsapps.com/start";
        let profile = format!(
            "[profile session]\nsso_start_url = {start}\nsso_region = us-east-1\n\
             sso_account_id = 123456789012\nsso_role_name = role\n"
        );
        std::fs::write(home.path().join(".aws/config"), profile).expect("write");
        let name: String =
            Sha1::checksum(start.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let session = format!(r#"{{"accessToken":"t","expiresAt":"{EXPIRES}","startUrl":"{start}"}}"#);
        std::fs::write(cache.join(format!("{name}.json")), session).expect("write");
        let keys = format!(
            r#"{{"roleCredentials":{{"accessKeyId":"{}","secretAccessKey":"{}","sessionToken":"session",
               "expiration":32472144000000}}}}"#,
            s3::ACCESS_KEY,
            s3::SECRET_KEY
        );
        let sso = fake(vec![("GET /federation/credentials", keys)]);
        let environment = [
            ("HOME", home.path().to_str().expect("temporary names are ASCII")),
            ("AWS_ENDPOINT_URL_SSO", &sso),
        ];
        return run_again("a_single_sign_on_session_is_exchanged_for_keys", &environment);
    };
    put(endpoint, Some("session")).expect("put");
}

/// Over TLS, which the absence of an endpoint in the options stands for, bodies are not hashed for the signature:
/// the server must take that too.
#[test]
fn bodies_need_no_hash_in_the_signature() {
    if second_run().is_none() {
        let environment = [
            ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY),
            ("AWS_REGION", s3::REGION),
        ];
        return run_again("bodies_need_no_hash_in_the_signature", &environment);
    }
    let large = bytes::Bytes::from(vec![7; 65 << 20]);
    let runtime = tokio::runtime::Runtime::new().expect("start a runtime");
    runtime.block_on(async {
        let options =
            S3Options { bucket: super::BUCKET.to_owned(), path_style: true, ..S3Options::default() };
        let store = open(options).await;
        store.put_new(&key("small"), BODY).await.expect("put");
        store.put_new(&key("large"), large).await.expect("put in parts");
    });
}

/// The endpoint may be in the environment too, and is held to the same rule.
#[test]
fn plain_http_from_the_environment_is_refused_as_well() {
    if second_run().is_none() {
        let environment = [
            ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY),
            ("AWS_ENDPOINT_URL_S3", "http://10.0.0.1:9000"),
            ("AWS_REGION", s3::REGION),
        ];
        return run_again("plain_http_from_the_environment_is_refused_as_well", &environment);
    }
    let runtime = tokio::runtime::Runtime::new().expect("start a runtime");
    runtime.block_on(async {
        let options =
            S3Options { bucket: super::BUCKET.to_owned(), path_style: true, ..S3Options::default() };
        let error = open(options).await.get(&key("a"), None).await.expect_err("it is not loopback");
        assert_eq!(error.kind, Kind::Denied, "{error}");
        assert!(error.detail.contains("plain http"), "{error}");
    });
}
