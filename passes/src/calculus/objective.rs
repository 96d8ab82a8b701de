//! What of a student is compared with its teacher: which outputs, and what they are taken for.

use std::collections::HashSet;
use std::fmt;

use crate::calculus::TokenMask;
use crate::ir::{ElementType, Graph, Model, NodeId, ValueId};
use crate::observe::{Dim, Observation};
use crate::signature;

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
    /// Scores per token of being the next, for every token: [samples, tokens, vocabulary].
    NextToken,
    /// Scores of labels of which each is right or not for itself: samples first, of any shape.
    MultiLabel,
    /// One number: [samples, 1].
    Regression,
    /// Hidden states or embeddings of any shape, samples first.
    Hidden,
    /// Nothing that the loss should look at.
    Ignored,
}

impl OutputKind {
    /// Whether it is scores of classes for every token.
    pub fn is_of_tokens(self) -> bool {
        matches!(self, Self::TokenLogits | Self::NextToken)
    }

    /// Whether it is scores of classes, positions or labels.
    pub fn is_logits(self) -> bool {
        matches!(self, Self::Logits | Self::SpanLogits | Self::MultiLabel) || self.is_of_tokens()
    }
}

impl fmt::Display for OutputKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Logits => "logits",
            Self::SpanLogits => "start/end logits",
            Self::TokenLogits => "token logits",
            Self::NextToken => "next-token logits",
            Self::MultiLabel => "multi-label logits",
            Self::Regression => "regression",
            Self::Hidden => "hidden states",
            Self::Ignored => "ignored",
        })
    }
}

impl std::str::FromStr for OutputKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "logits" => Self::Logits,
            "span" => Self::SpanLogits,
            "tokens" => Self::TokenLogits,
            "next" => Self::NextToken,
            "multilabel" => Self::MultiLabel,
            "regression" => Self::Regression,
            "hidden" => Self::Hidden,
            "ignore" => Self::Ignored,
            _ => return Err("expected logits, span, tokens, next, multilabel, regression, hidden or ignore".into()),
        })
    }
}

/// How an output gives its scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Scores,
    /// As probabilities that sum to one along the last axis.
    Softmax,
    /// As the logarithms of such.
    LogSoftmax,
    /// As a probability each.
    Sigmoid,
}

impl Form {
    /// The scores that numbers in this form stand for, up to a constant.
    pub fn scores(self, numbers: &[f64]) -> Vec<f64> {
        match self {
            Self::Scores | Self::LogSoftmax => numbers.to_vec(),
            Self::Softmax => numbers.iter().map(|p| p.max(LEAST).ln()).collect(),
            Self::Sigmoid => numbers.iter().map(|p| p.max(LEAST).ln() - (1.0 - p).max(LEAST).ln()).collect(),
        }
    }
}

/// Smaller probabilities are nothing that f32 could tell from 0.
const LEAST: f64 = 1e-38;

/// An output of a model that is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// The value that the loss looks at: the output, or the scores that it is made from.
    pub value: ValueId,
    /// The output; the same value where the loss looks within the model.
    pub output: ValueId,
    /// What it is taken for.
    pub kind: OutputKind,
    /// How the output gives it.
    pub form: Form,
    /// Why it is taken for that.
    pub why: String,
    /// Where it is scores of a whole vocabulary: what makes them, so that they need not be kept.
    pub head: Option<Head>,
}

/// What makes scores of a whole vocabulary from the last hidden state, with constants alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The hidden state.
    pub state: ValueId,
    /// The operators, from there on.
    nodes: Vec<NodeId>,
}

