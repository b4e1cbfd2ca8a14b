//! Parse, wire, run: the only place that names concrete backends.

#![expect(clippy::disallowed_methods, reason = "here the machine is handed to the engine as parameters")]

pub mod args;
pub mod blob;
mod blocks;
pub mod check;
pub mod client;
pub mod control;
pub mod daemon;
mod descriptor;
pub mod engine;
pub mod environment;
pub mod exit;
pub mod format;
pub mod host;
pub mod lifecycle;
pub mod lock;
pub mod mount;
pub mod mount_table;
pub mod mountpoint;
mod nearest;
pub mod open;
pub mod options;
pub mod process;
pub mod registry;
pub mod report;
pub mod serve;
pub mod status;
pub mod stores;
pub mod volume;

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use self::args::{Cli, Command};
use self::environment::LocalRoots;
use self::exit::{Code, Failure, Result};

/// Runs the command that the arguments of this process name.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_a_command(&error),
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("gravitonfs: {failure}");
            failure.code.into()
        }
    }
}

fn run(command: Command) -> Result<()> {
    environment::arm_failpoint()?;
    let roots = LocalRoots::from_environment()?;
    match command {
        Command::Mount(arguments) => mount::mount(&arguments, roots),
        Command::Umount(arguments) => client::umount(&roots, &arguments.mountpoint, arguments.timeout),
        Command::Status(arguments) => status::status(&roots, &arguments),
        Command::Check(arguments) => check::check(&roots, &arguments),
        Command::Blob(arguments) => blob::blob(&roots, &arguments),
        Command::Format(arguments) => format::format(&roots, &arguments),
        Command::Sync(arguments) => client::sync(&roots, &arguments.mountpoint),
    }
}

/// Help and version go where they were asked for; anything else is one more line after clap's explanation.
fn not_a_command(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Only a closed pipe can refuse it.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let cause = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(missing)) => format!("missing {}", missing.join(" ")),
        _ => text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    };
    let advice = match error.get(ContextKind::SuggestedArg).or(error.get(ContextKind::SuggestedSubcommand)) {
        Some(ContextValue::String(meant)) => format!("did you mean {meant}?"),
        Some(ContextValue::Strings(meant)) => format!("did you mean {}?", meant.join(" or ")),
        _ => "see gravitonfs --help".to_owned(),
    };
    eprintln!("gravitonfs: {}", Failure::new(Code::Usage, "arguments", cause, advice));
    Code::Usage.into()
}
