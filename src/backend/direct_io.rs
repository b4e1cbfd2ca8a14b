//! Large transfers of local files past the page cache. What is staged, sent and kept as an object is read again seldom and
//! cached by ourselves; pages for it would cost a copy, and on a virtual machine a page that the host must supply first.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// What O_DIRECT wants offsets, lengths and addresses to be a multiple of: the largest logical block of any disk.
const ALIGN: usize = 4096;

/// Writes below this go through the page cache: they are cheap to copy and may well be read again.
const DIRECT_WRITE_BYTES_MIN: usize = 256 << 10;

/// Reads below this do: they bring single blocks, and whoever reads at random comes back to them. Longer ones belong to
/// somebody who reads on.
const DIRECT_READ_BYTES_MIN: usize = 2 << 20;

/// Bytes of one transfer: enough to keep a disk busy, still in the CPU's cache after they were copied into a bounce buffer,
/// and not so many that whoever else uses the disk waits long behind them.
const PIECE_BYTES: usize = 1 << 20;

/// Buffers kept for the next transfer: about as many as transfers run at once on a machine with few cores.
const BOUNCES_KEPT: usize = 4;

/// The same for whole transfers: of those that run at once. Their memory is counted by whoever reads so much.
const LARGE_KEPT: usize = 4;

/// Memory longer than this is not kept: ranges of packs are shorter, and a rare long object must not stay for ever.
const LARGE_BYTES_MAX: usize = 9 << 20;

/// Aligned buffers, used again: fresh memory costs more than the copy.
#[derive(Default)]
pub(super) struct DirectIo {
    /// Leaf lock.
    idle: Mutex<Vec<Vec<u8>>>,
    /// For whole transfers; leaf lock.
    idle_large: Mutex<Vec<Vec<u8>>>,
}

/// Memory that comes back when nobody reads it any more.
struct Lent {
    io: Arc<DirectIo>,
    memory: Vec<u8>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut idle = self.io.idle_large.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < LARGE_KEPT && self.memory.len() <= LARGE_BYTES_MAX {
            idle.push(std::mem::take(&mut self.memory));
        }
    }
}

impl DirectIo {
    /// Writes all of `data` at `offset`, whole pages of it past the page cache if it is large and the filesystem can.
    pub(super) fn write_all_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        let is_large = DIRECT_WRITE_BYTES_MIN <= data.len();
        let pages = || whole_pages(OpenOptions::new().write(true), file, data.len(), offset);
        let Some((direct, middle)) = is_large.then(pages).flatten() else {
            return file.write_all_at(data, offset);
        };
        let (head, rest) = data.split_at(middle.start);
        let (pages, _) = rest.split_at(middle.len());
        // Ascending, so that the file never has a hole to fill.
        file.write_all_at(head, offset)?;
        let start = offset + middle.start as u64;
        let mut bounce = (pages.as_ptr().align_offset(ALIGN) != 0).then(|| self.take());
        let mut written = 0;
        let mut outcome = Ok(());
        for piece in pages.chunks(PIECE_BYTES) {
            let len = match &mut bounce {
                None => write_pages(&direct, piece, start + written as u64),
                Some(bounce) => write_pages(&direct, copied(piece, bounce), start + written as u64),
            };
            written += *len.as_ref().unwrap_or(&0);
            if !matches!(len, Ok(len) if len == piece.len()) {
                outcome = len.map(drop);
                break;
            }
        }
        bounce.into_iter().for_each(|bounce| self.give_back(bounce));
        outcome?;
        file.write_all_at(rest.get(written..).unwrap_or_default(), start + written as u64)
    }

    /// Fills `buf` from `offset`, whole pages of it past the page cache if it is large and the filesystem can.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before the range does.
    pub(super) fn read_exact_at(&self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let (len, is_large) = (buf.len(), DIRECT_READ_BYTES_MIN <= buf.len());
        let pages = || whole_pages(OpenOptions::new().read(true), file, len, offset);
        let Some((direct, middle)) = is_large.then(pages).flatten() else {
            return file.read_exact_at(buf, offset);
        };
        let mut read = middle.start;
        let pages = buf.get_mut(middle.clone()).unwrap_or_default();
        let mut bounce = (pages.as_ptr().align_offset(ALIGN) != 0).then(|| self.take());
        let mut outcome = Ok(());
        for piece in pages.chunks_mut(PIECE_BYTES) {
            let len = match &mut bounce {
                None => read_pages(&direct, piece, offset + read as u64),
                Some(bounce) => {
                    let (_, buffer) = aligned(bounce);
                    let buffer = buffer.get_mut(..piece.len()).expect("a bounce buffer holds a piece");
                    read_pages(&direct, buffer, offset + read as u64)
                        .inspect(|_| piece.copy_from_slice(buffer))
                }
            };
            read += *len.as_ref().unwrap_or(&0);
            if !matches!(len, Ok(len) if len == piece.len()) {
                outcome = len.map(drop);
                break;
            }
        }
        bounce.into_iter().for_each(|bounce| self.give_back(bounce));
        outcome?;
        let (head, rest) = buf.split_at_mut(read);
        let head = head.get_mut(..middle.start).unwrap_or_default();
        file.read_exact_at(head, offset)?;
        file.read_exact_at(rest, offset + read as u64)
    }

    /// The bytes of the file from `offset` on, `len` of them, in memory that is used again.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before the range does.
    pub(super) fn read(self: &Arc<Self>, file: &File, len: usize, offset: u64) -> io::Result<Bytes> {
        if len < DIRECT_READ_BYTES_MIN {
            let mut buffer = vec![0; len];
            file.read_exact_at(&mut buffer, offset)?;
            return Ok(buffer.into());
        }
        let mut memory = self.take_large(len);
        // In the memory as in the file: whole pages of one are whole pages of the other.
        let start = memory.as_ptr().align_offset(ALIGN)
            + usize::try_from(offset % ALIGN as u64).expect("below a page");
        let target = memory.get_mut(start..start + len).expect("taken with room for both");
        self.read_exact_at(file, target, offset)?;
        Ok(Bytes::from_owner(Lent { io: self.clone(), memory }).slice(start..start + len))
    }

    /// Memory for `len` bytes at any place in a page.
    fn take_large(&self, len: usize) -> Vec<u8> {
        let needed = len + 2 * ALIGN;
        let mut idle = self.idle_large.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = idle.iter().position(|memory| needed <= memory.len());
        let found = fitting.map(|at| idle.swap_remove(at));
        drop(idle);
        found.unwrap_or_else(|| vec![0; needed])
    }

    fn take(&self) -> Vec<u8> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.unwrap_or_else(|| vec![0; PIECE_BYTES + ALIGN])
    }

    fn give_back(&self, bounce: Vec<u8>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < BOUNCES_KEPT {
            idle.push(bounce);
        }
    }
}