impl Head {
    /// Finds it upstream of `scores`.
    fn find(graph: &Graph, scores: ValueId) -> Option<Self> {
        let (mut state, mut nodes) = (scores, Vec::new());
        loop {
            let (node, _) = graph.producer(state)?;
            let operator = graph.operator(node);
            let mut variable = operator.inputs().iter().flatten().filter(|&&v| graph.constant(v).is_none());
            let (Some(&input), None) = (variable.next(), variable.next()) else { return None };
            if !matches!(
                operator.op_type.as_str(),
                "MatMul" | "Gemm" | "Add" | "Mul" | "Div" | "Tanh" | "Cast" | "Identity"
            ) {
                return None;
            }
            nodes.insert(0, node);
            state = input;
            if operator.is("MatMul") || operator.is("Gemm") {
                return Some(Self { state, nodes });
            }
        }
    }

    /// Appends what it makes of another hidden state.
    pub(crate) fn again(&self, graph: &mut Graph, state: ValueId) -> ValueId {
        let mut last = (self.state, state);
        for &node in &self.nodes {
            let old = graph.operator(node).output(0);
            let made = graph.add_copy(node, |v| if v == last.0 { last.1 } else { v });
            if let (Some(old), Some(&new)) = (old, made.first()) {
                last = (old, new);
            }
        }
        last.1
    }
}

impl Compared {
    /// What is kept of the teacher.
    pub fn kept(&self) -> ValueId {
        self.head.as_ref().map_or(self.value, |head| head.state)
    }
}

/// What the loss compares, and what it leaves out.
#[derive(Clone, Debug, Default)]
pub struct Objective {
    /// Every output that counts.
    pub outputs: Vec<Compared>,
    /// The other outputs, and why they do not count.
    pub left_out: Vec<(ValueId, String)>,
}

impl Objective {
    /// Guesses the kind of every floating-point output from its name, its shape and what makes it.
    pub fn guess(model: &Model, seen: &Observation, token_mask: Option<TokenMask>) -> Self {
        let mut this = Self::default();
        let mut listed = HashSet::new();
        for &output in model.graph.outputs().iter().filter(|&&v| listed.insert(v)) {
            match guess(&model.graph, seen, output, token_mask) {
                Ok(compared) => this.outputs.push(compared),
                Err(why) => this.left_out.push((output, why.into())),
            }
        }
        this.leave_out_inner_states(&model.graph, seen);
        this
    }

    /// Logits say all that hidden states, attentions and caches which they are computed from could say. Embeddings, of
    /// two axes, are what their users look at, and stay.
    fn leave_out_inner_states(&mut self, graph: &Graph, seen: &Observation) {
        let logits = self.outputs.iter().filter(|c| c.kind.is_logits()).map(|c| c.value);
        let upstream = graph.ancestors(logits);
        let is_inner = |compared: &Compared| {
            let has_positions = seen.dims(compared.value).is_some_and(|d| d.len() > 2);
            let is_upstream = graph.producer(compared.value).is_some_and(|(n, _)| upstream.contains(&n));
            !compared.kind.is_logits() && has_positions && is_upstream
        };
        let (inner, outputs) = std::mem::take(&mut self.outputs).into_iter().partition(is_inner);
        self.outputs = outputs;
        let left_out = |c: Compared| (c.output, "logits that are computed from it are compared".to_string());
        self.left_out.extend(Vec::into_iter(inner).map(left_out));
    }

    /// Finds what makes scores of a whole vocabulary, where none of the operators `but` does: their weights change.
    pub(crate) fn find_heads(&mut self, graph: &Graph, but: &HashSet<NodeId>) {
        for compared in self.outputs.iter_mut().filter(|c| c.kind == OutputKind::NextToken) {
            let head = Head::find(graph, compared.value);
            compared.head = head.filter(|head| head.nodes.iter().all(|node| !but.contains(node)));
        }
    }

    /// The same, with whole scores of the teacher: where the weights that make them change.
    pub fn without_heads(mut self) -> Self {
        self.outputs.iter_mut().for_each(|compared| compared.head = None);
        self
    }

