//! How far the student's outputs are from the teacher's.
//!
//! The loss of a mini-batch of N samples, and its gradient with respect to the outputs:
//!
//! - logits: tau^2 / N * sum over samples of KL(softmax(z_T / tau) || softmax(z_S / tau)), whose gradient
//!   is tau / N * (softmax(z_S / tau) - softmax(z_T / tau)) (Hinton et al. 2015);
//! - start and end logits: the same over the sequence, averaged over the two;
//! - token logits: the same for every real token, averaged over the tokens of a sample (all, without a token mask);
//! - one number, hidden states and embeddings: squared error, summed over channels and averaged over the
//!   real tokens, or all positions, of a sample.
//!
//! All are tested against finite differences in tests/losses.rs.

use std::collections::HashSet;
use std::fmt;

use crate::calculus::TokenMask;
use crate::calculus::differentiate::Seed;
use crate::calculus::emit::Emit;
use crate::ir::{ElementType, Graph, Model, NodeId, Operator, ValueId, attribute};
use crate::observe::Observation;
use crate::signature;

/// What a student is told to be near to. A loss on labels is another of these.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Criterion {
    /// The teacher: its distributions over classes, both softened by dividing logits by `tau`, and its other outputs as
    /// they are.
    Teacher {
        /// How much distributions are softened; 1 leaves them as they are.
        tau: f64,
    },
}

impl Default for Criterion {
    fn default() -> Self {
        Self::Teacher { tau: 1.0 }
    }
}

/// Name of the input that holds the number of samples of the mini-batch.
pub const SAMPLES: &str = "kprune_samples";

/// What an output of a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputKind {
    /// One score per class: [samples, classes].
    Logits,
    /// One score per token, of being the start or the end of an answer: [samples, tokens].
    SpanLogits,
    /// Scores per class for every token: [samples, tokens, classes].
    TokenLogits,
    /// One number: [samples, 1].
    Regression,
    /// Hidden states or embeddings of any shape, samples first.
    Hidden,
    /// Nothing that the loss should look at.
    Ignored,
}

impl OutputKind {
    /// Whether it is a distribution over classes or positions.
    pub fn is_logits(self) -> bool {
        matches!(self, Self::Logits | Self::SpanLogits | Self::TokenLogits)
    }
}

impl fmt::Display for OutputKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Logits => "logits",
            Self::SpanLogits => "start/end logits",
            Self::TokenLogits => "token logits",
            Self::Regression => "regression",
            Self::Hidden => "hidden states",
            Self::Ignored => "ignored",
        })
    }
}

/// The outputs that the loss compares, with what they are taken for.
#[derive(Clone, Debug)]
pub struct Objective {
    /// Value and kind of every output that counts.
    pub outputs: Vec<(ValueId, OutputKind)>,
}

impl std::str::FromStr for OutputKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "logits" => Self::Logits,
            "span" => Self::SpanLogits,
            "tokens" => Self::TokenLogits,
            "regression" => Self::Regression,
            "hidden" => Self::Hidden,
            "ignore" => Self::Ignored,
            _ => return Err("expected logits, span, tokens, regression, hidden or ignore".into()),
        })
    }
}

impl Objective {
    /// Looks at what goes into the operator at `node` instead of the outputs that depend on it; only at
    /// values that operators `downstream` of the sublayers make. Returns whether there are any.
    pub(crate) fn look_before(
        &mut self,
        graph: &Graph,
        seen: &Observation,
        node: NodeId,
        downstream: &HashSet<NodeId>,
    ) -> bool {
        self.look_before_unless(graph, seen, node, downstream, &mut HashSet::new())
    }

    /// The same, but for operators that were `visited`.
    fn look_before_unless(
        &mut self,
        graph: &Graph,
        seen: &Observation,
        node: NodeId,
        downstream: &HashSet<NodeId>,
        visited: &mut HashSet<NodeId>,
    ) -> bool {
        if !visited.insert(node) {
            return false;
        }
        let operator = graph.operator(node);
        let dependents = graph.descendants(operator.outputs().iter().flatten().copied());
        let depends = |v: ValueId| graph.producer(v).is_some_and(|(n, _)| n == node || dependents.contains(&n));
        self.outputs.retain(|(v, _)| !depends(*v));
        let read = operator.inputs().iter().flatten().chain(operator.captures()).copied();
        let made_downstream = |v: &ValueId| graph.producer(*v).is_some_and(|(n, _)| downstream.contains(&n));
        let mut found = false;
        for value in read.filter(made_downstream) {
            if seen.element(value).is_some_and(ElementType::is_float) {
                let kind = if is_linear(graph, value) { OutputKind::Logits } else { OutputKind::Hidden };
                let is_new = !self.outputs.iter().any(|(v, _)| *v == value);
                self.outputs.extend(is_new.then_some((value, kind)));
                found = true;
            } else if let Some((maker, _)) = graph.producer(value) {
                found |= self.look_before_unless(graph, seen, maker, downstream, visited);
            }
        }
        found
    }

