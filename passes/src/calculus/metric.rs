//! What the outputs feel: a random probe of the loss's curvature.
//!
//! To second order, an error e of the outputs raises the loss against the model itself by e^T H e / 2. A probe is a vector
//! v = H^(1/2) s of random signs s, so that v v^T is H on average:
//!
//! - logits, over classes or positions: H = diag(p) - p p^T, v = sqrt(p) s - p (sqrt(p) . s) with p = softmax(z / tau); for
//!   two classes exactly sqrt(p_0 p_1) (s, -s);
//! - next-token logits: the same H, v = e_y - p with a token y drawn with the probabilities p, which needs fewer numbers than
//!   signs for a whole vocabulary;
//! - multi-label logits: v = sqrt(p (1 - p)) s with p = sigmoid(z / tau);
//! - numbers: v = sqrt(2) s; hidden states and embeddings: sqrt(2) s / ||z||.
//!
//! Every element counts as in the [loss](super::loss).

use crate::calculus::TokenMask;
use crate::calculus::differentiate::Seed;
use crate::calculus::emit::Emit;
use crate::calculus::loss::{counts, over_tokens, size, without_padding};
use crate::calculus::objective::{Compared, Objective, OutputKind};
use crate::ir::{ElementType, Operator, ValueId, attribute};
use crate::observe::Observation;
use crate::signature;

/// Name of the input that takes a number that signs are drawn with, an integer from 0 to [`DRAWS`]: another for every run.
pub const DRAW: &str = "kprune_draw";

/// Signs are drawn with numbers modulo this, a prime whose square an integer of 64 bits holds.
pub const DRAWS: i64 = (1 << 31) - 1;

/// Appends a probe of every output that the loss compares: seeds of a gradient. Those of several samples are independent.
///
/// Distributions are softened by `tau`, as in [`Criterion::Teacher`](super::loss::Criterion::Teacher). A new input is
/// [`DRAW`].
pub fn append(
    emit: &mut Emit,
    seen: &Observation,
    objective: &Objective,
    tau: f64,
    token_mask: Option<TokenMask>,
) -> Vec<Seed> {
    let draw = emit.graph.add_input(signature::declare(DRAW, ElementType::I64, 0));
    let one_sample = emit.number(ElementType::F32, 1.0);
    let spans = objective.spans();
    let mut seeds = Vec::new();
    for (i, compared) in objective.outputs.iter().enumerate() {
        let &Compared { value, kind, .. } = compared;
        let dims = seen.dims(value).unwrap_or_default();
        let element = seen.element(value).unwrap_or(ElementType::F32);
        let mut drawn = Drawn { emit, element, tau, draw, place: i as i64 };
        let has_two_classes = dims.last().and_then(|d| d.fixed()) == Some(2);
        let probe = match kind {
            OutputKind::SpanLogits => {
                let mask = token_mask.filter(|m| over_tokens(seen, value, m.input));
                let logits = without_padding(drawn.emit, value, mask, drawn.element);
                drawn.of_distribution(logits)
            }
            OutputKind::Logits | OutputKind::TokenLogits | OutputKind::NextToken if has_two_classes => {
                drawn.of_two_classes(value)
            }
            OutputKind::NextToken => drawn.of_vocabulary(value),
            OutputKind::Logits | OutputKind::TokenLogits => drawn.of_distribution(value),
            OutputKind::MultiLabel => drawn.of_labels(value),
            OutputKind::Regression | OutputKind::Ignored => drawn.of_numbers(value),
            OutputKind::Hidden => {
                let size = size(drawn.emit, value, drawn.element, dims.len());
                let length = drawn.emit.op("Sqrt", &[size]);
                let numbers = drawn.of_numbers(value);
                drawn.emit.op("Div", &[numbers, length])
            }
        };
        let weight = counts(emit, seen, compared, spans, one_sample, token_mask);
        let weight = emit.op("Sqrt", &[weight]);
        seeds.push((value, emit.op("Mul", &[probe, weight])));
    }
    seeds
}

/// The probe of one output, drawn.
struct Drawn<'a, 'g> {
    emit: &'a mut Emit<'g>,
    element: ElementType,
    tau: f64,
    draw: ValueId,
    /// Its place among the outputs.
    place: i64,
}

impl Drawn<'_, '_> {
    /// A sign for every element of a value.
    ///
    /// RandomNormalLike is not there in every version of ONNX Runtime and operator set. The places of the elements are mixed
    /// instead: multiplied and squared in turns, modulo a prime.
    fn signs(&mut self, like: ValueId) -> ValueId {
        let mixed = self.mixed(like);
        let middle = self.emit.integer(DRAWS / 2);
        let is_low = self.emit.op("Less", &[mixed, middle]);
        let [plus, minus] = [1.0, -1.0].map(|sign| self.emit.number(self.element, sign));
        let signs = self.emit.op("Where", &[is_low, plus, minus]);
        self.emit.reshape_like(signs, like)
    }

