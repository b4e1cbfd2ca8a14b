//! The local directory of packs that the store has not got yet: frames are appended to an open pack, sealed packs wait
//! for their upload, and what a dead process left is found again. No network in here.
//!
//! A staged file is the frames of its pack and nothing else; directory and footer follow from them, so that the body of
//! a pack is the same whenever it is built.
//!
//! Lock order: `open` before `state` before a pack's `contents`; `sync` is held across the syncs it orders and nothing
//! waits for it but other syncs. Files are written under `open` (which keeps appends in order), never under `state`.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::frame::{self, EncodedFrame};
use super::pack::{PACK_FRAMES_BYTES_MAX, PackEntry};
use super::pack_reader::{Scan, scan};
use super::pack_writer;
use super::spill::{Reservation, SpillBudget};
use crate::base::hash::BlockId;
use crate::base::ids::{PackId, WriterId};
use crate::base::page_buffer::{PageBuffer, PageBuffers};
use crate::base::time::Clock;
use crate::rt::{Permit, SemaphoreLimit};
use crate::store::block::{BlockTicket, Receipt, UploadPromise, UploadTicket};
use crate::store::device::{Device, Directory};
use crate::store::{Error, Kind, Result};

const SUFFIX: &str = ".staged";

/// Packs that become full at shorter intervals belong to one burst of writing.
const FILLING_FOR: Duration = Duration::from_millis(250);

/// Room for the directory and footer of a pack of ordinary blocks.
const TAIL_BYTES: usize = 64 << 10;

/// Buffers kept for the next pack: one is being filled while one or two are sent.
const BUFFERS_KEPT: usize = 2;

/// What a pack of `frames_bytes` bytes of frames takes.
fn buffer_bytes(frames_bytes: u64) -> usize {
    usize::try_from(frames_bytes).expect("bounded by PACK_FRAMES_BYTES_MAX") + TAIL_BYTES
}

/// Name of the file in which a pack is staged.
pub(super) fn file_name(id: PackId) -> String {
    format!("{id}{SUFFIX}")
}

/// The pack that is staged in a file of this name.
pub(super) fn parse_file_name(name: &str) -> Option<PackId> {
    name.strip_suffix(SUFFIX).and_then(PackId::parse)
}

/// A pack with a file in the staged directory.
pub(super) struct StagedPack {
    pub(super) id: PackId,
    /// When its first frame was staged, on the monotonic clock.
    pub(super) born: Duration,
    device: Arc<dyn Device>,
    promise: UploadPromise,
    /// Bytes of complete frames in the file.
    len: AtomicU64,
    synced_len: AtomicU64,
    contents: Mutex<Contents>,
}

struct Contents {
    entries: Vec<PackEntry>,
    /// Given back when the store has the pack.
    reservation: Option<Reservation>,
    /// Kept from sealing to the first attempt to send it, if there was room.
    resident: Option<(PackBody, Permit)>,
}

/// What is sent to the store, and what it will answer.
pub(super) struct PackBody {
    pub(super) bytes: Bytes,
    pub(super) entries: Vec<PackEntry>,
    pub(super) receipt: Receipt,
}

impl StagedPack {
    fn new(id: PackId, device: Arc<dyn Device>, born: Duration, reservation: Reservation) -> Self {
        let contents =
            Mutex::new(Contents { entries: Vec::new(), reservation: Some(reservation), resident: None });
        let (promise, _) = UploadTicket::pending();
        Self { id, born, device, promise, len: AtomicU64::new(0), synced_len: AtomicU64::new(0), contents }
    }

    /// Bytes of its frames.
    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    pub(super) fn receipt(&self) -> Option<Receipt> {
        self.promise.receipt()
    }

    pub(super) fn fulfil(&self, receipt: Receipt) {
        self.contents().reservation = None;
        self.promise.fulfil(receipt);
    }

    /// Waits until nobody has a ticket of it.
    pub(super) async fn released(&self) {
        self.promise.released().await;
    }

    /// Reads the stored form of one of its blocks.
    ///
    /// # Errors
    /// Of the device.
    pub(super) fn read_frame(&self, entry: &PackEntry) -> Result<Bytes> {
        let mut frame = vec![0; entry.len as usize];
        self.device.read_at(&mut frame, entry.offset.into())?;
        Ok(frame.into())
    }

    /// The whole pack as it goes to the store, if it is still in memory, and the right to hold it there.
    pub(super) fn take_resident(&self) -> Option<(PackBody, Permit)> {
        self.contents().resident.take()
    }

