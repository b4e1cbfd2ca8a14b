//! Becoming a daemon: one fork before any thread exists, and a pipe over which the child reports to its parent.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};
use serde::{Deserialize, Serialize};

use super::exit::{Code, Failure, Result};

/// What a starting daemon tells its parent, one JSON line each.
#[derive(Serialize, Deserialize)]
enum Message {
    /// A line for stderr.
    Note(String),
    /// The last message: the mount works. A line for stdout.
    Ready(String),
    /// The last message: exit with this code.
    Failed { code: u8, thing: String, cause: String, advice: String },
}

/// How a starting mount reports: to the parent of a daemon, or to the terminal.
pub struct Reporter {
    /// None in the foreground, and once the last word is said.
    pipe: Option<File>,
    place: Place,
}

/// Where a mount's words go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Terminal,
    Daemon,
    Nowhere,
}

/// Which process this is after [`detach`].
pub enum Side {
    /// The one that was started: the mount is up (or not), all that is left is to exit.
    Parent(Result<()>),
    /// The daemon.
    Child(Reporter),
}

impl Reporter {
    /// Reports to the terminal: the mount runs in the process that was started.
    #[must_use]
    pub fn foreground() -> Self {
        Self { pipe: None, place: Place::Terminal }
    }

    /// For commands that open a volume and mount nothing: they say what they have to say themselves.
    #[must_use]
    pub fn silent() -> Self {
        Self { pipe: None, place: Place::Nowhere }
    }

    /// Something the user should know although the mount goes on.
    pub fn note(&mut self, line: &str) {
        match (&mut self.pipe, self.place) {
            (Some(pipe), _) => send(pipe, &Message::Note(line.to_owned())),
            (None, Place::Daemon) => tracing::warn!("{line}"),
            (None, Place::Terminal) => eprintln!("gravitonfs: {line}"),
            (None, Place::Nowhere) => {}
        }
    }

    /// The mount works; `line` tells where.
    pub fn ready(&mut self, line: &str) {
        match self.pipe.take() {
            Some(mut pipe) => send(&mut pipe, &Message::Ready(line.to_owned())),
            None => println!("{line}"),
        }
    }

    /// Starts the log, if there is to be one: in `path` for a daemon, on stderr in the foreground.
    ///
    /// # Errors
    /// If the file cannot be opened, or `filter` is not one.
    pub fn open_log(&self, path: &Path, filter: Option<&str>) -> Result<()> {
        let failed = |what, error| Failure::io(path.display(), what, error);
        let log = match self.place {
            Place::Nowhere => return Ok(()),
            Place::Terminal => {
                let stderr = std::io::stderr().as_fd().try_clone_to_owned();
                File::from(stderr.map_err(|error| failed("log to stderr", error))?)
            }
            Place::Daemon => {
                let log = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
                let log = log.map_err(|error| failed("open log file", error))?;
                // What is printed past the log, such as the last words of an abort, is kept too.
                dup2_stderr(&log).map_err(|errno| failed("redirect stderr", errno.into()))?;
                log
            }
        };
        crate::telemetry::log::init(log, filter).map_err(|error| Failure::usage("log", error))
    }

    /// The mount ended before it worked: lets the parent say why. Gives `failure` back where nobody listens and the
    /// caller must say it.
    pub fn failed(&mut self, failure: Failure) -> Option<Failure> {
        let Some(mut pipe) = self.pipe.take() else { return Some(failure) };
        let Failure { code, thing, cause, advice } = failure;
        send(&mut pipe, &Message::Failed { code: code as u8, thing, cause, advice });
        None
    }
}

fn send(pipe: &mut File, message: &Message) {
    let mut line = serde_json::to_string(message).expect("strings and numbers always serialize");
    line.push('\n');
    // The parent may have been killed; the mount does not depend on it.
    let _ = pipe.write_all(line.as_bytes());
}

