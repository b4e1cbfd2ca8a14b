//! Half-open byte ranges: all offset arithmetic of the product that is more than one addition.

use std::fmt;

/// The bytes `start..end` of a file or an object; empty if `start == end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    pub start: u64,
    pub end: u64,
}

impl ByteRange {
    /// The range `start..end`; `end` below `start` gives the empty range at `start`.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end: end.max(start) }
    }

    /// `len` bytes from `start`, cut where offsets end.
    #[must_use]
    pub fn at(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }

    #[must_use]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes in both; empty if there are none.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let start = self.start.max(other.start);
        Self::new(start, self.end.min(other.end))
    }

    /// True if they share a byte.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }

    #[must_use]
    pub fn contains(&self, offset: u64) -> bool {
        self.start <= offset && offset < self.end
    }

    #[must_use]
    pub fn contains_range(&self, other: &Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}
