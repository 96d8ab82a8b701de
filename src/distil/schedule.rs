//! Which mini-batch every step learns from, and how far it goes.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The steps of a distillation.
pub(super) struct Schedule {
    /// The mini-batch of every step.
    pub(super) steps: Vec<usize>,
}

/// The learning rate at its highest, over the square root of the number of steps: few steps are mostly noise, which grows
/// with that root, and what is learnt grows with the number.
const RATE: f64 = 1.6e-6;

/// No learning rate is higher.
const MOST: f64 = 5e-5;

/// The share of the steps in which it rises.
const WARM_UP: f64 = 0.1;

/// How often the student is judged on the way, the end among them.
pub(super) const CHECKS: usize = 4;

/// A pass backward costs as much as two forward.
const STUDENT: f64 = 3.0;

impl Schedule {
    /// As many steps over the mini-batches called `mini_batches`, in random order, as cost `equivalents` passes of the
    /// teacher, where a student costs `kept` of it.
    pub(super) fn new(equivalents: f64, kept: f64, mini_batches: &[usize], seed: u64) -> Self {
        let passes = equivalents / (1.0 + STUDENT * kept);
        let wanted = ((passes * mini_batches.len() as f64).round() as usize).max(1);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut steps = Vec::new();
        while steps.len() < wanted && !mini_batches.is_empty() {
            let mut pass = mini_batches.to_vec();
            pass.shuffle(&mut random);
            steps.extend(pass);
        }
        steps.truncate(wanted);
        Self { steps }
    }

    /// The learning rate of step `i`: up from 0 in a line, and down to 0 in another.
    pub(super) fn rate(&self, i: usize) -> f32 {
        let (done, all) = (i as f64 + 1.0, self.steps.len() as f64 + 1.0);
        let up = done / (WARM_UP * all).max(1.0);
        let down = (all - done) / (all * (1.0 - WARM_UP)).max(1.0);
        let highest = (RATE * (all - 1.0).sqrt()).min(MOST);
        (highest * up.min(down).min(1.0)) as f32
    }

    /// Whether the student is judged after step `i`.
    pub(super) fn is_checked(&self, i: usize) -> bool {
        let part = |i: usize| i * CHECKS / self.steps.len();
        part(i + 1) > part(i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_cost_what_was_asked_for() {
        let all: Vec<usize> = (0..10).collect();
        let schedule = Schedule::new(5.5, 0.4, &all, 1);
        assert_eq!(schedule.steps.len(), 25, "5.5 / (1 + 3 * 0.4) passes of 10");
        let mut first = schedule.steps[..10].to_vec();
        first.sort_unstable();
        assert_eq!(first, all, "every pass sees every mini-batch");
        assert_ne!(schedule.steps[..10], schedule.steps[10..20]);
        let checked: Vec<usize> = (0..25).filter(|&i| schedule.is_checked(i)).collect();
        assert_eq!((checked.len(), checked.last()), (CHECKS, Some(&24)));
    }

    #[test]
    fn rates_rise_and_fall() {
        let schedule = Schedule::new(100.0, 0.0, &[0], 1);
        let rates: Vec<f32> = (0..100).map(|i| schedule.rate(i)).collect();
        let top = rates.iter().cloned().fold(0.0, f32::max);
        assert!(rates[0] < 0.2 * top && rates[99] < 0.02 * top && (1.4e-5..1.6e-5).contains(&top));
    }
}
