//! Fisher information of the masks.

use ndarray::{Array1, Array2, Axis};

use crate::calculus::loss::Criterion;
use crate::discover::Sublayer;
use crate::methods::{Failure, Walk};

/// What the loss on labels feels of every unit of the unpruned model.
pub struct Fisher {
    /// For every sublayer, the gradients of the masks: [units, mini-batches].
    pub gradients: Vec<Array2<f64>>,
}

impl Fisher {
    /// Measures it in one pass, forward and backward.
    ///
    /// g_u^b is the derivative of the mean loss of mini-batch b with respect to the mask of unit u: the sum over the unit's
    /// columns and over all tokens of feature times gradient (Kwon et al. 2022, Fisher-based mask search).
    ///
    /// # Errors
    /// As [`Walk::columns`].
    pub fn measure(walk: &mut dyn Walk, sublayers: &[Sublayer]) -> Result<Self, Failure> {
        let mut batches: Vec<Vec<Array1<f64>>> = vec![Vec::new(); sublayers.len()];
        walk.columns(0, Criterion::Labels, &mut |columns| {
            for ((sublayer, columns), batches) in sublayers.iter().zip(columns).zip(&mut batches) {
                let unit = |columns_of: &Vec<usize>| columns_of.iter().map(|&c| columns[c]).sum::<f64>();
                batches.push(sublayer.units.iter().map(|u| unit(&u.columns)).collect());
            }
        })?;
        let matrix = |(sublayer, batches): (&Sublayer, Vec<Array1<f64>>)| {
            let mut gradients = Array2::zeros((sublayer.units.len(), batches.len()));
            gradients.axis_iter_mut(Axis(1)).zip(&batches).for_each(|(mut column, batch)| column.assign(batch));
            gradients
        };
        Ok(Self { gradients: sublayers.iter().zip(batches).map(matrix).collect() })
    }

    /// I_u = sum over mini-batches of (g_u^b)^2, by sublayer and unit.
    pub fn diagonal(&self) -> Vec<Vec<f64>> {
        let square = |gradients: &Array2<f64>| gradients.mapv(|g| g * g).sum_axis(Axis(1)).to_vec();
        self.gradients.iter().map(square).collect()
    }
}
