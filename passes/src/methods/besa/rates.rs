//! Rates: which share of a row's weights goes, as a mean of candidates whose probabilities are learned.

use ndarray::{Array1, Array2, Axis};

use super::settings::Grain;
use crate::sparsity::Pattern;

/// Candidates of a rate: shares of a row from none to all in steps of one in a hundred; where a pattern lets no more go than
/// a part of them, none or all of that part.
pub(super) fn candidates(pattern: Pattern) -> Vec<f64> {
    match pattern {
        Pattern::Unstructured => (0..=STEPS).map(|d| d as f64 / STEPS as f64).collect(),
        Pattern::Groups { .. } => vec![0.0, pattern.most()],
    }
}

const STEPS: usize = 100;

/// The standard deviation of the candidates, to begin with.
const SPREAD: f64 = 0.1;

/// How many of the weights of a row so wide go with each candidate.
pub fn candidate_counts(pattern: Pattern, inputs: usize) -> Vec<usize> {
    match pattern {
        Pattern::Unstructured => (0..=STEPS).map(|d| d * inputs / STEPS).collect(),
        Pattern::Groups { .. } => vec![0, pattern.most_of(inputs)],
    }
}

/// The rates of a matrix: for every row, or for all together, the logits of its candidates.
#[derive(Clone, Debug)]
pub struct Rates {
    /// [rows, candidates], or [1, candidates].
    pub(super) logits: Array2<f64>,
    candidates: Array1<f64>,
    pattern: Pattern,
    /// Rows of the matrix.
    rows: usize,
}

impl Rates {
    /// All at `share`, with probabilities that fall off around it as a normal distribution does. Gradients are then about
    /// what weights near to it cost, and not those that go or stay in any case.
    pub fn at(share: f64, rows: usize, grain: Grain, pattern: Pattern) -> Self {
        let candidates = Array1::from_vec(candidates(pattern));
        let logits = candidates.mapv(|rate| -((rate - share) / SPREAD).powi(2) / 2.0).insert_axis(Axis(0));
        let one = Self { logits, candidates, pattern, rows: 1 };
        let tilted = |tilt: f64| {
            let mut rates = one.clone();
            rates.tilt(tilt);
            rates
        };
        let own = tilted(tilt_to(|tilt| tilted(tilt).means()[0], share));
        let count = if grain == Grain::Row { rows } else { 1 };
        let logits = own.logits.broadcast((count, own.logits.ncols())).map_or(own.logits.clone(), |l| l.to_owned());
        Self { logits, rows, ..own }
    }

    /// Makes larger candidates likelier, by a factor of exp(`by`) from none to all.
    pub fn tilt(&mut self, by: f64) {
        self.logits += &(&self.candidates * by);
    }

    /// The probabilities of the candidates: softmax of the logits.
    fn probabilities(&self) -> Array2<f64> {
        let mut probabilities = self.logits.clone();
        for mut row in probabilities.rows_mut() {
            let largest = row.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            row.mapv_inplace(|z| (z - largest).exp());
            let sum = row.sum();
            row /= sum;
        }
        probabilities
    }

    /// The rates: alpha, for every row: `[rows]`.
    pub fn means(&self) -> Array1<f64> {
        let means = self.probabilities().dot(&self.candidates);
        if means.len() == self.rows { means } else { Array1::from_elem(self.rows, means[0]) }
    }

    /// How many weights of every row go, of rows so wide: what its rate says, where what one row cannot have for rounding
    /// falls to the next; with a pattern, all that it lets go or none, whatever the rate is nearer to.
    pub fn counts(&self, inputs: usize) -> Array1<usize> {
        let means = self.means();
        match self.pattern {
            Pattern::Unstructured => rounded(means.iter().map(|mean| mean * inputs as f64)),
            Pattern::Groups { .. } => {
                let takes =
                    |mean: &f64| if 2.0 * mean >= self.pattern.most() { self.pattern.most_of(inputs) } else { 0 };
                means.iter().map(takes).collect()
            }
        }
    }

    /// The gradient with respect to the logits, [rows or 1, candidates], of a loss whose gradients with respect to masks are
    /// known: `sums[[i, d]]` is the sum of gradient times weight over those of row i that go at candidate d, and `of_share` the
    /// gradient with respect to the rate of a row.
    ///
    /// With pi the probabilities, a weight at place r of its row stays with probability 1 - sum over d of pi_d where r is
    /// below the count of d; so dL/dpi_d = -sums_d + of_share p_d, and dL/dlogits = pi (g - <g, pi>).
    pub fn gradient(&self, sums: &Array2<f64>, of_share: f64) -> Array2<f64> {
        let probabilities = self.probabilities();
        let mut gradient = match self.logits.nrows() == sums.nrows() {
            true => -sums,
            false => -sums.sum_axis(Axis(0)).insert_axis(Axis(0)),
        };
        let rows_of_each = self.rows as f64 / self.logits.nrows() as f64;
        gradient += &(&self.candidates * (of_share * rows_of_each));
        let mean = (&gradient * &probabilities).sum_axis(Axis(1)).insert_axis(Axis(1));
        (gradient - mean) * probabilities
    }
}

