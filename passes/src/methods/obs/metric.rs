//! The metric: what the outputs feel of an error in the stream.

use ndarray::Array2;

use crate::linalg::positive::factor;

/// C with C C^T = (1 - eta) M + eta tr(M) / h I, [h, h], M being the mean of the `felt` sum over so many rows, h the width of
/// the stream, and eta the `shrinkage`. Its trace carries the scale between sublayers.
pub(super) fn metric(felt: &Array2<f64>, rows: f64, shrinkage: f64) -> Array2<f64> {
    let mut mean = felt / rows.max(1.0);
    let level = mean.diag().mean().unwrap_or(0.0);
    mean *= 1.0 - shrinkage;
    mean.diag_mut().mapv_inplace(|d| d + shrinkage * level);
    // Where nothing is felt, nothing is lost.
    factor(&mean).unwrap_or_else(|| Array2::from_diag(&mean.diag().mapv(|d| d.max(0.0).sqrt())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn it_keeps_the_trace_and_is_drawn_toward_all_directions_alike() {
        let felt = array![[8.0, 4.0], [4.0, 2.0]];
        let square = |c: Array2<f64>| c.dot(&c.t());
        let near = |a: &Array2<f64>, b: &Array2<f64>| (a - b).iter().all(|d| d.abs() < 1e-9);
        assert!(near(&square(metric(&felt, 2.0, 0.1)), &array![[3.85, 1.8], [1.8, 1.15]]));
        assert!(near(&square(metric(&felt, 2.0, 1.0)), &array![[2.5, 0.0], [0.0, 2.5]]));
        assert!(metric(&Array2::zeros((2, 2)), 2.0, 0.1).iter().all(|&c| c == 0.0));
    }
}
