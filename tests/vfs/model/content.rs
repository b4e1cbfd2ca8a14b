//! The bytes of one file, and for each whether it is hole.

use std::collections::BTreeMap;

use gravitonfs::base::range::ByteRange;
use gravitonfs::vfs::{AllocateMode, Whence};

/// What is at an offset, as SEEK_DATA and `st_blocks` have it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Cover {
    Hole,
    /// Allocated, and never written.
    Unwritten,
    Data,
    /// Zeros of which a filesystem may say what it likes: small files are kept whole.
    Loose,
}

/// What is where, without end.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Map {
    /// What begins at an offset, which differs from what is before it.
    begins: BTreeMap<u64, Cover>,
}

impl Default for Map {
    fn default() -> Self {
        Self { begins: [(0, Cover::Hole)].into() }
    }
}

impl Map {
    fn at(&self, offset: u64) -> Cover {
        *self.begins.range(..=offset).next_back().expect("there is one at 0").1
    }

    fn set(&mut self, range: ByteRange, cover: Cover) {
        if range.is_empty() {
            return;
        }
        let after = self.at(range.end);
        self.begins.retain(|at, _| *at < range.start || range.end < *at);
        self.begins.insert(range.start, cover);
        self.begins.insert(range.end, after);
        let mut last = None;
        self.begins.retain(|_, cover| last.replace(*cover) != Some(*cover));
    }

    /// The parts of `window`, ascending.
    fn parts(&self, window: ByteRange) -> Vec<(ByteRange, Cover)> {
        let ends = self.begins.keys().skip(1).copied().chain([u64::MAX]);
        let parts = self.begins.iter().zip(ends).map(|((at, cover), end)| (ByteRange::new(*at, end), *cover));
        let inside = parts.map(|(part, cover)| (part.intersect(&window), cover));
        inside.filter(|(part, _)| !part.is_empty()).collect()
    }
}

/// See the module. The map goes on where room was allocated beyond the end.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    map: Map,
}

/// A part of a file, taken out of it.
pub(crate) struct Part {
    bytes: Vec<u8>,
    covers: Vec<(ByteRange, Cover)>,
}

fn places(range: ByteRange) -> std::ops::Range<usize> {
    range.start as usize..range.end as usize
}