    /// Takes the named outputs for what is given instead of what was guessed.
    ///
    /// # Errors
    /// The first name that is no floating-point output of the model.
    pub fn overrule(&mut self, model: &Model, given: &[(String, OutputKind)]) -> Result<(), String> {
        for (name, kind) in given {
            let output = model.graph.outputs().iter().copied().find(|&v| model.graph.name(v) == *name);
            let output = output.ok_or_else(|| name.clone())?;
            let guessed = self.outputs.iter().find(|c| c.output == output && kind.is_logits()).cloned();
            let plain =
                Compared { value: output, output, kind: *kind, form: Form::Scores, why: String::new(), head: None };
            self.outputs.retain(|c| c.output != output);
            self.left_out.retain(|(v, _)| *v != output);
            let why = "it was said with --output".to_string();
            match kind {
                OutputKind::Ignored => self.left_out.push((output, why)),
                _ => {
                    let guessed = guessed.unwrap_or(plain);
                    let head = guessed.head.clone().filter(|_| *kind == OutputKind::NextToken);
                    self.outputs.push(Compared { kind: *kind, why, head, ..guessed });
                }
            }
        }
        let place = |v: ValueId| model.graph.outputs().iter().position(|&o| o == v);
        self.outputs.sort_by_key(|c| place(c.output));
        Ok(())
    }

    /// How many outputs are start or end logits, at least 1.
    pub fn spans(&self) -> usize {
        self.outputs.iter().filter(|c| c.kind == OutputKind::SpanLogits).count().max(1)
    }

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
        self.outputs.retain(|c| !depends(c.value));
        let read = operator.inputs().iter().flatten().chain(operator.captures()).copied();
        let made_downstream = |v: &ValueId| graph.producer(*v).is_some_and(|(n, _)| downstream.contains(&n));
        let mut found = false;
        for value in read.filter(made_downstream) {
            if seen.element(value).is_some_and(ElementType::is_float) {
                let kind = if is_linear(graph, value) { OutputKind::Logits } else { OutputKind::Hidden };
                let is_new = !self.outputs.iter().any(|c| c.value == value);
                let why = format!("it goes into {}, which has no gradient", graph.label(node));
                let compared = Compared { value, output: value, kind, form: Form::Scores, why, head: None };
                self.outputs.extend(is_new.then_some(compared));
                found = true;
            } else if let Some((maker, _)) = graph.producer(value) {
                found |= self.look_before_unless(graph, seen, maker, downstream, visited);
            }
        }
        found
    }
}

/// What an output is taken for; why not, where it is nothing to compare.
fn guess(
    graph: &Graph,
    seen: &Observation,
    output: ValueId,
    token_mask: Option<TokenMask>,
) -> Result<Compared, &'static str> {
    if !seen.element(output).is_some_and(ElementType::is_float) {
        return Err("it holds no floating-point numbers");
    }
    let dims = seen.dims(output).ok_or("its shape is not known")?;
    let tokens = token_mask.and_then(|m| seen.dims(m.input)).and_then(|d| d.get(1).copied());
    let (form, value) = scores_of(graph, seen, output, &dims);
    let is_named = graph.name(output).to_lowercase().contains("logit");
    let (kind, why) = match form {
        _ if seen.is_causal() && is_over_vocabulary(graph, &dims) => {
            (OutputKind::NextToken, "it has a score for every token of the vocabulary, and looks at no later ones")
        }
        Form::Scores => guess_scores(&dims, tokens, is_named, is_linear(graph, output))?,
        Form::Sigmoid => (OutputKind::MultiLabel, "a Sigmoid makes it"),
        Form::Softmax | Form::LogSoftmax => match dims.as_slice() {
            [_, last] if last.fixed().is_none() || Some(*last) == tokens => {
                (OutputKind::SpanLogits, "a softmax over the sequence makes it")
            }
            [_, _] => (OutputKind::Logits, "a softmax makes it"),
            _ => (OutputKind::TokenLogits, "a softmax makes it for every position"),
        },
    };
    Ok(Compared { value, output, kind, form, why: why.into(), head: None })
}

