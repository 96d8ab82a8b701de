//! What both forms of learning have in common: mini-batches in turn, when to judge, and the penalty.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The weight of the penalty for a share that is not the one asked for, as published.
const PENALTY: f64 = 5.0;

/// How often what was learned is judged on the way, the end among them.
const CHECKS: usize = 4;

/// Mini-batches, in an order that is drawn anew whenever all have had their turn.
pub(super) struct Turns {
    all: Vec<usize>,
    coming: Vec<usize>,
    random: ChaCha8Rng,
}

impl Turns {
    /// Of these mini-batches.
    pub(super) fn new(all: Vec<usize>, seed: u64) -> Self {
        Self { all, coming: Vec::new(), random: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Whose turn it is.
    pub(super) fn next(&mut self) -> usize {
        if self.coming.is_empty() {
            self.coming.clone_from(&self.all);
            self.coming.shuffle(&mut self.random);
        }
        self.coming.pop().unwrap_or(0)
    }
}

/// Whether what was learned is judged after step `i` of so many.
pub(super) fn is_checked(i: usize, steps: usize) -> bool {
    (i + 1) * CHECKS / steps > i * CHECKS / steps
}

/// The slope of 5 ((s - s*) / s*)^2 at the share `by_rates`, `share` being what is asked for.
pub(super) fn penalty_slope(by_rates: f64, share: f64) -> f64 {
    2.0 * PENALTY * (by_rates - share) / share.powi(2)
}
