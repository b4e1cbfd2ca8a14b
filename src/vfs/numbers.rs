//! Numbers that are never used twice: taken in ranges, each logged before its first number is given out (rule R13).

use std::ops::Range;
use std::sync::Mutex;

use crate::base::sync::lock;
use crate::commit::{Batch, Committer};
use crate::store::Result;
use crate::store::schema::merge::count;
use crate::store::schema::{COUNTER, Counter};

/// Numbers taken at once: a crash skips the rest of a range, a batch pays for one.
const RANGE: u64 = 4096;

/// Gives out numbers of one counter.
pub(super) struct NumberRange {
    counter: Counter,
    first: u64,
    left: Mutex<Range<u64>>,
}

impl NumberRange {
    /// Numbers from `first` on, those of `counter`'s row left out.
    pub(super) fn new(counter: Counter, first: u64) -> Self {
        Self { counter, first, left: Mutex::new(0..0) }
    }

    /// The next number.
    ///
    /// # Errors
    /// Of the metadata.
    pub(super) fn next(&self, commit: &Committer) -> Result<u64> {
        let mut left = lock(&self.left);
        if let Some(number) = left.next() {
            return Ok(number);
        }
        let taken = match commit.get(COUNTER, &self.counter.key())? {
            Some(row) => crate::base::codec::Reader::new("counter", &row).i64()?.cast_unsigned(),
            None => 0,
        };
        let mut batch = Batch::default();
        batch.delta(count(self.counter, RANGE.cast_signed()));
        let _ticket = commit.submit(batch)?;
        *left = self.first + taken..self.first + taken + RANGE;
        Ok(left.next().expect("a fresh range is not empty"))
    }
}
