//! Mask search: the units that hold most information and that the budget pays for.

use super::{Fisher, keeping};
use crate::discover::cost::{Costs, Curve};
use crate::discover::{Kind, Sublayer};
use crate::methods::Task;
use crate::plan::Plan;

/// A unit, as the search sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Unit {
    sublayer: usize,
    unit: usize,
    information: f64,
    cost: f64,
}

/// The units that stay for a budget (Kwon et al. 2022, Fisher-based mask search); neurons in multiples of what is fast.
pub(super) fn search(task: &Task, fisher: &Fisher, budget: f64) -> Plan {
    let information = fisher.diagonal();
    let kept = match task.costs {
        Costs::Flops | Costs::Parameters => by_cost(task, &information, budget),
        Costs::Time(curves) => by_time(task, &information, curves, budget),
    };
    let counts = aligned(task, &information, &kept, budget);
    let best = |(t, (s, &count)): (usize, (&Sublayer, &usize))| {
        keeping(s.units.len(), ranked(&information[t]).into_iter().take(count))
    };
    Plan { decisions: task.sublayers.iter().zip(&counts).enumerate().map(best).collect() }
}

/// The units of a sublayer, those with most information first.
fn ranked(information: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..information.len()).collect();
    order.sort_by(|&a, &b| information[b].total_cmp(&information[a]).then(a.cmp(&b)));
    order
}

/// How many units of every sublayer stay where each costs what it costs.
fn by_cost(task: &Task, information: &[Vec<f64>], budget: f64) -> Vec<usize> {
    let mut counts = vec![0; task.sublayers.len()];
    let (mut units, mut left) = (Vec::new(), budget);
    for (t, sublayer) in task.sublayers.iter().enumerate() {
        let mut own = in_order(task, t, &information[t]).into_iter().peekable();
        // Of a sublayer that cannot go whole, the best unit is paid for before all others.
        if let Some(best) = own.next_if(|_| !sublayer.can_go_whole()) {
            (counts[t], left) = (1, left - best.cost);
        }
        units.extend(own);
    }
    let (chosen, _) = best_split(&units, &|u: &Unit| task.sublayers[u.sublayer].kind == Kind::Head, left);
    chosen.iter().for_each(|u| counts[u.sublayer] += 1);
    counts
}

/// The units that hold most information for a budget: for every number of heads, the rest is filled with neurons. Also
/// their information.
fn best_split(units: &[Unit], is_head: &dyn Fn(&Unit) -> bool, budget: f64) -> (Vec<Unit>, f64) {
    let (mut heads, mut neurons): (Vec<Unit>, Vec<Unit>) = units.iter().partition(|u| is_head(u));
    let most_first = |units: &mut Vec<Unit>| {
        units.sort_by(|a, b| {
            b.information.total_cmp(&a.information).then((a.sublayer, a.unit).cmp(&(b.sublayer, b.unit)))
        });
    };
    most_first(&mut heads);
    most_first(&mut neurons);
    let (heads_sums, neuron_sums) = (sums(&heads), sums(&neurons));
    // Sums of many equal costs are off by a few units in the last place.
    let budget = budget * (1.0 + 1e-12);
    let filled = |n: usize| {
        let (cost, information) = heads_sums[n];
        let fits = neuron_sums.partition_point(|&(neurons, _)| cost + neurons <= budget);
        fits.checked_sub(1).map(|m| (n, m, information + neuron_sums[m].1))
    };
    // Of equals the first, as the loop of the paper has it.
    let best = (0..=heads.len()).filter_map(filled).fold(None, |best: Option<(usize, usize, f64)>, split| match best {
        Some(best) if best.2 >= split.2 => Some(best),
        _ => Some(split),
    });
    let (n, m, information) = best.unwrap_or((0, 0, 0.0));
    (heads.into_iter().take(n).chain(neurons.into_iter().take(m)).collect(), information)
}

/// Cost and information of the first 0, 1, 2, ... units.
fn sums(units: &[Unit]) -> Vec<(f64, f64)> {
    let mut sums = vec![(0.0, 0.0)];
    for unit in units {
        let (cost, information) = sums[sums.len() - 1];
        sums.push((cost + unit.cost, information + unit.information));
    }
    sums
}

