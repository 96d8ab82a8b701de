//! Sensitivity: what the outputs feel of an error that a projection makes.

use super::{Graph, Probes, sum_input};
use crate::calculus::differentiate::{DifferentiateError, differentiate};
use crate::calculus::emit::Emit;
use crate::calculus::metric;
use crate::ir::{ElementType, Operator, ValueId, attribute};
use crate::probe::suffix::{extract, finish};
use crate::signature;

impl Probes<'_> {
    /// The whole model, nothing removed, forward, and backward from random probes of its outputs: for every sublayer the sum
    /// over real tokens of g g^T, [outputs, outputs], g being the gradient with respect to what the projection gives.
    ///
    /// Inputs: those of the model, the [sums so far](sum_input), [`DRAW`](metric::DRAW). Outputs: the names of the sums; `None` where the outputs do
    /// not depend on the sublayer.
    ///
    /// # Errors
    /// Where an operator downstream cannot be differentiated.
    pub fn sensitivity(&self, tau: f64) -> Result<Graph<Vec<Option<String>>>, DifferentiateError> {
        let given = |node, slot| self.model.graph.operator(node).output(slot);
        let sites =
            |t: usize| self.discovery.sublayers[t].sites().filter_map(move |(p, _)| Some((p, given(p.node, 0)?)));
        let made: Vec<ValueId> = (0..self.discovery.sublayers.len()).flat_map(sites).map(|(_, v)| v).collect();
        let outputs = self.objective.outputs.iter().map(|o| o.value);
        let wanted: Vec<ValueId> = outputs.chain(made.iter().copied()).collect();
        let mut part = extract(self.model, &self.seen, self.crossings.at(0), &wanted);
        let token_mask = self.restore_token_mask(&mut part);
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let seeds = metric::append(&mut emit, &self.seen, &self.objective, tau, token_mask);
        let gradients = differentiate(&mut part.graph, &self.seen, self.opset(), &seeds, &made)?;
        let mut gradients = gradients.into_iter();
        let mut sums = Vec::new();
        for t in 0..self.discovery.sublayers.len() {
            let mut sum = None;
            for ((projection, value), gradient) in sites(t).zip(gradients.by_ref()) {
                let Some(gradient) = gradient else { continue };
                let name = sum_input(t);
                let so_far =
                    sum.unwrap_or_else(|| part.graph.add_input(signature::declare(&name, ElementType::F32, 2)));
                let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
                let dims = self.seen.dims(value).unwrap_or_default();
                let rows = self.rows(&mut emit, gradient, &dims, projection.outputs, token_mask);
                let product = Operator::new("Gemm").with(attribute::int("transA", 1));
                sum = Some(emit.with(product, &[rows, rows, so_far]));
            }
            sums.push(sum);
        }
        let ends: Vec<ValueId> = sums.iter().flatten().copied().collect();
        let names = sums.into_iter().map(|sum| Some(part.graph.name(sum?).to_string())).collect();
        finish(&mut part, &ends);
        Ok(Graph { model: part, outputs: names })
    }
}
