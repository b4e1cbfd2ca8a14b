//! Which bytes of something are there: parts of a cached pack, of an upload to be resumed.

use super::Result;
use crate::base::range::ByteRange;
use crate::base::range_set::RangeSet;

/// What is known of a subject.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tracked {
    pub generation: u64,
    /// The bytes that are there; empty means none of them, which is not the same as unknown.
    pub ranges: RangeSet,
}

/// A set of bytes per subject. A subject is any byte string of up to 65,535 bytes and has a generation, a number that
/// its owner raises when the content becomes another one, so that whoever still works for the old one cannot mark
/// bytes of the new. Every change is atomic; a crash may undo the newest ones, never one before another.
pub trait RangeTracker: Send + Sync + 'static {
    /// Makes the subject known at `generation`, with none of its bytes there. Changes nothing if that is its
    /// generation already; drops what an older one had.
    ///
    /// # Errors
    /// `Precondition` if a newer generation is known.
    fn begin(&self, subject: &[u8], generation: u64) -> Result<()>;

    /// Notes that the bytes of `range` are there. Idempotent.
    ///
    /// # Errors
    /// `NotFound` if the subject is unknown, `Precondition` if it has another generation.
    fn insert(&self, subject: &[u8], generation: u64, range: ByteRange) -> Result<()>;

    /// Notes that the bytes of `range` are not there. Idempotent; errors as for [`insert`](Self::insert).
    fn remove(&self, subject: &[u8], generation: u64, range: ByteRange) -> Result<()>;

    /// All that is known of the subject, None if nothing is.
    ///
    /// # Errors
    /// `Corrupt` if what was stored does not read back: it is never answered with less than was there.
    fn get(&self, subject: &[u8]) -> Result<Option<Tracked>>;

    /// The parts of `window` that are not there, ascending; None if the subject is unknown. Errors as for
    /// [`get`](Self::get).
    fn gaps(&self, subject: &[u8], window: ByteRange) -> Result<Option<Vec<ByteRange>>>;

    /// Makes the subject unknown. Idempotent.
    fn forget(&self, subject: &[u8]) -> Result<()>;

    /// All known subjects, in no order.
    fn subjects(&self) -> Result<Vec<Vec<u8>>>;
}
