//! Scales: what every group of weights is multiplied with, learned beside the rates.
//!
//! What zeros take from a row, the weights that stay make up for, and of a quantised matrix it is a number of the file that
//! moves. This is ours: in the paper weights never change, and the scales that it learns, as OmniQuant does (Shao et al., ICLR
//! 2024), say where numbers are cut off.

use ndarray::Array2;

use super::allocation::Shape;
use crate::distil::Adam;

/// The scales of the matrices of a block, as they are learned: e to these powers, [rows, groups].
pub(super) struct Scales {
    powers: Vec<Array2<f32>>,
    adam: Adam,
}

impl Scales {
    /// All 1.
    pub(super) fn new(shapes: &[Shape]) -> Self {
        let powers: Vec<Array2<f32>> = shapes.iter().map(|shape| Array2::zeros(shape.scales())).collect();
        let adam = Adam::new(powers.iter().map(Array2::len));
        Self { powers, adam }
    }

    /// The scales as they are.
    pub(super) fn now(&self) -> Vec<Array2<f32>> {
        self.powers.iter().map(|powers| powers.mapv(f32::exp)).collect()
    }

    /// Moves the scales against the gradients with respect to their logarithms, where `done` is the share of all steps that
    /// are done: the rate falls to nothing.
    pub(super) fn step(&mut self, gradients: &[Array2<f64>], done: f64) {
        // A mean over scales instead of a sum: what Adam adds to avoid dividing by nothing is nothing beside it.
        let count: usize = self.powers.iter().map(Array2::len).sum();
        let rate = (RATE * (1.0 - done)) as f32;
        self.adam.start(0.0);
        for (i, (powers, gradient)) in self.powers.iter_mut().zip(gradients).enumerate() {
            let gradient: Vec<f32> = gradient.iter().map(|&g| g as f32).collect();
            let powers = powers.as_slice_mut().unwrap_or_default();
            self.adam.step(i, powers, &gradient, count as f32, rate);
        }
    }
}

/// How far a step moves a power at most, to begin with.
const RATE: f64 = 2e-2;
