//! Permits weighted by bytes: how much may be in memory, on the wire or in the works at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Hands out at most a fixed number of bytes at once, first come first served. Clones share one limit.
#[derive(Clone)]
pub struct SemaphoreLimit {
    semaphore: Arc<Semaphore>,
    bytes_max: u64,
    /// Bytes one permit of the semaphore stands for; 1 unless the limit is too large for its 32-bit counts.
    unit: u64,
}

/// The right to use some bytes of a [`SemaphoreLimit`]; given back on drop.
#[must_use]
pub struct Permit {
    _permit: OwnedSemaphorePermit,
}

impl SemaphoreLimit {
    /// A limit of `bytes_max` bytes, at least one.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        let bytes_max = bytes_max.max(1);
        let unit = bytes_max.div_ceil(u64::from(u32::MAX >> 3));
        let permits = bytes_max / unit;
        let semaphore = Semaphore::new(usize::try_from(permits).expect("fits 29 bits by the choice of unit"));
        Self { semaphore: Arc::new(semaphore), bytes_max, unit }
    }

    /// Waits until `bytes` are free. A request beyond the whole limit waits for all of it and passes alone, so that
    /// one huge item is slow instead of stuck.
    pub async fn acquire(&self, bytes: u64) -> Permit {
        let permit = self.semaphore.clone().acquire_many_owned(self.cost(bytes)).await;
        Permit { _permit: permit.expect("the semaphore is never closed") }
    }

    /// A permit if `bytes` are free now and nobody waits.
    pub fn try_acquire(&self, bytes: u64) -> Option<Permit> {
        let permit = self.semaphore.clone().try_acquire_many_owned(self.cost(bytes)).ok()?;
        Some(Permit { _permit: permit })
    }

    /// Bytes in use, rounded up to the unit.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.bytes_max.saturating_sub(self.semaphore.available_permits() as u64 * self.unit)
    }

    fn cost(&self, bytes: u64) -> u32 {
        let permits = self.bytes_max / self.unit;
        u32::try_from(bytes.div_ceil(self.unit).min(permits)).expect("fits 29 bits by the choice of unit")
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn bytes_are_limited_and_given_back() {
        let limit = SemaphoreLimit::new(100);
        let first = limit.try_acquire(60).expect("free");
        assert!(limit.try_acquire(41).is_none());
        assert_eq!(limit.used_bytes(), 60);
        let mut waiting = Box::pin(limit.acquire(41));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(first);
        assert!(waiting.now_or_never().is_some());
    }

    #[test]
    fn a_request_beyond_the_limit_takes_all_of_it() {
        let limit = SemaphoreLimit::new(100);
        let small = limit.try_acquire(1);
        assert!(limit.try_acquire(1000).is_none());
        drop(small);
        let _all = limit.try_acquire(1000).expect("nothing else in use");
        assert!(limit.try_acquire(1).is_none());
    }

    #[test]
    fn limits_beyond_four_gigabytes_count_in_units() {
        let limit = SemaphoreLimit::new(1 << 44);
        let _half = limit.try_acquire(1 << 43).expect("free");
        assert!(limit.used_bytes() >= 1 << 43);
        assert!(limit.try_acquire((1 << 43) + (1 << 30)).is_none());
        assert!(limit.try_acquire((1 << 43) - (1 << 30)).is_some());
    }
}
