//! The way of a projection's output to the residual stream.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::Projection;
use crate::ir::{Graph, NodeId, Operator, Slot, ValueId};
use crate::observe::Observation;

/// Where a sublayer's output joins the residual stream.
#[derive(Clone, Debug)]
pub struct Residual {
    /// The operators from the projection's output to the addition, which is the last of them; those
    /// before it add or multiply by constants, rearrange, or change nothing.
    pub path: Vec<NodeId>,
    /// The first addition of another activation, and the input slot at which the sublayer's output arrives;
    /// `None` where it is normalised before it joins the stream, or joins none.
    pub joint: Option<(NodeId, usize)>,
    /// The stream after the sublayer, before any normalisation on it; without a joint, the output itself.
    pub output: ValueId,
}

impl Residual {
    /// The operators before the first addition of another activation.
    pub fn before_joint(&self) -> &[NodeId] {
        let is_joint = |&n: &NodeId| self.joint.is_some_and(|(joint, _)| joint == n);
        let end = self.path.iter().position(is_joint).unwrap_or(self.path.len());
        &self.path[..end]
    }
}

/// Operators that move elements of their first input, or leave them as they are.
const LAYOUT: &[&str] =
    &["Cast", "Concat", "Dropout", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"];

/// Follows the projection's output to where it is added to a stream that it came from.
///
/// Layers that run side by side are summed before they join the stream, or one after the other; the last
/// sum that can be reached then counts as the stream.
pub(super) fn follow(
    graph: &Graph,
    seen: &Observation,
    position: &HashMap<NodeId, usize>,
    projection: &Projection,
) -> Result<Residual, String> {
    let start = graph.operator(projection.node).output(0).ok_or_else(outside)?;
    let upstream = graph.ancestors([projection.features]);
    let mut walk =
        Way { graph, seen, position, outputs: projection.outputs, carried: HashSet::new(), ahead: BTreeSet::new() };
    let mut path = Vec::new();
    let mut joint = None;
    let mut reached: Option<Residual> = None;
    let mut step = walk.carry(start);
    loop {
        let next = step.and_then(|()| walk.next());
        let (node, kind) = match next {
            Ok(next) => next,
            Err(why) => return reached.or_else(|| normalised(graph, start, &path, &upstream)).ok_or(why),
        };
        path.push(node);
        let output = graph.operator(node).output(0).ok_or_else(outside)?;
        if let Kind::Sum { slot, other } = kind {
            let joint = *joint.get_or_insert((node, slot));
            let residual = Residual { path: path.clone(), joint: Some(joint), output };
            let from_upstream = graph.producer(other).is_none_or(|(node, _)| upstream.contains(&node));
            if from_upstream {
                return Ok(residual);
            }
            let related = graph.ancestors([other]).iter().any(|n| upstream.contains(n));
            reached = related.then_some(residual).or(reached);
        }
        step = walk.carry(output);
    }
}

/// A sublayer whose output joins the stream only after a normalisation: the output itself, with its bias.
fn normalised(graph: &Graph, start: ValueId, path: &[NodeId], upstream: &HashSet<NodeId>) -> Option<Residual> {
    let downstream = graph.descendants([start]);
    let joins = |&n: &NodeId| {
        let operator = graph.operator(n);
        let [a, b] = [0, 1].map(|slot| operator.input(slot).and_then(|v| graph.producer(v)).map(|p| p.0));
        let (Some(a), Some(b), true) = (a, b, operator.is("Add")) else { return false };
        [(a, b), (b, a)].into_iter().any(|(own, other)| {
            downstream.contains(&own) && upstream.contains(&other) && !passes_product(graph, own, &downstream)
        })
    };
    if !downstream.iter().any(joins) {
        return None;
    }
    let is_affine = |n: &&NodeId| graph.operator(**n).is("Add") || graph.operator(**n).is("Mul");
    let path: Vec<NodeId> = path.iter().take_while(is_affine).copied().collect();
    let output = path.last().map_or(Some(start), |&n| graph.operator(n).output(0))?;
    Some(Residual { path, joint: None, output })
}

/// A projection that joins no stream: what it gives is what is repaired.
pub(super) fn alone(graph: &Graph, projection: &Projection) -> Option<Residual> {
    let output = graph.operator(projection.node).output(0)?;
    Some(Residual { path: Vec::new(), joint: None, output })
}

/// Whether another product lies between the sublayer's output and what `node` makes.
fn passes_product(graph: &Graph, node: NodeId, downstream: &HashSet<NodeId>) -> bool {
    let between = graph.ancestors(graph.operator(node).outputs().iter().flatten().copied());
    let is_product = |n: &NodeId| {
        let operator = graph.operator(*n);
        operator.contracts() || operator.is("Softmax") || !operator.is_standard()
    };
    between.iter().any(|n| downstream.contains(n) && is_product(n))
}

fn outside() -> String {
    "its output is not added to a residual stream".into()
}

/// What an operator does to the sublayer's output.
enum Kind {
    /// It rearranges it, or adds or multiplies by a constant.
    Constant,
    /// It adds another activation to what arrives at `slot`.
    Sum { slot: usize, other: ValueId },
}

/// Goes through all operators that read the output, in the order of execution.
struct Way<'a> {
    graph: &'a Graph,
    seen: &'a Observation,
    position: &'a HashMap<NodeId, usize>,
    outputs: usize,
    /// The values that hold the projection's output and nothing else.
    carried: HashSet<ValueId>,
    ahead: BTreeSet<(usize, NodeId)>,
}

