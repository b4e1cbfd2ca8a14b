//! A set of bytes as disjoint, non-adjacent half-open ranges: pure algebra, no storage.

use std::collections::BTreeMap;

use super::range::ByteRange;

/// A set of byte offsets. Every operation is O(log n + ranges touched).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeSet {
    /// Start to end; never empty, overlapping or adjacent.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the bytes of `range`.
    pub fn insert(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let mut merged = range;
        // Ranges that begin at or before our end, from the last backwards, until one ends before our start.
        while let Some((&start, &end)) = self.ranges.range(..=merged.end).next_back() {
            if end < merged.start {
                break;
            }
            merged = ByteRange::new(merged.start.min(start), merged.end.max(end));
            self.ranges.remove(&start);
        }
        self.ranges.insert(merged.start, merged.end);
    }

    /// Takes the bytes of `range` away.
    pub fn remove(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.ranges.range(..range.end).next_back() {
            if end <= range.start {
                break;
            }
            self.ranges.remove(&start);
            if range.end < end {
                self.ranges.insert(range.end, end);
            }
            if start < range.start {
                self.ranges.insert(start, range.start);
                break;
            }
        }
    }

    /// True if every byte of `range` is in the set.
    #[must_use]
    pub fn contains(&self, range: ByteRange) -> bool {
        range.is_empty()
            || self.ranges.range(..=range.start).next_back().is_some_and(|(_, &end)| range.end <= end)
    }

    /// The parts of `window` that are in the set, ascending.
    pub fn overlaps(&self, window: ByteRange) -> impl Iterator<Item = ByteRange> + '_ {
        let first = self.ranges.range(..=window.start).next_back().map_or(window.start, |(&start, _)| start);
        self.ranges
            .range(first..window.end.max(first))
            .map(move |(&start, &end)| ByteRange::new(start, end).intersect(&window))
            .filter(|part| !part.is_empty())
    }

    /// The parts of `window` that are not in the set, ascending.
    pub fn gaps(&self, window: ByteRange) -> impl Iterator<Item = ByteRange> + '_ {
        let tail = ByteRange::new(window.end, window.end);
        let mut at = window.start;
        self.overlaps(window)
            .chain(std::iter::once(tail))
            .map(move |part| {
                let gap = ByteRange::new(at, part.start);
                at = part.end;
                gap
            })
            .filter(|gap| !gap.is_empty())
    }

    /// All ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.ranges.iter().map(|(&start, &end)| ByteRange { start, end })
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many bytes are in the set.
    #[must_use]
    pub fn covered_bytes(&self) -> u64 {
        self.iter().map(|range| range.len()).sum()
    }
}

impl FromIterator<ByteRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = ByteRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIVERSE: u64 = 64;

    fn changes() -> impl Strategy<Value = Vec<(bool, u64, u64)>> {
        prop::collection::vec((any::<bool>(), 0..UNIVERSE, 0..16u64), 0..40)
    }

    /// The set after `changes`, beside the same computed on single bits.
    fn build(changes: &[(bool, u64, u64)]) -> (RangeSet, Vec<bool>) {
        let (mut set, mut bits) = (RangeSet::new(), vec![false; 2 * UNIVERSE as usize]);
        for &(insert, start, len) in changes {
            let range = ByteRange::at(start, len);
            if insert {
                set.insert(range)
            } else {
                set.remove(range)
            }
            bits[start as usize..(start + len) as usize].fill(insert);
        }
        (set, bits)
    }

    fn to_bits(ranges: impl Iterator<Item = ByteRange>) -> Vec<bool> {
        let mut bits = vec![false; 2 * UNIVERSE as usize];
        for range in ranges {
            bits[range.start as usize..range.end as usize].fill(true);
        }
        bits
    }

    proptest! {
        #[test]
        fn agrees_with_a_bitmap(changes in changes()) {
            let (set, bits) = build(&changes);
            prop_assert_eq!(to_bits(set.iter()), bits.clone());
            prop_assert_eq!(set.covered_bytes(), bits.iter().filter(|&&bit| bit).count() as u64);
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "normal form");
        }

        #[test]
        fn overlaps_and_gaps_divide_the_window(changes in changes(), start in 0..UNIVERSE, len in 0..UNIVERSE) {
            let (set, bits) = build(&changes);
            let window = ByteRange::at(start, len);
            let mut inside = vec![false; bits.len()];
            inside[start as usize..(start + len) as usize].fill(true);
            let expect = |want: bool| -> Vec<bool> {
                bits.iter().zip(&inside).map(|(&bit, &within)| within && bit == want).collect()
            };
            prop_assert_eq!(to_bits(set.overlaps(window)), expect(true));
            prop_assert_eq!(to_bits(set.gaps(window)), expect(false));
            prop_assert_eq!(set.contains(window), set.gaps(window).next().is_none());
        }
    }
}
