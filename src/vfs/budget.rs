//! The share of the memory ceiling that written bytes may take before they are staged.

use std::sync::Mutex;

use tokio::sync::Notify;

use crate::base::sync::lock;

/// Counts bytes; writers wait for room.
pub(super) struct HotBudget {
    bytes_max: u64,
    /// Leaf lock.
    used: Mutex<u64>,
    /// Rung whenever bytes are given back.
    released: Notify,
}

impl HotBudget {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, used: Mutex::new(0), released: Notify::new() }
    }

    /// Takes `bytes` if there is room. Anything fits an empty budget, or a write larger than all of it would wait for
    /// ever.
    pub(super) fn try_take(&self, bytes: u64) -> bool {
        let mut used = lock(&self.used);
        let fits = *used == 0 || *used + bytes <= self.bytes_max;
        if fits {
            *used += bytes;
        }
        fits
    }

    /// Takes `bytes` whatever the limit: a few KiB of content that moves in from elsewhere.
    pub(super) fn take(&self, bytes: u64) {
        *lock(&self.used) += bytes;
    }

    pub(super) fn release(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut used = lock(&self.used);
        debug_assert!(bytes <= *used, "released more than was taken");
        *used = used.saturating_sub(bytes);
        drop(used);
        self.released.notify_waiters();
    }

    /// True from half of the limit on: staging need not wait for age then.
    pub(super) fn is_pressed(&self) -> bool {
        self.bytes_max / 2 <= *lock(&self.used)
    }

    /// Bytes taken now.
    pub(super) fn used_bytes(&self) -> u64 {
        *lock(&self.used)
    }

    /// Completes when bytes are given back after this call.
    pub(super) fn released(&self) -> tokio::sync::futures::Notified<'_> {
        self.released.notified()
    }
}
