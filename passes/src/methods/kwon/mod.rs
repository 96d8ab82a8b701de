//! Fisher-based pruning of masks: W. Kwon, S. Kim, M. W. Mahoney, J. Hassoun, K. Keutzer, A. Gholami, "A Fast
//! Post-Training Pruning Framework for Transformers", NeurIPS 2022.
//!
//! *Fisher* information of the masks, measured once, on labels; *search* for the units that hold most of it and that the
//! budget pays for; *rearrange* them within every sublayer by how they work together; *tune* a scale for each unit that
//! stays, toward a model that is pruned less.

mod fisher;
mod rearrange;
mod scale;
mod search;
mod settings;

pub use fisher::Fisher;
pub use settings::Settings;

use super::{Detail, Failure, Method, Outcome, Task, Walk};
use crate::plan::{Decision, Plan};

/// The method.
pub struct Kwon {
    settings: Settings,
    /// Of the unpruned model; it serves all budgets.
    fisher: Option<Fisher>,
}

impl Kwon {
    /// With these settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings, fisher: None }
    }

    /// What stays for a budget, and what rearrangement changed in each sublayer.
    fn masks(&self, task: &Task, fisher: &Fisher, budget: f64) -> (Plan, Vec<usize>) {
        let mut plan = search::search(task, fisher, budget);
        let mut swapped = vec![0; task.sublayers.len()];
        if self.settings.rearrange {
            for ((decision, gradients), swapped) in plan.decisions.iter_mut().zip(&fisher.gradients).zip(&mut swapped) {
                let keep = rearrange::rearranged(gradients, &decision.keep);
                *swapped = keep.iter().zip(&decision.keep).filter(|(now, before)| **now && !**before).count();
                decision.keep = keep;
            }
        }
        (plan, swapped)
    }
}

impl Method for Kwon {
    fn differentiates_at(&self, _sublayers: usize) -> Vec<usize> {
        vec![0]
    }

    fn needs_outputs(&self, has_labels: bool) -> bool {
        // Labels are drawn from them.
        !has_labels
    }

    fn keeps_heads_even(&self) -> bool {
        false
    }

    fn choose(&mut self, walk: &mut dyn Walk, task: &Task) -> Result<Vec<Outcome>, Failure> {
        let fisher = match self.fisher.take() {
            Some(known) => known,
            None => Fisher::measure(walk, task.sublayers)?,
        };
        let mut outcomes = Vec::new();
        for &budget in task.budgets {
            let (plan, swapped) = self.masks(task, &fisher, budget);
            let mut outcome = Outcome { plan, scores: fisher.diagonal(), ..Outcome::untouched(task.sublayers) };
            match self.settings.tune {
                true => {
                    let teacher = search::search(task, &fisher, less_pruned(task, budget));
                    walk.restart(1, Some(&teacher))?;
                    scale::tune(walk, task.sublayers, &mut outcome)?;
                }
                false => scale::leave(walk, task.sublayers, 0, &mut outcome)?,
            }
            for (details, swapped) in outcome.details.iter_mut().zip(swapped) {
                details.insert("swapped", Detail::Count(swapped));
            }
            outcomes.push(outcome);
        }
        self.fisher = Some(fisher);
        Ok(outcomes)
    }
}

/// The budget of the model that scales are tuned toward: it keeps the square root of the share.
fn less_pruned(task: &Task, budget: f64) -> f64 {
    let all = task.costs.all(task.sublayers);
    (budget / all.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0).sqrt() * all
}

/// The units of a sublayer that stay, of so many, by their places.
fn keeping(units: usize, kept: impl IntoIterator<Item = usize>) -> Decision {
    let mut keep = vec![false; units];
    kept.into_iter().for_each(|unit| keep[unit] = true);
    Decision { keep, tuned: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::FakeWalk;
    use ndarray::Array1;

    /// Three sublayers of four neurons; neuron 2 is felt by no loss.
    fn walk() -> FakeWalk {
        let mut walk = FakeWalk::new(3, 4);
        let felt = |a: f64| vec![Array1::from(vec![a, 2.0 * a, 0.0, a]); 3];
        walk.gradients = vec![felt(1.0), felt(-2.0)];
        walk
    }

    #[test]
    fn the_units_that_the_loss_does_not_feel_go() {
        let walk = walk();
        let budget = 9.0 * walk.sublayers[0].units[0].flops;
        let mut method = Kwon::new(Settings::default());
        let outcomes = method.choose(&mut walk.clone(), &walk.task(&[budget])).unwrap();
        assert!(outcomes[0].plan.decisions.iter().all(|d| d.keep == [true, true, false, true]));
        assert_eq!(outcomes[0].scores[1], [5.0, 20.0, 0.0, 5.0], "the sum over mini-batches of what was squared whole");
        assert!(outcomes[0].plan.decisions.iter().all(|d| d.tuned.is_some()));
    }

    #[test]
    fn it_is_measured_once_for_all_budgets() {
        let walk = walk();
        let all: f64 = walk.sublayers.iter().map(|s| s.flops()).sum();
        let mut method = Kwon::new(Settings::default());
        let mut led = walk.clone();
        method.choose(&mut led, &walk.task(&[0.5 * all, 0.75 * all])).unwrap();
        method.choose(&mut led, &walk.task(&[0.25 * all])).unwrap();
        assert_eq!(led.asked, [0]);
    }

    #[test]
    fn parts_can_be_switched_off() {
        let walk = walk();
        let budget = 6.0 * walk.sublayers[0].units[0].flops;
        let mut method = Kwon::new(Settings { rearrange: false, tune: false });
        let outcome = method.choose(&mut walk.clone(), &walk.task(&[budget])).unwrap().remove(0);
        for (t, decision) in outcome.plan.decisions.iter().enumerate() {
            let weight = &decision.tuned.as_ref().unwrap().weight;
            assert!((0..4).filter(|&c| decision.keep[c]).all(|c| weight.row(c) == walk.weights[t].row(c)));
        }
    }

    #[test]
    fn the_model_to_tune_toward_keeps_the_square_root() {
        let walk = walk();
        let all = walk.task(&[]).costs.all(&walk.sublayers);
        assert!((less_pruned(&walk.task(&[]), 0.25 * all) / all - 0.5).abs() < 1e-12);
    }
}
