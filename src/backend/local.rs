//! Local files of the real filesystem: private to their owner, closed on exec.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::fstatvfs;

use super::direct_io::DirectIo;
use crate::store::device::{Device, Directory};
use crate::store::{Error, Kind, Result};

/// A directory of plain files, mode 0600 each.
pub struct LocalDirectory {
    path: PathBuf,
    handle: File,
    io: Arc<DirectIo>,
}

impl LocalDirectory {
    /// Opens a directory, creating it (mode 0700) and its missing parents. Durable.
    ///
    /// # Errors
    /// `Denied` or another error of the filesystem.
    pub fn open_or_create(path: &Path) -> Result<Self> {
        create_all(path).map_err(|error| Error::from_io(&format!("create {}", path.display()), error))?;
        Self::open_existing(path)
    }

    /// Opens a directory that exists.
    ///
    /// # Errors
    /// `NotFound` if it does not.
    pub fn open_existing(path: &Path) -> Result<Self> {
        let handle = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path);
        let handle = handle.map_err(|error| Error::from_io(&format!("open {}", path.display()), error))?;
        Ok(Self { path: path.to_owned(), handle, io: Arc::default() })
    }

    fn file(&self, name: &str) -> Result<PathBuf> {
        let plain = !matches!(name, "" | "." | "..") && !name.contains(['/', '\0']);
        if !plain {
            return Err(Error::new(Kind::Internal, format!("not a file name: {name:?}")));
        }
        Ok(self.path.join(name))
    }

    fn fail(&self, what: &str, name: &str) -> impl FnOnce(io::Error) -> Error {
        let what = format!("{what} {}", self.path.join(name).display());
        move |error| Error::from_io(&what, error)
    }
}

/// Creates the directory and its parents, each synced into its own parent.
fn create_all(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_all(path.parent().ok_or(error)?)?;
            return create_all(path);
        }
        Err(error) => return Err(error),
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

impl Directory for LocalDirectory {
    fn create(&self, name: &str) -> Result<Arc<dyn Device>> {
        let path = self.file(name)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        Ok(LocalDevice::new(file.map_err(self.fail("create", name))?, &self.io))
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Device>> {
        let file = OpenOptions::new().read(true).write(true).open(self.file(name)?);
        Ok(LocalDevice::new(file.map_err(self.fail("open", name))?, &self.io))
    }

    fn remove(&self, name: &str) -> Result<()> {
        match std::fs::remove_file(self.file(name)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.fail("remove", name)(error)),
            _ => Ok(()),
        }
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        std::fs::rename(self.file(from)?, self.file(to)?).map_err(self.fail("rename", from))
    }

    fn list(&self) -> Result<Vec<(String, u64)>> {
        let list = || -> io::Result<Vec<(String, u64)>> {
            let mut files = Vec::new();
            for entry in std::fs::read_dir(&self.path)? {
                let entry = entry?;
                // A name that is not UTF-8 cannot be one of ours.
                let Ok(name) = entry.file_name().into_string() else { continue };
                match entry.metadata() {
                    Ok(metadata) if metadata.is_file() => files.push((name, metadata.len())),
                    Ok(_) => {}
                    // Removed since it was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(files)
        };
        list().map_err(self.fail("list", ""))
    }

    fn sync(&self) -> Result<()> {
        self.handle.sync_all().map_err(self.fail("sync", ""))
    }

    fn free_bytes(&self) -> Result<u64> {
        let stat = fstatvfs(self.handle.as_fd()).map_err(|errno| self.fail("statvfs", "")(errno.into()))?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }
}

/// One open file.
struct LocalDevice {
    file: File,
    io: Arc<DirectIo>,
    /// Set by a failed sync. The kernel reports a lost write once and then calls the pages clean, so a second sync
    /// would succeed without the bytes being anywhere (rule R14).
    sync_failed: AtomicBool,
}

impl LocalDevice {
    #[expect(clippy::new_ret_no_self, reason = "only ever used behind the port")]
    fn new(file: File, io: &Arc<DirectIo>) -> Arc<dyn Device> {
        Arc::new(Self { file, io: Arc::clone(io), sync_failed: AtomicBool::new(false) })
    }
}

impl Device for LocalDevice {
    fn len(&self) -> Result<u64> {
        let metadata = self.file.metadata().map_err(|error| Error::from_io("stat local file", error))?;
        Ok(metadata.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = buf.len();
        self.io
            .read_exact_at(&self.file, buf, offset)
            .map_err(|error| Error::from_io(&format!("read local file offset={offset} len={len}"), error))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let len = data.len();
        self.io
            .write_all_at(&self.file, data, offset)
            .map_err(|error| Error::from_io(&format!("write local file offset={offset} len={len}"), error))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.file
            .set_len(len)
            .map_err(|error| Error::from_io(&format!("set length of local file len={len}"), error))
    }

    fn reserve(&self, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let signed =
            i64::try_from(len).map_err(|_| Error::new(Kind::Full, format!("reserve {len} bytes")))?;
        loop {
            return match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, signed) {
                Err(Errno::EINTR) => continue,
                // A filesystem without the call writes all the same, it only cannot promise room.
                Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
                Err(errno) => Err(Error::from_io(&format!("reserve local file len={len}"), errno.into())),
            };
        }
    }

    fn sync(&self) -> Result<()> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(Error::new(Kind::Internal, "sync local file: an earlier sync failed"));
        }
        self.file.sync_data().map_err(|error| {
            self.sync_failed.store(true, Ordering::Release);
            Error::from_io("sync local file", error)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn files_and_directories_are_private() {
        let root = tempfile::tempdir().expect("temporary directory");
        let path = root.path().join("a/b");
        let directory = LocalDirectory::open_or_create(&path).expect("creatable");
        directory.create("f").expect("creatable");
        let mode = |path: &Path| std::fs::metadata(path).expect("exists").permissions().mode() & 0o777;
        assert_eq!((mode(&root.path().join("a")), mode(&path), mode(&path.join("f"))), (0o700, 0o700, 0o600));
        LocalDirectory::open_or_create(&path).expect("opens again");
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        let root = tempfile::tempdir().expect("temporary directory");
        let directory = LocalDirectory::open_existing(root.path()).expect("exists");
        for name in ["", ".", "..", "../f", "a/b", "a\0"] {
            assert_eq!(
                directory.create(name).err().map(|error| error.kind),
                Some(Kind::Internal),
                "{name:?}"
            );
        }
    }

    fn full() -> Arc<dyn Device> {
        let file = OpenOptions::new().write(true).open("/dev/full").expect("exists");
        LocalDevice::new(file, &Arc::default())
    }

    #[test]
    fn a_failed_sync_is_not_retried() {
        // The kernel refuses to sync a character device: EINVAL.
        let device = full();
        let first = device.sync().expect_err("cannot be synced");
        assert!(!first.detail.contains("earlier"), "{first}");
        let second = device.sync().expect_err("latched");
        assert!(second.detail.contains("earlier"), "{second}");
    }

    #[test]
    fn a_full_disk_is_reported_as_full() {
        let device = full();
        assert_eq!(device.write_at(b"x", 0).map_err(|error| error.kind), Err(Kind::Full));
    }
}
