//! An S3 server for tests, in this process, over loopback TCP: real protocol, signatures and checksums verified,
//! conditional writes atomic, and faults on request. Include it with `#[path = "common/s3/mod.rs"] mod s3;`.
//!
//! It runs on threads of its own, so that tests without a runtime and mounts in other processes can use it.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "each test binary uses its own part of this module"
)]

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

mod bucket;
mod checksum;
mod faults;
mod multipart;
mod paced;
mod serve;
mod service;

pub use service::REFUSED_KEY_PART;

pub use bucket::Objects;
pub use faults::{Action, Fault, Faults, Request};

/// The one account of every test server.
pub const ACCESS_KEY: &str = "GRAVITONFSTESTKEY";
pub const SECRET_KEY: &str = "not-a-secret-only-for-tests";
pub const REGION: &str = "us-east-1";

/// What the server makes of `If-None-Match` and `If-Match` on writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Decided in one step with the write, as AWS does.
    #[default]
    Atomic,
    /// Ignored, and the answer is success, as Garage 2.5 does.
    IgnoreConditional,
    /// Checked when the request arrives, written later, as s3s-fs does.
    RacyConditional,
}

/// How far away the server pretends to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// Waited before the first byte of every answer.
    pub latency: Duration,
    /// Of each connection, each way; None is as fast as it goes.
    pub bytes_per_second: Option<u64>,
}

/// A running server; stops when dropped, and all its objects are gone.
pub struct S3Server {
    address: SocketAddr,
    objects: Arc<Objects>,
    faults: Arc<Faults>,
    runtime: Option<Runtime>,
}

impl S3Server {
    /// Starts a server on a free port of 127.0.0.1.
    pub fn start(mode: Mode) -> Self {
        Self::start_behind(mode, Link::default(), 0)
    }

    /// Starts a server behind `link`, on `port` (0 is any).
    pub fn start_behind(mode: Mode, link: Link, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("bind the test server's port");
        listener.set_nonblocking(true).expect("make the listener asynchronous");
        let address = listener.local_addr().expect("a bound listener has an address");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3-server")
            .enable_all()
            .build()
            .expect("start the test server's runtime");
        let objects = Arc::new(Objects::new(mode));
        let faults = Arc::new(Faults::default());
        runtime.spawn(serve::accept(listener, link, Arc::clone(&objects), Arc::clone(&faults)));
        Self { address, objects, faults, runtime: Some(runtime) }
    }

    /// `http://127.0.0.1:PORT`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes an empty bucket.
    pub fn create_bucket(&self, bucket: &str) {
        self.objects.create_bucket(bucket);
    }

    /// What is stored, past the protocol.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// What shall go wrong.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Every request so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.faults.requests()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
