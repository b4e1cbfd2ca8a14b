//! The budget of local disk for bytes that are not in the store yet (rule R12): reserved before a write is acknowledged,
//! given back when its bytes are safe elsewhere.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::base::size::format_bytes;
use crate::base::time::Clock;
use crate::store::device::Directory;
use crate::store::{Error, Kind, Result};

/// How long a measurement of the free space serves. What is reserved meanwhile is subtracted from it; what others
/// write is not seen before the next.
const MEASURED_FOR: Duration = Duration::from_secs(1);

/// What the budget may take.
#[derive(Clone, Copy, Debug)]
pub struct SpillLimits {
    /// Most bytes reserved at once.
    pub bytes_max: u64,
    /// Bytes of the disk that are left to others, to the metadata and to the log, so that those work on a full disk.
    pub free_bytes_min: u64,
}

/// Hands out reservations. Clones share one budget.
#[derive(Clone)]
pub struct SpillBudget {
    shared: Arc<Shared>,
}

struct Shared {
    limits: SpillLimits,
    directory: Arc<dyn Directory>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Rung whenever bytes are given back.
    released: Notify,
}

struct State {
    used: u64,
    /// Free bytes when last measured, less what has been reserved since; None before the first time.
    free: Option<(Duration, u64)>,
}

/// The right to keep some bytes on the local disk; given back on drop.
#[must_use]
pub struct Reservation {
    budget: SpillBudget,
    bytes: u64,
}

impl SpillBudget {
    /// A budget on the disk of `directory`.
    #[must_use]
    pub fn new(limits: SpillLimits, directory: Arc<dyn Directory>, clock: Arc<dyn Clock>) -> Self {
        let state = Mutex::new(State { used: 0, free: None });
        Self { shared: Arc::new(Shared { limits, directory, clock, state, released: Notify::new() }) }
    }

    /// Reserves `bytes`.
    ///
    /// # Errors
    /// `Full` if the limit or the disk has no room for them.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation> {
        let mut state = self.shared.lock();
        let limits = &self.shared.limits;
        if limits.bytes_max < state.used.saturating_add(bytes) {
            let (used, max) = (format_bytes(state.used), format_bytes(limits.bytes_max));
            return Err(Error::new(Kind::Full, format!("reserve spill space: used={used} limit={max}")));
        }
        let needed = limits.free_bytes_min.saturating_add(bytes);
        if self.shared.free(&mut state, false)? < needed && self.shared.free(&mut state, true)? < needed {
            let keep = format_bytes(limits.free_bytes_min);
            return Err(Error::new(
                Kind::Full,
                format!("reserve spill space: the disk must keep free={keep}"),
            ));
        }
        Ok(self.take(&mut state, bytes))
    }

    /// Reserves `bytes` whatever the limits say: for bytes whose room was reserved by whoever wrote them, and that move
    /// from there to here.
    pub fn charge(&self, bytes: u64) -> Reservation {
        self.take(&mut self.shared.lock(), bytes)
    }

    /// Bytes reserved now.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.shared.lock().used
    }

    /// Completes when bytes are given back after this call.
    pub fn released(&self) -> impl Future<Output = ()> + '_ {
        self.shared.released.notified()
    }

    fn take(&self, state: &mut State, bytes: u64) -> Reservation {
        state.used = state.used.saturating_add(bytes);
        if let Some((_, free)) = &mut state.free {
            *free = free.saturating_sub(bytes);
        }
        Reservation { budget: self.clone(), bytes }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Free bytes, measured again if that is due or `now`.
    fn free(&self, state: &mut State, now: bool) -> Result<u64> {
        let time = self.clock.monotonic();
        match state.free {
            Some((measured, free)) if !now && time.saturating_sub(measured) < MEASURED_FOR => Ok(free),
            _ => {
                let free = self.directory.free_bytes()?;
                state.free = Some((time, free));
                Ok(free)
            }
        }
    }
}

impl Reservation {
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds the bytes of `other`.
    pub fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Gives back all but `bytes`; nothing if it has no more than that.
    pub fn shrink_to(&mut self, bytes: u64) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.bytes -= surplus;
        self.give_back(surplus);
    }

    fn give_back(&self, bytes: u64) {
        if bytes != 0 {
            self.budget.shared.lock().used -= bytes;
            self.budget.shared.released.notify_waiters();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::FutureExt as _;

    use super::*;
    use crate::rt::ManualClock;
    use crate::store::device::Device;

    /// A disk that has as many free bytes as the test says.
    struct Disk(AtomicU64);

    impl Directory for Disk {
        fn create(&self, _: &str) -> Result<Arc<dyn Device>> {
            unreachable!("a budget writes nothing")
        }
        fn open(&self, _: &str) -> Result<Arc<dyn Device>> {
            unreachable!("a budget reads nothing")
        }
        fn remove(&self, _: &str) -> Result<()> {
            unreachable!("a budget removes nothing")
        }
        fn rename(&self, _: &str, _: &str) -> Result<()> {
            unreachable!("a budget renames nothing")
        }
        fn list(&self) -> Result<Vec<(String, u64)>> {
            unreachable!("a budget lists nothing")
        }
        fn sync(&self) -> Result<()> {
            unreachable!("a budget syncs nothing")
        }
        fn free_bytes(&self) -> Result<u64> {
            Ok(self.0.load(Ordering::Relaxed))
        }
    }

    fn budget(bytes_max: u64, free_bytes_min: u64, free: u64) -> (SpillBudget, Arc<Disk>, Arc<ManualClock>) {
        let (disk, clock) = (Arc::new(Disk(AtomicU64::new(free))), Arc::new(ManualClock::new()));
        let limits = SpillLimits { bytes_max, free_bytes_min };
        (SpillBudget::new(limits, disk.clone(), clock.clone()), disk, clock)
    }

    fn kind(result: Result<Reservation>) -> Option<Kind> {
        result.err().map(|error| error.kind)
    }

    #[test]
    fn the_limit_holds_and_dropped_bytes_come_back() {
        let (budget, ..) = budget(100, 0, 1000);
        let mut first = budget.reserve(60).expect("room");
        assert_eq!(kind(budget.reserve(41)), Some(Kind::Full));
        first.merge(budget.reserve(40).expect("room"));
        first.shrink_to(10);
        assert_eq!((first.bytes(), budget.used_bytes()), (10, 10));
        let mut released = Box::pin(budget.released());
        assert!(released.as_mut().now_or_never().is_none());
        drop(first);
        assert!(released.now_or_never().is_some());
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn the_disk_keeps_its_minimum_free() {
        let (budget, disk, clock) = budget(1000, 50, 100);
        let _held = budget.reserve(30).expect("70 stay free");
        assert!(kind(budget.reserve(51)) == Some(Kind::Full), "100 - 51 is less than 50");
        disk.0.store(60, Ordering::Relaxed);
        clock.advance(MEASURED_FOR);
        assert_eq!(kind(budget.reserve(11)), Some(Kind::Full), "others filled the disk");
        disk.0.store(500, Ordering::Relaxed);
        assert!(budget.reserve(100).is_ok(), "a refusal measures again");
    }

    #[test]
    fn charged_bytes_count_but_are_never_refused() {
        let (budget, ..) = budget(100, 0, 1000);
        let charge = budget.charge(500);
        assert_eq!(kind(budget.reserve(1)), Some(Kind::Full));
        drop(charge);
        assert!(budget.reserve(100).is_ok());
    }
}
