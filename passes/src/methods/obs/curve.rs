//! Curves: the error of a sublayer against how many of its units are gone.

use ndarray::{Array2, ArrayView2, s};

use super::eliminate::{Elimination, Gone};
use super::settings::Settings;
use crate::discover::{Kind, Sublayer};
use crate::linalg::least_squares::with_ridge;
use crate::linalg::{positive, product};
use crate::methods::{Failure, Stored};

/// The ridge of a Gram matrix, relative to the mean of its diagonal.
const RIDGE: f64 = 1e-4;

/// What is known of the units of a sublayer in the model itself.
pub(super) struct Curve {
    /// All units, in the order in which they go.
    pub(super) gone: Vec<Gone>,
}

impl Curve {
    /// Eliminates all units of the model itself, whose Gram matrix is of all columns and a column of ones.
    ///
    /// # Errors
    /// As `check`, which is asked on the way.
    pub(super) fn measure(
        sublayer: &Sublayer,
        gram: Array2<f64>,
        metric: &Array2<f64>,
        stored: &Stored,
        settings: &Settings,
        check: &dyn Fn() -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let centred = centred(&gram, stored.has_bias);
        // Of wide sublayers each of these matrices takes as much memory as a large part of the model.
        drop(gram);
        let inverse = inverse(centred);
        let units: Vec<Vec<usize>> = sublayer.units.iter().map(|u| u.columns.clone()).collect();
        let weight = product(stored.weight.view(), metric.view());
        let mut elimination = Elimination::new(inverse, &weight, &units);
        let mut gone = Vec::new();
        while elimination.left() > 0 {
            check()?;
            gone.extend(elimination.remove(chunk(sublayer, elimination.left(), settings)));
        }
        Ok(Self { gone })
    }

    /// Those of the units that stay longest.
    pub(super) fn last(&self, count: usize) -> Vec<bool> {
        let mut keep = vec![false; self.gone.len()];
        self.gone.iter().rev().take(count).for_each(|gone| keep[gone.unit] = true);
        keep
    }

    /// What each unit costs when it goes, in their order.
    pub(super) fn errors(&self) -> Vec<f64> {
        let mut errors = vec![0.0; self.gone.len()];
        self.gone.iter().for_each(|gone| errors[gone.unit] = gone.error);
        errors
    }
}

/// How many of the units that are left go at once: one head, or a share of the neurons.
pub(super) fn chunk(sublayer: &Sublayer, left: usize, settings: &Settings) -> usize {
    match sublayer.kind {
        Kind::Head => 1,
        Kind::Neuron => ((left as f64 * settings.chunk) as usize).max(1),
    }
}

/// A Gram matrix of features without the column of ones; of features less their mean, where a bias makes up for the mean.
pub(super) fn centred(gram: &Array2<f64>, has_bias: bool) -> Array2<f64> {
    without_mean(gram, gram.slice(s![.., ..gram.ncols() - 1]), has_bias)
}

/// The same of sums Fa^T Y.
pub(super) fn without_mean(gram: &Array2<f64>, cross: ArrayView2<f64>, has_bias: bool) -> Array2<f64> {
    let width = gram.nrows() - 1;
    let plain = cross.slice(s![..width, ..]).to_owned();
    let rows = gram[[width, width]];
    match has_bias && rows > 0.0 {
        true => plain - (gram.slice(s![..width, width..]).to_owned() / rows).dot(&cross.slice(s![width.., ..])),
        false => plain,
    }
}

/// The inverse of a Gram matrix with a ridge, a larger one where that fails.
pub(super) fn inverse(mut gram: Array2<f64>) -> Array2<f64> {
    let diagonal = gram.diag().to_owned();
    with_ridge(&mut gram, RIDGE, positive::inverse).unwrap_or_else(|| {
        let mean = diagonal.mean().unwrap_or(0.0).max(f64::MIN_POSITIVE);
        Array2::from_diag(&diagonal.mapv(|d| 1.0 / (d + mean)))
    })
}
