//! The model as it is measured: the same function, in f32 and by primitive operators.
//!
//! Fused operators (an attention in one node, a normalisation that adds) are taken apart, so that
//! provenance and differentiation need no rules for them. The model that is written keeps them: whatever
//! is found in the lowered graph is brought back to where the written one reads it.

mod activation;
mod attention;
mod norm;
mod precision;
mod product;

pub use precision::changes_precision;

use std::collections::HashMap;

use crate::calculus::emit::Emit;
use crate::discover::{Discovery, Projection, Residual, Site, Sublayer};
use crate::ir::{ElementType, Graph, Model, NodeId, Operator, Slot, ValueId};
use crate::observe::{Dim, Observation};

/// The version of the standard operators that gradients can be written in; what changed up to it since
/// version 13 means the same for inference.
const OPSET: i64 = 17;

/// A lowered model, and where its parts come from.
pub struct Lowered {
    /// The model in f32, of primitive operators. Values of the original keep their ids and names.
    pub model: Model,
    /// For inputs of operators that lowering made: the fused operator that reads the same, and where.
    origins: Origins,
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
    single.raise_opset(OPSET);
    precision::to_single(&mut single);
    single
}

/// Takes fused operators apart in a model in f32; `seen` are its shapes. Those for which there is no way
/// stay as they are.
pub fn lower(single: Model, seen: &Observation) -> Lowered {
    let mut lowered = single;
    let opset = lowered.opset("").unwrap_or(OPSET);
    let mut origins = HashMap::new();
    let graph = &mut lowered.graph;
    for node in graph.sorted() {
        let Some(rule) = rule_for(graph.operator(node)) else { continue };
        let outputs: Vec<_> = graph.operator(node).outputs().to_vec();
        let mut fused = Fused::new(graph, opset, seen, node, &mut origins);
        // An operator that is left half taken apart reads nothing that is used, and is swept away.
        let Ok(made) = rule(&mut fused) else { continue };
        let made: Vec<_> = made.into_iter().zip(outputs).filter_map(|(new, old)| Some((new?, old?))).collect();
        fused.note_origins();
        for (new, old) in made {
            graph.take_over(old, new);
        }
    }
    graph.remove_dead();
    Lowered { model: lowered, origins }
}

type Rule = fn(&mut Fused) -> Result<Vec<Option<ValueId>>, String>;

fn rule_for(operator: &Operator) -> Option<Rule> {
    let standard = operator.is_standard();
    let microsoft = operator.domain == "com.microsoft";
    Some(match operator.op_type.as_str() {
        "Attention" if microsoft => attention::merged,
        "MultiHeadAttention" if microsoft => attention::multi_head,
        "Attention" if standard => attention::standard,
        "SkipLayerNormalization" if microsoft => norm::skip_layer_norm,
        "SkipSimplifiedLayerNormalization" if microsoft => norm::skip_rms_norm,
        "SimplifiedLayerNormalization" => norm::rms_norm,
        "BiasGelu" if microsoft => activation::bias_gelu,
        "FastGelu" if microsoft => activation::fast_gelu,
        "Gelu" if microsoft => activation::gelu,
        "QuickGelu" if microsoft => activation::quick_gelu,
        "FusedMatMul" if microsoft => product::fused_matmul,
        _ => return None,
    })
}

/// A fused operator while it is taken apart.
struct Fused<'g, 'o> {
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

impl<'g, 'o> Fused<'g, 'o> {
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

    fn input(&self, slot: usize) -> Result<ValueId, String> {
        let given = self.inputs.get(slot).and_then(|i| i.as_ref());
        given.map(|(value, _)| *value).ok_or_else(|| format!("it has no input {slot}"))
    }

    /// Refuses inputs or outputs that there is no way to express.
    fn refuse(&self, inputs: &[usize], outputs: &[usize]) -> Result<(), String> {
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
    fn dims(&self, slot: usize) -> Result<Vec<Dim>, String> {
        let value = self.operator.input(slot).ok_or_else(|| format!("it has no input {slot}"))?;
        self.seen.dims(value).ok_or_else(|| format!("the shape of its input {slot} is not known"))
    }

    /// The length of an axis that never changes.
    fn fixed(&self, slot: usize, axis: usize) -> Result<usize, String> {
        let dim = self.dims(slot)?.get(axis).copied();
        dim.and_then(Dim::fixed).ok_or_else(|| format!("the length of axis {axis} of its input {slot} changes"))
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
        Self { model, origins: HashMap::new() }
    }

    /// What was found in the lowered graph, at the places where `written`, the original, has it.
    pub fn bring_back(&self, found: &Discovery, written: &Graph) -> Discovery {
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
