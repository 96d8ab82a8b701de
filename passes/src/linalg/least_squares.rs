//! Least squares from sums over tokens: a projection that makes up for what was removed.
//!
//! Plain linear algebra; no graph is known here.

use ndarray::{Array2, s};

use super::positive::{column_major, solve};
use super::{in_blocks, joined};

/// Ridges, relative to the mean of the Gram matrix's diagonal, of which one is chosen on rows that were held out. Sums of
/// products in f32 of features that depend on each other are not quite positive, so that none is not among them.
pub const RIDGES: [f64; 4] = [1e-7, 1e-5, 1e-3, 1e-1];

/// Sums over tokens for one sublayer: Fa are its kept features and a column of ones, Y the target.
#[derive(Clone, Debug)]
pub struct Sums {
    /// Fa^T Fa: [kept + 1, kept + 1].
    pub gram: Array2<f64>,
    /// Fa^T Y: [kept + 1, outputs].
    pub cross: Array2<f64>,
    /// ||Y||^2.
    pub energy: f64,
}

impl Sums {
    /// Empty sums for `kept` columns and `outputs` outputs.
    pub fn zeros(kept: usize, outputs: usize) -> Self {
        Self { gram: Array2::zeros((kept + 1, kept + 1)), cross: Array2::zeros((kept + 1, outputs)), energy: 0.0 }
    }

    /// ||Y - Fa W||^2 / ||Y||^2, square root taken; 0 where there is no target, infinite where a weight is.
    pub fn error(&self, weight: &Array2<f64>) -> f64 {
        let missing = self.energy - self.explained(weight);
        match self.energy > 0.0 {
            // Nothing is larger than NaN, nor smaller.
            _ if missing.is_nan() => f64::INFINITY,
            true => (missing.max(0.0) / self.energy).sqrt(),
            false => 0.0,
        }
    }

    /// ||Y||^2 - ||Y - Fa W||^2.
    pub fn explained(&self, weight: &Array2<f64>) -> f64 {
        let explained = in_blocks(weight.ncols(), |columns| {
            let [weight, cross] = [weight, &self.cross].map(|m| m.slice(s![.., columns.clone()]));
            let (fitted, norm) = ((&cross * &weight).sum(), (&weight * &self.gram.dot(&weight)).sum());
            2.0 * fitted - norm
        });
        explained.iter().sum()
    }

    /// The sums of these rows and of others together.
    pub fn with(&self, other: &Self) -> Self {
        Self { gram: &self.gram + &other.gram, cross: &self.cross + &other.cross, energy: self.energy + other.energy }
    }

    /// The sums for every `step`th output; their energy is that of all.
    pub fn thinned(&self, step: usize) -> Self {
        Self { cross: self.cross.slice(s![.., ..; step]).to_owned(), gram: self.gram.clone(), energy: self.energy }
    }

    /// The least-squares weight, [kept + 1, outputs], near to `prior`, of the same shape; the last row is what to add to the
    /// bias, that of `prior` unless `with_bias`.
    ///
    /// Minimises ||Y - Fa W||^2 + e ||W - prior||^2, e being `ridge` times the mean of the Gram matrix's diagonal: the normal
    /// equations, by Cholesky; with larger ridges where that fails; where it fails with all, `prior` it is.
    pub fn solve(&self, prior: &Array2<f64>, ridge: f64, with_bias: bool) -> Array2<f64> {
        let rows = self.gram.nrows();
        let used = if with_bias { rows } else { rows - 1 };
        let mut weight = prior.clone();
        if used == 0 {
            return weight;
        }
        let mut gram = column_major(self.gram.slice(s![..used, ..used]));
        let missing = in_blocks(prior.ncols(), |columns| {
            let [prior, cross] = [prior, &self.cross].map(|m| m.slice(s![..used, columns.clone()]));
            &cross - &gram.dot(&prior)
        });
        let missing = joined(&missing, used);
        if let Some(apart) = with_ridge(&mut gram, ridge, |gram| solve(gram, missing.view())) {
            weight.slice_mut(s![..used, ..]).scaled_add(1.0, &apart);
        }
        weight
    }
}