    /// The whole pack as it goes to the store, read from its file and its frames checked.
    ///
    /// # Errors
    /// `Corrupt` naming block and pack if the local disk did not keep what was written to it.
    pub(super) fn body(&self) -> Result<PackBody> {
        let entries = self.contents().entries.clone();
        let len = entries.last().map_or(0, PackEntry::end);
        let tail = pack_writer::tail(self.id, &entries);
        let capacity = usize::try_from(len).expect("bounded by PACK_FRAMES_BYTES_MAX") + tail.bytes.len();
        let mut bytes = Vec::with_capacity(capacity);
        bytes.resize(capacity - tail.bytes.len(), 0);
        self.device.read_at(&mut bytes, 0)?;
        for entry in &entries {
            let intact = bytes.get(entry.offset as usize..).is_some_and(|at| {
                frame::check(at).is_ok_and(|header| PackEntry::new(&header, entry.offset) == *entry)
            });
            if !intact {
                let (block, pack) = (entry.id, self.id);
                let detail = format!("read staged pack: block={block} pack={pack}: local disk changed it");
                return Err(Error::new(Kind::Corrupt, detail));
            }
        }
        bytes.extend_from_slice(&tail.bytes);
        Ok(PackBody { bytes: bytes.into(), entries, receipt: tail.receipt })
    }

    fn ticket(&self, entry: &PackEntry) -> BlockTicket {
        BlockTicket { id: entry.id, location: entry.location(self.id), upload: self.promise.ticket() }
    }

    /// # Errors
    /// Of the device. Must not be repeated for what was written before (rule R14): the device refuses.
    fn sync(&self) -> Result<()> {
        let len = self.len();
        if self.synced_len.load(Ordering::Acquire) < len {
            self.device.sync()?;
            self.synced_len.fetch_max(len, Ordering::AcqRel);
        }
        Ok(())
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A staged block.
#[derive(Clone)]
pub(super) struct StagedBlock {
    pub(super) pack: Arc<StagedPack>,
    pub(super) entry: PackEntry,
}

/// What [`Staging::append`] did.
#[derive(Default)]
pub(super) struct Appended {
    pub(super) tickets: Vec<BlockTicket>,
    /// Packs that are full now.
    pub(super) sealed: Vec<Arc<StagedPack>>,
    /// The open pack, if it was begun by this call.
    pub(super) opened: Option<PackId>,
}

/// What a [`Staging`] is made of.
pub(super) struct StagingParts {
    pub(super) directory: Arc<dyn Directory>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) budget: SpillBudget,
    pub(super) uploads: SemaphoreLimit,
    pub(super) writer: WriterId,
    pub(super) pack_bytes_target: u64,
}

/// The staged directory.
pub(super) struct Staging {
    directory: Arc<dyn Directory>,
    clock: Arc<dyn Clock>,
    budget: SpillBudget,

    /// Bytes of packs in memory for sending.
    uploads: SemaphoreLimit,
    buffers: Arc<PageBuffers>,

    writer: WriterId,
    pack_bytes_target: u64,

    /// When a pack was last sealed because it was full, in microseconds of the monotonic clock; 0 for never.
    filled_at: AtomicU64,
    /// How many files were created.
    names_made: AtomicU64,
    sync: Mutex<Sync>,
    open: Mutex<Open>,
    state: Mutex<State>,
}

#[derive(Default)]
struct Sync {
    /// Files created when the directory was last synced.
    names: u64,
    failed: bool,
}

struct Open {
    pack: Option<OpenPack>,
    next_number: u64,
}

/// The pack that is being filled.
struct OpenPack {
    staged: Arc<StagedPack>,
    /// Its frames, from the first one on.
    buffer: PageBuffer,
    /// Of frames in the buffer that are not in the file yet.
    unwritten: Vec<PackEntry>,
}

impl OpenPack {
    fn add(&mut self, frame: &EncodedFrame) {
        let offset = u32::try_from(self.buffer.bytes().len()).expect("bounded by PACK_FRAMES_BYTES_MAX");
        frame.write_to(|part| self.buffer.extend(part));
        self.unwritten.push(PackEntry::new(&frame.header, offset));
    }
}

#[derive(Default)]
struct State {
    blocks: HashMap<BlockId, StagedBlock>,
    packs: BTreeMap<PackId, Arc<StagedPack>>,
}

impl Staging {
    pub(super) fn new(parts: StagingParts) -> Self {
        let StagingParts { directory, clock, budget, uploads, writer, pack_bytes_target } = parts;
        let pack_bytes_target = pack_bytes_target.min(PACK_FRAMES_BYTES_MAX);
        Self {
            directory,
            clock,
            budget,
            uploads,
            buffers: PageBuffers::new(BUFFERS_KEPT, buffer_bytes(pack_bytes_target)),
            writer,
            pack_bytes_target,
            filled_at: AtomicU64::new(0),
            names_made: AtomicU64::new(0),
            sync: Mutex::default(),
            open: Mutex::new(Open { pack: None, next_number: 0 }),
            state: Mutex::default(),
        }
    }