    /// Takes the named outputs for what is given instead of what was guessed.
    ///
    /// # Errors
    /// The first name that is no floating-point output of the model.
    pub fn overrule(&mut self, model: &Model, given: &[(String, OutputKind)]) -> Result<(), String> {
        for (name, kind) in given {
            let value = model.graph.outputs().iter().copied().find(|&v| model.graph.name(v) == *name);
            let value = value.ok_or_else(|| name.clone())?;
            self.outputs.retain(|(v, _)| *v != value);
            self.outputs.push((value, *kind));
        }
        self.outputs.retain(|(_, kind)| *kind != OutputKind::Ignored);
        let place = |v: &ValueId| model.graph.outputs().iter().position(|o| o == v);
        self.outputs.sort_by_key(|(v, _)| place(v));
        Ok(())
    }

    /// Guesses the kind of every floating-point output from its name, its rank and what makes it.
    pub fn guess(model: &Model, seen: &Observation, token_mask: Option<TokenMask>) -> Self {
        let graph = &model.graph;
        let floats = |v: &&ValueId| seen.element(**v).is_some_and(ElementType::is_float);
        let mut listed = HashSet::new();
        let outputs = graph.outputs().iter().filter(floats).filter(|v| listed.insert(**v));
        let outputs = outputs.filter_map(|&v| Some((v, guess_kind(model, seen, v, token_mask)?)));
        let mut this = Self { outputs: outputs.collect() };
        this.leave_out_inner_states(graph, seen);
        this
    }

    /// Logits say all that hidden states, attentions and caches which they are computed from could say. Embeddings, of
    /// two axes, are what their users look at, and stay.
    fn leave_out_inner_states(&mut self, graph: &Graph, seen: &Observation) {
        let logits = self.outputs.iter().filter(|(_, kind)| kind.is_logits()).map(|(v, _)| *v);
        let upstream = graph.ancestors(logits);
        let is_inner = |v: ValueId| {
            let has_positions = seen.dims(v).is_some_and(|d| d.len() > 2);
            has_positions && graph.producer(v).is_some_and(|(n, _)| upstream.contains(&n))
        };
        self.outputs.retain(|&(v, kind)| kind.is_logits() || !is_inner(v));
    }
}

fn guess_kind(model: &Model, seen: &Observation, output: ValueId, token_mask: Option<TokenMask>) -> Option<OutputKind> {
    let graph = &model.graph;
    let dims = seen.dims(output)?;
    let named_logits = graph.name(output).to_lowercase().contains("logit");
    let tokens = token_mask.and_then(|m| seen.dims(m.input)).and_then(|d| d.get(1).copied());
    Some(match dims.as_slice() {
        [] => return None,
        [_, last] if last.fixed() == Some(1) => OutputKind::Regression,
        [_, last] if last.fixed().is_none() || (named_logits && Some(*last) == tokens) => OutputKind::SpanLogits,
        [_, _] if named_logits || is_linear(graph, output) => OutputKind::Logits,
        [_, _, _] if named_logits => OutputKind::TokenLogits,
        _ => OutputKind::Hidden,
    })
}

