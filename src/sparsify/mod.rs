//! Sparsification: of the matrices that stay, single weights go, block by block from input to output.
//!
//! What a weight is worth is its importance; how many go of every row is the same for all, or learned
//! ([`besa`]). Blocks downstream see what those upstream give without their weights.

mod learning;
mod walk;

use std::fmt;

use kprune_passes::calculus::TokenMask;
use kprune_passes::discover::blocks::{Block, Matrix, blocks};
use kprune_passes::discover::discover;
use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::methods::besa::{self, Counts, Learnt, Shape};
use kprune_passes::probe::Probes;
use kprune_passes::sparsity::{Order, importance};
use ndarray::{Array1, Array2, ArrayD, ArrayView2, Ix2};
use serde::Serialize;

use crate::distil::{Pupil, Values};
use crate::error::Error;
use crate::options::{Sparsity, WeightMethod};
use crate::runtime::Cache;
use crate::walk::World;
use walk::Walk;

/// What a sparsification did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sparsified {
    /// The share of the weights of all blocks that is zero.
    pub sparsity: f64,
    /// What was asked for, and how weights were chosen.
    pub settings: Sparsity,
    /// The blocks from input to output.
    pub blocks: Vec<SparseBlock>,
    /// The largest difference of an output between the file and what was measured, relative to its largest value.
    pub difference: Option<f64>,
}

/// One block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SparseBlock {
    /// Its relative error on samples that nothing was learned from, with the same share of every row gone; `None` where
    /// nothing was run.
    pub error_uniform: Option<f64>,
    /// The same with the shares that were taken.
    pub error: Option<f64>,
    /// Its matrices.
    pub matrices: Vec<SparseMatrix>,
}

/// One matrix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SparseMatrix {
    /// The constant's name in the file.
    pub name: String,
    /// Its outputs, each of which is made of a row of weights.
    pub rows: usize,
    /// Weights in a row.
    pub inputs: usize,
    /// The share of its weights that is zero.
    pub sparsity: f64,
    /// The smallest and the largest share of a row.
    pub of_rows: [f64; 2],
}

impl fmt::Display for Sparsified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count: usize = self.blocks.iter().map(|b| b.matrices.len()).sum();
        write!(f, "{:.2} % of the weights of {count} matrices in {} blocks", 100.0 * self.sparsity, self.blocks.len())?;
        let mean = |error: &dyn Fn(&SparseBlock) -> Option<f64>| {
            let errors: Vec<f64> = self.blocks.iter().filter_map(error).collect();
            (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64)
        };
        match mean(&|b| b.error_uniform).zip(mean(&|b| b.error)) {
            Some((uniform, error)) => write!(f, "; mean error of a block {uniform:.4} -> {error:.4}"),
            None => Ok(()),
        }
    }
}

/// Takes weights out of a model, in f32 and of primitive operators. Returns what was done, and the matrices as they are
/// without them.
///
/// # Errors
/// Where no block is found, a block cannot be differentiated, or a number is not finite.
pub(crate) fn sparsify(
    world: World,
    pupil: &Pupil,
    token_mask: Option<TokenMask>,
    settings: &Sparsity,
    cache: Cache,
) -> Result<(Sparsified, Values), Error> {
    let found = discover(&pupil.model.graph, &pupil.seen, world.lengths);
    let mut blocks = blocks(&pupil.model.graph, &found);
    blocks.iter_mut().for_each(|block| block.matrices.retain(|m| pupil.weights.contains(&m.weight)));
    if blocks.iter().all(|block| block.matrices.is_empty()) {
        let reason =
            "--sparsity: there is no block of an attention and a feed-forward network whose weights are matrices";
        return Err(Error::Usage(format!("{reason} of the file; onnx-kprune inspect says what was found and why")));
    }
    let probes = Probes::new(&pupil.model, &pupil.seen, &found, token_mask);
    let is_second = matches!(&settings.method, WeightMethod::Besa(besa) if besa.grain == besa::Grain::Matrix);
    let mut walk = Walk::new(world, probes, cache, is_second);
    let (mut done, mut values) = (Vec::new(), Values::new());
    for (i, block) in blocks.iter().enumerate() {
        let place = format!("block {} of {}", i + 1, blocks.len());
        let dense = dense(pupil, block)?;
        let (orders, learnt) = chosen(&mut walk, block, &dense, settings, &place)?;
        let sparse: Vec<Array2<f32>> = dense
            .iter()
            .zip(&orders)
            .zip(&learnt.counts)
            .map(|((dense, order), counts)| without(dense, order, counts))
            .collect();
        for (matrix, sparse) in block.matrices.iter().zip(&sparse) {
            values.push((matrix.weight, stored(matrix, sparse)));
        }
        if settings.method != WeightMethod::Magnitude {
            walk.advance(block, values.iter().rev().take(block.matrices.len()), i + 1 == blocks.len())?;
        }
        done.push(report(pupil, block, &learnt, settings));
        world.progress.done(&format!("{place}: {}", line(&done[i])));
    }
    let all: usize = values.iter().map(|(_, v)| v.len()).sum();
    let zeros: usize = values.iter().map(|(_, v)| v.iter().filter(|x| **x == 0.0).count()).sum();
    let sparsity = zeros as f64 / all as f64;
    Ok((Sparsified { sparsity, settings: settings.clone(), blocks: done, difference: None }, values))
}

