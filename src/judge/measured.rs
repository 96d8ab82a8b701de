//! What a model gave, sample by sample, and the numbers that follow from it, with how sure they are.
//!
//! Standard errors are those of the bootstrap (Efron 1979): the spread of a number over sets of samples that are drawn
//! with replacement. Two models are drawn together, so that of their difference only the samples count that they differ in.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::nearness::Near;
use super::next_token::Likelihood;
use super::predictions::Predictions;
use super::quality::{Changed, Drop, Errors, Fidelity, Judgement, MOST_CHANGED, PERPLEXITY, Score};

/// So many sets are drawn.
const DRAWS: usize = 200;

/// Fewer samples tell nothing of a spread.
const FEWEST: usize = 8;

/// What a model gave.
#[derive(Clone, Default)]
pub(super) struct Measured {
    /// What it predicts beside what is right.
    pub(super) predictions: Predictions,
    /// How near it is to the first model, for every sample.
    pub(super) nearness: Vec<Near>,
    /// How likely the tokens that follow are to it, for every sample.
    pub(super) likelihood: Vec<Likelihood>,
    /// Samples for which it prefers another class than the first model.
    pub(super) changed: Vec<Changed>,
}

/// Everything that is said of a model, as numbers: what nobody knows is not a number.
#[derive(Clone)]
struct Numbers {
    scores: Vec<f64>,
    agreement: f64,
    divergence: f64,
    correlation: f64,
    similarity: f64,
    cosine: f64,
    drop: f64,
}

impl Measured {
    /// What it is worth, and how much less than the first of those that are judged.
    pub(super) fn judgement(&self, samples: usize, first: Option<&Self>) -> Judgement {
        let mut judgement = self.plain(samples, first);
        judgement.changed = self.changed.clone();
        judgement.changed.sort_by_key(|changed| changed.sample);
        judgement.changed.truncate(MOST_CHANGED);
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let draws: Vec<Numbers> = (0..if samples < FEWEST { 0 } else { DRAWS })
            .map(|_| {
                let rows: Vec<usize> = (0..samples).map(|_| random.random_range(0..samples)).collect();
                let first = first.map(|first| first.picked(&rows));
                Numbers::of(&self.picked(&rows).plain(samples, first.as_ref()))
            })
            .collect();
        let one = 1.0 / self.count().max(1) as f64;
        let error = |of: &dyn Fn(&Numbers) -> f64, is_share: bool| {
            let spread = spread(draws.iter().map(of))?;
            // Where no sample differs, the next one may.
            Some(if is_share { spread.max(one) } else { spread })
        };
        for (place, score) in judgement.scores.iter_mut().enumerate() {
            score.error = error(&|n| n.scores.get(place).copied().unwrap_or(f64::NAN), score.is_share());
        }
        if let Some(fidelity) = &mut judgement.fidelity {
            fidelity.errors = Errors {
                agreement: error(&|n| n.agreement, true),
                divergence: error(&|n| n.divergence, false),
                correlation: error(&|n| n.correlation, false),
                similarity: error(&|n| n.similarity, false),
                cosine: error(&|n| n.cosine, false),
            };
        }
        let is_share = judgement.is_share();
        if let Some(drop) = &mut judgement.drop {
            drop.error = error(&|n| n.drop, is_share);
        }
        judgement
    }

    /// The same without a word on how sure it is.
    fn plain(&self, samples: usize, first: Option<&Self>) -> Judgement {
        let (scores, fidelity) = (self.scores(), first.and_then(|_| Near::fidelity(&self.nearness)));
        let mut judgement = Judgement { samples, scores, drop: None, fidelity, changed: Vec::new() };
        judgement.drop = first.filter(|_| judgement.is_known()).map(|first| {
            let value = judgement.drop_from(&first.scores());
            Drop { value, error: None }
        });
        judgement
    }

    /// Scores on what is right, the most telling first.
    fn scores(&self) -> Vec<Score> {
        let perplexity = Likelihood::perplexity(&self.likelihood);
        let perplexity = perplexity.map(|value| Score { name: PERPLEXITY, value, error: None });
        perplexity.into_iter().chain(self.predictions.scores()).collect()
    }

