//! After a doubt about durability, or a fence, changes are refused until the volume is mounted again.

use std::sync::OnceLock;

use tracing::error;

use crate::store::{Error, Kind, Result};

/// Open until the first failure, then closed for good.
#[derive(Default)]
pub(super) struct Latch {
    cause: OnceLock<(Kind, String)>,
}

impl Latch {
    /// Closes the latch; the first cause stays.
    pub(super) fn close(&self, cause: &Error) {
        if self.cause.set((cause.kind, cause.detail.clone())).is_ok() {
            error!(error = %cause, "metadata can no longer be changed; unmount and mount again");
        }
    }

    /// # Errors
    /// With the kind of the cause, once closed.
    pub(super) fn check(&self) -> Result<()> {
        match self.cause.get() {
            None => Ok(()),
            Some((kind, detail)) => Err(Error::new(*kind, format!("changes are refused since: {detail}"))),
        }
    }
}