impl Way<'_> {
    /// Notes a value that holds the output, and who reads it.
    fn carry(&mut self, value: ValueId) -> Result<(), String> {
        self.carried.insert(value);
        for (node, slot) in self.graph.consumers(value) {
            let Slot::Input(_) = slot else { return Err(outside()) };
            if !self.graph.operator(node).is("Shape") {
                self.ahead.insert((self.position[&node], node));
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<(NodeId, Kind), String> {
        let (_, node) = self.ahead.pop_first().ok_or_else(outside)?;
        let operator = self.graph.operator(node);
        let inputs: Vec<ValueId> = operator.inputs().iter().flatten().copied().collect();
        if LAYOUT.contains(&operator.op_type.as_str()) && operator.is_standard() {
            let data = if operator.is("Concat") { inputs.len() } else { 1 };
            if !inputs[..data].iter().all(|v| self.carried.contains(v)) || !self.keeps_channels_last(operator) {
                return Err(outside());
            }
            return Ok((node, Kind::Constant));
        }
        let (&[a, b], true) = (inputs.as_slice(), operator.is("Add") || operator.is("Mul")) else {
            return Err(outside());
        };
        let slot = if self.carried.contains(&a) { 0 } else { 1 };
        let other = [b, a][slot];
        if let Some(constant) = self.graph.constant(other) {
            let each = constant.count() == 1 || constant.dims() == [self.outputs];
            return match each && constant.element().is_float() {
                true => Ok((node, Kind::Constant)),
                false => Err("what it adds or multiplies to its output is no vector".into()),
            };
        }
        if !operator.is("Add") || self.carried.contains(&other) || !self.ahead.is_empty() {
            return Err(outside());
        }
        let dims = |value: Option<ValueId>| value.and_then(|v| self.seen.dims(v));
        if dims(Some(other)) != dims(operator.output(0)) {
            return Err("the stream that it is added to has another shape, which the sum stretches".into());
        }
        Ok((node, Kind::Sum { slot, other }))
    }

    /// Whether the last axis of an operator's output runs over the projection's outputs, as that of its
    /// input does.
    fn keeps_channels_last(&self, operator: &Operator) -> bool {
        let dims = operator.output(0).and_then(|v| self.seen.dims(v)).unwrap_or_default();
        let last = dims.len() as i64 - 1;
        let is_whole = dims.last().is_some_and(|d| d.fixed() == Some(self.outputs));
        is_whole && operator.ints("perm").is_none_or(|perm| perm.last() == Some(&last))
    }
}
