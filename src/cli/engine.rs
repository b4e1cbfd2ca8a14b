//! An open volume as the commands use it: report, sync, close.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blocks::Blocks;
use super::check::{CheckReport, staged_files};
use super::exit::{Code, Failure, Result};
use super::lock::LocalLock;
use super::report::{LastFailure, Progress, Requests, SCHEMA, State, Status};
use super::stores::Objects;
use super::volume::Volume;
use crate::base::limits::KIB;
use crate::base::time::Random;
use crate::commit::Committer;
use crate::content::pack_cache::PackCache;
use crate::maint::check::{self, CheckParts, Data};
use crate::store;
use crate::store::object::Fencing;
use crate::store::superblock::Superblock;
use crate::vfs::{self, Vfs, VolumeBlobs};

/// An open volume; `open.rs` makes it.
pub struct Engine {
    pub(super) volume: Volume,
    pub(super) superblock: Superblock,
    /// None if nobody has asked the store.
    pub(super) fencing: Option<Fencing>,
    pub(super) read_only: bool,
    pub(super) state_dir: PathBuf,
    pub(super) random: Arc<dyn Random>,
    pub(super) objects: Objects,
    pub(super) cache: Option<Arc<PackCache>>,
    pub(super) blocks: Blocks,
    pub(super) commit: Arc<Committer>,
    pub(super) vfs: Arc<Vfs>,
    /// Released when the process exits.
    pub(super) _lock: LocalLock,
}

impl Engine {
    /// Where the volume is, in canonical form.
    #[must_use]
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    #[must_use]
    pub fn random(&self) -> &dyn Random {
        &*self.random
    }

    #[must_use]
    pub fn vfs(&self) -> Arc<Vfs> {
        self.vfs.clone()
    }

    /// The volume's blobs.
    #[must_use]
    pub fn blobs(&self) -> VolumeBlobs {
        VolumeBlobs(self.vfs())
    }

    /// True if nothing may be changed.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Why changes are refused since, although the volume is open for writing.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.commit.check().err().map(|error| error.detail)
    }

    /// What is not in the store yet.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let (_, dirty_bytes) = self.vfs.unpublished();
        Progress {
            dirty_bytes,
            pending_upload_bytes: self.blocks.pending().bytes + self.commit.pending().bytes,
        }
    }

    /// Looks whether the volume is whole as it is now, while it goes on serving.
    ///
    /// # Errors
    /// Of the metadata and the store; what is wrong with the volume is no error.
    pub async fn check(&self, data: Data, report: &mut check::Report<'_>) -> Result<CheckReport> {
        let failed = |error: store::Error| Failure::store(&self.volume, &error);
        // The view first: what it knows as staged is then staged, or in the store when that is listed.
        let view = Arc::new(self.commit.view().map_err(failed)?);
        let staged = staged_files(&self.state_dir)?;
        let volume = self.superblock.volume_id();
        let parts = CheckParts { view, staged, objects: self.objects.store.clone(), volume, data };
        let outcome = check::check(parts, report).await.map_err(failed)?;
        Ok(CheckReport::new(&self.volume.to_string(), volume, outcome))
    }

    /// Everything written before the call is in the store when it returns.
    ///
    /// # Errors
    /// Of the store and the disk.
    pub async fn sync(&self) -> Result<()> {
        let synced = self.vfs.sync_all().await;
        // Once changes are refused, why that is says more than what could not be done.
        synced.map_err(|error| match self.commit.check() {
            Err(cause) => Failure::store(&self.volume, &cause),
            Ok(()) => vfs_failure(&self.volume, error),
        })
    }

    /// Sends everything to the store, releases the volume and ends the work in the background. Nothing may use the
    /// filesystem any more.
    ///
    /// # Errors
    /// Of the store and the disk; what has not reached the store is safe on this machine then.
    pub async fn close(&self) -> Result<()> {
        let failed = |error: store::Error| Failure::store(&self.volume, &error);
        if self.read_only {
            self.blocks.shutdown().await;
            return self.commit.stop().await.map_err(failed);
        }
        self.sync().await?;
        self.blocks.drain().await.map_err(failed)?;
        let closed = self.commit.close().await.map_err(failed);
        self.blocks.shutdown().await;
        if self.volume == Volume::Memory {
            // Its objects go with this process, so what is here describes nothing.
            let _ = std::fs::remove_dir_all(&self.state_dir);
        }
        closed
    }

    /// Everything `status` reports but where the volume is mounted.
    ///
    /// # Errors
    /// If the metadata cannot be read.
    pub fn status(&self) -> Result<Status> {
        let stat = self.vfs.statfs().map_err(|error| vfs_failure(&self.volume, error))?;
        let counts = self.objects.counters.counts();
        let Progress { dirty_bytes, pending_upload_bytes } = self.progress();
        let oldest = self.blocks.pending().oldest.max(self.commit.pending().oldest);
        Ok(Status {
            schema: SCHEMA,
            volume: self.volume.to_string(),
            volume_id: self.superblock.volume_id().to_string(),
            mountpoint: None,
            pid: None,
            state: State::Unmounted,
            state_cause: self.refusal(),
            durability: None,
            fencing: self.fencing.map_or("unknown", Fencing::as_str).to_owned(),
            files: stat.files,
            logical_bytes: stat.logical_bytes,
            stored_bytes: stat.stored_bytes,
            dirty_bytes,
            pending_upload_bytes,
            oldest_pending_seconds: oldest.map_or(0, |age| age.as_secs()),
            last_failure: self.vfs.last_failure().map(|failure| LastFailure {
                inode: failure.ino.0,
                cause: failure.cause,
                count: failure.count,
            }),
            cache_bytes: self.cache.as_ref().map_or(0, |cache| cache.used_bytes()),
            memory_bytes: resident_bytes(),
            object_requests: Requests {
                put: counts.put,
                get: counts.get,
                head: counts.head,
                list: counts.list,
                delete: counts.delete,
            },
            sent_bytes: counts.sent_bytes,
            received_bytes: counts.received_bytes,
        })
    }
}

/// What a failed operation of the filesystem means to a command.
pub(super) fn vfs_failure(volume: &Volume, error: vfs::Error) -> Failure {
    match error {
        // Only of the root, and only in a volume that nobody has written to.
        vfs::Error::Stale => {
            Failure::new(Code::NotFound, volume, "the volume is empty", "mount it once without ro")
        }
        vfs::Error::Io(error) => Failure::store(volume, &error),
        other => Failure::new(Code::Internal, volume, other, "look into the log and report a bug"),
    }
}

/// Memory of this process that is in use, in bytes; 0 where /proc does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.map_or(0, |kib| kib * KIB)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::MIB;

    #[test]
    fn the_process_knows_its_size() {
        assert!(MIB < resident_bytes());
    }
}
