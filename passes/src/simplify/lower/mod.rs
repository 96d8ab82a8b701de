//! The model as it is measured: the same function, in f32 and by primitive operators.
//!
//! Scene operators (an attention in one node, a normalisation that adds) are taken apart, so that
//! provenance and differentiation need no rules for them. The model that is written keeps them: whatever
//! is found in the lowered graph is brought back to where the written one reads it. Every rule is tested against ONNX
//! Runtime's own kernel (tests/lowering.rs).

mod activation;
mod attention;
mod grouped;
mod norm;
mod precision;
mod product;

pub use precision::changes_precision;

use std::collections::HashMap;

use crate::calculus::emit::Emit;
use crate::discover::{Discovery, Projection, Residual, Site, Sublayer};
use crate::ir::{ElementType, Graph, Model, NodeId, Operator, Slot, ValueId};
use crate::observe::{Dim, Observation};
use crate::rules::{Decline, Table, find};

/// The version of the standard operators that gradients can be written in; what changed up to it since
/// version 13 means the same for inference.
const OPSET: i64 = 17;

/// The version of the format that came with it.
const FORMAT: i64 = 8;

/// A lowered model, and where its parts come from.
pub struct Lowered {
    /// The model in f32, of primitive operators. Values of the original keep their ids and names.
    pub model: Model,
    /// For inputs of operators that lowering made: the fused operator that reads the same, and where.
    origins: Origins,
    /// The fused operators that stay as they are, and why.
    pub declined: Vec<(String, String)>,
}

/// Whether a model has fused operators to take apart.
pub fn has_fused(model: &Model) -> bool {
    let graph = &model.graph;
    graph.sorted().into_iter().any(|node| rule_for(graph.operator(node)).is_some())
}

/// The model in f32, with operators of one version that gradients can be written in.
pub fn in_single_precision(model: &Model) -> Model {
    let mut single = model.clone();
    single.repeated.clear();
    single.raise_opset(OPSET, FORMAT);
    precision::to_single(&mut single);
    single.graph.checked("making single precision");
    single
}

/// Takes fused operators apart in a model in f32; `seen` are its shapes. Those for which there is no way
/// stay as they are.
pub fn lower(single: Model, seen: &Observation) -> Lowered {
    let mut lowered = single;
    let opset = lowered.opset("").unwrap_or(OPSET);
    let (mut origins, mut declined) = (HashMap::new(), Vec::new());
    let graph = &mut lowered.graph;
    for node in graph.sorted() {
        let Some(rule) = rule_for(graph.operator(node)) else { continue };
        let outputs: Vec<_> = graph.operator(node).outputs().to_vec();
        let mut scene = Scene::new(graph, opset, seen, node, &mut origins);
        let made = match rule(&mut scene) {
            Ok(made) => made,
            // What was made of it so far reads nothing that is used, and is swept away.
            Err(Decline(why)) => {
                declined.push((graph.label(node), why));
                continue;
            }
        };
        let made: Vec<_> = made.into_iter().zip(outputs).filter_map(|(new, old)| Some((new?, old?))).collect();
        scene.note_origins();
        for (new, old) in made {
            graph.take_over(old, new);
        }
    }
    graph.remove_dead();
    graph.checked("lowering");
    Lowered { model: lowered, origins, declined }
}

/// What takes the place of every output of an operator; `None` where nothing needs to.
type Made = Result<Vec<Option<ValueId>>, Decline>;

/// Takes an operator apart.
type Rule = fn(&mut Scene) -> Made;

/// Rules for operators of com.microsoft, of the standard, and of any domain.
const MICROSOFT: &[Table<Rule>] = &[attention::RULES, grouped::RULES, activation::RULES, norm::RULES, product::RULES];
const STANDARD: &[Table<Rule>] = &[attention::STANDARD, grouped::STANDARD];
const ANY: &[Table<Rule>] = &[norm::ANY];

/// The operators that have a rule, each with whether it is a standard one.
#[cfg(test)]
pub(crate) fn operators() -> Vec<(&'static str, bool)> {
    let of = |tables, is_standard| crate::rules::names(tables).into_iter().map(move |name| (name, is_standard));
    of(STANDARD, true).chain(of(MICROSOFT, false)).chain(of(ANY, false)).collect()
}

