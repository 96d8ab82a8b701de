//! How far the student's outputs are from the teacher's.
//!
//! The loss of a mini-batch of N samples, and its gradient with respect to the outputs:
//!
//! - logits: tau^2 / N * sum over samples of KL(softmax(z_T / tau) || softmax(z_S / tau)), whose gradient
//!   is tau / N * (softmax(z_S / tau) - softmax(z_T / tau)) (Hinton et al. 2015);
//! - start and end logits: the same over the sequence, averaged over the two;
//! - token logits: the same for every real token, averaged over the tokens of a sample (all, without a token mask);
//! - multi-label logits: tau^2 * KL of every label's sigmoid, summed over labels;
//! - one number: squared error;
//! - hidden states and embeddings: ||S - T||^2 / ||T||^2 over the last axis, so that direction and size count, and the
//!   size of the model's numbers does not; averaged over the real tokens, or all positions, of a sample.
//!
//! All are tested against finite differences in tests/losses.rs.

use crate::calculus::TokenMask;
use crate::calculus::differentiate::Seed;
use crate::calculus::emit::Emit;
use crate::calculus::objective::{Compared, Objective, OutputKind};
use crate::ir::{ElementType, Operator, ValueId, attribute};
use crate::observe::Observation;
use crate::signature;

/// What a student is told to be near to.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Criterion {
    /// The teacher: its distributions over classes, both softened by dividing logits by `tau`, and its other outputs as
    /// they are.
    Teacher {
        /// How much distributions are softened; 1 leaves them as they are.
        tau: f64,
    },
    /// Labels: cross entropy for distributions over classes, squared errors for numbers. Where the teacher's outputs are
    /// fed otherwise, there are targets of the same shapes: the probability of every class, and numbers. Scores of the next
    /// token need none: the token that follows is right.
    Labels,
}

impl Default for Criterion {
    fn default() -> Self {
        Self::Teacher { tau: 1.0 }
    }
}

/// Name of the input that holds the number of samples of the mini-batch.
pub const SAMPLES: &str = "kprune_samples";

/// The loss in a graph.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The loss, a scalar.
    pub value: ValueId,
    /// Its gradient with respect to every output.
    pub seeds: Vec<Seed>,
}

/// The name of the input that takes the teacher's value of an output.
pub fn teacher_input(output: &str) -> String {
    format!("kprune_teacher_{output}")
}

/// Appends the loss to a graph: new inputs are the teacher's outputs and [`SAMPLES`].
///
/// `token_mask` says which tokens are real.
pub fn append(
    emit: &mut Emit,
    seen: &Observation,
    objective: &Objective,
    criterion: Criterion,
    token_mask: Option<TokenMask>,
) -> Loss {
    let samples = emit.graph.add_input(signature::declare(SAMPLES, ElementType::F32, 0));
    let mut terms = Vec::new();
    let mut seeds = Vec::new();
    let spans = objective.spans();
    for compared in &objective.outputs {
        let &Compared { value: output, kind, ref head, .. } = compared;
        if (kind, criterion) == (OutputKind::NextToken, Criterion::Labels) {
            let (loss, gradient) = next_token(emit, seen, output, token_mask);
            let weight = counts(emit, seen, compared, spans, samples, token_mask);
            let weighted = emit.op("Mul", &[loss, weight]);
            terms.push(emit.reduce_sum(weighted, &[0, 1, 2], false));
            seeds.push((output, emit.op("Mul", &[gradient, weight])));
            continue;
        }
        let rank = seen.dims(output).map_or(0, |d| d.len());
        let element = seen.element(output).unwrap_or(ElementType::F32);
        let name = teacher_input(emit.graph.name(compared.kept()));
        let kept_rank = seen.dims(compared.kept()).map_or(rank, |d| d.len());
        let kept = emit.graph.add_input(signature::declare(&name, element, kept_rank));
        let teacher = head.as_ref().map_or(kept, |head| head.again(emit.graph, kept));
        let masked = token_mask.filter(|&m| over_tokens(seen, output, m.input));
        let (loss, gradient) = match (kind, criterion) {
            (OutputKind::SpanLogits, Criterion::Teacher { tau }) => {
                let [student, teacher] = [output, teacher].map(|logits| without_padding(emit, logits, masked, element));
                divergence(emit, student, teacher, element, tau)
            }
            (OutputKind::SpanLogits, Criterion::Labels) => {
                let student = without_padding(emit, output, masked, element);
                cross_entropy(emit, student, teacher)
            }
            (OutputKind::Logits | OutputKind::TokenLogits | OutputKind::NextToken, Criterion::Teacher { tau }) => {
                divergence(emit, output, teacher, element, tau)
            }
            (OutputKind::Logits | OutputKind::TokenLogits | OutputKind::NextToken, Criterion::Labels) => {
                cross_entropy(emit, output, teacher)
            }
            (OutputKind::MultiLabel, Criterion::Teacher { tau }) => {
                label_divergence(emit, output, teacher, element, tau)
            }
            (OutputKind::MultiLabel, Criterion::Labels) => label_entropy(emit, output, teacher, element),
            (OutputKind::Regression | OutputKind::Ignored, _) => squared_error(emit, output, teacher, element),
            (OutputKind::Hidden, _) => relative_error(emit, output, teacher, element, rank),
        };
        let weight = counts(emit, seen, compared, spans, samples, token_mask);
        let weighted = emit.op("Mul", &[loss, weight]);
        let axes: Vec<i64> = (0..rank as i64).collect();
        terms.push(emit.reduce_sum(weighted, &axes, false));
        seeds.push((output, emit.op("Mul", &[gradient, weight])));
    }
    let value = if terms.len() == 1 { terms[0] } else { emit.op("Sum", &terms) };
    Loss { value, seeds }
}

