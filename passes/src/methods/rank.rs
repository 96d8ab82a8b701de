//! Units ranked by a score per cost, and the best of them that a budget pays for.

use super::Task;
use crate::discover::Sublayer;
use crate::discover::cost::Costs;
use crate::plan::Decision;

/// A unit, as the search sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its sublayer.
    pub sublayer: usize,
    /// Its place among the sublayer's units.
    pub unit: usize,
    /// What it is worth per cost; the higher, the sooner it stays.
    pub score: f64,
    /// What it costs to keep it.
    pub cost: f64,
    /// Whether it is the last of its sublayer that may go, and the sublayer cannot.
    pub must_stay: bool,
}

/// The candidates among the units of the sublayers from `first` on; `scores` are theirs, by sublayer and unit, and per
/// cost, so that the better stays first. The best of a sublayer that cannot go whole stays before all others, so that the
/// budget pays for it first.
pub fn candidates(sublayers: &[Sublayer], first: usize, scores: &[Vec<f64>], costs: &Costs) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for ((t, sublayer), scores) in sublayers.iter().enumerate().skip(first).zip(scores) {
        let mut ranked: Vec<(usize, f64)> = scores.iter().copied().enumerate().collect();
        // The best stay first, so each costs what one more costs then.
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        candidates.extend(ranked.into_iter().enumerate().map(|(place, (unit, score))| Candidate {
            sublayer: t,
            unit,
            score,
            must_stay: place == 0 && !sublayer.can_go_whole(),
            cost: costs.nth(t, sublayer, unit, place + 1),
        }));
    }
    candidates
}

/// Which units of sublayer `t` stay, when those of `t` and of all sublayers downstream may together cost `budget`; as
/// many as are fast, and at least one where the sublayer cannot go whole. What was `decided` upstream binds the sublayers
/// that keep equally many.
pub fn select(task: &Task, t: usize, candidates: &[Candidate], budget: f64, decided: &[Decision]) -> Vec<bool> {
    let sublayer = &task.sublayers[t];
    let even = task.even_with(t);
    if !even.is_empty() {
        let first = even[0];
        let count = if first < t { decided[first].kept() } else { even_count(task, &even, candidates, budget) };
        return best(sublayer, candidates, t, count);
    }
    let (candidates, budget) = without_bound(task, t, candidates, budget, decided);
    let candidates = candidates.as_slice();
    let mut kept = align(candidates, t, search(candidates, t, budget), task.alignment.step(sublayer), budget);
    if kept.is_empty() && !sublayer.can_go_whole() {
        // Its output is normalised, and a norm of nothing is nothing to go on with.
        let own = candidates.iter().filter(|c| c.sublayer == t);
        kept.extend(own.max_by(|a, b| a.score.total_cmp(&b.score)).map(|best| best.unit));
    }
    let mut keep = vec![false; sublayer.units.len()];
    kept.into_iter().for_each(|unit| keep[unit] = true);
    keep
}

/// How many units each of some sublayers keeps that keep equally many: the mean of what they would keep, less where the
/// budget does not allow that, and at least one.
fn even_count(task: &Task, even: &[usize], candidates: &[Candidate], budget: f64) -> usize {
    let kept: usize = even.iter().map(|&t| search(candidates, t, budget).len()).sum();
    let mean = (kept as f64 / even.len() as f64).round() as usize;
    let step = task.alignment.step(&task.sublayers[even[0]]).max(1);
    let fits = |count: &usize| even.iter().map(|&t| cost_of(task, t, candidates, *count)).sum::<f64>() <= budget;
    let most = task.sublayers[even[0]].units.len();
    let aligned = |count: usize| if count == most { count } else { count / step * step };
    (1..=mean.clamp(1, most)).rev().map(aligned).filter(|&count| count > 0).find(fits).unwrap_or(1)
}

/// What the best units of sublayer `t` cost, so many of them.
fn cost_of(task: &Task, t: usize, candidates: &[Candidate], count: usize) -> f64 {
    let own: Vec<Candidate> = candidates.iter().filter(|c| c.sublayer == t).copied().collect();
    let units = ranked(&own).into_iter().take(count).map(|c| c.unit);
    units.enumerate().map(|(i, unit)| task.costs.nth(t, &task.sublayers[t], unit, i + 1)).sum()
}

/// The best units of sublayer `t`, so many of them.
fn best(sublayer: &Sublayer, candidates: &[Candidate], t: usize, count: usize) -> Vec<bool> {
    let own: Vec<Candidate> = candidates.iter().filter(|c| c.sublayer == t).copied().collect();
    let mut keep = vec![false; sublayer.units.len()];
    ranked(&own).into_iter().take(count).for_each(|c| keep[c.unit] = true);
    keep
}

/// The candidates that are free, and what is left of a budget for them, where sublayers downstream keep as many units as
/// one did that is decided.
fn without_bound(
    task: &Task,
    t: usize,
    candidates: &[Candidate],
    budget: f64,
    decided: &[Decision],
) -> (Vec<Candidate>, f64) {
    let bound = |s: usize| task.even_with(s).first().copied().filter(|&first| first < t);
    let downstream = t + 1..task.sublayers.len();
    let reserved: f64 = downstream
        .clone()
        .filter_map(|s| bound(s).map(|first| cost_of(task, s, candidates, decided[first].kept())))
        .sum();
    let is_free = |c: &&Candidate| bound(c.sublayer).is_none();
    (candidates.iter().filter(is_free).copied().collect(), (budget - reserved).max(0.0))
}

