//! Which mini-batch every step learns from, and how far it goes.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The steps of a distillation.
pub(super) struct Schedule {
    /// The mini-batch of every step.
    pub(super) steps: Vec<usize>,
}

/// The learning rate at its highest, over the square root of the number of steps, and over the square of how far the streams
/// are apart: few steps are mostly noise, which grows with that root, and what is learnt grows with the number; and who is
/// near has little to learn, and would be moved by noise alone.
const RATE: f64 = 5e-4;

/// No learning rate is higher.
const MOST: f64 = 2e-4;

/// The share of the steps in which it rises.
const WARM_UP: f64 = 0.1;

/// What a pass forward and backward costs, in passes forward: twice as many operations backward, in more and smaller steps,
/// as measured.
const STUDENT: f64 = 4.5;

impl Schedule {
    /// As many steps over the mini-batches called `mini_batches`, in random order, as cost `equivalents` passes of the
    /// teacher, where a student costs `kept` of it, and the teacher runs in no more than the first `asked` passes.
    pub(super) fn new(equivalents: f64, kept: f64, asked: usize, mini_batches: &[usize], seed: u64) -> Self {
        let (asked, student) = (asked as f64, STUDENT * kept);
        let while_asked = equivalents / (1.0 + student);
        let passes = if while_asked <= asked { while_asked } else { (equivalents - asked) / student };
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

    /// The highest learning rate for a student whose streams are so far from the teacher's, relative to their size.
    pub(super) fn highest(&self, apart: f64) -> f64 {
        (RATE * apart.powi(2) * (self.steps.len() as f64).sqrt()).min(MOST)
    }

    /// The learning rate of step `i`: up from 0 in a line to the `highest`, and down to 0 in another.
    pub(super) fn rate(&self, i: usize, highest: f64) -> f32 {
        let (done, all) = (i as f64 + 1.0, self.steps.len() as f64 + 1.0);
        let up = done / (WARM_UP * all).max(1.0);
        let down = (all - done) / (all * (1.0 - WARM_UP)).max(1.0);
        (highest * up.min(down).min(1.0)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_cost_what_was_asked_for() {
        let all: Vec<usize> = (0..10).collect();
        let steps = |equivalents| Schedule::new(equivalents, 0.4, 2, &all, 1).steps;
        assert_eq!(steps(2.8).len(), 10, "2.8 / (1 + 4.5 * 0.4) passes of 10");
        assert_eq!(steps(5.6).len(), 20);
        assert_eq!(steps(6.5).len(), 25, "(6.5 - 2) / (4.5 * 0.4)");
        let schedule = Schedule::new(6.5, 0.4, 2, &all, 1);
        let mut first = schedule.steps[..10].to_vec();
        first.sort_unstable();
        assert_eq!(first, all, "every pass sees every mini-batch");
        assert_ne!(schedule.steps[..10], schedule.steps[10..20]);
    }

    #[test]
    fn rates_rise_and_fall() {
        let schedule = Schedule::new(100.0, 0.0, 100, &[0], 1);
        let rates: Vec<f32> = (0..100).map(|i| schedule.rate(i, 1e-4)).collect();
        let top = rates.iter().cloned().fold(0.0, f32::max);
        assert!(rates[0] < 0.2 * top && rates[99] < 0.02 * top && (0.9e-4..=1e-4).contains(&f64::from(top)));
    }

    #[test]
    fn who_is_near_goes_slowly() {
        let schedule = Schedule::new(100.0, 0.0, 100, &[0], 1);
        assert!((schedule.highest(0.1) / schedule.highest(0.05) - 4.0).abs() < 1e-9);
        assert_eq!(schedule.highest(50.0), MOST);
    }
}
