//! The gradients of a block's masks and scales against finite differences of its error.
#![allow(missing_docs)]

mod support;

use std::collections::HashMap;

use kprune_passes::discover::blocks::{Block, Matrix, blocks};
use kprune_passes::discover::{Discovery, discover};
use kprune_passes::ir::{ElementType, Model, Tensor};
use kprune_passes::methods::besa::candidate_counts;
use kprune_passes::observe::Observation;
use kprune_passes::probe::{Graph, Probes, REFERENCE, ReconstructionOutputs, TOKENS};
use kprune_passes::simplify::fold::fold_constants;
use kprune_passes::sparsity::{Order, Pattern, importance};
use ndarray::{Array2, ArrayD, Ix2};
use onnx_kprune::analysis::observe;
use onnx_kprune::data::{Batch, Dataset, Sources};
use onnx_kprune::runtime::{Held, Purpose, Runtime, Values, host, numbers, scalars};
use onnx_kprune::store::read_model;
use ort::value::DynValue;
use support::{cpu, fixtures, reviews};

/// The first block of a model, into which nothing but the inputs of the model crosses, with samples of different lengths.
struct Setup {
    runtime: Runtime,
    model: Model,
    seen: Observation,
    data: Dataset,
    found: Discovery,
}

impl Setup {
    fn new() -> Self {
        let (runtime, path) = (cpu(), fixtures().join("reviews/model.onnx"));
        let mut model = read_model(&path).unwrap();
        fold_constants(&mut model.graph);
        let sources = Sources { files: vec![reviews().join("calibration.npz")], ..Sources::default() };
        let data = Dataset::gather(&model, &path, &sources, 1).unwrap();
        let seen = observe(&runtime, &model, None, data.mask_input()).unwrap();
        let found = discover(&model.graph, &seen, &data.lengths(None));
        Self { runtime, model, seen, data, found }
    }

    fn block(&self) -> First<'_> {
        let found = &self.found;
        let probes = Probes::new(&self.model, &self.seen, found, self.data.token_mask(&self.model.graph));
        let blocks = blocks(&self.model.graph, found);
        assert_eq!(2 * blocks.len(), found.sublayers.len(), "an attention and a feed-forward network each");
        assert!(blocks.iter().all(|b| b.matrices.len() == 6), "query, key, value, output, up and down");
        let block = blocks.into_iter().next().unwrap();
        let dense: Vec<Array2<f64>> = block.matrices.iter().map(|m| self.rows(m)).collect();
        let order = |w: &Array2<f64>| Order::of(importance(single(w).view(), None).view(), Pattern::Unstructured);
        let orders = dense.iter().map(order).collect();
        let batch = self.data.batches(4).unwrap().swap_remove(0);
        let features = probes.features(&block);
        let mut session = self.runtime.session(&features.model, "testing", Purpose::Trial).unwrap();
        let reference = session.run_with(|name| batch.find(name)).unwrap().remove(&features.outputs.stream).unwrap();
        First { runtime: &self.runtime, probes, block, dense, orders, batch, reference }
    }

    /// [outputs, inputs].
    fn rows(&self, matrix: &Matrix) -> Array2<f64> {
        let stored = self.model.graph.constant(matrix.weight).unwrap().to_f64().unwrap();
        let stored = stored.into_dimensionality::<Ix2>().unwrap();
        if matrix.inputs_axis == 0 { stored.reversed_axes() } else { stored }
    }
}

struct First<'a> {
    runtime: &'a Runtime,
    probes: Probes<'a>,
    block: Block,
    dense: Vec<Array2<f64>>,
    orders: Vec<Order>,
    batch: Batch,
    reference: DynValue,
}

/// Weights that share a scale: the last group of a row is smaller.
const GROUP: usize = 20;

/// Half of every row goes.
const SHARE: f64 = 0.5;

