//! The key-value port: ordered tables, snapshot reads, atomic commits.

use std::ops::ControlFlow;

use super::Result;

/// A table of the metadata schema; the number is stored (docs/format.md, "Metadata tables").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Table(pub u8);

/// One change of one row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    pub table: Table,
    pub key: Vec<u8>,
    /// The new value, or None to remove the row.
    pub value: Option<Vec<u8>>,
}

/// How far a commit has got when it returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Visible to snapshots taken from now on; a crash may undo it together with all later ones.
    Visible,
    /// Durable, and so is every commit before it.
    Immediate,
}

/// Called for each row of a scan, in key order; `Break` ends it.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>> + 'a;

/// Ordered tables of byte strings. One writer at a time, any number of readers.
pub trait KeyValueStore: Send + Sync + 'static {
    /// A view of all tables as of the newest commit; later commits do not change it. Holding one keeps
    /// the space of replaced rows in use.
    fn snapshot(&self) -> Result<Box<dyn Snapshot>>;

    /// Applies `writes` in order (the last of several to one row wins). Atomic.
    ///
    /// # Errors
    /// After an error of the medium every later call fails: what was written is unknown until it is opened again.
    fn commit(&self, writes: &[Write], durability: Durability) -> Result<()>;
}

/// An unchanging view.
pub trait Snapshot: Send + Sync {
    /// The row's value, if it exists.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Visits rows with `from <= key`, and `key < to` if given, in ascending order of the key's bytes.
    fn scan(&self, table: Table, from: &[u8], to: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<()>;
}
