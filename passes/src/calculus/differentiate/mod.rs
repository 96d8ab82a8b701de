//! Reverse-mode differentiation as a pass.
//!
//! Given the gradient of a loss with respect to some values, appends the operators that compute it with
//! respect to others upstream. Only what lies between the two is gone through; gradients of weights are formed where
//! they are asked for. Every rule is tested against finite differences in ONNX Runtime (tests/gradients.rs).

mod activation;
mod arithmetic;
mod moves;
mod norm;
mod product;

use std::collections::{HashMap, HashSet};

use thiserror::Error;

use crate::calculus::emit::Emit;
use crate::calculus::shapes;
use crate::ir::{ElementType, Graph, NodeId, Operator, ValueId};
use crate::observe::{Dim, Observation};
use crate::rules::{Decline, Table, find};

/// An operator on the way that cannot be differentiated.
#[derive(Debug, Error)]
#[error("{node} cannot be differentiated: {why}")]
pub struct DifferentiateError {
    /// The operator.
    pub node: String,
    /// Where it is in the graph.
    pub at: NodeId,
    /// What stands in the way.
    pub why: String,
}

/// A value and the gradient of the loss with respect to it.
pub type Seed = (ValueId, ValueId);

/// Appends to `graph` the gradients with respect to `wanted`, from those of `seeds`; `None` for a value
/// that the seeds do not depend on.
///
/// `opset` is the version of the standard operator set that new operators are of.
///
/// # Errors
/// Where an operator between the two has no rule.
pub fn differentiate(
    graph: &mut Graph,
    seen: &Observation,
    opset: i64,
    seeds: &[Seed],
    wanted: &[ValueId],
) -> Result<Vec<Option<ValueId>>, DifferentiateError> {
    let upstream = graph.ancestors(seeds.iter().map(|s| s.0));
    let downstream = graph.descendants(wanted.iter().copied());
    let nodes: Vec<NodeId> =
        graph.sorted().into_iter().filter(|n| upstream.contains(n) && downstream.contains(n)).collect();
    let on_path = on_path(graph, seen, &nodes, wanted);
    let mut gradients: HashMap<ValueId, ValueId> = HashMap::new();
    let mut emit = Emit::new(graph, opset, "gradient");
    for &(value, gradient) in seeds {
        accumulate(&mut emit, seen, &mut gradients, value, gradient);
    }
    for node in nodes.into_iter().rev() {
        let operator = emit.graph.operator(node).clone();
        let outputs: Vec<_> = operator.outputs().iter().map(|o| o.and_then(|v| gradients.get(&v).copied())).collect();
        if outputs.iter().all(Option::is_none) {
            continue;
        }
        let mut scene = Scene { emit: &mut emit, seen, node, operator: &operator, outputs, on_path: &on_path };
        let inputs = backward(&mut scene).map_err(|why| DifferentiateError {
            node: scene.emit.graph.label(node),
            at: node,
            why: why.0,
        })?;
        for (slot, gradient) in inputs {
            if let Some(value) = operator.input(slot) {
                accumulate(&mut emit, seen, &mut gradients, value, gradient);
            }
        }
    }
    emit.graph.checked("differentiation");
    Ok(wanted.iter().map(|value| gradients.get(value).copied()).collect())
}

fn accumulate(
    emit: &mut Emit,
    seen: &Observation,
    gradients: &mut HashMap<ValueId, ValueId>,
    value: ValueId,
    gradient: ValueId,
) {
    let sum = match gradients.get(&value) {
        Some(&old) => emit.op("Add", &[old, gradient]),
        None => gradient,
    };
    shapes::declare_like(emit.graph, seen, sum, value);
    gradients.insert(value, sum);
}

/// Floating-point values through which the wanted ones reach the seeds.
fn on_path(graph: &Graph, seen: &Observation, nodes: &[NodeId], wanted: &[ValueId]) -> HashSet<ValueId> {
    let mut on_path: HashSet<ValueId> = wanted.iter().copied().collect();
    for &node in nodes {
        let operator = graph.operator(node);
        let reads = operator.inputs().iter().flatten().any(|v| on_path.contains(v));
        if reads {
            let is_float = |v: &ValueId| seen.element(*v).is_some_and(ElementType::is_float);
            on_path.extend(operator.outputs().iter().flatten().filter(|v| is_float(v)));
        }
    }
    on_path
}

/// Gradients of inputs, by slot.
type Inputs = Vec<(usize, ValueId)>;

/// Gradients of the inputs that are on the path.
type Rule = fn(&mut Scene) -> Result<Inputs, Decline>;

/// All rules, by operator type.
const RULES: &[Table<Rule>] = &[arithmetic::RULES, activation::RULES, product::RULES, norm::RULES, moves::RULES];

/// The operators that have a rule.
#[cfg(test)]
pub(crate) fn operators() -> Vec<&'static str> {
    crate::rules::names(RULES)
}

fn backward(scene: &mut Scene) -> Result<Inputs, Decline> {
    if !scene.operator.is_standard() {
        return Err(format!("there is no rule for operators of {}", scene.operator.domain).into());
    }
    let rule = find(RULES, &scene.operator.op_type).ok_or("there is no rule for this operator")?;
    rule(scene)
}

/// One operator, as its rule sees it.
struct Scene<'a, 'g> {
    emit: &'a mut Emit<'g>,
    seen: &'a Observation,
    node: NodeId,
    operator: &'a Operator,
    outputs: Vec<Option<ValueId>>,
    on_path: &'a HashSet<ValueId>,
}

impl Scene<'_, '_> {
    /// Whether the gradient of this input is needed.
    fn wants(&self, slot: usize) -> bool {
        self.operator.input(slot).is_some_and(|v| self.on_path.contains(&v))
    }

    fn input(&self, slot: usize) -> Result<ValueId, Decline> {
        self.operator.input(slot).ok_or_else(|| format!("it has no input {slot}").into())
    }

    fn output(&self) -> Result<ValueId, Decline> {
        self.operator.output(0).ok_or_else(|| "it has no output".into())
    }

    /// The gradient of the first output.
    fn gradient(&self) -> Result<ValueId, Decline> {
        self.outputs[0].ok_or_else(|| "only its further outputs are used".into())
    }

    fn dims(&self, value: ValueId) -> Result<Vec<Dim>, Decline> {
        self.seen.dims(value).ok_or_else(|| "it reads or makes a value of unknown shape".into())
    }

    fn element(&self) -> Result<ElementType, Decline> {
        let value = self.output()?;
        self.seen.element(value).ok_or_else(|| "it makes a value of unknown type".into())
    }

    fn number(&mut self, value: f64) -> Result<ValueId, Decline> {
        let element = self.element()?;
        Ok(self.emit.number(element, value))
    }

    /// A gradient of the output's shape, summed to the shape of the input at `slot`.
    fn fit(&mut self, gradient: ValueId, slot: usize) -> Result<(usize, ValueId), Decline> {
        let (from, to) = (self.dims(self.output()?)?, self.dims(self.input(slot)?)?);
        Ok((slot, self.emit.unbroadcast(gradient, &from, &to)))
    }
}
