//! Units drawn at random: what every other method must beat.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::one_shot::by_scores;
use super::{Failure, Method, Outcome, Task, Walk};

/// Every unit is as likely to stay as any other, heads and neurons alike.
pub struct Random;

impl Method for Random {
    fn choose(&mut self, walk: &mut dyn Walk, task: &Task) -> Result<Vec<Outcome>, Failure> {
        let mut random = ChaCha8Rng::seed_from_u64(task.seed);
        let mut draw = |units: usize| (0..units).map(|_| random.random_range(0.0..1.0)).collect();
        let scores: Vec<Vec<f64>> = task.sublayers.iter().map(|s| draw(s.units.len())).collect();
        by_scores(walk, task, &scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::FakeWalk;

    #[test]
    fn the_seed_decides_and_the_budget_is_kept() {
        let walk = FakeWalk::new(4, 8);
        let all: f64 = walk.sublayers.iter().map(|s| s.flops()).sum();
        let choose = |seed| {
            let budgets = [0.5 * all];
            let task = Task { seed, ..walk.task(&budgets) };
            let outcome = Random.choose(&mut walk.clone(), &task).unwrap().remove(0);
            outcome.plan.decisions.into_iter().map(|d| d.keep).collect::<Vec<_>>()
        };
        assert_eq!(choose(1), choose(1));
        assert_ne!(choose(1), choose(2));
        assert_eq!(choose(3).concat().iter().filter(|keep| **keep).count(), 16);
    }
}
