//! Staged content becomes committed content: once the store has acknowledged its packs (invariant I1), or ahead of that
//! where a rename must not overtake it (rule R1).

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::Vfs;
use super::change::Change;
use super::error::Result;
use super::inode::{Inode, State};
use super::orphan::ROWS_PER_STEP;
use crate::base::hash::BlockId;
use crate::base::ids::{Ino, PackId};
use crate::base::range::ByteRange;
use crate::base::sync::lock;
use crate::commit::Batch;
use crate::content::extent_map::Cut as _;
use crate::content::manifest::{Edit, rows};
use crate::content::seal::{Seal, Sealed};
use crate::store::block::{BlockLocation, BlockTicket, Receipt, UploadTicket};
use crate::store::kv::Snapshot;
use crate::store::schema::inode::{ContentForm, InodeRow};
use crate::store::schema::merge::pack_acknowledged;
use crate::store::schema::{INLINE, OVERLAY, ino_key, pair_key, parse_pair_key};
use crate::store::{self};

/// Extents one batch publishes at most: with their blocks, segments and references below a batch's size (rule R17).
const EXTENTS_PER_BATCH: usize = ROWS_PER_STEP;

/// What waits for the store.
enum Publication {
    /// Seals of an inode, and the uploads of the newest.
    Seals(Arc<Inode>, Vec<UploadTicket>),
    /// A pack that was committed ahead of its acknowledgement: its row lacks the receipt.
    Pack(PackId, UploadTicket),
}

impl Publication {
    fn inode(&self) -> Option<&Arc<Inode>> {
        match self {
            Self::Seals(inode, _) => Some(inode),
            Self::Pack(..) => None,
        }
    }
}

/// Publications in the order in which they were staged, which is about the order in which they arrive.
#[derive(Default)]
pub(super) struct PublishQueue {
    /// Leaf lock.
    waiting: Mutex<Waiting>,
    pushed: Notify,
    emptied: Notify,
}

#[derive(Default)]
struct Waiting {
    queue: VecDeque<Publication>,
    /// One is out of the queue and not done.
    busy: bool,
    /// Inodes whose content could not be committed although the store has it: kept in memory, and tried again when
    /// somebody asks for everything.
    failed: Vec<Arc<Inode>>,
}

impl PublishQueue {
    fn push(&self, publication: Publication) {
        lock(&self.waiting).queue.push_back(publication);
        self.pushed.notify_one();
    }

    async fn next(&self) -> Publication {
        loop {
            let pushed = self.pushed.notified();
            {
                let mut waiting = lock(&self.waiting);
                if let Some(publication) = waiting.queue.pop_front() {
                    waiting.busy = true;
                    return publication;
                }
            }
            pushed.await;
        }
    }

    fn done(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.busy = false;
        if waiting.queue.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    /// Completes when everything queued before the call has been published.
    pub(super) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            {
                let waiting = lock(&self.waiting);
                if waiting.queue.is_empty() && !waiting.busy {
                    return;
                }
            }
            emptied.await;
        }
    }

    /// How many inodes wait.
    pub(super) fn len(&self) -> usize {
        let waiting = lock(&self.waiting);
        waiting.queue.len() + usize::from(waiting.busy) + waiting.failed.len()
    }

    fn add_failed(&self, inode: Arc<Inode>) {
        let mut waiting = lock(&self.waiting);
        if !waiting.failed.iter().any(|known| known.ino == inode.ino) {
            waiting.failed.push(inode);
        }
    }
}

/// Which seals to publish.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Those whose uploads are acknowledged, up to the first that is not.
    Acknowledged,
    /// All; the journal waits for what is not acknowledged.
    All,
}

impl Vfs {
    pub(super) fn enqueue_publication(&self, inode: &Arc<Inode>, state: &State) {
        let Some(seal) = state.overlay.as_ref().and_then(|overlay| overlay.seals().back()) else { return };
        self.publishing.push(Publication::Seals(Arc::clone(inode), uploads(seal)));
    }

    /// Starts the loop that commits content as its uploads are acknowledged.
    pub(super) fn start_publishing(self: &Arc<Self>) {
        let vfs = Arc::downgrade(self);
        let queue = Arc::clone(&self.publishing);
        self.spawner.spawn(
            "publish content",
            Box::pin(async move {
                loop {
                    let publication = queue.next().await;
                    // Uploads end with the block store; what they leave is staged and taken up by the next mount.
                    if !wait_for(&publication).await {
                        queue.done();
                        return;
                    }
                    let Some(vfs) = vfs.upgrade() else { return };
                    if let Err(error) = vfs.carry_out(&publication) {
                        let inode = publication.inode();
                        tracing::error!(%error, ino = inode.map(|inode| inode.ino.0), "publish content");
                        if let Some(inode) = inode {
                            vfs.note_failure(inode.ino, &error);
                            queue.add_failed(Arc::clone(inode));
                        }
                    }
                    queue.done();
                }
            }),
        );
    }

