//! What is decided about every sublayer: which units stay, and with which projection. This is all that removal and
//! verification know of a method.

mod projection;

use ndarray::{Array1, Array2};

pub use projection::{along_path, bias_at, bias_of, scale_of, write_projection, write_projections};

use crate::discover::{Discovery, Kind, Sublayer, Unit};

/// The decision about one sublayer.
#[derive(Clone, Debug)]
pub struct Decision {
    /// For every unit, whether it stays.
    pub keep: Vec<bool>,
    /// The tuned projection; `None` leaves the original rows as they are.
    pub tuned: Option<Tuned>,
}

/// A tuned projection.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// Weights, features by outputs, of all columns of the features: zero where a unit goes.
    pub weight: Array2<f64>,
    /// What is added to the bias.
    pub bias: Array1<f64>,
}

impl Decision {
    /// Keeps everything as it is.
    pub fn untouched(sublayer: &Sublayer) -> Self {
        Self { keep: vec![true; sublayer.units.len()], tuned: None }
    }

    /// Number of units that stay.
    pub fn kept(&self) -> usize {
        self.keep.iter().filter(|&&k| k).count()
    }

    /// The columns of the features that stay, in ascending order.
    pub fn columns(&self, sublayer: &Sublayer) -> Vec<usize> {
        sublayer.columns(&self.keep)
    }

    /// FLOPs of what stays.
    pub fn flops(&self, sublayer: &Sublayer) -> f64 {
        self.sum(sublayer, |unit| unit.flops)
    }

    /// Parameters of what stays.
    pub fn parameters(&self, sublayer: &Sublayer) -> f64 {
        self.sum(sublayer, |unit| unit.parameters as f64)
    }

    fn sum(&self, sublayer: &Sublayer, of: impl Fn(&Unit) -> f64) -> f64 {
        sublayer.units.iter().zip(&self.keep).filter(|(_, keep)| **keep).map(|(unit, _)| of(unit)).sum()
    }
}

/// One decision for every sublayer, in their order.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The decisions.
    pub decisions: Vec<Decision>,
}

impl Plan {
    /// Keeps everything.
    pub fn untouched(sublayers: &[Sublayer]) -> Self {
        Self { decisions: sublayers.iter().map(Decision::untouched).collect() }
    }

    /// Sublayers with their decisions.
    pub fn each<'a>(&'a self, discovery: &'a Discovery) -> impl Iterator<Item = (&'a Sublayer, &'a Decision)> {
        discovery.sublayers.iter().zip(&self.decisions)
    }

    /// Kept units of sublayers of one kind.
    pub fn kept(&self, discovery: &Discovery, kind: Kind) -> Vec<usize> {
        self.each(discovery).filter(|(s, _)| s.kind == kind).map(|(_, d)| d.kept()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::one_feed_forward;

    #[test]
    fn a_decision_knows_what_stays_and_what_it_costs() {
        let sketch = one_feed_forward(6);
        let found = sketch.discover();
        let mut plan = Plan::untouched(&found.sublayers);
        let all = plan.decisions[0].flops(&found.sublayers[0]);
        plan.decisions[0].keep = vec![true, false, true, false, false, true];
        let decision = &plan.decisions[0];
        assert_eq!((decision.kept(), decision.columns(&found.sublayers[0])), (3, vec![0, 2, 5]));
        assert_eq!(decision.flops(&found.sublayers[0]), all / 2.0);
        assert_eq!(plan.kept(&found, Kind::Neuron), [3]);
        assert!(plan.kept(&found, Kind::Head).is_empty());
    }

    #[test]
    fn a_tuned_projection_replaces_the_weight_and_adds_to_the_bias_that_is_there() {
        let sketch = one_feed_forward(6);
        let found = sketch.discover();
        let (sublayer, mut graph) = (&found.sublayers[0], sketch.graph.clone());
        let (_, _, old) = bias_of(&graph, sublayer).unwrap();
        let tuned = Tuned { weight: Array2::from_elem((6, 4), 0.25), bias: Array1::from_elem(4, 2.0) };
        write_projection(&mut graph, sublayer, &tuned).unwrap();
        let weight = graph.operator(sublayer.projection.node).input(sublayer.projection.weight_slot).unwrap();
        assert!(graph.constant(weight).unwrap().to_f64().unwrap().iter().all(|&w| w == 0.25));
        let (_, _, new) = bias_of(&graph, sublayer).unwrap();
        let added = new.to_f64().unwrap() - old.to_f64().unwrap();
        assert!(added.iter().all(|d| (d - 2.0).abs() < 1e-6));
        assert_eq!(graph.sorted().len(), sketch.graph.sorted().len(), "no operator is added");
    }
}
