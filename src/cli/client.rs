//! The commands that talk to a running mount: umount, sync, and status of what is mounted.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;

use super::control::{Request, ask};
use super::environment::LocalRoots;
use super::exit::{Code, Failure, Result};
use super::mount_table::mounted_at;
use super::mountpoint::{Mode, resolve, unmount};
use super::process::{Process, serving};
use super::registry::{self, Entry};
use super::report::{Progress, Status};

/// Takes the mount off and returns when everything is in the store, the daemon has exited and its lock is free.
///
/// # Errors
/// `NotFound` if nothing is mounted there; `Busy` if it is in use; `DrainTimedOut` if not everything is in the store
/// (it is safe on this machine, and goes there with the next mount).
pub fn umount(roots: &LocalRoots, given: &Path, timeout_seconds: Option<u64>) -> Result<()> {
    let mountpoint = resolve(given)?;
    let Some(entry) = registry::find(&roots.state, &mountpoint) else {
        return umount_unregistered(given, &mountpoint);
    };
    let daemon = Process::running(entry.pid);
    let mut terminal = Terminal::new("draining");
    let show = &mut |progress: Progress| terminal.show(&progress.to_text());
    let outcome = ask(&entry.state_dir, &Request::Unmount { timeout_seconds }, show);
    terminal.clear();
    let ends = match &outcome {
        Ok(_) => true,
        Err(failure) => failure.code == Code::DrainTimedOut,
    };
    if let Some(daemon) = daemon.filter(|_| ends) {
        daemon.wait();
    }
    outcome.map(drop)
}

/// A mount that is not in our state directory: one of a dead process, or one made with other directories.
fn umount_unregistered(given: &Path, mountpoint: &Path) -> Result<()> {
    let table = mounted_at(mountpoint).map_err(|error| Failure::io(given.display(), "unmount", error))?;
    if !table.is_some_and(|mounted| mounted.is_ours()) {
        let advice = "findmnt -t fuse.gravitonfs lists the mounts";
        return Err(Failure::new(Code::NotFound, given.display(), "no volume is mounted here", advice));
    }
    let mut daemons = serving(given);
    daemons.extend(serving(mountpoint));
    if daemons.is_empty() {
        unmount(mountpoint, Mode::Lazy).map_err(|error| refused(given, error))?;
        let cause = "the process behind this mount was gone; the mount is detached";
        let advice = "what it had not sent is safe on this machine: mount the volume again to send it";
        return Err(Failure::new(Code::DrainTimedOut, given.display(), cause, advice));
    }
    // Its daemon sees that the mount is gone and drains.
    unmount(mountpoint, Mode::Plain).map_err(|error| refused(given, error))?;
    daemons.into_iter().for_each(Process::wait);
    Ok(())
}

fn refused(given: &Path, error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::ResourceBusy {
        return busy(given);
    }
    Failure::io(given.display(), "unmount", error)
}

/// The mount is in use.
#[must_use]
pub fn busy(mountpoint: &Path) -> Failure {
    let advice = format!("close them (fuser -vm {} lists them)", mountpoint.display());
    Failure::new(Code::Busy, mountpoint.display(), "files are open there", advice)
}

/// Returns when everything written so far is in the store.
///
/// # Errors
/// `NotFound` if nothing of ours is mounted there; of the store.
pub fn sync(roots: &LocalRoots, given: &Path) -> Result<()> {
    let entry = find(roots, given)?;
    let mut terminal = Terminal::new("syncing");
    let show = &mut |progress: Progress| terminal.show(&progress.to_text());
    let outcome = ask(&entry.state_dir, &Request::Sync, show);
    terminal.clear();
    outcome.map(drop)
}

/// The mount at `given`.
///
/// # Errors
/// `NotFound` if there is none.
pub fn find(roots: &LocalRoots, given: &Path) -> Result<Entry> {
    let mountpoint = resolve(given)?;
    registry::find(&roots.state, &mountpoint).ok_or_else(|| {
        let advice = "findmnt -t fuse.gravitonfs lists the mounts of this machine";
        Failure::new(Code::NotFound, given.display(), "no volume is mounted here", advice)
    })
}

/// What a running mount says of itself.
///
/// # Errors
/// If it cannot be asked.
pub fn status(entry: &Entry) -> Result<Status> {
    let status = ask(&entry.state_dir, &Request::Status, &mut |_| {})?;
    let advice = "is it an older version?";
    status.ok_or_else(|| Failure::new(Code::Internal, &entry.volume, "the mount gave no status", advice))
}

/// One line on stderr that is written over; nothing if stderr is not a terminal.
pub(super) struct Terminal {
    label: &'static str,
    is_shown: bool,
    is_terminal: bool,
}

impl Terminal {
    pub(super) fn new(label: &'static str) -> Self {
        Self { label, is_shown: false, is_terminal: io::stderr().is_terminal() }
    }

    pub(super) fn show(&mut self, progress: &str) {
        if self.is_terminal {
            eprint!("\r\x1b[K{}: {}", self.label, progress);
            let _ = io::stderr().flush();
            self.is_shown = true;
        }
    }

    pub(super) fn clear(&mut self) {
        if self.is_shown {
            eprint!("\r\x1b[K");
        }
    }
}
