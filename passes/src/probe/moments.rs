//! Moments: Gram matrices of the features of the untouched model.

use std::ops::Range;

use super::{Graph, Probes, sum_input};
use crate::calculus::emit::Emit;
use crate::ir::{ElementType, Operator, ValueId, attribute};
use crate::probe::suffix::{extract, finish};
use crate::signature;

/// What the graph of moments gives.
pub struct MomentOutputs {
    /// For every sublayer, the sum so far with this batch's Fa^T Fa added to it, over real tokens, for all columns of its
    /// features and a column of ones: [width + 1, width + 1], in f32.
    pub sums: Vec<String>,
    /// The values that cross into the sublayer after the last and are made here.
    pub crossing: Vec<String>,
}

impl Probes<'_> {
    /// Some sublayers of the untouched model, forward.
    ///
    /// Inputs: what crosses into the first of them, the [sums so far](sum_input).
    pub fn moments(&self, of: Range<usize>) -> Graph<MomentOutputs> {
        let is_last = of.end == self.discovery.sublayers.len();
        let crossing = if is_last { Vec::new() } else { self.made_between(of.start, of.end) };
        let sublayers = || self.discovery.sublayers.iter().enumerate().take(of.end).skip(of.start);
        let sites = sublayers().flat_map(|(_, s)| s.sites());
        let wanted: Vec<ValueId> =
            sites.flat_map(|(p, r)| [p.features, r.output]).chain(crossing.iter().copied()).collect();
        let mut part = extract(self.model, &self.seen, self.crossings.at(of.start), &wanted);
        let token_mask = self.restore_token_mask(&mut part);
        let mut sums = Vec::new();
        for (t, sublayer) in sublayers() {
            let mut sum = part.graph.add_input(signature::declare(&sum_input(t), ElementType::F32, 2));
            for (projection, _) in sublayer.sites() {
                let [_, rows] = self.kept_features(&mut part.graph, projection, None, token_mask);
                let product = Operator::new("Gemm").with(attribute::int("transA", 1));
                sum = Emit::new(&mut part.graph, self.opset(), "measure").with(product, &[rows, rows, sum]);
            }
            sums.push(sum);
        }
        let ends: Vec<ValueId> = sums.iter().chain(&crossing).copied().collect();
        let names = |values: Vec<ValueId>| values.into_iter().map(|v| part.graph.name(v).to_string()).collect();
        let outputs = MomentOutputs { sums: names(sums), crossing: names(crossing) };
        finish(&mut part, &ends);
        Graph { model: part, outputs }
    }
}