/// The units of sublayer `target` that stay, when units of `target` and of all sublayers downstream may together cost
/// at most `budget`: those whose score is over the threshold at which all that are over it fit.
pub fn search(candidates: &[Candidate], target: usize, budget: f64) -> Vec<usize> {
    in_order(fitting(ranked(candidates), budget).filter(|c| c.sublayer == target))
}

/// The units of sublayer `target` that stay when they are to be a multiple of `step`: the multiple that is
/// nearest to the number of those `kept`, and not zero; a smaller one where `budget`, for this sublayer
/// alone, does not allow it. None or all stay none or all, as do a few that make no multiple.
pub fn align(candidates: &[Candidate], target: usize, kept: Vec<usize>, step: usize, budget: f64) -> Vec<usize> {
    let own: Vec<Candidate> = candidates.iter().filter(|c| c.sublayer == target).copied().collect();
    if kept.is_empty() || kept.len() == own.len() || step < 2 {
        return kept;
    }
    let affordable = fitting(ranked(&own), budget).count();
    let nearest = ((kept.len() + step / 2) / step * step).max(step).min(own.len());
    let count = if nearest <= affordable { nearest } else { affordable / step * step };
    if count == 0 { kept } else { in_order(ranked(&own).into_iter().take(count)) }
}

/// From the best to the worst, after those that must stay.
fn ranked(candidates: &[Candidate]) -> Vec<&Candidate> {
    let mut ranked: Vec<&Candidate> = candidates.iter().collect();
    let place = |c: &Candidate| (c.sublayer, c.unit);
    let better = |a: &Candidate, b: &Candidate| b.must_stay.cmp(&a.must_stay).then(b.score.total_cmp(&a.score));
    ranked.sort_by(|a, b| better(a, b).then(place(a).cmp(&place(b))));
    ranked
}

/// The first of them that together cost no more than `budget`.
fn fitting(ranked: Vec<&Candidate>, budget: f64) -> impl Iterator<Item = &Candidate> {
    // Sums of many equal costs are off by a few units in the last place.
    let budget = budget * (1.0 + 1e-12);
    ranked
        .into_iter()
        .scan(0.0, |used, c| {
            *used += c.cost;
            Some((c, *used))
        })
        .take_while(move |(_, used)| *used <= budget)
        .map(|(c, _)| c)
}

fn in_order<'a>(units: impl Iterator<Item = &'a Candidate>) -> Vec<usize> {
    let mut units: Vec<usize> = units.map(|c| c.unit).collect();
    units.sort_unstable();
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(sublayer: usize, unit: usize, score: f64, cost: f64) -> Candidate {
        Candidate { sublayer, unit, score, cost, must_stay: false }
    }

    #[test]
    fn the_threshold_is_shared_by_all_sublayers_downstream() {
        let units = [
            candidate(0, 0, 5.0, 2.0),
            candidate(0, 1, 1.0, 2.0),
            candidate(1, 0, 3.0, 1.0),
            candidate(1, 1, 2.0, 1.0),
        ];
        assert_eq!(search(&units, 0, 4.0), [0]);
        assert_eq!(search(&units, 1, 4.0), [0, 1]);
        assert_eq!(search(&units, 0, 6.0), [0, 1]);
        assert_eq!(search(&units, 0, 1.0), [] as [usize; 0]);
    }

    #[test]
    fn equal_scores_are_ranked_by_place() {
        let units = [candidate(0, 1, 1.0, 1.0), candidate(0, 0, 1.0, 1.0)];
        assert_eq!(search(&units, 0, 1.0), [0]);
    }

    #[test]
    fn a_unit_that_must_stay_is_paid_for_before_all_others() {
        let mut walk = crate::methods::testing::FakeWalk::new(2, 3);
        walk.sublayers[1].residual.joint = None;
        let scores = [vec![9.0, 8.0, 7.0], vec![1.0, 3.0, 2.0]];
        let found = candidates(&walk.sublayers, 0, &scores, &Costs::Flops);
        let cost = found[0].cost;
        assert_eq!(search(&found, 1, cost), [1], "the best of it, though others are better");
        assert_eq!((search(&found, 0, cost), search(&found, 0, 2.0 * cost)), (vec![], vec![0]));
    }

    #[test]
    fn kept_units_are_rounded_to_a_multiple_that_the_budget_allows() {
        let units: Vec<_> = (0..10).map(|u| candidate(0, u, u as f64, 2.0)).collect();
        let count = |kept: usize, budget: f64| align(&units, 0, (10 - kept..10).collect(), 4, budget).len();
        assert_eq!([count(5, 99.0), count(6, 99.0), count(1, 99.0), count(9, 99.0)], [4, 8, 4, 8]);
        assert_eq!([count(6, 15.0), count(2, 7.0), count(0, 99.0), count(10, 99.0)], [4, 2, 0, 10]);
        assert_eq!(align(&units, 0, vec![5, 6, 7, 8, 9], 4, 99.0), [6, 7, 8, 9]);
    }
}
