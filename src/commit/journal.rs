//! The journal task: cuts records from the log, sends them one at a time, and recognises a fence (rules R1, R9).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tracing::{info, warn};

use super::batch::Batch;
use super::committer::{Bucket, Order, Shared};
use super::log::{LogTail, TailBatch};
use super::record::{Coalesced, EncodedRecord, RecordHeader, decode_record, encode_record};
use super::system::{Head, Holder, JournalRow};
use crate::base::ids::{BatchNo, Seq, VolumeId};
use crate::rt::run_blocking;
use crate::store::block::UploadTicket;
use crate::store::keys::RecordName;
use crate::store::object::ImmutableObjectStore;
use crate::store::{Error, Kind, Result, keys};

/// The journal of a volume as its holder has it.
pub(crate) struct Journal {
    pub(crate) objects: Arc<dyn ImmutableObjectStore>,
    pub(crate) volume: VolumeId,
    /// This mount, as the fence wrote it.
    pub(crate) holder: Holder,
    /// The store does not create atomically: records have names of this writer's own, and whether another has taken the
    /// volume is seen by listing.
    pub(crate) own_names: bool,
    pub(crate) row: JournalRow,
}

impl Journal {
    /// Puts the record. Under a name of its own that excludes nobody: it counts only if no fence of a later epoch is there
    /// when it is. Whoever fences looks for records once more after that, so one of the two sees the other.
    async fn put(&self, record: &EncodedRecord) -> Result<()> {
        let Self { objects, volume, holder, own_names, .. } = self;
        let Head { seq, epoch, .. } = record.head;
        let own = own_names.then_some((epoch, holder.writer));
        put_record(&**objects, *volume, RecordName { seq, own }, record).await?;
        if !own_names {
            return Ok(());
        }
        let taken = |name: &RecordName| name.own.is_none_or(|(other, _)| epoch < other);
        match list_records(&**objects, seq).await?.into_iter().find(taken) {
            None => Ok(()),
            Some(by) => {
                let text = format!("{} was taken by {}", keys::journal(seq), keys::journal_record(by));
                Err(Error::new(Kind::Fenced, text))
            }
        }
    }
}

/// What callers and the task tell each other; guarded by the lock of the order.
#[derive(Default)]
pub(super) struct JournalRequests {
    /// Somebody waits for batches up to this one.
    flush_upto: BatchNo,
    /// A record must end here: a checkpoint is taken at this place.
    pub(super) cut_at: Option<BatchNo>,
    /// The journal as it was when everything up to `cut_at` was acknowledged.
    pub(super) boundary: Option<JournalRow>,
    /// Records and bytes that a checkpoint has just made unnecessary to read.
    pub(super) checkpointed: Option<(u64, u64)>,
    /// Packs that a logged batch waits for, as its submitter handed them over.
    pub(super) needs: BTreeMap<BatchNo, Vec<UploadTicket>>,
}

/// First and longest pause before a failed PUT is repeated; the store below has its own, shorter ones.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The rows of one record, collected.
struct Cut {
    rows: Coalesced,
    first: BatchNo,
    last: BatchNo,
    batches: u64,
    bytes: u64,
}

/// What ends the task besides its work being done.
enum End {
    Stopped,
    /// Some latch is closed and has said why.
    Refused,
}

pub(super) struct JournalTask {
    pub(super) shared: Arc<Shared>,
    pub(super) journal: Journal,
    pub(super) tail: LogTail,
    pub(super) stopping: watch::Receiver<bool>,
}

impl JournalTask {
    pub(super) async fn run(mut self) {
        loop {
            let outcome = match self.wait().await {
                Ok(()) => self.send_next().await,
                Err(end) => Err(end),
            };
            if outcome.is_err() {
                // Wakes whoever waits for a flush that will not come.
                self.shared.journaled.send_modify(|_| {});
                return;
            }
        }
    }

