//! The only reader of environment variables of ours: where local files go, what is traced, which failpoint is armed.

use std::ffi::OsString;
use std::path::PathBuf;

use super::exit::{Code, Failure, Result};
use crate::base::ids::VolumeId;

/// The two roots of local files, both absolute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalRoots {
    /// What must survive: locks, metadata, log, staged packs.
    pub state: PathBuf,
    /// What may be deleted while unmounted.
    pub cache: PathBuf,
}

impl LocalRoots {
    /// From the environment of this process.
    ///
    /// # Errors
    /// `Usage` if no variable says where and there is no home directory.
    pub fn from_environment() -> Result<Self> {
        Self::resolve(nix::unistd::geteuid().is_root(), &|name| std::env::var_os(name))
    }

    fn resolve(is_root: bool, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let places = Places { is_root, variable };
        let state = places.root("GRAVITONFS_STATE_DIR", "/var/lib", "XDG_STATE_HOME", ".local/state")?;
        let cache = places.root("GRAVITONFS_CACHE_DIR", "/var/cache", "XDG_CACHE_HOME", ".cache")?;
        Ok(Self { state, cache })
    }

    /// Where the durable local files of one volume are.
    #[must_use]
    pub fn volume_state(&self, volume: VolumeId) -> PathBuf {
        self.state.join(volume.to_string())
    }

    /// Where the disposable local files of one volume are.
    #[must_use]
    pub fn volume_cache(&self, volume: VolumeId) -> PathBuf {
        self.cache.join(volume.to_string())
    }
}

struct Places<'a> {
    is_root: bool,
    variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Places<'_> {
    /// Our own variable holds everything, also for root; then root's system directory; then XDG's variable or the
    /// place below the home directory that XDG gives for it.
    fn root(&self, own: &str, system: &str, xdg: &str, below_home: &str) -> Result<PathBuf> {
        if let Some(path) = self.path(own) {
            let is_absolute = path.is_absolute();
            return match is_absolute {
                true => Ok(path),
                false => Err(Failure::usage(own, format_args!("not an absolute path: {}", path.display()))),
            };
        }
        if self.is_root {
            return Ok(PathBuf::from(system).join("gravitonfs"));
        }
        // XDG says that relative paths are to be ignored.
        if let Some(path) = self.path(xdg).filter(|path| path.is_absolute()) {
            return Ok(path.join("gravitonfs"));
        }
        let home = self.path("HOME").filter(|path| path.is_absolute());
        let advice = format!("set {own}");
        let home =
            home.ok_or_else(|| Failure::new(Code::Usage, "HOME", "there is no home directory", advice))?;
        Ok(home.join(below_home).join("gravitonfs"))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        (self.variable)(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }
}

/// What to log, in the syntax of `tracing`'s filters.
#[must_use]
pub fn log_filter() -> Option<String> {
    std::env::var(crate::telemetry::log::VARIABLE).ok()
}

/// Arms the failpoint that a crash test names.
///
/// # Errors
/// `Usage` if the variable does not parse.
pub fn arm_failpoint() -> Result<()> {
    use crate::rt::failpoint;
    match std::env::var(failpoint::VARIABLE) {
        Ok(spec) => failpoint::arm(&spec).map_err(|error| Failure::usage(failpoint::VARIABLE, error)),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(is_root: bool, variables: &[(&str, &str)]) -> Result<LocalRoots> {
        let lookup = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        LocalRoots::resolve(is_root, &lookup)
    }

    fn roots(state: &str, cache: &str) -> Result<LocalRoots> {
        Ok(LocalRoots { state: state.into(), cache: cache.into() })
    }

    #[test]
    fn our_own_variables_win_also_for_root() {
        let variables =
            [("GRAVITONFS_STATE_DIR", "/s"), ("GRAVITONFS_CACHE_DIR", "/c"), ("XDG_STATE_HOME", "/x")];
        for is_root in [true, false] {
            assert_eq!(resolve(is_root, &variables), roots("/s", "/c"));
        }
    }

    #[test]
    fn root_uses_var_and_users_their_own_directories() {
        let variables = [("XDG_STATE_HOME", "/x"), ("XDG_CACHE_HOME", "relative"), ("HOME", "/home/u")];
        assert_eq!(resolve(true, &variables), roots("/var/lib/gravitonfs", "/var/cache/gravitonfs"));
        assert_eq!(resolve(false, &variables), roots("/x/gravitonfs", "/home/u/.cache/gravitonfs"));
    }

    #[test]
    fn a_relative_or_missing_place_is_refused() {
        let relative = resolve(true, &[("GRAVITONFS_STATE_DIR", "state")]);
        assert_eq!(relative.map_err(|failure| failure.code), Err(Code::Usage));
        assert_eq!(resolve(false, &[]).map_err(|failure| failure.code), Err(Code::Usage));
    }
}