/// What every element of an output counts: one over the number of samples, and over that of its positions; where there are
/// several outputs of start and end logits, they share.
pub(super) fn counts(
    emit: &mut Emit,
    seen: &Observation,
    &Compared { value, kind, .. }: &Compared,
    spans: usize,
    samples: ValueId,
    token_mask: Option<TokenMask>,
) -> ValueId {
    let rank = seen.dims(value).map_or(0, |d| d.len());
    let element = seen.element(value).unwrap_or(ElementType::F32);
    let share = if kind == OutputKind::SpanLogits { 1.0 / spans as f64 } else { 1.0 };
    let tokens = token_mask.filter(|&m| kind != OutputKind::SpanLogits && over_tokens(seen, value, m.input));
    let may_have_positions = kind.is_of_tokens() || matches!(kind, OutputKind::MultiLabel | OutputKind::Hidden);
    let positions = match tokens {
        Some(mask) => Positions::Real(mask),
        None if may_have_positions && rank > 2 => Positions::All(value),
        None => Positions::None,
    };
    weight(emit, samples, positions, share, rank, element)
}

/// Whether the output's second axis runs over the tokens of the mask.
pub(super) fn over_tokens(seen: &Observation, output: ValueId, token_mask: ValueId) -> bool {
    match (seen.dims(output), seen.dims(token_mask)) {
        (Some(output), Some(mask)) => output.len() >= 2 && mask.len() == 2 && output[..2] == mask[..],
        _ => false,
    }
}

/// Logits over positions, [samples, positions], so far down where there is padding that it gets no probability.
pub(super) fn without_padding(
    emit: &mut Emit,
    logits: ValueId,
    mask: Option<TokenMask>,
    element: ElementType,
) -> ValueId {
    let Some(mask) = mask else { return logits };
    let real = emit.real(mask, element);
    let one = emit.number(element, 1.0);
    let padding = emit.op("Sub", &[real, one]);
    let far = emit.number(element, FAR);
    let penalty = emit.op("Mul", &[padding, far]);
    emit.op("Add", &[logits, penalty])
}

/// How far down.
const FAR: f64 = 1e4;

/// tau^2 p_T (log p_T - log p_S) and tau (p_S - p_T), element by element.
fn divergence(
    emit: &mut Emit,
    student: ValueId,
    teacher: ValueId,
    element: ElementType,
    tau: f64,
) -> (ValueId, ValueId) {
    let mut log_softmax = |value| {
        let cooled = scaled(emit, value, element, 1.0 / tau);
        emit.with(Operator::new("LogSoftmax").with(attribute::int("axis", -1)), &[cooled])
    };
    let (log_student, log_teacher) = (log_softmax(student), log_softmax(teacher));
    let (p_student, p_teacher) = (emit.op("Exp", &[log_student]), emit.op("Exp", &[log_teacher]));
    let apart = emit.op("Sub", &[log_teacher, log_student]);
    let loss = emit.op("Mul", &[p_teacher, apart]);
    softened(emit, loss, [p_student, p_teacher], element, tau)
}

