//! Moments of the untouched model: Gram matrices of features, and of what the outputs feel of an error of a projection.

use std::ops::Range;

use super::{Graph, Probes};
use crate::calculus::TokenMask;
use crate::calculus::differentiate::{DifferentiateError, differentiate};
use crate::calculus::emit::Emit;
use crate::calculus::metric;
use crate::discover::Projection;
use crate::ir::{ElementType, Model, Operator, ValueId, attribute};
use crate::probe::shapes;
use crate::probe::suffix::{extract, finish};
use crate::signature;

/// What the graph of moments gives.
pub struct MomentOutputs {
    /// For every sublayer, the sum so far with this batch's Fa^T Fa added to it, over real tokens, for all columns of its
    /// features and a column of ones: [width + 1, width + 1], in f32.
    pub grams: Vec<String>,
    /// For every sublayer, the sum so far with this batch's g^T g added to it, over real tokens, g being the gradient with
    /// respect to what the projection gives, [outputs, outputs]; `None` where the outputs do not depend on it.
    pub felt: Vec<Option<String>>,
    /// The values that cross into the sublayer after the last and are made here.
    pub crossing: Vec<String>,
}

/// The name of the input that takes the Gram matrix so far of sublayer `t`.
pub fn gram_input(t: usize) -> String {
    format!("kprune_gram_{t}")
}

/// The name of the input that takes the sum so far of what is felt of sublayer `t`.
pub fn felt_input(t: usize) -> String {
    format!("kprune_felt_{t}")
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
        let grams = self.grams(&mut part, of, token_mask);
        Self::with_sums(part, grams, Vec::new(), crossing)
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
        let mut gradients = gradients.into_iter();
        let mut felt = Vec::new();
        for t in 0..count {
            let mut sum = None;
            for ((projection, value), gradient) in self.given(t).zip(gradients.by_ref()) {
                let Some(gradient) = gradient else { continue };
                let dims = self.seen.dims(value).unwrap_or_default();
                let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
                let rows = self.rows(&mut emit, gradient, &dims, projection.outputs, token_mask);
                sum = Some(added(&mut emit, &felt_input(t), sum, rows));
            }
            felt.push(sum);
        }
        let grams = if grams { self.grams(&mut part, 0..count, token_mask) } else { Vec::new() };
        let mut graph = Self::with_sums(part, grams, felt, Vec::new());
        shapes::declare(&mut graph.model, &self.seen);
        Ok(graph)
    }

    /// What the projections of sublayer `t` give.
    fn given(&self, t: usize) -> impl Iterator<Item = (&Projection, ValueId)> {
        let output = |p: &Projection| self.model.graph.operator(p.node).output(0);
        self.discovery.sublayers[t].sites().filter_map(move |(p, _)| Some((p, output(p)?)))
    }

    /// Appends the Gram matrices of some sublayers.
    fn grams(&self, part: &mut Model, of: Range<usize>, token_mask: Option<TokenMask>) -> Vec<ValueId> {
        let sublayers = self.discovery.sublayers[of.clone()].iter().zip(of);
        let gram = |(sublayer, t): (&crate::discover::Sublayer, usize)| {
            let mut sum = None;
            for (projection, _) in sublayer.sites() {
                let [_, rows] = self.kept_features(&mut part.graph, projection, None, token_mask);
                let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
                sum = Some(added(&mut emit, &gram_input(t), sum, rows));
            }
            sum
        };
        sublayers.filter_map(gram).collect()
    }

    fn with_sums(
        mut part: Model,
        grams: Vec<ValueId>,
        felt: Vec<Option<ValueId>>,
        crossing: Vec<ValueId>,
    ) -> Graph<MomentOutputs> {
        let ends: Vec<ValueId> = grams.iter().chain(felt.iter().flatten()).chain(&crossing).copied().collect();
        let name = |v: ValueId| part.graph.name(v).to_string();
        let outputs = MomentOutputs {
            grams: grams.into_iter().map(name).collect(),
            felt: felt.into_iter().map(|v| v.map(name)).collect(),
            crossing: crossing.into_iter().map(name).collect(),
        };
        finish(&mut part, &ends);
        Graph { model: part, outputs }
    }
}

/// Adds X^T X to a sum, which starts with an input of this name.
fn added(emit: &mut Emit, name: &str, sum: Option<ValueId>, rows: ValueId) -> ValueId {
    let so_far = sum.unwrap_or_else(|| emit.graph.add_input(signature::declare(name, ElementType::F32, 2)));
    emit.with(Operator::new("Gemm").with(attribute::int("transA", 1)), &[rows, rows, so_far])
}
