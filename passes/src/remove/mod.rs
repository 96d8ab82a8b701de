//! Physical removal: smaller weights, rewritten shapes, nothing left behind.

mod attention;
pub mod masked;
pub(crate) mod rewrite;

use std::collections::{BTreeMap, HashMap, HashSet};

use ndarray::{Array1, Axis, Ix1};
use thiserror::Error;

use crate::discover::provenance::{Channel, Plane, Provenance};
use crate::discover::{Discovery, Sublayer};
use crate::ir::schema::tensor_shape_proto::dimension;
use crate::ir::schema::type_proto;
use crate::ir::{ElementType, Graph, Model, NodeId, Operator, Tensor, TensorError, ValueId, attribute};
use crate::kv_cache::{self, Joined};
use crate::observe::Observation;
use crate::plan::{Decision, Plan, along_path, bias_at, write_projections};

/// Why units cannot be cut out of a graph.
#[derive(Debug, Error)]
pub enum RemoveError {
    /// What would be left of a value is no array.
    #[error("what is left of {0} would have ragged edges")]
    Ragged(String),
    /// An operator cannot be rewritten for smaller inputs.
    #[error("{node} cannot be rewritten: {why}")]
    Rewrite {
        /// The operator.
        node: String,
        /// What stands in the way.
        why: String,
    },
    /// A constant that cannot be cut.
    #[error("constant {name:?} {source}")]
    Constant {
        /// The constant.
        name: String,
        /// What is wrong.
        source: TensorError,
    },
}

/// Cuts what `plan` removes out of `model` and writes the tuned projections.
///
/// # Errors
/// Where something cannot be cut.
pub fn remove(model: &Model, discovery: &Discovery, seen: &Observation, plan: &Plan) -> Result<Model, RemoveError> {
    let mut pruned = model.clone();
    let graph = &mut pruned.graph;
    let constant = |source| RemoveError::Constant { name: "of a projection".into(), source };
    write_projections(graph, discovery, plan).map_err(constant)?;
    let (mut removed, mut bypassed) = (HashSet::new(), Vec::new());
    for (sublayer, decision) in plan.each(discovery) {
        if decision.kept() == 0 && sublayer.can_go_whole() {
            bypassed.extend(bypass(graph, sublayer, decision).map_err(constant)?);
        } else {
            let gone = sublayer.units.iter().zip(&decision.keep).filter(|(_, keep)| !**keep);
            removed.extend(gone.map(|(unit, _)| unit.class));
        }
    }
    // A constant that is an input too could be given from outside at its old size.
    pruned.unlist_constants();
    let graph = &mut pruned.graph;
    graph.remove_dead();
    let mut cut = Cut { provenance: &discovery.provenance, seen, removed, tainted: HashSet::new() };
    cut.tainted = cut.lengths_of_cut_values(graph);
    // Operators that the bypass added have sizes of the stream, which stays whole.
    for node in graph.sorted().into_iter().filter(|&n| model.graph.contains(n)) {
        rewrite::rewrite(graph, node, &cut)?;
    }
    cut.slice_uses(graph)?;
    cut.slice_bypassed(graph, &bypassed)?;
    cut.declare_shapes(graph)?;
    cut.declare_caches(graph);
    graph.remove_dead();
    graph.checked("removal");
    Ok(pruned)
}

/// A constant that was put in the place of what a projection gave: who reads it, and the projection's output.
type Bypassed = (NodeId, usize, ValueId);

