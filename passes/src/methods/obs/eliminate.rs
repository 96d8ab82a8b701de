//! Elimination: the unit goes whose loss the others can best make up for, one after another.
//!
//! Optimal brain surgeon for units (Hassibi and Stork 1993; of columns: Frantar and Alistarh 2022): with H the inverse of the
//! features' Gram matrix G and A = W C their weight in the metric C C^T, removing the columns c costs
//!
//! tr(A_c^T (H_cc)^-1 A_c),
//!
//! after which the others' A and H are A - H_c (H_cc)^-1 A_c and H - H_c (H_cc)^-1 H_c^T.

use std::ops::Range;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, Axis, s};

use crate::linalg::{add_product, positive};

/// So many units of a pool are looked at together.
const AT_ONCE: usize = 16;

/// A unit that went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Gone {
    /// Its place among the units.
    pub(super) unit: usize,
    /// What it cost, given those that went before.
    pub(super) error: f64,
}

/// Units that are left, the columns of each beside each other.
pub(super) struct Elimination {
    /// H, of so many columns as are left: [columns, columns], in the corner of what once was all.
    inverse: Array2<f64>,
    /// A: [columns, outputs], at the top of what once was all.
    weight: Array2<f64>,
    /// The units that are left, and how many columns each has.
    left: Vec<(usize, usize)>,
}

impl Elimination {
    /// Of all `units`, each given by its columns in `inverse` and `weight`.
    pub(super) fn new(inverse: Array2<f64>, weight: &Array2<f64>, units: &[Vec<usize>]) -> Self {
        let order: Vec<usize> = units.iter().flatten().copied().collect();
        let is_in_order = order.iter().copied().eq(0..inverse.nrows());
        // Rows lie one after another in both, as `compact` has it.
        let inverse = if is_in_order { inverse } else { gathered(&inverse, &order, &order) };
        let weight = weight.select(Axis(0), &order);
        Self {
            inverse: if inverse.is_standard_layout() { inverse } else { inverse.as_standard_layout().into_owned() },
            weight: weight.as_standard_layout().into_owned(),
            left: units.iter().map(Vec::len).enumerate().collect(),
        }
    }

    /// How many units are left.
    pub(super) fn left(&self) -> usize {
        self.left.len()
    }

    /// Removes `count` units, the cheapest first.
    ///
    /// Twice as many that are cheap now are looked at together, in turn by few at a time: each of them knows at once of
    /// those that went before it, and the others of all of them at the end.
    pub(super) fn remove(&mut self, count: usize) -> Vec<Gone> {
        let mut pool = self.cheapest(if count > 1 { 2 * count } else { 1 });
        let mut gone = Vec::new();
        while gone.len() < count && pool.left() > 0 {
            gone.extend(match count > AT_ONCE {
                true => pool.remove(AT_ONCE.min(count - gone.len())),
                false => pool.remove_cheapest(count),
            });
        }
        let mut going = vec![false; self.left.len()];
        gone.iter().for_each(|gone| going[gone.unit] = true);
        let gone = gone.into_iter().map(|gone| Gone { unit: self.left[gone.unit].0, ..gone }).collect();
        self.drop_units(&going);
        gone
    }

    /// The `count` units that are cheapest now, by themselves, called by their places.
    fn cheapest(&self, count: usize) -> Self {
        let places = self.places();
        let mut cheap: Vec<(usize, f64)> = places.iter().map(|p| self.error(p.clone())).enumerate().collect();
        cheap.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        cheap.truncate(count);
        let columns: Vec<usize> = cheap.iter().flat_map(|&(i, _)| places[i].clone()).collect();
        Self {
            inverse: gathered(&self.inverse, &columns, &columns),
            weight: self.weight.select(Axis(0), &columns),
            left: cheap.iter().map(|&(i, _)| (i, self.left[i].1)).collect(),
        }
    }

    /// Removes the `count` cheapest of a few units, one after another, and all others with them.
    fn remove_cheapest(&mut self, count: usize) -> Vec<Gone> {
        let places = self.places();
        let mut here: Vec<usize> = (0..places.len()).collect();
        let mut gone = Vec::new();
        while gone.len() < count && !here.is_empty() {
            let errors = here.iter().map(|&i| self.error(places[i].clone())).enumerate();
            let (at, error) = errors.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
            let unit = here.remove(at);
            gone.push(Gone { unit: self.left[unit].0, error });
            let columns = s![.., places[unit].clone()];
            let across = self.inverse.slice(columns).to_owned();
            let own = across.slice(s![places[unit].clone(), ..]).to_owned();
            let weight = solved(&own, &self.weight.slice(s![places[unit].clone(), ..]).to_owned());
            let inverse = solved(&own, &across.t().to_owned());
            general_mat_mul(-1.0, &across, &weight, 1.0, &mut self.weight);
            general_mat_mul(-1.0, &across, &inverse, 1.0, &mut self.inverse);
        }
        self.left.clear();
        gone
    }

