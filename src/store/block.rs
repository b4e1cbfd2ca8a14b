//! The content-addressed port: blocks named by what they hold, staged at once, acknowledged when the store has them.

use std::fmt;
use std::ops::ControlFlow;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{Error, Kind, Result};
use crate::base::hash::{BlockId, Hash};
use crate::base::ids::PackId;

/// A block on its way into a store. The id is trusted: whoever cut the data has hashed it.
#[derive(Clone, Debug)]
pub struct Block {
    pub id: BlockId,
    pub data: Bytes,
}

/// Where a block's stored form is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BlockLocation {
    /// A frame of a pack: `len` stored bytes (header and payload) from `offset`.
    Frame { pack: PackId, offset: u32, len: u32 },
    /// An object of its own (layout Single); the name follows from the id.
    Object,
}

impl BlockLocation {
    /// The pack, if it is in one.
    #[must_use]
    pub fn pack(&self) -> Option<PackId> {
        match *self {
            Self::Frame { pack, .. } => Some(pack),
            Self::Object => None,
        }
    }
}

/// What the store has acknowledged: the proof a manifest needs before it may name a block (invariant I1).
/// Only stores and recovery make one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// The pack's length in bytes, or the object's.
    pub len: u64,
    /// Hash of the pack's directory and footer (ZERO for an object of its own).
    pub footer: Hash,
}

impl Receipt {
    /// Of a pack that the store has acknowledged to a writer that did not live to note what it had sent.
    pub const UNKNOWN: Self = Self { len: 0, footer: Hash::ZERO };
}

/// Waits for the upload of a pack or object. Cheap to clone; holding one keeps the staged bytes readable.
#[derive(Clone)]
pub struct UploadTicket {
    state: watch::Receiver<Option<Receipt>>,
}

/// The store's side of an [`UploadTicket`].
pub struct UploadPromise(watch::Sender<Option<Receipt>>);

impl UploadTicket {
    /// A ticket and what fulfils it.
    #[must_use]
    pub fn pending() -> (UploadPromise, Self) {
        let (sender, state) = watch::channel(None);
        (UploadPromise(sender), Self { state })
    }

    /// A ticket for what the store has already.
    #[must_use]
    pub fn fulfilled(receipt: Receipt) -> Self {
        Self { state: watch::channel(Some(receipt)).1 }
    }

    /// The receipt, if the store has acknowledged.
    #[must_use]
    pub fn receipt(&self) -> Option<Receipt> {
        *self.state.borrow()
    }

    /// Waits until the store has acknowledged, however long that takes: uploads are repeated until they succeed.
    ///
    /// # Errors
    /// `Unavailable` if the store shuts down first; the staged bytes are kept and sent by the next mount.
    pub async fn acknowledged(&self) -> Result<Receipt> {
        let mut state = self.state.clone();
        let receipt = state.wait_for(Option::is_some).await;
        let gone = || Error::new(Kind::Unavailable, "upload: the block store has shut down");
        receipt.ok().and_then(|receipt| *receipt).ok_or_else(gone)
    }
}

impl UploadPromise {
    /// Another ticket for the same upload.
    #[must_use]
    pub fn ticket(&self) -> UploadTicket {
        UploadTicket { state: self.0.subscribe() }
    }

    /// True while somebody has a ticket.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.receiver_count() != 0
    }

    /// Waits until nobody has a ticket. New ones may be made meanwhile: ask [`Self::is_held`] under the lock that makes
    /// them.
    pub async fn released(&self) {
        self.0.closed().await;
    }

    /// Wakes all who wait.
    pub fn fulfil(&self, receipt: Receipt) {
        self.0.send_replace(Some(receipt));
    }

    /// The receipt, once fulfilled.
    #[must_use]
    pub fn receipt(&self) -> Option<Receipt> {
        *self.0.borrow()
    }
}

impl fmt::Debug for UploadTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UploadTicket({:?})", self.receipt())
    }
}

/// A stored or staged block: readable now, durable once `upload` is acknowledged.
#[derive(Clone, Debug)]
pub struct BlockTicket {
    pub id: BlockId,
    pub location: BlockLocation,
    pub upload: UploadTicket,
}

/// Finds committed blocks; implemented by whoever owns the metadata.
pub trait BlockIndex: Send + Sync + 'static {
    /// Where each block is, or None for one that no committed manifest names, or whose pack is condemned.
    ///
    /// # Errors
    /// Of the metadata; an error is never absence.
    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<(BlockLocation, Receipt)>>>;
}

/// A content-addressed store of blocks.
#[async_trait]
pub trait BlockStore: Send + Sync + 'static {
    /// Stages blocks: when it returns, `get_many` answers them and they survive the death of this process. A block that
    /// is already staged or stored is not stored again. Idempotent. Tickets are in the order of `blocks`.
    ///
    /// # Errors
    /// `Full` if the local disk has no room; some of the blocks may then be staged.
    async fn put_many(&self, blocks: Vec<Block>) -> Result<Vec<BlockTicket>>;

    /// Makes everything staged so far durable on the local disk.
    async fn sync(&self) -> Result<()>;

    /// Sends what is staged on its way without waiting for more to fill its pack. Their tickets tell when it has arrived.
    async fn seal(&self) -> Result<()>;

    /// The blocks' bytes, verified against their names, in the order asked for (an id may repeat).
    ///
    /// # Errors
    /// `NotFound` naming the block if nothing knows it or its object is gone; `Corrupt` naming block and object if the
    /// stored bytes are not the block. Never other bytes.
    async fn get_many(&self, ids: &[BlockId]) -> Result<Vec<Bytes>>;

    /// For each id a ticket if the block is stored or staged: what deduplication asks.
    async fn contains_many(&self, ids: &[BlockId]) -> Result<Vec<Option<BlockTicket>>>;

    /// Reads the block from the store itself, past every cache, and checks it.
    ///
    /// # Errors
    /// As `get_many`.
    async fn verify(&self, id: BlockId) -> Result<()>;

    /// Visits every block found in the store (not what is only staged), in no order.
    ///
    /// # Errors
    /// `Corrupt` for an object whose directory cannot be read.
    async fn list(
        &self,
        visit: &mut (dyn FnMut(BlockId, BlockLocation) -> ControlFlow<()> + Send),
    ) -> Result<()>;

    /// Deletes objects that hold only the given blocks or none; a block whose pack holds others is left in place and
    /// reported as not deleted. Missing is success.
    async fn delete(&self, ids: &[BlockId]) -> Result<Vec<BlockId>>;
}