impl Content {
    /// What recovery found: nobody knows any more which of the zeros were written, and what was allocated beyond them up
    /// to `end`.
    pub(crate) fn found(bytes: Vec<u8>, end: u64) -> Self {
        let mut map = Map::default();
        map.set(ByteRange::new(0, end), Cover::Loose);
        for (start, run) in runs_of_data(&bytes) {
            map.set(ByteRange::at(start, run), Cover::Data);
        }
        Self { bytes, map }
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn read(&self, window: ByteRange) -> Vec<u8> {
        self.bytes[places(self.inside(window))].to_vec()
    }

    fn inside(&self, range: ByteRange) -> ByteRange {
        let end = range.end.min(self.len());
        ByteRange::new(range.start.min(end), end)
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        let range = ByteRange::at(offset, data.len() as u64);
        self.grow(range.end);
        self.bytes[places(range)].copy_from_slice(data);
        self.map.set(range, Cover::Data);
    }

    /// What `range` is made of: holes stay holes.
    pub(crate) fn take(&self, range: ByteRange) -> Part {
        let range = self.inside(range);
        Part { bytes: self.read(range), covers: self.map.parts(range) }
    }

    /// Puts what was taken from `from` to `offset`.
    pub(crate) fn put(&mut self, offset: u64, from: u64, part: &Part) {
        self.write(offset, &part.bytes);
        for (range, cover) in &part.covers {
            self.map.set(ByteRange::at(offset + (range.start - from), range.len()), *cover);
        }
    }

    fn grow(&mut self, size: u64) {
        if self.len() < size {
            self.bytes.resize(size as usize, 0);
        }
    }

    /// truncate(2): growing leaves what was allocated there, anything else takes what is beyond the new end.
    pub(crate) fn resize(&mut self, size: u64) {
        if self.len() < size {
            return self.grow(size);
        }
        self.bytes.truncate(size as usize);
        self.map.set(ByteRange::new(size, u64::MAX), Cover::Hole);
    }

    pub(crate) fn allocate(&mut self, range: ByteRange, mode: AllocateMode, keep_size: bool) {
        if mode != AllocateMode::Allocate {
            let inside = self.inside(range);
            self.bytes[places(inside)].fill(0);
        }
        if mode != AllocateMode::PunchHole && !keep_size {
            self.grow(range.end);
        }
        for (part, cover) in self.map.parts(range) {
            match (mode, cover) {
                (AllocateMode::PunchHole, _) => self.map.set(part, Cover::Hole),
                (AllocateMode::ZeroRange, _) | (AllocateMode::Allocate, Cover::Hole) => {
                    self.map.set(part, Cover::Unwritten);
                }
                (AllocateMode::Allocate, _) => {}
            }
        }
    }

    /// Gives up what is said of zeros in the first `bytes`.
    pub(crate) fn loosen(&mut self, bytes: u64) {
        for (part, cover) in self.map.parts(ByteRange::new(0, bytes)) {
            let is_inside = !part.intersect(&ByteRange::new(0, self.len())).is_empty();
            if cover == Cover::Unwritten || (cover == Cover::Hole && is_inside) {
                self.map.set(part, Cover::Loose);
            }
        }
    }

    /// The least and the most that may be allocated, in bytes.
    pub(crate) fn allocated(&self) -> (u64, u64) {
        let parts = self.map.parts(ByteRange::new(0, u64::MAX));
        let count = |wanted: &[Cover]| {
            let counted = parts.iter().filter(|(_, cover)| wanted.contains(cover));
            counted.map(|(part, _)| part.len()).sum::<u64>()
        };
        let least = count(&[Cover::Data, Cover::Unwritten]);
        (least, least + count(&[Cover::Loose]))
    }

    /// Why `found` cannot be what lseek answers.
    pub(crate) fn refute_lseek(&self, offset: u64, whence: Whence, found: Option<u64>) -> Option<String> {
        let end = found.unwrap_or(self.len());
        if found.is_some() && (end < offset || self.len() < end || self.len() <= offset) {
            return Some(format!("{found:?} is outside"));
        }
        let passed = self.map.parts(ByteRange::new(offset.min(end), end));
        let wanted: &[Cover] = match whence {
            Whence::Data => &[Cover::Data],
            Whence::Hole => &[Cover::Hole, Cover::Unwritten],
        };
        if let Some((part, _)) = passed.iter().find(|(_, cover)| wanted.contains(cover)) {
            return Some(format!("{found:?} passes over {part:?}"));
        }
        let at_end = self.map.at(end);
        match (found, whence) {
            (None, Whence::Data) => None,
            // The end of a file is a hole.
            (None, Whence::Hole) => (offset < self.len()).then(|| "found no hole".to_owned()),
            (Some(_), Whence::Hole) if end == self.len() => None,
            (Some(_), Whence::Hole) => (at_end == Cover::Data).then(|| format!("{end} is data")),
            (Some(_), Whence::Data) if end == self.len() => Some(format!("{end} is the end")),
            (Some(_), Whence::Data) => {
                (!matches!(at_end, Cover::Data | Cover::Loose)).then(|| format!("{end} is {at_end:?}"))
            }
        }
    }
}

/// Offsets and lengths of what is not zero.
fn runs_of_data(bytes: &[u8]) -> Vec<(u64, u64)> {
    let mut at = 0;
    let mut runs = Vec::new();
    for run in bytes.split(|byte| *byte == 0) {
        if !run.is_empty() {
            runs.push((at, run.len() as u64));
        }
        at += run.len() as u64 + 1;
    }
    runs
}
