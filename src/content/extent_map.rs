//! A map from disjoint byte ranges to values that can be cut: the shape of everything that covers part of a file.

use std::collections::BTreeMap;

use crate::base::range::ByteRange;

/// A value that stands for a run of bytes and can lose bytes at either end.
pub trait Cut: Clone {
    /// What is left of a value of `len` bytes when only `part` of it (relative to its first byte) is wanted.
    #[must_use]
    fn cut(&self, part: ByteRange) -> Self;
}

/// Disjoint ranges with their values. A later insert replaces what it overlaps.
#[derive(Clone, Debug)]
pub struct ExtentMap<V> {
    by_start: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for ExtentMap<V> {
    fn default() -> Self {
        Self { by_start: BTreeMap::new() }
    }
}

impl<V: Cut> ExtentMap<V> {
    /// Puts `value` at `range`, which must not be empty, over whatever was there.
    pub fn insert(&mut self, range: ByteRange, value: V) {
        debug_assert!(!range.is_empty());
        self.remove(range);
        self.by_start.insert(range.start, (range.end, value));
    }

    /// Clears `range`, cutting what sticks out of it.
    pub fn remove(&mut self, range: ByteRange) {
        while let Some((&start, &(end, _))) = self.by_start.range(..range.end).next_back() {
            if end <= range.start {
                break;
            }
            let (end, value) = self.by_start.remove(&start).expect("found just now");
            if range.end < end {
                let right = value.cut(ByteRange::new(range.end - start, end - start));
                self.by_start.insert(range.end, (end, right));
            }
            if start < range.start {
                let left = value.cut(ByteRange::new(0, range.start - start));
                self.by_start.insert(start, (range.start, left));
                break;
            }
        }
    }

    /// The parts that lie in `window`, cut to it, ascending.
    pub fn overlaps(&self, window: ByteRange) -> impl Iterator<Item = (ByteRange, V)> + '_ {
        let first =
            self.by_start.range(..=window.start).next_back().map_or(window.start, |(&start, _)| start);
        self.by_start.range(first..window.end.max(first)).filter_map(move |(&start, (end, value))| {
            let part = ByteRange::new(start, *end).intersect(&window);
            let wanted = ByteRange::new(part.start.wrapping_sub(start), part.end.wrapping_sub(start));
            (!part.is_empty()).then(|| (part, value.cut(wanted)))
        })
    }

    /// All ranges with their values, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (ByteRange, &V)> + '_ {
        self.by_start.iter().map(|(&start, (end, value))| (ByteRange::new(start, *end), value))
    }

    /// All values, in the order of their ranges.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> + '_ {
        self.by_start.values_mut().map(|(_, value)| value)
    }

    /// The same in maps of at most `len_max` ranges each, at least one map.
    #[must_use]
    pub fn split(mut self, len_max: usize) -> Vec<Self> {
        let mut parts = Vec::new();
        while let Some((&start, _)) = self.by_start.iter().nth(len_max) {
            let rest = self.by_start.split_off(&start);
            parts.push(std::mem::replace(&mut self, Self { by_start: rest }));
        }
        parts.push(self);
        parts
    }

    /// Keeps what `keep` wants.
    pub fn retain(&mut self, mut keep: impl FnMut(&V) -> bool) {
        self.by_start.retain(|_, (_, value)| keep(value));
    }

    /// The parts of `window` that no range covers, ascending.
    pub fn gaps(&self, window: ByteRange) -> Vec<ByteRange> {
        let mut gaps = Vec::new();
        let mut at = window.start;
        let first =
            self.by_start.range(..=window.start).next_back().map_or(window.start, |(&start, _)| start);
        for (&start, &(end, _)) in self.by_start.range(first..window.end.max(first)) {
            if at < start {
                gaps.push(ByteRange::new(at, start));
            }
            at = at.max(end);
        }
        if at < window.end {
            gaps.push(ByteRange::new(at, window.end));
        }
        gaps
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Stands for bytes that all tell their writer and their offset, so that a wrong cut shows.
    #[derive(Clone, Debug, PartialEq)]
    struct Stamp(u8, u64);

    impl Cut for Stamp {
        fn cut(&self, part: ByteRange) -> Self {
            Self(self.0, self.1 + part.start)
        }
    }

    proptest! {
        #[test]
        fn agrees_with_an_array(changes in prop::collection::vec((any::<bool>(), 0..64u64, 1..16u64), 1..40)) {
            let mut map = ExtentMap::default();
            let mut bytes: Vec<Option<(u8, u64)>> = vec![None; 96];
            for (writer, &(insert, start, len)) in changes.iter().enumerate() {
                let (writer, range) = (writer as u8, ByteRange::at(start, len));
                if insert { map.insert(range, Stamp(writer, start)) } else { map.remove(range) }
                for at in range.start..range.end {
                    bytes[at as usize] = insert.then_some((writer, at));
                }
            }
            let window = ByteRange::new(10, 70);
            let mut seen: Vec<Option<(u8, u64)>> = vec![None; 96];
            for (range, stamp) in map.overlaps(window) {
                for at in range.start..range.end {
                    seen[at as usize] = Some((stamp.0, stamp.1 + at - range.start));
                }
            }
            prop_assert_eq!(&seen[10..70], &bytes[10..70]);
            let mut holes = [true; 96];
            map.gaps(window).iter().for_each(|gap| holes[gap.start as usize..gap.end as usize].fill(false));
            let expect: Vec<bool> = bytes[10..70].iter().map(Option::is_some).collect();
            prop_assert_eq!(&holes[10..70], &expect[..]);
        }
    }
}
