//! Single weights of the matrices that stay: which are zero, and how many bits they have.
//!
//! Blocks are gone through from input to output, and those downstream see what those upstream give with their weights as
//! they became. A block's weights are put on their grid first, so that what is learned of them is learned of the weights
//! that the file will have.

mod learning;
mod sparse;
mod walk;

use std::fmt;

use kprune_passes::calculus::TokenMask;
use kprune_passes::discover::blocks::{Block, Matrix, blocks};
use kprune_passes::discover::discover;
use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::probe::Probes;
use kprune_passes::quantise::{Bits, Quantised};
use ndarray::{Array2, ArrayD, ArrayView2, Ix2};
use serde::Serialize;

use crate::distil::Pupil;
use crate::error::Error;
use crate::options::Sparsity;
use crate::runtime::Cache;
use crate::walk::World;
pub use sparse::{SparseBlock, SparseMatrix, Sparsified};
use walk::Walk;

/// What is wanted of weights.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Which are to be zero.
    pub(crate) sparsity: Option<&'a Sparsity>,
    /// How many bits they are to have.
    pub(crate) bits: Option<Bits>,
}

/// What became of the weights of a model.
pub(crate) struct Settled {
    pub(crate) matrices: Vec<SettledMatrix>,
    /// Which are zero, where that was wanted.
    pub(crate) sparsified: Option<Sparsified>,
    /// How many bits they have, where that was wanted.
    pub(crate) quantisation: Option<Quantisation>,
}

/// A matrix with other weights.
pub(crate) struct SettledMatrix {
    pub(crate) matrix: Matrix,
    /// Its numbers, as it is stored.
    pub(crate) numbers: ArrayD<f32>,
    /// The same on a grid.
    pub(crate) quantised: Option<Quantised>,
}

/// What a quantisation did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quantisation {
    /// How many bits weights have.
    pub bits: Bits,
    /// How many matrices were quantised.
    pub matrices: usize,
    /// The relative error of the weights, ||W - Q|| / ||W||, over all of them.
    pub error: f64,
}

impl fmt::Display for Quantisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} matrices to {}, which moves weights by {:.2} %", self.matrices, self.bits, 100.0 * self.error)
    }
}

/// Settles the weights of a model, in f32 and of primitive operators.
///
/// # Errors
/// Where no block is found, a block cannot be differentiated, or a number is not finite.
pub(crate) fn settle(
    world: World,
    pupil: &Pupil,
    token_mask: Option<TokenMask>,
    wanted: Wanted,
    cache: Cache,
) -> Result<Settled, Error> {
    let found = discover(&pupil.model.graph, &pupil.seen, world.lengths);
    let mut blocks = blocks(&pupil.model.graph, &found);
    blocks.iter_mut().for_each(|block| block.matrices.retain(|m| pupil.weights.contains(&m.weight)));
    if blocks.iter().all(|block| block.matrices.is_empty()) {
        let option = if wanted.sparsity.is_some() { "--sparsity" } else { "--quantise" };
        let reason =
            "there is no block of an attention and a feed-forward network whose weights are matrices of the file";
        return Err(Error::Usage(format!("{option}: {reason}; onnx-kprune inspect says what was found and why")));
    }
    let probes = Probes::new(&pupil.model, &pupil.seen, &found, token_mask);
    let walk = Walk::new(world, probes, cache);
    let mut settling = Settling { walk, pupil, wanted, matrices: Vec::new(), sparse: Vec::new(), moved: 0.0, all: 0.0 };
    for (i, block) in blocks.iter().enumerate() {
        settling.settle(block, &format!("block {} of {}", i + 1, blocks.len()))?;
        settling.advance(block, i + 1 == blocks.len())?;
        if let Some(done) = settling.sparse.last() {
            world.progress.done(&format!("block {} of {}: {done}", i + 1, blocks.len()));
        }
    }
    Ok(settling.finish())
}

/// Blocks as they are settled, from input to output.
struct Settling<'a> {
    walk: Walk<'a>,
    pupil: &'a Pupil,
    wanted: Wanted<'a>,
    matrices: Vec<SettledMatrix>,
    sparse: Vec<SparseBlock>,
    /// The sum of squares of what putting weights on a grid added to them, and that of the weights.
    moved: f64,
    all: f64,
}

impl Settling<'_> {
    /// Settles the weights of a block, into which the walk has come.
    fn settle(&mut self, block: &Block, place: &str) -> Result<(), Error> {
        let Wanted { bits, sparsity } = self.wanted;
        let dense = dense(self.pupil, block)?;
        let squares = match self.wanted.measures() {
            true => Some(self.walk.features(block, self.wanted.learns(), place)?),
            false => None,
        };
        let squares = |i: usize| squares.as_ref().map(|squares| squares[i].as_slice());
        let on_grid = |bits: Bits| -> Vec<Quantised> {
            dense.iter().enumerate().map(|(i, dense)| Quantised::of(dense.view(), bits, squares(i))).collect()
        };
        let mut grids: Option<Vec<Quantised>> = bits.map(on_grid);
        let mut numbers = match &grids {
            Some(grids) => grids.iter().map(Quantised::numbers).collect(),
            None => dense.clone(),
        };
        self.count_moved(&numbers, &dense);
        if let Some(sparsity) = sparsity.filter(|_| !block.matrices.is_empty()) {
            let walk = &mut self.walk;
            let chosen = sparse::choose(walk, block, &numbers, bits, &squares, sparsity, place)?;
            chosen.apply(&mut numbers, grids.as_deref_mut());
            self.sparse.push(chosen.report(self.pupil, block, sparsity));
        }
        self.walk.replace(block, &numbers)?;
        let mut grids = grids.into_iter().flatten();
        for (matrix, numbers) in block.matrices.iter().zip(numbers) {
            let (matrix, numbers) = (matrix.clone(), stored(matrix, &numbers));
            self.matrices.push(SettledMatrix { matrix, numbers, quantised: grids.next() });
        }
        Ok(())
    }

    /// Adds up how far putting weights on a grid moved them.
    fn count_moved(&mut self, numbers: &[Array2<f32>], dense: &[Array2<f32>]) {
        for (numbers, dense) in numbers.iter().zip(dense) {
            self.moved += (numbers - dense).iter().map(|x| f64::from(x * x)).sum::<f64>();
            self.all += dense.iter().map(|x| f64::from(x * x)).sum::<f64>();
        }
    }

    /// Goes through the block with its weights as they are now, where that is of use.
    fn advance(&mut self, block: &Block, is_last: bool) -> Result<(), Error> {
        if self.wanted.measures() {
            self.walk.advance(block, is_last)?;
        }
        // It is not run again: of large models every copy counts.
        self.walk.forget(block, &self.pupil.model.graph);
        Ok(())
    }

    fn finish(self) -> Settled {
        let Self { matrices, wanted, sparse, moved, all, .. } = self;
        let sparsified = wanted.sparsity.map(|sparsity| Sparsified::of(&matrices, sparsity, sparse));
        let error = if all > 0.0 { (moved / all).sqrt() } else { 0.0 };
        let quantisation = wanted.bits.map(|bits| Quantisation { bits, matrices: matrices.len(), error });
        Settled { matrices, sparsified, quantisation }
    }
}

impl Wanted<'_> {
    /// Whether blocks are run: where what weights are multiplied with counts.
    fn measures(&self) -> bool {
        self.sparsity.is_some_and(Sparsity::measures) || self.bits == Some(Bits::Int4)
    }

    /// Whether what blocks give is learned from.
    fn learns(&self) -> bool {
        self.sparsity.is_some_and(Sparsity::learns)
    }
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
