//! Finds out what a store's conditional writes are worth, by racing against itself.

use bytes::Bytes;
use futures_util::future::join_all;

use super::keys;
use super::object::{Etag, Fencing, MutableObjectStore, ObjectKey};
use super::{Kind, Result};
use crate::base::ids::WriterId;
use crate::base::time::Random;

/// Concurrent creates of one key, per round. With the conditional overwrites and the delete that makes 12 requests.
const ROUNDS: [u32; 2] = [5, 3];

/// Tests `put_new` and `put_if` at format, with at most 12 requests: servers exist that ignore the condition and
/// answer success, and others that check it and then race. `Cas` means that none of that was seen.
///
/// # Errors
/// What the store answers other than `Precondition`; nothing is known then.
pub async fn probe_conditional_writes(
    store: &dyn MutableObjectStore,
    writer: WriterId,
    random: &dyn Random,
) -> Result<Fencing> {
    if store.fencing() == Fencing::None {
        return Ok(Fencing::None);
    }
    let probe = Probe { store, random };
    let keys: Vec<_> = (0..).zip(ROUNDS).map(|(round, _)| keys::probe(writer, round)).collect();
    let verdict = probe.create_and_overwrite(&keys).await;
    probe.conclude(verdict, &keys).await
}

/// The same question at mount, with two concurrent creates and a delete: it finds a server that ignores conditions,
/// such as one that replaced another since the format, but hardly one that races.
///
/// # Errors
/// As [`probe_conditional_writes`].
pub async fn probe_conditional_writes_briefly(
    store: &dyn MutableObjectStore,
    writer: WriterId,
    random: &dyn Random,
) -> Result<Fencing> {
    if store.fencing() == Fencing::None {
        return Ok(Fencing::None);
    }
    let probe = Probe { store, random };
    let keys = [keys::probe(writer, 0)];
    let verdict = probe.sole_winner(&keys[0], 2).await.map(|winner| winner.is_some());
    probe.conclude(verdict, &keys).await
}

struct Probe<'a> {
    store: &'a dyn MutableObjectStore,
    random: &'a dyn Random,
}

impl Probe<'_> {
    /// True if every condition held.
    async fn create_and_overwrite(&self, keys: &[ObjectKey]) -> Result<bool> {
        let mut last = None;
        for (key, racers) in keys.iter().zip(ROUNDS) {
            let Some(etag) = self.sole_winner(key, racers).await? else { return Ok(false) };
            last = Some((key, etag));
        }
        let (key, etag) = last.expect("there are rounds");
        // Of two overwrites of one version one must win, and the loser's version, stale by then, must lose again.
        let overwrites = join_all([0; 2].map(|_| self.overwrite(key, &etag))).await;
        let won = overwrites.into_iter().collect::<Result<Vec<_>>>()?;
        if won.iter().filter(|won| **won).count() != 1 {
            return Ok(false);
        }
        Ok(!self.overwrite(key, &etag).await?)
    }

    /// Version of the object if exactly one of `racers` concurrent creates succeeded.
    async fn sole_winner(&self, key: &ObjectKey, racers: u32) -> Result<Option<Etag>> {
        let results = join_all((0..racers).map(|_| self.store.put_new(key, self.body()))).await;
        let mut winners = Vec::new();
        for result in results {
            match result {
                Ok(meta) => winners.push(meta.etag),
                Err(error) if error.kind == Kind::Precondition => {}
                Err(error) => return Err(error),
            }
        }
        Ok(if winners.len() == 1 { winners.pop() } else { None })
    }

    /// True if the store took it.
    async fn overwrite(&self, key: &ObjectKey, expected: &Etag) -> Result<bool> {
        match self.store.put_if(key, self.body(), expected).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == Kind::Precondition => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Every body differs, or a store wrapped in `Retry` would take another racer's object for its own.
    fn body(&self) -> Bytes {
        Bytes::copy_from_slice(&self.random.next_u128().to_le_bytes())
    }

    /// Deletes the scratch objects, whatever was found; a failed deletion leaves them, which harms nothing.
    async fn conclude(&self, verdict: Result<bool>, keys: &[ObjectKey]) -> Result<Fencing> {
        let _ = self.store.delete(keys).await;
        verdict.map(|holds| if holds { Fencing::Cas } else { Fencing::Lease })
    }
}
