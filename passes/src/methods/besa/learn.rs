//! How the weights of a block are learned: which go, and what those that stay are multiplied with.

use ndarray::Array2;

use super::allocation::{Allocation, Counts, Share};
use super::scales::Scales;
use super::settings::Settings;
use super::steps::{Turns, is_checked};
use crate::methods::Failure;

/// What becomes of the weights of a block.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// How many weights of every row go, of every matrix.
    pub counts: Counts,
    /// What the weights of every group are multiplied with, of every matrix: [rows, groups].
    pub scales: Vec<Array2<f32>>,
}

impl Choice {
    /// The same with what is learned of it.
    fn with(&self, counts: Option<Counts>, scales: Option<&Scales>) -> Self {
        let counts = counts.unwrap_or_else(|| self.counts.clone());
        Self { counts, scales: scales.map_or_else(|| self.scales.clone(), Scales::now) }
    }
}

/// A block, as it is learned: with other weights, how far is what it gives from what it gave?
pub trait Reconstruction {
    /// How many mini-batches there are to learn from.
    fn mini_batches(&self) -> usize;

    /// Runs a mini-batch, forward and backward, with the first so many weights of every row's order gone, and scales on the
    /// others.
    ///
    /// # Errors
    /// Where a number is not finite, or ONNX Runtime fails.
    fn step(&mut self, mini_batch: usize, choice: &Choice) -> Result<Step, Failure>;

    /// The loss on samples that nothing is learned from, forward.
    ///
    /// # Errors
    /// As [`Reconstruction::step`].
    fn judge(&mut self, choice: &Choice) -> Result<f64, Failure>;
}

/// What a mini-batch gives.
pub struct Step {
    /// The error of what the block gives, relative to what it gave before, a mean over tokens.
    pub loss: f64,
    /// For every matrix the sum of gradient times weight over the weights of a row that go at a candidate: [rows,
    /// candidates]. The gradient is that of the loss with respect to the weight as it is multiplied.
    pub sums: Vec<Array2<f64>>,
    /// For every matrix the gradient with respect to the logarithms of its scales: [rows, groups].
    pub of_scales: Vec<Array2<f64>>,
}

/// What was learned.
#[derive(Clone, Debug)]
pub struct Learnt {
    /// What becomes of the weights.
    pub choice: Choice,
    /// The loss on samples that nothing was learned from, with the same share of every row gone, and no scales.
    pub before: f64,
    /// The same with what was learned; no more than before.
    pub after: f64,
}

