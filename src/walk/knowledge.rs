//! What every unit knows.

use kprune_passes::discover::{Kind, Sublayer};
use kprune_passes::ir::ElementType;
use kprune_passes::loss::{SAMPLES, teacher_input};
use kprune_passes::search::{Candidate, Weights, score};
use ndarray::{Array1, ArrayD, Axis, Ix1, IxDyn};

use super::{MEASURING, Walk, host, knowledge_work, original_weight};
use crate::error::Error;
use crate::runtime::{self, Values};

/// What the two knowledges of a unit are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Knowledge {
    /// How much the loss would rise without the unit.
    pub predictive: f64,
    /// How much its contribution to the projection's output weighs.
    pub representational: f64,
}

impl Walk<'_> {
    /// Knowledge of the units of sublayer `t` and of all above, by sublayer and unit.
    ///
    /// K_pred = 1/N * sum over mini-batches of 1/2 * mean over the unit's columns of (dL/dm)^2;
    /// K_rep = 1/T * mean over the unit's columns c of ||F_c||^2 * mean_j W_cj^2 (Park et al. 2024).
    /// At the first sublayer the student is still the teacher, and K_pred is zero.
    ///
    /// # Errors
    /// Where an operator cannot be differentiated, or ONNX Runtime fails.
    pub fn knowledge(&mut self, t: usize) -> Result<Vec<Vec<Knowledge>>, Error> {
        self.read_weights()?;
        let graph = match t {
            0 => self.measuring.energies(t),
            _ => self
                .measuring
                .knowledge(t)
                .map_err(|e| Error::Runtime { doing: MEASURING.into(), reason: e.to_string() })?,
        };
        let mut session = self.runtime.session(&graph.model, MEASURING, true)?;
        let widths: Vec<usize> = graph.outputs.iter().map(|s| self.sublayer(s.sublayer).projection.width).collect();
        let zeros = || -> Vec<Array1<f64>> { widths.iter().map(|&w| Array1::zeros(w)).collect() };
        let (mut gradients, mut squares, mut energies) = (zeros(), zeros(), zeros());
        for (i, batch) in self.batches.iter().enumerate() {
            self.runtime.check_cancelled()?;
            let samples = host(ElementType::F32, &ArrayD::from_elem(IxDyn(&[]), batch.mini_batch_samples as f64))?;
            let (state, outputs) = (self.student[i].load()?, self.outputs[i].load()?);
            let teacher = |name: &str| outputs.iter().find(|(output, _)| teacher_input(output) == name);
            let sums = session.run_with(|name| match name {
                SAMPLES => Some(samples.value()),
                _ => teacher(name).map(|t| t.1).or(state.get(name)).map(|v| v.value()).or_else(|| batch.find(name)),
            })?;
            for (j, unit) in graph.outputs.iter().enumerate() {
                if let Some(gradient) = &unit.gradient {
                    gradients[j] += &vector(&sums, gradient)?;
                }
                energies[j] += &vector(&sums, &unit.energy)?;
            }
            // A mini-batch is squared as a whole, in however many parts it was run.
            if self.batches.get(i + 1).is_none_or(|next| next.mini_batch != batch.mini_batch) {
                for (gradient, square) in gradients.iter_mut().zip(&mut squares) {
                    *square += &gradient.mapv(|g| g * g);
                    gradient.fill(0.0);
                }
            }
            self.progress.advance(knowledge_work(t, graph.outputs.len()));
        }
        let samples: usize = self.batches.iter().map(|b| b.samples).sum();
        let tokens: usize = self.batches.iter().map(|b| b.tokens).sum();
        let mut knowledge = Vec::new();
        for ((unit, squares), energies) in graph.outputs.iter().zip(&squares).zip(&energies) {
            let mean_squares = &self.mean_squares[unit.sublayer];
            let mean = |columns: &[usize], of: &dyn Fn(usize) -> f64| {
                columns.iter().map(|&c| of(c)).sum::<f64>() / columns.len() as f64
            };
            let units = self.sublayer(unit.sublayer).units.iter().map(|u| Knowledge {
                predictive: 0.5 * mean(&u.columns, &|c| squares[c]) / samples as f64,
                representational: mean(&u.columns, &|c| energies[c] * mean_squares[c]) / tokens as f64,
            });
            knowledge.push(units.collect());
        }
        Ok(knowledge)
    }

    /// Reads the weights of all projections, once.
    fn read_weights(&mut self) -> Result<(), Error> {
        for sublayer in &self.measuring.discovery.sublayers[self.mean_squares.len()..] {
            let squares = original_weight(self.measuring.model, sublayer)?.mapv(|w| w * w);
            self.mean_squares.push(squares.mean_axis(Axis(1)).unwrap_or_default());
        }
        Ok(())
    }
}

/// The candidates of the search: units of the sublayers from `first` on, with their scores.
pub fn candidates(
    sublayers: &[Sublayer],
    first: usize,
    knowledge: &[Vec<Knowledge>],
    weights: Weights,
) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (i, (sublayer, knowledge)) in sublayers[first..].iter().zip(knowledge).enumerate() {
        for (unit, (u, k)) in sublayer.units.iter().zip(knowledge).enumerate() {
            let is_head = sublayer.kind == Kind::Head;
            let score = score(weights, k.predictive, k.representational, u.flops, is_head);
            candidates.push(Candidate { sublayer: first + i, unit, score, flops: u.flops });
        }
    }
    candidates
}

fn vector(values: &Values, name: &str) -> Result<Array1<f64>, Error> {
    let value = values.get(name).ok_or_else(|| Error::internal(format!("a measuring graph gave no {name:?}")))?;
    runtime::scalars(value)?.into_dimensionality::<Ix1>().map_err(|e| Error::internal(e.to_string()))
}
