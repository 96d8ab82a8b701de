//! Optimal brain surgeon for units, in the directions that the outputs feel: what a unit costs is the error that is left
//! after the others have made up for it.
//!
//! *Sensitivity*: what the outputs feel of an error of every projection. *Curves*: the error of every sublayer against how
//! many of its units are gone. *Allocation*: how many each keeps, so that all together lose least for the budget. Then one
//! *sequential* pass, in which the student's own units are eliminated, and what stays is solved by least squares. The first
//! two know nothing of budgets, and serve them all.

mod allocate;
mod curve;
mod eliminate;
mod metric;
mod sequential;
mod settings;

use curve::Curve;
use sequential::{Here, Known};
pub use settings::Settings;

use super::{Failure, Method, Moments, Outcome, Task, Walk};

/// How much distributions are softened when sensitivity is measured.
const TAU: f64 = 4.0;

/// The method.
pub struct Obs {
    settings: Settings,
    /// What is known of every sublayer, once it was measured.
    known: Vec<Known>,
}

impl Obs {
    /// With these settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings, known: Vec::new() }
    }

    fn measure(&mut self, walk: &mut dyn Walk, task: &Task) -> Result<(), Failure> {
        let stored = (0..task.sublayers.len()).map(|t| walk.projection(t)).collect::<Result<Vec<_>, _>>()?;
        walk.moments(TAU, &mut |t, Moments { gram, felt }| {
            let rows = gram.diag().last().copied().unwrap_or(0.0);
            let metric = metric::metric(&felt, rows, self.settings.shrinkage);
            let sublayer = &task.sublayers[t];
            let curve = Curve::measure(sublayer, gram, &metric, &stored[t], &self.settings, task.check)?;
            self.known.push(Known { curve, metric });
            Ok(())
        })
    }
}

impl Method for Obs {
    fn differentiates_at(&self, _sublayers: usize) -> Vec<usize> {
        vec![0]
    }

    fn needs_outputs(&self, _has_labels: bool) -> bool {
        false
    }

    fn choose(&mut self, walk: &mut dyn Walk, task: &Task) -> Result<Vec<Outcome>, Failure> {
        if self.known.is_empty() {
            self.measure(walk, task)?;
        }
        let choices: Vec<_> =
            self.known.iter().enumerate().map(|(t, known)| allocate::choices(task, t, &known.curve)).collect();
        let chosen: Vec<_> =
            task.budgets.iter().map(|&budget| allocate::allocate_evenly(task, &choices, budget)).collect();
        let mut outcomes = vec![Outcome::untouched(task.sublayers); task.budgets.len()];
        for (t, known) in self.known.iter().enumerate() {
            let own: Vec<_> = chosen.iter().map(|student| student[t]).collect();
            Here { task, t, known, settings: &self.settings }.decide(walk, &own, &mut outcomes)?;
        }
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::FakeWalk;
    use ndarray::Array2;

    fn kept(outcome: &Outcome) -> Vec<usize> {
        outcome.plan.decisions.iter().map(|d| d.kept()).collect()
    }

    #[test]
    fn what_others_can_make_up_for_goes() {
        let mut walk = FakeWalk::new(2, 6);
        walk.make_equal(0, 1, 4);
        let sublayers = walk.sublayers.clone();
        let budget = 11.0 * sublayers[0].units[0].flops;
        let outcome = Obs::new(Settings::default()).choose(&mut walk.clone(), &walk.task(&[budget])).unwrap().remove(0);
        assert_eq!(kept(&outcome), [5, 6]);
        let keep = &outcome.plan.decisions[0].keep;
        assert!(keep[1] != keep[4], "one of the two that say the same");
        assert!(outcome.repairs[0].tuned.unwrap() < 1e-3);
    }

    #[test]
    fn sublayers_that_the_outputs_do_not_feel_pay_for_the_others() {
        let mut walk = FakeWalk::new(3, 6);
        walk.felt[1] = Array2::zeros(walk.felt[1].raw_dim());
        let budget = 12.0 * walk.sublayers[0].units[0].flops;
        let outcome = Obs::new(Settings::default()).choose(&mut walk.clone(), &walk.task(&[budget])).unwrap().remove(0);
        assert_eq!(kept(&outcome), [6, 0, 6]);
    }

    #[test]
    fn directions_that_the_outputs_do_not_feel_count_little() {
        let mut walk = FakeWalk::new(1, 4);
        // Neurons 0 and 2 write to the second output alone, and the first is all that is felt.
        for (unit, output) in [(0, 1), (1, 0), (2, 1), (3, 0)] {
            walk.weights[0].row_mut(unit).fill(0.0);
            walk.weights[0][[unit, output]] = 1.0;
        }
        walk.felt[0] = Array2::zeros(walk.felt[0].raw_dim());
        walk.felt[0][[0, 0]] = 1.0;
        let budget = 2.0 * walk.sublayers[0].units[0].flops;
        let outcome = Obs::new(Settings::default()).choose(&mut walk.clone(), &walk.task(&[budget])).unwrap().remove(0);
        assert_eq!(outcome.plan.decisions[0].keep, [false, true, false, true]);
    }

    #[test]
    fn sublayers_with_caches_keep_equally_many() {
        let mut walk = FakeWalk::new(3, 6);
        walk.felt[1] = Array2::zeros(walk.felt[1].raw_dim());
        [0, 1].into_iter().for_each(|t| walk.sublayers[t].has_cache = true);
        let budgets = [11.0 * walk.sublayers[0].units[0].flops];
        let choose = |even_heads| {
            let task = Task { even_heads, ..walk.task(&budgets) };
            kept(&Obs::new(Settings::default()).choose(&mut walk.clone(), &task).unwrap()[0])
        };
        let (even, free) = (choose(true), choose(false));
        assert_eq!(even[0], even[1], "{even:?}");
        assert!(even.iter().sum::<usize>() <= 11 && even[0] > 0);
        assert_eq!(free[1], 1, "what nobody feels keeps one, for its cache: {free:?}");
    }

    #[test]
    fn several_budgets_share_what_was_measured_and_each_is_kept() {
        let walk = FakeWalk::new(3, 6);
        let (each, mut method) = (walk.sublayers[0].units[0].flops, Obs::new(Settings::default()));
        let outcomes = method.choose(&mut walk.clone(), &walk.task(&[5.0 * each, 14.0 * each])).unwrap();
        let mut unfelt = walk.clone();
        unfelt.felt.clear();
        let again = method.choose(&mut unfelt, &walk.task(&[9.0 * each])).unwrap();
        let sums = [&outcomes[0], &outcomes[1], &again[0]].map(|o| kept(o).iter().sum::<usize>());
        assert_eq!(sums, [5, 14, 9]);
    }
}
