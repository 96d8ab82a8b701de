//! Methods whose scores are known before the first sublayer: choose everywhere, then tune from input to output.

use super::rank::{candidates, select};
use super::tune::tune_all;
use super::{Failure, Outcome, Task, Walk};

/// Prunes by the scores of all units, by sublayer and unit; the higher, the sooner a unit stays.
///
/// # Errors
/// As [`tune_all`].
pub fn by_scores(walk: &mut dyn Walk, task: &Task, scores: &[Vec<f64>]) -> Result<Vec<Outcome>, Failure> {
    let units = candidates(task.sublayers, 0, scores, task.costs);
    let mut outcomes = vec![Outcome::untouched(task.sublayers); task.budgets.len()];
    for (outcome, &budget) in outcomes.iter_mut().zip(task.budgets) {
        let mut left = budget;
        for (t, sublayer) in task.sublayers.iter().enumerate() {
            let ahead: Vec<_> = units.iter().filter(|c| c.sublayer >= t).copied().collect();
            let keep = select(task, t, &ahead, left, &outcome.plan.decisions);
            let decision = &mut outcome.plan.decisions[t];
            decision.keep = keep;
            left -= task.costs.kept(t, sublayer, decision);
        }
        outcome.scores = scores.to_vec();
    }
    tune_all(walk, task.sublayers, &mut outcomes)?;
    Ok(outcomes)
}