/// Forks. The child leads a session of its own, has no descriptor of its parent but the pipe, and `/` as its
/// directory. It keeps the umask: the objects of a volume in a directory are files like any that its user makes. Must be
/// called while the process has one thread.
///
/// # Errors
/// If the system refuses the pipe or the fork.
pub fn detach() -> Result<Side> {
    let failed = |what, errno: nix::errno::Errno| Failure::io("daemon", what, errno.into());
    let (from_child, to_parent) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed("open pipe", errno))?;
    // SAFETY: the process has one thread (the caller promises it), so the child may do what it likes.
    #[expect(unsafe_code, reason = "fork is unsafe by signature; the process has one thread")]
    let forked = unsafe { fork() };
    match forked.map_err(|errno| failed("fork", errno))? {
        ForkResult::Parent { child } => {
            drop(to_parent);
            let outcome = relay(from_child);
            if outcome.is_err() {
                // Whoever is told that it failed finds nothing of it left.
                let _ = waitpid(child, None);
            }
            Ok(Side::Parent(outcome))
        }
        ForkResult::Child => {
            drop(from_child);
            let mut reporter = Reporter { pipe: Some(File::from(to_parent)), place: Place::Daemon };
            if let Err(errno) = become_daemon(&mut reporter) {
                reporter.failed(failed("become a daemon", errno));
                std::process::exit(Code::Internal as i32);
            }
            Ok(Side::Child(reporter))
        }
    }
}

/// Prints what the child reports until its last message.
fn relay(from_child: OwnedFd) -> Result<()> {
    for line in BufReader::new(File::from(from_child)).lines() {
        let Some(message) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else { break };
        match message {
            Message::Note(line) => eprintln!("gravitonfs: {line}"),
            Message::Ready(line) => {
                println!("{line}");
                return Ok(());
            }
            Message::Failed { code, thing, cause, advice } => {
                return Err(Failure { code: Code::from_number(code), thing, cause, advice });
            }
        }
    }
    let advice = "look into daemon.log in the volume's state directory";
    Err(Failure::new(Code::Internal, "daemon", "it ended before the mount was ready", advice))
}

fn become_daemon(reporter: &mut Reporter) -> nix::Result<()> {
    setsid()?;
    chdir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(errno_of)?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    close_inherited(reporter.pipe.as_ref().map_or(-1, File::as_raw_fd))
}

/// Closes every descriptor above stderr but `keep`.
fn close_inherited(keep: i32) -> nix::Result<()> {
    let listing = std::fs::read_dir("/proc/self/fd").map_err(errno_of)?;
    // Collected first, so that the listing's own descriptor is closed before its number is.
    let open: Vec<i32> = listing.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|&fd| fd > 2 && fd != keep) {
        // What was the listing's own descriptor is closed already: EBADF.
        //
        // SAFETY: nothing in this process owns these descriptors: they came from whoever started it.
        #[expect(unsafe_code, reason = "closing descriptors that no value owns")]
        unsafe {
            libc::close(fd)
        };
    }
    Ok(())
}

fn errno_of(error: std::io::Error) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Raises the limit of open files to what the system allows: every pack that waits for the store has one open, and an hour
/// without it are more than the 1024 that shells hand down. Where it cannot be raised the mount works until then.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "raise the limit of open files");
    }
}

/// Tells the kernel that memory is reclaimed through this process, so that reclaim does not wait for it while it
/// allocates. Needs CAP_SYS_RESOURCE; without it the daemon works as well, but for extreme memory pressure.
pub fn set_io_flusher() {
    // linux/prctl.h; libc lacks it for this target.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: prctl with integer arguments touches no memory.
    #[expect(unsafe_code, reason = "prctl(2) has no safe wrapper for this option")]
    let _ = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
}

/// Keeps the allocator from holding much more memory than is in use: with an arena for each thread, buffers of megabytes
/// that different threads free stay in all of them (550 MiB resident instead of 290 while a large file is written).
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    {
        const ARENAS: libc::c_int = 2;
        // SAFETY: mallopt with integer arguments changes a setting of the allocator, and there is no other thread yet.
        #[expect(unsafe_code, reason = "mallopt(3) has no safe wrapper")]
        let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    }
}
