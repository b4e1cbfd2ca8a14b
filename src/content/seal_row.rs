//! How a seal is kept on this machine until it is published (table `OVERLAY`; never leaves the machine).

use super::extent_map::ExtentMap;
use super::seal::{Seal, Sealed};
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::hash::{BlockId, Hash};
use crate::base::range::ByteRange;
use crate::base::time::Timestamp;
use crate::store::block::{BlockLocation, BlockTicket, UploadTicket};
use crate::store::schema::pack::{decode_location, encode_location};

const VERSION: u8 = 1;

/// What a range of the row is.
const UNWRITTEN: u8 = 0;
const BLOCK: u8 = 1;
const CUT: u8 = 2;

impl Seal {
    /// The row's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(VERSION).u64(self.number).u64(self.size).i64(self.touched.secs).u32(self.touched.nanos);
        if let Some(cut) = self.cut {
            w.u64(cut.start).u64(cut.len()).u8(CUT);
        }
        for (range, sealed) in self.extents.iter() {
            w.u64(range.start).u64(range.len());
            match sealed {
                Sealed::Unwritten => {
                    w.u8(UNWRITTEN);
                }
                Sealed::Block { ticket, skip } => {
                    w.u8(BLOCK).bytes(&ticket.id.hash.0).u32(ticket.id.len).u32(*skip);
                    encode_location(&mut w, &ticket.location);
                }
            }
        }
        w.buf
    }

    /// Reads what [`Self::encode`] wrote; `upload` knows what became of a block's upload since.
    ///
    /// # Errors
    /// If the bytes are something else.
    pub fn decode(
        bytes: &[u8],
        upload: &mut dyn FnMut(BlockId, &BlockLocation) -> UploadTicket,
    ) -> Result<Self, DecodeError> {
        let mut r = Reader::new("overlay row", bytes);
        if r.u8()? != VERSION {
            return Err(r.malformed());
        }
        let (number, size) = (r.u64()?, r.u64()?);
        let touched = Timestamp { secs: r.i64()?, nanos: r.u32()? };
        let mut extents = ExtentMap::default();
        let mut cut = None;
        while r.remaining() > 0 {
            let (start, len) = (r.u64()?, r.u64()?);
            let range = ByteRange::at(start, len);
            if range.is_empty() || range.len() != len {
                return Err(r.malformed());
            }
            let sealed = match r.u8()? {
                UNWRITTEN => Sealed::Unwritten,
                CUT => {
                    cut = Some(range);
                    continue;
                }
                BLOCK => {
                    let id = BlockId { hash: Hash(r.array()?), len: r.u32()? };
                    let skip = r.u32()?;
                    let location = decode_location(&mut r)?;
                    if u64::from(id.len) < u64::from(skip).saturating_add(len) {
                        return Err(r.malformed());
                    }
                    let upload = upload(id, &location);
                    Sealed::Block { ticket: BlockTicket { id, location, upload }, skip }
                }
                _ => return Err(r.malformed()),
            };
            extents.insert(range, sealed);
        }
        Ok(Self { number, extents, cut, size, touched })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::block::Receipt;

    #[test]
    fn seals_read_back() {
        let upload = UploadTicket::fulfilled(Receipt { len: 1, footer: Hash::ZERO });
        let ticket = BlockTicket { id: BlockId::of(b"0123456789"), location: BlockLocation::Object, upload };
        let mut extents = ExtentMap::default();
        extents.insert(ByteRange::new(5, 12), Sealed::Block { ticket: ticket.clone(), skip: 3 });
        extents.insert(ByteRange::new(20, 30), Sealed::Unwritten);
        let touched = Timestamp { secs: -1, nanos: 5 };
        let cut = Some(ByteRange::new(40, u64::MAX));
        let seal = Seal { number: 4, extents, cut, size: 40, touched };
        let bytes = seal.encode();
        let read = Seal::decode(&bytes, &mut |_, _| ticket.upload.clone()).expect("decodes");
        assert_eq!((read.number, read.cut, read.size, read.touched), (4, cut, 40, touched));
        assert_eq!(read.encode(), bytes);
        let long = Seal::decode(&bytes[..bytes.len() - 1], &mut |_, _| ticket.upload.clone());
        assert!(long.is_err(), "a torn row is refused");
    }
}