/// A sublayer's time: a constant for as many units as are free, and a slope for each beyond.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Fit {
    constant: f64,
    free: usize,
    slope: f64,
}

impl Fit {
    /// The fit of a curve of at least one unit, with the number of free ones that fits best (least squares).
    fn of(curve: &Curve) -> Self {
        let nothing = curve.at(0);
        let points: Vec<(f64, f64)> =
            curve.points().iter().filter(|p| p.0 > 0).map(|&(n, time)| (n as f64, time - nothing)).collect();
        let fits = curve.points().iter().map(|p| p.0.max(1)).map(|free| Self::with(&points, free));
        let best = fits.min_by(|a, b| a.error(&points).total_cmp(&b.error(&points)));
        best.unwrap_or(Self { constant: 0.0, free: 0, slope: 0.0 })
    }

    /// The fit with so many free units: a line over how many there are beyond.
    fn with(points: &[(f64, f64)], free: usize) -> Self {
        let beyond = |n: f64| (n - free as f64).max(0.0);
        let count = points.len().max(1) as f64;
        let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), p| (x + beyond(p.0) / count, y + p.1 / count));
        let (xy, xx) = points
            .iter()
            .fold((0.0, 0.0), |(xy, xx), p| (xy + (beyond(p.0) - x) * (p.1 - y), xx + (beyond(p.0) - x).powi(2)));
        let slope = if xx > 0.0 { (xy / xx).max(0.0) } else { 0.0 };
        Self { constant: (y - slope * x).max(0.0), free, slope }
    }

    fn error(&self, points: &[(f64, f64)]) -> f64 {
        let at = |n: f64| self.constant + self.slope * (n - self.free as f64).max(0.0);
        points.iter().map(|&(n, time)| (at(n) - time).powi(2)).sum()
    }
}

/// How many units of every sublayer stay where a sublayer takes its time. For every number of attention and of
/// feed-forward sublayers that go whole, those whose free units hold least first: the others pay their constants, their
/// free units stay, and what is left is spent on the rest.
fn by_time(task: &Task, information: &[Vec<f64>], curves: &[Curve], budget: f64) -> Vec<usize> {
    let fits: Vec<Fit> = curves.iter().map(Fit::of).collect();
    let orders: Vec<Vec<usize>> = information.iter().map(|i| ranked(i)).collect();
    let base = |t: usize| orders[t].iter().take(fits[t].free).map(|&u| information[t][u]).sum::<f64>();
    let droppable = |kind: Kind| {
        let of_kind = |t: &usize| task.sublayers[*t].kind == kind && task.sublayers[*t].can_go_whole();
        let mut order: Vec<usize> = (0..task.sublayers.len()).filter(of_kind).collect();
        order.sort_by(|&a, &b| base(a).total_cmp(&base(b)).then(a.cmp(&b)));
        order
    };
    let (attentions, others) = (droppable(Kind::Head), droppable(Kind::Neuron));
    let mut best: Option<(Vec<usize>, f64)> = None;
    for dropped in (0..=attentions.len()).flat_map(|a| (0..=others.len()).map(move |f| (a, f))) {
        let gone: Vec<usize> = attentions[..dropped.0].iter().chain(&others[..dropped.1]).copied().collect();
        let stays: Vec<usize> = (0..task.sublayers.len()).filter(|t| !gone.contains(t)).collect();
        let left = budget - stays.iter().map(|&t| fits[t].constant).sum::<f64>();
        if left < 0.0 {
            continue;
        }
        let mut counts = vec![0; task.sublayers.len()];
        let mut units = Vec::new();
        for &t in &stays {
            counts[t] = fits[t].free.min(orders[t].len());
            let beyond = orders[t].iter().skip(counts[t]);
            let unit =
                |&unit: &usize| Unit { sublayer: t, unit, information: information[t][unit], cost: fits[t].slope };
            units.extend(beyond.map(unit));
        }
        let (chosen, added) = best_split(&units, &|u: &Unit| task.sublayers[u.sublayer].kind == Kind::Head, left);
        chosen.iter().for_each(|u| counts[u.sublayer] += 1);
        let all = added + stays.iter().map(|&t| base(t)).sum::<f64>();
        if best.as_ref().is_none_or(|(_, most)| all > *most) {
            best = Some((counts, all));
        }
    }
    best.map_or_else(|| task.sublayers.iter().map(|s| usize::from(!s.can_go_whole())).collect(), |(counts, _)| counts)
}

