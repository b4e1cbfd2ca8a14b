//! `gravitonfs check`: of a mount, by asking it; of an unmounted volume, over a copy of the state on this machine.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::args;
use super::client::{self, Terminal};
use super::control::{Request, Told, ask_with_file};
use super::environment::LocalRoots;
use super::exit::{Code, Failure, Result};
use super::format::open_or_create;
use super::lock::LocalLock;
use super::open::{
    LOG_DIRECTORY, METADATA_FILE, MetadataParts, STAGED_DIRECTORY, directory, not_taken, start_runtime,
};
use super::options::MountOptions;
use super::registry::{self, Entry};
use super::status::volume_of;
use super::stores::{Machine, Missing, Objects};
use super::volume::Volume;
use crate::base::ids::VolumeId;
use crate::base::limits::MIB;
use crate::content::staged_files::StagedFiles;
use crate::maint::check::{self, CheckParts, Data, Finding, FindingKind, Outcome, Progress, Step};
use crate::maint::recovery::{Access, MountError};
use crate::rt::{SystemRandom, TokioRuntime};
use crate::store::{self, Kind};

/// Raised when a field changes its meaning or goes; new fields do not raise it.
const SCHEMA: u32 = 1;

/// Memory for the metadata while they are read, in bytes.
const METADATA_BYTES: u64 = 64 * MIB;

/// How long a daemon that has been unmounted may still be draining before a check gives up.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// What a check has found, as scripts read it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckReport {
    pub schema: u32,
    pub volume: String,
    pub volume_id: String,
    /// Regular files.
    pub files: u64,
    /// Blocks and packs in the index.
    pub blocks: u64,
    pub packs: u64,
    /// Bytes of objects fetched from the store.
    pub bytes_read: u64,
    pub findings: Vec<Finding>,
    /// Findings beyond those listed.
    pub findings_left_out: u64,
}

impl CheckReport {
    #[must_use]
    pub fn new(volume: &str, volume_id: VolumeId, outcome: Outcome) -> Self {
        let Outcome { files, blocks, packs, bytes_read, findings } = outcome;
        Self {
            schema: SCHEMA,
            volume: volume.to_owned(),
            volume_id: volume_id.to_string(),
            files,
            blocks,
            packs,
            bytes_read,
            findings: findings.listed,
            findings_left_out: findings.left_out,
        }
    }

    /// For people: a line for each finding, and what was looked at.
    fn print(&self) {
        for finding in &self.findings {
            println!("{finding}");
        }
        if 0 < self.findings_left_out {
            println!("and {} more", self.findings_left_out);
        }
        let Self { files, blocks, packs, bytes_read, .. } = self;
        println!("{files} files, {blocks} blocks, {packs} packs; {bytes_read} bytes read from the store");
    }

    /// # Errors
    /// `Corrupt` if anything was found.
    fn verdict(&self) -> Result<()> {
        let count = self.findings.len() as u64 + self.findings_left_out;
        if count == 0 {
            return Ok(());
        }
        let noun = if count == 1 { "finding" } else { "findings" };
        let advice = "copy the store and the state directory before anything else is changed";
        Err(Failure::new(Code::Corrupt, &self.volume, format_args!("{count} {noun}"), advice))
    }
}

/// Checks a volume or mount, and prints what is wrong.
///
/// # Errors
/// `Corrupt` if anything is; `NotFound` if there is no such volume or mount; `Busy` if it is in use by what cannot be
/// asked; of the store.
pub fn check(roots: &LocalRoots, arguments: &args::Check) -> Result<()> {
    let data = if arguments.data { Data::Hashed } else { Data::Listed };
    let mut terminal = Terminal::new("checking");
    let report = &mut |progress: Progress| terminal.show(&told(progress));
    let checked = match volume_of(&arguments.target)? {
        Some(volume) => match registry::find_volume(&roots.state, &volume.to_string()) {
            Some(entry) => mounted(&entry, data, report),
            None => unmounted(roots, &volume, &arguments.options, data, report),
        },
        None => mounted(&client::find(roots, &arguments.target)?, data, report),
    };
    terminal.clear();
    let checked = checked?;
    if arguments.json {
        println!("{}", serde_json::to_string(&checked).expect("a report always serializes"));
    } else {
        checked.print();
    }
    checked.verdict()
}

