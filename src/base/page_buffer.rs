//! Memory for bodies of megabytes: aligned to pages, so that disks take it without a copy, and used again, because fresh
//! memory costs more than filling it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// What transfers past the page cache want offsets, lengths and addresses to be a multiple of: the largest logical block of
/// any disk.
pub const PAGE_BYTES: usize = 4096;

/// Bodies of ranges kept for the next: about as many as are on their way at once. Their memory is counted by whoever asks for
/// so much.
const RANGES_KEPT: usize = 4;

/// Ranges of packs are shorter; a rare long object must not stay for ever.
const RANGE_BYTES_MAX: usize = 9 << 20;

/// Shorter memory is not kept: the allocator has it at hand, and it would push out what is worth keeping.
const KEPT_BYTES_MIN: usize = 256 << 10;

/// Hands out buffers and takes them back.
pub struct PageBuffers {
    kept_max: usize,
    kept_bytes_max: usize,
    /// Leaf lock.
    idle: Mutex<Vec<Vec<u8>>>,
}

/// Bytes being gathered.
pub struct PageBuffer {
    pool: Arc<PageBuffers>,
    /// All of it is initialised; what is used of it is between `start` and `end`.
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl PageBuffers {
    /// Keeps up to `kept_max` buffers for the next bodies, none that was made for more than `kept_bytes_max` bytes.
    #[must_use]
    pub fn new(kept_max: usize, kept_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { kept_max, kept_bytes_max, idle: Mutex::default() })
    }

    /// For the ranges of packs that a store reads.
    #[must_use]
    pub fn for_ranges() -> Arc<Self> {
        Self::new(RANGES_KEPT, RANGE_BYTES_MAX)
    }

    /// An empty buffer with room for `capacity` bytes, which begins `into_page` bytes behind the start of a page.
    #[must_use]
    pub fn take(self: &Arc<Self>, capacity: usize, into_page: usize) -> PageBuffer {
        let needed = memory_bytes(capacity);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Not a much longer one: a small body that is kept would hold all of it.
        let fitting = idle.iter().position(|memory| (needed..=2 * needed).contains(&memory.len()));
        let found = fitting.map(|at| idle.remove(at));
        drop(idle);
        let memory = found.unwrap_or_else(|| vec![0; needed]);
        let start = memory.as_ptr().align_offset(PAGE_BYTES) + into_page % PAGE_BYTES;
        PageBuffer { pool: self.clone(), memory, start, end: start }
    }

    fn give_back(&self, memory: Vec<u8>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if (KEPT_BYTES_MIN..=memory_bytes(self.kept_bytes_max)).contains(&memory.len()) {
            idle.push(memory);
        }
        // Lengths nobody asks for any more go first.
        if self.kept_max < idle.len() {
            idle.remove(0);
        }
    }
}

/// For `capacity` bytes wherever in a page they begin, and wherever the allocator puts them.
fn memory_bytes(capacity: usize) -> usize {
    capacity + 2 * PAGE_BYTES
}

impl PageBuffer {
    /// Appends. A buffer that turns out too short moves to a longer one.
    pub fn extend(&mut self, bytes: &[u8]) {
        let end = self.end + bytes.len();
        if self.memory.len() < end {
            let into_page = self.bytes().as_ptr().addr() % PAGE_BYTES;
            let mut longer = self.pool.take(2 * (end - self.start), into_page);
            longer.extend(self.bytes());
            *self = longer;
        }
        let end = self.end + bytes.len();
        self.memory.get_mut(self.end..end).expect("made room").copy_from_slice(bytes);
        self.end = end;
    }

    /// The first `len` bytes, to be filled by a reader; what is in them and was not appended is arbitrary.
    ///
    /// # Panics
    /// Beyond the capacity it was taken with.
    pub fn fill(&mut self, len: usize) -> &mut [u8] {
        self.end = self.start + len;
        self.memory.get_mut(self.start..self.end).expect("within its capacity")
    }

    /// Forgets what is behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.end = self.end.min(self.start + len);
    }

    /// What is in it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.memory.get(self.start..self.end).unwrap_or_default()
    }

    /// The bytes, to be shared; the memory goes back when the last share does.
    #[must_use]
    pub fn share(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for PageBuffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_and_is_used_again() {
        let pool = PageBuffers::new(1, 1 << 20);
        let mut buffer = pool.take(1 << 20, 0);
        buffer.extend(b"abc");
        let place = buffer.bytes().as_ptr();
        assert_eq!(place.align_offset(PAGE_BYTES), 0);
        let shared = buffer.share();
        let other = pool.take(1 << 20, 0);
        assert_ne!(other.bytes().as_ptr(), place, "shared memory is not handed out");
        assert_eq!(shared, b"abc"[..]);
        drop(shared);
        let mut again = pool.take(1 << 20, 0);
        assert_eq!((again.bytes().as_ptr(), again.bytes().len()), (place, 0));
        again.extend(b"abcd");
        again.truncate(2);
        assert_eq!(again.bytes(), b"ab");
    }

    #[test]
    fn a_buffer_begins_where_in_a_page_it_was_asked_to_also_after_it_grew() {
        let pool = PageBuffers::new(1, 1 << 20);
        for into_page in [0, 1, 4095] {
            let mut buffer = pool.take(10, into_page);
            buffer.extend(&[7; 10]);
            assert_eq!(buffer.bytes().as_ptr() as usize % PAGE_BYTES, into_page);
            buffer.extend(&[8; 100_000]);
            assert_eq!(buffer.bytes().as_ptr() as usize % PAGE_BYTES, into_page);
            assert!(buffer.bytes().starts_with(&[7; 10]) && buffer.bytes().ends_with(&[8; 100_000]));
            assert_eq!(buffer.bytes().len(), 100_010);
        }
    }

    #[test]
    fn long_buffers_and_many_are_not_kept() {
        let pool = PageBuffers::new(1, 1 << 20);
        let kept = || pool.idle.lock().expect("no panic").len();
        drop(pool.take((1 << 20) + 1, 0));
        assert_eq!(kept(), 0);
        let (first, second) = (pool.take(1 << 19, 0), pool.take(1 << 20, 0));
        let place = second.bytes().as_ptr();
        drop((first, second));
        assert_eq!(kept(), 1);
        assert_eq!(pool.take(1 << 20, 0).bytes().as_ptr(), place, "the last one is kept");
    }

    #[test]
    fn a_small_body_does_not_get_much_memory() {
        let pool = PageBuffers::new(1, 1 << 20);
        drop(pool.take(1 << 20, 0));
        assert!(pool.take(1 << 10, 0).memory.len() < 1 << 14);
        assert!(pool.take(600 << 10, 0).memory.len() > 1 << 20);
    }

    #[test]
    fn a_reader_fills_what_it_asks_for() {
        let pool = PageBuffers::new(1, 1 << 20);
        let mut buffer = pool.take(5, 3);
        buffer.fill(5).copy_from_slice(b"hello");
        assert_eq!(buffer.share(), b"hello"[..]);
    }
}
