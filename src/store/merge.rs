//! How shared rows change: batches carry deltas, whoever orders the batches makes them absolute (rule R4).

use super::Result;
use super::kv::Table;

/// A change relative to what a shared row holds; only the schema knows how to read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delta {
    pub table: Table,
    pub key: Vec<u8>,
    pub bytes: Vec<u8>,
}

/// What a delta makes of a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merged {
    /// The row's new value, or None to remove it.
    pub value: Option<Vec<u8>>,
    /// Changes of other shared rows that follow from it, in the same batch.
    pub follow: Vec<Delta>,
}

/// Knows the shared rows of a schema. Pure.
pub trait MergeRules: Send + Sync + 'static {
    /// Applies `delta` to the row's current value.
    ///
    /// # Errors
    /// `Internal` for a delta that does not fit the table or would take a count below zero; `Corrupt` for a row that
    /// does not decode.
    fn merge(&self, delta: &Delta, old: Option<&[u8]>) -> Result<Merged>;
}