fn told(progress: Progress) -> String {
    let what = match progress.step {
        Step::Tree => "inodes",
        Step::Content => "segments and blocks",
        Step::Packs => "packs listed",
        Step::Data => "packs hashed",
        Step::Journal => "journal records",
    };
    match progress.of {
        Some(of) => format!("{what}: {} of {of}", progress.done),
        None => format!("{what}: {}", progress.done),
    }
}

fn mounted(entry: &Entry, data: Data, report: &mut check::Report<'_>) -> Result<CheckReport> {
    let mut checked = None;
    ask_with_file(&entry.state_dir, &Request::Check { data }, None, &mut |told| match told {
        Told::Checking(progress) => report(progress),
        Told::Checked(report) => checked = Some(*report),
        Told::Progress(_) | Told::Blob(_) => {}
    })?;
    let advice = "is it an older version?";
    checked.ok_or_else(|| Failure::new(Code::Internal, &entry.volume, "the mount gave no report", advice))
}

/// What is staged in a volume's state directory; nothing if there is none.
///
/// # Errors
/// Of the disk.
pub(super) fn staged_files(state_dir: &Path) -> Result<StagedFiles> {
    let path = state_dir.join(STAGED_DIRECTORY);
    if !path.is_dir() {
        return Ok(StagedFiles::default());
    }
    let listed = StagedFiles::list(&*directory(&path)?);
    listed.map_err(|error| Failure::store(path.display(), &error))
}

fn unmounted(
    roots: &LocalRoots,
    volume: &Volume,
    options: &[String],
    data: Data,
    report: &mut check::Report<'_>,
) -> Result<CheckReport> {
    let options = MountOptions::parse(options)?;
    let runtime = start_runtime()?;
    runtime.block_on(async {
        let machine = Machine { clock: runtime.clock(), random: Arc::new(SystemRandom) };
        let failed = |error: store::Error| Failure::store(volume, &error);
        let objects = Objects::open(volume, &options.store, Missing::Fail, &machine).await.map_err(failed)?;
        let superblock = open_or_create(&objects, volume, Missing::Fail, &machine).await?;
        let id = superblock.volume_id();
        let state_dir = roots.volume_state(id);
        // Where nothing was ever mounted there is nothing to lock, and a check leaves nothing behind.
        let purpose = Path::new("gravitonfs check");
        let _lock = match state_dir.is_dir() {
            true => Some(LocalLock::take(&volume.to_string(), &state_dir, purpose, LOCK_PATIENCE)?),
            false => None,
        };
        let scratch = Scratch::new(&roots.cache)?;
        scratch.take_copy(&state_dir)?;
        let staged = staged_files(&state_dir)?;
        let subject = Subject { runtime: &runtime, volume, objects: &objects, id };
        let outcome = subject.check(&scratch, staged, data, report).await?;
        Ok(CheckReport::new(&volume.to_string(), id, outcome))
    })
}

/// A volume that is not mounted.
struct Subject<'a> {
    runtime: &'a TokioRuntime,
    volume: &'a Volume,
    objects: &'a Objects,
    id: VolumeId,
}

impl Subject<'_> {
    async fn check(
        &self,
        scratch: &Scratch,
        staged: StagedFiles,
        data: Data,
        report: &mut check::Report<'_>,
    ) -> Result<Outcome> {
        let failed = |error: store::Error| Failure::store(self.volume, &error);
        let objects = self.objects.store.clone();
        let parts = MetadataParts {
            runtime: self.runtime,
            objects: self.objects,
            state: &*directory(&scratch.path)?,
            log: directory(&scratch.path.join(LOG_DIRECTORY))?,
            volume: self.id,
            bytes: METADATA_BYTES,
            access: Access::ReadOnly,
        };
        let mounted = match parts.open().await {
            Ok(mounted) => mounted,
            Err(MountError::Store(error)) if matches!(error.kind, Kind::Corrupt | Kind::NotFound) => {
                let thing = self.volume.to_string();
                let reason = Finding { kind: FindingKind::Recovery, thing, detail: error.to_string() };
                let checked = check::check_without_metadata(objects, self.id, reason, report).await;
                return checked.map_err(failed);
            }
            Err(error) => return Err(not_taken(self.volume, error)),
        };
        let view = Arc::new(mounted.committer.view().map_err(failed)?);
        let parts = CheckParts { view, staged, objects, volume: self.id, data };
        let outcome = check::check(parts, report).await;
        mounted.committer.stop().await.map_err(failed)?;
        outcome.map_err(failed)
    }
}

