//! Allocation: how many units every sublayer keeps, so that the errors of all together are least for a budget.

use super::curve::Curve;
use crate::methods::Task;

/// A number of units to keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    /// How many stay.
    pub(super) kept: usize,
    /// What they cost.
    pub(super) cost: f64,
    /// The error without the others.
    pub(super) error: f64,
}

/// The numbers of units that sublayer `t` may keep, from the least to all: those that are fast, and none only where it can
/// go whole.
pub(super) fn choices(task: &Task, t: usize, curve: &Curve) -> Vec<Choice> {
    let sublayer = &task.sublayers[t];
    let (all, step) = (curve.gone.len(), task.alignment.step(sublayer));
    let mut error: f64 = curve.gone.iter().map(|gone| gone.error).sum();
    let mut choices = vec![Choice { kept: 0, cost: 0.0, error }];
    let mut cost = 0.0;
    for (before, gone) in curve.gone.iter().rev().enumerate() {
        let kept = before + 1;
        cost += task.costs.nth(t, sublayer, gone.unit, kept);
        error -= gone.error;
        if kept % step == 0 || kept == all {
            choices.push(Choice { kept, cost, error: error.max(0.0) });
        }
    }
    if !sublayer.can_go_whole() && choices.len() > 1 {
        choices.remove(0);
    }
    choices
}

/// One choice for every sublayer, all together at most `budget`, with the least error that the convex hulls of the curves
/// give; what is left of the budget goes where it is worth most.
///
/// With a price m of cost each takes the choice of the least error + m cost; the price is the least at which all fit.
pub(super) fn allocate(choices: &[Vec<Choice>], budget: f64) -> Vec<Choice> {
    let at = |price: f64| -> Vec<Choice> {
        let value = |c: &Choice| c.error + price * c.cost;
        let cheapest = |of: &Vec<Choice>| of.iter().copied().min_by(|a, b| value(a).total_cmp(&value(b)));
        choices.iter().filter_map(cheapest).collect()
    };
    let budget = budget * (1.0 + 1e-12);
    let fits = |chosen: &[Choice]| chosen.iter().map(|c| c.cost).sum::<f64>() <= budget;
    let free = at(0.0);
    if fits(&free) {
        return free;
    }
    let error: f64 = choices.iter().flatten().map(|c| c.error).fold(f64::MIN_POSITIVE, f64::max);
    let cost = choices.iter().flatten().map(|c| c.cost).filter(|&c| c > 0.0).fold(f64::MAX, f64::min);
    // Between prices that are nothing and beyond everything; halved on a scale of ratios.
    let (mut low, mut high) = (error / cost * 1e-30, error / cost * 1e30);
    for _ in 0..BISECTIONS {
        let price = low.sqrt() * high.sqrt();
        if fits(&at(price)) { high = price } else { low = price }
    }
    let mut chosen = at(high);
    while let Some((t, better)) = upgrade(choices, &chosen, budget - chosen.iter().map(|c| c.cost).sum::<f64>()) {
        chosen[t] = better;
    }
    chosen
}

/// The same, where some sublayers keep equally many units: they choose as one, by the sum of their errors and costs.
pub(super) fn allocate_evenly(task: &Task, choices: &[Vec<Choice>], budget: f64) -> Vec<Choice> {
    let group = |t: usize| Some(task.even_with(t)).filter(|even| !even.is_empty()).unwrap_or_else(|| vec![t]);
    let groups: Vec<Vec<usize>> = (0..choices.len()).map(group).collect();
    let firsts: Vec<usize> = (0..choices.len()).filter(|&t| groups[t][0] == t).collect();
    let joint: Vec<Vec<Choice>> = firsts.iter().map(|&t| together(&groups[t], choices)).collect();
    let chosen = allocate(&joint, budget);
    let kept = |t: usize| {
        let place = firsts.iter().position(|&first| first == groups[t][0])?;
        let kept = chosen.get(place)?.kept;
        choices[t].iter().copied().find(|choice| choice.kept == kept)
    };
    (0..choices.len()).filter_map(kept).collect()
}

/// What some sublayers choose as one: the numbers that each of them may keep.
fn together(group: &[usize], choices: &[Vec<Choice>]) -> Vec<Choice> {
    let of = |t: usize, kept: usize| choices[t].iter().find(|choice| choice.kept == kept);
    let joint = |first: &Choice| {
        let all = group.iter().map(|&t| of(t, first.kept)).collect::<Option<Vec<_>>>()?;
        let sum = |of: fn(&Choice) -> f64| all.iter().copied().map(of).sum();
        Some(Choice { kept: first.kept, cost: sum(|c| c.cost), error: sum(|c| c.error) })
    };
    choices[group[0]].iter().filter_map(joint).collect()
}

