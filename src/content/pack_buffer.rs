//! The bytes of a pack in memory, from its first frame until the store has it: written to the staged file and sent from one
//! place. Buffers are used again, because fresh memory costs more than filling it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::frame::EncodedFrame;

/// Where a pack begins in its buffer: a multiple of what disks want for transfers that bypass the page cache, so that whole
/// pages go out of it without a copy.
const ALIGN: usize = 4096;

/// Room for the directory and footer of a pack of ordinary blocks. A buffer that turns out too short grows, and is only
/// less well aligned then.
const TAIL_BYTES: usize = 64 << 10;

/// Buffers kept for the next pack: one is being filled while one or two are sent.
const KEPT: usize = 2;

/// Hands out buffers and takes them back.
pub(super) struct PackBuffers {
    capacity: usize,
    /// Leaf lock.
    idle: Mutex<Vec<Vec<u8>>>,
}

/// A pack being filled.
pub(super) struct PackBuffer {
    pool: Arc<PackBuffers>,
    /// Begins with what alignment costs.
    memory: Vec<u8>,
    start: usize,
}

impl PackBuffers {
    /// Buffers for packs of `frames_bytes` bytes of frames.
    pub(super) fn new(frames_bytes: u64) -> Arc<Self> {
        let frames_bytes = usize::try_from(frames_bytes).expect("bounded by PACK_FRAMES_BYTES_MAX");
        Arc::new(Self { capacity: frames_bytes + TAIL_BYTES + ALIGN, idle: Mutex::default() })
    }

    pub(super) fn take(self: &Arc<Self>) -> PackBuffer {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut memory = idle.unwrap_or_else(|| Vec::with_capacity(self.capacity));
        memory.clear();
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        memory.resize(start, 0);
        PackBuffer { pool: self.clone(), memory, start }
    }

    fn give_back(&self, memory: Vec<u8>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // One that had to grow is not kept: it would hold more than it was counted for.
        if idle.len() < KEPT && memory.capacity() <= self.capacity {
            idle.push(memory);
        }
    }
}

impl PackBuffer {
    pub(super) fn push(&mut self, frame: &EncodedFrame) {
        frame.write_to(&mut self.memory);
    }

    /// Ends the pack.
    pub(super) fn push_tail(&mut self, tail: &[u8]) {
        self.memory.extend_from_slice(tail);
    }

    /// Forgets what is behind the first `len` bytes.
    pub(super) fn truncate(&mut self, len: usize) {
        self.memory.truncate(self.start + len);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.memory.get(self.start..).unwrap_or_default()
    }

    /// The bytes, to be shared; the memory goes back when the last share does.
    pub(super) fn share(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for PackBuffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Drop for PackBuffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_and_is_used_again() {
        let pool = PackBuffers::new(1 << 20);
        let mut buffer = pool.take();
        buffer.push_tail(b"abc");
        let place = buffer.bytes().as_ptr();
        assert_eq!(place.align_offset(ALIGN), 0);
        let shared = buffer.share();
        let other = pool.take();
        assert_ne!(other.bytes().as_ptr(), place, "shared memory is not handed out");
        assert_eq!(shared, b"abc"[..]);
        drop(shared);
        let mut again = pool.take();
        assert_eq!((again.bytes().as_ptr(), again.bytes().len()), (place, 0));
        again.push_tail(b"abcd");
        again.truncate(2);
        assert_eq!(again.bytes(), b"ab");
    }

    #[test]
    fn a_buffer_that_grew_is_not_kept() {
        let pool = PackBuffers::new(1);
        let mut buffer = pool.take();
        buffer.push_tail(&vec![0; 2 * (TAIL_BYTES + ALIGN)]);
        drop(buffer);
        assert!(pool.idle.lock().expect("no panic").is_empty());
    }
}
