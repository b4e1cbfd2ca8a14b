//! `gravitonfs status`: of a mount, by asking it; of an unmounted volume, by reading it.

use std::path::Path;

use super::args;
use super::client;
use super::environment::LocalRoots;
use super::exit::{Failure, Result};
use super::registry;
use super::volume::Volume;

/// Prints the state of a volume or mount.
///
/// # Errors
/// `NotFound` if there is no such volume or mount; of the store.
pub fn status(roots: &LocalRoots, arguments: &args::Status) -> Result<()> {
    let status = match volume_of(&arguments.target)? {
        Some(volume) => match registry::find_volume(&roots.state, &volume.to_string()) {
            Some(entry) => client::status(&entry)?,
            None => return Err(Failure::usage("status", "unmounted volume")),
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

fn volume_of(target: &Path) -> Result<Option<Volume>> {
    let Some(text) = target.to_str().filter(|text| Volume::looks_like(text)) else { return Ok(None) };
    text.parse().map(Some).map_err(|cause: String| Failure::usage(text, cause))
}
