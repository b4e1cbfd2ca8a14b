//! Where a mount is between serving and having ended, shared by the thread that drives it and those that ask.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::exit::{Failure, Result};
use super::report::Progress;

/// The longest that the process stays for an umount(2) of its own after everything else is done.
const UNMOUNT_MAX: Duration = Duration::from_secs(300);

/// How the mount is doing.
///
/// ```text
/// Serving -> Draining -> Ended
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
enum Phase {
    Serving,
    Draining(Progress),
    /// The process is about to exit.
    Ended(Result<()>),
}

/// The shared state.
pub struct Lifecycle {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    phase: Phase,
    /// Threads that still have to pass on how it ended.
    watchers: usize,
    /// Those of them that are in umount(2).
    unmounting: usize,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            state: Mutex::new(State { phase: Phase::Serving, watchers: 0, unmounting: 0 }),
            changed: Condvar::new(),
        }
    }
}

impl Lifecycle {
    /// True until the drain begins.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.lock().phase == Phase::Serving
    }

    /// The drain has begun, or got this far.
    pub fn draining(&self, progress: Progress) {
        self.set(Phase::Draining(progress));
    }

    /// The last word. Waits up to `patience` until all watchers have passed it on, and first for those who take the mount
    /// off: the kernel closes the connection before it lets go of its inodes, and with a million of them that takes seconds.
    pub fn end(&self, outcome: Result<()>, patience: Duration) {
        self.set(Phase::Ended(outcome));
        let unmounted =
            self.changed.wait_timeout_while(self.lock(), UNMOUNT_MAX, |state| 0 < state.unmounting);
        let (state, _) = unmounted.unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(state, patience, |state| 0 < state.watchers));
    }

    /// A watcher; to be taken before what makes the mount end, so that the end waits for it.
    pub fn watch(&self) -> Watcher<'_> {
        self.lock().watchers += 1;
        Watcher { lifecycle: self }
    }

    fn set(&self, phase: Phase) {
        self.lock().phase = phase;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits for the end.
pub struct Watcher<'a> {
    lifecycle: &'a Lifecycle,
}

impl Watcher<'_> {
    /// Does `unmount`, which takes the mount off.
    pub fn unmounting<T>(&self, unmount: impl FnOnce() -> T) -> T {
        self.lifecycle.lock().unmounting += 1;
        let outcome = unmount();
        self.lifecycle.lock().unmounting -= 1;
        self.lifecycle.changed.notify_all();
        outcome
    }

    /// Reports progress until the mount has ended, and how it did.
    ///
    /// # Errors
    /// What made the drain fail.
    pub fn until_end(&self, report: &mut dyn FnMut(Progress)) -> Result<()> {
        let mut seen = None;
        loop {
            let lifecycle = self.lifecycle;
            let unchanged = |state: &mut State| match &state.phase {
                Phase::Serving => true,
                Phase::Draining(progress) => seen == Some(*progress),
                Phase::Ended(_) => false,
            };
            let state = lifecycle.changed.wait_while(lifecycle.lock(), unchanged);
            match state.unwrap_or_else(PoisonError::into_inner).phase.clone() {
                Phase::Serving => {}
                Phase::Draining(progress) => {
                    seen = Some(progress);
                    report(progress);
                }
                Phase::Ended(outcome) => return outcome,
            }
        }
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        self.lifecycle.lock().watchers -= 1;
        self.lifecycle.changed.notify_all();
    }
}

/// A failure that ends a drain, for logs and watchers.
#[must_use]
pub fn timed_out(volume: &super::volume::Volume, left: Progress) -> Failure {
    let cause = format!("not everything is in the store yet ({})", left.to_text());
    let advice = "it is safe on this machine: mount the volume again to send it";
    Failure::new(super::exit::Code::DrainTimedOut, volume, cause, advice)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn watchers_see_progress_and_the_end_waits_for_them() {
        let lifecycle = Arc::new(Lifecycle::default());
        let (steps, seen) = sync_channel(8);
        let (ready, is_ready) = sync_channel(1);
        let watching = std::thread::spawn({
            let lifecycle = Arc::clone(&lifecycle);
            move || {
                let watcher = lifecycle.watch();
                ready.send(()).expect("the test waits");
                watcher.until_end(&mut |progress| steps.send(progress.dirty_bytes).expect("the test waits"))
            }
        });
        is_ready.recv().expect("it watches");
        assert!(lifecycle.is_serving());
        lifecycle.draining(Progress { dirty_bytes: 5, pending_upload_bytes: 0 });
        assert_eq!(seen.recv(), Ok(5));
        lifecycle.end(Ok(()), Duration::from_secs(60));
        assert_eq!(lifecycle.lock().watchers, 0);
        assert_eq!(watching.join().expect("no panic"), Ok(()));
    }

    #[test]
    fn the_end_waits_for_who_takes_the_mount_off_however_long_that_takes() {
        let lifecycle = Arc::new(Lifecycle::default());
        let (ready, is_ready) = sync_channel(1);
        let (go, has_gone) = sync_channel(1);
        let unmounting = std::thread::spawn({
            let lifecycle = Arc::clone(&lifecycle);
            move || {
                let watcher = lifecycle.watch();
                watcher.unmounting(|| {
                    ready.send(()).expect("the test waits");
                    has_gone.recv().expect("the test goes on");
                });
            }
        });
        is_ready.recv().expect("it unmounts");
        let ending = std::thread::spawn({
            let lifecycle = Arc::clone(&lifecycle);
            move || lifecycle.end(Ok(()), Duration::ZERO)
        });
        while lifecycle.lock().phase != Phase::Ended(Ok(())) {
            std::thread::yield_now();
        }
        assert!(!ending.is_finished());
        go.send(()).expect("it waits");
        ending.join().expect("no panic");
        assert_eq!(lifecycle.lock().unmounting, 0);
        unmounting.join().expect("no panic");
    }
}
