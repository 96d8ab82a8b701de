//! What is summed up over the untouched model before anything is decided: moments of its features, and what its outputs
//! feel.

use std::ops::Range;

use kprune_passes::calculus::metric::{DRAW, DRAWS};
use kprune_passes::ir::Tensor;
use kprune_passes::methods::Failure;
use kprune_passes::probe::sum_input;
use ndarray::Array2;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::growing::Growing;
use super::{Calibrated, MEASURE_WORK, MEASURING, Region};
use crate::error::Error;
use crate::runtime::{Kept, host};

/// Gram matrices of so many elements are formed in one pass; a sublayer's own, however wide it is.
const AT_ONCE: usize = 16 << 20;

impl Calibrated<'_> {
    /// See [`Walk::sensitivity`](kprune_passes::methods::Walk::sensitivity).
    pub(super) fn sum_sensitivity(&self, tau: f64) -> Result<Vec<Array2<f64>>, Error> {
        let graph = self.probes.sensitivity(tau);
        let graph = graph.map_err(|e| Error::Runtime { doing: MEASURING.into(), reason: e.to_string() })?;
        let mut session = self.world.runtime.session(&graph.model, MEASURING, true)?;
        let felt: Vec<usize> = (0..graph.outputs.len()).filter(|&t| graph.outputs[t].is_some()).collect();
        let names: Vec<String> = graph.outputs.iter().flatten().cloned().collect();
        let inputs: Vec<String> = felt.iter().map(|&t| sum_input(t)).collect();
        let side = |t: usize| [self.sublayer(t).projection.outputs; 2];
        let mut growing = Growing::new(&felt.iter().map(|&t| side(t)).collect::<Vec<_>>())?;
        let mut random = ChaCha8Rng::seed_from_u64(self.world.seed);
        for batch in self.world.batches {
            self.world.runtime.check_cancelled()?;
            let draw = host(&Tensor::from_i64s(&[], &[random.random_range(0..DRAWS)]))?;
            let so_far = |name: &str| inputs.iter().position(|n| n == name).map(|place| growing.so_far(place));
            let find = |name: &str| if name == DRAW { Some(draw.value()) } else { so_far(name) };
            let mut values = session.run_keeping(|name| find(name).or_else(|| batch.find(name)), |_| true)?;
            growing.take(&mut values, &names, batch.padded)?;
            self.world.progress.advance(MEASURE_WORK * self.probes.discovery.sublayers.len());
        }
        let mut sums: Vec<_> = (0..graph.outputs.len()).map(|t| Array2::zeros(side(t))).collect();
        let found = growing.finish_all(&|i| format!("sublayer {} ({})", felt[i] + 1, self.sublayer(felt[i]).name))?;
        felt.iter().zip(found).for_each(|(&t, sum)| sums[t] = sum);
        Ok(sums)
    }

    /// See [`Walk::moments`](kprune_passes::methods::Walk::moments).
    pub(super) fn sum_moments(
        &self,
        each: &mut dyn FnMut(usize, Array2<f64>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut states: Vec<Kept> = self.world.batches.iter().map(|_| Kept::default()).collect();
        let mut start = 0;
        while start < self.probes.discovery.sublayers.len() {
            let group = self.group(start);
            for (t, gram) in group.clone().zip(self.moments_of(group.clone(), &mut states)?) {
                each(t, gram)?;
            }
            start = group.end;
        }
        Ok(())
    }

    /// The sublayers from `start` on whose Gram matrices are formed in one pass.
    fn group(&self, start: usize) -> Range<usize> {
        let sizes = self.probes.discovery.sublayers[start..].iter().map(|s| s.projection.width.pow(2));
        let mut elements = 0;
        let fitting = sizes.take_while(|size| {
            elements += size;
            elements <= AT_ONCE
        });
        start..start + fitting.count().max(1)
    }

    /// The Gram matrices of some sublayers; leads `states` through them.
    fn moments_of(&self, group: Range<usize>, states: &mut [Kept]) -> Result<Vec<Array2<f64>>, Error> {
        let graph = self.probes.moments(group.clone());
        let sums = graph.outputs.sums;
        let mut region = Region::new(self, group.end - 1, graph.model, graph.outputs.crossing)?;
        let inputs: Vec<String> = group.clone().map(sum_input).collect();
        let sides = group.clone().map(|t| [self.sublayer(t).projection.width + 1; 2]);
        let mut growing = Growing::new(&sides.collect::<Vec<_>>())?;
        for (state, batch) in states.iter_mut().zip(self.world.batches) {
            self.world.runtime.check_cancelled()?;
            let so_far = |name: &str| inputs.iter().position(|n| n == name).map(|place| growing.so_far(place));
            let mut values = region.run(&state.load()?, batch, &so_far)?;
            growing.take(&mut values, &sums, batch.padded)?;
            region.keep(&mut values, state, &self.cache)?;
            self.world.progress.advance(group.len());
        }
        let start = group.start;
        growing.finish_all(&|i| format!("sublayer {} ({})", start + i + 1, self.sublayer(start + i).name))
    }
}
