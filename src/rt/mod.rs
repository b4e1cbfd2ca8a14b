//! What the product takes from the machine as parameters: spawning, clocks, random bits, and what is known of a process;
//! and the small async tools (gate, byte permits, failpoints) that every layer above may use.

#![expect(clippy::disallowed_methods, reason = "what others take as parameters is made here")]

pub mod clock;
pub mod failpoint;
pub mod gate;
pub mod limit;
pub mod process;
pub mod random;
pub mod spawn;
pub mod tokio_runtime;

pub use clock::{ManualClock, SystemClock};
pub use gate::{Gate, Pass};
pub use limit::{Permit, SemaphoreLimit};
pub use random::{SeededRandom, SystemRandom};
pub use spawn::{Spawner, run_blocking};
pub use tokio_runtime::TokioRuntime;
