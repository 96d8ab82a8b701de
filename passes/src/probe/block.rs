//! A block of the model: how large the features of its matrices are, what it gives, and how far that is from what it gave
//! when some of its weights are gone.

use std::collections::{BTreeMap, HashMap};

use ndarray::{Array2, ArrayD};

use super::student::{Student, integers, stored};
use super::{Graph, Probes, only_real};
use crate::calculus::differentiate::{DifferentiateError, differentiate};
use crate::calculus::emit::Emit;
use crate::calculus::shapes;
use crate::discover::blocks::{Block, Matrix};
use crate::ir::{ElementType, Model, Operator, Tensor, ValueId, attribute};
use crate::probe::suffix::{extract, finish};
use crate::signature;
use crate::sparsity::Order;

/// Name of the input that takes what the block is to give.
pub const REFERENCE: &str = "kprune_reference";

/// Name of the input that takes the number of tokens that the loss is a mean over.
pub const TOKENS: &str = "kprune_tokens";

/// What the graph of a block's features gives.
pub struct FeatureOutputs {
    /// For every matrix, the squares of what it is multiplied with, summed up over real tokens: `[inputs]`.
    pub squares: Vec<String>,
    /// What the block gives.
    pub stream: String,
}

/// What the graph of a block that is learned gives.
pub struct ReconstructionOutputs {
    /// The error relative to the reference, ||S - R||^2 / ||R||^2 token by token, summed up over real tokens and over
    /// [`TOKENS`].
    pub loss: String,
    /// For every matrix the sums of gradient times weight over the weights of a row that go at every candidate:
    /// [outputs, candidates]; `None` where the block does not depend on it.
    pub sums: Vec<Option<String>>,
    /// For every matrix the gradient with respect to the logarithms of its scales: [outputs, groups]; `None` where the
    /// block does not depend on it.
    pub of_scales: Vec<Option<String>>,
    /// The inputs that take how many weights of every row go, in i32: `[outputs]`.
    pub counts: Vec<String>,
    /// The inputs that take the scales of every matrix, in f32: [outputs, groups].
    pub scales: Vec<String>,
}

