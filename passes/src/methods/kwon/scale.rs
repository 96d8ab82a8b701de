//! Mask tuning: a scale for every unit that stays, by least squares, toward a model that is pruned less.

use ndarray::{Array1, Array2, Axis, s};

use crate::discover::{Kind, Sublayer};
use crate::linalg::least_squares::Sums;
use crate::linalg::positive;
use crate::methods::tune::Repair;
use crate::methods::{Detail, Equations, Failure, Outcome, Stored, Walk};
use crate::plan::Tuned;

/// A scale beyond this says that the equations do not tell; tuning ends there (as published).
const LARGEST: f64 = 10.0;

/// Ridges, relative to the mean of the diagonal, of which one is chosen on rows that were held out.
const RIDGES: [f64; 4] = [1e-6, 1e-4, 1e-2, 1.0];

/// Leads the student through all sublayers, with a scale for each of its units (Kwon et al. 2022, mask tuning): the teacher
/// is the model that the walk was restarted with. The first attention stays as it is. Where a scale is beyond all measure,
/// tuning ends, and what was tuned before stays.
///
/// # Errors
/// As [`Walk::equations`] and [`Walk::settle`].
pub(super) fn tune(walk: &mut dyn Walk, sublayers: &[Sublayer], outcome: &mut Outcome) -> Result<(), Failure> {
    let first_attention = sublayers.iter().position(|s| s.kind == Kind::Head);
    for (t, sublayer) in sublayers.iter().enumerate() {
        let keep = outcome.plan.decisions[t].keep.clone();
        let equations = walk.equations(t, &[keep])?.pop().ok_or("a walk gave no equations")?;
        let stored = walk.projection(t)?;
        let units: Vec<Vec<usize>> = places(sublayer, &outcome.plan.decisions[t].keep);
        let columns = outcome.plan.decisions[t].columns(sublayer);
        let projection = Projection { weight: stored.weight.select(Axis(0), &columns), units, kind: sublayer.kind };
        let scales = match Some(t) == first_attention {
            true => Ok(Array1::ones(projection.units.len())),
            false => projection.scales(&equations),
        };
        match scales {
            Ok(scales) => {
                outcome.repairs[t] = projection.repair(&scales, &equations);
                outcome.details[t].insert("scales", Detail::Numbers(scales.to_vec()));
                outcome.plan.decisions[t].tuned = Some(projection.scaled(&stored, &columns, &scales));
                walk.settle(0, t, &outcome.plan.decisions[t])?;
            }
            Err(why) => {
                outcome.details[t].insert("stopped", Detail::Text(why));
                return leave(walk, sublayers, t, outcome);
            }
        }
    }
    Ok(())
}

/// Leaves the projections from sublayer `first` on as they are.
///
/// # Errors
/// As [`Walk::projection`].
pub(super) fn leave(
    walk: &mut dyn Walk,
    sublayers: &[Sublayer],
    first: usize,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    for (t, sublayer) in sublayers.iter().enumerate().skip(first) {
        let stored = walk.projection(t)?;
        let decision = &mut outcome.plan.decisions[t];
        let columns = decision.columns(sublayer);
        let mut weight = Array2::zeros(stored.weight.raw_dim());
        columns.iter().for_each(|&c| weight.row_mut(c).assign(&stored.weight.row(c)));
        decision.tuned = Some(Tuned { bias: Array1::zeros(weight.ncols()), weight });
    }
    Ok(())
}

/// For every unit that stays, where its columns lie among those that stay.
fn places(sublayer: &Sublayer, keep: &[bool]) -> Vec<Vec<usize>> {
    let columns = sublayer.columns(keep);
    let place = |column: &usize| columns.binary_search(column).unwrap_or_default();
    let kept = sublayer.units.iter().zip(keep).filter(|(_, keep)| **keep);
    kept.map(|(unit, _)| unit.columns.iter().map(place).collect()).collect()
}

/// The kept rows of a projection, and which of them belong to which unit.
struct Projection {
    /// [columns, outputs].
    weight: Array2<f64>,
    units: Vec<Vec<usize>>,
    kind: Kind,
}

/// The normal equations of scales: A_u is what unit u adds to the stream, over all tokens and outputs.
struct ScaleSums {
    /// A^T A.
    gram: Array2<f64>,
    /// A^T B.
    cross: Array1<f64>,
}