/// Whether the output comes straight from a product with a weight.
fn is_linear(graph: &Graph, output: ValueId) -> bool {
    let Some((node, _)) = graph.producer(output) else { return false };
    let operator = graph.operator(node);
    let from_product = |v: &ValueId| graph.producer(*v).is_some_and(|(n, _)| graph.operator(n).is("MatMul"));
    operator.is("Gemm") || (operator.is("Add") && operator.inputs().iter().flatten().any(from_product))
}

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
    let Criterion::Teacher { tau } = criterion;
    let samples = emit.graph.add_input(signature::declare(SAMPLES, ElementType::F32, 0));
    let mut terms = Vec::new();
    let mut seeds = Vec::new();
    let spans = objective.outputs.iter().filter(|(_, kind)| *kind == OutputKind::SpanLogits).count().max(1);
    for &(output, kind) in &objective.outputs {
        let rank = seen.dims(output).map_or(0, |d| d.len());
        let element = seen.element(output).unwrap_or(ElementType::F32);
        let name = teacher_input(emit.graph.name(output));
        let teacher = emit.graph.add_input(signature::declare(&name, element, rank));
        let masked = token_mask.filter(|&m| over_tokens(seen, output, m.input));
        let tokens = masked.filter(|_| kind != OutputKind::SpanLogits);
        let (loss, gradient) = match kind {
            OutputKind::SpanLogits => {
                let [student, teacher] = [output, teacher].map(|logits| without_padding(emit, logits, masked, element));
                divergence(emit, student, teacher, element, tau)
            }
            OutputKind::Logits | OutputKind::TokenLogits => divergence(emit, output, teacher, element, tau),
            OutputKind::Regression | OutputKind::Hidden | OutputKind::Ignored => {
                squared_error(emit, output, teacher, element)
            }
        };
        let share = if kind == OutputKind::SpanLogits { 1.0 / spans as f64 } else { 1.0 };
        let has_positions = matches!(kind, OutputKind::TokenLogits | OutputKind::Hidden) && rank > 2;
        let positions = match tokens {
            Some(mask) => Positions::Real(mask),
            None if has_positions => Positions::All(output),
            None => Positions::None,
        };
        let weight = weight(emit, samples, positions, share, rank, element);
        let weighted = emit.op("Mul", &[loss, weight]);
        let axes: Vec<i64> = (0..rank as i64).collect();
        terms.push(emit.reduce_sum(weighted, &axes, false));
        seeds.push((output, emit.op("Mul", &[gradient, weight])));
    }
    let value = if terms.len() == 1 { terms[0] } else { emit.op("Sum", &terms) };
    Loss { value, seeds }
}

/// Whether the output's second axis runs over the tokens of the mask.
fn over_tokens(seen: &Observation, output: ValueId, token_mask: ValueId) -> bool {
    match (seen.dims(output), seen.dims(token_mask)) {
        (Some(output), Some(mask)) => output.len() >= 2 && mask.len() == 2 && output[..2] == mask[..],
        _ => false,
    }
}

/// Logits over positions, [samples, positions], so far down where there is padding that it gets no probability.
fn without_padding(emit: &mut Emit, logits: ValueId, mask: Option<TokenMask>, element: ElementType) -> ValueId {
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
    let square = emit.number(element, tau * tau);
    let tau = emit.number(element, tau);
    let mut log_softmax = |value| {
        let cooled = emit.op("Div", &[value, tau]);
        emit.with(Operator::new("LogSoftmax").with(attribute::int("axis", -1)), &[cooled])
    };
    let (log_student, log_teacher) = (log_softmax(student), log_softmax(teacher));
    let (p_student, p_teacher) = (emit.op("Exp", &[log_student]), emit.op("Exp", &[log_teacher]));
    let apart = emit.op("Sub", &[log_teacher, log_student]);
    let loss = emit.op("Mul", &[p_teacher, apart]);
    let loss = emit.op("Mul", &[loss, square]);
    let gradient = emit.op("Sub", &[p_student, p_teacher]);
    (loss, emit.op("Mul", &[gradient, tau]))
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{B, S, Sketch, n};

    fn named(g: &mut Sketch, name: &str, value: ValueId) -> ValueId {
        let dims: Vec<_> = g.seen().dims(value).unwrap();
        let made = g.op(Operator::new("Identity"), &[value], &dims);
        let named = g.graph.add(Operator::new("Identity"), &[made], name);
        g.look(named, &dims);
        g.graph.add_output(named);
        named
    }

    #[test]
    fn states_that_logits_are_computed_from_are_left_out_and_embeddings_are_not() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let state = g.on("Relu", &[x]);
        let hidden = named(&mut g, "hidden", state);
        let pooled = g.op(Operator::new("ReduceMean"), &[hidden], &[B, n(4)]);
        let embedding = named(&mut g, "embedding", pooled);
        let w = g.weight("w", &[4, 3]);
        let scores = g.on("MatMul", &[embedding, w]);
        let logits = named(&mut g, "logits", scores);
        let aside = g.on("Tanh", &[x]);
        let aside = named(&mut g, "aside", aside);
        let found = Objective::guess(&g.model(), &g.seen(), None);
        let expected = [(embedding, OutputKind::Hidden), (logits, OutputKind::Logits), (aside, OutputKind::Hidden)];
        assert_eq!(found.outputs, expected, "what logits do not depend on stays too");
    }
}
