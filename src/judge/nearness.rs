//! How near the outputs of two models are.

use std::sync::Arc;

use kprune_passes::calculus::objective::OutputKind;

use super::metrics::{argmax, cosine, divergence, label_divergence, spearman};
use super::outputs::Output;
use super::quality::{Errors, Fidelity};

/// How near a model is to another for one sample; sums over what is compared.
#[derive(Clone, Debug, Default)]
pub(super) struct Near {
    /// How many distributions both have, for how many of them both prefer the same, and KL.
    pub(super) distributions: usize,
    pub(super) same: f64,
    pub(super) divergence: f64,
    /// How many outputs, and their cosines.
    pub(super) outputs: usize,
    pub(super) cosine: f64,
    /// The largest difference of a number.
    pub(super) largest: f64,
    /// Single numbers that both predict.
    pub(super) numbers: Vec<[f64; 2]>,
    /// What both make of the sample, where that is one vector.
    pub(super) embeddings: Option<Arc<[Vec<f64>; 2]>>,
}

/// Similarities are compared between no more samples than this.
const COMPARED: usize = 128;

/// Vectors that are more similar than this are of one sample that was drawn twice.
const SAME: f64 = 1.0 - 1e-12;

impl Near {
    /// Adds a sample of an output: one row, or one for every token, of the first model and of the other.
    pub(super) fn add(&mut self, [first, own]: [&Output; 2], [a, b]: [&[Vec<f64>]; 2]) {
        if first.kind == OutputKind::MultiLabel {
            let same = first.decided(a).iter().zip(own.decided(b)).filter(|(a, b)| **a == *b).count();
            self.same += same as f64 / a.iter().map(Vec::len).sum::<usize>().max(1) as f64;
            let [a, b] = [(first, a), (own, b)].map(|(output, rows)| output.form.scores(&rows.concat()));
            self.divergence += label_divergence(&a, &b);
            self.distributions += 1;
        } else if first.kind.is_logits() {
            for (a, b) in a.iter().zip(b) {
                self.same += f64::from(argmax(a.iter().copied()) == argmax(b.iter().copied()));
                self.divergence += divergence(&first.form.scores(a), &own.form.scores(b));
                self.distributions += 1;
            }
        }
        let is_one = a.len() == 1;
        let (a, b): (Vec<f64>, Vec<f64>) = (a.concat(), b.concat());
        if first.kind == OutputKind::Regression {
            self.numbers.extend(a.iter().zip(&b).map(|(&a, &b)| [a, b]));
        }
        self.cosine += cosine(&a, &b);
        self.outputs += 1;
        let differences = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
        self.largest = differences.fold(self.largest, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
        if first.kind == OutputKind::Hidden && !first.is_whole && is_one && a.len() > 1 {
            self.embeddings = Some(Arc::new([a, b]));
        }
    }

    /// How near the models are over all samples; `None` where nothing was compared.
    pub(super) fn fidelity(samples: &[Self]) -> Option<Fidelity> {
        let sum = |of: fn(&Self) -> f64| samples.iter().map(of).sum::<f64>();
        let (outputs, each) = (sum(|near| near.outputs as f64), sum(|near| near.distributions as f64));
        let mean = |sum: f64| (each > 0.0).then(|| sum / each);
        let (a, b): (Vec<f64>, Vec<f64>) = samples.iter().flat_map(|near| &near.numbers).map(|&[a, b]| (a, b)).unzip();
        (outputs > 0.0).then(|| Fidelity {
            agreement: mean(sum(|near| near.same)),
            divergence: mean(sum(|near| near.divergence)),
            correlation: (!a.is_empty()).then(|| spearman(&a, &b)),
            similarity: similarity(samples),
            cosine: sum(|near| near.cosine) / outputs,
            largest_difference: samples.iter().fold(0.0, |most, near| near.largest.max(most)),
            errors: Errors::default(),
        })
    }
}

/// Spearman's correlation of the similarities between samples in both models: whether the same samples are the nearest. `None`
/// where samples are not embedded, or there are too few.
fn similarity(samples: &[Near]) -> Option<f64> {
    let all: Vec<_> = samples.iter().filter_map(|near| near.embeddings.as_ref()).take(COMPARED).collect();
    let pairs = all.iter().enumerate().flat_map(|(i, one)| all.iter().skip(i + 1).map(move |other| (one, other)));
    let similar = pairs.map(|(one, other)| (cosine(&one[0], &other[0]), cosine(&one[1], &other[1])));
    let (a, b): (Vec<f64>, Vec<f64>) = similar.filter(|(first, _)| *first < SAME).unzip();
    (a.len() > 1).then(|| spearman(&a, &b))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn embedded(vectors: &[[[f64; 2]; 2]]) -> Vec<Near> {
        let near = |[a, b]: &[[f64; 2]; 2]| Near {
            outputs: 1,
            embeddings: Some(Arc::new([a.to_vec(), b.to_vec()])),
            ..Near::default()
        };
        vectors.iter().map(near).collect()
    }

    #[test]
    fn what_is_nearest_may_stay_so_when_all_is_turned() {
        let turned = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.1]].map(|[x, y]| [[x, y], [-y, x]]);
        assert!((similarity(&embedded(&turned)).unwrap() - 1.0).abs() < 1e-9);
        let mut moved = turned;
        moved[1][1] = [0.6, -0.8];
        assert!(similarity(&embedded(&moved)).unwrap() < 0.9);
        assert_eq!(similarity(&embedded(&turned[..1])), None);
    }
}
