//! Channel provenance: which slices of which weights can only go together.
//!
//! Every index of every axis of every weight gets a channel of its own. The channels are carried
//! through the graph, and wherever two meet they are united. What comes out are classes of channels;
//! a class that meets an obstacle is frozen. No exporter or architecture is known here: there is one
//! rule for an operator, and an operator without a rule freezes what it reads.

mod arithmetic;
mod channels;
mod join;
mod moves;
mod norm;
mod plane;
mod product;
mod scene;

use std::collections::{HashMap, HashSet};

pub use channels::{Channel, Channels, Frozen};
pub use plane::{Plane, Planes};
use scene::{Operand, Scene};

use crate::ir::{Graph, NodeId, Slot, ValueId};
use crate::observe::{Dim, Observation};
use crate::rules::{Decline, Table, find};

/// A matrix product that ends channels on the rows of a constant weight.
#[derive(Clone, Debug)]
pub struct Contraction {
    /// The operator.
    pub node: NodeId,
    /// The input slot of the features.
    pub features: usize,
    /// The input slot of the weight.
    pub weight: usize,
    /// The channel of every row of the weight, which is also that of the features' column.
    pub rows: Vec<Channel>,
}

/// Where every channel of a graph comes from and goes to.
#[derive(Debug, Default)]
pub struct Provenance {
    /// The channels and their classes.
    pub channels: Channels,
    /// Matrix products with a constant weight.
    pub contractions: Vec<Contraction>,
    /// Matrix products with a constant weight whose features carry no channels of their own, with the
    /// number of rows.
    pub untracked: Vec<(NodeId, usize)>,
    /// Matrix products of two activations that channels take part in.
    pub products: Vec<NodeId>,
    values: HashMap<ValueId, Planes>,
    /// Planes of what is cut where it is read: constants, and values that several readers share.
    uses: HashMap<(NodeId, usize), Planes>,
    /// Where a value broadcasts over axes of another that carry channels: operator, wider, narrower plane.
    broadcasts: Vec<(NodeId, Plane, Plane)>,
    shared: HashSet<ValueId>,
    /// Those of them that readers have picked from.
    forked: HashSet<ValueId>,
}

impl Provenance {
    /// Carries channels through `graph`.
    pub fn trace(graph: &Graph, seen: &Observation) -> Self {
        let mut this = Self { shared: shared_values(graph, seen), ..Self::default() };
        for node in graph.sorted() {
            this.trace_node(graph, seen, node);
        }
        for &value in graph.outputs() {
            this.freeze_value(graph, value, "a graph output");
        }
        this.settle_broadcasts(graph);
        this.close_grids(graph);
        this
    }

    /// The planes of a value that an operator makes, or of a constant of more than one axis.
    pub fn planes(&self, value: ValueId) -> &[Plane] {
        self.values.get(&value).map_or(&[], Vec::as_slice)
    }

    /// Everything that is cut where it is read, with its planes there: constants, and values that several
    /// readers share.
    pub fn cut_uses(&self) -> Vec<(NodeId, usize, &[Plane])> {
        let mut uses: Vec<_> = self.uses.iter().map(|(&(n, s), p)| (n, s, p.as_slice())).collect();
        uses.sort_unstable_by_key(|&(n, s, _)| (n, s));
        uses
    }

    /// The planes of whatever an operator reads at `slot`.
    pub fn planes_at(&self, graph: &Graph, node: NodeId, slot: usize) -> &[Plane] {
        match self.uses.get(&(node, slot)) {
            Some(planes) => planes,
            None => graph.operator(node).input(slot).map_or(&[], |v| self.planes(v)),
        }
    }

    /// The same channels in another graph with some of the same values: everything that is read at a place
    /// is put where `to` says; what it says nothing of is dropped.
    pub fn moved(&self, graph: &Graph, to: impl Fn(NodeId, usize) -> Option<(NodeId, usize)>) -> Self {
        let uses = self.uses.iter().filter_map(|(&(n, s), planes)| Some((to(n, s)?, planes.clone())));
        let here = self.values.iter().filter(|(v, _)| graph.holds(**v)).map(|(&v, p)| (v, p.clone()));
        Self { channels: self.channels.clone(), values: here.collect(), uses: uses.collect(), ..Self::default() }
    }