/// Whether numbers of this shape are one for every entry of the table of tokens, at every position.
fn is_over_vocabulary(graph: &Graph, dims: &[Dim]) -> bool {
    matches!(dims, [_, _, last] if signature::ids(graph, last.fixed()).is_some())
}

/// What scores of this shape are, and why.
fn guess_scores(
    dims: &[Dim],
    tokens: Option<Dim>,
    is_named: bool,
    is_linear: bool,
) -> Result<(OutputKind, &'static str), &'static str> {
    Ok(match dims {
        [] => return Err("it is a single number for all samples"),
        [_, last] if last.fixed() == Some(1) => (OutputKind::Regression, "it is one number a sample"),
        [_, last] if last.fixed().is_none() => (OutputKind::SpanLogits, "its last axis is as long as the input"),
        [_, last] if is_named && Some(*last) == tokens => (OutputKind::SpanLogits, "it is called logits, one a token"),
        [_, _] if is_named => (OutputKind::Logits, "it is called logits"),
        [_, _] if is_linear => (OutputKind::Logits, "a product with a weight makes it"),
        [_, _, _] if is_named => (OutputKind::TokenLogits, "it is called logits, for every position"),
        _ => (OutputKind::Hidden, "nothing says that it is scores of classes"),
    })
}

/// The scores that an output is a softmax or a sigmoid of, of two or three axes; the output itself where it is none.
fn scores_of(graph: &Graph, seen: &Observation, output: ValueId, dims: &[Dim]) -> (Form, ValueId) {
    let mut value = output;
    let plain = (Form::Scores, output);
    while let Some((node, _)) = graph.producer(value) {
        let operator = graph.operator(node);
        let Some(input) = operator.input(0).filter(|&v| seen.element(v).is_some_and(ElementType::is_float)) else {
            return plain;
        };
        let axis = operator.int("axis", -1);
        let is_last = (2..=3).contains(&dims.len()) && (axis == -1 || axis == dims.len() as i64 - 1);
        match operator.op_type.as_str() {
            _ if !operator.is_standard() => return plain,
            "Identity" | "Cast" => value = input,
            "Softmax" if is_last => return (Form::Softmax, input),
            "LogSoftmax" if is_last => return (Form::LogSoftmax, input),
            "Sigmoid" if dims.len() > 1 => return (Form::Sigmoid, input),
            _ => return plain,
        }
    }
    plain
}

/// Whether the output comes straight from a product with a weight.
fn is_linear(graph: &Graph, output: ValueId) -> bool {
    let Some((node, _)) = graph.producer(output) else { return false };
    let operator = graph.operator(node);
    let from_product = |v: &ValueId| graph.producer(*v).is_some_and(|(n, _)| graph.operator(n).is("MatMul"));
    operator.is("Gemm") || (operator.is("Add") && operator.inputs().iter().flatten().any(from_product))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Operator, attribute};
    use crate::testing::{B, S, Sketch, n};

    fn named(g: &mut Sketch, name: &str, value: ValueId) -> ValueId {
        let dims: Vec<_> = g.seen().dims(value).unwrap();
        let made = g.op(Operator::new("Identity"), &[value], &dims);
        let named = g.graph.add(Operator::new("Identity"), &[made], name);
        g.look(named, &dims);
        g.graph.add_output(named);
        named
    }

    fn kinds(found: &Objective) -> Vec<(ValueId, OutputKind)> {
        found.outputs.iter().map(|c| (c.output, c.kind)).collect()
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
        assert_eq!(kinds(&found), expected, "what logits do not depend on stays too");
        assert_eq!(found.left_out, [(hidden, "logits that are computed from it are compared".to_string())]);
    }

    #[test]
    fn scores_of_a_vocabulary_are_made_from_a_state_by_constants() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let state = g.on("Relu", &[x]);
        let (w, bias) = (g.weight("w", &[4, 3]), g.weight("bias", &[3]));
        let product = g.op(Operator::new("MatMul"), &[state, w], &[B, S, n(3)]);
        let scores = g.on("Add", &[product, bias]);
        let head = Head::find(&g.graph, scores).unwrap();
        assert_eq!((head.state, head.nodes.len()), (state, 2));
        let other = g.input("other", &[B, S, n(4)]);
        let mut again = g.graph.clone();
        let made = head.again(&mut again, other);
        let made = again.operator(again.producer(made).unwrap().0);
        assert!(made.is("Add") && made.input(0) != Some(product) && made.input(1) == Some(bias));
        let two = g.on("Add", &[product, scores]);
        assert_eq!(Head::find(&g.graph, two), None, "it is made from two values");
        assert_eq!(Head::find(&g.graph, state), None, "no product makes it");
    }

    #[test]
    fn a_softmax_and_a_sigmoid_are_looked_through() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let tokens = g.on("Relu", &[x]);
        let pooled = g.op(Operator::new("ReduceMean"), &[tokens], &[B, n(4)]);
        let over = |axis: i64| Operator::new("Softmax").with(attribute::int("axis", axis));
        let classes = g.op(over(1), &[pooled], &[B, n(4)]);
        let classes = named(&mut g, "classes", classes);
        let labels = g.on("Sigmoid", &[pooled]);
        let labels = named(&mut g, "labels", labels);
        let words = g.op(over(-1), &[tokens], &[B, S, n(4)]);
        let words = named(&mut g, "words", words);
        let other = g.op(over(1), &[tokens], &[B, S, n(4)]);
        let other = named(&mut g, "other", other);
        let found = Objective::guess(&g.model(), &g.seen(), None);
        let seen: Vec<_> = found.outputs.iter().map(|c| (c.output, c.value, c.kind, c.form)).collect();
        assert_eq!(
            seen,
            [
                (classes, pooled, OutputKind::Logits, Form::Softmax),
                (labels, pooled, OutputKind::MultiLabel, Form::Sigmoid),
                (words, tokens, OutputKind::TokenLogits, Form::Softmax),
                (other, other, OutputKind::Hidden, Form::Scores),
            ],
            "a softmax over another axis is no distribution over classes"
        );
    }

    #[test]
    fn what_is_said_overrules_what_was_guessed() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, n(4)]);
        let made = g.on("Sigmoid", &[x]);
        let output = named(&mut g, "output", made);
        let mut found = Objective::guess(&g.model(), &g.seen(), None);
        found.overrule(&g.model(), &[("output".into(), OutputKind::Logits)]).unwrap();
        assert_eq!((found.outputs[0].value, found.outputs[0].kind), (x, OutputKind::Logits));
        found.overrule(&g.model(), &[("output".into(), OutputKind::Hidden)]).unwrap();
        assert_eq!((found.outputs[0].value, found.outputs[0].kind), (output, OutputKind::Hidden));
        found.overrule(&g.model(), &[("output".into(), OutputKind::Ignored)]).unwrap();
        assert!(found.outputs.is_empty() && found.left_out.len() == 1);
        assert_eq!(found.overrule(&g.model(), &[("other".into(), OutputKind::Hidden)]), Err("other".to_string()));
    }

    #[test]
    fn scores_are_found_again_from_probabilities() {
        let close = |a: Vec<f64>, b: [f64; 2]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(Form::Softmax.scores(&[0.25, 0.75]), [0.25f64.ln(), 0.75f64.ln()]));
        assert!(close(Form::Sigmoid.scores(&[0.5, 0.75]), [0.0, 3f64.ln()]));
        assert!(Form::Sigmoid.scores(&[0.0, 1.0]).iter().all(|z| z.is_finite()));
    }
}
