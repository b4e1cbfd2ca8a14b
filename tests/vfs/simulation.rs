//! A machine without threads: a seed decides which of the tasks that could go on does, and time passes only when none
//! can. A kill drops every task wherever it waits.

use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use gravitonfs::base::time::Random;
use gravitonfs::rt::{ManualClock, SeededRandom, Spawner};

/// Time passes in steps of this while nobody has anything to do.
const TICK: Duration = Duration::from_millis(10);

/// Ticks in a row after which whoever waits waits for ever: longer than any timer of the product.
const TICKS_MAX: u32 = 20_000;

/// The scheduler and its clock.
pub(crate) struct Simulation {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<ManualClock>,
    random: SeededRandom,
    state: Mutex<State>,
    named: AtomicU64,
}

#[derive(Default)]
struct State {
    ready: Vec<Work>,
    /// All tasks that have not ended.
    tasks: HashMap<u64, Arc<Task>>,
}

enum Work {
    Poll(Arc<Task>),
    Blocking(Box<dyn FnOnce() + Send>),
}

type Future = Pin<Box<dyn std::future::Future<Output = ()> + Send>>;

struct Task {
    number: u64,
    future: Mutex<Option<Future>>,
    queued: AtomicBool,
    shared: Weak<Shared>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let Some(shared) = self.shared.upgrade() else { return };
        if !self.queued.swap(true, Ordering::AcqRel) {
            shared.lock().ready.push(Work::Poll(self));
        }
    }
}

/// Wakes the future that the test itself waits for.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// Hands work to the simulation.
struct Hand(Arc<Shared>);

impl Spawner for Hand {
    fn spawn(&self, _: &'static str, future: Future) {
        let number = self.0.named.fetch_add(1, Ordering::Relaxed);
        let task = Arc::new(Task {
            number,
            future: Mutex::new(Some(future)),
            queued: AtomicBool::new(true),
            shared: Arc::downgrade(&self.0),
        });
        let mut state = self.0.lock();
        state.tasks.insert(number, Arc::clone(&task));
        state.ready.push(Work::Poll(task));
    }

    fn spawn_blocking(&self, _: &'static str, work: Box<dyn FnOnce() + Send>) {
        self.0.lock().ready.push(Work::Blocking(work));
    }
}

impl Simulation {
    pub(crate) fn new(seed: u64) -> Self {
        let shared = Shared {
            clock: Arc::new(ManualClock::new()),
            random: SeededRandom::new(seed ^ 0x5eed),
            state: Mutex::default(),
            named: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn clock(&self) -> Arc<ManualClock> {
        Arc::clone(&self.shared.clock)
    }

    pub(crate) fn spawner(&self) -> Arc<dyn Spawner> {
        Arc::new(Hand(Arc::clone(&self.shared)))
    }

    /// Waits for `future`; meanwhile others go on, in an order that the seed decides.
    pub(crate) fn block_on<F: std::future::Future>(&self, future: F) -> F::Output {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&flag));
        let mut future = pin!(future);
        let mut idle = 0;
        loop {
            if flag.0.swap(false, Ordering::AcqRel)
                && let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker))
            {
                return output;
            }
            if self.step() {
                idle = 0;
            } else if !flag.0.load(Ordering::Acquire) {
                assert!(idle < TICKS_MAX, "nobody will ever go on");
                idle += 1;
                self.shared.clock.advance(TICK);
            }
        }
    }

    /// Waits for `future` for so many steps of others.
    pub(crate) fn poll_for<F: std::future::Future>(&self, future: F, steps: u64) -> Option<F::Output> {
        let mut future = pin!(future);
        let waker = Waker::from(Arc::new(Flag(AtomicBool::new(true))));
        for _ in 0..=steps {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Some(output);
            }
            if !self.step() {
                self.shared.clock.advance(TICK);
            }
        }
        None
    }

    /// Lets one that can go on do so; false if there is none.
    pub(crate) fn step(&self) -> bool {
        let work = {
            let mut state = self.shared.lock();
            if state.ready.is_empty() {
                return false;
            }
            let at = (self.shared.random.next_u64() % state.ready.len() as u64) as usize;
            state.ready.swap_remove(at)
        };
        match work {
            Work::Blocking(work) => work(),
            Work::Poll(task) => self.poll(&task),
        }
        true
    }

    fn poll(&self, task: &Arc<Task>) {
        task.queued.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(task));
        let mut slot = task.future.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(future) = slot.as_mut() else { return };
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            let ended = slot.take();
            drop(slot);
            drop(ended);
            self.shared.lock().tasks.remove(&task.number);
        }
    }

    /// Everything that was under way ends where it is and never goes on.
    pub(crate) fn kill(&self) {
        loop {
            let (tasks, ready) = {
                let mut state = self.shared.lock();
                (std::mem::take(&mut state.tasks), std::mem::take(&mut state.ready))
            };
            if tasks.is_empty() && ready.is_empty() {
                return;
            }
            for task in tasks.into_values() {
                let future = task.future.lock().unwrap_or_else(PoisonError::into_inner).take();
                drop(future);
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        self.kill();
    }
}
