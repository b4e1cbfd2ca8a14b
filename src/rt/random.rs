//! Random bits: the kernel's, and a seeded sequence that a test can repeat.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::time::Random;

/// The kernel's generator: fit for ids that nobody else may ever mint.
pub struct SystemRandom;

impl Random for SystemRandom {
    fn next_u64(&self) -> u64 {
        getrandom::u64().expect("every supported kernel has getrandom(2)")
    }
}

/// SplitMix64: the same seed gives the same sequence, if one thread draws it.
pub struct SeededRandom {
    state: AtomicU64,
}

impl SeededRandom {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: AtomicU64::new(seed) }
    }
}

impl Random for SeededRandom {
    fn next_u64(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_sequence() {
        let random = SeededRandom::new(1_234_567);
        // The reference sequence of the published SplitMix64.
        assert_eq!(random.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(random.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn the_kernel_does_not_repeat_itself() {
        assert_ne!(SystemRandom.next_u128(), SystemRandom.next_u128());
    }
}
