//! Tuning (KPWT): projections solved anew for the units that stay, by least squares. All structured methods share it.
//!
//! At sublayer t: minimise over W' ||(R_T - R_S - b) - F_k W'||^2, where R_T is the teacher's residual stream after the
//! sublayer, R_S the student's before it, b the bias and F_k the kept columns of the student's features; a correction of
//! the bias is fitted with it (Park et al. 2024, knowledge-preserving weight-tuning).

use ndarray::{Array1, Array2, Axis, s};

use super::{Equations, Failure, Outcome, Stored, Walk};
use crate::discover::Sublayer;
use crate::finite::NotFinite;
use crate::ir::{ElementType, Tensor, TensorError};
use crate::linalg::least_squares::{RIDGES, Sums};
use crate::plan::Tuned;

/// Relative reconstruction errors of one sublayer on held-out samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Repair {
    /// With the original rows of the projection.
    pub untuned: Option<f64>,
    /// With the solved ones, where they are better.
    pub tuned: Option<f64>,
}

/// Solves the projections of all students at sublayer `t` for the units that were chosen there, and leads teacher and
/// students through it.
///
/// # Errors
/// As [`Walk::equations`] and [`Walk::settle`]; and where a solution is not finite.
pub fn tune(walk: &mut dyn Walk, sublayers: &[Sublayer], t: usize, outcomes: &mut [Outcome]) -> Result<(), Failure> {
    let keep: Vec<Vec<bool>> = outcomes.iter().map(|o| o.plan.decisions[t].keep.clone()).collect();
    let equations = walk.equations(t, &keep)?;
    let stored = walk.projection(t)?;
    for (student, (outcome, equations)) in outcomes.iter_mut().zip(equations).enumerate() {
        let decision = &mut outcome.plan.decisions[t];
        let columns = decision.columns(&sublayers[t]);
        let (tuned, repair) = repaired(t, &sublayers[t], &stored, &columns, &equations)?;
        decision.tuned = Some(tuned);
        outcome.repairs[t] = repair;
        walk.settle(student, t, decision)?;
    }
    Ok(())
}

/// Tunes students whose units are all chosen already.
///
/// # Errors
/// As [`tune`].
pub fn tune_all(walk: &mut dyn Walk, sublayers: &[Sublayer], outcomes: &mut [Outcome]) -> Result<(), Failure> {
    (0..sublayers.len()).try_for_each(|t| tune(walk, sublayers, t, outcomes))
}

/// The better of the tuned and the untuned projection on the samples that were held out, both as the model's element
/// type rounds them.
pub(super) fn repaired(
    t: usize,
    sublayer: &Sublayer,
    stored: &Stored,
    columns: &[usize],
    equations: &Equations,
) -> Result<(Tuned, Repair), Failure> {
    let (kept, [width, outputs]) = (columns.len(), [0, 1].map(|axis| stored.weight.len_of(Axis(axis))));
    let mut untuned = Array2::zeros((kept + 1, outputs));
    untuned.slice_mut(s![..kept, ..]).assign(&stored.weight.select(Axis(0), columns));
    // Where nothing is left, the bias is all that can make up for it.
    let with_bias = kept == 0 || stored.has_bias;
    let solved = |sums: &Sums, ridge: f64| {
        let weight = sums.solve(&untuned, ridge, with_bias);
        match weight.iter().find(|x| !x.is_finite()) {
            Some(&value) => {
                let place = format!("sublayer {} ({})", t + 1, sublayer.name);
                Err(NotFinite { place, what: "a weight of its tuned projection".into(), value }.into())
            }
            None => rounded(weight, stored.element),
        }
    };
    let ridge = ridge(equations, &untuned, with_bias);
    // All rows count in what is taken; what is held out judges a solution that does not know it.
    let all = solved(&equations.solve.with(&equations.held_out), ridge)?;
    let (judge, judged) = match equations.held_out.energy > 0.0 {
        true => (&equations.held_out, solved(&equations.solve, ridge)?),
        false => (&equations.solve, all.clone()),
    };
    let (before, after) = (judge.error(&untuned), judge.error(&judged));
    let better = if after < before { &all } else { &untuned };
    let mut weight = Array2::zeros((width, outputs));
    for (row, &column) in columns.iter().enumerate() {
        weight.row_mut(column).assign(&better.row(row));
    }
    let bias: Array1<f64> = better.row(kept).to_owned();
    let repair = Repair { untuned: Some(before), tuned: (after < before).then_some(after) };
    Ok((Tuned { weight, bias }, repair))
}

