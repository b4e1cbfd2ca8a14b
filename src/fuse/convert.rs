//! Values of the kernel protocol and of the vfs, one as the other.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::base::acl::{Acl, AclKind};
use crate::base::attr::FileKind;
use crate::base::ids::Ino;
use crate::base::name::Name;
use crate::base::time::Timestamp;
use crate::vfs::{AllocateMode, Attr, OpenFlags, Result, SetTime};

/// What programs are told to read and write at a time, in bytes. `cp` then sends requests of 1 MiB, the most the kernel
/// lets through, instead of 128 KiB.
const PREFERRED_IO_BYTES: u32 = 1 << 20;

/// The same for everything that is not a regular file.
const OTHER_IO_BYTES: u32 = 4096;

/// How attributes are shown, where a mount option overrides what is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Presentation {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Permission bits hidden from every file.
    pub umask: u32,
}

impl Presentation {
    /// `attr` as the kernel shall show it.
    pub(super) fn show(&self, attr: &Attr) -> FileAttr {
        let is_regular = attr.kind == FileKind::Regular;
        FileAttr {
            ino: INodeNo(attr.ino.0),
            size: attr.size,
            blocks: attr.blocks,
            atime: system_time(attr.atime),
            mtime: system_time(attr.mtime),
            ctime: system_time(attr.ctime),
            crtime: system_time(attr.btime),
            kind: file_type(attr.kind),
            perm: u16::try_from(attr.mode & 0o7777 & !self.umask).expect("twelve bits"),
            nlink: attr.nlink,
            uid: self.uid.unwrap_or(attr.uid),
            gid: self.gid.unwrap_or(attr.gid),
            rdev: attr.rdev,
            blksize: if is_regular { PREFERRED_IO_BYTES } else { OTHER_IO_BYTES },
            flags: 0,
        }
    }

    /// The value of an attribute as the kernel shall show it: an access list loses what the mode loses, for where there is
    /// a list the kernel checks access by that.
    pub(super) fn show_xattr(&self, name: &[u8], value: Vec<u8>) -> Vec<u8> {
        if self.umask == 0 || AclKind::of_attribute(name) != Some(AclKind::Access) {
            return value;
        }
        let Ok(Some(acl)) = Acl::decode(&value) else { return value };
        let mode = acl.permissions() & !self.umask;
        acl.with_mode(mode).encode()
    }
}

/// What the kernel takes for "no such entry, and remember it": inode 0.
pub(super) fn negative_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Directory => FileType::Directory,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Socket => FileType::Socket,
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let seconds = match time.secs < 0 {
        true => UNIX_EPOCH.checked_sub(whole),
        false => UNIX_EPOCH.checked_add(whole),
    };
    // Only seconds near the ends of 64 bits have no time.
    seconds.and_then(|seconds| seconds.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time that the kernel sent, as fuser hands it on: before 1970 it takes the nanoseconds, which count up within their
/// second, off as well.
fn timestamp(time: SystemTime) -> Timestamp {
    let (secs, nanos) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i128::from(after.as_secs()), after.subsec_nanos()),
        Err(error) => (-i128::from(error.duration().as_secs()), error.duration().subsec_nanos()),
    };
    Timestamp { secs: i64::try_from(secs).expect("time_t has 64 bits"), nanos }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
        TimeOrNow::Now => SetTime::Now,
    }
}

pub(super) fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

pub(super) fn name(name: &OsStr) -> Result<Name> {
    Ok(Name::new(name.as_bytes())?)
}

/// A list of names of attributes, each with its NUL, as one may see it: those of `trusted.` are for some only. `sees_trusted`
/// is asked if there are any.
pub(super) fn shown_names(names: Vec<u8>, sees_trusted: impl FnOnce() -> bool) -> Vec<u8> {
    let each = || names.split_inclusive(|byte| *byte == 0);
    let is_trusted = |name: &&[u8]| name.starts_with(b"trusted.");
    if !each().any(|name| is_trusted(&name)) || sees_trusted() {
        return names;
    }
    each().filter(|name| !is_trusted(name)).flatten().copied().collect()
}

pub(super) fn open_flags(flags: i32) -> OpenFlags {
    // O_SYNC holds the bit of O_DSYNC.
    OpenFlags { truncate: flags & libc::O_TRUNC != 0, sync: flags & libc::O_DSYNC != 0 }
}

