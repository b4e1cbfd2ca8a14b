//! A key-value store in memory: the model that the durable one is compared with.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, PoisonError, RwLock};

use crate::store::Result;
use crate::store::kv::{Durability, KeyValueStore, Snapshot, Table, Visit, Write};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Ordered maps behind a lock. A commit while a snapshot is held copies the tables it touches.
#[derive(Default)]
pub struct MemoryKv {
    tables: RwLock<BTreeMap<Table, Arc<Rows>>>,
}

impl MemoryKv {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl KeyValueStore for MemoryKv {
    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Box::new(MemorySnapshot { tables: tables.clone() }))
    }

    fn commit(&self, writes: &[Write], _durability: Durability) -> Result<()> {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        for write in writes {
            let rows = Arc::make_mut(tables.entry(write.table).or_default());
            match &write.value {
                Some(value) => rows.insert(write.key.clone(), value.clone()),
                None => rows.remove(&write.key),
            };
        }
        Ok(())
    }
}

struct MemorySnapshot {
    tables: BTreeMap<Table, Arc<Rows>>,
}

impl Snapshot for MemorySnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.tables.get(&table).and_then(|rows| rows.get(key)).cloned())
    }

    fn scan(&self, table: Table, from: &[u8], to: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        // A BTreeMap panics on bounds that are the wrong way round.
        if to.is_some_and(|to| to <= from) {
            return Ok(());
        }
        let Some(rows) = self.tables.get(&table) else { return Ok(()) };
        let range = (Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded));
        for (key, value) in rows.range::<[u8], _>(range) {
            if let ControlFlow::Break(()) = visit(key, value)? {
                break;
            }
        }
        Ok(())
    }
}
