//! The kernel's table of mounts in our namespace: reading it, and waiting for a mount to leave it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The type our mounts have.
pub const FSTYPE: &str = "fuse.gravitonfs";

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mounted {
    /// `major:minor` of the filesystem, unique while it lives, whatever it is called and wherever it moves.
    pub device: String,
    pub mountpoint: PathBuf,
    pub fstype: String,
    pub source: OsString,
}

impl Mounted {
    /// True if a process of ours serves it, or did.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.fstype == FSTYPE
    }
}

/// All mounts; of several at one place the last one listed is on top.
///
/// # Errors
/// If /proc is not there.
pub fn read() -> io::Result<Vec<Mounted>> {
    Ok(parse(&std::fs::read(MOUNTINFO)?))
}

/// The mount that is on top at exactly this place.
///
/// # Errors
/// If /proc is not there.
pub fn mounted_at(mountpoint: &Path) -> io::Result<Option<Mounted>> {
    Ok(read()?.into_iter().rev().find(|mounted| mounted.mountpoint == mountpoint))
}

/// Returns once no mount of `device` is left in our namespace, however it went: umount(8), a lazy unmount,
/// `fusermount3 -u`, or a bind mount that outlived the first.
///
/// # Errors
/// If /proc is not there.
pub fn wait_until_gone(device: &str) -> io::Result<()> {
    let table = File::open(MOUNTINFO)?;
    while read()?.iter().any(|mounted| mounted.device == device) {
        // The kernel raises POLLPRI when the table has changed since the file was last polled. The timeout is for a
        // change between the reading above and the first poll.
        let mut watched = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut watched, PollTimeout::from(2000_u16)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn parse(table: &[u8]) -> Vec<Mounted> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mnt rw,noatime shared:1 - ext3 /dev/root rw`: the optional fields end with the dash.
fn parse_line(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = str::from_utf8(fields.nth(2)?).ok()?.to_owned();
    let mountpoint = PathBuf::from(unescape(fields.nth(1)?));
    fields.find(|field| *field == b"-")?;
    let fstype = str::from_utf8(fields.next()?).ok()?.to_owned();
    let source = unescape(fields.next()?);
    Some(Mounted { device, mountpoint, fstype, source })
}

/// Undoes the kernel's octal escapes of space, tab, newline, backslash and `#`.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = tail.get(..3).filter(|_| byte == b'\\').and_then(octal);
        plain.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { tail.get(3..).unwrap_or_default() } else { tail };
    }
    OsString::from_vec(plain)
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(OsStr::from_bytes(digits).to_str()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_parse_with_escapes_and_optional_fields() {
        let table = b"22 1 254:1 / / rw,relatime shared:1 master:2 - ext4 /dev/root rw\n\
            40 22 0:57 / /mnt/a\\040b\\134c rw - fuse.gravitonfs s3://bucket/with\\040space rw,user_id=0\n";
        let [root, ours] = &parse(table)[..] else { panic!("two lines") };
        assert_eq!((root.device.as_str(), root.fstype.as_str(), root.is_ours()), ("254:1", "ext4", false));
        assert_eq!(ours.mountpoint, Path::new("/mnt/a b\\c"));
        assert_eq!(ours.source, "s3://bucket/with space");
        assert!(ours.is_ours());
    }

    #[test]
    fn a_torn_table_gives_what_is_whole() {
        assert_eq!(parse(b"22 1 254:1 / / rw,relatime\n\n22 1"), []);
        assert_eq!(unescape(b"a\\04"), "a\\04");
        assert_eq!(unescape(b"\\999"), "\\999");
    }

    #[test]
    fn a_device_that_is_not_mounted_is_gone() {
        wait_until_gone("0:0").expect("/proc");
    }
}