fn rule_for(operator: &Operator) -> Option<Rule> {
    let tables = match operator.domain.as_str() {
        "com.microsoft" => MICROSOFT,
        _ if operator.is_standard() => STANDARD,
        _ => &[],
    };
    find(tables, &operator.op_type).or_else(|| find(ANY, &operator.op_type))
}

/// A fused operator while it is taken apart.
struct Scene<'g, 'o> {
    emit: Emit<'g>,
    seen: &'o Observation,
    node: NodeId,
    operator: Operator,
    origins: &'o mut Origins,
    /// For every input: the value to read, and who read it before.
    inputs: Vec<Option<Read>>,
}

type Read = (ValueId, Vec<(NodeId, Slot)>);
type Origins = HashMap<(NodeId, usize), (NodeId, usize)>;

impl<'g, 'o> Scene<'g, 'o> {
    fn new(graph: &'g mut Graph, opset: i64, seen: &'o Observation, node: NodeId, origins: &'o mut Origins) -> Self {
        let operator = graph.operator(node).clone();
        let mut inputs: Vec<Option<Read>> = Vec::new();
        for (slot, &input) in operator.inputs().iter().enumerate() {
            let is_again = |v: &ValueId| operator.inputs()[..slot].contains(&Some(*v));
            inputs.push(input.map(|value| {
                if !is_again(&value) {
                    return (value, graph.consumers(value));
                }
                // A value that the operator reads twice gets a name for each time.
                let copy = graph.add(Operator::new("Identity"), &[value], "lowered_copy");
                if let Some((copier, _)) = graph.producer(copy) {
                    origins.insert((copier, 0), (node, slot));
                }
                (copy, Vec::new())
            }));
        }
        Self { emit: Emit::new(graph, opset, "lowered"), seen, node, operator, origins, inputs }
    }

    fn has(&self, slot: usize) -> bool {
        self.operator.input(slot).is_some()
    }

    fn input(&self, slot: usize) -> Result<ValueId, Decline> {
        let given = self.inputs.get(slot).and_then(|i| i.as_ref());
        given.map(|(value, _)| *value).ok_or_else(|| format!("it has no input {slot}").into())
    }

    /// Refuses inputs or outputs that there is no way to express.
    fn refuse(&self, inputs: &[usize], outputs: &[usize]) -> Result<(), Decline> {
        let reads = |&s: &usize| self.operator.input(s).is_some();
        let writes = |&s: &usize| {
            let used = |v: ValueId| !self.emit.graph.consumers(v).is_empty();
            self.operator.output(s).is_some_and(used)
        };
        match inputs.iter().any(reads) || outputs.iter().any(writes) {
            true => Err("it uses an input or output without a rule".into()),
            false => Ok(()),
        }
    }

    /// The dimensions of what the operator reads at `slot`.
    fn dims(&self, slot: usize) -> Result<Vec<Dim>, Decline> {
        let value = self.operator.input(slot).ok_or_else(|| format!("it has no input {slot}"))?;
        self.seen.dims(value).ok_or_else(|| format!("the shape of its input {slot} is not known").into())
    }

    /// The length of an axis that never changes.
    fn fixed(&self, slot: usize, axis: usize) -> Result<usize, Decline> {
        let dim = self.dims(slot)?.get(axis).copied();
        dim.and_then(Dim::fixed).ok_or_else(|| format!("the length of axis {axis} of its input {slot} changes").into())
    }

    fn number(&mut self, value: f64) -> ValueId {
        self.emit.number(ElementType::F32, value)
    }

    fn scale(&mut self, value: ValueId, factor: f64) -> ValueId {
        if factor == 1.0 {
            return value;
        }
        let factor = self.number(factor);
        self.emit.op("Mul", &[value, factor])
    }