/// In which order the weights of a block go, and how many of every row.
fn chosen(
    walk: &mut Walk,
    block: &Block,
    dense: &[Array2<f32>],
    settings: &Sparsity,
    place: &str,
) -> Result<(Vec<Order>, Learnt), Error> {
    let (share, pattern) = (settings.share, settings.pattern);
    let shapes: Vec<Shape> = block.matrices.iter().map(|m| Shape { rows: m.outputs, inputs: m.inputs }).collect();
    let squares = match settings.method {
        WeightMethod::Magnitude => None,
        _ => Some(walk.features(block, place)?),
    };
    let order = |(i, weight): (usize, &Array2<f32>)| {
        let importance = importance(weight.view(), squares.as_ref().map(|squares| squares[i].as_slice()));
        Order::of(importance.view(), pattern)
    };
    let orders: Vec<Order> = dense.iter().enumerate().map(order).collect();
    let learnt = match &settings.method {
        WeightMethod::Besa(besa) => walk.learn(block, &orders, &shapes, settings, besa, place)?,
        _ => Learnt { counts: besa::uniform(&shapes, share, pattern), before: f64::NAN, after: f64::NAN },
    };
    Ok((orders, learnt))
}

/// The matrices of a block, row by row: [outputs, inputs].
fn dense(pupil: &Pupil, block: &Block) -> Result<Vec<Array2<f32>>, Error> {
    let dense = |matrix: &Matrix| {
        let numbers = pupil.model.graph.constant(matrix.weight).and_then(|t| t.to_f64().ok());
        let numbers = numbers.and_then(|n| n.into_dimensionality::<Ix2>().ok());
        let numbers = numbers.ok_or_else(|| Error::internal("a matrix of a block is none"))?.mapv(|x| x as f32);
        Ok(if matrix.inputs_axis == 0 { numbers.reversed_axes().as_standard_layout().into_owned() } else { numbers })
    };
    block.matrices.iter().map(dense).collect()
}

/// A matrix without the first so many weights of every row's order.
fn without(dense: &Array2<f32>, order: &Order, counts: &Array1<usize>) -> Array2<f32> {
    let mut sparse = dense.clone();
    for (output, (mut row, &count)) in sparse.rows_mut().into_iter().zip(counts).enumerate() {
        row.iter_mut().zip(order.stays(output, count)).filter(|(_, stays)| !stays).for_each(|(w, _)| *w = 0.0);
    }
    sparse
}

/// As the matrix is stored.
fn stored(matrix: &Matrix, by_rows: &Array2<f32>) -> ArrayD<f32> {
    let view: ArrayView2<f32> = if matrix.inputs_axis == 0 { by_rows.t() } else { by_rows.view() };
    view.as_standard_layout().into_owned().into_dyn()
}

/// A matrix as a tensor.
fn tensor(numbers: &ArrayD<f32>) -> Result<Tensor, Error> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensor = Tensor::from_raw("", ElementType::F32, numbers.shape(), bytes.into());
    tensor.map_err(|e| Error::internal(e.to_string()))
}

fn report(pupil: &Pupil, block: &Block, learnt: &Learnt, settings: &Sparsity) -> SparseBlock {
    let is_learnt = matches!(settings.method, WeightMethod::Besa(_));
    let matrix = |(matrix, counts): (&Matrix, &Array1<usize>)| {
        let share = |count: usize| count as f64 / matrix.inputs as f64;
        let extreme = |count: Option<&usize>| share(count.copied().unwrap_or(0));
        SparseMatrix {
            name: pupil.model.graph.name(matrix.weight).to_string(),
            rows: matrix.outputs,
            inputs: matrix.inputs,
            sparsity: share(counts.sum()) / matrix.outputs as f64,
            of_rows: [extreme(counts.iter().min()), extreme(counts.iter().max())],
        }
    };
    SparseBlock {
        error_uniform: is_learnt.then_some(learnt.before),
        error: is_learnt.then_some(learnt.after),
        matrices: block.matrices.iter().zip(&learnt.counts as &Counts).map(matrix).collect(),
    }
}

fn line(block: &SparseBlock) -> String {
    let shares: Vec<String> = block.matrices.iter().map(|m| format!("{:.0}", 100.0 * m.sparsity)).collect();
    let shares = format!("{} % of its matrices zero", shares.join(", "));
    match block.error_uniform.zip(block.error) {
        Some((uniform, error)) => format!("{shares}; error {uniform:.4} -> {error:.4}"),
        None => shares,
    }
}
