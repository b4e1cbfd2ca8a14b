//! How an S3 store is reached: options, the standard credential and region chains, time limits.

use std::net::IpAddr;
use std::time::Duration;

use aws_config::meta::region::RegionProviderChain;
use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{ConfigBag, Credentials, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;

use crate::store::{Error, Kind, Result};

/// A connection that takes longer will not come: a far-away region answers in 0.3 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What servers that have no regions sign for, and the region AWS itself falls back to.
const REGION_DEFAULT: &str = "us-east-1";

/// Where a bucket is and how to talk to it. What is `None` comes from where all AWS tools take it: environment,
/// configuration files, the machine's role.
#[derive(Clone, Debug, Default)]
pub struct S3Options {
    pub bucket: String,
    /// Key prefix of the volume, without slashes at its ends; "" is the whole bucket.
    pub prefix: String,
    /// Base URL of a server that is not AWS.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub profile: Option<String>,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`; most servers that are not AWS want it.
    pub path_style: bool,
    /// Permits `http://` to hosts other than this one: content and metadata then cross the network readable.
    pub allow_http: bool,
    /// Used instead of the credential chain.
    pub access_key: Option<AccessKey>,
}

/// A fixed pair of credentials.
#[derive(Clone)]
pub struct AccessKey {
    pub id: String,
    pub secret: String,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A client as `options` say. Sends nothing to S3; asks the machine's metadata service if nothing else names a region.
///
/// # Errors
/// `Denied` if the endpoint is plain `http` and may not be; `Internal` if it is no URL.
pub(super) async fn connect(options: &S3Options) -> Result<Client> {
    if let Some(endpoint) = &options.endpoint {
        check_endpoint(endpoint, options.allow_http)?;
    }
    let shared = load(options).await;
    let config = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(options.path_style)
        .interceptor(PlainHttpGuard { allow_http: options.allow_http });
    Ok(Client::from_conf(config.build()))
}

async fn load(options: &S3Options) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        // Repeating is the business of the `Retry` wrapper, where it is counted and bounded.
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build());
    if let Some(profile) = &options.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(AccessKey { id, secret }) = &options.access_key {
        loader = loader.credentials_provider(Credentials::new(id, secret, None, None, "options"));
    }
    if let Some(endpoint) = &options.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    with_region(loader, options).load().await
}

fn with_region(loader: ConfigLoader, options: &S3Options) -> ConfigLoader {
    if let Some(region) = &options.region {
        return loader.region(Region::new(region.clone()));
    }
    let mut files = aws_config::profile::ProfileFileRegionProvider::builder();
    if let Some(profile) = &options.profile {
        files = files.profile_name(profile);
    }
    let mut chain =
        RegionProviderChain::first_try(aws_config::environment::EnvironmentVariableRegionProvider::new())
            .or_else(files.build());
    // Another server's region is not where this machine is, and asking costs seconds where nobody answers.
    if options.endpoint.is_none() {
        chain = chain.or_else(aws_config::imds::region::ImdsRegionProvider::builder().build());
    }
    loader.region(chain.or_else(Region::new(REGION_DEFAULT)))
}

/// Checks every request, since the environment and configuration files may name an endpoint too.
#[derive(Debug)]
struct PlainHttpGuard {
    allow_http: bool,
}

impl Intercept for PlainHttpGuard {
    fn name(&self) -> &'static str {
        "PlainHttpGuard"
    }

    fn read_before_signing(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        check_endpoint(context.request().uri(), self.allow_http).map_err(Into::into)
    }
}

fn check_endpoint(endpoint: &str, allow_http: bool) -> Result<()> {
    if endpoint.starts_with("https://") {
        return Ok(());
    }
    let Some(rest) = endpoint.strip_prefix("http://") else {
        let detail = format!("endpoint {endpoint}: not a URL: it must begin with https:// or http://");
        return Err(Error::new(Kind::Internal, detail));
    };
    if allow_http || is_loopback(rest) {
        return Ok(());
    }
    let detail =
        format!("endpoint {endpoint}: refused: plain http would send the content readable to anyone");
    Err(Error::new(Kind::Denied, detail))
}

/// True if what goes to `endpoint` is neither protected by TLS nor kept on this machine.
pub(super) fn is_exposed(endpoint: &str) -> bool {
    endpoint.strip_prefix("http://").is_some_and(|rest| !is_loopback(rest))
}

/// True if the authority that `rest` of a URL begins with is this machine.
fn is_loopback(rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_to_another_machine_is_exposed() {
        assert!(is_exposed("http://storage.example:9000"));
        assert!(is_exposed("http://10.0.0.1"));
        for endpoint in ["https://storage.example", "http://127.0.0.1:9000", "http://localhost:9000/"] {
            assert!(!is_exposed(endpoint), "{endpoint}");
        }
    }
}
