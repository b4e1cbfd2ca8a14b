//! Reads blocks: staged files first, then the cache of pack parts, then few large ranged requests; every block is
//! verified before it is anybody's.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{self, StreamExt as _};
use lru::LruCache;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::frame;
use super::pack_cache::PackCache;
use super::staging::Staging;
use crate::base::hash::BlockId;
use crate::base::ids::PackId;
use crate::base::limits::MIB;
use crate::base::range::ByteRange;
use crate::rt::{SemaphoreLimit, Spawner, run_blocking};
use crate::store::block::{BlockIndex, BlockLocation, Receipt};
use crate::store::object::ImmutableObjectStore;
use crate::store::{Error, Kind, Result, keys};

/// A gap between two wanted frames up to this many bytes is fetched with them: cheaper than another request.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// Longest range of one request in bytes, unless one frame is longer.
const RANGE_BYTES_MAX: u64 = 8 * MIB;

/// From the second miss in a pack on, this much around it is fetched and cached: blocks that were written together
/// are read together, and one request then serves hundreds of small files.
const NEIGHBOURHOOD_BYTES: u64 = 4 * MIB;

/// A request of this many bytes is worth its round trip without its surroundings.
const LARGE_BYTES: u64 = MIB;

/// Packs whose misses are remembered.
const MISSED_PACKS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("above zero");

/// Requests of one call in flight at once; permits bound them over all calls.
const REQUESTS_AT_ONCE: usize = 8;

/// A block that must come from the store.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    id: BlockId,
    pack: PackId,
    /// Of its frame.
    range: ByteRange,
    pack_len: u64,
}

/// Blocks of one pack fetched with one request.
#[derive(Clone, Debug)]
struct Batch {
    pack: PackId,
    pack_len: u64,
    range: ByteRange,
    blocks: Vec<Wanted>,
}

/// Bytes of a pack from some offset.
#[derive(Clone)]
struct Body {
    start: u64,
    bytes: Bytes,
}

impl Body {
    fn slice(&self, range: ByteRange) -> Bytes {
        let from = usize::try_from(range.start.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let to = usize::try_from(range.end.saturating_sub(self.start)).unwrap_or(usize::MAX);
        // Shorter than asked for decodes to an error, which is what it is.
        let to = to.min(self.bytes.len());
        self.bytes.slice(from.min(to)..to)
    }
}

/// Blocks that one request brought.
type Found = Vec<(BlockId, Bytes)>;

/// A request under way that others may wait for.
struct Flight {
    number: u64,
    range: ByteRange,
    landed: watch::Receiver<Option<Body>>,
}

#[derive(Default)]
struct Flights {
    by_pack: HashMap<PackId, Vec<Flight>>,
    started: u64,
}

pub(super) struct Fetcher {
    objects: Arc<dyn ImmutableObjectStore>,
    index: Arc<dyn BlockIndex>,
    staging: Arc<Staging>,
    cache: Option<Arc<PackCache>>,
    spawner: Arc<dyn Spawner>,
    permits: SemaphoreLimit,
    /// Before `misses` and the cache's lock.
    flights: Mutex<Flights>,
    misses: Mutex<LruCache<PackId, u32>>,
}

/// Ends a flight, also when the caller that leads it is dropped; who waits for it then fetches for itself.
struct FlightGuard {
    fetcher: Arc<Fetcher>,
    pack: PackId,
    range: ByteRange,
    number: u64,
    sender: watch::Sender<Option<Body>>,
}

/// How the blocks of one call are fetched.
struct Takeoff {
    /// Requests to make.
    leads: Vec<(FlightGuard, Batch)>,
    /// Requests of others, with the blocks they bring.
    joins: Vec<(watch::Receiver<Option<Body>>, Vec<Wanted>)>,
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        let mut flights = self.fetcher.flights();
        if let Some(of_pack) = flights.by_pack.get_mut(&self.pack) {
            of_pack.retain(|flight| flight.number != self.number);
            if of_pack.is_empty() {
                flights.by_pack.remove(&self.pack);
            }
        }
    }
}

