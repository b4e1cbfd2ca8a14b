//! What readers see: layers in memory over a snapshot of the key-value store, merged (rule R16).

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use super::memtable::{Layer, Value};
use crate::base::ids::BatchNo;
use crate::store::Result;
use crate::store::kv::{Snapshot, Table, Visit};

/// Layers and the snapshot below them; replaced as a whole, so that a row is never in neither.
pub(super) struct Layers {
    /// Takes new batches.
    pub(super) active: Arc<Layer>,
    /// Full, oldest first.
    pub(super) frozen: Vec<Arc<Layer>>,
    /// Holds everything before the oldest layer.
    pub(super) base: Arc<dyn Snapshot>,
}

impl Layers {
    pub(super) fn bytes(&self) -> usize {
        self.active.bytes() + self.frozen.iter().map(|layer| layer.bytes()).sum::<usize>()
    }

    fn newest_first(&self) -> impl Iterator<Item = &Arc<Layer>> {
        std::iter::once(&self.active).chain(self.frozen.iter().rev())
    }
}

/// All tables at one moment of the commit order. Cheap to take and to clone; holding one keeps replaced rows in memory
/// and on disk.
#[derive(Clone)]
pub struct View {
    pub(super) layers: Arc<Layers>,
    /// Batches beyond this one are not part of it.
    pub(super) upto: BatchNo,
}

impl Snapshot for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        for layer in self.layers.newest_first() {
            if let Some(value) = layer.get(table, key, self.upto) {
                return Ok(value.map(|bytes| bytes.to_vec()));
            }
        }
        self.layers.base.get(table, key)
    }

    fn scan(&self, table: Table, from: &[u8], to: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        // The range of a map must not be the wrong way round.
        if to.is_some_and(|to| to <= from) {
            return Ok(());
        }
        let cursors = self.layers.newest_first().map(|layer| Cursor::new(layer, table, from, to, self.upto));
        let mut overlay = Overlay { cursors: cursors.collect() };
        let mut ended = false;
        self.layers.base.scan(table, from, to, &mut |key, value| {
            while let Some((newer, newer_value)) = overlay.next_upto(key) {
                let replaces = newer == key;
                if let Some(newer_value) = newer_value
                    && visit(&newer, &newer_value)?.is_break()
                {
                    ended = true;
                    return Ok(ControlFlow::Break(()));
                }
                if replaces {
                    return Ok(ControlFlow::Continue(()));
                }
            }
            let flow = visit(key, value)?;
            ended = flow.is_break();
            Ok(flow)
        })?;
        while !ended && let Some((key, value)) = overlay.next() {
            if let Some(value) = value {
                ended = visit(&key, &value)?.is_break();
            }
        }
        Ok(())
    }
}

/// Rows of all layers in key order, of several with one key the newest.
struct Overlay<'a> {
    /// Newest first.
    cursors: Vec<Cursor<'a>>,
}

impl Overlay<'_> {
    /// The next row if its key is at most `key`.
    fn next_upto(&mut self, key: &[u8]) -> Option<(Vec<u8>, Value)> {
        if self.least()?.as_slice() <= key { self.next() } else { None }
    }

    fn next(&mut self) -> Option<(Vec<u8>, Value)> {
        let least = self.least()?.clone();
        let mut newest = None;
        for cursor in &mut self.cursors {
            if cursor.head().is_some_and(|(key, _)| *key == least) {
                let (_, value) = cursor.pop()?;
                newest.get_or_insert(value);
            }
        }
        newest.map(|value| (least, value))
    }

    fn least(&mut self) -> Option<&Vec<u8>> {
        self.cursors.iter_mut().filter_map(|cursor| cursor.head().map(|(key, _)| key)).min()
    }
}

/// Reads one layer a few rows at a time, so that no lock is held while a visitor runs.
struct Cursor<'a> {
    layer: &'a Layer,
    table: Table,
    to: Option<&'a [u8]>,
    upto: BatchNo,
    /// Rows read, the next one last.
    rows: Vec<(Vec<u8>, Value)>,
    /// Where to read on, or None at the end.
    rest: Option<Bound<Vec<u8>>>,
}

const CURSOR_ROWS: usize = 64;

impl<'a> Cursor<'a> {
    fn new(layer: &'a Layer, table: Table, from: &[u8], to: Option<&'a [u8]>, upto: BatchNo) -> Self {
        let rest = Some(Bound::Included(from.to_vec()));
        Self { layer, table, to, upto, rows: Vec::new(), rest }
    }

    fn head(&mut self) -> Option<&(Vec<u8>, Value)> {
        if self.rows.is_empty()
            && let Some(from) = self.rest.take()
        {
            let from = from.as_ref().map(Vec::as_slice);
            self.rows = self.layer.chunk(self.table, from, self.to, self.upto, CURSOR_ROWS);
            if self.rows.len() == CURSOR_ROWS {
                self.rest = self.rows.last().map(|(key, _)| Bound::Excluded(key.clone()));
            }
            self.rows.reverse();
        }
        self.rows.last()
    }

    fn pop(&mut self) -> Option<(Vec<u8>, Value)> {
        self.head()?;
        self.rows.pop()
    }
}
