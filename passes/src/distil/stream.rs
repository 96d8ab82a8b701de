//! The stream: what a student and its teacher hand from sublayer to sublayer.

use std::collections::HashSet;

use crate::calculus::differentiate::Seed;
use crate::calculus::emit::Emit;
use crate::discover::Discovery;
use crate::ir::{ElementType, Operator, ValueId, attribute};
use crate::probe::only_real;
use crate::signature;

use super::Student;

/// Name of the input that holds which share of its mini-batch a batch is.
pub const SHARE: &str = "kprune_share";

/// The name of the input that takes the teacher's stream.
pub fn stream_input(value: &str) -> String {
    format!("kprune_stream_{value}")
}

/// The stream after every sublayer, wherever its weights are applied.
pub fn streams(discovery: &Discovery) -> Vec<ValueId> {
    let mut listed = HashSet::new();
    let outputs = discovery.sublayers.iter().flat_map(|s| s.sites()).map(|(_, residual)| residual.output);
    outputs.filter(|&v| listed.insert(v)).collect()
}

/// Appends the loss of the stream and its gradients, where there is a stream. New inputs are the teacher's, and [`SHARE`].
pub(super) fn append(emit: &mut Emit, student: &Student) -> (Option<ValueId>, Vec<Seed>) {
    let graph = &student.model.graph;
    let is_stream = |v: &&ValueId| graph.producer(**v).is_some() && student.seen.element(**v) == Some(ElementType::F32);
    let streams: Vec<ValueId> = student.streams.iter().filter(is_stream).copied().collect();
    if streams.is_empty() {
        return (None, Vec::new());
    }
    let share = emit.graph.add_input(signature::declare(SHARE, ElementType::F32, 0));
    let count = emit.number(ElementType::F32, streams.len() as f64);
    let share = emit.op("Div", &[share, count]);
    let (losses, seeds): (Vec<ValueId>, Vec<Seed>) =
        streams.into_iter().map(|stream| apart(emit, student, stream, share)).unzip();
    (Some(emit.with(Operator::new("Sum"), &losses)), seeds)
}

/// share * ||S - T||^2 / ||T - mean T||^2 over real tokens, the mean over the last axis; and its gradient.
fn apart(emit: &mut Emit, student: &Student, stream: ValueId, share: ValueId) -> (ValueId, Seed) {
    let dims = student.seen.dims(stream).unwrap_or_default();
    let name = stream_input(emit.graph.name(stream));
    let teacher = emit.graph.add_input(signature::declare(&name, ElementType::F32, dims.len()));
    let mean = emit.reduce_mean(teacher, &[-1]);
    let centred = emit.op("Sub", &[teacher, mean]);
    let error = emit.op("Sub", &[stream, teacher]);
    let [centred, error] =
        [centred, error].map(|value| only_real(emit, student.seen, value, &dims, student.token_mask));
    let [size, lost] = [centred, error].map(|value| sum_of_squares(emit, value));
    let least = emit.number(ElementType::F32, LEAST);
    let size = emit.op("Add", &[size, least]);
    let factor = emit.op("Div", &[share, size]);
    let loss = emit.op("Mul", &[lost, factor]);
    let two = emit.number(ElementType::F32, 2.0);
    let factor = emit.op("Mul", &[factor, two]);
    (loss, (stream, emit.op("Mul", &[error, factor])))
}

/// What the size of a stream is taken to be at least.
const LEAST: f64 = 1e-12;

fn sum_of_squares(emit: &mut Emit, value: ValueId) -> ValueId {
    emit.with(Operator::new("ReduceSumSquare").with(attribute::int("keepdims", 0)), &[value])
}