impl Fetcher {
    pub(super) fn new(
        objects: Arc<dyn ImmutableObjectStore>,
        index: Arc<dyn BlockIndex>,
        staging: Arc<Staging>,
        cache: Option<Arc<PackCache>>,
        spawner: Arc<dyn Spawner>,
        permits: SemaphoreLimit,
    ) -> Self {
        let misses = Mutex::new(LruCache::new(MISSED_PACKS_MAX));
        Self { objects, index, staging, cache, spawner, permits, flights: Mutex::default(), misses }
    }

    /// As [`crate::store::block::BlockStore::get_many`].
    pub(super) async fn get_many(self: &Arc<Self>, ids: &[BlockId]) -> Result<Vec<Bytes>> {
        let mut distinct = ids.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let this = self.clone();
        let (mut found, wanted) =
            run_blocking(&*self.spawner, "read local blocks", move || this.read_local(&distinct)).await?;
        // Those that others wait for come first: no call waits for another's request before its own are under way.
        let Takeoff { leads, joins } = self.take_off(wanted);
        let mut fetches: Vec<BoxFuture<'_, Result<Found>>> = Vec::new();
        for (flight, batch) in leads {
            fetches.push(self.fetch(flight, batch).boxed());
        }
        for (landed, blocks) in joins {
            fetches.push(self.fetch_with_others(landed, blocks).boxed());
        }
        let mut fetched = stream::iter(fetches).buffer_unordered(REQUESTS_AT_ONCE);
        while let Some(blocks) = fetched.next().await {
            found.extend(blocks?);
        }
        Ok(ids.iter().map(|id| found.get(id).expect("all were found, or it is an error").clone()).collect())
    }

    /// Reads one block from the store itself.
    pub(super) async fn verify(self: &Arc<Self>, id: BlockId) -> Result<()> {
        let staged = self.staging.find(&id).and_then(|block| {
            let BlockLocation::Frame { pack, offset, len } = block.entry.location(block.pack.id) else {
                return None;
            };
            let range = ByteRange::at(offset.into(), len.into());
            Some(Wanted { id, pack, range, pack_len: block.pack.receipt()?.len })
        });
        let wanted = match staged {
            Some(wanted) => wanted,
            None => self.locate(id)?.ok_or_else(|| unknown(id))?,
        };
        self.fetch_alone(wanted).await.map(drop)
    }

    /// What needs no request, and what does.
    fn read_local(&self, ids: &[BlockId]) -> Result<(HashMap<BlockId, Bytes>, Vec<Wanted>)> {
        let mut found = HashMap::with_capacity(ids.len());
        let mut elsewhere = Vec::new();
        for &id in ids {
            match self.read_staged(id)? {
                Some(plain) => drop(found.insert(id, plain)),
                None => elsewhere.push(id),
            }
        }
        if elsewhere.is_empty() {
            return Ok((found, Vec::new()));
        }
        let located = self.index.locate(&elsewhere)?;
        let mut wanted = Vec::new();
        for (&id, location) in elsewhere.iter().zip(located) {
            let place = Wanted::new(id, location.ok_or_else(|| unknown(id))?)?;
            match self.read_cached(&place) {
                Some(plain) => drop(found.insert(id, plain)),
                None => wanted.push(place),
            }
        }
        Ok((found, wanted))
    }

    fn read_staged(&self, id: BlockId) -> Result<Option<Bytes>> {
        let Some(block) = self.staging.find(&id) else { return Ok(None) };
        let frame = block.pack.read_frame(&block.entry);
        let pack = block.pack.id;
        let detail = match frame.map(|frame| frame::decode(&frame, id)) {
            Ok(Ok(plain)) => return Ok(Some(plain)),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.detail,
        };
        let error = Error::new(Kind::Corrupt, format!("read staged block={id} pack={pack}: {detail}"));
        if block.pack.receipt().is_none() {
            return Err(error);
        }
        // The store has it too, and if nobody has committed it yet the index will say so.
        warn!(%error, "local disk lost a staged block");
        Ok(None)
    }

