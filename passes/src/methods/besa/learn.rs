//! How the rates of a block are learned.

use ndarray::{Array1, Array2};

use super::prodigy::Prodigy;
use super::rates::{Rates, rounded, tilt_to};
use super::settings::Settings;
use super::steps::{Turns, is_checked, penalty_slope};
use crate::methods::Failure;
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
}

/// A block, as it is learned: without weights, how far is what it gives from what it gave?
pub trait Reconstruction {
    /// How many mini-batches there are to learn from.
    fn mini_batches(&self) -> usize;

    /// Runs a mini-batch, forward and backward, with the first so many weights of every row's order gone.
    ///
    /// # Errors
    /// Where a number is not finite, or ONNX Runtime fails.
    fn step(&mut self, mini_batch: usize, counts: &[Array1<usize>]) -> Result<Step, Failure>;

    /// The loss on samples that nothing is learned from, forward.
    ///
    /// # Errors
    /// As [`Reconstruction::step`].
    fn judge(&mut self, counts: &[Array1<usize>]) -> Result<f64, Failure>;
}

/// What a mini-batch gives.
pub struct Step {
    /// The error of what the block gives, relative to what it gave before, a mean over tokens.
    pub loss: f64,
    /// For every matrix the sum of gradient times weight over the weights of a row that go at a candidate: [rows,
    /// candidates]. The gradient is that of the loss with respect to the weight as it is multiplied.
    pub sums: Vec<Array2<f64>>,
}

/// What was learned.
#[derive(Clone, Debug)]
pub struct Learnt {
    /// How many weights of every row go.
    pub counts: Counts,
    /// The loss on samples that nothing was learned from, with the same share of every row gone.
    pub before: f64,
    /// The same with what was learned; no more than before.
    pub after: f64,
}

/// Learns the rates of the matrices of a block, of which `share` is to go. What is best on samples that nothing was learned
/// from stays, be it that the same share of every row goes.
///
/// # Errors
/// As [`Reconstruction`].
pub fn learn(
    block: &mut dyn Reconstruction,
    shapes: &[Shape],
    share: f64,
    pattern: Pattern,
    settings: &Settings,
    seed: u64,
) -> Result<Learnt, Failure> {
    let start = uniform(shapes, share, pattern);
    let before = block.judge(&start)?;
    let mut best = Learnt { counts: start, before, after: before };
    if share >= pattern.most() || block.mini_batches() == 0 {
        return Ok(best);
    }
    let rates = |shape: &Shape| Rates::at(share, shape.rows, settings.grain, pattern);
    let mut rates: Vec<Rates> = shapes.iter().map(rates).collect();
    let mut prodigy = Prodigy::new(rates.iter().map(|r| &r.logits));
    let mut turns = Turns::new((0..block.mini_batches()).collect(), seed);
    for i in 0..settings.steps {
        let counts: Counts = rates.iter().zip(shapes).map(|(r, shape)| r.counts(shape.inputs)).collect();
        let step = block.step(turns.next(), &counts)?;
        let gradients = gradients(&rates, shapes, &step, share);
        let mut logits: Vec<&mut Array2<f64>> = rates.iter_mut().map(|r| &mut r.logits).collect();
        prodigy.step(&mut logits, &gradients);
        if is_checked(i, settings.steps) {
            let counts = settled(&rates, shapes, share, pattern);
            let after = block.judge(&counts)?;
            if after < best.after {
                best = Learnt { counts, before, after };
            }
        }
    }
    Ok(best)
}

/// The same share of every row. With a pattern, of as many whole matrices as it takes, the first of them first.
pub fn uniform(shapes: &[Shape], share: f64, pattern: Pattern) -> Counts {
    match pattern {
        Pattern::Unstructured => shapes.iter().map(|s| rounded((0..s.rows).map(|_| share * s.inputs as f64))).collect(),
        Pattern::Groups { .. } => whole(shapes, &(0..shapes.len()).collect::<Vec<_>>(), share, pattern),
    }
}

/// The gradients with respect to the logits of all matrices: of the loss, and of 5 ((s - s*) / s*)^2 with s the share of the
/// block by the rates, and s* what is asked for.
fn gradients(rates: &[Rates], shapes: &[Shape], step: &Step, share: f64) -> Vec<Array2<f64>> {
    let all: f64 = shapes.iter().map(|s| (s.rows * s.inputs) as f64).sum();
    let by_rates: f64 = rates.iter().zip(shapes).map(|(r, s)| r.means().sum() * s.inputs as f64).sum();
    let slope = penalty_slope(by_rates / all, share);
    let matrices = rates.iter().zip(shapes).zip(&step.sums);
    matrices.map(|((rates, shape), sums)| rates.gradient(sums, slope * shape.inputs as f64 / all)).collect()
}

/// The counts of learned rates, which all are tilted alike until the share of the block is what it was asked to be.
fn settled(rates: &[Rates], shapes: &[Shape], share: f64, pattern: Pattern) -> Counts {
    if let Pattern::Groups { .. } = pattern {
        let mut order: Vec<usize> = (0..rates.len()).collect();
        let rate = |i: usize| rates[i].means().mean().unwrap_or(0.0);
        order.sort_by(|&a, &b| rate(b).total_cmp(&rate(a)));
        return whole(shapes, &order, share, pattern);
    }
    let tilted = |tilt: f64| {
        let mut rates = rates.to_vec();
        rates.iter_mut().for_each(|r| r.tilt(tilt));
        rates.iter().zip(shapes).map(|(r, s)| r.counts(s.inputs)).collect::<Counts>()
    };
    tilted(tilt_to(|tilt| share_of(&tilted(tilt), shapes), share))
}