/// Takes a sublayer that lost all its units out of the graph: what stays is its bias.
fn bypass(graph: &mut Graph, sublayer: &Sublayer, decision: &Decision) -> Result<Vec<Bypassed>, TensorError> {
    let mut bypassed = Vec::new();
    let element = graph.constant(sublayer.projection.weight).map_or(ElementType::F32, Tensor::element);
    for (projection, residual) in sublayer.sites() {
        let Some((node, slot)) = residual.joint else { continue };
        let mut start = Array1::zeros(projection.outputs);
        let gemm = graph.operator(projection.node).is("Gemm");
        match (bias_at(graph, projection, residual), &decision.tuned) {
            // The tuned bias has been added to this one, which lies on the path unless the product adds it.
            (Some((_, _, bias)), _) if gemm => {
                start = start + bias.to_f64()?.into_dimensionality::<Ix1>().unwrap_or_default()
            }
            (None, Some(tuned)) => start += &tuned.bias,
            _ => {}
        }
        let constant = Tensor::from_floats(element, &along_path(graph, residual, start).into_dyn())?;
        let value = graph.add_constant(&format!("{}_bias", sublayer.name), constant);
        // A fused addition does not broadcast.
        let like = graph.operator(node).input(1 - slot).filter(|_| !graph.operator(node).is_standard());
        let value = like.map_or(value, |like| {
            let shape = graph.add(Operator::new("Shape"), &[like], "bias_shape");
            graph.add(Operator::new("Expand"), &[value, shape], "bias_expanded")
        });
        bypassed.extend(graph.operator(projection.node).output(0).map(|output| (node, slot, output)));
        graph.set_input(node, slot, Some(value));
    }
    Ok(bypassed)
}

/// Which channels go.
struct Cut<'a> {
    provenance: &'a Provenance,
    seen: &'a Observation,
    removed: HashSet<Channel>,
    /// Integers that are computed from the lengths of values that become smaller.
    tainted: HashSet<ValueId>,
}

