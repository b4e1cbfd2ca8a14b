//! The block store of a volume in either layout, and what it may use of this machine.

use std::sync::Arc;

use super::options::Durability;
use super::stores::Objects;
use crate::base::ids::WriterId;
use crate::base::limits::{GIB, MIB, PACK_BYTES_TARGET};
use crate::content::frame::Compression;
use crate::content::framed::{FramedBlockStore, FramedOptions, FramedParts, Pending, RecoveredBlocks};
use crate::content::pack_cache::{PackCache, PackCacheLimits};
use crate::content::single::{SingleBlockStore, SingleParts};
use crate::content::spill::{SpillBudget, SpillLimits};
use crate::rt::{SemaphoreLimit, TokioRuntime};
use crate::store;
use crate::store::block::{BlockIndex, BlockStore};
use crate::store::device::Directory;
use crate::store::superblock::{BlockCodec, Layout, Superblock};

/// Memory for buffers and caches unless `-o memory` says otherwise, in bytes.
const MEMORY_BYTES_DEFAULT: u64 = 256 * MIB;
/// Less than this cannot hold one pack in each of the places that need one.
const MEMORY_BYTES_MIN: u64 = 64 * MIB;
/// Local disk for cached parts of packs, and for what is not in the store yet, in bytes.
const CACHE_BYTES_DEFAULT: u64 = 10 * GIB;
const SPILL_BYTES_DEFAULT: u64 = 16 * GIB;
/// Disk left to others, to the metadata and to the log.
const FREE_BYTES_MIN: u64 = 512 * MIB;

/// How the volume's blocks are laid out.
pub(super) enum Blocks {
    Framed(Arc<FramedBlockStore>),
    Single(Arc<SingleBlockStore>),
}

impl Blocks {
    pub(super) fn store(&self) -> Arc<dyn BlockStore> {
        match self {
            Self::Framed(store) => store.clone(),
            Self::Single(store) => store.clone(),
        }
    }

    pub(super) fn pending(&self) -> Pending {
        match self {
            Self::Framed(store) => store.pending(),
            Self::Single(store) => store.pending(),
        }
    }

    pub(super) async fn recover(&self) -> store::Result<RecoveredBlocks> {
        match self {
            Self::Framed(store) => store.recover().await,
            Self::Single(store) => store.recover().await,
        }
    }

    pub(super) async fn drain(&self) -> store::Result<()> {
        match self {
            Self::Framed(store) => store.drain().await,
            Self::Single(store) => store.drain().await,
        }
    }

    pub(super) async fn shutdown(&self) {
        match self {
            Self::Framed(store) => store.shutdown().await,
            Self::Single(store) => store.shutdown().await,
        }
    }
}

/// How much memory each part may take; together what `-o memory` says.
pub(super) struct Shares {
    pub(super) hot: u64,
    pub(super) blocks: u64,
    /// Sealed packs; the one being filled takes `PACK_BYTES_TARGET` besides.
    pub(super) uploads: u64,
    pub(super) downloads: u64,
    pub(super) encode: u64,
    pub(super) metadata: u64,
}

impl Shares {
    /// `memory` bytes in all; None takes the default.
    pub(super) fn of(memory: Option<u64>) -> Self {
        let memory = memory.unwrap_or(MEMORY_BYTES_DEFAULT).max(MEMORY_BYTES_MIN);
        let fifteenth = (memory - PACK_BYTES_TARGET) / 15;
        Self {
            hot: 4 * fifteenth,
            blocks: 3 * fifteenth,
            uploads: 3 * fifteenth,
            downloads: 2 * fifteenth,
            encode: fifteenth,
            metadata: 2 * fifteenth,
        }
    }
}

/// The budget of local disk for what is not in the store yet.
pub(super) fn spill_budget(
    bytes_max: Option<u64>,
    staged: Arc<dyn Directory>,
    runtime: &TokioRuntime,
) -> SpillBudget {
    let bytes_max = bytes_max.unwrap_or(SPILL_BYTES_DEFAULT);
    SpillBudget::new(SpillLimits { bytes_max, free_bytes_min: FREE_BYTES_MIN }, staged, runtime.clock())
}

/// What a block store of either layout is made of.
pub(super) struct Wiring<'a> {
    pub(super) objects: &'a Objects,
    pub(super) runtime: &'a TokioRuntime,
    pub(super) superblock: &'a Superblock,
    pub(super) shares: &'a Shares,
    pub(super) staged: Arc<dyn Directory>,
    pub(super) fetched: Arc<dyn Directory>,
    /// The store is on the filesystem of the local files.
    pub(super) is_near: bool,
    /// What fsync waits for must not give way to who writes.
    pub(super) durability: Durability,
    /// None takes the default.
    pub(super) cache_bytes: Option<u64>,
    pub(super) index: Arc<dyn BlockIndex>,
    pub(super) spill: SpillBudget,
    pub(super) writer: WriterId,
}

impl Wiring<'_> {
    /// The store, and its cache on disk if the layout has one.
    ///
    /// # Errors
    /// Of the local disk.
    pub(super) fn blocks(self) -> store::Result<(Blocks, Option<Arc<PackCache>>)> {
        let compression = match self.superblock.codec {
            BlockCodec::Zstd => Compression::Zstd,
            BlockCodec::None => Compression::None,
        };
        let uploads = SemaphoreLimit::new(self.shares.uploads);
        let downloads = SemaphoreLimit::new(self.shares.downloads);
        let (clock, spawner) = (self.runtime.clock(), self.runtime.spawner());
        if self.superblock.layout == Layout::Single {
            let parts = SingleParts {
                objects: self.objects.store.clone(),
                staged: self.staged,
                index: self.index,
                clock,
                spawner,
                budget: self.spill,
                compression,
                uploads,
                downloads,
            };
            return Ok((Blocks::Single(Arc::new(SingleBlockStore::new(parts))), None));
        }
        // Where the store is near, a cache would be a second copy of what is at hand already.
        let default = if self.is_near { 0 } else { CACHE_BYTES_DEFAULT };
        let bytes_max = self.cache_bytes.unwrap_or(default);
        let limits = PackCacheLimits { bytes_max, free_bytes_min: FREE_BYTES_MIN };
        // Opened also to keep nothing: an earlier mount may have left something.
        let cache = Arc::new(PackCache::open(self.fetched, self.staged.clone(), limits)?);
        let cache = (0 < bytes_max).then_some(cache);
        let parts = FramedParts {
            objects: self.objects.store.clone(),
            staged: self.staged,
            index: self.index,
            clock,
            spawner,
            budget: self.spill,
            cache: cache.clone(),
            uploads,
            downloads,
        };
        let defaults = FramedOptions::new(self.writer);
        let encode_bytes_max = self.shares.encode;
        let give_way = self.durability == Durability::Local;
        let options = FramedOptions { compression, encode_bytes_max, give_way, ..defaults };
        Ok((Blocks::Framed(Arc::new(FramedBlockStore::new(parts, options))), cache))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_memory_are_what_was_given() {
        let Shares { hot, blocks, uploads, downloads, encode, metadata } = Shares::of(Some(256 * MIB));
        let shared = hot + blocks + uploads + downloads + encode + metadata;
        assert_eq!(shared, 256 * MIB - PACK_BYTES_TARGET);
        assert!(3 * PACK_BYTES_TARGET <= uploads, "packs are read again where they could stay in memory");
        assert!(0 < Shares::of(Some(1)).encode);
    }
}