/// tau^2 times a divergence of softened distributions, and tau (p_S - p_T).
fn softened(
    emit: &mut Emit,
    divergence: ValueId,
    [p_student, p_teacher]: [ValueId; 2],
    element: ElementType,
    tau: f64,
) -> (ValueId, ValueId) {
    let gradient = emit.op("Sub", &[p_student, p_teacher]);
    (scaled(emit, divergence, element, tau * tau), scaled(emit, gradient, element, tau))
}

/// A value times a number; ONNX Runtime trips over products with 1 whose values are outputs.
fn scaled(emit: &mut Emit, value: ValueId, element: ElementType, factor: f64) -> ValueId {
    if factor == 1.0 {
        return value;
    }
    let factor = emit.number(element, factor);
    emit.op("Mul", &[value, factor])
}

/// tau^2 (p_T log(p_T / p_S) + (1 - p_T) log((1 - p_T) / (1 - p_S))) and tau (p_S - p_T) of sigmoids, element by element.
fn label_divergence(
    emit: &mut Emit,
    student: ValueId,
    teacher: ValueId,
    element: ElementType,
    tau: f64,
) -> (ValueId, ValueId) {
    let cooled = [student, teacher].map(|z| scaled(emit, z, element, 1.0 / tau));
    // log p = -softplus(-z), and log (1 - p) = -softplus(z).
    let apart = |emit: &mut Emit, signed: [ValueId; 2]| {
        let [student, teacher] = signed.map(|z| emit.op("Softplus", &[z]));
        emit.op("Sub", &[student, teacher])
    };
    let wrong = apart(emit, cooled);
    let negated = cooled.map(|z| emit.op("Neg", &[z]));
    let right = apart(emit, negated);
    let [p_student, p_teacher] = cooled.map(|z| emit.op("Sigmoid", &[z]));
    let one = emit.number(element, 1.0);
    let q_teacher = emit.op("Sub", &[one, p_teacher]);
    let (right, wrong) = (emit.op("Mul", &[p_teacher, right]), emit.op("Mul", &[q_teacher, wrong]));
    let loss = emit.op("Add", &[right, wrong]);
    softened(emit, loss, [p_student, p_teacher], element, tau)
}

/// -t log softmax(z) and softmax(z) sum t - t, element by element, for the probability t of every class; where all are 0,
/// nothing is right, and nothing counts.
fn cross_entropy(emit: &mut Emit, logits: ValueId, target: ValueId) -> (ValueId, ValueId) {
    let log = emit.with(Operator::new("LogSoftmax").with(attribute::int("axis", -1)), &[logits]);
    let likelihood = emit.op("Mul", &[target, log]);
    let loss = emit.op("Neg", &[likelihood]);
    let counts = emit.reduce_sum(target, &[-1], true);
    let p = emit.op("Exp", &[log]);
    let p = emit.op("Mul", &[p, counts]);
    (loss, emit.op("Sub", &[p, target]))
}

/// -log softmax(z) of the token that follows, [samples, tokens, 1], and softmax(z) less 1 for that token; nothing for a
/// token that no real one follows.
fn next_token(
    emit: &mut Emit,
    seen: &Observation,
    logits: ValueId,
    token_mask: Option<TokenMask>,
) -> (ValueId, ValueId) {
    let element = seen.element(logits).unwrap_or(ElementType::F32);
    let vocabulary = seen.dims(logits).and_then(|d| d.last()?.fixed());
    let ids = signature::ids(emit.graph, vocabulary).expect("scores of the next token are of the ids' table");
    let part = |emit: &mut Emit, value: ValueId, from: i64| {
        let (from, to, axis) = (emit.integers(&[from]), emit.integers(&[i64::MAX]), emit.integers(&[1]));
        emit.op("Slice", &[value, from, to, axis])
    };
    let along = |op: &str, axis: i64| Operator::new(op).with(attribute::int("axis", axis));
    let ids = emit.cast(ids, ElementType::I64);
    let (following, last) = (part(emit, ids, 1), part(emit, ids, -1));
    let next = emit.with(along("Concat", 1), &[following, last]);
    let next = emit.unsqueeze(next, &[2]);
    let real = emit.real_of(token_mask, ids, element);
    let (following, last) = (part(emit, real, 1), part(emit, real, -1));
    let none = emit.op("Sub", &[last, last]);
    let follows = emit.with(along("Concat", 1), &[following, none]);
    let follows = emit.unsqueeze(follows, &[2]);
    let log = emit.with(along("LogSoftmax", -1), &[logits]);
    let likelihood = emit.with(along("GatherElements", 2), &[log, next]);
    let surprise = emit.op("Neg", &[likelihood]);
    let p = emit.op("Exp", &[log]);
    let (own, one) = (emit.with(along("GatherElements", 2), &[p, next]), emit.number(element, 1.0));
    let own = emit.op("Sub", &[own, one]);
    let gradient = emit.with(along("ScatterElements", 2), &[p, next, own]);
    (emit.op("Mul", &[surprise, follows]), emit.op("Mul", &[gradient, follows]))
}