/// The counts as multiples of what is fast: rounded down, and what that leaves of the budget handed out again in whole
/// steps, where a step holds most information for its cost.
fn aligned(task: &Task, information: &[Vec<f64>], counts: &[usize], budget: f64) -> Vec<usize> {
    let steps: Vec<usize> = task.sublayers.iter().map(|s| task.alignment.step(s)).collect();
    let down = |t: usize| match counts[t] {
        all if all == task.sublayers[t].units.len() || all < steps[t] => all,
        count => count / steps[t] * steps[t],
    };
    let mut aligned: Vec<usize> = (0..counts.len()).map(down).collect();
    if aligned == counts {
        return aligned;
    }
    let sums: Vec<Vec<(f64, f64)>> = (0..counts.len()).map(|t| sums(&in_order(task, t, &information[t]))).collect();
    let mut left = budget * (1.0 + 1e-12) - aligned.iter().zip(&sums).map(|(&count, sums)| sums[count].0).sum::<f64>();
    loop {
        let wider = |t: usize| {
            let next = (aligned[t] + steps[t]).min(task.sublayers[t].units.len());
            let [now, then] = [aligned[t], next].map(|count| sums[t][count]);
            let (cost, held) = (then.0 - now.0, then.1 - now.1);
            let is_possible = steps[t] > 1 && next > aligned[t] && cost <= left;
            is_possible.then_some((t, next, cost, held / cost.max(f64::MIN_POSITIVE)))
        };
        let best = (0..aligned.len()).filter_map(wider).max_by(|a, b| a.3.total_cmp(&b.3));
        let Some((t, next, cost, _)) = best else { return aligned };
        (aligned[t], left) = (next, left - cost);
    }
}

