//! How near the outputs of two models are.

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
}

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
        let (a, b): (Vec<f64>, Vec<f64>) = (a.concat(), b.concat());
        if first.kind == OutputKind::Regression {
            self.numbers.extend(a.iter().zip(&b).map(|(&a, &b)| [a, b]));
        }
        self.cosine += cosine(&a, &b);
        self.outputs += 1;
        let differences = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
        self.largest = differences.fold(self.largest, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
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
            cosine: sum(|near| near.cosine) / outputs,
            largest_difference: samples.iter().fold(0.0, |most, near| near.largest.max(most)),
            errors: Errors::default(),
        })
    }
}