/// t softplus(-z) + (1 - t) softplus(z) and sigmoid(z) - t, element by element.
fn label_entropy(emit: &mut Emit, logits: ValueId, target: ValueId, element: ElementType) -> (ValueId, ValueId) {
    let one = emit.number(element, 1.0);
    let negated = emit.op("Neg", &[logits]);
    let [right, wrong] = [negated, logits].map(|z| emit.op("Softplus", &[z]));
    let other = emit.op("Sub", &[one, target]);
    let (right, wrong) = (emit.op("Mul", &[target, right]), emit.op("Mul", &[other, wrong]));
    let p = emit.op("Sigmoid", &[logits]);
    (emit.op("Add", &[right, wrong]), emit.op("Sub", &[p, target]))
}

/// (z_S - z_T)^2 / ||z_T||^2 and its gradient, element by element; the norm is over the last axis.
fn relative_error(
    emit: &mut Emit,
    student: ValueId,
    teacher: ValueId,
    element: ElementType,
    rank: usize,
) -> (ValueId, ValueId) {
    let (loss, gradient) = squared_error(emit, student, teacher, element);
    let size = size(emit, teacher, element, rank);
    (emit.op("Div", &[loss, size]), emit.op("Div", &[gradient, size]))
}

/// ||z_T||^2 over the last axis, and a little more.
pub(super) fn size(emit: &mut Emit, teacher: ValueId, element: ElementType, rank: usize) -> ValueId {
    let squares = emit.op("Mul", &[teacher, teacher]);
    let own = emit.reduce_sum(squares, &[rank.saturating_sub(1) as i64], true);
    let largest = emit.op("ReduceMax", &[own]);
    let (floor, least) = (emit.number(element, FLOOR), emit.number(element, LEAST));
    let floor = emit.op("Mul", &[largest, floor]);
    let size = emit.op("Add", &[own, floor]);
    emit.op("Add", &[size, least])
}

/// What is added to the squared norm of a position, of the largest in the batch: a position where the teacher says nothing
/// must not outweigh all others.
const FLOOR: f64 = 1e-3;

/// And in any case.
const LEAST: f64 = 1e-12;

/// (z_S - z_T)^2 and 2 (z_S - z_T), element by element.
fn squared_error(emit: &mut Emit, student: ValueId, teacher: ValueId, element: ElementType) -> (ValueId, ValueId) {
    let two = emit.number(element, 2.0);
    let apart = emit.op("Sub", &[student, teacher]);
    (emit.op("Mul", &[apart, apart]), emit.op("Mul", &[apart, two]))
}

/// Which positions of a sample an output is averaged over.
enum Positions {
    /// Those that this mask says to be real.
    Real(TokenMask),
    /// All of this value: the axes between the first and the last.
    All(ValueId),
    /// It has none.
    None,
}

/// What every element counts: share / samples, and over positions also real / number of real ones.
fn weight(
    emit: &mut Emit,
    samples: ValueId,
    positions: Positions,
    share: f64,
    rank: usize,
    element: ElementType,
) -> ValueId {
    let share = emit.number(element, share);
    let samples = emit.cast(samples, element);
    let each = emit.op("Div", &[share, samples]);
    let mask = match positions {
        Positions::Real(mask) => mask,
        Positions::All(value) => {
            let (from, to) = (emit.integers(&[1]), emit.integers(&[-1]));
            let shape = emit.op("Shape", &[value]);
            let inner = emit.op("Slice", &[shape, from, to]);
            let count = emit.with(Operator::new("ReduceProd").with(attribute::int("keepdims", 0)), &[inner]);
            let count = emit.cast(count, element);
            return emit.op("Div", &[each, count]);
        }
        Positions::None => return each,
    };
    let real = emit.real(mask, element);
    let count = emit.reduce_sum(real, &[1], true);
    let part = emit.op("Div", &[real, count]);
    let trailing: Vec<i64> = (2..rank as i64).collect();
    let part = if trailing.is_empty() { part } else { emit.unsqueeze(part, &trailing) };
    emit.op("Mul", &[part, each])
}
