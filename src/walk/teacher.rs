//! The pass of the teacher over the calibration set.

use std::collections::HashSet;
use std::time::Instant;

use kprune_passes::ir::Model;

use super::knowledge::Totals;
use super::{MEASURING, Walk, vector};
use crate::error::Error;

/// The original itself is timed on one in so many batches.
const TIMED: usize = 8;

impl Walk<'_> {
    /// Runs the untouched model over the calibration set: what its outputs are, and what the units of all
    /// sublayers contribute. Returns the seconds that one pass of `original`, as it is, takes: it is run on
    /// every eighth batch, beside the other.
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    pub fn meet_teacher(&mut self, original: &Model) -> Result<f64, Error> {
        let graph = self.measuring.teacher();
        let mut session = self.runtime.session(&graph.model, MEASURING, true)?;
        let mut yardstick = self.runtime.session(original, "running the original", true)?;
        let sums: HashSet<&str> = graph.outputs.iter().map(|s| s.energy.as_str()).collect();
        let mut totals = Totals::zeros(self, &graph.outputs);
        let (mut seconds, mut timed) = (0.0, 0);
        for (i, batch) in self.batches.iter().enumerate() {
            self.runtime.check_cancelled()?;
            if i % TIMED == (self.batches.len() / 2).min(TIMED / 2) {
                let start = Instant::now();
                yardstick.run_with(|name| batch.find(name))?;
                seconds += start.elapsed().as_secs_f64();
                timed += batch.padded;
            }
            let mut values = session.run_keeping(|name| batch.find(name), |name| !sums.contains(name))?;
            for (energy, sum) in totals.energies.iter_mut().zip(&graph.outputs) {
                *energy += &vector(&values, &sum.energy)?;
            }
            values.retain(|name, _| !sums.contains(name.as_str()));
            self.outputs.push(self.cache.keep(values)?);
            self.progress.advance(self.measuring.discovery.sublayers.len());
        }
        self.untouched = Some(totals);
        let all: usize = self.batches.iter().map(|b| b.padded).sum();
        Ok(seconds * all as f64 / timed as f64)
    }
}
