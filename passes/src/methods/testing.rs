//! A walk of a few arrays, for tests of methods without ONNX Runtime.

use ndarray::{Array1, Array2, Axis, concatenate, s};

use super::{Equations, Failure, Masked, Moments, Stored, Task, Walk};
use crate::calculus::loss::Criterion;
use crate::discover::Sublayer;
use crate::discover::cost::{Alignment, Costs};
use crate::ir::ElementType;
use crate::linalg::least_squares::Sums;
use crate::plan::{Decision, Plan};
use crate::testing::{B, S, Sketch, feed_forward, n};

/// Width of the stream.
const WIDTH: usize = 4;
/// Tokens, a quarter of which are held out.
const TOKENS: usize = 48;

/// A chain of feed-forward sublayers, whose features are given and do not change with what is decided.
#[derive(Clone)]
pub(crate) struct FakeWalk {
    pub(crate) sublayers: Vec<Sublayer>,
    /// For every sublayer: [tokens, neurons].
    pub(crate) features: Vec<Array2<f64>>,
    /// For every sublayer: [neurons, outputs].
    pub(crate) weights: Vec<Array2<f64>>,
    /// Mask gradients of every mini-batch, for every sublayer.
    pub(crate) gradients: Vec<Vec<Array1<f64>>>,
    /// For every sublayer: [outputs, outputs].
    pub(crate) felt: Vec<Array2<f64>>,
    /// Whether the batches to solve for are unlike those that are held out.
    pub(crate) mislead: bool,
    /// What projections are stored as.
    pub(crate) element: ElementType,
    /// The sublayers at which columns were asked for.
    pub(crate) asked: Vec<usize>,
    /// Whom settled where.
    settled: Vec<(usize, usize)>,
}

impl FakeWalk {
    /// So many sublayers of so many neurons, with numbers that look like chance.
    pub(crate) fn new(sublayers: usize, neurons: usize) -> Self {
        let mut sketch = Sketch::default();
        let mut stream = sketch.input("x", &[B, S, n(WIDTH)]);
        for _ in 0..sublayers {
            stream = feed_forward(&mut sketch, stream, WIDTH, neurons);
        }
        sketch.graph.add_output(stream);
        let discovery = sketch.discover();
        assert_eq!(discovery.sublayers.len(), sublayers);
        let number = |i: usize, j: usize, seed: usize| {
            let mixed = (i * 7919 + j * 104_729 + seed * 1_299_709 + 12_345) % 10_007;
            (mixed * mixed % 10_007) as f64 / 5_003.0 - 1.0
        };
        Self {
            sublayers: discovery.sublayers,
            features: (0..sublayers)
                .map(|t| Array2::from_shape_fn((TOKENS, neurons), |(i, j)| number(i, j, t)))
                .collect(),
            weights: (0..sublayers)
                .map(|t| Array2::from_shape_fn((neurons, WIDTH), |(i, j)| number(i, j, t + 100)))
                .collect(),
            gradients: vec![vec![Array1::zeros(neurons); sublayers]],
            felt: vec![Array2::eye(WIDTH); sublayers],
            mislead: false,
            element: ElementType::F64,
            asked: Vec::new(),
            settled: Vec::new(),
        }
    }

    /// Makes a neuron of a sublayer what another is.
    pub(crate) fn make_equal(&mut self, t: usize, from: usize, to: usize) {
        let column = self.features[t].column(from).to_owned();
        self.features[t].column_mut(to).assign(&column);
    }

    /// The task of pruning it to budgets in FLOPs.
    pub(crate) fn task<'a>(&'a self, budgets: &'a [f64]) -> Task<'a> {
        Task {
            sublayers: &self.sublayers,
            costs: &Costs::Flops,
            budgets,
            alignment: Alignment(None),
            even_heads: true,
            seed: 0,
            check: &|| Ok(()),
        }
    }

    fn sums(&self, t: usize, columns: &[usize], rows: std::ops::Range<usize>, factor: f64) -> Sums {
        let features = self.features[t].slice(s![rows, ..]);
        let target = features.dot(&self.weights[t]) * factor;
        let ones = Array2::ones((features.nrows(), 1));
        let kept = concatenate![Axis(1), features.select(Axis(1), columns), ones];
        Sums { gram: kept.t().dot(&kept), cross: kept.t().dot(&target), energy: target.mapv(|y| y * y).sum() }
    }
}

impl Walk for FakeWalk {
    fn samples(&self) -> usize {
        TOKENS / 4
    }

    fn tokens(&self, _t: usize) -> f64 {
        TOKENS as f64
    }

    fn projection(&self, t: usize) -> Result<Stored, Failure> {
        Ok(Stored { weight: self.weights[t].clone(), element: self.element, has_bias: true })
    }

    fn moments(
        &mut self,
        _tau: f64,
        each: &mut dyn FnMut(usize, Moments) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        (0..self.features.len()).try_for_each(|t| {
            let columns: Vec<usize> = (0..self.features[t].ncols()).collect();
            let gram = self.sums(t, &columns, 0..TOKENS, 1.0).gram;
            each(t, Moments { gram, felt: self.felt[t].clone() })
        })
    }

    fn restart(&mut self, _students: usize, _teacher: Option<&Plan>) -> Result<(), Failure> {
        self.settled.clear();
        Ok(())
    }

    fn columns(
        &mut self,
        t: usize,
        criterion: Criterion,
        each: &mut dyn FnMut(&[Array1<f64>]),
    ) -> Result<Vec<Array1<f64>>, Failure> {
        self.asked.push(t);
        if t > 0 || criterion == Criterion::Labels {
            self.gradients.iter().for_each(|batch| each(&batch[t..]));
        }
        Ok(self.features[t..].iter().map(|f| f.mapv(|x| x * x).sum_axis(Axis(0))).collect())
    }

    fn mini_batches(&self) -> usize {
        self.gradients.len()
    }

    /// The loss is linear in the masks: each unit that goes costs minus its gradient.
    fn masked(&mut self, mini_batch: usize, keep: &[Vec<bool>], _tau: f64) -> Result<Masked, Failure> {
        let gradients = self.gradients[mini_batch].clone();
        let of = |(gradient, keep): (&Array1<f64>, &Vec<bool>)| {
            gradient.iter().zip(keep).filter(|(_, keep)| !**keep).map(|(g, _)| -g).sum::<f64>()
        };
        Ok(Masked { loss: gradients.iter().zip(keep).map(of).sum(), gradients })
    }

    fn equations(&mut self, t: usize, keep: &[Vec<bool>]) -> Result<Vec<Equations>, Failure> {
        assert!(keep.iter().enumerate().all(|(s, _)| t == 0 || self.settled.contains(&(s, t - 1))), "all came so far");
        let split = TOKENS / 4 * 3;
        let equations = keep.iter().map(|keep| {
            let columns: Vec<usize> = (0..keep.len()).filter(|&c| keep[c]).collect();
            let solve = self.sums(t, &columns, 0..split, if self.mislead { -1.0 } else { 1.0 });
            Equations { solve, held_out: self.sums(t, &columns, split..TOKENS, 1.0) }
        });
        Ok(equations.collect())
    }

    fn settle(&mut self, student: usize, t: usize, decision: &Decision) -> Result<(), Failure> {
        assert!(decision.tuned.is_some());
        self.settled.push((student, t));
        Ok(())
    }
}
