//! The structured variant: how many units every sublayer keeps is learned for the whole model at once, on hard masks, and
//! what stays is solved by least squares.
//!
//! Units of a sublayer go in a fixed order, that of their importance: the energy of their features times the squares of
//! their rows. The share that goes of each is a rate as in the rest of this room; with dL/dm_r the mask gradient of the unit at
//! place r, dL/dpi_d = -(sum over r below the count of d of dL/dm_r), and the penalty is about the cost of all units.

use ndarray::{Array1, Array2};

use super::prodigy::Prodigy;
use super::rates::{Rates, candidate_counts, tilt_to};
use super::settings::{Grain, Settings};
use super::steps::{Turns, is_checked, penalty_slope};
use crate::calculus::loss::Criterion;
use crate::methods::tune::tune_all;
use crate::methods::{Failure, Masked, Method, Outcome, Task, Walk};
use crate::plan::Decision;
use crate::sparsity::Pattern;

/// How much distributions are softened.
const TAU: f64 = 2.0;

/// One mini-batch in so many judges, and is not learned from.
const JUDGES: usize = 8;

/// The method.
pub struct Besa {
    settings: Settings,
    /// For every sublayer its units, the least important first, once they are known.
    orders: Vec<Vec<usize>>,
}

impl Besa {
    /// With these settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings, orders: Vec::new() }
    }

    /// In which order the units of every sublayer go.
    fn order(&mut self, walk: &mut dyn Walk, task: &Task) -> Result<(), Failure> {
        let energies = walk.columns(0, Criterion::Teacher { tau: TAU }, &mut |_| ())?;
        for (t, (sublayer, energy)) in task.sublayers.iter().zip(&energies).enumerate() {
            let weight = walk.projection(t)?.weight;
            let column = |&c: &usize| energy[c] * weight.row(c).dot(&weight.row(c));
            let worth: Vec<f64> = sublayer.units.iter().map(|u| u.columns.iter().map(column).sum()).collect();
            let mut order: Vec<usize> = (0..worth.len()).collect();
            order.sort_by(|&a, &b| worth[a].total_cmp(&worth[b]));
            self.orders.push(order);
        }
        Ok(())
    }

    /// The units that stay for a budget.
    fn learn(&self, walk: &mut dyn Walk, task: &Task, budget: f64) -> Result<Vec<Vec<bool>>, Failure> {
        let all = task.costs.all(task.sublayers);
        let share = (1.0 - budget / all.max(f64::MIN_POSITIVE)).clamp(LEAST, 1.0 - LEAST);
        let masks = Masks { task, orders: &self.orders };
        let mut rates: Vec<Rates> =
            task.sublayers.iter().map(|_| Rates::at(share, 1, Grain::Matrix, Pattern::Unstructured)).collect();
        let mut prodigy = Prodigy::new(rates.iter().map(|r| &r.logits));
        let (judges, learned): (Vec<usize>, Vec<usize>) =
            (0..walk.mini_batches()).partition(|i| i % JUDGES == JUDGES - 1);
        let judges = if judges.is_empty() { learned.clone() } else { judges };
        let mut best = masks.settled(&rates, budget);
        let mut least = judge(walk, &judges, &best)?;
        let mut turns = Turns::new(learned, task.seed);
        for i in 0..self.settings.steps {
            (task.check)()?;
            let Masked { gradients, .. } = walk.masked(turns.next(), &masks.hard(&rates), TAU)?;
            let gradients = masks.gradients(&rates, &gradients, share);
            let mut logits: Vec<&mut Array2<f64>> = rates.iter_mut().map(|r| &mut r.logits).collect();
            prodigy.step(&mut logits, &gradients);
            if is_checked(i, self.settings.steps) {
                let keep = masks.settled(&rates, budget);
                let loss = judge(walk, &judges, &keep)?;
                if loss < least {
                    (least, best) = (loss, keep);
                }
            }
        }
        Ok(best)
    }
}

/// A tilt is moved on by no more than this, where halving it left it below what the budget needs.
const FURTHEST: f64 = 1e3;

