//! What the committer asks of the staging area: to be durable before the log is (rule R3), and which packs that
//! recovered batches name are still on their way.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;

use crate::base::ids::PackId;
use crate::commit::Staging;
use crate::store::Result;
use crate::store::block::{BlockStore, BlockTicket, UploadTicket};

/// See the module.
pub struct StagedUploads {
    blocks: Arc<dyn BlockStore>,
    recovered: HashMap<PackId, UploadTicket>,
}

impl StagedUploads {
    /// For a block store that found the blocks of `recovered` staged when it was opened. A pack that is not among them
    /// has been acknowledged: staged packs go only then.
    #[must_use]
    pub fn new(blocks: Arc<dyn BlockStore>, recovered: &[BlockTicket]) -> Self {
        let packs = recovered
            .iter()
            .filter_map(|ticket| Some((ticket.location.pack()?, ticket.upload.clone())))
            .collect();
        Self { blocks, recovered: packs }
    }
}

#[async_trait]
impl Staging for StagedUploads {
    async fn sync(&self) -> Result<()> {
        self.blocks.sync().await
    }

    fn upload(&self, pack: PackId) -> Result<Option<UploadTicket>> {
        Ok(self.recovered.get(&pack).cloned())
    }
}
