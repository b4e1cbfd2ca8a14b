//! File kinds and permission bits as `stat(2)` has them.

/// What an inode is. The numbers are stored (docs/format.md) and equal `DT_*` of `readdir(3)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FileKind {
    Fifo = 1,
    CharDevice = 2,
    Directory = 4,
    BlockDevice = 6,
    Regular = 8,
    Symlink = 10,
    Socket = 12,
}

impl FileKind {
    /// The kind stored as `code`.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Fifo,
            2 => Self::CharDevice,
            4 => Self::Directory,
            6 => Self::BlockDevice,
            8 => Self::Regular,
            10 => Self::Symlink,
            12 => Self::Socket,
            _ => return None,
        })
    }

    /// The kind in `mode` as `mknod(2)` takes it; no type bits mean a regular file.
    #[must_use]
    pub fn from_mode(mode: u32) -> Option<Self> {
        match mode & S_IFMT {
            0 => Some(Self::Regular),
            bits => Self::from_code(u8::try_from(bits >> 12).ok()?),
        }
    }
}

pub const S_IFMT: u32 = 0o170_000;
pub const S_ISUID: u32 = 0o4000;
pub const S_ISGID: u32 = 0o2000;
pub const S_ISVTX: u32 = 0o1000;
/// Execute, of the group.
pub const S_IXGRP: u32 = 0o010;
/// Read, write and execute of owner, group and others.
pub const PERMISSION_BITS: u32 = 0o777;
/// Permission, suid, sgid and sticky bits: what an inode stores beside its kind.
pub const MODE_BITS: u32 = 0o7777;
