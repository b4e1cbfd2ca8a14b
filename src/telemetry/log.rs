//! The log of the process: one line per event in one file, panics included.

use std::fs::File;
use std::panic::PanicHookInfo;
use std::sync::Arc;

use tracing::{Subscriber, error};
use tracing_subscriber::EnvFilter;

/// The variable that `cli` reads and passes to [`init`]: a level (`debug`) or directives (`warn,gravitonfs::vfs=trace`).
pub const VARIABLE: &str = "GRAVITONFS_LOG";

/// Ours from info, and of the libraries only what somebody should look at.
const FILTER_DEFAULT: &str = "warn,gravitonfs=info";

/// Sends all events to `file`, which must be open for appending, and panics too: a daemon has no terminal to show them
/// on. Called once per process.
///
/// # Errors
/// If `filter` cannot be parsed, or a log has been set up before; says which.
pub fn init(file: File, filter: Option<&str>) -> Result<(), String> {
    let subscriber = subscriber(file, filter.unwrap_or(FILTER_DEFAULT))?;
    tracing::subscriber::set_global_default(subscriber).map_err(|error| error.to_string())?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn subscriber(file: File, filter: &str) -> Result<impl Subscriber + Send + Sync, String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("{VARIABLE}={filter}: {error}"))?;
    Ok(tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Arc::new(file))
        .finish())
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let backtrace = std::backtrace::Backtrace::capture();
    error!(thread = name, %backtrace, "{info}");
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use tracing::{info, warn};

    use super::*;

    fn logged(filter: &str, work: impl FnOnce()) -> String {
        let mut file = tempfile::tempfile().expect("temporary file");
        let subscriber =
            subscriber(file.try_clone().expect("a second handle"), filter).expect("valid filter");
        tracing::subscriber::with_default(subscriber, work);
        let mut text = String::new();
        file.rewind().expect("seekable");
        file.read_to_string(&mut text).expect("text");
        text
    }

    #[test]
    fn events_are_lines_and_the_filter_chooses() {
        let events = || {
            info!(bytes = 7, "kept");
            info!(target: "aws_smithy", "dropped");
            warn!(target: "aws_smithy", "kept too");
        };
        let text = logged(FILTER_DEFAULT, events);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("kept") && lines[0].contains("bytes=7"), "{text}");
        assert_eq!(logged("off", events), "");
    }

    #[test]
    fn a_bad_filter_names_the_variable() {
        let file = tempfile::tempfile().expect("temporary file");
        let error = subscriber(file, "gravitonfs=loud").err().expect("no such level");
        assert!(error.starts_with("GRAVITONFS_LOG=gravitonfs=loud: "), "{error}");
    }
}