    /// The columns of every unit that is left.
    fn places(&self) -> Vec<Range<usize>> {
        let ends = self.left.iter().scan(0, |end, &(_, width)| {
            *end += width;
            Some(*end - width..*end)
        });
        ends.collect()
    }

    fn error(&self, columns: Range<usize>) -> f64 {
        let weight = self.weight.slice(s![columns.clone(), ..]);
        let inverse = self.inverse.slice(s![columns.clone(), columns.clone()]);
        match columns.len() {
            1 => weight.iter().map(|a| a * a).sum::<f64>() / inverse[[0, 0]].max(f64::MIN_POSITIVE),
            _ => (&solved(&inverse.to_owned(), &weight.to_owned()) * &weight).sum(),
        }
    }

    /// Leaves out the units that are `going`; the others make up for them.
    fn drop_units(&mut self, going: &[bool]) {
        let places = self.places();
        let columns = |wanted: bool| -> Vec<usize> {
            places.iter().zip(going).filter(|(_, going)| **going == wanted).flat_map(|(p, _)| p.clone()).collect()
        };
        let (out, stay) = (columns(true), columns(false));
        let own = gathered(&self.inverse, &out, &out);
        let across = gathered(&self.inverse, &out, &stay);
        let weight = solved(&own, &self.weight.select(Axis(0), &out));
        let inverse = solved(&own, &across);
        compact(&mut self.inverse, &stay, &stay);
        let all: Vec<usize> = (0..self.weight.ncols()).collect();
        compact(&mut self.weight, &stay, &all);
        let count = stay.len();
        add_product(-1.0, across.t(), weight.view(), self.weight.slice_mut(s![..count, ..]));
        add_product(-1.0, across.t(), inverse.view(), self.inverse.slice_mut(s![..count, ..count]));
        let mut going = going.iter();
        self.left.retain(|_| !going.next().copied().unwrap_or_default());
    }
}

/// Moves some rows and columns of a matrix, both ascending, to its corner.
fn compact(matrix: &mut Array2<f64>, rows: &[usize], columns: &[usize]) {
    let width = matrix.ncols();
    let runs = runs(columns);
    let Some(numbers) = matrix.as_slice_mut() else { return };
    for (to, &from) in rows.iter().enumerate() {
        for (start, run) in &runs {
            numbers.copy_within(from * width + run.start..from * width + run.end, to * width + start);
        }
    }
}

/// Places that follow each other, with how many lie before each run of them.
fn runs(places: &[usize]) -> Vec<(usize, Range<usize>)> {
    let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
    for (before, &place) in places.iter().enumerate() {
        match runs.last_mut().filter(|(_, run)| run.end == place) {
            Some((_, run)) => run.end += 1,
            None => runs.push((before, place..place + 1)),
        }
    }
    runs
}

/// Some rows and columns of a matrix.
pub(super) fn gathered(matrix: &Array2<f64>, rows: &[usize], columns: &[usize]) -> Array2<f64> {
    let mut gathered = Array2::zeros((rows.len(), columns.len()));
    for (mut to, &row) in gathered.rows_mut().into_iter().zip(rows) {
        let from = matrix.row(row);
        to.iter_mut().zip(columns).for_each(|(to, &column)| *to = from[column]);
    }
    gathered
}

