//! Prodigy, which finds its own learning rate (Mishchenko and Defazio 2024, algorithm 4, the form of Adam).

use ndarray::{Array2, Zip};

/// beta_1, beta_2 and epsilon, as published.
const BETAS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;

/// The first estimate of how far the solution is: of logits, which move by some tenths. Its authors take 1e-6, from where it
/// grows for ten to twenty steps, a quarter of all there are here.
const FIRST: f64 = 1e-2;

/// The state of some matrices that are learned together.
pub(super) struct Prodigy {
    weights: Vec<State>,
    /// How far the solution is, as it seems; never less than it seemed before.
    distance: f64,
    numerator: f64,
}

/// The state of one of them.
struct State {
    start: Array2<f64>,
    first: Array2<f64>,
    second: Array2<f64>,
    sum: Array2<f64>,
}

impl Prodigy {
    /// For matrices that are `start` now.
    pub(super) fn new<'a>(start: impl IntoIterator<Item = &'a Array2<f64>>) -> Self {
        let state = |start: &Array2<f64>| {
            let zeros = || Array2::zeros(start.raw_dim());
            State { start: start.clone(), first: zeros(), second: zeros(), sum: zeros() }
        };
        Self { weights: start.into_iter().map(state).collect(), distance: FIRST, numerator: 0.0 }
    }

    /// Moves the matrices against their gradients.
    pub(super) fn step(&mut self, weights: &mut [&mut Array2<f64>], gradients: &[Array2<f64>]) {
        let [b1, b2] = BETAS;
        let (d, root) = (self.distance, BETAS[1].sqrt());
        let mut along = 0.0;
        for ((state, weight), gradient) in self.weights.iter_mut().zip(weights.iter()).zip(gradients) {
            Zip::from(&mut state.first).and(&mut state.second).and(&mut state.sum).and(gradient).for_each(
                |m, v, s, &g| {
                    *m = b1 * *m + (1.0 - b1) * d * g;
                    *v = b2 * *v + (1.0 - b2) * d * d * g * g;
                    *s = root * *s + (1.0 - root) * d * d * g;
                },
            );
            along += (gradient * &(&state.start - &**weight)).sum();
        }
        self.numerator = root * self.numerator + (1.0 - root) * d * d * along;
        let sum: f64 = self.weights.iter().map(|state| state.sum.iter().map(|s| s.abs()).sum::<f64>()).sum();
        for (state, weight) in self.weights.iter().zip(weights) {
            Zip::from(&mut **weight).and(&state.first).and(&state.second).for_each(|w, &m, &v| {
                *w -= d * m / (v.sqrt() + d * EPSILON);
            });
        }
        if sum > 0.0 {
            self.distance = d.max(self.numerator / sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn bowls_of_any_size_are_gone_down_without_a_rate_to_choose() {
        for size in [0.1, 1.0, 1e3] {
            let bottom = array![[3.0 * size, -2.0 * size]];
            let mut weight = array![[0.0, 0.0]];
            let mut prodigy = Prodigy::new([&weight]);
            for _ in 0..1500 {
                let gradient = (&weight - &bottom) * 2.0;
                prodigy.step(&mut [&mut weight], &[gradient]);
            }
            let away = (&weight - &bottom).iter().map(|x| x.abs()).fold(0.0, f64::max);
            assert!(away < 0.05 * size, "{weight} {size}");
        }
    }

    #[test]
    fn the_distance_never_falls_and_nothing_moves_without_a_gradient() {
        let mut weight = array![[1.0]];
        let mut prodigy = Prodigy::new([&weight]);
        prodigy.step(&mut [&mut weight], &[array![[0.0]]]);
        assert_eq!((weight[[0, 0]], prodigy.distance), (1.0, FIRST));
        let mut last = prodigy.distance;
        for i in 0..50 {
            let gradient = array![[if i % 2 == 0 { 1.0 } else { -0.5 }]];
            prodigy.step(&mut [&mut weight], &[gradient]);
            assert!(prodigy.distance >= last);
            last = prodigy.distance;
        }
    }
}
