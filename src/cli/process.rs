//! Other processes of ours, as `/proc` shows them: finding the daemon of a mount, waiting for one to end.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

/// A process that cannot be confused with a later one of the same number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process {
    pub pid: u32,
    /// In clock ticks since boot.
    started: u64,
}

impl Process {
    /// The process with this number, if it runs.
    #[must_use]
    pub fn running(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let Stat { state, threads, started } = parse_stat(&stat)?;
        // A zombie has closed everything; whether its parent ever collects it is not our business. One with other threads
        // is only the first of them: as long as they run, files are open and locks are held.
        let has_ended = matches!(state, "Z" | "X") && threads <= 1;
        (!has_ended).then_some(Self { pid, started })
    }

    /// Returns when the process has ended.
    pub fn wait(self) {
        while Self::running(self.pid) == Some(self) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Some fields of `/proc/PID/stat`.
#[derive(PartialEq, Eq, Debug)]
struct Stat<'a> {
    state: &'a str,
    threads: u64,
    started: u64,
}

/// The command's name is in parentheses and may hold anything, parentheses too.
fn parse_stat(stat: &str) -> Option<Stat<'_>> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ');
    let state = fields.next()?;
    let threads = fields.nth(16)?.parse().ok()?;
    Some(Stat { state, threads, started: fields.nth(1)?.parse().ok()? })
}

/// Processes that run the program of this one with `mountpoint` as one of their arguments.
#[must_use]
pub fn serving(mountpoint: &Path) -> Vec<Process> {
    let Ok(own) = std::fs::read_link("/proc/self/exe") else { return Vec::new() };
    let Ok(listing) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = listing.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let serves = |pid: &u32| {
        *pid != std::process::id()
            && std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| is_program(&exe, &own))
            && has_argument(*pid, mountpoint)
    };
    pids.filter(serves).filter_map(Process::running).collect()
}

/// True if `exe`, as `/proc` shows it, is the program `own` or was: an upgrade replaces the file of a running daemon.
fn is_program(exe: &Path, own: &Path) -> bool {
    let bytes = exe.as_os_str().as_bytes();
    bytes.strip_suffix(b" (deleted)").unwrap_or(bytes) == own.as_os_str().as_bytes()
}

fn has_argument(pid: u32, wanted: &Path) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    line.split(|&byte| byte == 0).any(|argument| argument == wanted.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After an upgrade, `umount` of a mount with another state directory took the living daemon for dead and detached the
    /// mount.
    #[test]
    fn a_daemon_whose_program_was_replaced_is_still_found() {
        let own = Path::new("/usr/bin/gravitonfs");
        assert!(is_program(own, own));
        assert!(is_program(Path::new("/usr/bin/gravitonfs (deleted)"), own));
        assert!(!is_program(Path::new("/usr/bin/gravitonfs-other"), own));
    }

    #[test]
    fn names_with_parentheses_do_not_confuse_the_fields() {
        let fields: Vec<_> = (4..=22).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) R (b) S {} rest", fields.join(" "));
        assert_eq!(parse_stat(&stat), Some(Stat { state: "S", threads: 20, started: 22 }));
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }

    #[test]
    fn the_end_of_a_process_is_seen_before_its_parent_collects_it() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let process = Process::running(child.id()).expect("it runs");
        child.kill().expect("ours to kill");
        process.wait();
        assert_eq!(Process::running(child.id()), None, "a zombie does not run");
        child.wait().expect("collects");
    }
}