/// The units of sublayer `t`, those with most information first, each with what it costs as one more.
fn in_order(task: &Task, t: usize, information: &[f64]) -> Vec<Unit> {
    let cost = |place: usize, unit: usize| task.costs.nth(t, &task.sublayers[t], unit, place + 1);
    let unit = |(place, unit): (usize, usize)| Unit {
        sublayer: t,
        unit,
        information: information[unit],
        cost: cost(place, unit),
    };
    ranked(information).into_iter().enumerate().map(unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::cost::Alignment;
    use crate::methods::testing::FakeWalk;
    use ndarray::Array2;

    fn unit(sublayer: usize, unit: usize, information: f64, cost: f64) -> Unit {
        Unit { sublayer, unit, information, cost }
    }

    /// Heads are those of even sublayers.
    fn is_head(unit: &Unit) -> bool {
        unit.sublayer.is_multiple_of(2)
    }

    #[test]
    fn the_split_is_that_of_all_pairs_of_counts() {
        let mixed = |i: usize| ((i * 7919 + 13) % 101) as f64;
        let heads: Vec<Unit> = (0..8).map(|i| unit(i % 2 * 2, i / 2, mixed(i), 9.0)).collect();
        let neurons: Vec<Unit> = (0..30).map(|i| unit(i % 2 * 2 + 1, i / 2, mixed(i + 50) / 9.0, 1.0)).collect();
        let all: Vec<Unit> = heads.iter().chain(&neurons).copied().collect();
        let most = |units: &[Unit], count: usize| {
            let mut held: Vec<f64> = units.iter().map(|u| u.information).collect();
            held.sort_by(|a, b| b.total_cmp(a));
            held.iter().take(count).sum::<f64>()
        };
        for budget in [0.0, 5.0, 20.0, 47.0, 80.0, 200.0] {
            let pairs = (0..=8).flat_map(|n| (0..=30).map(move |m| (n, m)));
            let fits = pairs.filter(|&(n, m)| 9.0 * n as f64 + m as f64 <= budget);
            let expected = fits.map(|(n, m)| most(&heads, n) + most(&neurons, m)).fold(0.0, f64::max);
            let (chosen, information) = best_split(&all, &is_head, budget);
            assert!((information - expected).abs() < 1e-9, "{budget}: {information} and not {expected}");
            assert!(chosen.iter().map(|u| u.cost).sum::<f64>() <= budget);
        }
    }

    #[test]
    fn heads_that_alone_are_too_dear_are_not_taken() {
        let units = [unit(0, 0, 100.0, 50.0), unit(1, 0, 1.0, 1.0), unit(1, 1, 2.0, 1.0)];
        let (chosen, information) = best_split(&units, &is_head, 10.0);
        assert_eq!((chosen.len(), information), (2, 3.0));
    }

    #[test]
    fn a_constant_and_a_slope_are_found_again() {
        let time = |n: usize| if n == 0 { 0.5 } else { 1.5 + 0.25 * n.saturating_sub(4) as f64 };
        let fit = Fit::of(&Curve::new([0, 1, 2, 4, 6, 8, 12].map(|n| (n, time(n))).to_vec()));
        assert!((fit.constant - 1.0).abs() < 1e-9 && (fit.slope - 0.25).abs() < 1e-9 && fit.free == 4, "{fit:?}");
    }

    fn fisher(walk: &FakeWalk, of: impl Fn(usize, usize) -> f64) -> Fisher {
        let matrix = |t: usize| Array2::from_shape_fn((walk.sublayers[t].units.len(), 1), |(u, _)| of(t, u));
        Fisher { gradients: (0..walk.sublayers.len()).map(matrix).collect() }
    }

    #[test]
    fn where_a_sublayer_takes_time_as_such_one_goes_whole() {
        let walk = FakeWalk::new(2, 4);
        let fisher = fisher(&walk, |t, u| if u < 2 { 3.0 + 0.1 * t as f64 } else { 1.0 });
        // Two units are free, and any are dear.
        let curve = || Curve::new(vec![(0, 0.0), (1, 4.0), (2, 4.0), (3, 5.0), (4, 6.0)]);
        let costs = Costs::Time(vec![curve(), curve()]);
        let counts = |budget: f64| {
            let task = Task { costs: &costs, ..walk.task(&[]) };
            search(&task, &fisher, budget).decisions.iter().map(|d| d.kept()).collect::<Vec<_>>()
        };
        assert_eq!(counts(12.0), [4, 4]);
        assert_eq!(counts(8.0), [2, 2]);
        assert_eq!(counts(7.0), [0, 4], "rather one whole than the shortest time of both");
        assert_eq!(counts(1.0), [0, 0]);
    }

    #[test]
    fn counts_are_multiples_within_the_budget() {
        let walk = FakeWalk::new(2, 8);
        let fisher = fisher(&walk, |t, u| (1 + t + u) as f64);
        let cost = walk.sublayers[0].units[0].flops;
        let task = Task { alignment: Alignment(Some(4)), ..walk.task(&[]) };
        let kept: Vec<usize> = search(&task, &fisher, 9.0 * cost).decisions.iter().map(|d| d.kept()).collect();
        assert!(kept.iter().all(|n| n % 4 == 0) && kept.iter().sum::<usize>() == 8, "{kept:?}");
    }

    #[test]
    fn what_cannot_go_whole_keeps_its_best_unit() {
        let mut walk = FakeWalk::new(2, 4);
        walk.sublayers[1].residual.joint = None;
        let fisher = fisher(&walk, |t, u| if t == 1 { 0.1 * u as f64 } else { 5.0 });
        let plan = search(&walk.task(&[]), &fisher, 2.0 * walk.sublayers[0].units[0].flops);
        assert_eq!((plan.decisions[0].kept(), plan.decisions[1].keep.clone()), (1, vec![false, false, false, true]));
    }
}