/// M^-1 X; where rounding has made M less than positive definite, as if its columns had nothing to do with each other.
fn solved(matrix: &Array2<f64>, right: &Array2<f64>) -> Array2<f64> {
    if matrix.len() == 1 {
        return right / matrix[[0, 0]].max(f64::MIN_POSITIVE);
    }
    positive::solve(matrix, right.view()).unwrap_or_else(|| {
        let least = matrix.diag().mean().unwrap_or(0.0).max(f64::MIN_POSITIVE) * f64::EPSILON;
        right / &matrix.diag().mapv(|d| d.max(least)).insert_axis(Axis(1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: usize = 40;

    fn number(i: usize, j: usize) -> f64 {
        let mixed = (i * 7919 + j * 104_729 + 12_345) % 10_007;
        (mixed * mixed % 10_007) as f64 / 5_003.0 - 1.0
    }

    fn features(columns: usize) -> Array2<f64> {
        Array2::from_shape_fn((ROWS, columns), |(i, j)| number(i, j))
    }

    fn weight(columns: usize) -> Array2<f64> {
        Array2::from_shape_fn((columns, 3), |(i, j)| number(i + 17, j * 5))
    }

    fn elimination(features: &Array2<f64>, weight: &Array2<f64>, units: &[Vec<usize>]) -> Elimination {
        Elimination::new(positive::inverse(&features.t().dot(features)).unwrap(), weight, units)
    }

    /// What is left of ||F A - F_k X||^2 when X is the best for the columns `kept`.
    fn least_error(features: &Array2<f64>, weight: &Array2<f64>, kept: &[usize]) -> f64 {
        let (target, stay) = (features.dot(weight), features.select(Axis(1), kept));
        let best = positive::solve(&stay.t().dot(&stay), stay.t().dot(&target).view()).unwrap();
        (target - stay.dot(&best)).iter().map(|e| e * e).sum()
    }

    #[test]
    fn units_cost_what_is_left_after_the_others_have_made_up_for_them() {
        for units in
            [vec![vec![0], vec![1], vec![2], vec![3], vec![4], vec![5]], vec![vec![0, 3], vec![4, 1], vec![2, 5]]]
        {
            let (features, weight) = (features(6), weight(6));
            let mut elimination = elimination(&features, &weight, &units);
            let (mut kept, mut lost): (Vec<usize>, f64) = ((0..units.len()).collect(), 0.0);
            while kept.len() > 1 {
                let without = |unit: usize| -> Vec<usize> {
                    kept.iter().filter(|&&u| u != unit).flat_map(|&u| units[u].clone()).collect()
                };
                let errors = kept.iter().map(|&u| (u, least_error(&features, &weight, &without(u))));
                let (unit, error) = errors.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
                let gone = elimination.remove(1);
                assert_eq!(gone.iter().map(|g| g.unit).collect::<Vec<_>>(), [unit]);
                assert!((lost + gone[0].error - error).abs() < 1e-9 * error, "{lost} {gone:?} {error}");
                lost = error;
                kept.retain(|&u| u != unit);
            }
            assert_eq!(elimination.remove(1).len(), 1);
            assert_eq!(elimination.left(), 0);
        }
    }

    #[test]
    fn of_two_that_say_the_same_only_one_goes_cheaply_though_they_could_go_together() {
        let (mut features, weight) = (features(8), weight(8));
        for row in 0..ROWS {
            features[[row, 4]] = features[[row, 1]] + 1e-2 * number(row, 99);
        }
        let units: Vec<Vec<usize>> = (0..8).map(|c| vec![c]).collect();
        let mut elimination = elimination(&features, &weight, &units);
        let gone = elimination.remove(2);
        let twins = gone.iter().filter(|g| [1, 4].contains(&g.unit)).count();
        assert_eq!(twins, 1, "{gone:?}");
        let kept: Vec<usize> = (0..8).filter(|u| gone.iter().all(|g| g.unit != *u)).collect();
        let (lost, error) = (gone.iter().map(|g| g.error).sum::<f64>(), least_error(&features, &weight, &kept));
        assert!((lost - error).abs() < 1e-3 * error, "what units cost together is the sum: {lost} {error}");
    }

    #[test]
    fn many_at_once_leave_what_is_left_after_all_of_them_have_gone() {
        let rows = 300;
        let features = Array2::from_shape_fn((rows, 100), |(i, j)| number(i + 3, j + 11));
        let weight = weight(100);
        let target = features.dot(&weight);
        let units: Vec<Vec<usize>> = (0..100).map(|unit| vec![unit]).collect();
        // The same numbers, stored the other way round.
        for (features, weight) in [(features.clone(), weight.clone()), (features.clone(), stored_by_columns(&weight))] {
            let mut elimination = elimination(&features, &weight, &units);
            let gone = [elimination.remove(40), elimination.remove(30)].concat();
            let mut kept = [true; 100];
            gone.iter().for_each(|gone| kept[gone.unit] = false);
            let kept: Vec<usize> = (0..100).filter(|&unit| kept[unit]).collect();
            assert_eq!((gone.len(), kept.len()), (70, 30));
            let stay = features.select(Axis(1), &kept);
            let best = positive::solve(&stay.t().dot(&stay), stay.t().dot(&target).view()).unwrap();
            let error = (&target - &stay.dot(&best)).iter().map(|e| e * e).sum::<f64>();
            let counted: f64 = gone.iter().map(|gone| gone.error).sum();
            assert!((counted - error).abs() < 1e-8 * error, "{counted} {error}");
            let dense = elimination.weight.slice(s![..30, ..]).to_owned();
            assert!((&dense - &best).iter().all(|d| d.abs() < 1e-8));
        }
    }

    fn stored_by_columns(matrix: &Array2<f64>) -> Array2<f64> {
        matrix.t().as_standard_layout().into_owned().reversed_axes()
    }

    #[test]
    fn a_matrix_that_is_not_quite_positive_definite_breaks_nothing() {
        let inverse = ndarray::array![[1.0, 1.0, 0.0], [1.0, 1.0 - 1e-12, 0.0], [0.0, 0.0, 1.0]];
        let mut elimination = Elimination::new(inverse, &weight(3), &[vec![0, 1], vec![2]]);
        assert!(elimination.remove(2).iter().all(|g| g.error.is_finite()));
    }
}