    /// Commits everything staged so far.
    ///
    /// # Errors
    /// Of the metadata: something is still not committed.
    pub(super) async fn publish_everything(&self) -> Result<()> {
        self.publishing.emptied().await;
        let failed = std::mem::take(&mut lock(&self.publishing.waiting).failed);
        let mut outcome = Ok(());
        for inode in failed {
            if let Err(error) = self.publish_acknowledged(&inode).await {
                self.publishing.add_failed(inode);
                outcome = Err(error);
            }
        }
        outcome
    }

    fn carry_out(&self, publication: &Publication) -> Result<()> {
        match publication {
            Publication::Seals(inode, _) => self.publish(inode, Which::Acknowledged),
            Publication::Pack(pack, upload) => {
                let Some(receipt) = upload.receipt() else { return Ok(()) };
                let mut batch = Batch::default();
                batch.delta(pack_acknowledged(*pack, receipt));
                let _ticket = self.commit.submit(batch)?;
                Ok(())
            }
        }
    }

    /// Commits the staged content of an inode once the store has it.
    ///
    /// # Errors
    /// If the block store shuts down first; of the metadata.
    pub(super) async fn publish_acknowledged(&self, inode: &Inode) -> Result<()> {
        for upload in self.uploads_of(inode) {
            upload.acknowledged().await?;
        }
        self.publish(inode, Which::Acknowledged)
    }

    /// Commits the staged content of an inode now; the journal waits for its packs (rule R1). Blocks with objects of their
    /// own have no such place in a record and are waited for here.
    ///
    /// # Errors
    /// Of the metadata.
    pub(super) async fn publish_ahead(&self, inode: &Inode) -> Result<()> {
        for (location, upload) in self.blocks_of(inode) {
            if location == BlockLocation::Object {
                upload.acknowledged().await?;
            }
        }
        self.publish(inode, Which::All)
    }

    fn blocks_of(&self, inode: &Inode) -> Vec<(BlockLocation, UploadTicket)> {
        let state = inode.lock();
        let seals = state.overlay.iter().flat_map(|overlay| overlay.seals());
        let tickets = seals.flat_map(|seal| seal.extents.iter()).filter_map(|(_, sealed)| match sealed {
            Sealed::Block { ticket, .. } => Some((ticket.location, ticket.upload.clone())),
            Sealed::Unwritten => None,
        });
        tickets.collect()
    }

    fn uploads_of(&self, inode: &Inode) -> Vec<UploadTicket> {
        let state = inode.lock();
        state.overlay.iter().flat_map(|overlay| overlay.seals()).flat_map(uploads).collect()
    }

    fn publish(&self, inode: &Inode, which: Which) -> Result<()> {
        let mut state = inode.lock();
        while let Some(seal) = self.next_seal(&state, which) {
            self.publish_seal(inode.ino, &mut state, &seal)?;
        }
        let size = state.row.size;
        if state.overlay.as_ref().is_some_and(|overlay| overlay.is_clean(size)) {
            self.drop_overlay(&mut state);
        }
        Ok(())
    }

    fn next_seal(&self, state: &State, which: Which) -> Option<Seal> {
        let seal = state.overlay.as_ref()?.seals().front()?;
        let acknowledged = || uploads(seal).iter().all(|upload| upload.receipt().is_some());
        (which == Which::All || acknowledged()).then(|| seal.clone())
    }

    /// Commits one seal, in batches of bounded size from the start of the file: at no point does the committed size cover
    /// a byte that is not committed (rule R2).
    fn publish_seal(&self, ino: Ino, state: &mut State, seal: &Seal) -> Result<()> {
        let parts = parts(&self.commit.view()?, ino, seal)?;
        let mut parts = parts.iter().map(Vec::as_slice).peekable();
        loop {
            let part = parts.next().unwrap_or_default();
            let last = parts.peek().is_none();
            let mut row = state.row.clone();
            row.size = match part.last() {
                Some((range, _)) if !last => row.size.max(range.end.min(seal.size)),
                _ => seal.size,
            };
            let mut change = self.plan_content(ino, &state.row, &mut row, part)?;
            // A time that was set by hand since, which may be in the future, says nothing of the last change.
            if row.mtime != seal.touched {
                row.mtime = seal.touched;
                // Without a change it tells a time that was set by hand, and so does one that is still to come.
                let changes = seal.cut.is_some() || !seal.extents.is_empty() || seal.size != state.row.size;
                if changes && seal.touched <= self.clock.now() {
                    row.ctime = row.ctime.max(seal.touched);
                }
            }
            change.put_inode(ino, &state.row, &row);
            if last {
                change.batch.delete(OVERLAY, pair_key(ino.0, seal.number));
            }
            let needs: Vec<_> = change.batch.needs.clone();
            let _ticket = change.submit(&self.commit)?;
            for (pack, upload) in needs {
                self.publishing.push(Publication::Pack(pack, upload));
            }
            state.row = row;
            self.count_uncommitted(state);
            if last {
                let size = state.row.size;
                state.overlay.iter_mut().for_each(|overlay| overlay.published(seal.number, size));
                return Ok(());
            }
        }
    }