impl Probes<'_> {
    /// The block as it is.
    ///
    /// Inputs: what crosses into it.
    pub fn features(&self, block: &Block) -> Graph<FeatureOutputs> {
        let wanted = block.matrices.iter().flat_map(|m| m.features.iter().copied()).chain([block.stream]);
        let wanted: Vec<ValueId> = wanted.collect();
        let mut part = extract(&self.student, &self.seen, self.crossings.at(block.sublayers.start), &wanted);
        let token_mask = self.restore_token_mask(&mut part);
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let mut squares: BTreeMap<&[ValueId], ValueId> = BTreeMap::new();
        for matrix in &block.matrices {
            if squares.contains_key(matrix.features.as_slice()) {
                continue;
            }
            let each = matrix.features.iter().map(|&features| {
                let dims = self.seen.dims(features).unwrap_or_default();
                let rows = self.rows(&mut emit, features, &dims, matrix.inputs, token_mask);
                emit.sum_of_squares(rows, &[0], false)
            });
            let each: Vec<ValueId> = each.collect();
            squares.insert(&matrix.features, emit.with(Operator::new("Sum"), &each));
        }
        let squares: Vec<ValueId> = block.matrices.iter().map(|m| squares[m.features.as_slice()]).collect();
        let mut ends = squares.clone();
        ends.sort_unstable();
        ends.dedup();
        ends.push(block.stream);
        let name = |v: ValueId| part.graph.name(v).to_string();
        let outputs = FeatureOutputs { squares: squares.into_iter().map(name).collect(), stream: name(block.stream) };
        finish(&mut part, &ends);
        Graph { model: part, outputs }
    }

    /// The block with so many weights of every row gone, in their `orders`, and scales on what stays, one for so many weights of
    /// a row as `groups` says for every matrix; with its gradients where `candidates` says how many weights of a row so wide go
    /// at every candidate.
    ///
    /// Inputs: what crosses into the block, [`REFERENCE`], [`TOKENS`], and the counts and scales of every matrix.
    ///
    /// # Errors
    /// Where an operator within the block cannot be differentiated.
    pub fn reconstruction(
        &self,
        block: &Block,
        orders: &[Order],
        groups: &[usize],
        candidates: Option<&dyn Fn(usize) -> Vec<usize>>,
    ) -> Result<Graph<ReconstructionOutputs>, DifferentiateError> {
        let mut part = extract(&self.student, &self.seen, self.crossings.at(block.sublayers.start), &[block.stream]);
        let (loss, seed) = self.apart(&mut part, block);
        let weights: Vec<ValueId> = block.matrices.iter().map(|m| m.weight).collect();
        let gradients = match candidates {
            Some(_) => differentiate(&mut part.graph, &self.seen, self.opset(), &[(block.stream, seed)], &weights)?,
            None => vec![None; weights.len()],
        };
        let mut emit = Emit::new(&mut part.graph, self.opset(), "besa");
        let (mut counts, mut scales) = (Vec::new(), Vec::new());
        let (mut sums, mut of_scales) = (Vec::new(), Vec::new());
        let mut taken = HashMap::new();
        for (((matrix, order), &group), gradient) in block.matrices.iter().zip(orders).zip(groups).zip(gradients) {
            let student = Student::new(&mut emit, matrix, order, group);
            counts.push(student.count);
            scales.push(student.scales);
            let sum = gradient.zip(candidates).map(|(gradient, candidates)| {
                let key = (matrix.inputs, matrix.inputs_axis);
                let taken = *taken.entry(key).or_insert_with(|| taken_by(&mut emit, key, &candidates(matrix.inputs)));
                summed(&mut emit, matrix, order, [gradient, student.numbers], taken)
            });
            sums.push(sum);
            of_scales.push(gradient.map(|gradient| student.slope(&mut emit, matrix, gradient)));
        }
        let name = |v: ValueId| part.graph.name(v).to_string();
        let outputs = ReconstructionOutputs {
            loss: name(loss),
            sums: sums.iter().map(|sum| sum.map(name)).collect(),
            of_scales: of_scales.iter().map(|slope| slope.map(name)).collect(),
            counts: counts.into_iter().map(name).collect(),
            scales: scales.into_iter().map(name).collect(),
        };
        let ends = std::iter::once(loss).chain(sums.into_iter().chain(of_scales).flatten());
        let ends: Vec<ValueId> = ends.collect();
        finish(&mut part, &ends);
        if candidates.is_some() {
            shapes::declare(&mut part, &self.seen);
        }
        Ok(Graph { model: part, outputs })
    }

    /// Appends the loss and its gradient with respect to the stream.
    fn apart(&self, part: &mut Model, block: &Block) -> (ValueId, ValueId) {
        let token_mask = self.restore_token_mask(part);
        let dims = self.seen.dims(block.stream).unwrap_or_default();
        let reference = part.graph.add_input(signature::declare(REFERENCE, ElementType::F32, dims.len()));
        let tokens = part.graph.add_input(signature::declare(TOKENS, ElementType::F32, 0));
        let mut emit = Emit::new(&mut part.graph, self.opset(), "besa");
        let error = emit.op("Sub", &[block.stream, reference]);
        let error = only_real(&mut emit, &self.seen, error, &dims, token_mask);
        let [lost, size] = [error, reference].map(|value| emit.sum_of_squares(value, &[-1], true));
        let least = emit.number(ElementType::F32, LEAST);
        let size = emit.op("Add", &[size, least]);
        let size = emit.op("Mul", &[size, tokens]);
        let relative = emit.op("Div", &[lost, size]);
        let loss = emit.with(Operator::new("ReduceSum").with(attribute::int("keepdims", 0)), &[relative]);
        let two = emit.number(ElementType::F32, 2.0);
        let factor = emit.op("Div", &[two, size]);
        (loss, emit.op("Mul", &[error, factor]))
    }

    /// What crosses into the block after this one, and is made in it.
    pub fn advance(&self, block: &Block) -> Graph<Vec<String>> {
        let Block { sublayers, .. } = block;
        let crossing = self.made_between(sublayers.start, sublayers.end);
        let part = extract(&self.student, &self.seen, self.crossings.at(sublayers.start), &crossing);
        Graph { model: part, outputs: crossing.into_iter().map(|v| self.name(v)).collect() }
    }

    /// Puts numbers in the place of a matrix's, wherever the student is run from now on.
    pub fn replace(&mut self, matrix: &Matrix, tensor: Tensor) {
        let name = self.name(matrix.weight);
        self.student.graph.set_constant(matrix.weight, tensor.named(&name));
    }
}

/// What the size of a token's stream is taken to be at least.
const LEAST: f64 = 1e-12;

/// The sums of gradient times weight over the weights of a row that go at every candidate: [outputs, candidates].
fn summed(emit: &mut Emit, matrix: &Matrix, order: &Order, [gradient, dense]: [ValueId; 2], taken: ValueId) -> ValueId {
    let inputs = emit.graph.add_constant("besa_inputs", integers(&stored(matrix, &order.inputs)));
    let terms = emit.op("Mul", &[gradient, dense]);
    let along = Operator::new("GatherElements").with(attribute::int("axis", matrix.inputs_axis as i64));
    let terms = emit.with(along, &[terms, inputs]);
    match matrix.inputs_axis {
        0 => {
            let sums = emit.op("MatMul", &[taken, terms]);
            emit.transpose(sums, &[1, 0])
        }
        _ => emit.op("MatMul", &[terms, taken]),
    }
}

/// 1 where the weight at a place of its row goes at a candidate, [inputs, candidates]; the other way round for matrices that
/// are stored with their inputs first.
fn taken_by(emit: &mut Emit, (inputs, inputs_axis): (usize, usize), counts: &[usize]) -> ValueId {
    let taken = Array2::from_shape_fn((inputs, counts.len()), |(r, d)| f64::from(r < counts[d]));
    let taken = if inputs_axis == 0 { taken.reversed_axes() } else { taken };
    let taken: ArrayD<f64> = taken.as_standard_layout().into_owned().into_dyn();
    emit.array(ElementType::F32, &taken)
}
