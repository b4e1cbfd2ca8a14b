//! The committed metadata as the index that block stores ask for places.

use std::sync::{Arc, OnceLock};

use crate::base::hash::{BlockId, Hash};
use crate::commit::Committer;
use crate::store::block::{BlockIndex, BlockLocation, Receipt};
use crate::store::schema::pack::{BlockRow, PackRow};
use crate::store::schema::{BLOCK, PACK, pack_key};
use crate::store::{Error, Kind, Result};

/// See the module. Made before the committer, because the block store needs an index and recovery needs the block
/// store; whoever wires them attaches the committer once it is open.
#[derive(Default)]
pub struct MetadataIndex {
    commit: OnceLock<Arc<Committer>>,
}

impl MetadataIndex {
    /// Answers from `commit` from now on; the first one attached stays.
    pub fn attach(&self, commit: Arc<Committer>) {
        let _first_stays = self.commit.set(commit);
    }
}

impl BlockIndex for MetadataIndex {
    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<(BlockLocation, Receipt)>>> {
        let not_open = || Error::new(Kind::Internal, "locate blocks: the metadata is not open yet");
        let commit = self.commit.get().ok_or_else(not_open)?;
        ids.iter()
            .map(|id| {
                let Some(row) = commit.get(BLOCK, &id.to_key())? else { return Ok(None) };
                let location = BlockRow::decode(&row)?.location;
                let Some(pack) = location.pack() else {
                    let len = u64::from(id.len);
                    return Ok(Some((location, Receipt { len, footer: Hash::ZERO })));
                };
                let row = commit.get(PACK, &pack_key(pack))?.map(|row| PackRow::decode(&row)).transpose()?;
                // Without a receipt the pack is still on its way; the staging area knows it.
                let receipt = row.and_then(|row| row.receipt).unwrap_or(Receipt::UNKNOWN);
                Ok(Some((location, receipt)))
            })
            .collect()
    }
}