/// Whole numbers whose sums, from the first to any of them, are those of `numbers` rounded down.
pub(super) fn rounded(numbers: impl Iterator<Item = f64>) -> Array1<usize> {
    let (mut sum, mut taken) = (0.0, 0);
    let whole = |number: f64| {
        sum += number;
        let count = ((sum + ROUNDING).floor() as usize).saturating_sub(taken);
        taken += count;
        count
    };
    numbers.map(whole).collect()
}

/// A share such as 0.29 times 100 is a little less than 29.
const ROUNDING: f64 = 1e-6;

/// The tilt for which `share_at`, which rises with it, is nearest to `share`.
pub(super) fn tilt_to(share_at: impl Fn(f64) -> f64, share: f64) -> f64 {
    let (mut low, mut high) = (-STEEPEST, STEEPEST);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        match share_at(middle) < share {
            true => low = middle,
            false => high = middle,
        }
    }
    0.5 * (low + high)
}

/// A candidate is at most e^1000 times as likely as its neighbour.
const STEEPEST: f64 = 1e5;
const HALVINGS: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn rates_start_where_they_are_asked_to_be() {
        for share in [0.1, 0.5, 0.7, 0.8, 0.9] {
            for grain in [Grain::Row, Grain::Matrix] {
                let rates = Rates::at(share, 3, grain, Pattern::Unstructured);
                assert!(rates.means().iter().all(|mean| (mean - share).abs() < 1e-6), "{share}");
                let gone: usize = rates.counts(33).sum();
                assert!((gone as f64 - share * 99.0).abs() <= 1.0, "{share} {gone}");
            }
        }
    }

    #[test]
    fn a_pattern_takes_a_row_or_leaves_it() {
        let pattern: Pattern = "2:4".parse().unwrap();
        let mut rates = Rates::at(0.24, 2, Grain::Row, pattern);
        assert_eq!(rates.counts(8), array![0, 0]);
        rates.logits[[1, 1]] += 1.0;
        assert_eq!(rates.counts(8), array![0, 4]);
    }

    /// The probability of every weight of a row to stay, by its place.
    fn stays(rates: &Rates, row: usize, inputs: usize) -> Vec<f64> {
        let probabilities = rates.probabilities();
        let own = probabilities.row(row.min(probabilities.nrows() - 1));
        let counts = candidate_counts(rates.pattern, inputs);
        (0..inputs)
            .map(|r| 1.0 - own.iter().zip(&counts).filter(|(_, n)| r < **n).map(|(p, _)| p).sum::<f64>())
            .collect()
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (rows, inputs) = (3, 10);
        // A loss that is linear in the masks, and in the rates.
        let slope = |i: usize, r: usize| ((i * 7 + r * 3) % 5) as f64 - 1.7;
        let of_share = 0.6;
        let loss = |rates: &Rates| {
            let masks: f64 = (0..rows)
                .map(|i| stays(rates, i, inputs).iter().enumerate().map(|(r, m)| m * slope(i, r)).sum::<f64>())
                .sum();
            masks + of_share * rates.means().sum()
        };
        let counts = candidate_counts(Pattern::Unstructured, inputs);
        let sums = Array2::from_shape_fn((rows, counts.len()), |(i, d)| (0..counts[d]).map(|r| slope(i, r)).sum());
        for grain in [Grain::Row, Grain::Matrix] {
            let mut rates = Rates::at(0.4, rows, grain, Pattern::Unstructured);
            rates.logits.indexed_iter_mut().for_each(|((i, d), z)| *z += ((i + 2 * d) % 7) as f64 * 0.1);
            let gradient = rates.gradient(&sums, of_share);
            for (i, d) in [(0, 0), (0, 33), (0, 100), (rates.logits.nrows() - 1, 57)] {
                let at = |by: f64| {
                    let mut moved = rates.clone();
                    moved.logits[[i, d]] += by;
                    loss(&moved)
                };
                let expected = (at(1e-4) - at(-1e-4)) / 2e-4;
                assert!((gradient[[i, d]] - expected).abs() < 1e-7 + 1e-4 * expected.abs(), "{grain:?} {i} {d}");
            }
        }
    }
}
