//! The directory a volume appears on: checking and making it, mounting there as root or as a user, unmounting.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::statvfs::statvfs;
use nix::unistd::{getegid, geteuid};

use super::descriptor;
use super::exit::{Code, Failure, Result};
use super::mount_table::{FSTYPE, mounted_at};
use super::options::MountOptions;

const FUSE_DEVICE: &str = "/dev/fuse";
/// How long a mount may take to answer before it counts as hung.
const ALIVE_WITHIN: Duration = Duration::from_secs(5);

const FUSERMOUNT: &str = "fusermount3";

/// Absolute form of a mountpoint, also where a dead mount makes the directory itself unusable, or where it does not
/// exist yet.
///
/// # Errors
/// What the system says of the part that exists.
pub fn resolve(given: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(given).map_err(|error| cannot_use(given, error))?;
    match std::fs::canonicalize(&absolute) {
        Ok(path) => Ok(path),
        Err(error) => match (absolute.parent(), absolute.file_name()) {
            (Some(parent), Some(name)) => Ok(resolve(parent)?.join(name)),
            _ => Err(cannot_use(given, error)),
        },
    }
}

fn cannot_use(given: &Path, error: io::Error) -> Failure {
    Failure::io(given.display(), "use as mountpoint", error)
}

/// Makes `mountpoint` (as [`resolve`] gave it) fit for a mount: detaches a dead mount of ours, creates the directory
/// if `create`.
///
/// # Errors
/// `Busy` if a mount of ours is alive there, `NotFound` if it is missing, `Usage` if it is not a directory.
pub fn prepare(mountpoint: &Path, create: bool) -> Result<()> {
    detach_dead(mountpoint)?;
    match std::fs::metadata(mountpoint) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => {
            let advice = "give an empty directory";
            Err(Failure::new(Code::Usage, mountpoint.display(), "not a directory", advice))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
            let mut directories = std::fs::DirBuilder::new();
            directories
                .recursive(true)
                .mode(0o755)
                .create(mountpoint)
                .map_err(|error| Failure::io(mountpoint.display(), "create mountpoint", error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let advice = "create the directory, or use --create";
            Err(Failure::new(Code::NotFound, mountpoint.display(), "mountpoint does not exist", advice))
        }
        Err(error) => Err(cannot_use(mountpoint, error)),
    }
}

fn detach_dead(mountpoint: &Path) -> Result<()> {
    let table = |error| Failure::io(mountpoint.display(), "read the mount table", error);
    while let Some(mounted) = mounted_at(mountpoint).map_err(table)?.filter(|mounted| mounted.is_ours()) {
        if !is_dead(mountpoint) {
            let cause = format!("{} is mounted here already", mounted.source.display());
            let advice = format!("gravitonfs umount {}", mountpoint.display());
            return Err(Failure::new(Code::Busy, mountpoint.display(), cause, advice));
        }
        tracing::warn!(mountpoint = %mountpoint.display(), "detach a dead mount");
        unmount(mountpoint, Mode::Lazy).map_err(|error| {
            Failure::io(mountpoint.display(), "detach the dead mount of an earlier process", error)
        })?;
    }
    Ok(())
}

/// True if the process behind the mount is gone. Asks for totals: attributes may be answered from the kernel's cache
/// long after. One that is there and does not answer counts as alive.
fn is_dead(mountpoint: &Path) -> bool {
    let (answer, answered) = sync_channel(1);
    let path = mountpoint.to_owned();
    let ask = move || {
        // Nobody waits any more if it took too long.
        let _ = answer.send(statvfs(&path).err());
    };
    match std::thread::Builder::new().name("ask-mount".to_owned()).spawn(ask) {
        Ok(_) => matches!(
            answered.recv_timeout(ALIVE_WITHIN),
            Ok(Some(Errno::ENOTCONN | Errno::ECONNABORTED | Errno::ENODEV))
        ),
        Err(_) => false,
    }
}

/// Mounts at `mountpoint` and returns the kernel's end, `/dev/fuse`. `source` is what the mount table shows. As root by
/// mount(2) with set-user-id, devices and all users allowed; as a user by `fusermount3` with none of these.
///
/// # Errors
/// `Denied` if the system does not let us; `NotFound` without `/dev/fuse` or `fusermount3`.
pub fn mount_device(source: &str, mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd> {
    if geteuid().is_root() {
        mount_as_root(source, mountpoint, options)
    } else {
        mount_as_user(source, mountpoint, options)
    }
}

fn mount_as_root(source: &str, mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let device = File::options().read(true).write(true).open(FUSE_DEVICE).map_err(|error| {
        let advice = "load the kernel module: modprobe fuse";
        Failure { advice: advice.to_owned(), ..Failure::io(FUSE_DEVICE, "open", error) }
    })?;
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other",
        device.as_raw_fd(),
        geteuid(),
        getegid(),
    );
    let mut flags = options.flags;
    flags.set(MsFlags::MS_RDONLY, options.read_only);
    mount(Some(source), mountpoint, Some(FSTYPE), flags, Some(data.as_str())).map_err(|errno| {
        let failure = Failure::io(mountpoint.display(), "mount", errno.into());
        match errno {
            Errno::EPERM => Failure { advice: "mounting needs CAP_SYS_ADMIN".to_owned(), ..failure },
            _ => failure,
        }
    })?;
    Ok(device.into())
}

fn mount_as_user(source: &str, mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let failed = |what: &str, error: io::Error| {
        let failure = Failure::io(FUSERMOUNT, what, error);
        Failure { advice: "install the package fuse3, or mount as root".to_owned(), ..failure }
    };
    // Without close-on-exec: the helper finds its end by number. Ours it inherits too, and ignores.
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty())
        .map_err(|errno| failed("open socket", errno.into()))?;
    let child = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(user_options(source, options))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed("start", error))?;
    drop(theirs);
    let received = descriptor::receive(&ours, &mut [0]);
    drop(ours);
    let output = child.wait_with_output().map_err(|error| failed("wait", error))?;
    match received {
        Ok((_, Some(device))) if output.status.success() => Ok(device),
        _ => Err(refused_by_helper(mountpoint, &output)),
    }
}

