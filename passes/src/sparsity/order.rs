//! The order in which the weights of a row go.

use ndarray::{Array2, ArrayView2, ArrayViewMut1, Axis};

use super::Pattern;
use crate::linalg::side_by_side;

/// |W| times how large what it is multiplied with is: sqrt(sum over tokens of x^2), by input (Sun et al. 2024, "A simple and
/// effective pruning approach for large language models", equation 1); without that, |W| alone. Rows are outputs.
pub fn importance(weight: ArrayView2<f32>, squares: Option<&[f64]>) -> Array2<f32> {
    let mut importance = weight.mapv(f32::abs);
    if let Some(squares) = squares {
        for (mut column, square) in importance.columns_mut().into_iter().zip(squares) {
            column *= square.max(0.0).sqrt() as f32;
        }
    }
    importance
}

/// In which order the weights of each row go, the least important first; those that the pattern lets go come before those
/// that it does not. Of two that are alike, the first goes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Row by row, the inputs in the order in which they go: [outputs, inputs].
    pub inputs: Array2<i32>,
    /// The place of every weight in that order: [outputs, inputs].
    pub places: Array2<i32>,
}

impl Order {
    /// Of weights of this importance, [outputs, inputs].
    pub fn of(importance: ArrayView2<f32>, pattern: Pattern) -> Self {
        let mut inputs = Array2::zeros(importance.raw_dim());
        let mut places = Array2::zeros(importance.raw_dim());
        let rows = inputs.axis_iter_mut(Axis(0)).zip(places.axis_iter_mut(Axis(0)));
        let rows: Vec<_> = rows.zip(importance.axis_iter(Axis(0))).collect();
        side_by_side(rows, |((inputs, places), row)| write(inputs, places, &sorted(&row.to_vec(), pattern)));
        Self { inputs, places }
    }

    /// A row's weights that stay when so many of it go.
    pub fn stays(&self, output: usize, count: usize) -> impl Iterator<Item = bool> + '_ {
        self.places.row(output).into_iter().map(move |&place| place as usize >= count)
    }
}

fn write(mut inputs: ArrayViewMut1<i32>, mut places: ArrayViewMut1<i32>, sorted: &[usize]) {
    for (place, &input) in sorted.iter().enumerate() {
        inputs[place] = input as i32;
        places[input] = place as i32;
    }
}

/// The inputs of a row in the order in which they go.
fn sorted(row: &[f32], pattern: Pattern) -> Vec<usize> {
    let by_importance = |inputs: &mut Vec<usize>| inputs.sort_by(|&a, &b| row[a].total_cmp(&row[b]));
    let mut all: Vec<usize> = (0..row.len()).collect();
    let Pattern::Groups { stay, of } = pattern else {
        by_importance(&mut all);
        return all;
    };
    let (mut going, mut staying) = (Vec::new(), Vec::new());
    for group in all.chunks(of) {
        let mut group = group.to_vec();
        by_importance(&mut group);
        let least = group.len().saturating_sub(stay);
        going.extend(&group[..least]);
        staying.extend(&group[least..]);
    }
    by_importance(&mut going);
    by_importance(&mut staying);
    going.extend(staying);
    going
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn importance_is_the_size_of_a_weight_times_that_of_what_it_is_multiplied_with() {
        let weight = array![[1.0f32, -3.0], [-2.0, 0.5]];
        assert_eq!(importance(weight.view(), Some(&[4.0, 0.25])), array![[2.0f32, 1.5], [4.0, 0.25]]);
        assert_eq!(importance(weight.view(), None), array![[1.0f32, 3.0], [2.0, 0.5]]);
    }

    #[test]
    fn the_least_important_go_first_and_of_equals_the_first() {
        let order = Order::of(array![[3.0f32, 1.0, 2.0, 1.0]].view(), Pattern::Unstructured);
        assert_eq!((order.inputs, order.places), (array![[1, 3, 2, 0]], array![[3, 0, 2, 1]]));
    }

    #[test]
    fn a_pattern_takes_the_least_of_every_group_before_any_other() {
        let row = array![[1.0f32, 2.0, 3.0, 4.0, 9.0, 8.0, 7.0, 6.0, 0.5, 0.1, 0.2]];
        let order = Order::of(row.view(), "2:4".parse().unwrap());
        // Two of each four, one of the three at the end.
        let going: Vec<i32> = order.inputs.row(0).iter().take(5).copied().collect();
        assert_eq!(going, [9, 0, 1, 7, 6]);
        let stays: Vec<bool> = order.stays(0, 5).collect();
        assert_eq!(stays, [false, false, true, true, true, true, false, false, true, false, true]);
    }
}