    /// Predictions that were compared, each of which can change.
    fn count(&self) -> usize {
        match self.predictions.count() {
            0 => self.nearness.iter().map(|near| near.distributions).sum(),
            count => count,
        }
    }

    fn picked(&self, rows: &[usize]) -> Self {
        let nearness = rows.iter().filter_map(|&row| self.nearness.get(row).cloned()).collect();
        let likelihood = rows.iter().filter_map(|&row| self.likelihood.get(row).copied()).collect();
        Self { predictions: self.predictions.picked(rows), nearness, likelihood, changed: Vec::new() }
    }
}

impl Numbers {
    fn of(judgement: &Judgement) -> Self {
        let fidelity = judgement.fidelity.as_ref();
        let of = |field: fn(&Fidelity) -> Option<f64>| fidelity.and_then(field).unwrap_or(f64::NAN);
        Self {
            scores: judgement.scores.iter().map(|score| score.value).collect(),
            agreement: of(|f| f.agreement),
            divergence: of(|f| f.divergence),
            correlation: of(|f| f.correlation),
            similarity: of(|f| f.similarity),
            cosine: of(|f| Some(f.cosine)),
            drop: judgement.drop.as_ref().map_or(f64::NAN, |drop| drop.value),
        }
    }
}

/// The standard deviation of numbers; `None` where some are none, or there are too few.
fn spread(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let numbers: Vec<f64> = numbers.collect();
    let count = numbers.len() as f64;
    let mean = numbers.iter().sum::<f64>() / count;
    let squares: f64 = numbers.iter().map(|x| (x - mean) * (x - mean)).sum();
    Some((squares / (count - 1.0)).sqrt()).filter(|spread| numbers.len() > 1 && spread.is_finite())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::data::Labels;
    use crate::judge::outputs::Output;

    /// A classifier that is right but for every n-th sample.
    fn classifier(samples: usize, wrong: usize) -> Measured {
        let right: Vec<i64> = (0..samples).map(|i| (i % 2) as i64).collect();
        let scores = |i: usize| {
            let is_wrong = wrong > 0 && i.is_multiple_of(wrong);
            let first = i.is_multiple_of(2) != is_wrong;
            vec![vec![f64::from(first), f64::from(!first)]]
        };
        let output = Output::logits((0..samples).map(scores).collect());
        let mut measured = Measured::default();
        measured.predictions.add(&[output], &Labels::Classes(right)).unwrap();
        measured
    }

    #[test]
    fn the_error_of_a_share_is_that_of_the_binomial() {
        let judged = classifier(400, 10).judgement(400, None);
        let (value, error) = (judged.scores[0].value, judged.scores[0].error.unwrap());
        assert_eq!((judged.scores[0].name, value), ("accuracy", 0.9));
        let expected = (0.9f64 * 0.1 / 400.0).sqrt();
        assert!((error / expected - 1.0).abs() < 0.2, "{error} {expected}");
    }

    #[test]
    fn of_a_drop_only_the_samples_count_that_changed() {
        let (first, second) = (classifier(400, 10), classifier(400, 5));
        let judged = second.judgement(400, Some(&first));
        let drop = judged.drop.unwrap();
        assert!((drop.value - 0.1).abs() < 1e-9);
        // 40 of 400 changed, all for the worse.
        let expected = (40.0 - 40.0 * 40.0 / 400.0f64).sqrt() / 400.0;
        assert!((drop.error.unwrap() / expected - 1.0).abs() < 0.2, "{drop:?}");
        let same = first.judgement(400, Some(&first)).drop.unwrap();
        assert_eq!((same.value, same.error), (0.0, Some(1.0 / 400.0)), "the next sample may differ");
    }

    #[test]
    fn few_samples_say_nothing_of_their_spread() {
        let judged = classifier(7, 2).judgement(7, None);
        assert_eq!(judged.scores[0].error, None);
    }
}
