//! Who this machine is to others that use the same volume.

use std::io;
use std::path::Path;

use crate::base::time::Random;

/// A name that stays as long as the state directory does: the host's name for people, and random digits because names
/// of hosts are not unique, and because another state directory on the same host is another holder.
///
/// # Errors
/// Of the filesystem.
pub fn name(state_root: &Path, random: &dyn Random) -> io::Result<String> {
    let path = state_root.join("host-id");
    match std::fs::read_to_string(&path) {
        Ok(name) if !name.trim().is_empty() => return Ok(name.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = format!("{}-{:08x}", host.trim(), random.next_u64() >> 32);
    // Linked into place: of two first mounts one name stays.
    let draft = state_root.join(format!("host-id.draft-{}", std::process::id()));
    std::fs::write(&draft, &name)?;
    let linked = std::fs::hard_link(&draft, &path);
    std::fs::remove_file(&draft)?;
    match linked {
        Ok(()) => Ok(name),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Ok(std::fs::read_to_string(&path)?.trim().to_owned())
        }
        Err(error) => Err(error),
    }
}

/// Changes whenever the machine starts; empty where /proc does not say.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::SystemRandom;

    #[test]
    fn a_state_directory_keeps_its_name_and_another_has_another() {
        let (one, two) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let of = |dir: &tempfile::TempDir| name(dir.path(), &SystemRandom).expect("writable");
        let first = of(&one);
        assert_eq!(of(&one), first);
        assert_ne!(of(&two), first);
    }
}