    /// Finds a staged block.
    pub(super) fn find(&self, id: &BlockId) -> Option<StagedBlock> {
        self.state().blocks.get(id).cloned()
    }

    /// A ticket for a staged block. Made under the lock that also lets packs go, so that it holds what it names.
    pub(super) fn ticket(&self, id: &BlockId) -> Option<BlockTicket> {
        self.state().blocks.get(id).map(|block| block.pack.ticket(&block.entry))
    }

    pub(super) fn pack(&self, id: PackId) -> Option<Arc<StagedPack>> {
        self.state().packs.get(&id).cloned()
    }

    /// Appends blocks, all different, to the open pack, and to new ones as packs become full. A block that somebody else
    /// has staged meanwhile is not written again.
    ///
    /// # Errors
    /// `Full`; what was written before stays staged, and `done` tells of it.
    pub(super) fn append(&self, frames: &[EncodedFrame], done: &mut Appended) -> Result<()> {
        let mut open = self.lock_open();
        for frame in frames {
            if let Some(ticket) = self.ticket(&frame.header.id) {
                done.tickets.push(ticket);
                continue;
            }
            let is_full = |pack: &OpenPack| {
                let frames = pack.buffer.bytes().len() as u64;
                frames != 0 && self.pack_bytes_target < frames + u64::from(frame.header.frame_len())
            };
            if open.pack.as_ref().is_some_and(is_full) {
                self.write(&mut open, done)?;
                done.sealed.extend(open.pack.take().map(|pack| self.sealed(pack)));
                done.opened = None;
                self.filled_at.store(micros(self.clock.monotonic()), Ordering::Relaxed);
            }
            if open.pack.is_none() {
                done.opened = Some(self.begin(&mut open)?);
            }
            open.pack.iter_mut().for_each(|pack| pack.add(frame));
        }
        self.write(&mut open, done)
    }

    /// True while somebody fills one pack after the other.
    pub(super) fn is_filling(&self) -> bool {
        let filled_at = self.filled_at.load(Ordering::Relaxed);
        filled_at != 0 && micros(self.clock.monotonic()) < filled_at + micros(FILLING_FOR)
    }

    /// Freezes the open pack, if it is `only` (or whichever it is).
    pub(super) fn seal(&self, only: Option<PackId>) -> Option<Arc<StagedPack>> {
        let mut open = self.lock_open();
        let is_meant =
            |pack: &mut OpenPack| pack.staged.len() != 0 && only.is_none_or(|only| only == pack.staged.id);
        open.pack.take_if(is_meant).map(|pack| self.sealed(pack))
    }

    /// A pack that is full stays in memory for its upload if there is room for it now, or is read again when there is.
    fn sealed(&self, pack: OpenPack) -> Arc<StagedPack> {
        let OpenPack { staged, mut buffer, .. } = pack;
        if let Some(permit) = self.uploads.try_acquire(staged.len()) {
            let mut contents = staged.contents();
            let tail = pack_writer::tail(staged.id, &contents.entries);
            buffer.extend(&tail.bytes);
            let (bytes, entries) = (buffer.share(), contents.entries.clone());
            contents.resident = Some((PackBody { bytes, entries, receipt: tail.receipt }, permit));
        }
        staged
    }

    /// Makes all that is staged durable: first the names, then what they name.
    ///
    /// # Errors
    /// Of the disk; then every later call fails, because nobody knows what was lost (rule R14).
    pub(super) fn sync(&self) -> Result<()> {
        let mut sync = self.sync.lock().unwrap_or_else(PoisonError::into_inner);
        if sync.failed {
            return Err(Error::new(Kind::Internal, "sync staged packs: an earlier sync failed"));
        }
        // Copied before the names are synced: a pack begun later is not this call's business. Acknowledged packs too:
        // until their blocks are committed, the local files are all that says where they are.
        let packs: Vec<_> = self.state().packs.values().cloned().collect();
        let names = self.names_made.load(Ordering::Acquire);
        let all = || -> Result<()> {
            if sync.names != names {
                self.directory.sync()?;
            }
            packs.iter().try_for_each(|pack| pack.sync())
        };
        let outcome = all();
        sync.failed = outcome.is_err();
        sync.names = names;
        outcome
    }

    /// Lets a pack go that the store has and nobody has a ticket of; false if somebody has. Its file is the caller's then.
    pub(super) fn release(&self, pack: &Arc<StagedPack>) -> bool {
        let mut state = self.state();
        if pack.promise.is_held() || pack.receipt().is_none() {
            return false;
        }
        state.packs.remove(&pack.id);
        for entry in &pack.contents().entries {
            if state.blocks.get(&entry.id).is_some_and(|block| Arc::ptr_eq(&block.pack, pack)) {
                state.blocks.remove(&entry.id);
            }
        }
        true
    }

