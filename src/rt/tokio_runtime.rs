//! The runtime of the daemon: few worker threads, a bounded pool of blocking ones, a shutdown that ends.

use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::runtime::{Builder, Handle, Runtime};
use tracing::error;

use super::clock::SystemClock;
use super::spawn::Spawner;

/// Owns the threads. Dropped or shut down, it cancels what is still running.
pub struct TokioRuntime {
    runtime: Runtime,
}

impl TokioRuntime {
    /// Starts `worker_threads` threads for futures; blocking work gets up to `blocking_threads_max` more. Call it after
    /// the daemon has forked: threads do not survive a fork.
    ///
    /// # Errors
    /// If the system refuses the threads.
    pub fn new(worker_threads: usize, blocking_threads_max: usize) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(worker_threads)
            .max_blocking_threads(blocking_threads_max)
            .thread_name("gravitonfs-rt")
            .enable_all()
            .build()?;
        Ok(Self { runtime })
    }

    #[must_use]
    pub fn spawner(&self) -> Arc<dyn Spawner> {
        Arc::new(TokioSpawner { handle: self.runtime.handle().clone() })
    }

    /// For threads that poll futures themselves: what these reach may need a runtime's timers and sockets around it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.runtime.handle().clone()
    }

    /// The machine's clock, with timers on this runtime.
    #[must_use]
    pub fn clock(&self) -> Arc<SystemClock> {
        Arc::new(SystemClock::new(self.runtime.handle().clone()))
    }

    /// Runs `future` on the calling thread, which must not be one of the runtime's own.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Cancels futures at their next await and waits up to `deadline` for blocking work that has begun; what is left
    /// then keeps its thread until the process exits.
    pub fn shutdown(self, deadline: Duration) {
        self.runtime.shutdown_timeout(deadline);
    }
}

struct TokioSpawner {
    handle: Handle,
}

impl Spawner for TokioSpawner {
    fn spawn(&self, name: &'static str, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.handle.spawn(async move {
            // A task that died silently would look like a hang; the panic itself was printed by the hook.
            if AssertUnwindSafe(future).catch_unwind().await.is_err() {
                error!(task = name, "task panicked");
            }
        });
    }

    fn spawn_blocking(&self, name: &'static str, work: Box<dyn FnOnce() + Send>) {
        self.handle.spawn_blocking(move || {
            if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
                error!(task = name, "blocking task panicked");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::spawn::run_blocking;
    use super::*;

    fn runtime() -> TokioRuntime {
        TokioRuntime::new(1, 1).expect("threads for a test")
    }

    #[test]
    fn blocking_work_answers_its_caller() {
        let runtime = runtime();
        let spawner = runtime.spawner();
        assert_eq!(runtime.block_on(run_blocking(&*spawner, "sum", || 1 + 1)), 2);
    }

    #[test]
    fn blocking_work_runs_though_its_caller_gave_up() {
        let runtime = runtime();
        let (sender, receiver) = mpsc::channel();
        drop(run_blocking(&*runtime.spawner(), "send", move || sender.send(7)));
        assert_eq!(receiver.recv(), Ok(7));
    }

    #[test]
    #[should_panic(expected = "of the work")]
    fn a_panic_of_blocking_work_reaches_its_caller() {
        let runtime = runtime();
        let spawner = runtime.spawner();
        runtime.block_on(run_blocking(&*spawner, "panic", || panic!("of the work")));
    }

    #[test]
    fn a_panicking_task_does_not_end_the_others() {
        let runtime = runtime();
        let spawner = runtime.spawner();
        let (sender, receiver) = mpsc::channel();
        spawner.spawn("panic", Box::pin(async { panic!("of one task") }));
        spawner.spawn_blocking("panic", Box::new(|| panic!("of one piece of work")));
        spawner.spawn("send", Box::pin(async move { sender.send(7).expect("the test waits") }));
        assert_eq!(receiver.recv(), Ok(7));
        assert_eq!(runtime.block_on(run_blocking(&*spawner, "sum", || 1 + 1)), 2);
    }

    #[test]
    fn shutdown_does_not_wait_for_ever() {
        let runtime = runtime();
        let (started, has_started) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        runtime.spawner().spawn_blocking(
            "stuck",
            Box::new(move || {
                started.send(()).expect("the test waits");
                let _ = released.recv();
            }),
        );
        has_started.recv().expect("work starts");
        runtime.shutdown(Duration::from_millis(1));
        drop(release);
    }
}
