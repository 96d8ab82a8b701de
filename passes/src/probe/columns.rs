//! Mask gradients and squared features of the units of a sublayer and of all downstream of it, column by column.

use super::{Graph, Probes, add};
use crate::calculus::TokenMask;
use crate::calculus::differentiate::{DifferentiateError, differentiate};
use crate::calculus::emit::Emit;
use crate::calculus::loss::{self, Criterion};
use crate::calculus::objective::Compared;
use crate::calculus::shapes;
use crate::ir::{ElementType, Model, ValueId};
use crate::probe::suffix::{extract, finish};
use crate::signature;

/// Sums over a batch for one sublayer, one number for every column of its features: `[width]`.
pub struct ColumnSums {
    /// Which sublayer.
    pub sublayer: usize,
    /// dL/dm: sum over samples and tokens of feature times gradient; `None` where the loss does not
    /// depend on the sublayer.
    pub gradient: Option<String>,
    /// Sum over real tokens of the squared features.
    pub energy: String,
}

/// What the graph of masks gives.
pub struct MaskOutputs {
    /// The loss, a scalar.
    pub loss: String,
    /// For every sublayer dL/dm, `[width]`; `None` where the loss does not depend on it.
    pub gradients: Vec<Option<String>>,
}

/// The name of the input that takes the factors of sublayer `t`.
pub fn mask_input(t: usize) -> String {
    format!("kprune_mask_{t}")
}

