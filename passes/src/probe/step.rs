//! One step of teacher or student: from what crosses into a sublayer to what crosses into the next.

use super::{Graph, Probes};
use ndarray::{Array1, Ix2};

use crate::ir::{ElementType, TensorError, ValueId};
use crate::plan::{Plan, Tuned, write_projection};
use crate::probe::suffix::{extract, finish};
use crate::signature;

/// Name of the input that takes the kept columns of the features and a column of ones.
pub const FEATURES: &str = "kprune_features";
/// Name of the input that takes the kept rows of the projection's weight and what is added to its bias, as the
/// model stores a weight.
pub const WEIGHT: &str = "kprune_weight";

/// What the teacher's graph of a sublayer gives.
pub struct RegionOutputs {
    /// The residual stream after the sublayer, and after every other place where its weights are applied.
    pub streams: Vec<String>,
    /// The values that cross into the next sublayer and are made in this one.
    pub crossing: Vec<String>,
}

impl Probes<'_> {
    /// The teacher's graph of sublayer `t` alone, from what crosses into `t` to what crosses into the next.
    pub fn region(&self, t: usize) -> Graph<RegionOutputs> {
        let crossing = self.made_between(t, t + 1);
        let streams: Vec<ValueId> = self.discovery.sublayers[t].sites().map(|(_, r)| r.output).collect();
        let mut ends = crossing.clone();
        ends.extend(streams.iter().filter(|v| !crossing.contains(v)));
        let part = extract(&self.student, &self.seen, self.crossings.at(t), &ends);
        let names = |values: Vec<ValueId>| values.into_iter().map(|v| self.name(v)).collect();
        Graph { model: part, outputs: RegionOutputs { streams: names(streams), crossing: names(crossing) } }
    }

    /// The same without the units that `plan` removes, everywhere: those of a teacher that is pruned, and not tuned.
    ///
    /// # Errors
    /// Where a projection is of no floating-point type.
    pub fn masked(&self, plan: &Plan) -> Result<Self, TensorError> {
        let mut masked = self.clone();
        for (sublayer, decision) in plan.each(self.discovery).filter(|(s, d)| d.kept() < s.units.len()) {
            let stored = self.model.graph.constant(sublayer.projection.weight).ok_or(TensorError::Missing)?.to_f64()?;
            let stored = stored.into_dimensionality::<Ix2>().map_err(|_| TensorError::Missing)?;
            let mut weight = if sublayer.projection.transposed { stored.reversed_axes() } else { stored };
            let gone = sublayer.units.iter().zip(&decision.keep).filter(|(_, keep)| !**keep);
            gone.flat_map(|(unit, _)| &unit.columns).for_each(|&c| weight.row_mut(c).fill(0.0));
            let tuned = Tuned { bias: Array1::zeros(weight.ncols()), weight };
            write_projection(&mut masked.student.graph, sublayer, &tuned)?;
        }
        masked.seen.complete(&masked.student.graph);
        Ok(masked)
    }

    /// The student's graph of sublayer `t` alone, from the kept features, and whatever else crosses into
    /// `t`, to what crosses into the next, with a projection that is given.
    ///
    /// Inputs: what crosses into `t`, the kept features with a column of ones, the kept rows of the weight
    /// with what is added to the bias. Outputs: what crosses into the next and is made here.
    pub fn step(&self, t: usize) -> Graph<Vec<String>> {
        let crossing = self.made_between(t, t + 1);
        let projection = &self.discovery.sublayers[t].projection;
        let mut part = extract(&self.student, &self.seen, self.crossings.at(t), &crossing);
        if part.graph.contains(projection.node) {
            let element = self.seen.element(projection.weight).unwrap_or(ElementType::F32);
            let rank = self.seen.dims(projection.features).map_or(0, |d| d.len());
            let features = part.graph.add_input(signature::declare(FEATURES, element, rank));
            let weight = part.graph.add_input(signature::declare(WEIGHT, element, 2));
            part.graph.set_input(projection.node, projection.features_slot, Some(features));
            part.graph.set_input(projection.node, projection.weight_slot, Some(weight));
        }
        finish(&mut part, &crossing);
        Graph { model: part, outputs: crossing.into_iter().map(|v| self.name(v)).collect() }
    }

    /// The values that cross into sublayer `to` and are made from sublayer `from` on.
    pub(super) fn made_between(&self, from: usize, to: usize) -> Vec<ValueId> {
        let into = self.crossings.at(from);
        let is_new = |v: &&ValueId| !into.contains(v) && self.model.graph.producer(**v).is_some();
        self.crossings.at(to).iter().filter(is_new).copied().collect()
    }

    /// Whether values that cross into the sublayer after `t` depend on what its projection gives.
    pub(super) fn feeds_next(&self, t: usize) -> bool {
        let made = self.model.graph.ancestors(self.made_between(t, t + 1));
        t + 1 < self.discovery.sublayers.len() && made.contains(&self.discovery.sublayers[t].projection.node)
    }
}