/// Learns the rates of the matrices of a block, and their scales. What is best on samples that nothing was learned from
/// stays, be it what there was to begin with.
///
/// # Errors
/// As [`Reconstruction`].
pub fn learn(block: &mut dyn Reconstruction, share: &Share, settings: &Settings, seed: u64) -> Result<Learnt, Failure> {
    let start = share.start();
    let before = block.judge(&start)?;
    let mut best = Learnt { choice: start.clone(), before, after: before };
    let mut allocation = Allocation::new(share, settings.grain);
    let mut scales = settings.scales.then(|| Scales::new(&share.shapes));
    if (allocation.is_none() && scales.is_none()) || block.mini_batches() == 0 {
        return Ok(best);
    }
    let mut turns = Turns::new((0..block.mini_batches()).collect(), seed);
    for i in 0..settings.steps {
        let choice = start.with(allocation.as_ref().map(Allocation::counts), scales.as_ref());
        let step = block.step(turns.next(), &choice)?;
        allocation.iter_mut().for_each(|allocation| allocation.step(&step.sums));
        scales.iter_mut().for_each(|scales| scales.step(&step.of_scales, i as f64 / settings.steps as f64));
        if is_checked(i, settings.steps) {
            let choice = start.with(allocation.as_ref().map(Allocation::settled), scales.as_ref());
            let after = block.judge(&choice)?;
            if after < best.after {
                best = Learnt { choice, before, after };
            }
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::besa::allocation::Shape;
    use crate::methods::besa::rates::candidate_counts;
    use crate::methods::besa::settings::Grain;
    use ndarray::Array1;

    /// A block of matrices in which losing any weight of row i of matrix l costs the same: its square error is linear in
    /// how many went. Scales cost the square of how far their logarithms are from `best`.
    struct Linear {
        share: Share,
        costs: Vec<Vec<f64>>,
        best: f64,
        steps: usize,
    }

    impl Linear {
        fn new(share: f64, pattern: &str) -> Self {
            let shapes = vec![Shape { rows: 2, inputs: 40, group: 32 }, Shape { rows: 3, inputs: 20, group: 20 }];
            let share = Share { shapes, share, pattern: pattern.parse().unwrap() };
            Self { share, costs: vec![vec![0.01, 0.001], vec![0.002, 0.02, 0.001]], best: 0.05, steps: 0 }
        }

        fn loss(&self, choice: &Choice) -> f64 {
            let rows = choice.counts.iter().zip(&self.costs);
            let cost = |(counts, costs): (&Array1<usize>, &Vec<f64>)| -> f64 {
                counts.iter().zip(costs).map(|(&n, c)| n as f64 * c).sum()
            };
            let scales = choice.scales.iter().flatten().map(|s| (f64::from(*s).ln() - self.best).powi(2));
            rows.map(cost).sum::<f64>() + scales.sum::<f64>()
        }

        fn learn(&mut self, settings: &Settings) -> Learnt {
            let share = self.share.clone();
            learn(self, &share, settings, 1).unwrap()
        }
    }

    impl Reconstruction for Linear {
        fn mini_batches(&self) -> usize {
            3
        }

        fn step(&mut self, mini_batch: usize, choice: &Choice) -> Result<Step, Failure> {
            assert!(mini_batch < 3);
            self.steps += 1;
            let sums = self.share.shapes.iter().zip(&self.costs).map(|(shape, costs)| {
                let taken = candidate_counts(self.share.pattern, shape.inputs);
                // A weight that is multiplied less by one costs so much: the gradient times the weight is minus that.
                Array2::from_shape_fn((shape.rows, taken.len()), |(i, d)| -costs[i] * taken[d] as f64)
            });
            let of_scales = choice.scales.iter().map(|s| s.mapv(|s| 2.0 * (f64::from(s).ln() - self.best)));
            Ok(Step { loss: self.loss(choice), sums: sums.collect(), of_scales: of_scales.collect() })
        }

        fn judge(&mut self, choice: &Choice) -> Result<f64, Failure> {
            Ok(self.loss(choice))
        }
    }

    #[test]
    fn rows_whose_weights_cost_little_lose_more_and_the_share_is_met() {
        for share in [0.3, 0.5, 0.7, 0.8] {
            for grain in [Grain::Row, Grain::Matrix] {
                let mut block = Linear::new(share, "unstructured");
                let learnt = block.learn(&Settings { grain, steps: 200, scales: false });
                assert!(learnt.after < learnt.before, "{share} {grain:?} {learnt:?}");
                let gone = block.share.of(&learnt.choice.counts);
                assert!((gone - share).abs() < 0.02, "{share} {grain:?} {gone}");
                assert_eq!(block.steps, 200);
            }
        }
    }

    #[test]
    fn of_matrices_with_a_pattern_those_go_that_cost_least() {
        // 80 weights in the first and 60 in the second, half of which can go.
        let mut block = Linear::new(30.0 / 140.0, "2:4");
        let settings = Settings { grain: Grain::Matrix, steps: 100, scales: false };
        block.costs[0] = vec![0.01, 0.03];
        let learnt = block.learn(&settings);
        let gone: Vec<usize> = learnt.choice.counts.iter().map(|c| c.sum()).collect();
        assert_eq!(gone, [0, 30], "the second is the cheaper one");
        assert!(learnt.after < learnt.before);
        // Nothing is to be learned where all of them take part.
        let mut block = Linear::new(0.5, "2:4");
        let learnt = block.learn(&settings);
        assert_eq!((block.steps, block.share.of(&learnt.choice.counts)), (0, 0.5));
    }

    #[test]
    fn scales_go_where_the_loss_is_least_with_rates_and_without() {
        for (share, pattern) in [(0.5, "unstructured"), (0.5, "2:4")] {
            let learnt = Linear::new(share, pattern).learn(&Settings { steps: 400, ..Settings::default() });
            assert_eq!(learnt.choice.scales[0].dim(), (2, 2));
            let far = learnt.choice.scales.iter().flatten().map(|s| (f64::from(*s).ln() - 0.05).abs());
            assert!(far.fold(0.0, f64::max) < 0.02, "{share} {pattern} {:?}", learnt.choice.scales);
        }
    }
}
