//! Rows of recent batches in memory, each row with its versions, so that a reader sees one moment (rule R16).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::base::ids::BatchNo;
use crate::store::kv::{Table, Write};

/// A row's content, or None for a row that is removed.
pub(super) type Value = Option<Arc<[u8]>>;

/// Bytes a version costs beside key and value: map and list nodes, roughly.
const VERSION_OVERHEAD: usize = 96;

/// A run of consecutive batches. Grows while it is the newest, then is frozen, applied and dropped.
#[derive(Default)]
pub(super) struct Layer {
    rows: RwLock<Rows>,
    bytes: AtomicUsize,
}

#[derive(Default)]
struct Rows {
    tables: BTreeMap<Table, BTreeMap<Vec<u8>, Versions>>,
    last: BatchNo,
}

/// Ascending by batch, never empty.
type Versions = Vec<(BatchNo, Value)>;

impl Layer {
    /// Adds a batch, newer than all before. Readers bounded to earlier batches do not see it.
    pub(super) fn insert(&self, batch: BatchNo, writes: Vec<Write>) {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        debug_assert!(rows.last < batch, "batches come in order");
        rows.last = batch;
        let mut bytes = 0;
        for Write { table, key, value } in writes {
            bytes += VERSION_OVERHEAD + key.len() + value.as_ref().map_or(0, Vec::len);
            let versions = rows.tables.entry(table).or_default().entry(key).or_default();
            versions.push((batch, value.map(Arc::from)));
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What all versions weigh.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The newest batch, or 0 if there is none.
    pub(super) fn last(&self) -> BatchNo {
        self.read().last
    }

    /// The row as of `upto`, or None if no batch of this layer up to then has written it.
    pub(super) fn get(&self, table: Table, key: &[u8], upto: BatchNo) -> Option<Value> {
        self.read().tables.get(&table)?.get(key).and_then(|versions| version(versions, upto)).cloned()
    }

    /// Up to `count` rows as of `upto` with keys in the range, ascending.
    pub(super) fn chunk(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Option<&[u8]>,
        upto: BatchNo,
        count: usize,
    ) -> Vec<(Vec<u8>, Value)> {
        let rows = self.read();
        let Some(rows) = rows.tables.get(&table) else { return Vec::new() };
        rows.range::<[u8], _>((from, to.map_or(Bound::Unbounded, Bound::Excluded)))
            .filter_map(|(key, versions)| Some((key.clone(), version(versions, upto)?.clone())))
            .take(count)
            .collect()
    }

    /// The last version of every row.
    pub(super) fn newest(&self) -> Vec<Write> {
        let rows = self.read();
        let mut writes = Vec::new();
        for (&table, rows) in &rows.tables {
            for (key, versions) in rows {
                let value = versions.last().and_then(|(_, value)| value.as_deref());
                writes.push(Write { table, key: key.clone(), value: value.map(<[u8]>::to_vec) });
            }
        }
        writes
    }

    fn read(&self) -> RwLockReadGuard<'_, Rows> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn version(versions: &Versions, upto: BatchNo) -> Option<&Value> {
    versions.iter().rev().find(|(batch, _)| *batch <= upto).map(|(_, value)| value)
}