    /// For every element of a value, in one row, an integer below [`DRAWS`].
    fn mixed(&mut self, like: ValueId) -> ValueId {
        let (zero, one) = (self.emit.integer(0), self.emit.integer(1));
        let count = self.emit.op("Size", &[like]);
        let mut mixed = self.emit.op("Range", &[zero, count, one]);
        let prime = self.emit.integer(DRAWS);
        let salt = self.emit.integer(104_729 * (self.place + 1));
        for added in [self.draw, salt, self.draw] {
            let factor = self.emit.integer(48_271);
            let sum = self.emit.op("Add", &[mixed, added]);
            let product = self.emit.op("Mul", &[sum, factor]);
            let rest = self.emit.op("Mod", &[product, prime]);
            let square = self.emit.op("Mul", &[rest, rest]);
            mixed = self.emit.op("Mod", &[square, prime]);
        }
        mixed
    }

    /// e_y - p, a token y drawn for every position where the sum of probabilities passes a random point.
    fn of_vocabulary(&mut self, logits: ValueId) -> ValueId {
        let p = self.softmax(logits);
        let last = self.emit.integer(-1);
        let sums = self.emit.op("CumSum", &[p, last]);
        let whole = self.emit.reduce_sum(p, &[-1], true);
        let mixed = self.mixed(whole);
        let mixed = self.emit.cast(mixed, self.element);
        let draws = self.emit.number(self.element, DRAWS as f64);
        let share = self.emit.op("Div", &[mixed, draws]);
        let share = self.emit.reshape_like(share, whole);
        let point = self.emit.op("Mul", &[share, whole]);
        let is_before = self.emit.op("Less", &[sums, point]);
        let is_before = self.emit.cast(is_before, self.element);
        let count = self.emit.reduce_sum(is_before, &[-1], true);
        let count = self.emit.cast(count, ElementType::I64);
        // Rounding may leave the point beyond the last sum.
        let (classes, one) = (self.emit.length(logits, 2), self.emit.integer(1));
        let most = self.emit.op("Sub", &[classes, one]);
        let token = self.emit.op("Min", &[count, most]);
        let against = self.emit.op("Neg", &[p]);
        let along = |op: &str| Operator::new(op).with(attribute::int("axis", 2));
        let own = self.emit.with(along("GatherElements"), &[against, token]);
        let one = self.emit.number(self.element, 1.0);
        let own = self.emit.op("Add", &[own, one]);
        self.emit.with(along("ScatterElements"), &[against, token, own])
    }

    fn cooled(&mut self, logits: ValueId) -> ValueId {
        let tau = self.emit.number(self.element, self.tau);
        self.emit.op("Div", &[logits, tau])
    }

    fn softmax(&mut self, logits: ValueId) -> ValueId {
        let cooled = self.cooled(logits);
        self.emit.with(Operator::new("Softmax").with(attribute::int("axis", -1)), &[cooled])
    }

    fn of_distribution(&mut self, logits: ValueId) -> ValueId {
        let (p, signs) = (self.softmax(logits), self.signs(logits));
        let root = self.emit.op("Sqrt", &[p]);
        let each = self.emit.op("Mul", &[root, signs]);
        let sum = self.emit.reduce_sum(each, &[-1], true);
        let mean = self.emit.op("Mul", &[p, sum]);
        self.emit.op("Sub", &[each, mean])
    }

    fn of_two_classes(&mut self, logits: ValueId) -> ValueId {
        let cooled = self.cooled(logits);
        let log = self.emit.with(Operator::new("LogSoftmax").with(attribute::int("axis", -1)), &[cooled]);
        let sum = self.emit.reduce_sum(log, &[-1], true);
        let half = self.emit.number(self.element, 0.5);
        let half = self.emit.op("Mul", &[sum, half]);
        let root = self.emit.op("Exp", &[half]);
        let signs = self.signs(root);
        let one = self.emit.op("Mul", &[root, signs]);
        let other = self.emit.op("Neg", &[one]);
        self.emit.with(Operator::new("Concat").with(attribute::int("axis", -1)), &[one, other])
    }

    fn of_labels(&mut self, logits: ValueId) -> ValueId {
        let cooled = self.cooled(logits);
        let negated = self.emit.op("Neg", &[cooled]);
        let [p, q] = [cooled, negated].map(|z| self.emit.op("Sigmoid", &[z]));
        let product = self.emit.op("Mul", &[p, q]);
        let root = self.emit.op("Sqrt", &[product]);
        let signs = self.signs(logits);
        self.emit.op("Mul", &[root, signs])
    }

    fn of_numbers(&mut self, value: ValueId) -> ValueId {
        let (signs, root) = (self.signs(value), self.emit.number(self.element, 2f64.sqrt()));
        self.emit.op("Mul", &[signs, root])
    }
}
