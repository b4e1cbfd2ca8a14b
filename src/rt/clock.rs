//! Clocks: the machine's, and one that a test turns by hand.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::base::time::{Clock, Timestamp};

/// CLOCK_REALTIME, CLOCK_MONOTONIC, and timers of a tokio runtime, which any thread may wait for.
pub struct SystemClock {
    timers: Handle,
    started: Instant,
}

impl SystemClock {
    /// A clock whose timers run on the runtime behind `timers`.
    #[must_use]
    pub fn new(timers: Handle) -> Self {
        Self { timers, started: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        timestamp(SystemTime::now())
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    fn sleep(&self, delay: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        let _enter = self.timers.enter();
        Box::pin(tokio::time::sleep(delay))
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    // Seconds count down before 1970 and nanoseconds still count up within them.
    let (secs, nanos) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i128::from(after.as_secs()), after.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            let nanos = (1_000_000_000 - before.subsec_nanos()) % 1_000_000_000;
            (-i128::from(before.as_secs()) - i128::from(nanos != 0), nanos)
        }
    };
    Timestamp { secs: i64::try_from(secs).expect("time_t has 64 bits"), nanos }
}

/// Stands still until [`advance`](Self::advance) moves it.
#[derive(Default)]
pub struct ManualClock {
    state: Mutex<ManualState>,
}

#[derive(Default)]
struct ManualState {
    elapsed: Duration,
    /// Who waits, by the time and the order of waiting.
    sleepers: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
    slept: u64,
}

impl ManualClock {
    /// A clock at 1970-01-01 00:00:00.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the clock and wakes whoever waited for a time up to then, in order.
    pub fn advance(&self, step: Duration) {
        let mut state = self.lock();
        state.elapsed += step;
        let later = state.elapsed + Duration::from_nanos(1);
        let still_asleep = state.sleepers.split_off(&(later, 0));
        for waker in std::mem::replace(&mut state.sleepers, still_asleep).into_values() {
            // The sleeper may have been dropped.
            let _ = waker.send(());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ManualState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        timestamp(UNIX_EPOCH + self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        self.lock().elapsed
    }

    fn sleep(&self, delay: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        if delay.is_zero() {
            let _ = sender.send(());
        } else {
            state.slept += 1;
            let key = (state.elapsed + delay, state.slept);
            state.sleepers.insert(key, sender);
        }
        Box::pin(async move {
            if receiver.await.is_err() {
                // The clock is gone: its time never comes.
                std::future::pending::<()>().await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let before = UNIX_EPOCH - Duration::from_millis(1500);
        assert_eq!(timestamp(before), Timestamp { secs: -2, nanos: 500_000_000 });
        assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(1)), Timestamp { secs: -1, nanos: 0 });
        assert_eq!(timestamp(UNIX_EPOCH), Timestamp { secs: 0, nanos: 0 });
    }

    #[test]
    fn a_manual_clock_wakes_sleepers_when_their_time_comes() {
        let clock = ManualClock::new();
        let mut short = clock.sleep(Duration::from_secs(1));
        let mut long = clock.sleep(Duration::from_secs(3));
        let mut twin = clock.sleep(Duration::from_secs(3));
        assert_eq!((&mut short).now_or_never(), None);
        clock.advance(Duration::from_secs(2));
        assert_eq!((short.now_or_never(), (&mut long).now_or_never()), (Some(()), None));
        clock.advance(Duration::from_secs(1));
        assert_eq!((long.now_or_never(), (&mut twin).now_or_never()), (Some(()), Some(())));
        assert_eq!(clock.now(), Timestamp { secs: 3, nanos: 0 });
    }

    #[test]
    fn a_system_timer_can_be_awaited_on_any_thread() {
        let runtime = super::super::TokioRuntime::new(1, 1).expect("threads for a test");
        let clock = runtime.clock();
        let before = clock.monotonic();
        let elsewhere = super::super::TokioRuntime::new(1, 1).expect("threads for a test");
        elsewhere.block_on(clock.sleep(Duration::from_millis(2)));
        assert!(clock.monotonic() - before >= Duration::from_millis(2));
    }
}
