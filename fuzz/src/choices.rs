//! A stream of choices: from the bytes of a fuzzer while there are any, then from a seed.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Where choices come from.
pub struct Choices<'b> {
    bytes: &'b [u8],
    random: ChaCha8Rng,
}

impl<'b> Choices<'b> {
    /// Choices by a seed alone.
    pub fn seeded(seed: u64) -> Self {
        Self { bytes: &[], random: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Choices by bytes, one for each; when they are used up, by their number.
    pub fn of(bytes: &'b [u8]) -> Self {
        Self { bytes, ..Self::seeded(bytes.len() as u64) }
    }

    /// A number below `count`, which is not 0.
    pub fn below(&mut self, count: usize) -> usize {
        match self.bytes.split_first() {
            Some((&byte, rest)) if count <= 256 => {
                self.bytes = rest;
                usize::from(byte) % count.max(1)
            }
            _ => self.random.random_range(0..count.max(1)),
        }
    }

    /// Yes, once in so many times.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of several.
    pub fn one<'i, T>(&mut self, items: &'i [T]) -> &'i T {
        &items[self.below(items.len())]
    }

    /// A number from -1 to 1.
    pub fn number(&mut self) -> f64 {
        self.random.random_range(-1.0..1.0)
    }

    /// Any 64 bits, small numbers and limits more often than others.
    pub fn integer(&mut self) -> i64 {
        const ODD: [i64; 12] = [0, 1, -1, 2, 3, 7, 255, 1 << 20, 1 << 31, 1 << 40, i64::MAX, i64::MIN];
        if self.once_in(4) { self.random.random() } else { *self.one(&ODD) }
    }
}
