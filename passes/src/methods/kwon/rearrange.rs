//! Rearrangement: which units of a sublayer go together, the number of them being decided.

use ndarray::{Array1, Array2, Axis};

/// The units of a sublayer that stay, as many as `keep` says, so that what goes is felt least *together*: the squared sum of
/// its gradients, not the sum of its squares (Kwon et al. 2022, mask rearrangement).
///
/// The units with the least information go first. Then every other, in ascending order of information, is added to those
/// that go, and whichever of them leaves least is taken back. `gradients` are those of the masks: [units, mini-batches].
pub(super) fn rearranged(gradients: &Array2<f64>, keep: &[bool]) -> Vec<bool> {
    let going = keep.iter().filter(|k| !**k).count();
    let norms = gradients.mapv(|g| g * g).sum_axis(Axis(1));
    let mut order: Vec<usize> = (0..keep.len()).collect();
    order.sort_by(|&a, &b| norms[a].total_cmp(&norms[b]).then(a.cmp(&b)));
    if going == 0 || going == keep.len() {
        return keep.to_vec();
    }
    let (first, rest) = order.split_at(going);
    let mut gone = first.to_vec();
    let mut sum: Array1<f64> = gone.iter().fold(Array1::zeros(gradients.ncols()), |sum, &u| sum + gradients.row(u));
    for &unit in rest {
        gone.push(unit);
        sum += &gradients.row(unit);
        // ||S - g||^2 is least where ||g||^2 - 2 S g is.
        let left = |&u: &usize| norms[u] - 2.0 * sum.dot(&gradients.row(u));
        let best = (0..gone.len()).min_by(|&a, &b| left(&gone[a]).total_cmp(&left(&gone[b]))).unwrap_or(0);
        let back = gone.remove(best);
        sum -= &gradients.row(back);
    }
    let mut keep = vec![true; keep.len()];
    gone.into_iter().for_each(|unit| keep[unit] = false);
    keep
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// The definition, word by word.
    fn by_definition(gradients: &Array2<f64>, going: usize) -> Vec<usize> {
        let norm = |v: &Array1<f64>| v.dot(v);
        let mut order: Vec<usize> = (0..gradients.nrows()).collect();
        order.sort_by(|&a, &b| norm(&gradients.row(a).to_owned()).total_cmp(&norm(&gradients.row(b).to_owned())));
        let mut gone: Vec<usize> = order[..going].to_vec();
        for &unit in &order[going..] {
            gone.push(unit);
            let left_without = |out: usize| {
                let others = gone.iter().filter(|&&u| u != out);
                norm(&others.fold(Array1::zeros(gradients.ncols()), |s, &u| s + gradients.row(u)))
            };
            let out = *gone.iter().min_by(|&&a, &&b| left_without(a).total_cmp(&left_without(b))).unwrap();
            gone.retain(|&u| u != out);
        }
        gone.sort_unstable();
        gone
    }

    fn gone(keep: &[bool]) -> Vec<usize> {
        (0..keep.len()).filter(|&u| !keep[u]).collect()
    }

    #[test]
    fn units_that_cancel_each_other_go_together() {
        // Alone, 0 and 1 matter least; but 2 undoes what 0 does.
        let gradients = array![[1.0, 0.0], [0.0, 1.1], [-1.2, 0.0], [3.0, 3.0]];
        let keep = rearranged(&gradients, &[false, false, true, true]);
        assert_eq!(gone(&keep), [0, 2]);
    }

    #[test]
    fn it_is_the_greedy_exchange_of_the_definition() {
        let number = |(i, j): (usize, usize)| ((i * 37 + j * 101 + i * j * 17) % 29) as f64 / 7.0 - 2.0;
        let gradients = Array2::from_shape_fn((12, 5), number);
        for going in [1, 4, 7, 11] {
            let keep: Vec<bool> = (0..12).map(|u| u >= going).collect();
            assert_eq!(gone(&rearranged(&gradients, &keep)), by_definition(&gradients, going), "{going} of 12");
        }
    }

    #[test]
    fn none_and_all_stay_none_and_all() {
        let gradients = array![[1.0], [2.0]];
        assert_eq!(rearranged(&gradients, &[true, true]), [true, true]);
        assert_eq!(rearranged(&gradients, &[false, false]), [false, false]);
    }
}