/// The ridge that explains most of what was held out; the least where nothing was. Few outputs tell.
fn ridge(equations: &Equations, prior: &Array2<f64>, with_bias: bool) -> f64 {
    let [least, ..] = RIDGES;
    if equations.held_out.energy == 0.0 {
        return least;
    }
    let step = prior.ncols().div_ceil(OUTPUTS).max(1);
    let prior = prior.slice(s![.., ..; step]).to_owned();
    let [solve, held_out] = [&equations.solve, &equations.held_out].map(|sums| sums.thinned(step));
    let explained = RIDGES.map(|ridge| (ridge, held_out.explained(&solve.solve(&prior, ridge, with_bias))));
    let best = explained.into_iter().filter(|(_, e)| !e.is_nan()).max_by(|a, b| a.1.total_cmp(&b.1));
    best.map_or(least, |(ridge, _)| ridge)
}

/// So many outputs choose the ridge for all.
const OUTPUTS: usize = 64;

/// The numbers that are left once they are stored as `element`.
fn rounded(matrix: Array2<f64>, element: ElementType) -> Result<Array2<f64>, Failure> {
    let stored = Tensor::from_floats(element, &matrix.into_dyn())?.to_f64()?;
    Ok(stored.into_dimensionality().map_err(|_| TensorError::Missing)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::FakeWalk;

    #[test]
    fn what_stays_makes_up_for_what_goes_where_features_depend_on_each_other() {
        let mut walk = FakeWalk::new(1, 6);
        walk.make_equal(0, 1, 4);
        let sublayers = walk.sublayers.clone();
        let mut outcomes = vec![Outcome::untouched(&sublayers)];
        outcomes[0].plan.decisions[0].keep[4] = false;
        tune_all(&mut walk, &sublayers, &mut outcomes).unwrap();
        let Repair { untuned, tuned } = outcomes[0].repairs[0];
        assert!(untuned.unwrap() > 0.1 && tuned.unwrap() < 1e-3, "{untuned:?} {tuned:?}");
        let weight = &outcomes[0].plan.decisions[0].tuned.as_ref().unwrap().weight;
        assert!(weight.row(4).iter().all(|&w| w == 0.0), "what goes has no weight");
    }

    #[test]
    fn a_solution_that_is_worse_on_what_was_held_out_is_not_taken() {
        let mut walk = FakeWalk::new(1, 6);
        walk.mislead = true;
        let sublayers = walk.sublayers.clone();
        let mut outcomes = vec![Outcome::untouched(&sublayers)];
        tune_all(&mut walk, &sublayers, &mut outcomes).unwrap();
        assert_eq!(outcomes[0].repairs[0].tuned, None);
        let tuned = outcomes[0].plan.decisions[0].tuned.clone().unwrap();
        assert_eq!(tuned.weight, walk.projection(0).unwrap().weight);
    }

    #[test]
    fn a_solution_that_the_element_type_cannot_hold_is_not_taken() {
        let mut walk = FakeWalk::new(1, 4);
        walk.element = ElementType::F16;
        walk.weights[0].mapv_inplace(|w| 1e6 * w);
        let sublayers = walk.sublayers.clone();
        let mut outcomes = vec![Outcome::untouched(&sublayers)];
        tune_all(&mut walk, &sublayers, &mut outcomes).unwrap();
        assert_eq!(outcomes[0].repairs[0].tuned, None);
    }
}
