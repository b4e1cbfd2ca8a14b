//! `gravitonfs status`: of a mount, by asking it; of an unmounted volume, by reading it.

use std::path::{Path, PathBuf};

use super::args;
use super::client;
use super::daemon::Reporter;
use super::environment::LocalRoots;
use super::exit::{Code, Failure, Result};
use super::format::read_superblock;
use super::open::{EngineConfig, open, start_runtime};
use super::options::MountOptions;
use super::registry;
use super::report::{State, Status};
use super::volume::Volume;
use crate::rt::TokioRuntime;

/// Prints the state of a volume or mount.
///
/// # Errors
/// `NotFound` if there is no such volume or mount; of the store.
pub fn status(roots: &LocalRoots, arguments: &args::Status) -> Result<()> {
    let status = match volume_of(&arguments.target)? {
        Some(volume) => match registry::find_volume(&roots.state, &volume.to_string()) {
            Some(entry) => client::status(&entry)?,
            None => unmounted(roots, &volume, &arguments.options)?,
        },
        None => client::status(&client::find(roots, &arguments.target)?)?,
    };
    if arguments.json {
        println!("{}", serde_json::to_string(&status).expect("a status always serializes"));
    } else {
        print!("{}", status.to_text());
    }
    Ok(())
}

/// The volume that `target` names; None if it is a path.
///
/// # Errors
/// `Usage` for what looks like a volume and is none.
pub(super) fn volume_of(target: &Path) -> Result<Option<Volume>> {
    let Some(text) = target.to_str().filter(|text| Volume::looks_like(text)) else { return Ok(None) };
    text.parse().map(Some).map_err(|cause: String| Failure::usage(text, cause))
}

/// Opens the volume for reading. What this machine has not sent yet is in the numbers if its state is here; without
/// any, a scratch directory takes what is read from the store.
fn unmounted(roots: &LocalRoots, volume: &Volume, options: &[String]) -> Result<Status> {
    let options = MountOptions { read_only: true, ..MountOptions::parse(options)? };
    let scratch = Scratch::new();
    let scratch_roots = LocalRoots { state: scratch.path.join("state"), cache: scratch.path.join("cache") };
    let runtime = start_runtime()?;
    let superblock = runtime.block_on(read_superblock(volume, &options.store, &runtime))?;
    if !roots.volume_state(superblock.volume_id()).is_dir() {
        return read(&runtime, volume, &options, &scratch_roots);
    }
    match read(&runtime, volume, &options, roots) {
        // A reader takes nothing, so only a state that has diverged from the store can be in its way. The numbers are the
        // store's then; what is kept aside here is not part of the volume.
        Err(failure) if failure.code == Code::Fenced => {
            let status = read(&runtime, volume, &options, &scratch_roots)?;
            Ok(Status { state: State::Diverged, state_cause: Some(failure.cause), ..status })
        }
        status => status,
    }
}

fn read(
    runtime: &TokioRuntime,
    volume: &Volume,
    options: &MountOptions,
    roots: &LocalRoots,
) -> Result<Status> {
    let config = EngineConfig {
        volume,
        purpose: Path::new("gravitonfs status"),
        create: false,
        options,
        roots,
        log_filter: None,
    };
    let engine = runtime.block_on(open(runtime, &config, &mut Reporter::silent()))?;
    let status = engine.status();
    let closed = runtime.block_on(engine.close());
    let status = status?;
    closed.map(|()| status)
}

/// A directory that goes with the process.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new() -> Self {
        let name = format!("gravitonfs-status-{}", std::process::id());
        Self { path: std::env::temp_dir().join(name) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Not there unless it was needed.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