impl Projection {
    /// The scale of every unit; why there is none where the equations give none.
    fn scales(&self, equations: &Equations) -> Result<Array1<f64>, String> {
        if self.units.is_empty() {
            return Ok(Array1::zeros(0));
        }
        let products = self.weight.dot(&self.weight.t());
        let of = |sums: &Sums| self.sums(sums, &products);
        let all = of(&equations.solve.with(&equations.held_out));
        let ridge = match equations.held_out.energy > 0.0 {
            false => RIDGES[0],
            true => {
                let (solve, held_out) = (of(&equations.solve), of(&equations.held_out));
                let left = |ridge: f64| solve.solved(ridge).map(|s| held_out.left(&s)).unwrap_or(f64::INFINITY);
                let ridges = RIDGES.map(|ridge| (ridge, left(ridge)));
                ridges.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(RIDGES[0], |best| best.0)
            }
        };
        let solved = all.solved(ridge).ok_or("its equations have no solution")?;
        let scales = solved.slice(s![..self.units.len()]).to_owned();
        match scales.iter().find(|s| s.abs() > LARGEST || !s.is_finite()) {
            Some(odd) => Err(format!("a scale is {odd:.3}, beyond {LARGEST}")),
            None => Ok(scales),
        }
    }

    /// A^T A = sum over the columns of both units of (F^T F) o (W W^T), and A^T B = sum over the unit's columns of
    /// (F^T B) o W; of heads with an intercept, the last entry.
    fn sums(&self, sums: &Sums, products: &Array2<f64>) -> ScaleSums {
        let columns = self.weight.nrows();
        let together = &sums.gram.slice(s![..columns, ..columns]) * products;
        let alone = (&sums.cross.slice(s![..columns, ..]) * &self.weight).sum_axis(Axis(1));
        if self.kind == Kind::Neuron && self.units.iter().enumerate().all(|(u, unit)| *unit == [u]) {
            return ScaleSums { gram: together, cross: alone };
        }
        let of = |unit: &Vec<usize>, of: &dyn Fn(usize) -> f64| unit.iter().map(|&c| of(c)).sum::<f64>();
        let size = self.units.len() + usize::from(self.kind == Kind::Head);
        let (mut gram, mut cross) = (Array2::zeros((size, size)), Array1::zeros(size));
        for (u, first) in self.units.iter().enumerate() {
            cross[u] = of(first, &|c| alone[c]);
            for (v, second) in self.units.iter().enumerate() {
                gram[[u, v]] = of(first, &|c| of(second, &|d| together[[c, d]]));
            }
        }
        if self.kind == Kind::Head {
            let last = self.units.len();
            let row_sums = self.weight.sum_axis(Axis(1));
            for (u, unit) in self.units.iter().enumerate() {
                gram[[u, last]] = of(unit, &|c| sums.gram[[c, columns]] * row_sums[c]);
                gram[[last, u]] = gram[[u, last]];
            }
            gram[[last, last]] = sums.gram[[columns, columns]] * self.weight.ncols() as f64;
            cross[last] = sums.cross.row(columns).sum();
        }
        ScaleSums { gram, cross }
    }

    /// Errors with scales and without, on the rows that were held out.
    fn repair(&self, scales: &Array1<f64>, equations: &Equations) -> Repair {
        let judge = if equations.held_out.energy > 0.0 { &equations.held_out } else { &equations.solve };
        let with = |scales: &Array1<f64>| {
            let mut rows = Array2::zeros((self.weight.nrows() + 1, self.weight.ncols()));
            rows.slice_mut(s![..self.weight.nrows(), ..]).assign(&self.scaled_rows(scales));
            judge.error(&rows)
        };
        Repair { untuned: Some(with(&Array1::ones(scales.len()))), tuned: Some(with(scales)) }
    }

    fn scaled_rows(&self, scales: &Array1<f64>) -> Array2<f64> {
        let mut rows = self.weight.clone();
        for (unit, &scale) in self.units.iter().zip(scales) {
            unit.iter().for_each(|&c| rows.row_mut(c).mapv_inplace(|w| scale * w));
        }
        rows
    }

    /// The projection with scaled rows; its bias stays.
    fn scaled(&self, stored: &Stored, columns: &[usize], scales: &Array1<f64>) -> Tuned {
        let mut weight = Array2::zeros(stored.weight.raw_dim());
        let rows = self.scaled_rows(scales);
        columns.iter().zip(rows.rows()).for_each(|(&c, row)| weight.row_mut(c).assign(&row));
        Tuned { bias: Array1::zeros(weight.ncols()), weight }
    }
}

