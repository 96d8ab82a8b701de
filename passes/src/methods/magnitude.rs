//! Units with small weights go: the oldest method there is, and a measure for the others.

use ndarray::Axis;

use super::one_shot::by_scores;
use super::{Failure, Method, Outcome, Task, Walk};

/// A unit's score is the squared norm of its rows of the projection, per cost.
pub struct Magnitude;

impl Method for Magnitude {
    fn choose(&mut self, walk: &mut dyn Walk, task: &Task) -> Result<Vec<Outcome>, Failure> {
        let mut scores = Vec::new();
        for (t, sublayer) in task.sublayers.iter().enumerate() {
            let norms = walk.projection(t)?.weight.mapv_into(|w| w * w).sum_axis(Axis(1));
            let norm = |columns: &[usize]| columns.iter().map(|&c| norms[c]).sum::<f64>();
            let cost = |unit| task.costs.unit(t, sublayer, unit).max(f64::MIN_POSITIVE);
            let own = sublayer.units.iter().enumerate().map(|(unit, u)| norm(&u.columns) / cost(unit));
            scores.push(own.collect::<Vec<f64>>());
        }
        by_scores(walk, task, &scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::FakeWalk;

    #[test]
    fn sublayers_with_caches_keep_equally_many_of_their_best() {
        let mut walk = FakeWalk::new(3, 4);
        [0, 2].into_iter().for_each(|t| walk.sublayers[t].has_cache = true);
        [1, 2, 3].into_iter().for_each(|unit| walk.weights[2].row_mut(unit).fill(1e-3));
        let budget = 7.0 * walk.sublayers[0].units[0].flops;
        let outcome = Magnitude.choose(&mut walk.clone(), &walk.task(&[budget])).unwrap().remove(0);
        let kept: Vec<usize> = outcome.plan.decisions.iter().map(|d| d.kept()).collect();
        assert_eq!(kept[0], kept[2], "{kept:?}");
        assert!(kept.iter().sum::<usize>() <= 7 && outcome.plan.decisions[2].keep[0]);
    }

    #[test]
    fn the_smallest_rows_go_wherever_they_are() {
        let mut walk = FakeWalk::new(2, 4);
        walk.weights[0].row_mut(1).fill(1e-3);
        walk.weights[1].row_mut(3).fill(1e-3);
        walk.weights[1].row_mut(0).fill(2e-3);
        let budget = 5.0 * walk.sublayers[0].units[0].flops;
        let outcome = Magnitude.choose(&mut walk.clone(), &walk.task(&[budget])).unwrap().remove(0);
        assert_eq!(outcome.plan.decisions[0].keep, [true, false, true, true]);
        assert_eq!(outcome.plan.decisions[1].keep, [false, true, true, false]);
    }
}
