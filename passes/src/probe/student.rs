//! A matrix of a block as it is learned: without the weights that go, and with scales on the others.

use ndarray::Array2;

use crate::calculus::emit::Emit;
use crate::discover::blocks::Matrix;
use crate::ir::{ElementType, Tensor, ValueId};
use crate::signature;
use crate::sparsity::Order;

/// A matrix that a graph reads in the place of the one that was there.
pub(super) struct Student {
    /// The input that takes how many weights of every row go: `[outputs]`.
    pub(super) count: ValueId,
    /// The input that takes the scales: [outputs, groups].
    pub(super) scales: ValueId,
    /// Its numbers before any of them goes, stored as the matrix is.
    pub(super) numbers: ValueId,
    /// 1 where a weight stays.
    stays: ValueId,
    /// 1 where a weight belongs to a group: [inputs, groups], or the other way round where inputs are stored first.
    groups: ValueId,
}

impl Student {
    /// Lets the graph read a matrix with the first so many weights of every row's order gone, and each `group` of a row
    /// multiplied with its scale.
    pub(super) fn new(emit: &mut Emit, matrix: &Matrix, order: &Order, group: usize) -> Self {
        let name = emit.graph.name(matrix.weight).to_string();
        let tensor = emit.graph.constant(matrix.weight).cloned();
        let dense = tensor.map(|tensor| emit.graph.add_constant("besa_dense", tensor)).unwrap_or(matrix.weight);
        let scales = emit.graph.add_input(signature::declare(&format!("kprune_scale_{name}"), ElementType::F32, 2));
        let (groups, each) = by_weight(emit, matrix, scales, group);
        let numbers = emit.op("Mul", &[dense, each]);
        let places = emit.graph.add_constant("besa_places", integers(&stored(matrix, &order.places)));
        let count = emit.graph.add_input(signature::declare(&format!("kprune_count_{name}"), ElementType::I32, 1));
        let along = emit.unsqueeze(count, &[matrix.inputs_axis as i64]);
        let stays = emit.op("GreaterOrEqual", &[places, along]);
        let stays = emit.cast(stays, ElementType::F32);
        let sparse = emit.op("Mul", &[numbers, stays]);
        emit.graph.replace_reads(matrix.weight, sparse);
        Self { count, scales, numbers, stays, groups }
    }

    /// The gradient with respect to the logarithms of the scales, [outputs, groups], where `gradient` is that with respect to
    /// the matrix.
    pub(super) fn slope(&self, emit: &mut Emit, matrix: &Matrix, gradient: ValueId) -> ValueId {
        let terms = emit.op("Mul", &[gradient, self.stays]);
        let terms = emit.op("Mul", &[terms, self.numbers]);
        match matrix.inputs_axis {
            0 => {
                let sums = emit.op("MatMul", &[self.groups, terms]);
                emit.transpose(sums, &[1, 0])
            }
            _ => emit.op("MatMul", &[terms, self.groups]),
        }
    }
}

/// To which group every weight of a row belongs, and the scale of every weight, stored as the matrix is.
fn by_weight(emit: &mut Emit, matrix: &Matrix, scales: ValueId, group: usize) -> (ValueId, ValueId) {
    let group = group.max(1);
    let belongs = |input: usize, place: usize| f64::from(u8::from(input / group == place));
    let belongs = Array2::from_shape_fn((matrix.inputs, matrix.inputs.div_ceil(group)), |(j, g)| belongs(j, g));
    // [inputs, groups], and [groups, inputs].
    let [down, across] = [belongs.clone(), belongs.reversed_axes()]
        .map(|belongs| emit.array(ElementType::F32, &belongs.as_standard_layout().into_owned().into_dyn()));
    match matrix.inputs_axis {
        0 => {
            let scales = emit.transpose(scales, &[1, 0]);
            (across, emit.op("MatMul", &[down, scales]))
        }
        _ => (down, emit.op("MatMul", &[scales, across])),
    }
}

/// [outputs, inputs] as the matrix is stored.
pub(super) fn stored(matrix: &Matrix, by_rows: &Array2<i32>) -> Array2<i32> {
    match matrix.inputs_axis {
        0 => by_rows.t().as_standard_layout().into_owned(),
        _ => by_rows.clone(),
    }
}

pub(super) fn integers(array: &Array2<i32>) -> Tensor {
    let bytes: Vec<u8> = array.iter().flat_map(|i| i.to_le_bytes()).collect();
    Tensor::from_raw("", ElementType::I32, array.shape(), bytes.into()).expect("four bytes for every number")
}
