//! Replies that wait: an answer that is not there yet moves to the runtime together with its reply.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use fuser::Errno;
use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use tokio::runtime::Handle;
use tracing::error;

use super::reply::{Refuse, What, refuse};
use crate::base::time::Clock;
use crate::rt::Spawner;
use crate::vfs::Pending;

/// How long a request may take. A process that waits for an answer cannot be killed before it comes (fuser refuses
/// INTERRUPT), so one must come; ten minutes are more than any store that still works needs.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);

/// Where waiting replies go.
#[derive(Clone)]
pub(super) struct Handoff {
    pub(super) spawner: Arc<dyn Spawner>,
    pub(super) clock: Arc<dyn Clock>,
    /// The first poll happens on a reader thread, and what it reaches may start timers and connections.
    pub(super) runtime: Handle,
}

impl Handoff {
    /// Answers with what `pending` gives: at once if it is there, else from the runtime, and EIO when it took too long.
    pub(super) fn answer<R: Refuse, T: Send + 'static>(
        &self,
        what: What,
        reply: R,
        pending: Pending<T>,
        accept: impl FnOnce(R, T) + Send + 'static,
    ) {
        // Most answers are ready; a poll without a waker finds out, and does no harm to the others: whoever is polled
        // again registers its new waker.
        let context = self.runtime.enter();
        let mut guarded = AssertUnwindSafe(pending).catch_unwind();
        if let Some(outcome) = (&mut guarded).now_or_never() {
            return finish(what, reply, Some(outcome), accept);
        }
        drop(context);
        let late = self.clock.sleep(ANSWER_WITHIN);
        let rest = async move {
            let outcome = match select(pin!(guarded), late).await {
                Either::Left((outcome, _)) => Some(outcome),
                Either::Right(_) => None,
            };
            finish(what, reply, outcome, accept);
        };
        self.spawner.spawn(what.operation, Box::pin(rest));
    }
}

/// `outcome` is None if the time was up.
fn finish<R: Refuse, T>(
    what: What,
    reply: R,
    outcome: Option<std::thread::Result<crate::vfs::Result<T>>>,
    accept: impl FnOnce(R, T),
) {
    let What { operation, ino } = what;
    match outcome {
        Some(Ok(Ok(answer))) => accept(reply, answer),
        Some(Ok(Err(error))) => refuse(reply, what, &error),
        Some(Err(_)) => {
            error!(operation, ino, "request panicked");
            reply.refuse(Errno::EIO);
        }
        None => {
            error!(operation, ino, seconds = ANSWER_WITHIN.as_secs(), "request took too long");
            reply.refuse(Errno::EIO);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::rt::{ManualClock, TokioRuntime};
    use crate::vfs::Error;

    /// Sends what became of it.
    struct Told(Sender<Result<u32, i32>>);

    impl Refuse for Told {
        fn refuse(self, errno: Errno) {
            let _ = self.0.send(Err(i32::from(errno)));
        }
    }

    struct Setup {
        runtime: TokioRuntime,
        clock: Arc<ManualClock>,
    }

    impl Setup {
        fn new() -> Self {
            Self { runtime: TokioRuntime::new(1, 1).expect("threads for a test"), clock: Arc::default() }
        }

        fn answer(&self, pending: Pending<u32>) -> Receiver<Result<u32, i32>> {
            let (sender, receiver) = channel();
            let handoff = Handoff {
                spawner: self.runtime.spawner(),
                clock: self.clock.clone(),
                runtime: self.runtime.handle(),
            };
            let what = What { operation: "test", ino: 1 };
            handoff.answer(what, Told(sender), pending, |reply, value| {
                let _ = reply.0.send(Ok(value));
            });
            receiver
        }
    }

    #[test]
    fn what_is_ready_is_answered_on_the_calling_thread() {
        let setup = Setup::new();
        assert_eq!(setup.answer(Box::pin(async { Ok(7) })).try_recv(), Ok(Ok(7)));
        let refused = setup.answer(Box::pin(async { Err(Error::NotFound) }));
        assert_eq!(refused.try_recv(), Ok(Err(libc::ENOENT)));
    }

    #[test]
    fn what_waits_is_answered_when_it_is_done() {
        let setup = Setup::new();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let answer = setup.answer(Box::pin(async { Ok(receiver.await.expect("sent below")) }));
        assert!(answer.try_recv().is_err());
        sender.send(7).expect("somebody waits");
        assert_eq!(answer.recv(), Ok(Ok(7)));
    }

    #[test]
    fn a_panic_and_a_hang_are_answered_with_eio() {
        let setup = Setup::new();
        assert_eq!(setup.answer(Box::pin(async { panic!("of one request") })).recv(), Ok(Err(libc::EIO)));
        let hung = setup.answer(Box::pin(std::future::pending()));
        assert!(hung.try_recv().is_err());
        setup.clock.advance(ANSWER_WITHIN);
        assert_eq!(hung.recv(), Ok(Err(libc::EIO)));
    }
}
