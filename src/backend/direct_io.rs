//! Large transfers of local files past the page cache. What is staged, sent and kept as an object is read again seldom and
//! cached by ourselves; pages for it would cost a copy, and on a virtual machine a page that the host must supply first.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::Arc;

use bytes::Bytes;

use crate::base::page_buffer::{PAGE_BYTES, PageBuffers};

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

/// Aligned buffers, used again: fresh memory costs more than the copy.
pub(super) struct DirectIo {
    bounces: Arc<PageBuffers>,
    /// For whole transfers.
    large: Arc<PageBuffers>,
}

impl Default for DirectIo {
    fn default() -> Self {
        Self { bounces: PageBuffers::new(BOUNCES_KEPT, PIECE_BYTES), large: PageBuffers::for_ranges() }
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
        let mut bounce =
            (pages.as_ptr().align_offset(PAGE_BYTES) != 0).then(|| self.bounces.take(PIECE_BYTES, 0));
        let mut written = 0;
        let mut outcome = Ok(());
        for piece in pages.chunks(PIECE_BYTES) {
            let len = match &mut bounce {
                None => write_pages(&direct, piece, start + written as u64),
                Some(bounce) => {
                    bounce.truncate(0);
                    bounce.extend(piece);
                    write_pages(&direct, bounce.bytes(), start + written as u64)
                }
            };
            written += *len.as_ref().unwrap_or(&0);
            if !matches!(len, Ok(len) if len == piece.len()) {
                outcome = len.map(drop);
                break;
            }
        }
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
        let mut bounce =
            (pages.as_ptr().align_offset(PAGE_BYTES) != 0).then(|| self.bounces.take(PIECE_BYTES, 0));
        let mut outcome = Ok(());
        for piece in pages.chunks_mut(PIECE_BYTES) {
            let len = match &mut bounce {
                None => read_pages(&direct, piece, offset + read as u64),
                Some(bounce) => {
                    let buffer = bounce.fill(piece.len());
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
    pub(super) fn read(&self, file: &File, len: usize, offset: u64) -> io::Result<Bytes> {
        if len < DIRECT_READ_BYTES_MIN {
            let mut buffer = vec![0; len];
            file.read_exact_at(&mut buffer, offset)?;
            return Ok(buffer.into());
        }
        // In the memory as in the file: whole pages of one are whole pages of the other.
        let into_page = usize::try_from(offset % PAGE_BYTES as u64).expect("below a page");
        let mut memory = self.large.take(len, into_page);
        self.read_exact_at(file, memory.fill(len), offset)?;
        Ok(memory.share())
    }
}

/// The file opened for direct transfers, and the whole pages of a transfer of `len` bytes, more than one page, at `offset`,
/// relative to it; None if the filesystem cannot.
fn whole_pages(mode: &mut OpenOptions, file: &File, len: usize, offset: u64) -> Option<(File, Range<usize>)> {
    let into_page = usize::try_from(offset % PAGE_BYTES as u64).expect("below a page");
    let start = (PAGE_BYTES - into_page) % PAGE_BYTES;
    let pages = (len - start) / PAGE_BYTES * PAGE_BYTES;
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
    fn a_file_that_ends_early_is_an_error() {
        let file = tempfile::tempfile().expect("temporary file");
        let io = DirectIo::default();
        io.write_all_at(&file, &pattern(1 << 20), 0).expect("write");
        let mut buf = vec![0; 1 << 20];
        let error = io.read_exact_at(&file, &mut buf, 1).expect_err("one byte is missing");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