    fn trace_node(&mut self, graph: &Graph, seen: &Observation, node: NodeId) {
        let operator = graph.operator(node);
        if operator.is("Constant") {
            return;
        }
        for &value in operator.captures() {
            self.freeze_value(graph, value, &format!("{} reads it in a subgraph", graph.label(node)));
        }
        let mut scene = Scene { graph, seen, node, provenance: self };
        match apply(&mut scene) {
            Ok(outputs) => {
                for (slot, planes) in outputs.into_iter().enumerate() {
                    if let Some(value) = operator.output(slot).filter(|_| !planes.is_empty()) {
                        self.values.insert(value, planes);
                    }
                }
            }
            Err(Decline(why)) => {
                for slot in 0..operator.inputs().len() {
                    if let Ok(operand) = scene.operand(slot) {
                        operand.planes.iter().for_each(|plane| scene.freeze(plane, &why));
                    }
                }
            }
        }
    }

    /// The planes of a constant where it is read. A vector or a table is a new one at each place, for it
    /// can be cut differently there; a weight of matrix products is the same one everywhere. Along the axis `but` it has
    /// none.
    fn constant_planes(
        &mut self,
        (value, shape): (ValueId, &[usize]),
        (node, slot): (NodeId, usize),
        is_weight: bool,
        but: Option<usize>,
    ) -> Planes {
        if let Some(planes) = self.uses.get(&(node, slot)) {
            return planes.clone();
        }
        let axes: Vec<_> = (0..shape.len()).filter(|&a| shape[a] > 1 && Some(a) != but).collect();
        let is_weight = axes.len() > 1 && is_weight;
        let shared = is_weight.then(|| self.values.get(&value).cloned()).flatten();
        let planes = shared.unwrap_or_else(|| {
            axes.iter().map(|&a| Plane::along(shape.len(), a, self.channels.fresh(shape[a]))).collect()
        });
        if is_weight {
            self.values.insert(value, planes.clone());
        }
        self.uses.insert((node, slot), planes.clone());
        planes
    }

    /// The planes of a value that several readers share, where one of them reads it: each can pick what
    /// it needs, and the value itself stays whole.
    fn shared_planes(&mut self, graph: &Graph, value: ValueId, node: NodeId, slot: usize) -> Planes {
        if let Some(planes) = self.uses.get(&(node, slot)) {
            return planes.clone();
        }
        let is_frozen = |p: &Plane| p.0.iter().all(|&c| self.channels.frozen(c).is_some());
        if !self.forked.contains(&value) && self.planes(value).iter().all(is_frozen) {
            return self.planes(value).to_vec();
        }
        self.forked.insert(value);
        self.freeze_value(graph, value, "several readers pick from it");
        let fresh = self.planes(value).to_vec().into_iter().map(|plane| {
            let mut channels = self.channels.fresh(plane.0.len());
            Plane(plane.0.mapv(|_| channels.next().unwrap_or_default()))
        });
        let fresh: Planes = fresh.collect();
        self.uses.insert((node, slot), fresh.clone());
        fresh
    }

    /// Settles what was left open where a value broadcasts over axes of another that carry channels.
    ///
    /// If whole indices of the other axes go together anyway (a vector over the width of all heads, and
    /// heads that go as a whole), the narrower value stays as it is. Otherwise its channels go with all
    /// that it meets (a number for each head, and all channels of that head).
    fn settle_broadcasts(&mut self, graph: &Graph) {
        let mut open = std::mem::take(&mut self.broadcasts);
        while !open.is_empty() {
            let before = open.len();
            open.retain(|(node, wide, narrow)| {
                let rest = |a: &usize| !narrow.varies(*a);
                let stays = wide.axes().into_iter().filter(rest).any(|axis| self.is_whole_along(wide, axis));
                if stays {
                    let reason = self.channels.reason(graph.label(*node), "repeats it along another axis that is cut");
                    narrow.0.iter().for_each(|&c| self.channels.freeze(c, reason));
                }
                !stays
            });
            if open.len() == before {
                let (_, wide, narrow) = open.remove(0);
                plane::pair(&wide, &narrow, &mut self.channels);
            }
        }
    }

    /// Freezes all that is known of a value, at all places where a constant is read.
    fn freeze_value(&mut self, graph: &Graph, value: ValueId, why: &str) {
        let reason = self.channels.reason(format!("value {:?}", graph.name(value)), why);
        let mut planes = self.planes(value).to_vec();
        if graph.constant(value).is_some() {
            for (node, slot) in graph.consumers(value) {
                if let Slot::Input(slot) = slot {
                    planes.extend(self.uses.get(&(node, slot)).cloned().unwrap_or_default());
                }
            }
        }
        for channel in planes.iter().flat_map(|p| p.0.iter()) {
            self.channels.freeze(*channel, reason);
        }
    }

