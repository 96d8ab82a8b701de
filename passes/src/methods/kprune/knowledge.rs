//! Knowledge measurement: what the model would lose with each unit.

use ndarray::{Array1, Axis};

use super::Settings;
use crate::calculus::loss::Criterion;
use crate::discover::{Sublayer, Unit};
use crate::methods::{Failure, Walk};

/// What the two knowledges of a unit are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Knowledge {
    /// How much the loss would rise without the unit.
    pub predictive: f64,
    /// How much its contribution to the projection's output weighs.
    pub representational: f64,
}

/// The knowledge of the units of sublayer `t` and of all downstream, by sublayer and unit.
///
/// K_pred = 1/N * sum over mini-batches of 1/2 * mean over the unit's columns of (dL/dm)^2, where dL/dm is the mask
/// gradient of a column, of the distillation loss of a whole mini-batch, and N the number of samples;
/// K_rep = 1/T * mean over the unit's columns c of ||F_c||^2 * mean over j of W_cj^2, T the number of real tokens
/// (Park et al. 2024, knowledge measurement). Heads that go together know what they know together: the sum. At the first sublayer the student is still the teacher, and K_pred is
/// zero. Of several students, it is the leader's.
///
/// # Errors
/// As [`Walk::columns`] and [`Walk::projection`].
pub(super) fn measure(
    walk: &mut dyn Walk,
    sublayers: &[Sublayer],
    t: usize,
    settings: &Settings,
    mean_squares: &[Array1<f64>],
) -> Result<Vec<Vec<Knowledge>>, Failure> {
    let mut squares: Vec<Array1<f64>> = sublayers[t..].iter().map(|s| Array1::zeros(s.projection.width)).collect();
    let mut square = |gradients: &[Array1<f64>]| {
        squares.iter_mut().zip(gradients).for_each(|(square, gradient)| *square += &gradient.mapv(|g| g * g));
    };
    let energies = walk.columns(t, Criterion::Teacher { tau: settings.temperature }, &mut square)?;
    let samples = walk.samples() as f64;
    let mut knowledge = Vec::new();
    for (i, (sublayer, (squares, energies))) in sublayers[t..].iter().zip(squares.iter().zip(&energies)).enumerate() {
        let (mean_squares, tokens) = (&mean_squares[t + i], walk.tokens(t + i));
        let unit = |unit: &Unit| Knowledge {
            predictive: unit.members as f64 * 0.5 * mean(&unit.columns, |c| squares[c]) / samples,
            representational: unit.members as f64 * mean(&unit.columns, |c| energies[c] * mean_squares[c]) / tokens,
        };
        knowledge.push(sublayer.units.iter().map(unit).collect());
    }
    Ok(knowledge)
}

/// For every column c of a sublayer's features, the mean over j of W_cj^2: `[width]`, by sublayer.
///
/// # Errors
/// As [`Walk::projection`].
pub(super) fn mean_squares(walk: &dyn Walk, sublayers: &[Sublayer]) -> Result<Vec<Array1<f64>>, Failure> {
    let mean_square = |t| {
        let squares = walk.projection(t)?.weight.mapv_into(|w| w * w);
        Ok(squares.mean_axis(Axis(1)).unwrap_or_default())
    };
    (0..sublayers.len()).map(mean_square).collect()
}

fn mean(columns: &[usize], of: impl Fn(usize) -> f64) -> f64 {
    columns.iter().map(|&c| of(c)).sum::<f64>() / columns.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::FakeWalk;

    #[test]
    fn both_knowledges_are_those_of_the_formulas() {
        let mut walk = FakeWalk::new(2, 3);
        walk.gradients = vec![vec![Array1::from(vec![1.0, 2.0, 0.0]); 2], vec![Array1::from(vec![3.0, 0.0, 0.0]); 2]];
        let sublayers = walk.sublayers.clone();
        let squares = mean_squares(&walk, &sublayers).unwrap();
        let knowledge = measure(&mut walk, &sublayers, 1, &Settings::default(), &squares).unwrap();
        assert_eq!(knowledge.len(), 1);
        let predictive: Vec<f64> = knowledge[0].iter().map(|k| k.predictive * walk.samples() as f64).collect();
        assert_eq!(predictive, [0.5 * (1.0 + 9.0), 0.5 * 4.0, 0.0]);
        let features = &walk.features[1];
        let weight = walk.projection(1).unwrap().weight;
        for (unit, k) in knowledge[0].iter().enumerate() {
            let energy: f64 = features.column(unit).iter().map(|f| f * f).sum();
            let mean = weight.row(unit).iter().map(|w| w * w).sum::<f64>() / weight.ncols() as f64;
            assert!((k.representational - energy * mean / walk.tokens(1)).abs() < 1e-12);
        }
    }
}
