//! Which weights are zero.

use std::fmt;

use kprune_passes::discover::blocks::{Block, Matrix};
use kprune_passes::methods::besa::{Choice, Learnt, Shape, Share};
use kprune_passes::quantise::{Bits, Quantised};
use kprune_passes::sparsity::{Order, Pattern, importance};
use ndarray::{Array1, Array2};
use serde::Serialize;

use super::SettledMatrix;
use super::learning::Task;
use super::walk::Walk;
use crate::distil::Pupil;
use crate::error::Error;
use crate::options::{Sparsity, WeightMethod};

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
    /// The product that it is part of.
    pub place: String,
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

impl Sparsified {
    /// What the zeros are good for.
    pub fn advice(&self) -> &'static str {
        match self.settings.pattern {
            Pattern::Groups { stay: 2, of: 4 } => {
                "TensorRT is faster with them on a GPU (build with sparse weights); ONNX Runtime as fast as before; \
                 files are smaller when compressed"
            }
            _ => {
                "ONNX Runtime and TensorRT are as fast as before; OpenVINO can keep int8 weights packed \
                 (CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE); files are smaller when compressed; to be faster everywhere, remove \
                 units (--compression)"
            }
        }
    }
}

impl fmt::Display for SparseBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shares: Vec<String> = self.matrices.iter().map(|m| format!("{:.0}", 100.0 * m.sparsity)).collect();
        write!(f, "{} % of its matrices zero", shares.join(", "))?;
        match self.error_uniform.zip(self.error) {
            Some((uniform, error)) => write!(f, "; error {uniform:.4} -> {error:.4}"),
            None => Ok(()),
        }
    }
}

impl Sparsified {
    /// What became of the matrices of all blocks.
    pub(super) fn of(matrices: &[SettledMatrix], settings: &Sparsity, blocks: Vec<SparseBlock>) -> Self {
        let all: usize = matrices.iter().map(|m| m.numbers.len()).sum();
        let zeros: usize = matrices.iter().map(|m| m.numbers.iter().filter(|x| **x == 0.0).count()).sum();
        let (sparsity, settings) = (zeros as f64 / all as f64, settings.clone());
        Self { sparsity, settings, blocks, difference: None }
    }
}

/// What becomes of the weights of a block.
pub(super) struct Chosen {
    orders: Vec<Order>,
    learnt: Learnt,
}

/// Chooses which weights of a block go, of matrices with these `numbers`, [outputs, inputs], of so many bits where they are on
/// grids; what they are multiplied with is known from `squares`, where it counts. Scales of those that stay are learned too.
///
/// # Errors
/// Where the block cannot be learned.
pub(super) fn choose<'s>(
    walk: &mut Walk,
    block: &Block,
    numbers: &[Array2<f32>],
    bits: Option<Bits>,
    squares: &dyn Fn(usize) -> Option<&'s [f64]>,
    settings: &Sparsity,
    place: &str,
) -> Result<Chosen, Error> {
    let shape = |m: &Matrix| Shape { rows: m.outputs, inputs: m.inputs, group: group(bits, m.inputs) };
    let shapes = block.matrices.iter().map(shape).collect();
    let share = Share { shapes, share: settings.share, pattern: settings.pattern };
    let order = |(i, numbers): (usize, &Array2<f32>)| {
        let squares = squares(i).filter(|_| settings.measures());
        Order::of(importance(numbers.view(), squares).view(), settings.pattern)
    };
    let orders: Vec<Order> = numbers.iter().enumerate().map(order).collect();
    let task = Task { block, orders, share, place };
    let learnt = match &settings.method {
        WeightMethod::Besa(besa) => {
            // What is learned is learned of weights on their grid.
            walk.replace(block, numbers)?;
            walk.learn(&task, besa)?
        }
        _ => Learnt { choice: task.share.start(), before: f64::NAN, after: f64::NAN },
    };
    Ok(Chosen { orders: task.orders, learnt })
}

/// Weights of a row that share a scale: those that do in the file, and of matrices on no grid as many as of int4.
fn group(bits: Option<Bits>, inputs: usize) -> usize {
    bits.unwrap_or(Bits::Int4).group(inputs)
}

impl Chosen {
    /// Makes of matrices with these `numbers`, [outputs, inputs], and of their grids, where they are on any, what was chosen.
    pub(super) fn apply(&self, numbers: &mut [Array2<f32>], mut grids: Option<&mut [Quantised]>) {
        let Choice { counts, scales } = &self.learnt.choice;
        for (i, numbers) in numbers.iter_mut().enumerate() {
            let (order, counts, scales) = (&self.orders[i], &counts[i], &scales[i]);
            if let Some(grid) = grids.as_deref_mut().map(|grids| &mut grids[i]) {
                grid.scales *= scales;
                clear(&mut grid.codes, order, counts);
                *numbers = grid.numbers();
                continue;
            }
            let group = group(None, numbers.ncols());
            numbers.indexed_iter_mut().for_each(|((row, input), w)| *w *= scales[[row, input / group]]);
            clear(numbers, order, counts);
        }
    }

    /// What was done, in the names of the file.
    pub(super) fn report(&self, pupil: &Pupil, block: &Block, settings: &Sparsity) -> SparseBlock {
        let Learnt { choice: Choice { counts, .. }, before, after } = &self.learnt;
        let matrix = |(matrix, counts): (&Matrix, &Array1<usize>)| {
            let share = |count: usize| count as f64 / matrix.inputs as f64;
            let extreme = |count: Option<&usize>| share(count.copied().unwrap_or(0));
            SparseMatrix {
                name: pupil.model.graph.name(matrix.weight).to_string(),
                place: pupil.model.graph.label(matrix.node),
                rows: matrix.outputs,
                inputs: matrix.inputs,
                sparsity: share(counts.sum()) / matrix.outputs as f64,
                of_rows: [extreme(counts.iter().min()), extreme(counts.iter().max())],
            }
        };
        SparseBlock {
            error_uniform: settings.learns().then_some(*before),
            error: settings.learns().then_some(*after),
            matrices: block.matrices.iter().zip(counts).map(matrix).collect(),
        }
    }
}

/// Makes the first so many weights of every row's order zero.
fn clear<T: Default>(matrix: &mut Array2<T>, order: &Order, counts: &Array1<usize>) {
    for (output, (mut row, &count)) in matrix.rows_mut().into_iter().zip(counts).enumerate() {
        row.iter_mut().zip(order.stays(output, count)).filter(|(_, stays)| !stays).for_each(|(w, _)| *w = T::default());
    }
}