/// So many halvings leave nothing between two prices.
const BISECTIONS: usize = 200;

/// The larger choice that `left` pays for and that takes off most error per cost.
fn upgrade(choices: &[Vec<Choice>], chosen: &[Choice], left: f64) -> Option<(usize, Choice)> {
    let worth = |from: &Choice, to: &Choice| (from.error - to.error) / (to.cost - from.cost).max(f64::MIN_POSITIVE);
    let larger = chosen.iter().zip(choices).enumerate().flat_map(|(t, (now, all))| {
        let fitting = all.iter().filter(move |c| c.kept > now.kept && c.cost - now.cost <= left);
        fitting.map(move |&c| (t, c, worth(now, &c)))
    });
    larger.max_by(|a, b| a.2.total_cmp(&b.2).then(b.0.cmp(&a.0))).map(|(t, choice, _)| (t, choice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::cost::Alignment;
    use crate::methods::obs::eliminate::Gone;
    use crate::methods::testing::FakeWalk;

    /// A sublayer in which units go in the order of their places, each with an error.
    fn curve(errors: &[f64]) -> Curve {
        Curve { gone: errors.iter().enumerate().map(|(unit, &error)| Gone { unit, error }).collect() }
    }

    /// Made of equal costs, and of what goes with each number that stays: from none to all.
    fn of_errors(errors: &[f64]) -> Vec<Choice> {
        errors.iter().enumerate().map(|(kept, &error)| Choice { kept, cost: kept as f64, error }).collect()
    }

    fn kept(chosen: &[Choice]) -> Vec<usize> {
        chosen.iter().map(|c| c.kept).collect()
    }

    #[test]
    fn choices_are_the_numbers_that_are_fast() {
        let walk = FakeWalk::new(2, 5);
        let each = walk.sublayers[0].units[0].flops;
        let mut task = walk.task(&[]);
        let curve = curve(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        let all = choices(&task, 0, &curve);
        assert_eq!(kept(&all), [0, 1, 2, 3, 4, 5]);
        assert_eq!(all[2], Choice { kept: 2, cost: 2.0 * each, error: 6.0 });
        task.alignment = Alignment(Some(2));
        assert_eq!(kept(&choices(&task, 0, &curve)), [0, 2, 4, 5]);
    }

    #[test]
    fn what_cannot_go_whole_keeps_something() {
        let mut walk = FakeWalk::new(1, 3);
        walk.sublayers[0].residual.joint = None;
        assert_eq!(kept(&choices(&walk.task(&[]), 0, &curve(&[0.0; 3]))), [1, 2, 3]);
    }

    #[test]
    fn it_is_the_best_of_all_allocations() {
        // Convex, so that the hull goes through every number.
        let all =
            [of_errors(&[9.0, 4.0, 2.0, 1.0]), of_errors(&[20.0, 12.0, 5.5, 0.0]), of_errors(&[3.0, 2.9, 2.85, 2.8])];
        for budget in 0..=9 {
            let chosen = allocate(&all, f64::from(budget));
            let error = |chosen: &[Choice]| chosen.iter().map(|c| c.error).sum::<f64>();
            let mut best = f64::MAX;
            for (a, b, c) in
                (0..64).map(|i| (i / 16, i / 4 % 4, i % 4)).filter(|(a, b, c)| a + b + c <= budget as usize)
            {
                best = best.min(error(&[all[0][a], all[1][b], all[2][c]]));
            }
            assert!(kept(&chosen).iter().sum::<usize>() <= budget as usize);
            assert!((error(&chosen) - best).abs() < 1e-12, "{budget}: {chosen:?}, best {best}");
        }
    }

    #[test]
    fn what_the_hull_leaves_of_a_budget_is_spent() {
        // The hull of the first jumps from none to all.
        let all = [of_errors(&[10.0, 9.0, 8.5, 0.0]), of_errors(&[1.0, 0.9, 0.8, 0.7])];
        assert_eq!(kept(&allocate(&all, 2.0)), [2, 0]);
        assert_eq!(kept(&allocate(&all, 3.0)), [3, 0]);
        assert_eq!(kept(&allocate(&all, 99.0)), [3, 3]);
    }
}