impl Cut<'_> {
    /// Everything that the shapes of smaller values go into, by way of integers.
    fn lengths_of_cut_values(&self, graph: &Graph) -> HashSet<ValueId> {
        let mut tainted = HashSet::new();
        for node in graph.sorted() {
            let operator = graph.operator(node);
            let from_shape = (operator.is("Shape") || operator.is("Size"))
                && operator.input(0).is_some_and(|v| {
                    let rank = self.seen.shape(v).map_or(0, <[usize]>::len);
                    (0..rank).any(|axis| self.new_len(v, axis).is_some())
                });
            let from_tainted = operator.inputs().iter().flatten().any(|v| tainted.contains(v));
            let is_integer = |v: &&ValueId| matches!(self.seen.element(**v), Some(ElementType::I64 | ElementType::I32));
            if from_shape || from_tainted {
                tainted.extend(operator.outputs().iter().flatten().filter(is_integer));
            }
        }
        tainted
    }

    fn goes(&self, channel: Channel) -> bool {
        self.removed.contains(&self.provenance.channels.find(channel))
    }

    /// The indices of `axis` that stay, or `None` where all do.
    fn kept_of(&self, plane: &Plane, axis: usize) -> Option<Vec<usize>> {
        let stays = |i: &usize| !plane.0.index_axis(Axis(axis), *i).iter().all(|&c| self.goes(c));
        let len = plane.0.len_of(Axis(axis));
        let kept: Vec<_> = (0..len).filter(stays).collect();
        (plane.varies(axis) && kept.len() < len).then_some(kept)
    }

    fn kept(&self, planes: &[Plane], axis: usize) -> Option<Vec<usize>> {
        planes.iter().find(|p| p.varies(axis)).and_then(|p| self.kept_of(p, axis))
    }

    /// How long an axis of a value becomes, or `None` where it stays as it is.
    fn new_len(&self, value: ValueId, axis: usize) -> Option<usize> {
        self.kept(self.provenance.planes(value), axis).map(|kept| kept.len())
    }

    /// Whether what goes from a plane is whole indices of axes.
    fn is_grid(&self, plane: &Plane) -> bool {
        let gone: Vec<Vec<bool>> = (0..plane.0.ndim())
            .map(|axis| {
                let mut gone = vec![false; plane.0.len_of(Axis(axis))];
                if let Some(kept) = self.kept_of(plane, axis) {
                    gone.fill(true);
                    kept.into_iter().for_each(|i| gone[i] = false);
                }
                gone
            })
            .collect();
        plane.0.indexed_iter().all(|(index, &channel)| {
            let cut = (0..plane.0.ndim()).any(|axis| gone[axis][index[axis]]);
            cut == self.goes(channel)
        })
    }

    fn slice_uses(&self, graph: &mut Graph) -> Result<(), RemoveError> {
        type Cuts = BTreeMap<usize, Vec<usize>>;
        let alive: HashSet<NodeId> = graph.sorted().into_iter().collect();
        let mut made: HashMap<(ValueId, Cuts), ValueId> = HashMap::new();
        for (node, slot, planes) in self.provenance.cut_uses() {
            let Some(value) = alive.contains(&node).then(|| graph.operator(node).input(slot)).flatten() else {
                continue;
            };
            let cuts: Cuts = planes
                .iter()
                .flat_map(|p| p.axes().into_iter().filter_map(|a| Some((a, self.kept_of(p, a)?))))
                .collect();
            if cuts.is_empty() {
                continue;
            }
            if graph.constant(value).is_none() {
                let picked = self.pick(graph, value, &cuts);
                graph.set_input(node, slot, Some(picked));
                continue;
            }
            let new = match made.get(&(value, cuts.clone())) {
                Some(&new) => new,
                None => {
                    let new = slice_constant(graph, value, &cuts)?;
                    made.insert((value, cuts), new);
                    new
                }
            };
            graph.set_input(node, slot, Some(new));
        }
        Ok(())
    }

    /// Cuts the biases of sublayers that went whole, where their outputs are channels of others: sublayers within
    /// sublayers.
    fn slice_bypassed(&self, graph: &mut Graph, bypassed: &[Bypassed]) -> Result<(), RemoveError> {
        for &(node, slot, output) in bypassed {
            // Where a sublayer that reads another part of the model went whole, nobody may need that part.
            if !graph.contains(node) {
                continue;
            }
            let planes = self.provenance.planes(output);
            let last = planes.first().map_or(0, |p| p.0.ndim().saturating_sub(1));
            let bias = graph.operator(node).input(slot).filter(|&v| graph.constant(v).is_some());
            if let (Some(bias), Some(keep)) = (bias, self.kept(planes, last)) {
                let new = slice_constant(graph, bias, &BTreeMap::from([(0, keep)]))?;
                graph.set_input(node, slot, Some(new));
            }
        }
        Ok(())
    }

    /// Picks what stays of a value that other readers need whole.
    fn pick(&self, graph: &mut Graph, value: ValueId, cuts: &BTreeMap<usize, Vec<usize>>) -> ValueId {
        let hint = format!("{}_pruned", graph.name(value));
        let dims = self.seen.dims(value).unwrap_or_default();
        cuts.iter().fold(value, |value, (&axis, keep)| match dims.get(axis).and_then(|&d| self.seen.factor(d)) {
            Some(period) => pick_within(graph, value, axis, period, keep, &hint),
            None => pick_of(graph, value, axis, keep, &hint),
        })
    }

    /// Corrects the declared shapes of values that became smaller, after checking that they are whole.
    fn declare_shapes(&self, graph: &mut Graph) -> Result<(), RemoveError> {
        let nodes = graph.sorted();
        let values: Vec<ValueId> = nodes
            .iter()
            .flat_map(|&n| graph.operator(n).outputs().iter().copied().flatten().collect::<Vec<_>>())
            .collect();
        for value in values {
            let planes = self.provenance.planes(value);
            if !planes.iter().all(|p| self.is_grid(p)) {
                return Err(RemoveError::Ragged(format!("value {:?}", graph.name(value))));
            }
            let Some(mut info) = graph.info(value).cloned() else { continue };
            let tensor = info.r#type.as_mut().and_then(|t| t.value.as_mut());
            let Some(type_proto::Value::TensorType(tensor)) = tensor else { continue };
            let mut changed = false;
            for (axis, dim) in tensor.shape.iter_mut().flat_map(|s| &mut s.dim).enumerate() {
                let new = planes.iter().all(|p| axis < p.0.ndim()).then(|| self.new_len(value, axis)).flatten();
                let Some(new) = new else { continue };
                // A named length, such as of batch and heads folded, is no longer what its name says.
                dim.value = match dim.value {
                    Some(dimension::Value::DimValue(_)) => Some(dimension::Value::DimValue(new as i64)),
                    _ => None,
                };
                changed = true;
            }
            if changed {
                graph.set_info(value, Some(info));
            }
        }
        Ok(())
    }

    /// Declares how many heads caches have.
    fn declare_caches(&self, graph: &mut Graph) {
        for cache in kv_cache::caches(graph) {
            let Some(Joined { node, fresh, axis, attribute }) = cache.joined(graph) else { continue };
            let Some(kept) = self.new_len(fresh, axis) else { continue };
            let heads = attribute.map_or(kept, |name| graph.operator(node).int(name, 1) as usize);
            for value in [cache.past, cache.present] {
                if kv_cache::length(graph, value, kv_cache::HEADS).is_some() {
                    kv_cache::set_length(graph, value, kv_cache::HEADS, heads);
                }
            }
        }
    }
}