    /// Waits until a record is due: enough bytes, old enough, or asked for.
    async fn wait(&mut self) -> std::result::Result<(), End> {
        loop {
            if *self.stopping.borrow() {
                return Err(End::Stopped);
            }
            let now = self.shared.clock.monotonic();
            let due = self.due();
            if due.is_some_and(|due| due <= now) {
                return Ok(());
            }
            let timer = async {
                match due {
                    Some(due) => self.shared.clock.sleep(due - now).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = timer => {}
                () = self.shared.wake_journal.notified() => {}
                _ = self.stopping.changed() => {}
            }
        }
    }

    fn due(&self) -> Option<Duration> {
        let order = self.shared.order();
        let next = self.tail.next();
        let (backlog, requests) = (&order.backlog, &order.requests);
        if backlog.last < next {
            return None;
        }
        let asked = next <= requests.flush_upto || requests.cut_at.is_some_and(|cut| next <= cut);
        if asked || self.shared.limits.record_bytes as u64 <= backlog.bytes {
            return Some(Duration::ZERO);
        }
        backlog.since.front().map(|&(_, since)| since + self.shared.limits.record_age)
    }

    async fn send_next(&mut self) -> std::result::Result<(), End> {
        let cut = self.collect().await?;
        let Some(cut) = cut else { return Ok(()) };
        if !cut.rows.is_empty() {
            // The bucket never knows more than this disk: else a power cut would leave batches that are in the bucket
            // and not here, and numbers given twice.
            self.shared.sync_local(cut.last).await.map_err(|_| End::Refused)?;
            let writes = cut.rows.into_writes();
            let header = self.header(cut.first, cut.last);
            let encode = move || encode_record(&header, &writes);
            let record = run_blocking(&*self.shared.spawner, "encode journal record", encode).await;
            let head = record.head;
            let len = record.bytes.len() as u64;
            self.send(record).await?;
            self.journal.row.head = head;
            self.journal.row.tail_records += 1;
            self.journal.row.tail_bytes += len;
        }
        self.acknowledge(cut.last, cut.batches, cut.bytes).await;
        Ok(())
    }

    /// Reads batches for one record. None if what is next waits for an upload and there is nothing before it to send.
    async fn collect(&mut self) -> std::result::Result<Option<Cut>, End> {
        let first = self.tail.next();
        let mut cut = Cut { rows: Coalesced::default(), first, last: BatchNo(0), batches: 0, bytes: 0 };
        loop {
            let (read, end) = {
                let order = self.shared.order();
                let end = order.requests.cut_at.filter(|cut| self.tail.next() <= *cut);
                (self.tail.plan(&order.log), end)
            };
            let Some(read) = read else { break };
            let read = run_blocking(&*self.shared.spawner, "read log", move || read.run()).await;
            let batches = read.map_err(|error| {
                self.shared.latch.close(&error);
                End::Refused
            })?;
            for batch in batches {
                if self.must_stop_before(&batch, &cut, end).await? {
                    return Ok((cut.first <= cut.last).then_some(cut));
                }
                self.tail.advance(&batch);
                cut.last = batch.batch;
                if cut.rows.add(batch.logged) {
                    cut.batches += 1;
                    cut.bytes += batch.bytes as u64;
                }
            }
        }
        Ok((cut.first <= cut.last).then_some(cut))
    }

    /// True if the record has to end before `batch`: it is full, a checkpoint wants its end here, or the batch names a
    /// pack that is still on its way. If nothing comes before such a batch, waits for the pack instead.
    async fn must_stop_before(
        &mut self,
        batch: &TailBatch,
        cut: &Cut,
        end: Option<BatchNo>,
    ) -> std::result::Result<bool, End> {
        let begun = !cut.rows.is_empty();
        let full = self.shared.limits.record_bytes as u64 <= cut.bytes;
        if (begun && full) || end.is_some_and(|end| end < batch.batch) {
            return Ok(true);
        }
        for ticket in self.uploads(batch)? {
            if ticket.receipt().is_some() {
                continue;
            }
            if begun {
                return Ok(true);
            }
            tokio::select! {
                acknowledged = ticket.acknowledged() => acknowledged.map_err(|error| {
                    self.shared.fenced.close(&error);
                    End::Refused
                })?,
                _ = self.stopping.wait_for(|stop| *stop) => return Err(End::Stopped),
            };
        }
        self.shared.order().requests.needs.remove(&batch.batch);
        Ok(false)
    }

    /// The uploads a batch waits for: as submitted, or after a restart as the staging area knows them.
    fn uploads(&self, batch: &TailBatch) -> std::result::Result<Vec<UploadTicket>, End> {
        if batch.logged.needs.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(needs) = self.shared.order().requests.needs.get(&batch.batch) {
            return Ok(needs.clone());
        }
        let staging = self.shared.staging.get().expect("attached before the task starts");
        let tickets: Result<Vec<_>> = batch.logged.needs.iter().map(|pack| staging.upload(*pack)).collect();
        let tickets = tickets.map_err(|error| {
            self.shared.fenced.close(&error);
            End::Refused
        })?;
        Ok(tickets.into_iter().flatten().collect())
    }

    fn header(&self, first: BatchNo, last: BatchNo) -> RecordHeader {
        let head = self.journal.row.head;
        RecordHeader {
            volume: self.journal.volume,
            seq: Seq(head.seq.0 + 1),
            epoch: self.journal.holder.epoch,
            writer: self.journal.holder.writer,
            prev: head.chain,
            first,
            last,
        }
    }

    /// Sends the record until the store has it, however long that takes, or another writer has taken its place.
    async fn send(&mut self, record: EncodedRecord) -> std::result::Result<(), End> {
        let mut pause = PAUSE;
        loop {
            let outcome = tokio::select! {
                outcome = self.journal.put(&record) => outcome,
                // Whether it arrives is for the next mount to see.
                _ = self.stopping.wait_for(|stop| *stop) => return Err(End::Stopped),
            };
            let error = match outcome {
                Ok(()) => return Ok(()),
                Err(error) if error.kind == Kind::Fenced => {
                    self.shared.fenced.close(&error);
                    return Err(End::Refused);
                }
                Err(error) => error,
            };
            warn!(%error, seq = record.head.seq.0, "journal record is not in the bucket yet, trying again");
            tokio::select! {
                () = self.shared.clock.sleep(pause) => {}
                _ = self.stopping.wait_for(|stop| *stop) => return Err(End::Stopped),
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Notes that all batches up to `last` are in the bucket, and wakes who waits for that.
    async fn acknowledge(&mut self, last: BatchNo, batches: u64, bytes: u64) {
        let row = {
            let mut order = self.shared.order();
            let Order { backlog, requests, .. } = &mut *order;
            let row = &mut self.journal.row;
            row.batch = last;
            if let Some((records, bytes)) = requests.checkpointed.take() {
                row.tail_records = row.tail_records.saturating_sub(records);
                row.tail_bytes = row.tail_bytes.saturating_sub(bytes);
            }
            let row = row.clone();
            backlog.remove(last, batches, bytes);
            if requests.cut_at.is_some_and(|cut| cut <= last || backlog.last <= last) {
                requests.cut_at = None;
                requests.boundary = Some(row.clone());
            }
            self.shared.head.send_replace(row.clone());
            row
        };
        self.shared.journaled.send_replace(last);
        if batches == 0 {
            return;
        }
        let limits = &self.shared.limits;
        if limits.checkpoint_records <= row.tail_records || limits.checkpoint_bytes <= row.tail_bytes {
            self.shared.checkpoint_behind();
        }
        let shared = self.shared.clone();
        let note = move || {
            let write = row.write();
            let mut note = Batch::new();
            note.put(write.table, write.key, write.value.unwrap_or_default());
            // Only a hint: a mount that lacks it finds the record in the bucket and knows its writer.
            if let Err(error) = shared.submit(note) {
                info!(%error, "progress of the journal is not noted");
            }
        };
        run_blocking(&*self.shared.spawner, "note progress", note).await;
    }
}

/// Creates the record's object. An answer that was lost is recognised: what is there is ours then, byte for byte.
///
/// # Errors
/// `Fenced` if another record has the place; of the store.
pub(crate) async fn put_record(
    objects: &dyn ImmutableObjectStore,
    volume: VolumeId,
    name: RecordName,
    record: &EncodedRecord,
) -> Result<()> {
    let key = keys::journal_record(name);
    match objects.put_new(&key, record.bytes.clone()).await {
        Ok(_) => return Ok(()),
        Err(error) if error.kind != Kind::Precondition => return Err(error),
        Err(_) => {}
    }
    let found: Bytes = objects.get(&key, None).await?;
    if found == record.bytes {
        return Ok(());
    }
    let by = decode_record(&found, volume, record.head.seq);
    let by = by.map_or_else(|error| error.to_string(), |found| format!("writer {}", found.header.writer));
    let text = format!("journal {:016x} was taken by {by}", record.head.seq.0);
    Err(Error::new(Kind::Fenced, text))
}

/// Names of all records from `from` on, ascending.
///
/// # Errors
/// Of the store.
pub(crate) async fn list_records(objects: &dyn ImmutableObjectStore, from: Seq) -> Result<Vec<RecordName>> {
    let mut start = keys::journal(Seq(from.0.saturating_sub(1)));
    let mut found = Vec::new();
    loop {
        let page = objects.list(keys::JOURNAL, Some(&start)).await?;
        let names = page.objects.iter().filter_map(|object| keys::parse_journal(&object.key));
        found.extend(names.filter(|name| from <= name.seq));
        match page.objects.last() {
            Some(last) if page.more => start = last.key.clone(),
            _ => return Ok(found),
        }
    }
}

impl Shared {
    pub(super) async fn flush(self: &Arc<Self>, upto: BatchNo) -> Result<()> {
        if self.bucket != Bucket::Send {
            return self.sync_local(upto).await;
        }
        let mut journaled = self.journaled.subscribe();
        let upto = {
            let mut order = self.order();
            // Batches behind the last that concerns the journal have nothing to send.
            let upto = upto.min(order.backlog.last);
            order.requests.flush_upto = order.requests.flush_upto.max(upto);
            upto
        };
        self.wake_journal.notify_one();
        let mut stopping = self.stopping.subscribe();
        loop {
            if upto <= *journaled.borrow_and_update() {
                return Ok(());
            }
            self.fenced.check()?;
            self.latch.check()?;
            if *stopping.borrow() {
                return Err(Error::new(Kind::Unavailable, "flush: the volume is being unmounted"));
            }
            tokio::select! {
                _ = journaled.changed() => {}
                _ = stopping.changed() => {}
            }
        }
    }
}