impl ScaleSums {
    /// 1 + d, where (A^T A + e) d = A^T B - A^T A 1 and an intercept is 0 before; `None` where there is no solution.
    fn solved(&self, ridge: f64) -> Option<Array1<f64>> {
        let mean = self.gram.diag().mean().unwrap_or(0.0).max(f64::MIN_POSITIVE);
        let mut gram = self.gram.clone();
        gram.diag_mut().mapv_inplace(|d| d + ridge * mean);
        let apart = &self.cross - &self.gram.dot(&self.before());
        let solved = positive::solve(&gram, apart.insert_axis(Axis(1)).view())?;
        Some(solved.remove_axis(Axis(1)) + self.before())
    }

    /// What is left of ||A s - B||^2, up to ||B||^2.
    fn left(&self, scales: &Array1<f64>) -> f64 {
        scales.dot(&self.gram.dot(scales)) - 2.0 * scales.dot(&self.cross)
    }

    fn before(&self) -> Array1<f64> {
        Array1::ones(self.cross.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{array, concatenate};
    use ndarray_linalg::LeastSquaresSvd;

    fn features(tokens: usize, columns: usize) -> Array2<f64> {
        Array2::from_shape_fn((tokens, columns), |(i, j)| ((i * 31 + j * 17 + i * j * 7) % 23) as f64 / 11.0 - 1.0)
    }

    fn equations(features: &Array2<f64>, target: &Array2<f64>) -> Equations {
        let ones = Array2::ones((features.nrows(), 1));
        let all = concatenate![Axis(1), features.view(), ones];
        let sums = Sums { gram: all.t().dot(&all), cross: all.t().dot(target), energy: target.mapv(|y| y * y).sum() };
        Equations { solve: sums.clone(), held_out: Sums::zeros(features.ncols(), target.ncols()) }
    }

    /// What units add, flattened over tokens and outputs: [tokens x outputs, units].
    fn added(features: &Array2<f64>, projection: &Projection) -> Array2<f64> {
        let unit = |columns: &Vec<usize>| {
            let (own, rows) = (features.select(Axis(1), columns), projection.weight.select(Axis(0), columns));
            own.dot(&rows).flatten().to_owned().insert_axis(Axis(1))
        };
        let units: Vec<Array2<f64>> = projection.units.iter().map(unit).collect();
        ndarray::concatenate(Axis(1), &units.iter().map(|u| u.view()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn scales_are_those_of_a_direct_least_squares_solution() {
        let features = features(40, 6);
        let target = Array2::from_shape_fn((40, 3), |(i, j)| ((i * 13 + j * 29) % 19) as f64 / 9.0 - 1.0);
        let weight = Array2::from_shape_fn((6, 3), |(i, j)| ((i * 11 + j * 5) % 13) as f64 / 6.0 - 1.0);
        for (kind, units) in [
            (Kind::Neuron, (0..6).map(|c| vec![c]).collect::<Vec<_>>()),
            (Kind::Head, vec![vec![0, 1], vec![2, 3], vec![4, 5]]),
        ] {
            let projection = Projection { weight: weight.clone(), units, kind };
            let mut direct = added(&features, &projection);
            if kind == Kind::Head {
                direct = concatenate![Axis(1), direct, Array2::ones((direct.nrows(), 1))];
            }
            let flat = target.flatten().to_owned();
            let expected = direct.least_squares(&flat).unwrap().solution;
            let found = projection.scales(&equations(&features, &target)).unwrap();
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3), "{kind:?}: {found} and {expected}");
        }
    }

    #[test]
    fn scales_that_were_there_are_found_again() {
        let features = features(30, 4);
        let projection = Projection {
            weight: array![[1.0, 0.5], [-0.5, 1.0], [2.0, 0.0], [0.0, 1.0]],
            units: (0..4).map(|c| vec![c]).collect(),
            kind: Kind::Neuron,
        };
        let right = array![1.5, 0.5, 1.0, 2.0];
        let target = features.dot(&projection.scaled_rows(&right));
        let found = projection.scales(&equations(&features, &target)).unwrap();
        assert!((&found - &right).iter().all(|d| d.abs() < 1e-3), "{found}");
    }

    #[test]
    fn a_scale_beyond_all_measure_is_refused() {
        let features = features(30, 2);
        let projection = Projection { weight: array![[1.0], [1.0]], units: vec![vec![0], vec![1]], kind: Kind::Neuron };
        let target = features.dot(&array![[40.0], [1.0]]);
        assert!(projection.scales(&equations(&features, &target)).unwrap_err().contains("beyond 10"));
    }
}