/// What a mode of `fallocate(2)` asks for, and whether the size stays; None for modes that are not supported.
pub(super) fn allocate_mode(mode: i32) -> Option<(AllocateMode, bool)> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    let what = match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => AllocateMode::Allocate,
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => AllocateMode::PunchHole,
        libc::FALLOC_FL_ZERO_RANGE => AllocateMode::ZeroRange,
        _ => return None,
    };
    Some((what, keep_size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_and_taken_also_before_1970() {
        let (second, half) = (Duration::from_secs(1), Duration::from_millis(500));
        for (secs, nanos, told, taken) in [
            (0, 0, UNIX_EPOCH, UNIX_EPOCH),
            (1, 500_000_000, UNIX_EPOCH + second + half, UNIX_EPOCH + second + half),
            (-1, 0, UNIX_EPOCH - second, UNIX_EPOCH - second),
            (-1, 500_000_000, UNIX_EPOCH - half, UNIX_EPOCH - second - half),
        ] {
            let time = Timestamp { secs, nanos };
            assert_eq!((system_time(time), timestamp(taken)), (told, time));
        }
    }

    #[test]
    fn overrides_are_shown_and_nothing_else_changes() {
        let zero = Timestamp::default();
        let attr = Attr {
            ino: Ino(7),
            kind: FileKind::Regular,
            mode: 0o4755,
            nlink: 1,
            uid: 1,
            gid: 2,
            rdev: 0,
            size: 10,
            blocks: 8,
            atime: zero,
            mtime: zero,
            ctime: zero,
            btime: zero,
        };
        let plain = Presentation::default().show(&attr);
        assert_eq!((plain.uid, plain.gid, plain.perm, plain.size), (1, 2, 0o4755, 10));
        let shown = Presentation { uid: Some(9), gid: None, umask: 0o22 }.show(&attr);
        assert_eq!((shown.uid, shown.gid, shown.perm), (9, 2, 0o4755 & !0o22));
    }

    #[test]
    fn an_access_list_is_shown_without_the_bits_that_the_mode_is_shown_without() {
        // u::rwx,u:1:rwx,g::r-x,m::rwx,o::rwx
        let entries = [(1_u8, 7_u8, 0_u8), (2, 7, 1), (4, 5, 0), (16, 7, 0), (32, 7, 0)];
        let entry = |&(tag, bits, id): &(u8, u8, u8)| [tag, 0, bits, 0, id, 0, 0, 0];
        let value = [vec![2, 0, 0, 0], entries.iter().flat_map(entry).collect()].concat();
        let masked = Presentation { umask: 0o027, ..Presentation::default() };
        let (access, default) = (AclKind::Access.attribute(), AclKind::Default.attribute());
        let shown = Acl::decode(&masked.show_xattr(access, value.clone())).expect("valid").expect("entries");
        assert_eq!(shown.permissions(), 0o750);
        assert_eq!(
            masked.show_xattr(default, value.clone()),
            value,
            "what is inherited is masked when shown"
        );
        assert_eq!(masked.show_xattr(b"user.acl", value.clone()), value);
        assert_eq!(Presentation::default().show_xattr(access, value.clone()), value);
    }

    #[test]
    fn names_of_trusted_attributes_are_shown_to_those_who_may_see_them() {
        let names = b"security.a\0trusted.b\0user.c\0".to_vec();
        assert_eq!(shown_names(names.clone(), || true), names);
        assert_eq!(shown_names(names, || false), b"security.a\0user.c\0");
        let plain = b"user.trusted.\0".to_vec();
        assert_eq!(shown_names(plain.clone(), || panic!("nobody needs to know")), plain);
        assert_eq!(shown_names(Vec::new(), || panic!("nobody needs to know")), b"");
    }

    #[test]
    fn o_sync_and_o_dsync_both_ask_for_synchronous_writes() {
        for flags in [libc::O_SYNC, libc::O_DSYNC] {
            assert_eq!(open_flags(flags), OpenFlags { truncate: false, sync: true });
        }
        assert_eq!(open_flags(libc::O_TRUNC), OpenFlags { truncate: true, sync: false });
    }
}
