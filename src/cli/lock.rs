//! One mount of a volume per machine: a lock on a file in the volume's state directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::exit::{Code, Failure, Result};
use super::mount_table::mounted_at;

/// Who holds the lock, as its file tells those who find it held.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    /// Where it mounts the volume, or what else it does with it.
    pub mountpoint: PathBuf,
}

impl Holder {
    fn is_mounted(&self) -> bool {
        let mounted = mounted_at(&self.mountpoint).ok().flatten();
        mounted.is_some_and(|mounted| mounted.is_ours())
    }
}

/// The lock, held until dropped or until the process ends, however it ends. The file stays: removing it would let two
/// processes hold two files of one name.
#[must_use]
pub struct LocalLock {
    _file: File,
}

impl LocalLock {
    /// Takes the lock of the volume whose state directory is `state_dir` (which exists), for `mountpoint`. Whoever holds
    /// it without being mounted is about to go or to come: that is waited for, up to `patience`.
    ///
    /// # Errors
    /// `Busy` naming the holder if another process has it.
    pub fn take(volume: &str, state_dir: &Path, mountpoint: &Path, patience: Duration) -> Result<Self> {
        let path = state_dir.join("lock");
        let failed = |what, error| Failure::io(path.display(), what, error);
        let mut file = open(&path).map_err(|error| failed("open lock file", error))?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(failed("lock", error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let holder = read(&mut file);
            if patience <= began.elapsed() || holder.as_ref().is_some_and(Holder::is_mounted) {
                return Err(held(volume, holder));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let holder = Holder { pid: std::process::id(), mountpoint: mountpoint.to_owned() };
        write(&mut file, &holder).map_err(|error| failed("write lock file", error))?;
        Ok(Self { _file: file })
    }

    /// Who holds the lock now, if anybody does.
    #[must_use]
    pub fn holder(state_dir: &Path) -> Option<Holder> {
        let mut file = OpenOptions::new().read(true).write(true).open(state_dir.join("lock")).ok()?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => read(&mut file),
            _ => None,
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn write(file: &mut File, holder: &Holder) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&serde_json::to_vec(holder)?)
}

fn read(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn held(volume: &str, holder: Option<Holder>) -> Failure {
    match holder {
        Some(Holder { pid, mountpoint }) => {
            let at = mountpoint.display();
            let cause = format!("already mounted on this host at {at} by process {pid}");
            Failure::new(
                Code::Busy,
                volume,
                cause,
                format_args!("use that mount, or: gravitonfs umount {at}"),
            )
        }
        // Between taking the lock and writing the file.
        None => Failure::new(
            Code::Busy,
            volume,
            "being mounted by another process on this host",
            "wait a moment and look again",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_mount_is_refused_and_told_of_the_first() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first =
            LocalLock::take("file:///v", dir.path(), Path::new("/mnt/one"), Duration::ZERO).expect("free");
        let second = LocalLock::take("file:///v", dir.path(), Path::new("/mnt/two"), Duration::ZERO);
        let failure = second.err().expect("locked twice");
        assert_eq!(failure.code, Code::Busy);
        let line = failure.to_string();
        assert!(line.contains("/mnt/one") && line.contains(&std::process::id().to_string()), "{line}");
        let holder = LocalLock::holder(dir.path()).expect("held");
        assert_eq!(holder.mountpoint, Path::new("/mnt/one"));
        drop(first);
        assert_eq!(LocalLock::holder(dir.path()), None);
        let _again = LocalLock::take("file:///v", dir.path(), Path::new("/mnt/two"), Duration::ZERO)
            .expect("free again");
    }

    #[test]
    fn a_holder_that_is_about_to_go_is_waited_for() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = LocalLock::take("mem:", dir.path(), Path::new("/mnt/one"), Duration::ZERO).expect("free");
        let path = dir.path().to_owned();
        let waiting = std::thread::spawn(move || {
            LocalLock::take("mem:", &path, Path::new("/mnt/two"), Duration::from_secs(60)).map(drop)
        });
        drop(first);
        assert_eq!(waiting.join().expect("no panic"), Ok(()));
    }
}
