//! Systems of equations with a symmetric, positive definite matrix, and its inverse, by Cholesky.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, ShapeBuilder, s};
use ndarray_linalg::{CholeskyInto, Diag, SolveTriangularInto, UPLO};

use super::{add_product, in_blocks, joined, product};

/// M^-1 X; `None` where M is not positive definite, or the solution not finite.
pub fn solve(matrix: &Array2<f64>, right: ArrayView2<f64>) -> Option<Array2<f64>> {
    let lower = factor(matrix)?;
    let upper = column_major(lower.t());
    let blocks = in_blocks(right.ncols(), |columns| {
        let right = column_major(right.slice(s![.., columns]));
        let half = lower.solve_triangular_into(UPLO::Lower, Diag::NonUnit, right).ok()?;
        upper.solve_triangular_into(UPLO::Upper, Diag::NonUnit, half).ok()
    });
    let solution = joined(&blocks.into_iter().collect::<Option<Vec<_>>>()?, matrix.nrows());
    solution.iter().all(|x| x.is_finite()).then_some(solution)
}

/// M^-1; `None` where M is not positive definite, or its inverse not finite.
pub fn inverse(matrix: &Array2<f64>) -> Option<Array2<f64>> {
    let (mut half, n) = (matrix.clone(), matrix.nrows());
    invert_factor(half.view_mut())?;
    // M^-1 = L^-T L^-1, of which the part above the diagonal is enough.
    let upper = in_blocks(n, |columns| {
        let rows = half.slice(s![columns.start.., ..columns.end]);
        rows.t().dot(&half.slice(s![columns.start.., columns]))
    });
    let mut inverse = Array2::zeros((n, n));
    let mut start = 0;
    for block in upper {
        let end = start + block.ncols();
        inverse.slice_mut(s![..end, start..end]).assign(&block);
        inverse.slice_mut(s![start..end, ..end]).assign(&block.t());
        start = end;
    }
    inverse.iter().all(|x| x.is_finite()).then_some(inverse)
}

/// Puts L^-1 in the place of M = L L^T, by halves: almost all of it are products of matrices, which are spread over threads.
/// `None` where M is not positive definite.
fn invert_factor(mut matrix: ArrayViewMut2<f64>) -> Option<()> {
    let n = matrix.nrows();
    if n <= SMALL {
        let lower = factor(&matrix.to_owned())?;
        let inverse = lower.solve_triangular_into(UPLO::Lower, Diag::NonUnit, Array2::eye(n)).ok()?;
        matrix.assign(&inverse);
        return Some(());
    }
    let (top, bottom) = matrix.split_at(Axis(0), (n / 2).next_multiple_of(SMALL / 2));
    let half = top.nrows();
    let (mut first, mut above) = top.split_at(Axis(1), half);
    let (mut across, mut second) = bottom.split_at(Axis(1), half);
    invert_factor(first.view_mut())?;
    let lower = product(across.view(), first.t());
    add_product(-1.0, lower.view(), lower.t(), second.view_mut());
    invert_factor(second.view_mut())?;
    let lower = product(lower.view(), first.view());
    across.fill(0.0);
    add_product(-1.0, second.view(), lower.view(), across);
    above.fill(0.0);
    Some(())
}

/// Matrices of so many rows are left to LAPACK.
const SMALL: usize = 128;

/// L with L L^T = M.
pub fn factor(matrix: &Array2<f64>) -> Option<Array2<f64>> {
    matrix.clone().cholesky_into(UPLO::Lower).ok()
}

/// A copy laid out as LAPACK wants it; of anything else it would make one in every call.
pub(super) fn column_major(matrix: ArrayView2<f64>) -> Array2<f64> {
    let mut copy = Array2::zeros(matrix.raw_dim().f());
    copy.assign(&matrix);
    copy
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Well conditioned, and of several blocks.
    fn positive(n: usize) -> Array2<f64> {
        let factor = Array2::from_shape_fn((n, n), |(i, j)| ((i * 37 + j * 101) % 19) as f64 / 19.0 - 0.5);
        factor.t().dot(&factor) + Array2::<f64>::eye(n)
    }

    fn is_near(a: &Array2<f64>, b: &Array2<f64>) -> bool {
        (a - b).iter().all(|d| d.abs() < 1e-9)
    }

    #[test]
    fn an_inverse_is_one_on_any_number_of_threads() {
        for n in [1, 3, 64, 150] {
            let matrix = positive(n);
            let found = [1, 3].map(|threads| {
                crate::linalg::use_threads(threads);
                inverse(&matrix).unwrap()
            });
            assert_eq!(found[0], found[1]);
            assert!(is_near(&found[0].dot(&matrix), &Array2::eye(n)), "{n}");
        }
    }

    #[test]
    fn a_system_is_solved() {
        let (matrix, wanted) = (positive(70), Array2::from_shape_fn((70, 5), |(i, j)| (i + j) as f64));
        assert!(is_near(&solve(&matrix, matrix.dot(&wanted).view()).unwrap(), &wanted));
    }

    #[test]
    fn what_is_not_positive_definite_is_refused() {
        let matrix = array![[1.0, 2.0], [2.0, 1.0]];
        assert!(inverse(&matrix).is_none() && solve(&matrix, Array2::eye(2).view()).is_none());
    }
}