impl Probes<'_> {
    /// The student from sublayer `t` on, forward and backward: mask gradients and energies of the columns of `t` and of
    /// all sublayers downstream, for the loss that `criterion` names.
    ///
    /// Inputs: what crosses into `t`, the teacher's outputs, the number of samples.
    ///
    /// # Errors
    /// Where an operator downstream cannot be differentiated.
    pub fn columns(&self, t: usize, criterion: Criterion) -> Result<Graph<Vec<ColumnSums>>, DifferentiateError> {
        let (mut part, features) = self.from(t);
        let token_mask = self.restore_token_mask(&mut part);
        self.restore_ids(&mut part);
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let loss = loss::append(&mut emit, &self.seen, &self.objective, criterion, token_mask);
        let gradients = differentiate(&mut part.graph, &self.seen, self.opset(), &loss.seeds, &features)?;
        let (sums, ends) = self.sums(t, &mut part, token_mask, gradients);
        finish(&mut part, &ends);
        shapes::declare(&mut part, &self.seen);
        Ok(Graph { model: part, outputs: sums })
    }

    /// The whole model with a factor on every column of every sublayer's features, forward and backward: the gradients of
    /// the loss that `criterion` names with respect to those factors, also where they are zero.
    ///
    /// Inputs: those of the model, the factors ([`mask_input`], `[width]` each), the teacher's outputs, the number of samples.
    ///
    /// # Errors
    /// Where an operator downstream cannot be differentiated.
    pub fn masks(&self, criterion: Criterion) -> Result<Graph<MaskOutputs>, DifferentiateError> {
        let (mut part, _) = self.from(0);
        let token_mask = self.restore_token_mask(&mut part);
        self.restore_ids(&mut part);
        let (mut seen, mut masked) = (self.seen.clone(), Vec::new());
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        for (t, sublayer) in self.discovery.sublayers.iter().enumerate() {
            let mask = emit.graph.add_input(signature::declare(&mask_input(t), ElementType::F32, 1));
            for (projection, _) in sublayer.sites() {
                let value = emit.op("Mul", &[projection.features, mask]);
                emit.graph.set_input(projection.node, projection.features_slot, Some(value));
                seen.see_like(value, projection.features);
                masked.push(value);
            }
        }
        let loss = loss::append(&mut emit, &seen, &self.objective, criterion, token_mask);
        let gradients = differentiate(&mut part.graph, &seen, self.opset(), &loss.seeds, &masked)?;
        let (sums, _) = self.sums(0, &mut part, None, gradients);
        let find = |name: &String| part.graph.find(name);
        let ends: Vec<ValueId> = sums.iter().filter_map(|s| s.gradient.as_ref().and_then(find)).collect();
        let ends: Vec<ValueId> = std::iter::once(loss.value).chain(ends).collect();
        let name = part.graph.name(loss.value).to_string();
        finish(&mut part, &ends);
        shapes::declare(&mut part, &self.seen);
        let gradients = sums.into_iter().map(|s| s.gradient).collect();
        Ok(Graph { model: part, outputs: MaskOutputs { loss: name, gradients } })
    }

    /// The graph of the whole model, nothing removed, forward only: what the loss compares is kept of, and
    /// the energies of all units. Teacher and student agree there, and all mask gradients are zero.
    ///
    /// Inputs: those of the model.
    pub fn teacher(&self) -> Graph<Vec<ColumnSums>> {
        let (mut part, features) = self.from(0);
        let token_mask = self.restore_token_mask(&mut part);
        let (sums, mut ends) = self.sums(0, &mut part, token_mask, vec![None; features.len()]);
        let kept: Vec<ValueId> = self.objective.outputs.iter().map(Compared::kept).collect();
        ends.extend(&kept);
        finish(&mut part, &ends);
        Graph { model: part, outputs: sums }
    }

    /// The student's graph from what crosses into sublayer `t` to the features of all sublayers from `t` on and the
    /// outputs that the loss compares; and those features.
    fn from(&self, t: usize) -> (Model, Vec<ValueId>) {
        let sites = self.discovery.sublayers[t..].iter().flat_map(|s| s.sites());
        let features: Vec<ValueId> = sites.map(|(projection, _)| projection.features).collect();
        let outputs = self.objective.outputs.iter().map(|o| o.value);
        let wanted: Vec<ValueId> = outputs.chain(features.iter().copied()).collect();
        (extract(&self.student, &self.seen, self.crossings.at(t), &wanted), features)
    }

    /// Appends the sums of every sublayer from `t` on; `gradients` are those with respect to the features,
    /// place by place. Returns their names and the values.
    fn sums(
        &self,
        t: usize,
        part: &mut Model,
        token_mask: Option<TokenMask>,
        gradients: Vec<Option<ValueId>>,
    ) -> (Vec<ColumnSums>, Vec<ValueId>) {
        let mut gradients = gradients.into_iter();
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let mut sums = Vec::new();
        let mut ends = Vec::new();
        for (i, sublayer) in self.discovery.sublayers[t..].iter().enumerate() {
            // One mask for every place where the weights are applied: the gradients add up.
            let (mut gradient, mut energy) = (None, None);
            for ((projection, _), g) in sublayer.sites().zip(gradients.by_ref()) {
                let [g, e] = self.unit_sums(&mut emit, projection.features, g, token_mask);
                gradient = add(&mut emit, gradient, g);
                energy = add(&mut emit, energy, e);
            }
            ends.extend(gradient.into_iter().chain(energy));
            let name = |v: ValueId| emit.graph.name(v).to_string();
            sums.push(ColumnSums {
                sublayer: t + i,
                gradient: gradient.map(name),
                energy: energy.map(name).unwrap_or_default(),
            });
        }
        (sums, ends)
    }

    /// Feature times gradient and squared features, one sum for every column.
    fn unit_sums(
        &self,
        emit: &mut Emit,
        features: ValueId,
        gradient: Option<ValueId>,
        token_mask: Option<TokenMask>,
    ) -> [Option<ValueId>; 2] {
        let dims = self.seen.dims(features).unwrap_or_default();
        let leading: Vec<i64> = (0..dims.len() as i64 - 1).collect();
        let gradient = gradient.map(|gradient| {
            let product = emit.op("Mul", &[features, gradient]);
            emit.reduce_sum(product, &leading, false)
        });
        let real = self.only_real(emit, features, &dims, token_mask);
        let square = emit.op("Mul", &[real, features]);
        [gradient, Some(emit.reduce_sum(square, &leading, false))]
    }
}
