//! Taking checkpoints: all rows as of an acknowledged record, so that a mount need not read the journal from its
//! beginning (rule R6).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;
use tracing::{info, warn};

use super::checkpoint_format::{PartRef, PartRows, Root};
use super::committer::{Committer, Remote, Shared};
use super::system::JournalRow;
use crate::base::hash::Hash;
use crate::base::ids::Seq;
use crate::rt::run_blocking;
use crate::store::kv::{Durability, Snapshot, Table};
use crate::store::object::ObjectKey;
use crate::store::schema::LOCAL_FIRST;
use crate::store::{Error, Kind, Result, keys};

/// Bytes of rows in one part: what a reader holds at once, and repeats after a lost connection.
const PART_BYTES: usize = 4 << 20;

/// A part, and where the next one begins.
struct Part {
    first: (Table, Vec<u8>),
    bytes: Bytes,
    rows: BTreeMap<Table, u64>,
    next: Option<(Table, Vec<u8>)>,
}

impl Committer {
    /// Writes a checkpoint of everything submitted so far, once it is in the journal. The journal task does so by
    /// itself when enough records have come since the last.
    ///
    /// # Errors
    /// `Internal` without a bucket to write to; as [`flush`](Self::flush); of the store.
    pub async fn checkpoint(&self) -> Result<Seq> {
        let turn = self.shared.checkpointing.clone().lock_owned().await;
        self.shared.checkpoint(turn).await
    }
}

impl Shared {
    /// Takes a checkpoint in the background, if none is on its way.
    pub(super) fn checkpoint_behind(self: &Arc<Self>) {
        let Ok(turn) = self.checkpointing.clone().try_lock_owned() else { return };
        let shared = self.clone();
        self.spawn("checkpoint", async move {
            let mut stopping = shared.stopping.subscribe();
            let outcome = tokio::select! {
                outcome = shared.checkpoint(turn) => outcome,
                // Without its root it is nothing; the next mount takes another.
                _ = stopping.wait_for(|stop| *stop) => return,
            };
            match outcome {
                Ok(seq) => info!(seq = seq.0, "checkpoint written"),
                Err(error) => warn!(%error, "checkpoint failed; the journal is still complete"),
            }
        });
    }

    /// One at a time: `_turn` is held until it is done.
    async fn checkpoint(self: &Arc<Self>, _turn: OwnedMutexGuard<()>) -> Result<Seq> {
        let no_bucket = || Error::new(Kind::Internal, "checkpoint: there is no bucket to write to");
        let remote = self.remote.as_ref().ok_or_else(no_bucket)?;
        let shared = self.clone();
        let snapshot = run_blocking(&*self.spawner, "freeze", move || shared.snapshot_at_boundary()).await?;
        let row = self.boundary().await?;
        let root = self.write_parts(remote, snapshot, &row).await?;
        create(remote, &keys::checkpoint_root(row.head.seq), root.encode().into()).await?;
        self.order().requests.checkpointed = Some((row.tail_records, row.tail_bytes));
        Ok(row.head.seq)
    }

    /// Everything submitted so far and nothing else, and the wish that a journal record end there.
    fn snapshot_at_boundary(&self) -> Result<Arc<dyn Snapshot>> {
        let mut applying = self.applying();
        let upto = {
            let mut order = self.order();
            self.freeze(&mut order);
            let upto = order.log.last();
            let all_sent = order.backlog.batches == 0;
            order.requests.boundary = all_sent.then(|| self.head.borrow().clone());
            order.requests.cut_at = (!all_sent).then_some(upto);
            upto
        };
        self.apply(&mut applying, upto, Durability::Visible)?;
        Ok(Arc::from(self.kv.snapshot()?))
    }

    /// Waits until the bucket has acknowledged what the snapshot holds.
    async fn boundary(&self) -> Result<JournalRow> {
        let mut journaled = self.journaled.subscribe();
        let mut stopping = self.stopping.subscribe();
        self.wake_journal.notify_one();
        loop {
            journaled.mark_unchanged();
            if let Some(row) = self.order().requests.boundary.take() {
                return Ok(row);
            }
            self.fenced.check()?;
            self.latch.check()?;
            if *stopping.borrow() {
                return Err(Error::new(Kind::Unavailable, "checkpoint: the volume is being unmounted"));
            }
            tokio::select! {
                _ = journaled.changed() => {}
                _ = stopping.changed() => {}
            }
        }
    }

    async fn write_parts(
        &self,
        remote: &Remote,
        snapshot: Arc<dyn Snapshot>,
        row: &JournalRow,
    ) -> Result<Root> {
        let (mut parts, mut rows) = (Vec::new(), BTreeMap::new());
        let mut from = Some((Table(0), Vec::new()));
        while let Some(begin) = from {
            let snapshot = snapshot.clone();
            let part = run_blocking(&*self.spawner, "checkpoint part", move || read_part(&*snapshot, begin));
            let Some(part) = part.await? else { break };
            let (hash, len) = (Hash::of(&part.bytes), part.bytes.len() as u64);
            create(remote, &keys::checkpoint_part(row.head.seq, hash), part.bytes).await?;
            parts.push(PartRef { first: part.first, hash, len });
            for (table, count) in part.rows {
                *rows.entry(table).or_insert(0) += count;
            }
            from = part.next;
        }
        let rows = rows.into_iter().collect();
        Ok(Root { volume: remote.volume, head: row.head, batch: row.batch, rows, parts })
    }
}

/// Creates an object whose name says what it holds: one that exists is the one.
async fn create(remote: &Remote, key: &ObjectKey, body: Bytes) -> Result<()> {
    match remote.objects.put_new(key, body).await {
        Err(error) if error.kind != Kind::Precondition => Err(error),
        _ => Ok(()),
    }
}

/// The next rows from `(table, key)` on, over as many tables as fit; None if there are none.
fn read_part(snapshot: &dyn Snapshot, from: (Table, Vec<u8>)) -> Result<Option<Part>> {
    let (mut table, mut key) = from;
    let (mut body, mut first, mut rows) = (PartRows::default(), None, BTreeMap::new());
    let mut next = None;
    while table.0 < LOCAL_FIRST && next.is_none() {
        snapshot.scan(table, &key, None, &mut |key, value| {
            if PART_BYTES <= body.bytes() {
                next = Some((table, key.to_vec()));
                return Ok(ControlFlow::Break(()));
            }
            first.get_or_insert_with(|| (table, key.to_vec()));
            *rows.entry(table).or_insert(0) += 1;
            body.add(table, key, value);
            Ok(ControlFlow::Continue(()))
        })?;
        table.0 += 1;
        key.clear();
    }
    Ok(first.map(|first| Part { first, bytes: body.encode().into(), rows, next }))
}
