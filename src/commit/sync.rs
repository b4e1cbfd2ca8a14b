//! The local tier: one data sync of the log at a time, shared by all who wait.

use std::sync::Arc;

use async_trait::async_trait;

use super::committer::Shared;
use crate::base::ids::{BatchNo, PackId};
use crate::rt::run_blocking;
use crate::store::Result;
use crate::store::block::UploadTicket;

/// The bytes that batches refer to and the log does not hold: packs being filled or uploaded.
#[async_trait]
pub trait Staging: Send + Sync + 'static {
    /// Makes durable on this machine what the batches submitted so far refer to (rule R3).
    ///
    /// # Errors
    /// Of the disk.
    async fn sync(&self) -> Result<()>;

    /// Waits for a pack, or None if the store has acknowledged it.
    ///
    /// # Errors
    /// If that cannot be told.
    fn upload(&self, pack: PackId) -> Result<Option<UploadTicket>>;
}

impl Shared {
    pub(super) async fn sync_local(self: &Arc<Self>, upto: BatchNo) -> Result<()> {
        if upto <= self.order().log.synced() {
            return Ok(());
        }
        let syncing = self.syncing.clone().lock_owned().await;
        // Whoever held the lock before may have done it, or failed.
        let newest = {
            let order = self.order();
            if upto <= order.log.synced() {
                return Ok(());
            }
            order.log.last()
        };
        self.latch.check()?;
        if let Some(staging) = self.staging.get() {
            staging.sync().await.inspect_err(|error| self.latch.close(error))?;
        }
        let shared = self.clone();
        run_blocking(&*self.spawner, "sync log", move || {
            // The guard goes with the work: the caller may give up, and the next one must not overtake.
            let _syncing = syncing;
            let work = shared.order().log.begin_sync();
            work.run().inspect_err(|error| shared.latch.close(error))?;
            // Later batches are in the log too, but what they refer to may not be synced.
            shared.order().log.end_sync(newest);
            Ok(())
        })
        .await
    }
}