fn pick_of(graph: &mut Graph, value: ValueId, axis: usize, keep: &[usize], hint: &str) -> ValueId {
    let indices: Vec<i64> = keep.iter().map(|&k| k as i64).collect();
    let indices = graph.add_constant(&format!("{hint}_kept"), Tensor::from_i64s(&[keep.len()], &indices));
    let gather = Operator::new("Gather").with(attribute::int("axis", axis as i64));
    graph.add(gather, &[value, indices], hint)
}

/// Picks from every run of `period` entries of an axis, such as the heads of batch and heads folded.
fn pick_within(graph: &mut Graph, value: ValueId, axis: usize, period: usize, keep: &[usize], hint: &str) -> ValueId {
    let numbers = |graph: &mut Graph, numbers: &[i64]| {
        graph.add_constant(&format!("{hint}_axes"), Tensor::from_i64s(&[numbers.len()], numbers))
    };
    let shape = graph.add(Operator::new("Shape"), &[value], hint);
    let mut part = |from: i64, to: i64| {
        let (from, to) = (numbers(graph, &[from]), numbers(graph, &[to]));
        graph.add(Operator::new("Slice"), &[shape, from, to], hint)
    };
    let (before, after) = (part(0, axis as i64), part(axis as i64 + 1, i64::MAX));
    let reshape = |value: ValueId, middle: &[i64], graph: &mut Graph| {
        let middle = numbers(graph, middle);
        let concat = Operator::new("Concat").with(attribute::int("axis", 0));
        let target = graph.add(concat, &[before, middle, after], hint);
        graph.add(Operator::new("Reshape"), &[value, target], hint)
    };
    let apart = reshape(value, &[-1, period as i64], graph);
    let keep: Vec<usize> = keep.iter().copied().take_while(|&k| k < period).collect();
    let picked = pick_of(graph, apart, axis + 1, &keep, hint);
    reshape(picked, &[-1], graph)
}

fn slice_constant(
    graph: &mut Graph,
    value: ValueId,
    cuts: &BTreeMap<usize, Vec<usize>>,
) -> Result<ValueId, RemoveError> {
    let name = graph.name(value).to_string();
    let wrong = |source| RemoveError::Constant { name: name.clone(), source };
    let old = graph.constant(value).ok_or_else(|| wrong(TensorError::Missing))?.clone();
    let mut tensor = old.clone();
    for (&axis, keep) in cuts {
        tensor = tensor.select(axis, keep).map_err(wrong)?;
    }
    Ok(graph.add_constant(&format!("{name}_pruned"), tensor.placed_like(&old)))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