/// A share is at least so far from none and from all.
const LEAST: f64 = 1e-3;

/// The mean loss of some mini-batches.
fn judge(walk: &mut dyn Walk, mini_batches: &[usize], keep: &[Vec<bool>]) -> Result<f64, Failure> {
    let mut sum = 0.0;
    for &i in mini_batches {
        sum += walk.masked(i, keep, TAU)?.loss;
    }
    Ok(sum / mini_batches.len().max(1) as f64)
}

impl Method for Besa {
    fn differentiates_at(&self, _sublayers: usize) -> Vec<usize> {
        vec![0]
    }

    fn keeps_heads_even(&self) -> bool {
        false
    }

    fn choose(&mut self, walk: &mut dyn Walk, task: &Task) -> Result<Vec<Outcome>, Failure> {
        if self.orders.is_empty() {
            self.order(walk, task)?;
        }
        let mut outcomes = vec![Outcome::untouched(task.sublayers); task.budgets.len()];
        for (outcome, &budget) in outcomes.iter_mut().zip(task.budgets) {
            let keep = self.learn(walk, task, budget)?;
            outcome.plan.decisions.iter_mut().zip(keep).for_each(|(decision, keep)| decision.keep = keep);
            outcome.scores = self.orders.iter().map(|order| places(order)).collect();
        }
        tune_all(walk, task.sublayers, &mut outcomes)?;
        Ok(outcomes)
    }
}

/// The place of every unit in the order in which they go.
fn places(order: &[usize]) -> Vec<f64> {
    let mut places = vec![0.0; order.len()];
    order.iter().enumerate().for_each(|(place, &unit)| places[unit] = place as f64);
    places
}

/// From rates to masks, and back.
struct Masks<'a> {
    task: &'a Task<'a>,
    orders: &'a [Vec<usize>],
}

impl Masks<'_> {
    /// The units that stay by the rates.
    fn hard(&self, rates: &[Rates]) -> Vec<Vec<bool>> {
        let hard = |(rates, order): (&Rates, &Vec<usize>)| {
            let gone = rates.counts(order.len())[0].min(order.len());
            without(order, gone)
        };
        rates.iter().zip(self.orders).map(hard).collect()
    }

    /// The same in numbers that are fast, where all rates are tilted alike until the budget pays for it, and each is as large
    /// as what is left pays for.
    fn settled(&self, rates: &[Rates], budget: f64) -> Vec<Vec<bool>> {
        let tilted = |tilt: f64| {
            let mut rates = rates.to_vec();
            rates.iter_mut().for_each(|r| r.tilt(tilt));
            let keep = |(t, (rates, order)): (usize, (&Rates, &Vec<usize>))| {
                let sublayer = &self.task.sublayers[t];
                let (all, step) = (order.len(), self.task.alignment.step(sublayer));
                let kept = all - rates.counts(all)[0].min(all);
                let kept = if kept == all { all } else { kept / step * step };
                let least = usize::from(!sublayer.can_go_whole());
                without(order, all - kept.max(least))
            };
            rates.iter().zip(self.orders).enumerate().map(keep).collect::<Vec<_>>()
        };
        // More goes with a larger tilt: the smallest at which what stays costs no more than the budget.
        let fits = |tilt: f64| f64::from(u8::from(self.cost(&tilted(tilt)) <= budget * (1.0 + 1e-9)));
        let (tilt, mut further) = (tilt_to(fits, 0.5), 1e-9);
        let mut keep = tilted(tilt);
        while self.cost(&keep) > budget * (1.0 + 1e-9) && further < FURTHEST {
            keep = tilted(tilt + further);
            further *= 10.0;
        }
        self.fill(&mut keep, budget);
        keep
    }

    /// Hands back what the budget still pays for, one number that is fast of every sublayer in turn.
    fn fill(&self, keep: &mut [Vec<bool>], budget: f64) {
        while (0..keep.len()).filter(|&t| self.widen(keep, t, budget)).count() > 0 {}
    }

    /// Keeps the next number of units of sublayer `t` that is fast, if the budget pays for it.
    fn widen(&self, keep: &mut [Vec<bool>], t: usize, budget: f64) -> bool {
        let (order, kept) = (&self.orders[t], keep[t].iter().filter(|k| **k).count());
        let more = (kept + self.task.alignment.step(&self.task.sublayers[t])).min(order.len());
        let before = std::mem::replace(&mut keep[t], without(order, order.len() - more));
        let fits = more > kept && self.cost(keep) <= budget * (1.0 + 1e-9);
        if !fits {
            keep[t] = before;
        }
        fits
    }

    fn cost(&self, keep: &[Vec<bool>]) -> f64 {
        let cost = |(t, keep): (usize, &Vec<bool>)| {
            let decision = Decision { keep: keep.clone(), tuned: None };
            self.task.costs.kept(t, &self.task.sublayers[t], &decision)
        };
        keep.iter().enumerate().map(cost).sum()
    }

    /// Gradients with respect to the logits, from mask gradients of columns.
    fn gradients(&self, rates: &[Rates], of_columns: &[Array1<f64>], share: f64) -> Vec<Array2<f64>> {
        let whole: Vec<f64> = self
            .task
            .sublayers
            .iter()
            .enumerate()
            .map(|(t, s)| self.task.costs.kept(t, s, &Decision::untouched(s)))
            .collect();
        let all: f64 = whole.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let by_rates: f64 = rates.iter().zip(&whole).map(|(r, cost)| r.means()[0] * cost).sum();
        let slope = penalty_slope(by_rates / all, share);
        let gradient = |(t, rates): (usize, &Rates)| {
            let (order, units) = (&self.orders[t], &self.task.sublayers[t].units);
            let of_unit = |&unit: &usize| units[unit].columns.iter().map(|&c| of_columns[t][c]).sum::<f64>();
            let sums: Vec<f64> = std::iter::once(0.0)
                .chain(order.iter().map(of_unit).scan(0.0, |sum, g| {
                    *sum += g;
                    Some(*sum)
                }))
                .collect();
            let counts = candidate_counts(Pattern::Unstructured, order.len());
            let sums = Array2::from_shape_fn((1, counts.len()), |(_, d)| sums[counts[d]]);
            rates.gradient(&sums, slope * whole[t] / all)
        };
        rates.iter().enumerate().map(gradient).collect()
    }
}

