//! A seal: the bytes of one file that were staged together, and what is true of the file once they are committed.

use super::extent_map::{Cut, ExtentMap};
use crate::base::range::ByteRange;
use crate::base::time::Timestamp;
use crate::store::block::BlockTicket;

/// Extents one seal has at most: about 180 KiB of a row, far below a batch (rule R17).
pub const SEAL_EXTENTS_MAX: usize = 2048;

/// Where sealed bytes are.
#[derive(Clone, Debug)]
pub enum Sealed {
    Block { ticket: BlockTicket, skip: u32 },
    Unwritten,
}

impl Cut for Sealed {
    fn cut(&self, part: ByteRange) -> Self {
        match self {
            Self::Block { ticket, skip } => {
                let skip = skip + u32::try_from(part.start).expect("a slice lies within one block");
                Self::Block { ticket: ticket.clone(), skip }
            }
            Self::Unwritten => Self::Unwritten,
        }
    }
}

/// The file's new content as of one moment, relative to the seal before it.
#[derive(Clone, Debug)]
pub struct Seal {
    pub number: u64,
    pub extents: ExtentMap<Sealed>,
    /// What earlier seals held here is discarded, and if it has no end the file is no longer than its start. Bytes that
    /// were committed by then were discarded together with this.
    pub cut: Option<ByteRange>,
    /// Size of the file once this seal is published.
    pub size: u64,
    /// Time of the last write it holds.
    pub touched: Timestamp,
}

impl Seal {
    /// Takes off what a later seal discarded. Called in memory when that is committed, and again for what a row says after
    /// a restart.
    pub fn cut_by(&mut self, cut: ByteRange) {
        self.extents.remove(cut);
        if cut.end == u64::MAX {
            self.size = self.size.min(cut.start);
        }
    }
}
