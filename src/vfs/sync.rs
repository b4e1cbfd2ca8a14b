//! What promises that bytes are safe: fsync, fdatasync, and the sync of everything.

use std::sync::Arc;

use super::error::{Error, Result};
use super::handle::Handle;
use super::inode::Inode;
use super::lookup::ready;
use super::{Pending, Tier, Vfs};
use crate::base::ids::{Fh, Ino};
use crate::base::sync::lock;
use crate::store::{self, Kind};

impl Vfs {
    /// Every close sends this. Nothing to do but to report what could not be kept.
    ///
    /// # Errors
    /// `BadHandle`; `Io` once if bytes of the file could not be staged since the handle was opened.
    pub fn flush(&self, fh: Fh) -> Result<()> {
        report_failures(&*self.handles.get(fh)?)
    }

    /// Makes all bytes written to the file so far, and its attributes, as safe as the tier says.
    ///
    /// # Errors
    /// `BadHandle`, `NoSpace`, `Io`.
    pub fn fsync(self: &Arc<Self>, fh: Fh) -> Pending<()> {
        match self.handles.get(fh) {
            Err(error) => ready(Err(error)),
            Ok(handle) => {
                let vfs = Arc::clone(self);
                Box::pin(async move {
                    let synced = vfs.sync_inode(&handle.inode).await;
                    report_failures(&handle).and(synced)
                })
            }
        }
    }

    /// Makes the directory's entries as safe as the tier says.
    ///
    /// # Errors
    /// `Io`.
    pub fn fsyncdir(self: &Arc<Self>, _dir: Ino) -> Pending<()> {
        let vfs = Arc::clone(self);
        Box::pin(async move { vfs.sync_metadata().await })
    }

    /// What `gravitonfs sync` and unmount do: everything written before the call is in the store when it returns,
    /// whatever the tier.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub async fn sync_all(self: &Arc<Self>) -> Result<()> {
        self.settle().await?;
        self.commit.flush(self.commit.newest()).await?;
        Ok(())
    }

    /// Everything written before the call is committed content when it returns: staged, acknowledged, published. The
    /// journal may still be behind.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub async fn settle(self: &Arc<Self>) -> Result<()> {
        self.stage_everything().await?;
        self.blocks.seal().await?;
        self.publish_everything().await?;
        self.keep_atimes();
        Ok(())
    }

    /// Files whose staged content is not committed yet, and bytes that are only in memory.
    #[must_use]
    pub fn unpublished(&self) -> (usize, u64) {
        (self.publishing.len(), self.hot_budget.used_bytes())
    }

    /// The last time that written bytes could not be kept as they should.
    #[must_use]
    pub fn last_failure(&self) -> Option<WriteFailure> {
        lock(&self.last_failure).clone()
    }

    pub(super) fn note_failure(&self, ino: Ino, error: &Error) {
        let mut last = lock(&self.last_failure);
        let count = last.as_ref().map_or(0, |last| last.count) + 1;
        *last = Some(WriteFailure { ino, cause: error.to_string(), count });
    }

    pub(super) async fn sync_inode(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<()> {
        self.stage_all(inode).await?;
        if self.options.tier == Tier::Remote {
            self.blocks.seal().await?;
            self.publish_acknowledged(inode).await?;
        }
        self.sync_metadata().await
    }

    async fn sync_metadata(&self) -> Result<()> {
        let newest = self.commit.newest();
        match self.options.tier {
            Tier::Local => self.commit.sync_local(newest).await?,
            Tier::Remote => self.commit.flush(newest).await?,
        }
        Ok(())
    }
}

/// Written bytes of a file that could not be staged or committed; they stay where they are and are tried again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteFailure {
    pub ino: Ino,
    pub cause: String,
    /// How many there have been since the mount, of this file and others.
    pub count: u64,
}

/// Tells a handle once of what failed since it was opened or last told.
fn report_failures(handle: &Handle) -> Result<()> {
    let failures = handle.inode.lock().failures;
    let mut seen = lock(&handle.failures_seen);
    if failures == *seen {
        return Ok(());
    }
    *seen = failures;
    let what = format!("inode {}: written bytes could not be staged", handle.inode.ino);
    Err(Error::Io(store::Error::new(Kind::Internal, what)))
}
