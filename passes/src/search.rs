//! Which units of a sublayer stay: knowledge-preserving mask search (KPMS).

/// Weights of the parts of a score; the published defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Of the predictive knowledge.
    pub pred: f64,
    /// Of the representational knowledge.
    pub rep: f64,
    /// Of heads against neurons.
    pub head: f64,
}

impl Default for Weights {
    /// Park, Choi, Kang (ICLR 2024).
    fn default() -> Self {
        Self { pred: 1.0, rep: 2.5e-4, head: 64.0 }
    }
}

/// A unit, as the search sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its sublayer.
    pub sublayer: usize,
    /// Its place among the sublayer's units.
    pub unit: usize,
    /// Knowledge per cost, weighted; the higher, the sooner it stays.
    pub score: f64,
    /// What it costs to keep it.
    pub cost: f64,
}

/// (lambda_pred K_pred + lambda_rep K_rep) / cost, times mu for heads. What costs nothing stays first.
pub fn score(weights: Weights, predictive: f64, representational: f64, cost: f64, is_head: bool) -> f64 {
    let factor = if is_head { weights.head } else { 1.0 };
    let knowledge = factor * (weights.pred * predictive + weights.rep * representational);
    if cost > 0.0 { knowledge / cost } else { f64::MAX }
}

/// The units of sublayer `target` that stay, when units of `target` and of all sublayers above may
/// together keep cost at most `budget`: those above the threshold at which what is above it fits.
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

/// From the best to the worst.
fn ranked(candidates: &[Candidate]) -> Vec<&Candidate> {
    let mut ranked: Vec<&Candidate> = candidates.iter().collect();
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score).then((a.sublayer, a.unit).cmp(&(b.sublayer, b.unit))));
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
        Candidate { sublayer, unit, score, cost }
    }

    #[test]
    fn the_threshold_is_shared_by_all_sublayers_above() {
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
    fn kept_units_are_rounded_to_a_multiple_that_the_budget_allows() {
        let units: Vec<_> = (0..10).map(|u| candidate(0, u, u as f64, 2.0)).collect();
        let count = |kept: usize, budget: f64| align(&units, 0, (10 - kept..10).collect(), 4, budget).len();
        assert_eq!([count(5, 99.0), count(6, 99.0), count(1, 99.0), count(9, 99.0)], [4, 8, 4, 8]);
        assert_eq!([count(6, 15.0), count(2, 7.0), count(0, 99.0), count(10, 99.0)], [4, 2, 0, 10]);
        assert_eq!(align(&units, 0, vec![5, 6, 7, 8, 9], 4, 99.0), [6, 7, 8, 9]);
    }

    #[test]
    fn the_published_score_weighs_heads_and_costs() {
        let weights = Weights::default();
        assert_eq!(score(weights, 2.0, 4000.0, 3.0, false), 1.0);
        assert_eq!(score(weights, 2.0, 4000.0, 3.0, true), 64.0);
    }
}
