//! redb's storage on a local device, so that it lives in a simulated disk as well as in a real one.

use std::io;
use std::sync::Arc;

use redb::StorageBackend;

use crate::store::device::Device;
use crate::store::{Error, Kind};

pub(super) struct DeviceBackend {
    device: Arc<dyn Device>,
}

impl DeviceBackend {
    pub(super) fn new(device: Arc<dyn Device>) -> Self {
        Self { device }
    }
}

impl std::fmt::Debug for DeviceBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeviceBackend")
    }
}

impl StorageBackend for DeviceBackend {
    fn len(&self) -> io::Result<u64> {
        self.device.len().map_err(io::Error::other)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.device.read_at(out, offset).map_err(io::Error::other)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.device.set_len(len).map_err(io::Error::other)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.device.sync().map_err(io::Error::other)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device.write_at(data, offset).map_err(io::Error::other)
    }
}

/// What an error that redb passed on means: our own if it came from the device. redb's own are about the file's magic
/// number and header.
pub(super) fn from_io(what: &str, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => Error::new(ours.kind, format!("{what}: {ours}")).with_source(ours),
        Err(theirs) => Error::new(Kind::Corrupt, format!("{what}: {theirs}")).with_source(theirs),
    }
}