    fn plan_content(
        &self,
        ino: Ino,
        old: &InodeRow,
        row: &mut InodeRow,
        extents: &[(ByteRange, Sealed)],
    ) -> Result<Change> {
        let view = self.commit.view()?;
        let mut edit = Edit::new(&view, ino);
        edit.apply(extents, &mut || self.next_segment())?;
        let rows = edit.finish();
        let mut change = Change::default();
        change.put_content(ino, &rows);
        if old.form == ContentForm::Inline {
            // What was inline is part of the first seal.
            change.batch.delete(INLINE, ino_key(ino));
            row.allocated = 0;
        }
        row.form = ContentForm::Manifest;
        row.allocated = row.allocated.saturating_add_signed(rows.allocated);
        for (_, sealed) in extents {
            if let Sealed::Block { ticket, .. } = sealed {
                change.name_pack(&ticket.location, &ticket.upload);
            }
        }
        Ok(change)
    }

    /// Commits what was staged and not committed when the volume was last in use. The journal waits for packs that the
    /// store does not have yet.
    pub(super) async fn recover_seals(&self) -> Result<u64> {
        let mut stored: Vec<(Ino, Vec<u8>)> = Vec::new();
        self.commit.view()?.scan(OVERLAY, &[], None, &mut |key, value| {
            let malformed = || store::Error::new(store::Kind::Corrupt, "overlay row: malformed key");
            let (ino, _) = parse_pair_key(key).ok_or_else(malformed)?;
            stored.push((Ino(ino), value.to_vec()));
            Ok(ControlFlow::Continue(()))
        })?;
        let none = UploadTicket::fulfilled(Receipt::UNKNOWN);
        let mut found: BTreeMap<Ino, Vec<Seal>> = BTreeMap::new();
        for (ino, value) in &stored {
            let seal = Seal::decode(value, &mut |_, _| none.clone()).map_err(store::Error::from)?;
            let before = found.entry(*ino).or_default();
            // Rows are never written again: what was discarded since is said by a later one (rule R10).
            if let Some(cut) = seal.cut {
                before.iter_mut().for_each(|seal| seal.cut_by(cut));
            }
            before.push(seal);
        }
        for (ino, mut seals) in found {
            let inode = self.inode(ino)?;
            for seal in &mut seals {
                self.attach_uploads(seal).await?;
            }
            let mut state = inode.lock();
            seals.iter().try_for_each(|seal| self.publish_seal(ino, &mut state, seal))?;
        }
        Ok(stored.len() as u64)
    }

    /// Gives a recovered seal the uploads of blocks that are still staged. One that is not staged any more had been
    /// acknowledged: staged packs go only then.
    async fn attach_uploads(&self, seal: &mut Seal) -> Result<()> {
        let blocks = seal.extents.values_mut().filter_map(|sealed| match sealed {
            Sealed::Block { ticket, .. } => Some(ticket),
            Sealed::Unwritten => None,
        });
        let mut tickets: Vec<&mut BlockTicket> = blocks.collect();
        let named: Vec<BlockId> = tickets.iter().map(|ticket| ticket.id).collect();
        for (ticket, staged) in tickets.iter_mut().zip(self.blocks.contains_many(&named).await?) {
            ticket.upload = staged.map_or_else(|| ticket.upload.clone(), |staged| staged.upload);
        }
        Ok(())
    }
}

async fn wait_for(publication: &Publication) -> bool {
    let uploads = match publication {
        Publication::Seals(_, uploads) => &uploads[..],
        Publication::Pack(_, upload) => std::slice::from_ref(upload),
    };
    for upload in uploads {
        if upload.acknowledged().await.is_err() {
            return false;
        }
    }
    true
}

/// A seal's extents in parts that one batch can take each: by their number, and by the number of rows they replace, for
/// which an extent may have to be cut (rule R17). At least one part.
fn parts(view: &dyn Snapshot, ino: Ino, seal: &Seal) -> Result<Vec<Vec<(ByteRange, Sealed)>>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut replaced = 0;
    for (range, sealed) in seal.extents.iter() {
        let mut rest = range;
        while !rest.is_empty() {
            if part.len() == EXTENTS_PER_BATCH || replaced == ROWS_PER_STEP {
                parts.push(std::mem::take(&mut part));
                replaced = 0;
            }
            let found = rows(view, ino, rest, ROWS_PER_STEP - replaced)?;
            replaced += found.len();
            let taken = match found.last() {
                Some((last, _)) if replaced == ROWS_PER_STEP => rest.intersect(&ByteRange::new(0, last.end)),
                _ => rest,
            };
            let within = ByteRange::at(taken.start - range.start, taken.len());
            part.push((taken, sealed.cut(within)));
            rest.start = taken.end;
        }
    }
    parts.push(part);
    Ok(parts)
}

/// The uploads a seal waits for, without repeating one for neighbours in a pack.
fn uploads(seal: &Seal) -> Vec<UploadTicket> {
    let mut packs = Vec::new();
    let mut uploads = Vec::new();
    for (_, sealed) in seal.extents.iter() {
        let Sealed::Block { ticket, .. } = sealed else { continue };
        let pack = ticket.location.pack();
        if pack.is_none() || !packs.contains(&pack) {
            packs.push(pack);
            uploads.push(ticket.upload.clone());
        }
    }
    uploads
}
