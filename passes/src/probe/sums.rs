//! Sums of products that grow batch by batch: inputs of a graph take them as they are so far, its outputs give them with
//! the batch added.
//!
//! They are f32, as the products are: the sums of a few batches at once are no coarser than one large batch, and adding
//! them up costs no pass over memory.

use std::ops::Range;

use ndarray::{Array2, s};

use crate::calculus::emit::Emit;
use crate::ir::{ElementType, Operator, ValueId, attribute};
use crate::signature;

/// A matrix of sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// The name of the input that takes it.
    pub input: String,
    /// The name of the output that gives it.
    pub output: String,
    /// Its shape.
    pub shape: [usize; 2],
}

/// A Gram matrix X^T X in blocks of columns, each with itself and with what is right of it; the rest is their mirror image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gram {
    /// Its blocks, [columns of the block, columns from there on].
    pub sums: Vec<Sum>,
}

impl Gram {
    /// The whole matrix of its blocks.
    pub fn whole(&self, blocks: &[Array2<f64>]) -> Array2<f64> {
        let width = self.sums.first().map_or(0, |sum| sum.shape[1]);
        let mut whole = Array2::zeros((width, width));
        for block in blocks {
            let start = width - block.ncols();
            let own = start..start + block.nrows();
            whole.slice_mut(s![own.clone(), start..]).assign(block);
            whole.slice_mut(s![start.., own]).assign(&block.t());
        }
        whole
    }
}

/// A sum whose products are being appended to a graph.
pub(super) struct Adding {
    input: String,
    shape: [usize; 2],
    /// The sum so far.
    value: ValueId,
}

impl Adding {
    /// Of this shape; `input` is the name of the input that takes it.
    pub(super) fn new(emit: &mut Emit, input: &str, shape: [usize; 2]) -> Self {
        let value = emit.graph.add_input(signature::declare(input, ElementType::F32, 2));
        Self { input: input.to_string(), shape, value }
    }

    /// Adds X^T Y.
    pub(super) fn add(&mut self, emit: &mut Emit, x: ValueId, y: ValueId) {
        self.value = emit.with(Operator::new("Gemm").with(attribute::int("transA", 1)), &[x, y, self.value]);
    }

    /// The sum, and the value that is to be an output.
    pub(super) fn finish(self, emit: &Emit) -> (Sum, ValueId) {
        let output = emit.graph.name(self.value).to_string();
        (Sum { input: self.input, output, shape: self.shape }, self.value)
    }
}

/// A Gram matrix whose products are being appended to a graph.
pub(super) struct AddingGram {
    blocks: Vec<(Range<usize>, Adding)>,
}

impl AddingGram {
    /// Of so many columns; the names of the inputs that take its blocks begin with `input`.
    pub(super) fn new(emit: &mut Emit, input: &str, width: usize) -> Self {
        let block = |own: Range<usize>| {
            let name = format!("{input}_from_{}", own.start);
            let adding = Adding::new(emit, &name, [own.len(), width - own.start]);
            (own, adding)
        };
        Self { blocks: blocks(width).into_iter().map(block).collect() }
    }

    /// Adds X^T X.
    pub(super) fn add(&mut self, emit: &mut Emit, x: ValueId) {
        let width = self.blocks.last().map_or(0, |(own, _)| own.end);
        for (own, adding) in &mut self.blocks {
            let [left, right] = [own.end, width].map(|end| columns(emit, x, own.start..end, width));
            adding.add(emit, left, right);
        }
    }

    /// The matrix, and the values that are to be outputs.
    pub(super) fn finish(self, emit: &Emit) -> (Gram, Vec<ValueId>) {
        let (sums, values) = self.blocks.into_iter().map(|(_, adding)| adding.finish(emit)).unzip();
        (Gram { sums }, values)
    }
}

/// Blocks of at least so many columns: products of fewer are slower than what they save.
const LEAST: usize = 128;
/// With four blocks three eighths of the products are left out; more bring little.
const MOST_BLOCKS: usize = 4;
/// Blocks start at multiples of this.
const ALIGN: usize = 16;

fn blocks(width: usize) -> Vec<Range<usize>> {
    let count = (width / LEAST).clamp(1, MOST_BLOCKS);
    let step = width.div_ceil(count).next_multiple_of(ALIGN);
    (0..width).step_by(step).map(|start| start..width.min(start + step)).collect()
}

/// Some columns of a matrix of `width`.
fn columns(emit: &mut Emit, matrix: ValueId, range: Range<usize>, width: usize) -> ValueId {
    if range == (0..width) {
        return matrix;
    }
    let [start, end] = [range.start, range.end].map(|at| emit.integers(&[at as i64]));
    let axis = emit.integers(&[1]);
    emit.op("Slice", &[matrix, start, end, axis])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_column_once() {
        for width in [1, 255, 256, 511, 513, 1025, 3073, 11_009] {
            let blocks = blocks(width);
            assert!(blocks.windows(2).all(|pair| pair[0].end == pair[1].start), "{width}: {blocks:?}");
            assert_eq!((blocks[0].start, blocks[blocks.len() - 1].end), (0, width));
            assert!(blocks.len() <= MOST_BLOCKS);
        }
    }

    #[test]
    fn blocks_and_their_mirror_image_are_the_whole() {
        let rows = Array2::from_shape_fn((3, 1025), |(i, j)| ((i * 7 + j * 11) % 13) as f64);
        let expected = rows.t().dot(&rows);
        let blocks = blocks(1025);
        let sum = |own: &Range<usize>| Sum {
            input: String::new(),
            output: String::new(),
            shape: [own.len(), 1025 - own.start],
        };
        let gram = Gram { sums: blocks.iter().map(sum).collect() };
        let parts: Vec<_> = blocks.iter().map(|own| expected.slice(s![own.clone(), own.start..]).to_owned()).collect();
        assert!(parts.len() > 1 && gram.whole(&parts) == expected);
    }
}