/// The share that goes.
fn share_of(counts: &[Array1<usize>], shapes: &[Shape]) -> f64 {
    let all: usize = shapes.iter().map(|s| s.rows * s.inputs).sum();
    counts.iter().map(|c| c.sum()).sum::<usize>() as f64 / all as f64
}

/// All that a pattern lets go of whole matrices, in this order, until as much has gone as comes nearest to `share`.
fn whole(shapes: &[Shape], order: &[usize], share: f64, pattern: Pattern) -> Counts {
    let mut counts: Counts = shapes.iter().map(|s| Array1::zeros(s.rows)).collect();
    for &i in order {
        let without = share_of(&counts, shapes);
        let mut with = counts.clone();
        with[i].fill(pattern.most_of(shapes[i].inputs));
        if (share_of(&with, shapes) - share).abs() <= (without - share).abs() {
            counts = with;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::besa::rates::candidate_counts;

    /// A block of matrices in which losing any weight of row i of matrix l costs the same: its square error is linear in
    /// how many went.
    struct Linear {
        shapes: Vec<Shape>,
        pattern: Pattern,
        costs: Vec<Vec<f64>>,
        steps: usize,
    }

    impl Linear {
        fn loss(&self, counts: &[Array1<usize>]) -> f64 {
            let rows = counts.iter().zip(&self.costs);
            rows.map(|(counts, costs)| counts.iter().zip(costs).map(|(&n, c)| n as f64 * c).sum::<f64>()).sum()
        }
    }

    impl Reconstruction for Linear {
        fn mini_batches(&self) -> usize {
            3
        }

        fn step(&mut self, mini_batch: usize, counts: &[Array1<usize>]) -> Result<Step, Failure> {
            assert!(mini_batch < 3);
            self.steps += 1;
            let sums = self.shapes.iter().zip(&self.costs).map(|(shape, costs)| {
                let taken = candidate_counts(self.pattern, shape.inputs);
                // A weight that is multiplied less by one costs so much: the gradient times the weight is minus that.
                Array2::from_shape_fn((shape.rows, taken.len()), |(i, d)| -costs[i] * taken[d] as f64)
            });
            Ok(Step { loss: self.loss(counts), sums: sums.collect() })
        }

        fn judge(&mut self, counts: &[Array1<usize>]) -> Result<f64, Failure> {
            Ok(self.loss(counts))
        }
    }

    fn linear(pattern: Pattern) -> Linear {
        let shapes = vec![Shape { rows: 2, inputs: 40 }, Shape { rows: 3, inputs: 20 }];
        Linear { shapes, pattern, costs: vec![vec![0.01, 0.001], vec![0.002, 0.02, 0.001]], steps: 0 }
    }

    #[test]
    fn rows_whose_weights_cost_little_lose_more_and_the_share_is_met() {
        for share in [0.3, 0.5, 0.7, 0.8] {
            for grain in [super::super::Grain::Row, super::super::Grain::Matrix] {
                let mut block = linear(Pattern::Unstructured);
                let shapes = block.shapes.clone();
                let settings = Settings { grain, steps: 200 };
                let learnt = learn(&mut block, &shapes, share, Pattern::Unstructured, &settings, 1).unwrap();
                assert!(learnt.after < learnt.before, "{share} {grain:?} {learnt:?}");
                let gone = share_of(&learnt.counts, &shapes);
                assert!((gone - share).abs() < 0.02, "{share} {grain:?} {gone}");
                assert_eq!(block.steps, 200);
            }
        }
    }

    #[test]
    fn of_matrices_with_a_pattern_those_go_that_cost_least() {
        let pattern: Pattern = "2:4".parse().unwrap();
        let mut block = linear(pattern);
        let shapes = block.shapes.clone();
        // 80 weights in the first and 60 in the second, half of which can go.
        let settings = Settings { grain: super::super::Grain::Matrix, steps: 100 };
        block.costs[0] = vec![0.01, 0.03];
        let learnt = learn(&mut block, &shapes, 30.0 / 140.0, pattern, &settings, 1).unwrap();
        let gone: Vec<usize> = learnt.counts.iter().map(|c| c.sum()).collect();
        assert_eq!(gone, [0, 30], "the second is the cheaper one");
        assert!(learnt.after < learnt.before);
        // Nothing is to be learned where all of them take part.
        block.steps = 0;
        let learnt = learn(&mut block, &shapes, 0.5, pattern, &settings, 1).unwrap();
        assert_eq!((block.steps, share_of(&learnt.counts, &shapes)), (0, 0.5));
    }

    #[test]
    fn the_same_share_of_every_row_is_the_share_of_all() {
        let shapes = [Shape { rows: 7, inputs: 32 }, Shape { rows: 5, inputs: 3 }];
        for share in [0.1, 0.5, 0.7, 0.9] {
            let counts = uniform(&shapes, share, Pattern::Unstructured);
            assert!((share_of(&counts, &shapes) - share).abs() < 0.01, "{share}");
            assert!(counts[0].iter().all(|&n| n.abs_diff((share * 32.0) as usize) <= 1));
        }
    }
}