/// All units but the first `gone` of an order.
fn without(order: &[usize], gone: usize) -> Vec<bool> {
    let mut keep = vec![true; order.len()];
    order.iter().take(gone).for_each(|&unit| keep[unit] = false);
    keep
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::FakeWalk;

    fn kept(outcome: &Outcome) -> Vec<usize> {
        outcome.plan.decisions.iter().map(|d| d.kept()).collect()
    }

    #[test]
    fn sublayers_whose_units_cost_little_lose_more_and_the_budget_is_kept() {
        let mut walk = FakeWalk::new(3, 20);
        // Losing a unit of the first costs a hundred times what one of the others does.
        walk.gradients = vec![(0..3).map(|t| Array1::from_elem(20, if t == 0 { -1.0 } else { -0.01 })).collect(); 4];
        let each = walk.sublayers[0].units[0].flops;
        let mut method = Besa::new(Settings { steps: 100, ..Settings::default() });
        let outcome = method.choose(&mut walk.clone(), &walk.task(&[30.0 * each])).unwrap().remove(0);
        let kept = kept(&outcome);
        assert_eq!(kept.iter().sum::<usize>(), 30, "{kept:?}");
        assert!(kept[0] > 11 && kept[1] < 10 && kept[2] < 10, "{kept:?}");
    }

    #[test]
    fn units_go_in_the_order_of_their_importance() {
        let mut walk = FakeWalk::new(1, 4);
        walk.weights[0].row_mut(2).fill(1e-3);
        let budget = 3.0 * walk.sublayers[0].units[0].flops;
        let mut method = Besa::new(Settings::default());
        let outcome = method.choose(&mut walk.clone(), &walk.task(&[budget])).unwrap().remove(0);
        assert_eq!(outcome.plan.decisions[0].keep, [true, true, false, true]);
    }
}