/// What `attempt` makes of a Gram matrix with a ridge, relative to the mean of its diagonal, or else with the larger ones of
/// [`RIDGES`]; the last that was tried stays in the matrix.
pub(crate) fn with_ridge<T>(
    gram: &mut Array2<f64>,
    ridge: f64,
    mut attempt: impl FnMut(&Array2<f64>) -> Option<T>,
) -> Option<T> {
    let mean = gram.diag().mean().unwrap_or(0.0).max(f64::MIN_POSITIVE);
    let mut added = 0.0;
    let larger = RIDGES.into_iter().filter(|&other| other > ridge);
    std::iter::once(ridge).chain(larger).find_map(|ridge| {
        gram.diag_mut().mapv_inplace(|d| d + ridge * mean - added);
        added = ridge * mean;
        attempt(gram)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Axis, array, concatenate};
    use ndarray_linalg::{Cholesky, UPLO};

    impl Sums {
        /// With the least ridge, toward nothing.
        fn solve_plain(&self, with_bias: bool) -> Array2<f64> {
            self.solve(&Array2::zeros(self.cross.raw_dim()), RIDGES[0], with_bias)
        }
    }

    /// The sums of features and targets given row by row.
    fn sums(features: &Array2<f64>, target: &Array2<f64>) -> Sums {
        let ones = Array2::ones((features.nrows(), 1));
        let features = concatenate(Axis(1), &[features.view(), ones.view()]).unwrap();
        Sums {
            gram: features.t().dot(&features),
            cross: features.t().dot(target),
            energy: target.mapv(|y| y * y).sum(),
        }
    }

    #[test]
    fn an_exact_projection_is_found() {
        let features = array![[1., 0., 2.], [0., 1., 1.], [3., 1., 0.], [1., 1., 1.], [2., 0., 1.]];
        let weight = array![[1., -1.], [0.5, 2.], [-2., 0.]];
        let found = sums(&features, &features.dot(&weight)).solve_plain(false);
        assert!((&found.slice(s![..3, ..]) - &weight).iter().all(|d| d.abs() < 1e-5));
        assert_eq!(found.row(3), array![0., 0.]);
        assert!(sums(&features, &features.dot(&weight)).error(&found) < 1e-5);
    }

    #[test]
    fn a_bias_is_fitted_where_asked_for() {
        let features = array![[1.], [2.], [4.]];
        let target = array![[5.], [7.], [11.]];
        let found = sums(&features, &target).solve_plain(true);
        assert!((found[[0, 0]] - 2.0).abs() < 1e-4 && (found[[1, 0]] - 3.0).abs() < 1e-4);
    }

    #[test]
    fn equal_columns_do_not_break_the_solution() {
        let features = array![[1., 1.], [2., 2.], [3., 3.]];
        let sums = sums(&features, &array![[2.], [4.], [6.]]);
        assert!(sums.error(&sums.solve_plain(false)) < 1e-3);
    }

    #[test]
    fn rounding_that_makes_a_gram_matrix_indefinite_is_overcome_by_the_ridge() {
        let features = array![[1., 2., 3.], [2., 4., 6.], [1., 2., 3.1]];
        let mut sums = sums(&features, &features.dot(&array![[1.], [0.], [2.]]));
        sums.gram[[1, 1]] -= 1e-5;
        assert!(sums.gram.slice(s![..3, ..3]).cholesky(UPLO::Lower).is_err());
        assert!(sums.error(&sums.solve_plain(false)) < 1e-2);
    }

    #[test]
    fn a_solution_is_the_same_on_any_number_of_threads() {
        let features = Array2::from_shape_fn((300, 40), |(i, j)| ((i * 37 + j * 11) % 23) as f64 - (j % 5) as f64);
        let target = Array2::from_shape_fn((300, 200), |(i, j)| ((i * 13 + j * 7) % 31) as f64);
        let sums = sums(&features, &target);
        let solved = [1, 3].map(|threads| {
            crate::linalg::use_threads(threads);
            let weight = sums.solve_plain(true);
            (sums.error(&weight), weight)
        });
        assert_eq!(solved[0], solved[1]);
        assert!(solved[0].0 < 1.0);
    }

    #[test]
    fn weights_that_are_not_finite_are_infinitely_wrong() {
        let sums = sums(&array![[1.], [2.]], &array![[1.], [2.]]);
        assert_eq!(sums.error(&array![[f64::INFINITY], [0.0]]), f64::INFINITY);
        assert_eq!(sums.error(&array![[f64::NAN], [0.0]]), f64::INFINITY);
    }

    #[test]
    fn without_columns_only_the_mean_is_left() {
        let found = sums(&Array2::zeros((4, 0)), &array![[1.], [2.], [3.], [6.]]).solve_plain(true);
        assert!((found[[0, 0]] - 3.0).abs() < 1e-6);
    }

    #[test]
    fn a_large_ridge_leaves_what_was_there() {
        let sums = sums(&array![[1.], [2.], [4.]], &array![[5.], [7.], [11.]]);
        let prior = array![[1.0], [0.25]];
        let near =
            |weight: Array2<f64>, expected: [f64; 2]| weight.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3);
        assert!(near(sums.solve(&prior, 1e9, true), [1.0, 0.25]));
        assert!(near(sums.solve(&prior, 1e-9, true), [2.0, 3.0]));
        assert_eq!(sums.solve(&prior, 1e-9, false)[[1, 0]], 0.25, "a bias that is not fitted stays");
    }

    #[test]
    fn rows_can_be_put_together() {
        let (first, second) = (array![[1., 0.], [2., 1.]], array![[0., 3.], [1., 1.]]);
        let target = |features: &Array2<f64>| features.dot(&array![[1.], [-1.]]);
        let all = sums(&first, &target(&first)).with(&sums(&second, &target(&second)));
        let whole = concatenate(Axis(0), &[first.view(), second.view()]).unwrap();
        let expected = sums(&whole, &target(&whole));
        assert_eq!((all.gram, all.cross, all.energy), (expected.gram, expected.cross, expected.energy));
    }
}
