//! Mask gradients and squared features, column by column.

use kprune_passes::calculus::loss::{Criterion, SAMPLES, teacher_input};
use kprune_passes::ir::ElementType;
use kprune_passes::probe::ColumnSums;
use ndarray::{Array1, ArrayD, IxDyn};

use super::{Calibrated, MEASURE_WORK, MEASURING, host, vector};
use crate::error::Error;
use crate::runtime::{Kept, Purpose};

impl Calibrated<'_> {
    /// A sum of nothing for every column of the sublayers of `sums`.
    pub(super) fn no_sums(&self, sums: &[ColumnSums]) -> Vec<Array1<f64>> {
        sums.iter().map(|s| Array1::zeros(self.sublayer(s.sublayer).projection.width)).collect()
    }

    /// Runs the leading student from sublayer `t` on, forward and backward; see
    /// [`Walk::columns`](kprune_passes::methods::Walk::columns).
    pub(super) fn sum_columns(
        &self,
        t: usize,
        criterion: Criterion,
        each: &mut dyn FnMut(&[Array1<f64>]),
    ) -> Result<Vec<Array1<f64>>, Error> {
        let leader = &self.students[self.leader];
        let graph = leader.probes.columns(t, criterion);
        let graph = graph.map_err(|e| Error::Runtime { doing: MEASURING.into(), reason: e.to_string() })?;
        let mut session = self.world.runtime.session(&graph.model, MEASURING, Purpose::Work)?;
        let (mut energies, mut gradients) = (self.no_sums(&graph.outputs), self.no_sums(&graph.outputs));
        for (i, batch) in self.world.batches.iter().enumerate() {
            self.world.runtime.check_cancelled()?;
            let samples = host(ElementType::F32, &ArrayD::from_elem(IxDyn(&[]), batch.mini_batch_samples as f64))?;
            let state = leader.states[i].load()?;
            let outputs = self.outputs.get(i).map(Kept::load).transpose()?.unwrap_or_default();
            let outputs = match criterion {
                Criterion::Labels => self.targets(batch, &outputs)?,
                _ => outputs,
            };
            let teacher = |name: &str| outputs.iter().find(|(output, _)| teacher_input(output) == name);
            let sums = session.run_with(|name| match name {
                SAMPLES => Some(samples.value()),
                _ => teacher(name).map(|t| t.1).or(state.get(name)).map(|v| v.value()).or_else(|| batch.find(name)),
            })?;
            for (j, columns) in graph.outputs.iter().enumerate() {
                let place = || self.place(columns.sublayer, batch);
                if let Some(gradient) = &columns.gradient {
                    gradients[j] += &vector(&sums, gradient, &place)?;
                }
                energies[j] += &vector(&sums, &columns.energy, &place)?;
            }
            // A mini-batch is one, in however many parts it was run.
            if self.world.batches.get(i + 1).is_none_or(|next| next.mini_batch != batch.mini_batch) {
                each(&gradients);
                gradients.iter_mut().for_each(|gradient| gradient.fill(0.0));
            }
            self.world.progress.advance(MEASURE_WORK * graph.outputs.len());
        }
        Ok(energies)
    }
}
