//! The object store of a volume: a backend, and the wrappers around it.

use std::sync::Arc;
use std::time::Duration;

use super::options::StoreOptions;
use super::volume::Volume;
use crate::backend::dir::DirObjectStore;
use crate::backend::memory_object::MemoryObjectStore;
use crate::backend::s3::{S3ObjectStore, S3Options};
use crate::backend::wrap::{Limit, Limits, Measure, RequestCounters, Retry, RetryPolicy};
use crate::base::ids::WriterId;
use crate::base::limits::MIB;
use crate::base::time::{Clock, Random};
use crate::store::Result;
use crate::store::object::{Fencing, MutableObjectStore};
use crate::store::probe::{probe_conditional_writes, probe_conditional_writes_briefly};

/// A running mount waits this long for a store that does not answer before it tells whoever asked; uploads behind it
/// start again by themselves.
const PATIENCE: Duration = Duration::from_secs(60);

/// Somebody at a terminal does not wait that long to hear of a wrong endpoint.
const PATIENCE_AT_START: Duration = Duration::from_secs(8);

/// How long one request may take that moves no bytes.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(60);

/// Bytes on the wire each way at once.
const TRANSFER_BYTES_MAX: u64 = 64 * MIB;

/// The objects of one volume.
pub struct Objects {
    /// For a running mount.
    pub store: Arc<dyn MutableObjectStore>,
    /// The same for what happens while somebody waits at a terminal: gives up sooner.
    pub at_start: Arc<dyn MutableObjectStore>,
    pub counters: Arc<RequestCounters>,
    /// The S3 store, which has to be told what its server's conditional writes are worth.
    s3: Option<Arc<S3ObjectStore>>,
}

/// What a stack takes from the machine.
pub struct Machine {
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
}

/// Whether what is missing is made: the directory of a `file:` volume. Buckets are never made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    Fail,
    Create,
}

impl Objects {
    /// Stacks `Retry`, `Limit`, (`Measure`,) store. Sends nothing yet.
    ///
    /// # Errors
    /// `NotFound` for a directory that is not there; `Denied` for an endpoint that must not be used.
    pub async fn open(
        volume: &Volume,
        options: &StoreOptions,
        missing: Missing,
        machine: &Machine,
    ) -> Result<Self> {
        let counters = Arc::new(RequestCounters::default());
        let mut s3 = None;
        let counted: Arc<dyn MutableObjectStore> = match volume {
            Volume::S3 { bucket, prefix } => {
                let store = S3ObjectStore::open(s3_options(bucket, prefix, options), counters.clone());
                let store = Arc::new(store.await?);
                s3 = Some(store.clone());
                store
            }
            Volume::Dir(path) => {
                let store = match missing {
                    Missing::Fail => DirObjectStore::open(path)?,
                    Missing::Create => DirObjectStore::create(path)?,
                };
                Arc::new(Measure::new(Arc::new(store), counters.clone()))
            }
            Volume::Memory => Arc::new(Measure::new(Arc::new(MemoryObjectStore::new()), counters.clone())),
        };
        let upload_bytes_max = match volume {
            // One after the other: a disk is not faster for several, and who stages packs on it waits behind them.
            Volume::Dir(_) => 1,
            Volume::S3 { .. } | Volume::Memory => TRANSFER_BYTES_MAX,
        };
        let limits =
            Limits { upload_bytes_max, download_bytes_max: TRANSFER_BYTES_MAX, wait_max: REQUEST_WAIT_MAX };
        let limited = Arc::new(Limit::new(counted, limits, machine.clock.clone()));
        let retrying = |give_up_after| -> Arc<dyn MutableObjectStore> {
            let policy = RetryPolicy {
                base: Duration::from_millis(100),
                wait_max: Duration::from_secs(5),
                give_up_after,
            };
            let (clock, random) = (machine.clock.clone(), machine.random.clone());
            Arc::new(Retry::new(limited.clone(), policy, clock, random))
        };
        Ok(Self { store: retrying(PATIENCE), at_start: retrying(PATIENCE_AT_START), counters, s3 })
    }

    /// What conditional writes are worth, as far as that is known without writing: of an S3 server it is not.
    #[must_use]
    pub fn known_fencing(&self) -> Option<Fencing> {
        self.s3.is_none().then(|| self.store.fencing())
    }

    /// Finds out whether conditional writes can be trusted, thoroughly at format and briefly at mount.
    ///
    /// # Errors
    /// Of the store.
    pub async fn probe(&self, writer: WriterId, random: &dyn Random, when: Probe) -> Result<Fencing> {
        let fencing = match when {
            Probe::AtFormat => probe_conditional_writes(&*self.at_start, writer, random).await?,
            Probe::AtMount => probe_conditional_writes_briefly(&*self.at_start, writer, random).await?,
        };
        if let Some(s3) = &self.s3 {
            s3.set_fencing(fencing);
        }
        Ok(fencing)
    }
}

/// How hard to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    AtFormat,
    AtMount,
}

fn s3_options(bucket: &str, prefix: &str, options: &StoreOptions) -> S3Options {
    let StoreOptions { endpoint, region, profile, path_style, allow_http } = options.clone();
    // Servers that are not AWS seldom have a name for each bucket.
    let is_aws = endpoint.as_deref().is_none_or(|endpoint| endpoint.contains(".amazonaws.com"));
    S3Options {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint,
        region,
        profile,
        path_style: path_style.unwrap_or(!is_aws),
        allow_http,
        access_key: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_the_path_unless_the_server_is_aws() {
        let with = |endpoint: Option<&str>, path_style| {
            let options =
                StoreOptions { endpoint: endpoint.map(str::to_owned), path_style, ..StoreOptions::default() };
            s3_options("b", "p", &options).path_style
        };
        assert!(with(Some("http://127.0.0.1:9000"), None));
        assert!(!with(Some("http://127.0.0.1:9000"), Some(false)));
        assert!(!with(Some("https://s3.eu-west-1.amazonaws.com"), None));
        assert!(!with(None, None));
    }
}
