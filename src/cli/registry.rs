//! Which mount is at which place: one small file per mountpoint below the state directory, also for a mount whose
//! mountpoint is free again while it drains.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::lock::LocalLock;
use crate::base::hash::Hash;

/// One running mount.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    pub mountpoint: PathBuf,
    pub volume: String,
    pub pid: u32,
    /// The volume's state directory, with its lock and control socket.
    pub state_dir: PathBuf,
}

impl Entry {
    /// Makes the entry known, in the place of one that an earlier mount left.
    ///
    /// # Errors
    /// Of the filesystem.
    pub fn publish(&self, state_root: &Path) -> io::Result<()> {
        let path = path_of(state_root, &self.mountpoint);
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let draft = path.with_extension(format!("draft-{}", self.pid));
        std::fs::write(&draft, serde_json::to_vec(self)?)?;
        std::fs::rename(draft, path)
    }

    /// Takes the entry back, unless another mount has come to the same place since.
    pub fn withdraw(&self, state_root: &Path) {
        let path = path_of(state_root, &self.mountpoint);
        if read(&path).as_ref() == Some(self) {
            // A file that stays is recognised as stale by the lock that nobody holds.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The running mount at `mountpoint` (absolute, as `mountpoint::resolve` gives it).
#[must_use]
pub fn find(state_root: &Path, mountpoint: &Path) -> Option<Entry> {
    let entry = read(&path_of(state_root, mountpoint))?;
    let holder = LocalLock::holder(&entry.state_dir)?;
    (holder.pid == entry.pid && entry.mountpoint == mountpoint).then_some(entry)
}

/// The running mount of `volume` (in canonical form).
#[must_use]
pub fn find_volume(state_root: &Path, volume: &str) -> Option<Entry> {
    let listing = std::fs::read_dir(state_root.join("mounts")).ok()?;
    let entries = listing.filter_map(|file| read(&file.ok()?.path()));
    let mut mounted = entries.filter(|entry| entry.volume == volume);
    mounted.find_map(|entry| find(state_root, &entry.mountpoint))
}

fn path_of(state_root: &Path, mountpoint: &Path) -> PathBuf {
    let name = Hash::of(mountpoint.as_os_str().as_encoded_bytes());
    state_root.join("mounts").join(format!("{name}.json"))
}

fn read(path: &Path) -> Option<Entry> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(state_dir: &Path, mountpoint: &str) -> Entry {
        Entry {
            mountpoint: mountpoint.into(),
            volume: "mem:".to_owned(),
            pid: std::process::id(),
            state_dir: state_dir.to_owned(),
        }
    }

    #[test]
    fn a_mount_is_found_while_it_holds_its_lock() {
        let root = tempfile::tempdir().expect("temporary directory");
        let state_dir = root.path().join("volume");
        std::fs::create_dir(&state_dir).expect("mkdir");
        let odd = "/mnt/with space\n and newline";
        let entry = entry(&state_dir, odd);
        entry.publish(root.path()).expect("publish");
        assert_eq!(find(root.path(), Path::new(odd)), None, "nobody holds the lock");
        let lock = LocalLock::take("mem:", &state_dir, Path::new(odd), Duration::ZERO).expect("free");
        assert_eq!(find(root.path(), Path::new(odd)), Some(entry.clone()));
        assert_eq!(find(root.path(), Path::new("/mnt/with space")), None);
        assert_eq!(find_volume(root.path(), "mem:"), Some(entry.clone()));
        assert_eq!(find_volume(root.path(), "file:///other"), None);
        drop(lock);
        assert_eq!(find(root.path(), Path::new(odd)), None);
        entry.withdraw(root.path());
        assert!(!path_of(root.path(), Path::new(odd)).exists());
    }

    #[test]
    fn a_draining_mount_leaves_its_successors_entry_alone() {
        let root = tempfile::tempdir().expect("temporary directory");
        let old = entry(Path::new("/old"), "/mnt");
        let new = entry(Path::new("/new"), "/mnt");
        old.publish(root.path()).expect("publish");
        new.publish(root.path()).expect("publish");
        old.withdraw(root.path());
        assert_eq!(read(&path_of(root.path(), Path::new("/mnt"))), Some(new));
    }
}
