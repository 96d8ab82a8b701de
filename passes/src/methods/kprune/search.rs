//! Knowledge-preserving mask search (KPMS): a threshold on knowledge per cost.

use super::{Knowledge, Settings};
use crate::discover::Kind;
use crate::finite::NotFinite;
use crate::methods::rank::{Candidate, candidates};
use crate::methods::{Failure, Task};

/// The units of the sublayers from `t` on with their scores, from their knowledge, by sublayer and unit.
///
/// # Errors
/// Where a score is not finite.
pub(super) fn scored(
    task: &Task,
    t: usize,
    knowledge: &[Vec<Knowledge>],
    settings: &Settings,
) -> Result<Vec<Candidate>, Failure> {
    let mut scores = Vec::new();
    for (i, (sublayer, knowledge)) in task.sublayers[t..].iter().zip(knowledge).enumerate() {
        let is_head = sublayer.kind == Kind::Head;
        let cost = |unit| task.costs.unit(t + i, sublayer, unit);
        let own = knowledge.iter().enumerate().map(|(unit, k)| score(settings, k, cost(unit), is_head));
        scores.push(own.collect::<Vec<f64>>());
    }
    let found = candidates(task.sublayers, t, &scores, task.costs);
    match found.iter().find(|c| !c.score.is_finite()) {
        None => Ok(found),
        Some(odd) => {
            let place = format!("unit {} of {}", odd.unit, task.sublayers[odd.sublayer].name);
            Err(NotFinite { place, what: "its score".into(), value: odd.score }.into())
        }
    }
}

/// (lambda_pred K_pred + lambda_rep K_rep) / cost, times mu for heads. What costs nothing stays first.
fn score(settings: &Settings, knowledge: &Knowledge, cost: f64, is_head: bool) -> f64 {
    let factor = if is_head { settings.mu } else { 1.0 };
    let Knowledge { predictive, representational } = knowledge;
    let worth = factor * (settings.lambda_pred * predictive + settings.lambda_rep * representational);
    if cost > 0.0 { worth / cost } else { f64::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::FakeWalk;

    #[test]
    fn the_published_score_weighs_heads_and_costs() {
        let knowledge = Knowledge { predictive: 2.0, representational: 4000.0 };
        let settings = Settings::default();
        assert_eq!(score(&settings, &knowledge, 3.0, false), 1.0);
        assert_eq!(score(&settings, &knowledge, 3.0, true), 64.0);
    }

    #[test]
    fn a_score_that_is_no_number_is_reported_with_its_unit() {
        let walk = FakeWalk::new(1, 2);
        let mut knowledge = vec![vec![Knowledge::default(); 2]];
        knowledge[0][1].predictive = f64::NAN;
        let failed = scored(&walk.task(&[1.0]), 0, &knowledge, &Settings::default()).unwrap_err();
        assert!(failed.to_string().starts_with("unit 1 of "), "{failed}");
    }
}