    /// Lets all packs go without touching their files: whoever waits for one learns that it will not come.
    pub(super) fn forget_all(&self) {
        self.lock_open().pack = None;
        *self.state() = State::default();
    }

    /// Finds what an earlier process left. Call it once, before anything is appended.
    ///
    /// # Errors
    /// Of the disk.
    pub(super) fn recover(&self) -> Result<Recovered> {
        let mut open = self.lock_open();
        let mut found = Recovered::default();
        let mut files = self.directory.list()?;
        files.sort_unstable();
        for (name, len) in files {
            let Some(id) = parse_file_name(&name) else { continue };
            if id.writer == self.writer {
                open.next_number = open.next_number.max(id.number + 1);
            }
            let device = self.directory.open(&name)?;
            let scan = scan(&*device, len)?;
            found.torn_bytes += len - scan.end;
            if scan.entries.is_empty() {
                self.directory.remove(&name)?;
                continue;
            }
            found.packs.push(self.adopt(id, device, scan));
        }
        let tickets = |pack: &Arc<StagedPack>| {
            let contents = pack.contents();
            contents.entries.iter().map(|entry| pack.ticket(entry)).collect::<Vec<_>>()
        };
        found.tickets = found.packs.iter().flat_map(tickets).collect();
        Ok(found)
    }

    /// Bytes of packs the store has not acknowledged, and when the oldest of them was begun.
    pub(super) fn unacknowledged(&self) -> (u64, Option<Duration>) {
        let state = self.state();
        let waiting = || state.packs.values().filter(|pack| pack.receipt().is_none() && pack.len() != 0);
        (waiting().map(|pack| pack.len()).sum(), waiting().map(|pack| pack.born).min())
    }

    fn adopt(&self, id: PackId, device: Arc<dyn Device>, scan: Scan) -> Arc<StagedPack> {
        let pack = StagedPack::new(id, device, self.clock.monotonic(), self.budget.charge(scan.end));
        pack.len.store(scan.end, Ordering::Release);
        pack.contents().entries.clone_from(&scan.entries);
        let pack = Arc::new(pack);
        self.publish(&pack, &scan.entries);
        self.state().packs.insert(id, pack.clone());
        pack
    }

    fn begin(&self, open: &mut Open) -> Result<PackId> {
        let id = PackId { writer: self.writer, number: open.next_number };
        let device = self.directory.create(&file_name(id))?;
        open.next_number += 1;
        let staged = Arc::new(StagedPack::new(id, device, self.clock.monotonic(), self.budget.charge(0)));
        self.state().packs.insert(id, staged.clone());
        open.pack = Some(OpenPack {
            staged,
            buffer: self.buffers.take(buffer_bytes(self.pack_bytes_target), 0),
            unwritten: Vec::new(),
        });
        self.names_made.fetch_add(1, Ordering::AcqRel);
        Ok(id)
    }

    /// Writes what the open pack got to its file and makes its blocks known.
    fn write(&self, open: &mut Open, done: &mut Appended) -> Result<()> {
        let Some(OpenPack { staged, buffer, unwritten }) = &mut open.pack else { return Ok(()) };
        let entries = std::mem::take(unwritten);
        if entries.is_empty() {
            return Ok(());
        }
        let len = staged.len();
        let written = usize::try_from(len).expect("bounded by PACK_FRAMES_BYTES_MAX");
        let bytes = buffer.bytes().get(written..).expect("entries describe the bytes");
        let charge = self.budget.charge(bytes.len() as u64);
        if let Err(error) = staged.device.write_at(bytes, len) {
            // The file is torn behind `len`: the next write goes there again.
            buffer.truncate(written);
            return Err(error);
        }
        let mut contents = staged.contents();
        contents.entries.extend_from_slice(&entries);
        if let Some(reservation) = &mut contents.reservation {
            reservation.merge(charge);
        }
        drop(contents);
        staged.len.store(buffer.bytes().len() as u64, Ordering::Release);
        self.publish(staged, &entries);
        done.tickets.extend(entries.iter().map(|entry| staged.ticket(entry)));
        Ok(())
    }

    fn publish(&self, pack: &Arc<StagedPack>, entries: &[PackEntry]) {
        let mut state = self.state();
        for entry in entries {
            let block = || StagedBlock { pack: pack.clone(), entry: *entry };
            state.blocks.entry(entry.id).or_insert_with(block);
        }
    }

    fn lock_open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What [`Staging::recover`] found.
#[derive(Default)]
pub(super) struct Recovered {
    /// All sealed.
    pub(super) packs: Vec<Arc<StagedPack>>,
    /// Of all their blocks.
    pub(super) tickets: Vec<BlockTicket>,
    /// Bytes behind the last complete frames.
    pub(super) torn_bytes: u64,
}
