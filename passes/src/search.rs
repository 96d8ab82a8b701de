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
    /// Knowledge per FLOP, weighted; the higher, the sooner it stays.
    pub score: f64,
    /// Its FLOPs.
    pub flops: f64,
}

/// (lambda_pred K_pred + lambda_rep K_rep) / FLOPs, times mu for heads.
pub fn score(weights: Weights, predictive: f64, representational: f64, flops: f64, is_head: bool) -> f64 {
    let factor = if is_head { weights.head } else { 1.0 };
    factor * (weights.pred * predictive + weights.rep * representational) / flops
}

/// The units of sublayer `target` that stay, when units of `target` and of all sublayers above may
/// together keep at most `budget` FLOPs: those above the threshold at which what is above it fits.
pub fn search(candidates: &[Candidate], target: usize, budget: f64) -> Vec<usize> {
    let mut ranked: Vec<&Candidate> = candidates.iter().collect();
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score).then((a.sublayer, a.unit).cmp(&(b.sublayer, b.unit))));
    // Sums of many equal costs are off by a few units in the last place.
    let budget = budget * (1.0 + 1e-12);
    let mut used = 0.0;
    let fitting = ranked.into_iter().take_while(|c| {
        used += c.flops;
        used <= budget
    });
    let mut kept: Vec<usize> = fitting.filter(|c| c.sublayer == target).map(|c| c.unit).collect();
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(sublayer: usize, unit: usize, score: f64, flops: f64) -> Candidate {
        Candidate { sublayer, unit, score, flops }
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
    fn the_published_score_weighs_heads_and_costs() {
        let weights = Weights::default();
        assert_eq!(score(weights, 2.0, 4000.0, 3.0, false), 1.0);
        assert_eq!(score(weights, 2.0, 4000.0, 3.0, true), 64.0);
    }
}
