//! Starting work beside the caller, as a port: a simulation polls the same futures on a seeded scheduler.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;

use tokio::sync::oneshot;

/// Starts work that nobody waits for. `name` goes into logs.
pub trait Spawner: Send + Sync + 'static {
    /// Runs `future` to its end. It must not block its thread: no file I/O, no long computation.
    fn spawn(&self, name: &'static str, future: Pin<Box<dyn Future<Output = ()> + Send>>);

    /// Runs `work` on a thread that may block. At most a fixed number run at once, others queue: whoever can start
    /// many bounds them with permits.
    fn spawn_blocking(&self, name: &'static str, work: Box<dyn FnOnce() + Send>);
}

/// Runs `work` on a thread that may block and waits for what it returns. Once called it runs to its end, also when
/// the returned future is dropped.
///
/// # Panics
/// With the panic of `work`; and if the runtime shuts down before `work` ran.
pub fn run_blocking<T: Send + 'static>(
    spawner: &dyn Spawner,
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> + Send + 'static {
    let (sender, receiver) = oneshot::channel();
    spawner.spawn_blocking(
        name,
        Box::new(move || {
            // The receiver is gone if the caller gave up; then nobody wants the answer.
            let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
        }),
    );
    async move {
        let outcome: Result<T, Box<dyn Any + Send>> =
            receiver.await.unwrap_or_else(|_| panic!("runtime shut down before work ran: {name}"));
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }
}
