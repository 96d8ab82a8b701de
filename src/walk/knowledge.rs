//! What every unit knows.

use kprune_passes::cost::Costs;
use kprune_passes::discover::{Kind, Sublayer};
use kprune_passes::ir::ElementType;
use kprune_passes::loss::{SAMPLES, teacher_input};
use kprune_passes::measure::UnitSums;
use kprune_passes::search::{Candidate, Weights, score};
use ndarray::{Array1, ArrayD, IxDyn};

use super::{KNOWLEDGE_WORK, MEASURING, Walk, host, vector};
use crate::error::Error;

/// What the two knowledges of a unit are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Knowledge {
    /// How much the loss would rise without the unit.
    pub predictive: f64,
    /// How much its contribution to the projection's output weighs.
    pub representational: f64,
}

/// The knowledge of the units of a sublayer and of all above, by sublayer and unit.
pub type Measured = Vec<Vec<Knowledge>>;

/// Sums over the calibration set, sublayer by sublayer, for every column of the features.
#[derive(Clone)]
pub(super) struct Totals {
    /// Over mini-batches, of squared mask gradients.
    pub(super) squares: Vec<Array1<f64>>,
    /// Over real tokens, of squared features.
    pub(super) energies: Vec<Array1<f64>>,
}

impl Totals {
    /// Sums of nothing for the sublayers of `sums`.
    pub(super) fn zeros(walk: &Walk, sums: &[UnitSums]) -> Self {
        let zeros = || sums.iter().map(|s| Array1::zeros(walk.sublayer(s.sublayer).projection.width)).collect();
        Self { squares: zeros(), energies: zeros() }
    }
}

impl Walk<'_> {
    /// Knowledge of the units of sublayer `t` and of all above, by sublayer and unit.
    ///
    /// K_pred = 1/N * sum over mini-batches of 1/2 * mean over the unit's columns of (dL/dm)^2;
    /// K_rep = 1/T * mean over the unit's columns c of ||F_c||^2 * mean_j W_cj^2 (Park et al. 2024).
    /// At the first sublayer the student is still the teacher, and K_pred is zero. Of several students, it is the
    /// leader's.
    ///
    /// # Errors
    /// Where an operator cannot be differentiated, or ONNX Runtime fails.
    pub fn knowledge(&self, t: usize) -> Result<Measured, Error> {
        let totals = match (t, self.untouched.clone()) {
            (0, Some(totals)) => totals,
            _ => self.totals(t)?,
        };
        let samples: usize = self.batches.iter().map(|b| b.samples).sum();
        let tokens: usize = self.batches.iter().map(|b| b.tokens).sum();
        let mut knowledge = Vec::new();
        for (i, (squares, energies)) in totals.squares.iter().zip(&totals.energies).enumerate() {
            let mean_squares = &self.mean_squares[t + i];
            let mean = |columns: &[usize], of: &dyn Fn(usize) -> f64| {
                columns.iter().map(|&c| of(c)).sum::<f64>() / columns.len() as f64
            };
            let units = self.sublayer(t + i).units.iter().map(|u| Knowledge {
                predictive: 0.5 * mean(&u.columns, &|c| squares[c]) / samples as f64,
                representational: mean(&u.columns, &|c| energies[c] * mean_squares[c]) / tokens as f64,
            });
            knowledge.push(units.collect());
        }
        Ok(knowledge)
    }

    /// Runs the student above sublayer `t`, forward and backward.
    fn totals(&self, t: usize) -> Result<Totals, Error> {
        let leader = &self.students[self.leader];
        let graph = leader.measuring.knowledge(t);
        let graph = graph.map_err(|e| Error::Runtime { doing: MEASURING.into(), reason: e.to_string() })?;
        let mut session = self.runtime.session(&graph.model, MEASURING, true)?;
        let mut totals = Totals::zeros(self, &graph.outputs);
        let mut gradients = Totals::zeros(self, &graph.outputs).squares;
        for (i, batch) in self.batches.iter().enumerate() {
            self.runtime.check_cancelled()?;
            let samples = host(ElementType::F32, &ArrayD::from_elem(IxDyn(&[]), batch.mini_batch_samples as f64))?;
            let (state, outputs) = (leader.states[i].load()?, self.outputs[i].load()?);
            let teacher = |name: &str| outputs.iter().find(|(output, _)| teacher_input(output) == name);
            let sums = session.run_with(|name| match name {
                SAMPLES => Some(samples.value()),
                _ => teacher(name).map(|t| t.1).or(state.get(name)).map(|v| v.value()).or_else(|| batch.find(name)),
            })?;
            for (j, unit) in graph.outputs.iter().enumerate() {
                let place = || self.place(unit.sublayer, batch);
                if let Some(gradient) = &unit.gradient {
                    gradients[j] += &vector(&sums, gradient, &place)?;
                }
                totals.energies[j] += &vector(&sums, &unit.energy, &place)?;
            }
            // A mini-batch is squared as a whole, in however many parts it was run.
            if self.batches.get(i + 1).is_none_or(|next| next.mini_batch != batch.mini_batch) {
                for (gradient, square) in gradients.iter_mut().zip(&mut totals.squares) {
                    *square += &gradient.mapv(|g| g * g);
                    gradient.fill(0.0);
                }
            }
            self.progress.advance(KNOWLEDGE_WORK * graph.outputs.len());
        }
        Ok(totals)
    }
}

/// The candidates of the search: units of the sublayers from `first` on, with their scores.
pub fn candidates(
    sublayers: &[Sublayer],
    first: usize,
    knowledge: &[Vec<Knowledge>],
    weights: Weights,
    costs: &Costs,
) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (i, (sublayer, knowledge)) in sublayers[first..].iter().zip(knowledge).enumerate() {
        let t = first + i;
        let is_head = sublayer.kind == Kind::Head;
        let score = |(unit, k): (usize, &Knowledge)| {
            (unit, score(weights, k.predictive, k.representational, costs.unit(t, sublayer, unit), is_head))
        };
        let mut scores: Vec<(usize, f64)> = knowledge.iter().enumerate().map(score).collect();
        // The best stay first, so each costs what one more costs then.
        scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        candidates.extend(scores.into_iter().enumerate().map(|(place, (unit, score))| Candidate {
            sublayer: t,
            unit,
            score,
            cost: costs.nth(t, sublayer, unit, place + 1),
        }));
    }
    candidates
}
