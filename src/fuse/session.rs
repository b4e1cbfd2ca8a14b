//! One connection to the kernel: negotiated, then served until the mount is gone.

use std::io;
use std::os::fd::OwnedFd;

use fuser::{Config, SessionACL};

use super::adapter::Adapter;

/// Threads that read requests. Every further one costs wake-ups on other CPUs (22 to 33-50 us per serial request);
/// two keep a slow lookup from holding up everybody.
const READER_THREADS: usize = 2;

/// A connection whose protocol version and features are agreed.
pub struct Session {
    inner: fuser::Session<Adapter>,
}

impl Session {
    /// Agrees with the kernel at the other end of `device` (`/dev/fuse`, mounted by the caller; unmounting is the
    /// caller's business too). Blocks until the kernel has spoken first, which it does when it mounts.
    ///
    /// # Errors
    /// If the mount went away, or the kernel is too old.
    pub fn negotiate(device: OwnedFd, adapter: Adapter) -> io::Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(READER_THREADS);
        config.clone_fd = true;
        config.acl = SessionACL::All;
        // Who may come in is the kernel's check, by the mount's allow_other.
        let notices = adapter.notices();
        let inner = fuser::Session::from_fd(adapter, device, SessionACL::All, config)?;
        notices.connect(inner.notifier());
        Ok(Self { inner })
    }

    /// Serves requests on threads of its own and returns when the kernel has closed the connection.
    ///
    /// # Errors
    /// If the device fails otherwise.
    pub fn run(self) -> io::Result<()> {
        self.inner.run()
    }
}
