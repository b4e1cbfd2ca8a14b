//! What to do next with the content of a file.

use gravitonfs::base::ids::Fh;
use gravitonfs::base::limits::FILE_BYTES_MAX;
use gravitonfs::base::range::ByteRange;
use gravitonfs::base::time::Random;
use gravitonfs::vfs::{AllocateMode, SetAttr, Whence};

use super::super::model::tree::{Id, Op};
use super::perform::errno;
use super::{Handle, INLINE_BYTES_MAX, Run, SIZE_MAX};

impl Run {
    pub(super) fn an_offset(&self) -> u64 {
        match self.below(60) {
            0 => FILE_BYTES_MAX - 20 + self.below(40),
            1..=15 => self.below(2 * INLINE_BYTES_MAX),
            16..=30 => 4096 * self.below(SIZE_MAX / 4096),
            _ => self.below(SIZE_MAX),
        }
    }

    pub(super) fn a_size(&self) -> u64 {
        let size = self.an_offset();
        if SIZE_MAX < size { FILE_BYTES_MAX + 1 } else { size }
    }

    /// Beyond the limit or far enough below it that the model can hold it.
    pub(super) fn a_file_range(&self) -> ByteRange {
        let offset = self.an_offset();
        let len = match self.below(8) {
            0..=2 => 1 + self.below(100),
            3..=6 => 1 + self.below(5_000),
            _ => 1 + self.below(20_000),
        };
        if SIZE_MAX < offset {
            return ByteRange::at(FILE_BYTES_MAX, 100);
        }
        ByteRange::at(offset, len.min(SIZE_MAX - offset))
    }

    pub(super) fn content_step(&mut self) {
        if self.handles.is_empty() {
            return self.open_step();
        }
        let at = self.below(self.handles.len() as u64) as usize;
        let node = self.handles[at].node;
        let size = self.tree.nodes[&node].content.len();
        let mut range = self.a_file_range();
        let op = match self.below(20) {
            0..=6 => {
                if self.one_in(3) && size < SIZE_MAX {
                    let len = range.len().min(SIZE_MAX - size);
                    range = ByteRange::at(size, len);
                }
                let data = self.bytes(range.len());
                Op::Write { node, offset: range.start, data, kill_privileges: self.one_in(4) }
            }
            7..=9 => Op::Read { node, window: range },
            10..=11 => {
                let size = if self.one_in(3) { size } else { self.a_size() };
                Op::Setattr {
                    node,
                    uid: self.below(2) as u32,
                    set: SetAttr { size: Some(size), ..SetAttr::default() },
                }
            }
            12..=14 => {
                let mode =
                    self.pick(&[AllocateMode::Allocate, AllocateMode::PunchHole, AllocateMode::ZeroRange]);
                let keep_size = mode == AllocateMode::PunchHole || self.one_in(2);
                let range = if self.one_in(50) { ByteRange::new(range.start, range.start) } else { range };
                Op::Allocate { node, range, mode, keep_size }
            }
            15..=17 => {
                let from = self.handles[self.below(self.handles.len() as u64) as usize].node;
                let source = self.an_offset().min(SIZE_MAX);
                Op::Copy { from: (from, source), to: (node, range.start), len: range.len() }
            }
            _ => return self.lseek_step(at),
        };
        self.perform_by(&op, Some(at));
    }

    /// Some of it compressible, all of it different from what was there.
    pub(super) fn bytes(&self, len: u64) -> Vec<u8> {
        let word = self.random.next_u64().to_le_bytes();
        if self.one_in(4) {
            return word.repeat(len as usize / 8 + 1)[..len as usize].to_vec();
        }
        let mut bytes = vec![0; len as usize];
        blake3::Hasher::new().update(&word).finalize_xof().fill(&mut bytes);
        bytes
    }

    pub(super) fn lseek_step(&mut self, handle: usize) {
        let Handle { fh, node, .. } = self.handles[handle];
        let offset = self.an_offset();
        let whence = self.pick(&[Whence::Data, Whence::Hole]);
        self.note(format!("lseek {node} {offset} {whence:?}"));
        self.check_lseek(node, fh, offset, whence);
    }

    pub(super) fn check_lseek(&self, node: Id, fh: Fh, offset: u64, whence: Whence) -> Option<u64> {
        let found = match self.world.vfs().lseek(fh, offset, whence) {
            Ok(found) => Some(found),
            Err(error) => {
                assert_eq!(errno(&error), libc::ENXIO);
                None
            }
        };
        if let Some(why) = self.tree.nodes[&node].content.refute_lseek(offset, whence, found) {
            panic!("lseek {node} from {offset} to {whence:?}: {why}");
        }
        found
    }
}
