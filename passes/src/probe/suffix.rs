//! Parts of a graph: what lies downstream of a sublayer, and what lies between two.
//!
//! What lies upstream of the sublayer in hand never changes again. The values that cross into it are kept, and only the
//! part of the graph downstream is run.

use std::collections::HashSet;

use crate::discover::Discovery;
use crate::ir::{ElementType, Graph, Model, NodeId, ValueId};
use crate::observe::Observation;
use crate::signature;

/// For every sublayer, the values that cross into it from upstream; one entry more for what is downstream of all.
#[derive(Clone, Debug)]
pub struct Crossings {
    values: Vec<Vec<ValueId>>,
}

impl Crossings {
    /// Finds the crossing values of every sublayer.
    pub fn find(graph: &Graph, discovery: &Discovery) -> Self {
        let streams: Vec<ValueId> = discovery.sublayers.iter().map(|s| s.residual.output).collect();
        let needed = graph.ancestors(graph.outputs().iter().chain(&streams).copied());
        let values = (0..=streams.len()).map(|t| {
            // Of sublayers that run side by side into one stream, none is upstream of another.
            let own = streams.get(t);
            let upstream = graph.ancestors(streams[..t].iter().copied().filter(|s| Some(s) != own));
            crossing(graph, &needed, &upstream)
        });
        Self { values: values.collect() }
    }

    /// The values that cross into sublayer `t` (0 is the first; the graph's inputs cross into it).
    pub fn at(&self, t: usize) -> &[ValueId] {
        &self.values[t]
    }
}

/// Values made upstream, or given, and read downstream or by the caller.
fn crossing(graph: &Graph, needed: &HashSet<NodeId>, upstream: &HashSet<NodeId>) -> Vec<ValueId> {
    let mut values = Vec::new();
    let mut seen = HashSet::new();
    let is_downstream = |n: &NodeId| needed.contains(n) && !upstream.contains(n);
    for node in graph.sorted().into_iter().filter(is_downstream) {
        let operator = graph.operator(node);
        for &value in operator.inputs().iter().flatten().chain(operator.captures()) {
            let from_downstream = graph.producer(value).is_some_and(|(n, _)| !upstream.contains(&n));
            if !from_downstream && graph.constant(value).is_none() && seen.insert(value) {
                values.push(value);
            }
        }
    }
    let made_upstream = |v: &ValueId| graph.producer(*v).is_none_or(|(n, _)| upstream.contains(&n));
    values.extend(graph.outputs().iter().copied().filter(|v| made_upstream(v) && !seen.contains(v)));
    values
}

/// The part of a model between `inputs` and `outputs`; all values keep their ids and names.
///
/// Inputs that are made within the model are declared as they were observed.
pub fn extract(model: &Model, seen: &Observation, inputs: &[ValueId], outputs: &[ValueId]) -> Model {
    let mut part = model.clone();
    let graph = &mut part.graph;
    for &value in inputs {
        if graph.producer(value).is_some() {
            let rank = seen.dims(value).map_or(0, |d| d.len());
            let element = seen.element(value).unwrap_or(ElementType::F32);
            let info = signature::declare(graph.name(value), element, rank);
            graph.make_input(info);
        }
    }
    finish(&mut part, outputs);
    part
}

/// Keeps only what `outputs` need, as the outputs of the model.
pub fn finish(part: &mut Model, outputs: &[ValueId]) {
    part.graph.set_outputs(outputs);
    part.graph.remove_dead();
    part.graph.remove_unread_inputs();
    part.graph.remove_dead();
    part.graph.checked("cutting out a part");
}

#[cfg(test)]
#[path = "suffix_tests.rs"]
mod tests;
