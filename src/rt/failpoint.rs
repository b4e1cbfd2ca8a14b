//! Failpoints: named places where a crash test ends the process as `kill -9` would.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The variable that `cli` reads and passes to [`arm`].
pub const VARIABLE: &str = "GRAVITONFS_FAILPOINT";

static ARMED: OnceLock<Failpoint> = OnceLock::new();

struct Failpoint {
    name: String,
    /// Hits left until the end.
    left: AtomicU64,
}

/// Arms one failpoint for the life of the process. `spec` is `NAME` or `NAME=nth`: the process ends when the place is
/// reached for the nth time, counted from 1.
///
/// # Errors
/// If `spec` is neither, or one is armed already; says which.
pub fn arm(spec: &str) -> Result<(), String> {
    let failpoint = parse(spec).ok_or_else(|| format!("not a failpoint: {spec}"))?;
    ARMED.set(failpoint).map_err(|refused| format!("second failpoint: {}", refused.name))
}

/// Marks a place. Names follow `VERB_AFTER_STEP`, such as `UPLOAD_AFTER_PACK`. One atomic load unless armed.
#[inline]
pub fn hit(name: &str) {
    if let Some(armed) = ARMED.get() {
        armed.hit(name);
    }
}

fn parse(spec: &str) -> Option<Failpoint> {
    let (name, nth) = spec.split_once('=').unwrap_or((spec, "1"));
    let nth = nth.parse::<u64>().ok().filter(|&nth| nth > 0)?;
    let valid =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    valid.then(|| Failpoint { name: name.to_owned(), left: AtomicU64::new(nth) })
}

impl Failpoint {
    #[cold]
    fn hit(&self, name: &str) {
        if self.name == name && self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            // SIGKILL and not abort: no handler runs, no buffer is flushed, no core is written.
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, ExitStatus};

    use super::*;

    #[test]
    fn specs_are_names_with_a_count_above_zero() {
        for spec in ["", "=1", "lower", "A=0", "A=x", "A B"] {
            assert!(parse(spec).is_none(), "{spec}");
        }
        assert_eq!(parse("FLUSH_AFTER_PACK=3").map(|point| point.left.into_inner()), Some(3));
    }

    /// What the child process of the next test does: three hits of one place, two of another.
    #[test]
    fn child() {
        let Ok(spec) = std::env::var(VARIABLE) else { return };
        arm(&spec).expect("valid spec");
        ["STEP_A", "STEP_B", "STEP_A", "STEP_B", "STEP_A"].into_iter().for_each(hit);
    }

    fn run_child(spec: &str) -> ExitStatus {
        let this = std::env::current_exe().expect("the test binary has a path");
        let mut command = Command::new(this);
        command.args(["--exact", "rt::failpoint::tests::child", "--quiet"]).env(VARIABLE, spec);
        command.output().expect("the test binary starts").status
    }

    #[test]
    fn the_process_is_killed_at_the_nth_hit_and_not_before() {
        assert_eq!(run_child("STEP_A=3").signal(), Some(Signal::SIGKILL as i32));
        assert_eq!(run_child("STEP_B").signal(), Some(Signal::SIGKILL as i32));
        assert!(run_child("STEP_B=3").success());
        assert!(run_child("STEP_C").success());
    }
}
