//! Knowledge-preserving pruning (K-prune): S. Park, H. Choi, U. Kang, "Accurate Retraining-free Pruning for Pretrained
//! Encoder-based Language Models", ICLR 2024.
//!
//! From the first sublayer to the last: *measure* what every unit from there on knows, *search* for those that the
//! budget is best spent on, *tune* the projection of those that stay, *settle*, and go on with what is left of the
//! budget.

mod knowledge;
mod search;
mod settings;

use std::collections::BTreeMap;

pub use knowledge::Knowledge;
use ndarray::Array1;
pub use settings::Settings;

use super::rank::{self, Candidate};
use super::tune::tune;
use super::{Failure, Method, Outcome, Task, Walk};

/// K-prune.
pub struct Kprune {
    settings: Settings,
    /// What was measured at which sublayers: for each, and for all downstream, the units' knowledge. It serves all
    /// budgets (docs/speed.md).
    known: BTreeMap<usize, Vec<Vec<Knowledge>>>,
    /// For every sublayer, the mean squares of its projection's rows, once they are needed.
    mean_squares: Vec<Array1<f64>>,
}

impl Kprune {
    /// With these settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings, known: BTreeMap::new(), mean_squares: Vec::new() }
    }

    /// The knowledge of the units from sublayer `t` on: measured there, or where it was last.
    fn measure(&mut self, walk: &mut dyn Walk, task: &Task, t: usize) -> Result<&[Vec<Knowledge>], Failure> {
        if !self.known.contains_key(&t) && self.settings.measures_at(t, task.sublayers.len()) {
            let measured = knowledge::measure(walk, task.sublayers, t, &self.settings, &self.mean_squares)?;
            self.known.insert(t, measured);
        }
        let last = self.known.range(..=t).next_back();
        Ok(last.map_or(&[], |(&at, knowledge)| &knowledge[t - at..]))
    }
}

impl Method for Kprune {
    fn differentiates_at(&self, sublayers: usize) -> Vec<usize> {
        // At the first, teacher and student agree, and nothing is to be differentiated.
        (1..sublayers).filter(|&t| self.settings.measures_at(t, sublayers)).collect()
    }

    fn choose(&mut self, walk: &mut dyn Walk, task: &Task) -> Result<Vec<Outcome>, Failure> {
        if self.mean_squares.is_empty() {
            self.mean_squares = knowledge::mean_squares(walk, task.sublayers)?;
        }
        let settings = self.settings.clone();
        let mut outcomes = vec![Outcome::untouched(task.sublayers); task.budgets.len()];
        let mut left = task.budgets.to_vec();
        for (t, sublayer) in task.sublayers.iter().enumerate() {
            let knowledge = self.measure(walk, task, t)?;
            let units = search::scored(task, t, knowledge, &settings)?;
            for (outcome, left) in outcomes.iter_mut().zip(&mut left) {
                let keep = rank::select(task, t, &units, *left, &outcome.plan.decisions);
                let decision = &mut outcome.plan.decisions[t];
                decision.keep = keep;
                *left -= task.costs.kept(t, sublayer, decision);
                outcome.scores[t] = scores(&units, t, sublayer.units.len());
            }
            tune(walk, task.sublayers, t, &mut outcomes)?;
        }
        Ok(outcomes)
    }
}

/// The scores of the units of sublayer `t`, in their order.
fn scores(candidates: &[Candidate], t: usize, units: usize) -> Vec<f64> {
    let mut scores = vec![0.0; units];
    candidates.iter().filter(|c| c.sublayer == t).for_each(|c| scores[c.unit] = c.score);
    scores
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::FakeWalk;

    #[test]
    fn the_units_that_know_least_go_and_the_budget_is_kept() {
        let mut walk = FakeWalk::new(3, 4);
        for t in 0..3 {
            // Neuron 2 gives next to nothing, and the loss does not feel it.
            walk.features[t].column_mut(2).mapv_inplace(|f| 1e-3 * f);
        }
        let sublayers = walk.sublayers.clone();
        let budget = 9.0 * sublayers[0].units[0].flops;
        let mut method = Kprune::new(Settings { refresh: Some(1), ..Settings::default() });
        let outcomes = method.choose(&mut walk.clone(), &walk.task(&[budget])).unwrap();
        for decision in &outcomes[0].plan.decisions {
            assert_eq!(decision.keep, [true, true, false, true]);
        }
        assert!(outcomes[0].scores.iter().all(|scores| scores.len() == 4));
    }

    #[test]
    fn what_was_measured_serves_other_budgets_too() {
        let walk = FakeWalk::new(3, 4);
        let all: f64 = walk.sublayers.iter().map(|s| s.flops()).sum();
        let mut method = Kprune::new(Settings::default());
        let mut first = walk.clone();
        method.choose(&mut first, &walk.task(&[0.5 * all])).unwrap();
        assert_eq!(first.asked, [0, 1, 2]);
        let mut second = walk.clone();
        let outcomes = method.choose(&mut second, &walk.task(&[0.25 * all, 0.75 * all])).unwrap();
        assert!(second.asked.is_empty(), "nothing is measured again");
        let kept = |o: &Outcome| o.plan.decisions.iter().map(|d| d.kept()).sum::<usize>();
        assert_eq!([kept(&outcomes[0]), kept(&outcomes[1])], [3, 9]);
    }
}
