//! Which records are the volume where several have one sequence: a store that does not create atomically lets every writer
//! have it, under a name of its own.
//!
//! A writer may write data once its fence is confirmed: by a listing, after the fence was there, that showed no record it
//! had not known before. A record is acknowledged once a listing, after it was there, has shown no fence of a later epoch.
//! So of a record and a later fence one has seen the other, and all acknowledged records are on one chain: the one whose
//! last change of data has the highest epoch. Fences alone prove nothing, because theirs may never have been confirmed.

use std::collections::HashMap;

use crate::base::hash::Hash;
use crate::base::ids::{Epoch, Seq, WriterId};
use crate::commit::record::Record;
use crate::commit::system::Head;
use crate::store::keys::RecordName;

/// What the choice needs of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) name: RecordName,
    writer: WriterId,
    epoch: Epoch,
    prev: Hash,
    chain: Hash,
    /// It changes no data.
    is_fence: bool,
}

/// What [`choose`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// The records that follow on the head.
    pub(super) chain: Vec<RecordName>,
    /// A record that does not continue the head's history and is of a later one.
    pub(super) later: Option<(WriterId, Seq)>,
}

impl Link {
    pub(super) fn of(name: RecordName, record: &Record) -> Self {
        let header = &record.header;
        Self {
            name,
            writer: header.writer,
            epoch: header.epoch,
            prev: header.prev,
            chain: record.head().chain,
            is_fence: header.last < header.first,
        }
    }
}

/// The chain above `head`. `links` ascend by sequence. It does not end in a record that is `unconfirmed`, but others may
/// have gone on from one.
pub(super) fn choose(head: Head, links: &[Link], unconfirmed: impl Fn(&RecordName) -> bool) -> Choice {
    // By the hash of a chain: the epoch of its last change of data, of its last record, and its length.
    let mut ranks: HashMap<Hash, (Epoch, Epoch, Seq)> = HashMap::new();
    ranks.insert(head.chain, (Epoch(0), head.epoch, head.seq));
    for link in links {
        let Some(&(data, ..)) = ranks.get(&link.prev) else { continue };
        let data = if link.is_fence { data } else { link.epoch };
        ranks.insert(link.chain, (data, link.epoch, link.name.seq));
    }
    let no_end: Vec<Hash> =
        links.iter().filter(|link| unconfirmed(&link.name)).map(|link| link.chain).collect();
    let ends = ranks.iter().filter(|(chain, _)| !no_end.contains(chain));
    let best = ends.max_by_key(|(chain, rank)| (**rank, chain.0));
    let (&best, &(data, ..)) = best.expect("the head is among them");
    let known = data.max(head.epoch);
    let is_later = |link: &&Link| !ranks.contains_key(&link.chain) && !link.is_fence && known < link.epoch;

    let mut chain = Vec::new();
    let mut at = best;
    while let Some(link) = links.iter().rev().find(|link| link.chain == at && at != head.chain) {
        chain.push(link.name);
        at = link.prev;
    }
    chain.reverse();
    Choice { chain, later: links.iter().find(is_later).map(|link| (link.writer, link.name.seq)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of `writer` behind that of `prev`; both name their record by sequence and writer.
    fn link(seq: u64, epoch: u64, writer: u8, prev: (u64, u8), is_fence: bool) -> Link {
        let hash = |(seq, writer): (u64, u8)| Hash::of(&[seq as u8, writer]);
        let writer_id = WriterId(writer.into());
        Link {
            name: RecordName { seq: Seq(seq), own: Some((Epoch(epoch), writer_id)) },
            writer: writer_id,
            epoch: Epoch(epoch),
            prev: hash(prev),
            chain: hash((seq, writer)),
            is_fence,
        }
    }

    const HEAD: (u64, u8) = (5, 0);

    fn chosen(links: &[Link]) -> (Vec<(u64, u128)>, bool) {
        let head = Head { seq: Seq(5), chain: Hash::of(&[5, 0]), epoch: Epoch(3) };
        let choice = choose(head, links, |name| name.own.is_some_and(|(_, writer)| writer.0 == 9));
        let names = choice.chain.iter().map(|name| (name.seq.0, name.own.expect("own").1.0));
        (names.collect(), choice.later.is_some())
    }

    #[test]
    fn data_of_the_highest_epoch_decides_and_fences_without_data_do_not() {
        let first = [link(6, 4, 1, HEAD, true), link(7, 4, 1, (6, 1), false)];
        // A fence that was never confirmed, of a later epoch.
        let unconfirmed = link(7, 5, 2, (6, 1), true);
        assert_eq!(chosen(&[first[0], first[1], unconfirmed]), (vec![(6, 1), (7, 1)], false));
        // Confirmed, and used.
        let used = link(8, 5, 2, (7, 2), false);
        let late = link(8, 4, 1, (7, 1), false);
        let all = [first[0], first[1], unconfirmed, late, used];
        assert_eq!(chosen(&all), (vec![(6, 1), (7, 2), (8, 2)], false));
    }

    #[test]
    fn fences_alone_are_followed_by_epoch() {
        let links = [link(6, 4, 1, HEAD, true), link(6, 5, 2, HEAD, true)];
        assert_eq!(chosen(&links), (vec![(6, 2)], false));
        assert_eq!(chosen(&[]), (vec![], false));
    }

    #[test]
    fn an_unconfirmed_fence_is_passed_but_not_the_end() {
        let own = [link(6, 9, 9, HEAD, true), link(7, 9, 9, (6, 9), true)];
        assert_eq!(chosen(&own), (vec![], false));
        let gone_on = link(8, 10, 1, (7, 9), true);
        assert_eq!(chosen(&[own[0], own[1], gone_on]), (vec![(6, 9), (7, 9), (8, 1)], false));
    }

    #[test]
    fn a_history_that_has_left_ours_behind_is_noticed() {
        let elsewhere = [link(6, 4, 2, (5, 9), true), link(7, 4, 2, (6, 2), false)];
        assert_eq!(chosen(&elsewhere), (vec![], true));
        let older = [link(7, 2, 2, (6, 2), false)];
        assert_eq!(chosen(&older), (vec![], false), "what lost before does not matter");
    }
}
