//! Moments of the untouched model: Gram matrices of features, and of what the outputs feel of an error of a projection.

use std::ops::Range;

use super::sums::{AddingGram, Gram};
use super::{Graph, Probes};
use crate::calculus::TokenMask;
use crate::calculus::differentiate::{DifferentiateError, differentiate};
use crate::calculus::emit::Emit;
use crate::calculus::metric;
use crate::calculus::shapes;
use crate::discover::{Projection, Sublayer};
use crate::ir::{Model, ValueId};
use crate::probe::suffix::{extract, finish};

/// What the graph of moments gives.
pub struct MomentOutputs {
    /// For every sublayer, Fa^T Fa over real tokens, for all columns of its features and a column of ones:
    /// [width + 1, width + 1].
    pub grams: Vec<Gram>,
    /// For every sublayer, g^T g over real tokens, g being the gradient with respect to what the projection gives,
    /// [outputs, outputs]; `None` where the outputs do not depend on it.
    pub felt: Vec<Option<Gram>>,
    /// The values that cross into the sublayer after the last and are made here.
    pub crossing: Vec<String>,
}

impl Probes<'_> {
    /// Some sublayers of the untouched model, forward, with their Gram matrices.
    ///
    /// Inputs: what crosses into the first of them, the sums so far.
    pub fn moments(&self, of: Range<usize>) -> Graph<MomentOutputs> {
        let is_last = of.end == self.discovery.sublayers.len();
        let crossing = if is_last { Vec::new() } else { self.made_between(of.start, of.end) };
        let sites = self.discovery.sublayers[of.clone()].iter().flat_map(|s| s.sites());
        let wanted: Vec<ValueId> = sites.flat_map(|(p, r)| [p.features, r.output]).chain(crossing.clone()).collect();
        let mut part = extract(self.model, &self.seen, self.crossings.at(of.start), &wanted);
        let token_mask = self.restore_token_mask(&mut part);
        let (grams, mut ends) = self.grams(&mut part, of, token_mask);
        ends.extend(&crossing);
        finish(&mut part, &ends);
        let crossing = crossing.into_iter().map(|v| self.name(v)).collect();
        Graph { model: part, outputs: MomentOutputs { grams, felt: Vec::new(), crossing } }
    }

    /// The whole model, nothing removed, forward, and backward from random probes of its outputs: what is felt of every
    /// sublayer, and with `grams` their Gram matrices as well. Distributions are softened by `tau`.
    ///
    /// Inputs: those of the model, the sums so far, [`DRAW`](metric::DRAW).
    ///
    /// # Errors
    /// Where an operator downstream cannot be differentiated.
    pub fn sensitivity(&self, tau: f64, grams: bool) -> Result<Graph<MomentOutputs>, DifferentiateError> {
        let count = self.discovery.sublayers.len();
        let made: Vec<ValueId> = (0..count).flat_map(|t| self.given(t)).map(|(_, v)| v).collect();
        let outputs = self.objective.outputs.iter().map(|o| o.value);
        let wanted: Vec<ValueId> = outputs.chain(made.iter().copied()).collect();
        let mut part = extract(self.model, &self.seen, self.crossings.at(0), &wanted);
        let token_mask = self.restore_token_mask(&mut part);
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let seeds = metric::append(&mut emit, &self.seen, &self.objective, tau, token_mask);
        let gradients = differentiate(&mut part.graph, &self.seen, self.opset(), &seeds, &made)?;
        let (felt, mut ends) = self.felt(&mut part, gradients, token_mask);
        let (grams, more) = if grams { self.grams(&mut part, 0..count, token_mask) } else { Default::default() };
        ends.extend(more);
        finish(&mut part, &ends);
        shapes::declare(&mut part, &self.seen);
        Ok(Graph { model: part, outputs: MomentOutputs { grams, felt, crossing: Vec::new() } })
    }

    /// Appends what is felt of every sublayer, from the gradients of what its projections give, place by place. Returns
    /// the sums, and the values that are to be outputs.
    fn felt(
        &self,
        part: &mut Model,
        gradients: Vec<Option<ValueId>>,
        token_mask: Option<TokenMask>,
    ) -> (Vec<Option<Gram>>, Vec<ValueId>) {
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let (mut gradients, mut ends) = (gradients.into_iter(), Vec::new());
        let sublayer = |(t, sublayer): (usize, &Sublayer)| {
            let mut sum = None;
            for ((projection, value), gradient) in self.given(t).zip(gradients.by_ref()) {
                let Some(gradient) = gradient else { continue };
                let dims = self.seen.dims(value).unwrap_or_default();
                let rows = self.rows(&mut emit, gradient, &dims, projection.outputs, token_mask);
                let name = format!("kprune_felt_{t}");
                let width = sublayer.projection.outputs;
                sum.get_or_insert_with(|| AddingGram::new(&mut emit, &name, width)).add(&mut emit, rows);
            }
            let (gram, values) = sum?.finish(&emit);
            ends.extend(values);
            Some(gram)
        };
        let felt = self.discovery.sublayers.iter().enumerate().map(sublayer).collect();
        (felt, ends)
    }

    /// What the projections of sublayer `t` give.
    fn given(&self, t: usize) -> impl Iterator<Item = (&Projection, ValueId)> {
        let output = |p: &Projection| self.model.graph.operator(p.node).output(0);
        self.discovery.sublayers[t].sites().filter_map(move |(p, _)| Some((p, output(p)?)))
    }

    /// Appends the Gram matrices of some sublayers. Returns them, and the values that are to be outputs.
    fn grams(&self, part: &mut Model, of: Range<usize>, token_mask: Option<TokenMask>) -> (Vec<Gram>, Vec<ValueId>) {
        let mut ends = Vec::new();
        let sublayers = self.discovery.sublayers[of.clone()].iter().zip(of);
        let gram = |(sublayer, t): (&Sublayer, usize)| {
            let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
            let mut sum = AddingGram::new(&mut emit, &format!("kprune_gram_{t}"), sublayer.projection.width + 1);
            for (projection, _) in sublayer.sites() {
                let [_, rows] = self.kept_features(&mut part.graph, projection, None, token_mask);
                sum.add(&mut Emit::new(&mut part.graph, self.opset(), "measure"), rows);
            }
            let (gram, values) = sum.finish(&Emit::new(&mut part.graph, self.opset(), "measure"));
            ends.extend(values);
            gram
        };
        let grams = sublayers.map(gram).collect();
        (grams, ends)
    }
}
