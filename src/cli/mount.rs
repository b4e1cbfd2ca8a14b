//! `gravitonfs mount`: check what was typed, become a daemon, open the volume, serve.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::args;
use super::daemon::{Reporter, Side, detach, limit_arenas, raise_open_files, set_io_flusher};
use super::environment::{LocalRoots, log_filter};
use super::exit::{Failure, Result};
use super::mountpoint::{prepare, resolve};
use super::open::{EngineConfig, open, start_runtime};
use super::options::MountOptions;
use super::serve::{Mount, Mounting, block_signals};
use super::volume::Volume;

/// How long background work may take to notice that the mount has ended.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// What was asked for, checked as far as that is possible without touching anything.
struct Request {
    volume: Volume,
    mountpoint: PathBuf,
    create: bool,
    options: MountOptions,
    roots: LocalRoots,
}

/// Mounts a volume. Returns when the root answers; in the foreground, when the mount has ended.
///
/// # Errors
/// Whatever keeps the volume from being mounted.
pub fn mount(arguments: &args::Mount, roots: LocalRoots) -> Result<()> {
    let volume = arguments.volume.parse::<Volume>();
    let request = Request {
        volume: volume.map_err(|cause| Failure::usage(&arguments.volume, cause))?,
        mountpoint: resolve(&arguments.mountpoint)?,
        create: arguments.create,
        options: MountOptions::parse(&arguments.options)?,
        roots,
    };
    if arguments.foreground {
        let mut reporter = Reporter::foreground();
        return serve(request, &mut reporter);
    }
    match detach()? {
        Side::Parent(outcome) => outcome,
        Side::Child(mut reporter) => match serve(request, &mut reporter) {
            Ok(()) => Ok(()),
            // Not heard by anybody: it is in the log, and the exit code tells whoever waits for the process.
            Err(failure) => match reporter.failed(failure) {
                Some(failure) => Err(failure),
                None => std::process::exit(0),
            },
        },
    }
}

fn serve(request: Request, reporter: &mut Reporter) -> Result<()> {
    block_signals()?;
    set_io_flusher();
    limit_arenas();
    raise_open_files();
    prepare(&request.mountpoint, request.create)?;
    let runtime = start_runtime()?;
    let filter = log_filter();
    let config = EngineConfig {
        volume: &request.volume,
        purpose: &request.mountpoint,
        create: request.create,
        options: &request.options,
        roots: &request.roots,
        log_filter: filter.as_deref(),
    };
    let engine = Arc::new(runtime.block_on(open(&runtime, &config, reporter))?);
    let line = format!("{} is mounted on {}", request.volume, request.mountpoint.display());
    let started = Mount::start(Mounting {
        engine: Arc::clone(&engine),
        runtime,
        mountpoint: request.mountpoint,
        options: request.options,
        state_root: request.roots.state,
    });
    let mount = match started {
        Ok(mount) => mount,
        Err((failure, runtime)) => {
            // The volume is ours already: others need not wait for us to come back.
            if let Err(error) = runtime.block_on(engine.close()) {
                tracing::warn!(%error, "release the volume");
            }
            return Err(*failure);
        }
    };
    reporter.ready(&line);
    let (outcome, runtime) = mount.run();
    runtime.shutdown(SHUTDOWN_GRACE);
    outcome
}
