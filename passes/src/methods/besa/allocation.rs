//! The rates of all matrices of a block, and how many weights of every row go by them.

use ndarray::{Array1, Array2};

use super::learn::Choice;
use super::prodigy::Prodigy;
use super::rates::{Rates, rounded, tilt_to};
use super::settings::Grain;
use super::steps::penalty_slope;
use crate::sparsity::Pattern;

/// How many weights of every row of a matrix go.
pub type Counts = Vec<Array1<usize>>;

/// The size of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its outputs.
    pub rows: usize,
    /// What every output is made of.
    pub inputs: usize,
    /// Weights of a row that share a scale.
    pub group: usize,
}

impl Shape {
    /// The size of its scales: [rows, groups].
    pub fn scales(&self) -> (usize, usize) {
        (self.rows, self.inputs.div_ceil(self.group.max(1)))
    }
}

/// How much of a block is to go, and where.
#[derive(Clone, Debug)]
pub struct Share {
    /// The sizes of its matrices.
    pub shapes: Vec<Shape>,
    /// The share of its weights.
    pub share: f64,
    /// Where zeros may be.
    pub pattern: Pattern,
}

impl Share {
    /// The same share of every row. With a pattern, of as many whole matrices as it takes, the first of them first.
    fn uniform(&self) -> Counts {
        let rows = |shape: &Shape| rounded((0..shape.rows).map(|_| self.share * shape.inputs as f64));
        match self.pattern {
            Pattern::Unstructured => self.shapes.iter().map(rows).collect(),
            Pattern::Groups { .. } => self.whole(0..self.shapes.len()),
        }
    }

    /// The same share of every row, and no scales.
    pub fn start(&self) -> Choice {
        Choice {
            counts: self.uniform(),
            scales: self.shapes.iter().map(|shape| Array2::ones(shape.scales())).collect(),
        }
    }

    /// Whether all is not said by the share alone.
    fn leaves_a_choice(&self) -> bool {
        self.share < self.pattern.most()
    }

    /// The share that goes.
    pub(super) fn of(&self, counts: &[Array1<usize>]) -> f64 {
        counts.iter().map(|c| c.sum()).sum::<usize>() as f64 / self.weights()
    }

    /// How many weights there are.
    fn weights(&self) -> f64 {
        self.shapes.iter().map(|s| (s.rows * s.inputs) as f64).sum()
    }

    /// All that a pattern lets go of whole matrices, in this order, until as much has gone as comes nearest to the share.
    fn whole(&self, order: impl IntoIterator<Item = usize>) -> Counts {
        let mut counts: Counts = self.shapes.iter().map(|s| Array1::zeros(s.rows)).collect();
        for i in order {
            let without = self.of(&counts);
            let mut with = counts.clone();
            with[i].fill(self.pattern.most_of(self.shapes[i].inputs));
            if (self.of(&with) - self.share).abs() <= (without - self.share).abs() {
                counts = with;
            }
        }
        counts
    }
}

/// The rates of a block, as they are learned.
pub(super) struct Allocation<'a> {
    aim: &'a Share,
    rates: Vec<Rates>,
    prodigy: Prodigy,
}

impl<'a> Allocation<'a> {
    /// All rates alike; `None` where there is nothing to learn.
    pub(super) fn new(aim: &'a Share, grain: Grain) -> Option<Self> {
        let at = |shape: &Shape| Rates::at(aim.share, shape.rows, grain, aim.pattern);
        aim.leaves_a_choice().then(|| {
            let rates: Vec<Rates> = aim.shapes.iter().map(at).collect();
            let prodigy = Prodigy::new(rates.iter().map(|r| &r.logits));
            Self { aim, rates, prodigy }
        })
    }

    /// What goes by the rates as they are.
    pub(super) fn counts(&self) -> Counts {
        self.rates.iter().zip(&self.aim.shapes).map(|(r, shape)| r.counts(shape.inputs)).collect()
    }

    /// What goes where all rates are tilted alike until the share of the block is what it was asked to be.
    pub(super) fn settled(&self) -> Counts {
        if let Pattern::Groups { .. } = self.aim.pattern {
            let mut order: Vec<usize> = (0..self.rates.len()).collect();
            let rate = |i: usize| self.rates[i].means().mean().unwrap_or(0.0);
            order.sort_by(|&a, &b| rate(b).total_cmp(&rate(a)));
            return self.aim.whole(order);
        }
        let tilted = |tilt: f64| {
            let mut rates = self.rates.clone();
            rates.iter_mut().for_each(|r| r.tilt(tilt));
            rates.iter().zip(&self.aim.shapes).map(|(r, s)| r.counts(s.inputs)).collect::<Counts>()
        };
        tilted(tilt_to(|tilt| self.aim.of(&tilted(tilt)), self.aim.share))
    }

    /// Moves the rates against the gradients of the loss, known by `sums` ([`Step`](super::Step)), and of
    /// 5 ((s - s*) / s*)^2 with s the share of the block by the rates, and s* what is asked for.
    pub(super) fn step(&mut self, sums: &[Array2<f64>]) {
        let (shapes, all) = (&self.aim.shapes, self.aim.weights());
        let by_rates: f64 = self.rates.iter().zip(shapes).map(|(r, s)| r.means().sum() * s.inputs as f64).sum();
        let slope = penalty_slope(by_rates / all, self.aim.share);
        let matrices = self.rates.iter().zip(shapes).zip(sums);
        let gradients: Vec<Array2<f64>> =
            matrices.map(|((rates, shape), sums)| rates.gradient(sums, slope * shape.inputs as f64 / all)).collect();
        let mut logits: Vec<&mut Array2<f64>> = self.rates.iter_mut().map(|r| &mut r.logits).collect();
        self.prodigy.step(&mut logits, &gradients);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_share_of_every_row_is_the_share_of_all() {
        let shapes = vec![Shape { rows: 7, inputs: 32, group: 32 }, Shape { rows: 5, inputs: 3, group: 32 }];
        for share in [0.1, 0.5, 0.7, 0.9] {
            let aim = Share { shapes: shapes.clone(), share, pattern: Pattern::Unstructured };
            let counts = aim.uniform();
            assert!((aim.of(&counts) - share).abs() < 0.01, "{share}");
            assert!(counts[0].iter().all(|&n| n.abs_diff((share * 32.0) as usize) <= 1));
        }
    }
}
