//! How near the outputs of two models are.

use kprune_passes::calculus::objective::OutputKind;

use super::metrics::{argmax, cosine, divergence, label_divergence, spearman};
use super::next_token::Likelihood;
use super::outputs::Output;
use super::quality::Fidelity;

/// Sums over samples of how near a model is to another.
#[derive(Default)]
pub(super) struct Nearness {
    same: f64,
    distributions: usize,
    divergence: f64,
    cosine: f64,
    pub(super) samples: usize,
    largest: f64,
    numbers: [Vec<f64>; 2],
}

impl Nearness {
    pub(super) fn add(&mut self, first: &[Output], own: &[Output]) {
        for (first, own) in first.iter().zip(own) {
            let is_scores = first.kind.is_logits();
            for (a, b) in first.samples.iter().zip(&own.samples) {
                if first.kind == OutputKind::MultiLabel {
                    let same = first.decided(a).iter().zip(own.decided(b)).filter(|(a, b)| **a == *b).count();
                    self.same += same as f64 / a.iter().map(Vec::len).sum::<usize>().max(1) as f64;
                    let [a, b] = [(first, a), (own, b)].map(|(o, rows)| o.form.scores(&rows.concat()));
                    self.divergence += label_divergence(&a, &b);
                    self.distributions += 1;
                }
                for (a, b) in a.iter().zip(b).filter(|_| is_scores && first.kind != OutputKind::MultiLabel) {
                    self.same += f64::from(argmax(a.iter().copied()) == argmax(b.iter().copied()));
                    self.divergence += divergence(&first.form.scores(a), &own.form.scores(b));
                    self.distributions += 1;
                }
                let (a, b): (Vec<f64>, Vec<f64>) = (a.concat(), b.concat());
                if first.kind == OutputKind::Regression {
                    self.numbers[0].extend(&a);
                    self.numbers[1].extend(&b);
                }
                self.cosine += cosine(&a, &b);
                self.samples += 1;
                let differences = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
                self.largest = differences.fold(self.largest, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
            }
        }
    }

    /// Adds what was summed up of next tokens, each of which counts as one.
    pub(super) fn add_tokens(&mut self, sums: &Likelihood) {
        self.same += sums.same;
        self.divergence += sums.divergence;
        self.distributions += sums.tokens as usize;
        self.cosine += sums.cosine;
        self.samples += sums.tokens as usize;
        self.largest = self.largest.max(sums.largest);
    }

    pub(super) fn fidelity(&self) -> Fidelity {
        let has_scores = self.distributions > 0;
        let each = self.distributions as f64;
        Fidelity {
            agreement: has_scores.then(|| self.same / each),
            divergence: has_scores.then(|| self.divergence / each),
            correlation: (!self.numbers[0].is_empty()).then(|| spearman(&self.numbers[0], &self.numbers[1])),
            cosine: self.cosine / self.samples.max(1) as f64,
            largest_difference: self.largest,
        }
    }
}