fn user_options(source: &str, options: &MountOptions) -> OsString {
    let mut list = String::from(if options.read_only { "ro" } else { "rw" });
    list.push_str(",nosuid,nodev,default_permissions,subtype=gravitonfs");
    let names = [(MsFlags::MS_NOEXEC, ",noexec"), (MsFlags::MS_NOATIME, ",noatime")];
    for (_, name) in names.iter().filter(|(flag, _)| options.flags.contains(*flag)) {
        list.push_str(name);
    }
    if options.allow_other {
        list.push_str(",allow_other");
    }
    // The helper splits at commas unless they are escaped.
    let escaped = source.replace('\\', "\\\\").replace(',', "\\,");
    list.push_str(",fsname=");
    list.push_str(&escaped);
    OsString::from(list)
}

fn refused_by_helper(mountpoint: &Path, output: &Output) -> Failure {
    let text = String::from_utf8_lossy(&output.stderr);
    let cause = text.lines().last().unwrap_or("the helper failed without a word").to_owned();
    let advice = if text.contains("user_allow_other") {
        "add user_allow_other to /etc/fuse.conf, or leave allow_other out"
    } else if text.contains(FUSE_DEVICE) {
        "let users open /dev/fuse (mode 0666), or mount as root"
    } else {
        "check that the directory is yours"
    };
    Failure::new(Code::Denied, mountpoint.display(), cause, advice)
}

/// How to take a mount off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Refuse while files are open there.
    Plain,
    /// Take the name away now; open files go on until they are closed.
    Lazy,
}

/// Takes the topmost mount off `mountpoint`.
///
/// # Errors
/// `ResourceBusy` while it is in use (mode Plain); what the system says else.
pub fn unmount(mountpoint: &Path, mode: Mode) -> io::Result<()> {
    let lazy = match mode {
        Mode::Plain => MntFlags::empty(),
        Mode::Lazy => MntFlags::MNT_DETACH,
    };
    match umount2(mountpoint, lazy | MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EPERM) if !geteuid().is_root() => unmount_as_user(mountpoint, mode),
        other => other.map_err(io::Error::from),
    }
}

fn unmount_as_user(mountpoint: &Path, mode: Mode) -> io::Result<()> {
    let flags: &[&str] = if mode == Mode::Lazy { &["-u", "-z"] } else { &["-u"] };
    let arguments = flags.iter().map(OsStr::new).chain([OsStr::new("--"), mountpoint.as_os_str()]);
    let output = Command::new(FUSERMOUNT).args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = match text.contains("busy") {
        true => io::ErrorKind::ResourceBusy,
        false => io::ErrorKind::PermissionDenied,
    };
    Err(io::Error::new(kind, text))
}

/// Lets the kernel read ahead `bytes` at a time on the mount with this `major:minor`. Without the right to do so reads
/// come in 128 KiB pieces, which costs speed and nothing else.
pub fn raise_readahead(device: &str, bytes: u64) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, (bytes / 1024).to_string()) {
        tracing::debug!(path, %error, "leave readahead as it is");
    }
}

/// Cuts the connection behind `major:minor`: whoever still uses the mount, also through a copy of it in another mount
/// namespace, gets ENOTCONN from now on.
pub fn abort_connection(device: &str) -> io::Result<()> {
    let minor = device.split_once(':').map_or(device, |(_, minor)| minor);
    std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: Result<()>) -> Option<Code> {
        result.err().map(|failure| failure.code)
    }

    #[test]
    fn a_mountpoint_must_be_a_directory_unless_it_is_to_be_made() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let missing = dir.path().join("a/b");
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("write");
        assert_eq!(code(prepare(dir.path(), false)), None);
        assert_eq!(code(prepare(&missing, false)), Some(Code::NotFound));
        assert_eq!(code(prepare(&file, true)), Some(Code::Usage));
        assert_eq!(code(prepare(&missing, true)), None);
        assert!(missing.is_dir());
    }

    #[test]
    fn paths_become_absolute_and_links_are_followed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = dir.path().canonicalize().expect("exists");
        std::fs::create_dir(root.join("real")).expect("mkdir");
        std::os::unix::fs::symlink("real", root.join("link")).expect("symlink");
        assert_eq!(resolve(&root.join("link")), Ok(root.join("real")));
        assert_eq!(resolve(&root.join("link/new")), Ok(root.join("real/new")));
        assert_eq!(resolve(&root.join("link/no/where")), Ok(root.join("real/no/where")));
    }

    #[test]
    fn commas_and_backslashes_of_a_volume_do_not_become_options() {
        let options = user_options("file:///a,suid\\b", &MountOptions::default());
        assert!(options.to_string_lossy().ends_with(",fsname=file:///a\\,suid\\\\b"), "{options:?}");
    }
}