    /// Notes for everything that now reads the fused operator's inputs where the written model does.
    fn note_origins(&mut self) {
        for (slot, input) in self.inputs.iter().enumerate() {
            let Some((value, before)) = input else { continue };
            for reader in self.emit.graph.consumers(*value) {
                if let (false, (node, Slot::Input(at))) = (before.contains(&reader), reader) {
                    self.origins.entry((node, at)).or_insert((self.node, slot));
                }
            }
        }
    }
}

impl Lowered {
    /// A model without fused operators.
    pub fn unchanged(model: Model) -> Self {
        Self { model, origins: HashMap::new(), declined: Vec::new() }
    }

    /// What was found in the lowered graph, at the places where `written`, the original, has it.
    pub fn bring_back(&self, found: &Discovery, written: &Graph) -> Discovery {
        debug_assert!(self.model.graph.shares_ids_with(written), "values keep their ids through lowering");
        let place = |node: NodeId, slot: usize| match self.origins.get(&(node, slot)) {
            Some(&origin) => Some(origin),
            None => written.contains(node).then_some((node, slot)),
        };
        let mut back = Discovery {
            provenance: found.provenance.moved(written, place),
            sublayers: Vec::new(),
            declined: found.declined.clone(),
        };
        for sublayer in &found.sublayers {
            let site = |site: &Site| Site {
                projection: self.projection(&site.projection),
                residual: self.residual(&site.residual, written),
            };
            back.sublayers.push(Sublayer {
                projection: self.projection(&sublayer.projection),
                residual: self.residual(&sublayer.residual, written),
                also: sublayer.also.iter().map(site).collect(),
                ..sublayer.clone()
            });
        }
        back
    }

    fn projection(&self, projection: &Projection) -> Projection {
        let at = |slot| self.origins.get(&(projection.node, slot)).copied();
        let (node, features_slot) = at(projection.features_slot).unwrap_or((projection.node, projection.features_slot));
        let weight_slot = at(projection.weight_slot).map_or(projection.weight_slot, |(_, slot)| slot);
        Projection { node, features_slot, weight_slot, ..projection.clone() }
    }

    fn residual(&self, residual: &Residual, written: &Graph) -> Residual {
        let joint = residual.joint.map(|(node, slot)| self.origins.get(&(node, slot)).copied().unwrap_or((node, slot)));
        let mut path: Vec<NodeId> = Vec::new();
        for &node in &residual.path {
            let origin = (0..2).find_map(|slot| self.origins.get(&(node, slot))).map_or(node, |o| o.0);
            if written.contains(origin) && path.last() != Some(&origin) {
                path.push(origin);
            }
        }
        Residual { path, joint, output: residual.output }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::attribute;
    use crate::testing::{B, S, Sketch, n};

    fn microsoft(op_type: &str) -> Operator {
        Operator::new(op_type).of("com.microsoft")
    }

    #[test]
    fn a_fused_operator_is_taken_apart_and_another_stays_with_a_reason() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let bias = g.weight("bias", &[4]);
        let y = g.op(microsoft("BiasGelu"), &[x, bias], &[B, S, n(4)]);
        let skip = microsoft("FusedMatMul").with(attribute::int("transBatchA", 1));
        let w = g.weight("w", &[4, 4]);
        let z = g.op(skip, &[y, w], &[B, S, n(4)]);
        g.graph.add_output(z);
        assert!(has_fused(&g.model()));
        let lowered = lower(g.model(), &g.seen());
        let graph = &lowered.model.graph;
        let left: Vec<&str> = graph.sorted().iter().map(|&n| graph.operator(n).op_type.as_str()).collect();
        assert!(left.contains(&"Erf") && !left.contains(&"BiasGelu") && left.contains(&"FusedMatMul"), "{left:?}");
        assert_eq!(lowered.declined.len(), 1);
        assert!(lowered.declined[0].1.contains("batch axes"), "{:?}", lowered.declined);
        assert_eq!(graph.name(y), g.graph.name(y), "values keep their ids and names");
    }

    #[test]
    fn plain_operators_are_left_alone() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let y = g.on("Relu", &[x]);
        g.graph.add_output(y);
        assert!(!has_fused(&g.model()));
        assert_eq!(lower(g.model(), &g.seen()).model.graph.sorted(), g.graph.sorted());
    }
}
