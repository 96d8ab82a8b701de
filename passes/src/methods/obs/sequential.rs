//! The sequential pass: at every sublayer the student's units are eliminated anew, from the solution that is best for what
//! was decided upstream, down to the number that it was allocated; and what stays is solved once more.

use ndarray::{Array2, Axis};

use super::allocate::Choice;
use super::curve::{Curve, centred, chunk, inverse, without_mean};
use super::eliminate::{Elimination, gathered};
use super::settings::Settings;
use crate::discover::Sublayer;
use crate::linalg::least_squares::Sums;
use crate::linalg::product;
use crate::methods::tune::repaired;
use crate::methods::{Equations, Failure, Outcome, Stored, Task, Walk};
use crate::plan::Decision;

/// What is known of a sublayer.
pub(super) struct Known {
    /// Of its units in the model itself.
    pub(super) curve: Curve,
    /// The metric of its outputs.
    pub(super) metric: Array2<f64>,
}

/// Where the pass has come.
pub(super) struct Here<'a> {
    pub(super) task: &'a Task<'a>,
    pub(super) t: usize,
    pub(super) known: &'a Known,
    pub(super) settings: &'a Settings,
}

impl Here<'_> {
    /// Decides this sublayer of all students, who keep as much as was `chosen` for each, and leads them through it.
    ///
    /// # Errors
    /// As [`Walk::equations`] and [`Walk::settle`]; and where a solution is not finite.
    pub(super) fn decide(
        &self,
        walk: &mut dyn Walk,
        chosen: &[Choice],
        outcomes: &mut [Outcome],
    ) -> Result<(), Failure> {
        let (t, sublayer, stored) = (self.t, self.sublayer(), walk.projection(self.t)?);
        let reached = |choice: &Choice| self.known.curve.last(reach(choice.kept, sublayer.units.len()));
        let looked_at: Vec<_> = chosen.iter().map(reached).collect();
        for (student, equations) in walk.equations(t, &looked_at)?.into_iter().enumerate() {
            let mut decision = Decision { keep: looked_at[student].clone(), tuned: None };
            let columns = decision.columns(sublayer);
            self.eliminate(&stored, &equations, &chosen[student], &mut decision)?;
            let stay = decision.columns(sublayer);
            let places: Vec<usize> = stay.iter().filter_map(|c| columns.binary_search(c).ok()).collect();
            let (tuned, repair) = repaired(t, sublayer, &stored, &stay, &equations.of(&places))?;
            decision.tuned = Some(tuned);
            walk.settle(student, t, &decision)?;
            let outcome = &mut outcomes[student];
            outcome.repairs[t] = repair;
            outcome.scores[t] = self.known.curve.errors();
            outcome.plan.decisions[t] = decision;
        }
        Ok(())
    }

    /// Removes units from a decision until it is what was chosen, from the solution for all that it keeps.
    fn eliminate(
        &self,
        stored: &Stored,
        equations: &Equations,
        choice: &Choice,
        decision: &mut Decision,
    ) -> Result<(), Failure> {
        if self.is_met(choice, decision) {
            return Ok(());
        }
        let (sublayer, columns) = (self.sublayer(), decision.columns(self.sublayer()));
        let (inverse, weight) = solution(stored, &columns, &equations.solve.with(&equations.held_out));
        let kept: Vec<usize> = (0..decision.keep.len()).filter(|&unit| decision.keep[unit]).collect();
        let place = |column: &usize| columns.binary_search(column).ok();
        let places = |&unit: &usize| sublayer.units[unit].columns.iter().filter_map(place).collect();
        let units: Vec<Vec<usize>> = kept.iter().map(places).collect();
        let felt = product(weight.view(), self.known.metric.view());
        let mut elimination = Elimination::new(inverse, &felt, &units);
        while !self.is_met(choice, decision) && elimination.left() > 1 {
            (self.task.check)()?;
            for gone in elimination.remove(chunk(sublayer, elimination.left(), self.settings)) {
                if !self.is_met(choice, decision) {
                    decision.keep[kept[gone.unit]] = false;
                }
            }
        }
        Ok(())
    }

    /// Whether a decision keeps no more, and costs no more, than was chosen; sums of many costs are a little off.
    fn is_met(&self, choice: &Choice, decision: &Decision) -> bool {
        let cost = self.task.costs.kept(self.t, self.sublayer(), decision);
        decision.kept() <= choice.kept && cost <= choice.cost * (1.0 + 1e-9)
    }

    fn sublayer(&self) -> &Sublayer {
        &self.task.sublayers[self.t]
    }
}

/// The inverse of the Gram matrix of some columns, and the solution of their equations that is near to the original rows.
fn solution(stored: &Stored, columns: &[usize], sums: &Sums) -> (Array2<f64>, Array2<f64>) {
    let original = stored.weight.select(Axis(0), columns);
    let gram = centred(&sums.gram, stored.has_bias);
    let cross = without_mean(&sums.gram, sums.cross.view(), stored.has_bias);
    let missing = cross - product(gram.view(), original.view());
    let inverse = inverse(gram);
    let weight = original + product(inverse.view(), missing.view());
    (inverse, weight)
}

/// How many units the student looks at to keep so many.
fn reach(kept: usize, units: usize) -> usize {
    if kept == 0 { 0 } else { (kept + kept.div_ceil(4)).max(kept + 2).min(units) }
}

impl Equations {
    /// Those of some of the columns.
    fn of(&self, places: &[usize]) -> Self {
        let with_ones: Vec<usize> = places.iter().copied().chain([self.solve.gram.nrows() - 1]).collect();
        let of = |sums: &Sums| Sums {
            gram: gathered(&sums.gram, &with_ones, &with_ones),
            cross: sums.cross.select(Axis(0), &with_ones),
            energy: sums.energy,
        };
        Self { solve: of(&self.solve), held_out: of(&self.held_out) }
    }
}
