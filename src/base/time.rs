//! Time as a dependency: what reads a clock takes a [`Clock`], so that a simulation can turn it.

use std::pin::Pin;
use std::time::Duration;

/// A point in time as inodes carry it: seconds since 1970 (may be negative) and nanoseconds
/// 0 to 999,999,999.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp {
    pub secs: i64,
    pub nanos: u32,
}

/// Clock and timer.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time, for what users see.
    fn now(&self) -> Timestamp;

    /// Time since some fixed point, never going back, for intervals and deadlines.
    fn monotonic(&self) -> Duration;

    /// Completes after `delay`.
    fn sleep(&self, delay: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>>;
}

/// Source of random bits, for ids and jitter.
pub trait Random: Send + Sync + 'static {
    fn next_u64(&self) -> u64;

    fn next_u128(&self) -> u128 {
        (u128::from(self.next_u64()) << 64) | u128::from(self.next_u64())
    }
}
