//! Rows of blocks and packs: where stored bytes are, and how many still need them.

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::hash::Hash;
use crate::base::ids::{PackId, WriterId};
use crate::store::block::{BlockLocation, Receipt};

/// A block that some segment names, or named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRow {
    pub location: BlockLocation,
    /// Segments that name it, each counted once per slice. At 0 the row stays: the block can be found again until its
    /// pack is condemned.
    pub refs: u32,
}

impl BlockRow {
    /// Bytes it takes in the store.
    #[must_use]
    pub fn stored_len(&self, plain_len: u32) -> u64 {
        match self.location {
            BlockLocation::Frame { len, .. } => u64::from(len),
            BlockLocation::Object => u64::from(plain_len),
        }
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        encode_location(&mut w, &self.location);
        w.u32(self.refs);
        w.buf
    }

    /// # Errors
    /// If `bytes` are not what [`Self::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new("block row", bytes);
        let row = Self { location: decode_location(&mut r)?, refs: r.u32()? };
        r.finish()?;
        Ok(row)
    }
}

/// Writes a location: kind (0 object, 1 frame), then the frame's pack, offset and length.
pub fn encode_location(w: &mut Writer, location: &BlockLocation) {
    match *location {
        BlockLocation::Object => w.u8(0),
        BlockLocation::Frame { pack, offset, len } => {
            w.u8(1).u128(pack.writer.0).u64(pack.number).u32(offset).u32(len)
        }
    };
}

/// Reads what [`encode_location`] wrote.
///
/// # Errors
/// If the bytes are something else.
pub fn decode_location(r: &mut Reader<'_>) -> Result<BlockLocation, DecodeError> {
    match r.u8()? {
        0 => Ok(BlockLocation::Object),
        1 => {
            let pack = PackId { writer: WriterId(r.u128()?), number: r.u64()? };
            Ok(BlockLocation::Frame { pack, offset: r.u32()?, len: r.u32()? })
        }
        _ => Err(r.malformed()),
    }
}

/// A pack that some block row names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackRow {
    /// Bytes of frames that some segment names. Nominates for compaction; never a proof that nothing needs the pack.
    pub live_bytes: u64,
    /// What the store acknowledged; None while the only rows that name it travel ahead of it (rule R1).
    pub receipt: Option<Receipt>,
}

impl PackRow {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        let receipt = self.receipt.unwrap_or(Receipt { len: 0, footer: Hash::ZERO });
        w.u64(self.live_bytes).u64(receipt.len).bytes(&receipt.footer.0);
        w.buf
    }

    /// # Errors
    /// If `bytes` are not what [`Self::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new("pack row", bytes);
        let live_bytes = r.u64()?;
        let receipt = Receipt { len: r.u64()?, footer: Hash(r.array()?) };
        r.finish()?;
        // No pack is empty: the footer alone has 64 bytes.
        Ok(Self { live_bytes, receipt: (receipt.len != 0).then_some(receipt) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_back() {
        let pack = PackId { writer: WriterId(u128::MAX), number: 3 };
        for location in [BlockLocation::Object, BlockLocation::Frame { pack, offset: 1, len: 2 }] {
            let row = BlockRow { location, refs: 9 };
            assert_eq!(BlockRow::decode(&row.encode()), Ok(row));
        }
        for receipt in [None, Some(Receipt { len: 70, footer: Hash::of(b"x") })] {
            let row = PackRow { live_bytes: 5, receipt };
            assert_eq!(PackRow::decode(&row.encode()), Ok(row));
        }
        assert!(BlockRow::decode(&[2]).is_err());
    }
}
