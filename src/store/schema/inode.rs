//! Rows of inodes and directory entries.

use crate::base::attr::{FileKind, MODE_BITS};
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::ids::{Generation, Ino};
use crate::base::name::Name;
use crate::base::time::Timestamp;

/// Where a file's committed content is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ContentForm {
    /// Nothing stored: an empty file, one that is all hole, or not a file.
    Empty = 0,
    /// The bytes are in [`super::INLINE`].
    Inline = 1,
    /// Rows in [`super::MANIFEST`] say; what they leave out is hole.
    Manifest = 2,
}

/// Attributes of an inode as committed (rule R2: `size` never covers bytes that are not committed too).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InodeRow {
    pub kind: FileKind,
    /// Permission bits, suid, sgid, sticky; without the type.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number of device files, as the kernel encodes it.
    pub rdev: u32,
    /// Bytes. Of a directory: 4,096.
    pub size: u64,
    /// Bytes of content that are not hole; `st_blocks` follows from it.
    pub allocated: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// When it was made.
    pub btime: Timestamp,
    pub form: ContentForm,
    /// Rule R10.
    pub generation: Generation,
    /// Of a directory: its parent (the root's is itself). Of anything else: 0.
    pub parent: Ino,
}

const INODE_VERSION: u8 = 1;

impl InodeRow {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(INODE_VERSION).u8(self.kind as u8).u8(self.form as u8).u8(0);
        w.u32(self.mode).u32(self.nlink).u32(self.uid).u32(self.gid).u32(self.rdev);
        w.u64(self.size).u64(self.allocated).u64(self.generation.0).u64(self.parent.0);
        for time in [self.atime, self.mtime, self.ctime, self.btime] {
            w.i64(time.secs).u32(time.nanos);
        }
        w.buf
    }

    /// # Errors
    /// If `bytes` are not what [`Self::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new("inode row", bytes);
        if r.u8()? != INODE_VERSION {
            return Err(r.malformed());
        }
        let kind = FileKind::from_code(r.u8()?).ok_or(r.malformed())?;
        let form = match r.u8()? {
            0 => ContentForm::Empty,
            1 => ContentForm::Inline,
            2 => ContentForm::Manifest,
            _ => return Err(r.malformed()),
        };
        let _reserved = r.u8()?;
        let (mode, nlink, uid, gid, rdev) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?, r.u32()?);
        if mode & !MODE_BITS != 0 {
            return Err(r.malformed());
        }
        let (size, allocated) = (r.u64()?, r.u64()?);
        let (generation, parent) = (Generation(r.u64()?), Ino(r.u64()?));
        let mut time = || -> Result<Timestamp, DecodeError> {
            let time = Timestamp { secs: r.i64()?, nanos: r.u32()? };
            if time.nanos < 1_000_000_000 { Ok(time) } else { Err(r.malformed()) }
        };
        let (atime, mtime, ctime, btime) = (time()?, time()?, time()?, time()?);
        r.finish()?;
        Ok(Self {
            kind,
            mode,
            nlink,
            uid,
            gid,
            rdev,
            size,
            allocated,
            atime,
            mtime,
            ctime,
            btime,
            form,
            generation,
            parent,
        })
    }
}

/// A directory entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DentryRow {
    pub ino: Ino,
    pub kind: FileKind,
    pub name: Name,
}

impl DentryRow {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u64(self.ino.0).u8(self.kind as u8).bytes(self.name.as_bytes());
        w.buf
    }

    /// # Errors
    /// If `bytes` are not what [`Self::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new("directory entry", bytes);
        let ino = Ino(r.u64()?);
        let kind = FileKind::from_code(r.u8()?).ok_or(r.malformed())?;
        let name = Name::new(r.bytes(r.remaining())?).map_err(|_| r.malformed())?;
        Ok(Self { ino, kind, name })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn sample() -> InodeRow {
        let time = |secs| Timestamp { secs, nanos: 999_999_999 };
        InodeRow {
            kind: FileKind::Regular,
            mode: 0o4755,
            nlink: 2,
            uid: 1000,
            gid: 100,
            rdev: 0,
            size: 5 << 40,
            allocated: 4096,
            atime: time(1),
            mtime: time(-2),
            ctime: time(3),
            btime: time(4),
            form: ContentForm::Manifest,
            generation: Generation(7),
            parent: Ino(0),
        }
    }

    #[test]
    fn rows_read_back() {
        assert_eq!(InodeRow::decode(&sample().encode()), Ok(sample()));
        let entry =
            DentryRow { ino: Ino(9), kind: FileKind::Socket, name: Name::new(b"\xff\n").expect("valid") };
        assert_eq!(DentryRow::decode(&entry.encode()), Ok(entry));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = InodeRow::decode(&bytes);
            let _ = DentryRow::decode(&bytes);
        }
    }
}