    /// Unites channels until every class can be cut out of every value as whole indices of one axis:
    /// a class that took ragged pieces of several axes could not be removed physically.
    fn close_grids(&mut self, graph: &Graph) {
        let mut values: Vec<_> = self.values.iter().filter(|(v, _)| graph.constant(**v).is_none()).collect();
        values.sort_unstable_by_key(|(v, _)| **v);
        let planes = values.into_iter().flat_map(|(_, planes)| planes);
        let spread: Vec<Plane> = planes.filter(|plane| plane.axes().len() > 1).cloned().collect();
        let mut changed = true;
        while changed {
            changed = false;
            for plane in &spread {
                let axes = plane.axes();
                if !axes.iter().any(|&axis| self.is_whole_along(plane, axis)) {
                    self.unite_along(plane, axes[0]);
                    changed = true;
                }
            }
        }
    }

    /// Whether every index of `axis` belongs to one class.
    fn is_whole_along(&self, plane: &Plane, axis: usize) -> bool {
        plane.0.axis_iter(ndarray::Axis(axis)).all(|slice| {
            let mut classes = slice.iter().map(|&c| self.channels.find(c));
            let first = classes.next();
            classes.all(|class| Some(class) == first)
        })
    }

    fn unite_along(&mut self, plane: &Plane, axis: usize) {
        for slice in plane.0.axis_iter(ndarray::Axis(axis)) {
            let first = slice.iter().next().copied();
            for &channel in slice.iter().skip(1) {
                self.channels.unite(first.unwrap_or(channel), channel);
            }
        }
    }
}

/// Values that several operators read and that no matrix product has gone into, such as a bias of
/// relative positions that all layers add. Streams, whose channels are on the last axis, are none.
fn shared_values(graph: &Graph, seen: &Observation) -> HashSet<ValueId> {
    let mut products: HashSet<ValueId> = HashSet::new();
    let mut shared = HashSet::new();
    for node in graph.sorted() {
        let operator = graph.operator(node);
        let is_known = operator.is_standard() && !operator.contracts();
        // A shape says nothing of what has gone into the value.
        let reads_product = !operator.is("Shape") && operator.inputs().iter().flatten().any(|v| products.contains(v));
        let outputs = operator.outputs().iter().flatten();
        if !is_known || reads_product {
            products.extend(outputs);
        } else {
            shared.extend(outputs);
        }
    }
    // Who asks for the shape picks nothing.
    let picks = |reader: &(NodeId, Slot)| !matches!(reader.1, Slot::Input(_)) || !graph.operator(reader.0).is("Shape");
    let readers = |v: ValueId| graph.consumers(v).into_iter().filter(picks).count();
    shared.retain(|v| graph.constant(*v).is_none() && readers(*v) > 1 && !is_stream(graph, seen, *v));
    shared
}

/// Whether only the last axis of a value could carry channels.
fn is_stream(graph: &Graph, seen: &Observation, value: ValueId) -> bool {
    let dims = seen.dims(value).unwrap_or_default();
    let leading = &dims[..dims.len().saturating_sub(1)];
    // Samples and tokens, also where their numbers are fixed.
    let of_inputs: HashSet<[usize; 2]> =
        graph.inputs().iter().filter_map(|&v| seen.dims(v)).flatten().map(|d| d.0).collect();
    let carries = |&d: &Dim| d.fixed().or_else(|| seen.factor(d)).is_some_and(|n| n > 1) && !of_inputs.contains(&d.0);
    !leading.iter().any(carries)
}

/// The planes of every output of the scene's operator.
type Rule = fn(&mut Scene) -> Result<Vec<Planes>, Decline>;

/// All rules, by operator type.
const RULES: &[Table<Rule>] = &[arithmetic::RULES, product::RULES, norm::RULES, moves::RULES];

/// The operators that have a rule.
#[cfg(test)]
pub(crate) fn operators() -> Vec<&'static str> {
    crate::rules::names(RULES)
}

fn apply(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let operator = scene.operator();
    if !operator.is_standard() {
        return Err(format!("is an operator of {}, for which there is no rule", operator.domain).into());
    }
    let rule = find(RULES, &operator.op_type).ok_or("is an operator without a rule")?;
    rule(scene)
}

#[cfg(test)]
mod layout_tests;
#[cfg(test)]
mod rules_tests;