/// The file opened for direct transfers, and the whole pages of a transfer of `len` bytes, more than one page, at `offset`,
/// relative to it; None if the filesystem cannot.
fn whole_pages(mode: &mut OpenOptions, file: &File, len: usize, offset: u64) -> Option<(File, Range<usize>)> {
    let into_page = usize::try_from(offset % ALIGN as u64).expect("below a page");
    let start = (ALIGN - into_page) % ALIGN;
    let pages = (len - start) / ALIGN * ALIGN;
    // By descriptor: whatever the file is called by now, it is the same file. Flags belong to the open file, and the one
    // we have serves small transfers.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = mode.custom_flags(libc::O_DIRECT).open(path);
    direct.ok().map(|direct| (direct, start..start + pages))
}

/// Writes aligned memory past the page cache and returns how much was: less than all where the filesystem refuses what it
/// seemed to allow, or after a short write, which leaves the rest unaligned.
fn write_pages(direct: &File, pages: &[u8], offset: u64) -> io::Result<usize> {
    match direct.write_at(pages, offset) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(0),
        written => written,
    }
}

/// As [`write_pages`].
fn read_pages(direct: &File, pages: &mut [u8], offset: u64) -> io::Result<usize> {
    match direct.read_at(pages, offset) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(0),
        read => read,
    }
}

/// `piece` in an aligned place.
fn copied<'a>(piece: &[u8], bounce: &'a mut [u8]) -> &'a [u8] {
    let (_, buffer) = aligned(bounce);
    let copy = buffer.get_mut(..piece.len()).expect("a bounce buffer holds a piece");
    copy.copy_from_slice(piece);
    copy
}

/// The aligned part of a buffer, and what is before it.
fn aligned(buffer: &mut [u8]) -> (&mut [u8], &mut [u8]) {
    let skip = buffer.as_ptr().align_offset(ALIGN);
    buffer.split_at_mut(skip)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that tell every position from its neighbours, whatever the page.
    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
    }

    #[test]
    fn transfers_of_any_alignment_leave_and_bring_exactly_their_bytes() {
        let file = tempfile::tempfile().expect("temporary file");
        let io = Arc::new(DirectIo::default());
        let mut model = vec![0; 3 << 20];
        let data = pattern(DIRECT_READ_BYTES_MIN + 2);
        let cases = [
            (0, DIRECT_WRITE_BYTES_MIN),
            (1, DIRECT_WRITE_BYTES_MIN),
            (5, DIRECT_READ_BYTES_MIN),
            (4095, (2 << 20) - 7),
            (123_456, 1_500_001),
            (8192, 100),
        ];
        file.write_all_at(&model, 0).expect("write");
        for (offset, len) in cases {
            io.write_all_at(&file, &data[..len], offset as u64).expect("write");
            model[offset..offset + len].copy_from_slice(&data[..len]);
            let mut plain = vec![0; model.len()];
            file.read_exact_at(&mut plain, 0).expect("read");
            assert!(plain == model, "written at {offset}, {len} bytes");
            let mut read = vec![0xee; len];
            io.read_exact_at(&file, &mut read, offset as u64).expect("read");
            assert!(read == data[..len], "read at {offset}, {len} bytes");
            assert!(io.read(&file, len, offset as u64).expect("read") == data[..len], "read at {offset}");
        }
    }

    #[test]
    fn memory_is_kept_for_the_next_read_unless_it_is_very_long() {
        let file = tempfile::tempfile().expect("temporary file");
        file.set_len(2 * LARGE_BYTES_MAX as u64).expect("extend");
        let io = Arc::new(DirectIo::default());
        let kept = || io.idle_large.lock().expect("no panic").len();
        drop(io.read(&file, 2 * LARGE_BYTES_MAX, 0).expect("read"));
        assert_eq!(kept(), 0);
        let first = io.read(&file, DIRECT_READ_BYTES_MIN, 0).expect("read");
        let place = first.as_ptr();
        drop(first);
        assert_eq!(kept(), 1);
        assert_eq!(io.read(&file, DIRECT_READ_BYTES_MIN, 0).expect("read").as_ptr(), place);
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let file = tempfile::tempfile().expect("temporary file");
        let io = DirectIo::default();
        io.write_all_at(&file, &pattern(1 << 20), 0).expect("write");
        let mut buf = vec![0; 1 << 20];
        let error = io.read_exact_at(&file, &mut buf, 1).expect_err("one byte is missing");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
