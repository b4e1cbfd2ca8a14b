//! Runs programs with a limit of time, so that a mount that hangs fails the test instead of blocking it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this module")]

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Enough for what takes seconds on an idle machine, on a busy one.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The Debian packages of the programs that the tests use.
const PACKAGES: &[(&str, &str)] = &[
    ("rsync", "rsync"),
    ("sqlite3", "sqlite3"),
    ("git", "git"),
    ("fio", "fio"),
    ("tar", "tar"),
    ("fusermount3", "fuse3"),
    ("setfacl", "acl"),
    ("getfattr", "attr"),
    ("setcap", "libcap2-bin"),
    ("setpriv", "util-linux"),
    ("perl", "perl-base"),
    ("umount", "mount"),
    ("cargo", "cargo"),
];

/// A program that ended by itself.
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// The line that says what went wrong.
    pub fn last_error_line(&self) -> &str {
        self.stderr.lines().next_back().unwrap_or_default()
    }
}

/// Runs `command` without input. None if it has not ended within `limit`; it and its children are killed then, although
/// those that wait for a filesystem die only when that answers.
///
/// # Panics
/// If it cannot be started; names the package that has it.
pub fn run_within(limit: Duration, command: &mut Command) -> Option<Finished> {
    let program = command.get_program().to_owned();
    let spawned =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn();
    let child = spawned.unwrap_or_else(|error| panic!("{}", cannot_start(&program, &error)));
    let group = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    let (sender, ended) = sync_channel(1);
    std::thread::spawn(move || {
        // Nobody listens any more after the limit.
        let _ = sender.send(child.wait_with_output());
    });
    let Ok(output) = ended.recv_timeout(limit) else {
        // Whoever is in the group was started here.
        let _ = killpg(group, Signal::SIGKILL);
        return None;
    };
    Some(finished(output.expect("collect the output")))
}

fn finished(output: Output) -> Finished {
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn cannot_start(program: &OsStr, error: &std::io::Error) -> String {
    let name = Path::new(program).file_name().unwrap_or(program).to_string_lossy();
    let package = PACKAGES.iter().find(|(known, _)| *known == name);
    match package {
        Some((_, package)) if error.kind() == ErrorKind::NotFound => {
            format!("{name} is missing: apt-get install {package}")
        }
        _ => format!("start {}: {error}", program.display()),
    }
}

/// Asserts that every program named is installed, before a script dies half-way without one.
pub fn require(programs: &[&str]) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in programs {
        let found = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
        assert!(found, "{}", cannot_start(OsStr::new(program), &ErrorKind::NotFound.into()));
    }
}

/// Runs a script of bash in `directory`; it ends at the first command that fails.
///
/// # Panics
/// If it fails or takes too long; shows what it printed.
pub fn script_within(limit: Duration, directory: &Path, script: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(directory);
    // What users have set would change what the tools print and do.
    command.env("LC_ALL", "C").env("TZ", "UTC");
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    let Some(finished) = run_within(limit, &mut command) else {
        panic!("still running after {} s: {script}", limit.as_secs());
    };
    let Finished { code, stdout, stderr } = finished;
    assert_eq!(code, Some(0), "{script}\n--- stdout\n{stdout}--- stderr\n{stderr}");
    stdout
}

/// [`script_within`] the usual limit.
pub fn script(directory: &Path, script: &str) -> String {
    script_within(LIMIT, directory, script)
}

/// Who runs a command: a user, a group, and further groups.
#[derive(Clone, Copy, Debug)]
pub struct Somebody {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'static [u32],
}

impl Somebody {
    /// A user of one group of the same number.
    pub const fn alone(id: u32) -> Self {
        Self { uid: id, gid: id, groups: &[] }
    }

    /// A command that runs as them, without capabilities unless they are root.
    pub fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &self.uid.to_string(), "--regid", &self.gid.to_string()]);
        if self.groups.is_empty() {
            command.arg("--clear-groups");
        } else {
            let groups: Vec<_> = self.groups.iter().map(u32::to_string).collect();
            command.args(["--groups", &groups.join(",")]);
        }
        command.arg("--").arg(program);
        command
    }

    /// Runs a line of shell as them.
    pub fn run(self, directory: &Path, line: &str) -> Finished {
        let mut command = self.command("sh");
        command.args(["-c", line]).current_dir(directory).env("LC_ALL", "C");
        run_within(LIMIT, &mut command).unwrap_or_else(|| panic!("still running: {line}"))
    }

    /// True if a line of shell succeeds as them.
    pub fn may(self, directory: &Path, line: &str) -> bool {
        self.run(directory, line).code == Some(0)
    }
}
