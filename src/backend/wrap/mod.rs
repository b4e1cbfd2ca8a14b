//! Wrappers of the object store port: same port in, same port out. `cli` stacks them, outermost first:
//! `Retry`, `Limit`, `Measure`, store.

pub mod limit;
pub mod measure;
pub mod retry;

pub use limit::{Limit, Limits};
pub use measure::{Measure, RequestCounters, RequestCounts};
pub use retry::{Retry, RetryPolicy};