/// A directory for a copy of the local state, which opening changes; goes with the process.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Below the cache: there is room there, and what a killed check leaves may be deleted.
    fn new(cache: &Path) -> Result<Self> {
        let path = cache.join(format!("check-{}", std::process::id()));
        let failed = |error| Failure::io(path.display(), "make directory", error);
        std::fs::create_dir_all(cache).map_err(failed)?;
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        Ok(Self { path })
    }

    /// Copies database and log of `state_dir`, as far as there are any.
    fn take_copy(&self, state_dir: &Path) -> Result<()> {
        let copy = |from: &Path, to: &Path| match std::fs::copy(from, to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::io(from.display(), "copy", error))
            }
            _ => Ok(()),
        };
        copy(&state_dir.join(METADATA_FILE), &self.path.join(METADATA_FILE))?;
        let (from, to) = (state_dir.join(LOG_DIRECTORY), self.path.join(LOG_DIRECTORY));
        std::fs::create_dir(&to).map_err(|error| Failure::io(to.display(), "make directory", error))?;
        let Ok(files) = std::fs::read_dir(&from) else { return Ok(()) };
        for file in files {
            let file = file.map_err(|error| Failure::io(from.display(), "list", error))?;
            copy(&file.path(), &to.join(file.file_name()))?;
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("gravitonfs: {}: remove: {error}; it may be deleted", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maint::check::Findings;

    /// Scripts read these names; a change of this list is a change of the contract.
    #[test]
    fn the_json_has_the_documented_fields() {
        let finding =
            Finding { kind: FindingKind::BlockReferences, thing: "b".to_owned(), detail: "d".to_owned() };
        let findings = Findings { listed: vec![finding], left_out: 2 };
        let outcome = Outcome { files: 1, blocks: 2, packs: 3, bytes_read: 4, findings };
        let report = CheckReport::new("mem:", VolumeId(5), outcome);
        let json = serde_json::to_value(&report).expect("serializes");
        for (field, value) in [("schema", 1), ("files", 1), ("blocks", 2), ("packs", 3), ("bytes_read", 4)] {
            assert_eq!(json[field], value, "{field}");
        }
        assert_eq!(json["volume_id"], "0".repeat(31) + "5");
        assert_eq!(json["findings"][0]["kind"], "block-references");
        assert_eq!(
            (&json["findings"][0]["thing"], &json["findings"][0]["detail"]),
            (&"b".into(), &"d".into())
        );
        let failure = report.verdict().expect_err("something was found");
        assert_eq!(failure.code, Code::Corrupt);
        assert!(failure.to_string().starts_with("mem:: 3 findings; "), "{failure}");
    }

    #[test]
    fn a_copy_has_the_database_and_the_log_and_goes() {
        let root = tempfile::tempdir().expect("temporary directory");
        let (state, cache) = (root.path().join("state"), root.path().join("cache"));
        std::fs::create_dir_all(state.join(LOG_DIRECTORY)).expect("mkdir");
        std::fs::write(state.join(METADATA_FILE), "m").expect("write");
        std::fs::write(state.join(LOG_DIRECTORY).join("1.log"), "l").expect("write");
        let scratch = Scratch::new(&cache).expect("room");
        scratch.take_copy(&state).expect("copied");
        let log = scratch.path.join(LOG_DIRECTORY).join("1.log");
        assert_eq!(std::fs::read(log).expect("there"), b"l");
        assert_eq!(std::fs::read(scratch.path.join(METADATA_FILE)).expect("there"), b"m");
        let path = scratch.path.clone();
        drop(scratch);
        assert!(!path.exists());
    }
}
