//! Adam (Kingma and Ba 2015, algorithm 1), with gradients clipped by their norm.

/// The moments of all weights.
pub struct Adam {
    moments: Vec<[Vec<f32>; 2]>,
    steps: i32,
}

/// beta_1, beta_2 and epsilon, as published.
const BETAS: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;

/// A gradient over all weights is at most so long.
const LONGEST: f64 = 1.0;

impl Adam {
    /// For weights of these sizes.
    pub fn new(sizes: impl IntoIterator<Item = usize>) -> Self {
        Self { moments: sizes.into_iter().map(|n| [vec![0.0; n], vec![0.0; n]]).collect(), steps: 0 }
    }

    /// Starts a step: what gradients of this norm are multiplied by.
    pub fn start(&mut self, norm: f64) -> f32 {
        self.steps += 1;
        (LONGEST / norm.max(LONGEST)) as f32
    }

    /// Moves weight `i` against its gradient times `scale`.
    pub fn step(&mut self, i: usize, weight: &mut [f32], gradient: &[f32], scale: f32, rate: f32) {
        let [first, second] = &mut self.moments[i];
        let [b1, b2] = BETAS;
        let [c1, c2] = BETAS.map(|b| 1.0 - b.powi(self.steps));
        let numbers = weight.iter_mut().zip(gradient).zip(first.iter_mut().zip(second));
        for ((w, g), (m, v)) in numbers {
            let g = g * scale;
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            *w -= rate * (*m / c1) / ((*v / c2).sqrt() + EPSILON);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_as_long_as_the_rate_whatever_the_gradient() {
        let mut adam = Adam::new([3]);
        let (mut weight, gradient) = ([1.0f32, 1.0, 1.0], [0.5f32, -2e-3, 0.0]);
        let scale = adam.start(0.5);
        adam.step(0, &mut weight, &gradient, scale, 0.1);
        assert!((weight[0] - 0.9).abs() < 1e-4 && (weight[1] - 1.1).abs() < 1e-4 && weight[2] == 1.0, "{weight:?}");
    }

    #[test]
    fn a_bowl_is_gone_down_to_its_bottom() {
        let (mut adam, mut weight) = (Adam::new([2]), [3.0f32, -2.0]);
        for _ in 0..400 {
            let gradient = [2.0 * (weight[0] - 1.0), 2.0 * weight[1]];
            let norm = gradient.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
            let scale = adam.start(norm);
            adam.step(0, &mut weight, &gradient, scale, 0.05);
        }
        assert!((weight[0] - 1.0).abs() < 1e-2 && weight[1].abs() < 1e-2, "{weight:?}");
    }
}
