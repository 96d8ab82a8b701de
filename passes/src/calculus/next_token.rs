//! Scores of the next token of two models, compared: a graph of its own, fed with what the models give.

use super::TokenMask;
use super::emit::Emit;
use crate::ir::{ElementType, Graph, Model, Operator, ValueId, attribute};
use crate::signature::declare;

/// Name of the input of the first model's scores: [samples, tokens, vocabulary].
pub const FIRST: &str = "kprune_first";
/// Name of the input of the other model's scores, of the same shape.
pub const OWN: &str = "kprune_own";
/// Name of the input of the tokens: [samples, tokens].
pub const IDS: &str = "kprune_ids";
/// Name of the input that says which tokens are real: [samples, tokens].
pub const MASK: &str = "kprune_mask";

/// The names of the outputs, each a number for every sample, in f64 where it is a sum.
#[derive(Clone, Debug)]
pub struct Sums {
    /// -log p of the token that follows, in nats, summed over all that follow another real one.
    pub surprise: String,
    /// How many those are.
    pub predicted: String,
    /// How many real tokens there are.
    pub tokens: String,
    /// For how many of them both models prefer the same token.
    pub same: String,
    /// KL(first || own) in nats, summed over them.
    pub divergence: String,
    /// The cosine of the two models' scores, summed over them.
    pub cosine: String,
    /// The largest difference of a score.
    pub largest: String,
}

/// The graph that compares, for scores of these types and tokens of type `ids`; `mask` is the type of the token mask, and
/// whether it marks padding.
pub fn compare(elements: [ElementType; 2], ids: ElementType, mask: Option<(ElementType, bool)>) -> (Model, Sums) {
    let mut graph = Graph::new();
    let first = graph.add_input(declare(FIRST, elements[0], 3));
    let own = graph.add_input(declare(OWN, elements[1], 3));
    let ids = graph.add_input(declare(IDS, ids, 2));
    let mask = mask
        .map(|(element, marks_padding)| TokenMask { input: graph.add_input(declare(MASK, element, 2)), marks_padding });
    let mut emit = Emit::new(&mut graph, OPSET, "next");
    let [first, own] = [first, own].map(|scores| emit.cast(scores, ElementType::F32));
    let real = emit.real_of(mask, ids, ElementType::F32);
    let last = |emit: &mut Emit, op: &str, value: ValueId| {
        emit.with(Operator::new(op).with(attribute::int("axis", -1)), &[value])
    };
    let (log_first, log_own) = (last(&mut emit, "LogSoftmax", first), last(&mut emit, "LogSoftmax", own));

    let (follows, surprise) = surprise(&mut emit, log_own, ids, real);
    let p = emit.op("Exp", &[log_first]);
    let apart = emit.op("Sub", &[log_first, log_own]);
    let each = emit.op("Mul", &[p, apart]);
    let divergence = emit.reduce_sum(each, &[-1], false);
    let best = |emit: &mut Emit, scores| {
        let operator = Operator::new("ArgMax").with(attribute::int("axis", -1)).with(attribute::int("keepdims", 0));
        emit.with(operator, &[scores])
    };
    let (best_first, best_own) = (best(&mut emit, first), best(&mut emit, own));
    let is_same = emit.op("Equal", &[best_first, best_own]);
    let same = emit.cast(is_same, ElementType::F32);
    let cosine = cosine(&mut emit, first, own);
    let difference = emit.op("Sub", &[first, own]);
    let difference = emit.op("Abs", &[difference]);
    let trailing = emit.unsqueeze(real, &[2]);
    let difference = emit.op("Mul", &[difference, trailing]);
    let largest = emit.with(
        Operator::new("ReduceMax").with(attribute::ints("axes", &[1, 2])).with(attribute::int("keepdims", 0)),
        &[difference],
    );

    let mut ends = Vec::new();
    let mut sum = |emit: &mut Emit, each: ValueId, weight: Option<ValueId>| {
        let weighted = weight.map_or(each, |weight| emit.op("Mul", &[each, weight]));
        let wide = emit.cast(weighted, ElementType::F64);
        let total = emit.reduce_sum(wide, &[1], false);
        ends.push(total);
        emit.graph.name(total).to_string()
    };
    let sums = Sums {
        surprise: sum(&mut emit, surprise, Some(follows)),
        predicted: sum(&mut emit, follows, None),
        tokens: sum(&mut emit, real, None),
        same: sum(&mut emit, same, Some(real)),
        divergence: sum(&mut emit, divergence, Some(real)),
        cosine: sum(&mut emit, cosine, Some(real)),
        largest: emit.graph.name(largest).to_string(),
    };
    ends.push(largest);
    graph.set_outputs(&ends);
    (Model::new(graph, OPSET), sums)
}

/// The operator set of the graph.
const OPSET: i64 = 17;

/// -log p of the token that follows, for every token but the last, and 1 where both are real, else 0: [samples,
/// tokens - 1].
fn surprise(emit: &mut Emit, log: ValueId, ids: ValueId, real: ValueId) -> (ValueId, ValueId) {
    let part = |emit: &mut Emit, value: ValueId, from: i64, to: i64| {
        let (from, to, axis) = (emit.integers(&[from]), emit.integers(&[to]), emit.integers(&[1]));
        emit.op("Slice", &[value, from, to, axis])
    };
    let before = part(emit, log, 0, -1);
    let next = part(emit, ids, 1, i64::MAX);
    let next = emit.cast(next, ElementType::I64);
    let next = emit.unsqueeze(next, &[2]);
    let likelihood = emit.with(Operator::new("GatherElements").with(attribute::int("axis", 2)), &[before, next]);
    let axis = emit.integers(&[2]);
    let likelihood = emit.op("Squeeze", &[likelihood, axis]);
    let surprise = emit.op("Neg", &[likelihood]);
    let (own, following) = (part(emit, real, 0, -1), part(emit, real, 1, i64::MAX));
    (emit.op("Mul", &[own, following]), surprise)
}

/// The cosine of two vectors along the last axis; 1 where both are nothing.
fn cosine(emit: &mut Emit, a: ValueId, b: ValueId) -> ValueId {
    let dot = |emit: &mut Emit, a: ValueId, b: ValueId| {
        let each = emit.op("Mul", &[a, b]);
        let sum = emit.reduce_sum(each, &[-1], false);
        let little = emit.number(ElementType::F32, f64::from(f32::MIN_POSITIVE));
        emit.op("Add", &[sum, little])
    };
    let (both, of_a, of_b) = (dot(emit, a, b), dot(emit, a, a), dot(emit, b, b));
    let (of_a, of_b) = (emit.op("Sqrt", &[of_a]), emit.op("Sqrt", &[of_b]));
    let size = emit.op("Mul", &[of_a, of_b]);
    emit.op("Div", &[both, size])
}
