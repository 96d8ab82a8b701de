//! The guard: what was best on samples that nothing learnt from, where it is better than what was there before.

use super::student::Learner;
use super::{Distillation, Tried, Values};
use crate::error::Error;

/// The loss of some samples, a mean over them.
#[derive(Clone, Copy)]
pub(super) struct Judged {
    pub(super) samples: usize,
    pub(super) loss: f64,
}

/// The best weights so far.
pub(super) struct Guard {
    before: Vec<Judged>,
    /// Whether they must be better than what was there before.
    is_guarded: bool,
    tried: Vec<Tried>,
    best: Option<(usize, Values)>,
}

impl Guard {
    /// With the losses before any step.
    pub(super) fn new(before: Vec<Judged>, is_guarded: bool) -> Self {
        Self { before, is_guarded, tried: Vec::new(), best: None }
    }

    /// Looks at the weights of the learner, and keeps them where they are the best so far.
    pub(super) fn see(&mut self, steps: usize, way: f64, after: Vec<Judged>, learner: &Learner) -> Result<(), Error> {
        let loss = mean(&after);
        let is_least = self.best.as_ref().is_none_or(|(place, _)| loss < self.tried[*place].loss);
        if is_least && (!self.is_guarded || is_better(&self.before, &after)) {
            self.best = Some((self.tried.len(), learner.weights()?));
        }
        self.tried.push(Tried { steps, way, loss });
        Ok(())
    }

    /// What was done, and the weights to take.
    pub(super) fn finish(self) -> (Distillation, Option<Values>) {
        let samples = self.before.iter().map(|j| j.samples).sum();
        let kept = self.best.as_ref().map(|(place, _)| *place);
        let done = Distillation { samples, before: mean(&self.before), tried: self.tried, kept, difference: None };
        (done, self.best.map(|(_, weights)| weights))
    }
}

fn mean(judged: &[Judged]) -> f64 {
    let samples: usize = judged.iter().map(|j| j.samples).sum();
    judged.iter().map(|j| j.loss * j.samples as f64).sum::<f64>() / samples as f64
}

/// Whether the loss fell by more than one standard error of its fall, over the same batches before and after; one batch
/// tells nothing of that.
fn is_better(before: &[Judged], after: &[Judged]) -> bool {
    let falls: Vec<Judged> =
        before.iter().zip(after).map(|(b, a)| Judged { samples: b.samples, loss: b.loss - a.loss }).collect();
    let (fall, count) = (mean(&falls), falls.len() as f64);
    let samples: usize = falls.iter().map(|j| j.samples).sum();
    let squares = falls.iter().map(|j| (j.samples as f64 * (j.loss - fall)).powi(2)).sum::<f64>();
    let error = (squares * count / (count - 1.0)).sqrt() / samples as f64;
    count > 1.0 && fall > error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(losses: &[f64]) -> Vec<Judged> {
        losses.iter().map(|&loss| Judged { samples: 4, loss }).collect()
    }

    #[test]
    fn a_fall_on_every_batch_is_one_and_a_fall_on_few_is_noise() {
        let before = judged(&[1.0, 2.0, 3.0, 4.0]);
        assert!(is_better(&before, &judged(&[0.9, 1.9, 2.8, 3.8])));
        assert!(!is_better(&before, &judged(&[1.1, 2.1, 3.1, 2.0])), "by 0.42 in the mean, and 0.52 is its error");
        assert!(!is_better(&before, &before), "the same is no better");
        assert!(!is_better(&before, &judged(&[1.1, 2.1, 3.1, 4.1])));
        assert!(!is_better(&before[..1], &judged(&[0.5])), "one batch may be luck");
    }

    #[test]
    fn batches_count_by_their_samples() {
        let judged = [Judged { samples: 3, loss: 1.0 }, Judged { samples: 1, loss: 5.0 }];
        assert_eq!(mean(&judged), 2.0);
    }
}
