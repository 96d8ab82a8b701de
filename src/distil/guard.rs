//! The guard: what was learnt stays unless samples that nothing learnt from tell that it is worse.

use super::{Distillation, Tried};

/// The loss of some samples, a mean over them.
#[derive(Clone, Copy)]
pub(super) struct Judged {
    pub(super) samples: usize,
    pub(super) loss: f64,
}

/// What was tried so far.
pub(super) struct Guard {
    before: Vec<Judged>,
    /// Whether weights that are worse are refused.
    is_strict: bool,
    tried: Vec<Tried>,
    kept: Option<usize>,
}

impl Guard {
    /// With the losses before any step.
    pub(super) fn new(before: Vec<Judged>, is_strict: bool) -> Self {
        Self { before, is_strict, tried: Vec::new(), kept: None }
    }

    /// Whether weights are taken: those that are no worse than the weights before any step.
    pub(super) fn takes(&mut self, steps: usize, way: f64, after: &[Judged]) -> bool {
        let is_taken = !self.is_strict || !is_worse(&self.before, after);
        self.kept = is_taken.then_some(self.tried.len());
        self.tried.push(Tried { steps, way, loss: mean(after) });
        is_taken
    }

    /// What was done.
    pub(super) fn finish(self) -> Distillation {
        let samples = self.before.iter().map(|j| j.samples).sum();
        Distillation { samples, before: mean(&self.before), tried: self.tried, kept: self.kept, difference: None }
    }
}

fn mean(judged: &[Judged]) -> f64 {
    let samples: usize = judged.iter().map(|j| j.samples).sum();
    judged.iter().map(|j| j.loss * j.samples as f64).sum::<f64>() / samples as f64
}

/// Whether the loss rose by more than one standard error of its rise, over the same batches before and after; of one batch,
/// which tells nothing of that, whether it rose at all.
fn is_worse(before: &[Judged], after: &[Judged]) -> bool {
    let rises: Vec<Judged> =
        before.iter().zip(after).map(|(b, a)| Judged { samples: b.samples, loss: a.loss - b.loss }).collect();
    let (rise, count) = (mean(&rises), rises.len() as f64);
    let samples: usize = rises.iter().map(|j| j.samples).sum();
    let squares = rises.iter().map(|j| (j.samples as f64 * (j.loss - rise)).powi(2)).sum::<f64>();
    let error = if count > 1.0 { (squares * count / (count - 1.0)).sqrt() / samples as f64 } else { 0.0 };
    rise > error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(losses: &[f64]) -> Vec<Judged> {
        losses.iter().map(|&loss| Judged { samples: 4, loss }).collect()
    }

    #[test]
    fn a_rise_on_every_batch_is_one_and_a_rise_on_few_is_noise() {
        let before = judged(&[1.0, 2.0, 3.0, 4.0]);
        assert!(is_worse(&before, &judged(&[1.1, 2.1, 3.2, 4.2])));
        assert!(!is_worse(&before, &judged(&[0.9, 1.9, 2.9, 5.0])), "by 0.18 in the mean, and 0.28 is its error");
        assert!(!is_worse(&before, &before), "the same is no worse");
        assert!(is_worse(&before[..1], &judged(&[1.01])) && !is_worse(&before[..1], &judged(&[0.99])));
    }

    #[test]
    fn what_is_worse_is_taken_only_where_nobody_minds() {
        let (before, after) = (judged(&[1.0, 2.0]), judged(&[2.0, 3.0]));
        let mut strict = Guard::new(before.clone(), true);
        assert!(!strict.takes(9, 1.0, &after) && strict.takes(9, 0.5, &before));
        let done = strict.finish();
        assert_eq!((done.kept, done.tried.len(), done.before, done.samples), (Some(1), 2, 1.5, 8));
        assert!(Guard::new(before, false).takes(9, 1.0, &after));
    }

    #[test]
    fn batches_count_by_their_samples() {
        let judged = [Judged { samples: 3, loss: 1.0 }, Judged { samples: 1, loss: 5.0 }];
        assert_eq!(mean(&judged), 2.0);
    }
}