impl First<'_> {
    fn gone(&self, i: usize) -> usize {
        (SHARE * self.block.matrices[i].inputs as f64) as usize
    }

    /// What the block gives with its gradients.
    fn learn(&self) -> (Values, ReconstructionOutputs) {
        let candidates = |inputs: usize| candidate_counts(Pattern::Unstructured, inputs);
        self.run(self.graph(&self.probes, Some(&candidates)), None, self.scales(|_, _, _| 1.0))
    }

    fn graph(&self, probes: &Probes, candidates: Option<&dyn Fn(usize) -> Vec<usize>>) -> Graph<ReconstructionOutputs> {
        let groups = vec![GROUP; self.block.matrices.len()];
        probes.reconstruction(&self.block, &self.orders, &groups, candidates).unwrap()
    }

    /// The scale of every matrix, row and group.
    fn scales(&self, scale: impl Fn(usize, usize, usize) -> f64) -> Vec<Array2<f64>> {
        let of = |(i, m): (usize, &Matrix)| {
            Array2::from_shape_fn((m.outputs, m.inputs.div_ceil(GROUP)), |(row, group)| scale(i, row, group))
        };
        self.block.matrices.iter().enumerate().map(of).collect()
    }

    /// The loss where matrix i is this one, all of which stays.
    fn loss(&self, i: usize, weight: Array2<f64>) -> f64 {
        let (mut moved, matrix) = (self.probes.clone(), &self.block.matrices[i]);
        let stored = if matrix.inputs_axis == 0 { weight.reversed_axes() } else { weight };
        moved.replace(matrix, tensor(&stored));
        let (values, names) = self.run(self.graph(&moved, None), Some(i), self.scales(|_, _, _| 1.0));
        scalars(&values[&names.loss]).unwrap().sum()
    }

    /// Runs a graph with half of every row gone, but for those of a matrix.
    fn run(
        &self,
        graph: Graph<ReconstructionOutputs>,
        whole: Option<usize>,
        scales: Vec<Array2<f64>>,
    ) -> (Values, ReconstructionOutputs) {
        let mut given = HashMap::new();
        for (name, scales) in graph.outputs.scales.iter().zip(scales) {
            given.insert(name.clone(), numbers(&scales.into_dyn()).unwrap());
        }
        for (i, (name, matrix)) in graph.outputs.counts.iter().zip(&self.block.matrices).enumerate() {
            let count = if whole == Some(i) { 0 } else { self.gone(i) as i32 };
            let bytes: Vec<u8> = (0..matrix.outputs).flat_map(|_| count.to_le_bytes()).collect();
            let counts = Tensor::from_raw("", ElementType::I32, &[matrix.outputs], bytes.into()).unwrap();
            given.insert(name.clone(), host(&counts).unwrap());
        }
        given.insert(TOKENS.to_string(), numbers(&ArrayD::from_elem(vec![], self.batch.tokens as f64)).unwrap());
        let mut session = self.runtime.session(&graph.model, "testing", Purpose::Trial).unwrap();
        let find =
            |name: &str| if name == REFERENCE { Some(&self.reference) } else { given.get(name).map(Held::value) };
        (session.run_with(|name| find(name).or_else(|| self.batch.find(name))).unwrap(), graph.outputs)
    }

    /// A matrix without what goes.
    fn masked(&self, i: usize, mut weight: Array2<f64>) -> Array2<f64> {
        for (output, mut row) in weight.rows_mut().into_iter().enumerate() {
            let stays = self.orders[i].stays(output, self.gone(i));
            row.iter_mut().zip(stays).filter(|(_, stays)| !stays).for_each(|(w, _)| *w = 0.0);
        }
        weight
    }
}

/// Where a matrix of slopes is steepest along a column.
fn steepest(slopes: &Array2<f64>, column: usize) -> usize {
    let column = slopes.column(column);
    (0..column.len()).max_by(|&a, &b| column[a].abs().total_cmp(&column[b].abs())).unwrap()
}

fn matrix_of(values: &Values, name: &Option<String>) -> Array2<f64> {
    scalars(&values[name.as_ref().unwrap()]).unwrap().into_dimensionality::<Ix2>().unwrap()
}

fn single(weight: &Array2<f64>) -> Array2<f32> {
    weight.mapv(|x| x as f32)
}

#[test]
fn sums_of_gradient_times_weight_are_the_slopes_of_the_error_along_masks() {
    let setup = Setup::new();
    let first = setup.block();
    let (values, names) = first.learn();
    let loss = scalars(&values[&names.loss]).unwrap().sum();
    assert!(loss > 1e-3, "half of the weights are missing, and the error is {loss}");
    for (i, matrix) in first.block.matrices.iter().enumerate() {
        let sums = matrix_of(&values, &names.sums[i]);
        let largest = sums.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        for candidate in [30, 70, 100] {
            let row = steepest(&sums, candidate);
            let count = candidate * matrix.inputs / 100;
            let at = |by: f64| {
                let mut weight = first.masked(i, first.dense[i].clone());
                for (input, w) in weight.row_mut(row).iter_mut().enumerate() {
                    let goes = (first.orders[i].places[[row, input]] as usize) < count;
                    *w += if goes { by * first.dense[i][[row, input]] } else { 0.0 };
                }
                first.loss(i, weight)
            };
            let (slope, expected) = ((at(2e-2) - at(-2e-2)) / 4e-2, sums[[row, candidate]]);
            assert!(
                (slope - expected).abs() < 0.02 * expected.abs() + 2e-3 * largest,
                "matrix {i}, row {row}, candidate {candidate}: {expected} and not {slope}"
            );
        }
    }
}

#[test]
fn gradients_of_scales_are_the_slopes_of_the_error_along_their_logarithms() {
    let setup = Setup::new();
    let first = setup.block();
    let (values, names) = first.learn();
    for i in 0..first.block.matrices.len() {
        let slopes = matrix_of(&values, &names.of_scales[i]);
        let largest = slopes.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        assert!(slopes.ncols() > 1 && largest > 0.0);
        for group in [0, slopes.ncols() - 1] {
            let row = steepest(&slopes, group);
            let at = |by: f64| {
                let scales = first.scales(|m, r, g| if (m, r, g) == (i, row, group) { by.exp() } else { 1.0 });
                let (values, names) = first.run(first.graph(&first.probes, None), None, scales);
                scalars(&values[&names.loss]).unwrap().sum()
            };
            let (slope, expected) = ((at(5e-2) - at(-5e-2)) / 1e-1, slopes[[row, group]]);
            assert!(
                (slope - expected).abs() < 0.02 * expected.abs() + 5e-3 * largest,
                "matrix {i}, row {row}, group {group}: {expected} and not {slope}"
            );
        }
    }
}

fn tensor(numbers: &Array2<f64>) -> Tensor {
    Tensor::from_floats(ElementType::F32, &numbers.as_standard_layout().into_owned().into_dyn()).unwrap()
}
