//! A gate that counts the work inside and can be closed: how shutdown knows that nothing is left running.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Open until closed, then closed for good. Clones share one gate.
#[derive(Clone, Default)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Rung when the last pass of a closed gate goes.
    emptied: Notify,
}

#[derive(Default)]
struct State {
    closed: bool,
    inside: usize,
}

/// The right to be at work; dropped when the work is done.
#[must_use]
pub struct Pass {
    shared: Arc<Shared>,
}

impl Gate {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A pass, or None once the gate is closed.
    pub fn enter(&self) -> Option<Pass> {
        let mut state = self.shared.lock();
        if state.closed {
            return None;
        }
        state.inside += 1;
        Some(Pass { shared: self.shared.clone() })
    }

    /// Lets nobody in any more and waits until all passes are dropped. May be called more than once.
    pub async fn close(&self) {
        self.shared.lock().closed = true;
        loop {
            let emptied = self.shared.emptied.notified();
            tokio::pin!(emptied);
            // Registered before the count is read, else the last pass could go in between unnoticed.
            emptied.as_mut().enable();
            if self.shared.lock().inside == 0 {
                return;
            }
            emptied.await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.inside -= 1;
        if state.closed && state.inside == 0 {
            self.shared.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn closing_waits_for_the_last_pass_and_admits_nobody() {
        let gate = Gate::new();
        let (first, second) = (gate.enter(), gate.enter());
        assert!(first.is_some());
        let mut closing = Box::pin(gate.close());
        assert!(closing.as_mut().now_or_never().is_none());
        assert!(gate.enter().is_none());
        drop(first);
        assert!(closing.as_mut().now_or_never().is_none());
        drop(second);
        assert!(closing.now_or_never().is_some());
        assert!(gate.close().now_or_never().is_some(), "closed stays closed");
    }
}