    fn read_cached(&self, wanted: &Wanted) -> Option<Bytes> {
        let cache = self.cache.as_ref()?;
        let frame = cache.read(wanted.pack, wanted.range)?;
        match frame::decode(&frame, wanted.id) {
            Ok(plain) => Some(plain),
            Err(error) => {
                debug!(block = %wanted.id, pack = %wanted.pack, %error, "drop damaged cached part");
                cache.drop_range(wanted.pack, wanted.range);
                None
            }
        }
    }

    /// Gets all blocks of `batch`, if possible with one request.
    async fn fetch(self: &Arc<Self>, flight: FlightGuard, batch: Batch) -> Result<Found> {
        match self.lead(flight).await {
            Ok(body) => self.decoded(body, batch.blocks).await,
            // The pack is gone, or shorter than it was: what of it is still to be had is found out block by block.
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::Corrupt) => {
                self.fetch_each(batch.blocks).await
            }
            Err(error) => Err(error),
        }
    }

    /// Gets `blocks` out of a request of another call, or if that fails by requests of its own.
    async fn fetch_with_others(
        self: &Arc<Self>,
        mut landed: watch::Receiver<Option<Body>>,
        blocks: Vec<Wanted>,
    ) -> Result<Found> {
        let body = landed.wait_for(Option::is_some).await.ok().and_then(|body| body.clone());
        if let Some(body) = body {
            return self.decoded(body, blocks).await;
        }
        let mut found = Vec::with_capacity(blocks.len());
        for batch in coalesce(blocks) {
            let flight = self.begin_flight(&mut self.flights(), batch.pack, batch.range);
            found.extend(self.fetch(flight, batch).await?);
        }
        Ok(found)
    }

    async fn decoded(self: &Arc<Self>, body: Body, blocks: Vec<Wanted>) -> Result<Found> {
        let (mut good, bad) =
            run_blocking(&*self.spawner, "decode blocks", move || decode_all(&body, blocks)).await;
        good.extend(self.fetch_each(bad).await?);
        Ok(good)
    }

    async fn fetch_each(self: &Arc<Self>, blocks: Vec<Wanted>) -> Result<Found> {
        let mut found = Vec::with_capacity(blocks.len());
        for wanted in blocks {
            found.push((wanted.id, self.fetch_alone(wanted).await?));
        }
        Ok(found)
    }

    /// Makes the request of `flight`, for others too, and caches what it brings.
    async fn lead(self: &Arc<Self>, flight: FlightGuard) -> Result<Body> {
        let FlightGuard { pack, range, .. } = flight;
        let permit = self.permits.acquire(range.len()).await;
        let bytes = self.objects.get(&keys::pack(pack), Some(range)).await?;
        let body = Body { start: range.start, bytes };
        flight.sender.send_replace(Some(body.clone()));
        if let Some(cache) = self.cache.clone() {
            let body = body.clone();
            let keep = move || {
                cache.insert(pack, body.start, &body.bytes);
                // Not before: whoever comes next finds one or the other.
                drop(flight);
                drop(permit);
            };
            self.spawner.spawn_blocking("cache range", Box::new(keep));
        }
        Ok(body)
    }

    /// Plans how `wanted` is fetched: with requests that are under way where they bring it, with few new ones otherwise.
    fn take_off(self: &Arc<Self>, wanted: Vec<Wanted>) -> Takeoff {
        let mut flights = self.flights();
        let mut joins: HashMap<u64, (watch::Receiver<Option<Body>>, Vec<Wanted>)> = HashMap::new();
        let mut rest = Vec::with_capacity(wanted.len());
        for place in wanted {
            let mut of_pack = flights.by_pack.get(&place.pack).into_iter().flatten();
            match of_pack.find(|flight| flight.range.contains_range(&place.range)) {
                Some(flight) => {
                    let join = || (flight.landed.clone(), Vec::new());
                    joins.entry(flight.number).or_insert_with(join).1.push(place);
                }
                None => rest.push(place),
            }
        }
        let lead = |batch: Batch| {
            let range = self.widened(&flights, &batch);
            (self.begin_flight(&mut flights, batch.pack, range), batch)
        };
        let leads = coalesce(rest).into_iter().map(lead).collect();
        Takeoff { leads, joins: joins.into_values().collect() }
    }

    fn begin_flight(self: &Arc<Self>, flights: &mut Flights, pack: PackId, range: ByteRange) -> FlightGuard {
        let (sender, landed) = watch::channel(None);
        flights.started += 1;
        let number = flights.started;
        flights.by_pack.entry(pack).or_default().push(Flight { number, range, landed });
        FlightGuard { fetcher: self.clone(), pack, range, number, sender }
    }

    /// The range to ask for: that of the batch, or once its pack was missed before, what is missing around it.
    fn widened(&self, flights: &Flights, batch: &Batch) -> ByteRange {
        let Some(cache) = &self.cache else { return batch.range };
        let mut misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = misses.get_or_insert_mut(batch.pack, || 0);
        *count = count.saturating_add(1);
        let is_first = *count == 1;
        drop(misses);
        if is_first || LARGE_BYTES <= batch.range.len() {
            return batch.range;
        }
        let start = batch.range.start / NEIGHBOURHOOD_BYTES * NEIGHBOURHOOD_BYTES;
        let window = ByteRange::at(start, NEIGHBOURHOOD_BYTES).intersect(&ByteRange::new(0, batch.pack_len));
        let mut absent = cache.gaps(batch.pack, window);
        let coming = flights.by_pack.get(&batch.pack).into_iter().flatten();
        coming.for_each(|flight| absent.remove(flight.range));
        absent.insert(batch.range);
        let around = absent.iter().find(|range| range.contains_range(&batch.range));
        around.expect("its own range was just put in")
    }

    /// Gets one block with a request of its own, looking once more where it is if it is not where it was.
    async fn fetch_alone(self: &Arc<Self>, wanted: Wanted) -> Result<Bytes> {
        let gone = match self.request(&wanted).await {
            Err(error) if error.kind == Kind::NotFound => error,
            other => return other,
        };
        match self.locate(wanted.id)? {
            Some(moved) if (moved.pack, moved.range) != (wanted.pack, wanted.range) => {
                self.request(&moved).await
            }
            _ => Err(gone),
        }
    }

    async fn request(&self, wanted: &Wanted) -> Result<Bytes> {
        let Wanted { id, pack, range, .. } = *wanted;
        let name = |error: Error| Error { detail: format!("get block={id} pack={pack}: {error}"), ..error };
        let _permit = self.permits.acquire(range.len()).await;
        let frame = self.objects.get(&keys::pack(pack), Some(range)).await.map_err(name)?;
        let decoded = run_blocking(&*self.spawner, "decode block", move || frame::decode(&frame, id)).await;
        decoded.map_err(|error| name(Error::new(Kind::Corrupt, error.to_string()).with_source(error)))
    }

    fn locate(&self, id: BlockId) -> Result<Option<Wanted>> {
        let found = self.index.locate(&[id])?.into_iter().next().flatten();
        found.map(|found| Wanted::new(id, found)).transpose()
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wanted {
    /// # Errors
    /// `Corrupt` if the place is not within the pack.
    fn new(id: BlockId, (location, receipt): (BlockLocation, Receipt)) -> Result<Self> {
        let BlockLocation::Frame { pack, offset, len } = location else {
            let detail = format!("get block={id}: indexed as an object of its own in a volume of packs");
            return Err(Error::new(Kind::Corrupt, detail));
        };
        let range = ByteRange::at(offset.into(), len.into());
        let pack_len = if receipt == Receipt::UNKNOWN { range.end } else { receipt.len };
        if pack_len < range.end {
            let detail = format!("get block={id} pack={pack}: indexed at {range:?}, behind the pack's end");
            return Err(Error::new(Kind::Corrupt, detail));
        }
        Ok(Self { id, pack, range, pack_len })
    }
}

fn unknown(id: BlockId) -> Error {
    Error::new(Kind::NotFound, format!("get block={id}: no pack is known to hold it"))
}

/// Few requests that together cover the frames of `wanted`.
fn coalesce(wanted: Vec<Wanted>) -> Vec<Batch> {
    let mut by_pack: BTreeMap<PackId, Vec<Wanted>> = BTreeMap::new();
    for place in wanted {
        by_pack.entry(place.pack).or_default().push(place);
    }
    let mut batches: Vec<Batch> = Vec::new();
    for (pack, mut places) in by_pack {
        places.sort_unstable_by_key(|place| place.range.start);
        for place in places {
            let last = batches.last_mut().filter(|batch| {
                batch.pack == pack
                    && place.range.start <= batch.range.end.saturating_add(GAP_BYTES_MAX)
                    && place.range.end.saturating_sub(batch.range.start) <= RANGE_BYTES_MAX
            });
            match last {
                Some(batch) => {
                    batch.range.end = batch.range.end.max(place.range.end);
                    batch.blocks.push(place);
                }
                None => batches.push(Batch {
                    pack,
                    pack_len: place.pack_len,
                    range: place.range,
                    blocks: vec![place],
                }),
            }
        }
    }
    batches
}

/// The blocks that `body` holds intact, and those it does not.
fn decode_all(body: &Body, blocks: Vec<Wanted>) -> (Vec<(BlockId, Bytes)>, Vec<Wanted>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for wanted in blocks {
        match frame::decode(&body.slice(wanted.range), wanted.id) {
            Ok(plain) => good.push((wanted.id, detached(plain, body))),
            Err(error) => {
                warn!(block = %wanted.id, pack = %wanted.pack, %error, "fetched block is damaged, ask again");
                bad.push(wanted);
            }
        }
    }
    (good, bad)
}

/// `plain` without the response it is a slice of, if that is much larger: a cached block must not keep megabytes alive.
fn detached(plain: Bytes, body: &Body) -> Bytes {
    if plain.len() * 2 < body.bytes.len() { Bytes::copy_from_slice(&plain) } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::WriterId;

    fn wanted(pack: u64, start: u64, end: u64) -> Wanted {
        let pack = PackId { writer: WriterId(1), number: pack };
        Wanted { id: BlockId::of(b"x"), pack, range: ByteRange::new(start, end), pack_len: 1 << 30 }
    }

    fn ranges(wanted: Vec<Wanted>) -> Vec<(u64, ByteRange)> {
        coalesce(wanted).iter().map(|batch| (batch.pack.number, batch.range)).collect()
    }

    #[test]
    fn small_gaps_are_bridged_and_large_ones_are_not() {
        let near = GAP_BYTES_MAX + 10;
        let requests = ranges(vec![wanted(1, near, near + 5), wanted(1, 0, 10), wanted(2, 0, 10)]);
        assert_eq!(requests, [(1, ByteRange::new(0, near + 5)), (2, ByteRange::new(0, 10))]);
        let far = near + 1;
        let requests = ranges(vec![wanted(1, 0, 10), wanted(1, far, far + 5)]);
        assert_eq!(requests, [(1, ByteRange::new(0, 10)), (1, ByteRange::new(far, far + 5))]);
    }

    #[test]
    fn no_request_is_longer_than_its_limit_unless_one_frame_is() {
        let places = (0..64).map(|n| wanted(1, n * MIB, (n + 1) * MIB)).collect();
        assert!(ranges(places).iter().all(|(_, range)| range.len() == RANGE_BYTES_MAX));
        assert_eq!(ranges(vec![wanted(1, 0, 20 * MIB)]), [(1, ByteRange::new(0, 20 * MIB))]);
    }
}
