//! What is summed up over the untouched model before anything is decided: moments of its features, and what its outputs
//! feel.

use std::ops::Range;

use kprune_passes::calculus::metric::{DRAW, DRAWS};
use kprune_passes::ir::Tensor;
use kprune_passes::methods::{Failure, Moments};
use kprune_passes::probe::Gram;
use ndarray::Array2;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::growing::Growing;
use super::{Calibrated, MEASURE_WORK, MEASURING, Region, named};
use crate::error::Error;
use crate::runtime::{Kept, Purpose, host};

/// Gram matrices of so many elements are formed in one pass; a sublayer's own, however wide it is.
const AT_ONCE: usize = 16 << 20;

impl Calibrated<'_> {
    /// See [`Walk::moments`](kprune_passes::methods::Walk::moments).
    pub(super) fn sum_moments(
        &self,
        tau: f64,
        each: &mut dyn FnMut(usize, Moments) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let count = self.probes.discovery.sublayers.len();
        let [mut felt, mut grams] =
            self.sum_sensitivity(tau, self.group(0).end == count).map_err(|e| self.traced(e))?;
        let mut states: Vec<Kept> = self.world.batches.iter().map(|_| Kept::default()).collect();
        let mut start = 0;
        while start < count {
            let group = self.group(start);
            if grams.is_empty() {
                grams = self.grams_of(group.clone(), &mut states).map_err(|e| self.traced(e))?;
            }
            for (t, gram) in group.clone().zip(grams.drain(..)) {
                each(t, Moments { felt: std::mem::take(&mut felt[t]), gram })?;
            }
            start = group.end;
        }
        Ok(())
    }

    /// What is felt of every sublayer, and if wanted their Gram matrices as well.
    fn sum_sensitivity(&self, tau: f64, with_grams: bool) -> Result<[Vec<Array2<f64>>; 2], Error> {
        let graph = self.probes.sensitivity(tau, with_grams);
        let graph = graph.map_err(|e| Error::Runtime { doing: MEASURING.into(), reason: e.to_string() })?;
        let mut session = self.world.runtime.session(&graph.model, MEASURING, Purpose::Work)?;
        let (count, outputs) = (self.probes.discovery.sublayers.len(), graph.outputs);
        let at = |grams: Vec<Option<Gram>>| grams.into_iter().enumerate().filter_map(|(t, gram)| Some((t, gram?)));
        let mut felt = Matrices::new(at(outputs.felt).collect())?;
        let mut grams = Matrices::new(outputs.grams.into_iter().enumerate().collect())?;
        let mut random = ChaCha8Rng::seed_from_u64(self.world.seed);
        for batch in self.world.batches {
            self.world.runtime.check_cancelled()?;
            let draw = host(&Tensor::from_i64s(&[], &[random.random_range(0..DRAWS)]))?;
            let find = |name: &str| match name {
                DRAW => Some(draw.value()),
                _ => felt.growing.find(name).or_else(|| grams.growing.find(name)).or_else(|| batch.find(name)),
            };
            let mut values = session.run_keeping(find, |_| true)?;
            felt.growing.take(&mut values, batch.padded)?;
            grams.growing.take(&mut values, batch.padded)?;
            // Gram matrices that are formed apart are a part of the work.
            self.world.progress.advance((MEASURE_WORK - usize::from(!with_grams)) * count);
        }
        let mut all: Vec<_> = (0..count).map(|t| Array2::zeros([self.sublayer(t).projection.outputs; 2])).collect();
        felt.finish(self)?.into_iter().for_each(|(t, sum)| all[t] = sum);
        Ok([all, grams.finish(self)?.into_iter().map(|(_, gram)| gram).collect()])
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
    fn grams_of(&self, group: Range<usize>, states: &mut [Kept]) -> Result<Vec<Array2<f64>>, Error> {
        let graph = self.probes.moments(group.clone());
        let outputs = graph.outputs;
        let mut region = Region::new(self, group.end - 1, graph.model, outputs.crossing)?;
        let mut grams = Matrices::new(group.clone().zip(outputs.grams).collect())?;
        for (state, batch) in states.iter_mut().zip(self.world.batches) {
            self.world.runtime.check_cancelled()?;
            let mut values = region.run(&state.load()?, batch, &|name| grams.growing.find(name))?;
            grams.growing.take(&mut values, batch.padded)?;
            region.keep(&mut values, state, &self.cache)?;
            self.world.progress.advance(group.len());
        }
        Ok(grams.finish(self)?.into_iter().map(|(_, gram)| gram).collect())
    }
}

/// Gram matrices of sublayers, as they grow.
struct Matrices {
    /// The sublayer of each, and its blocks.
    grams: Vec<(usize, Gram)>,
    /// The blocks of all.
    growing: Growing,
}

impl Matrices {
    fn new(grams: Vec<(usize, Gram)>) -> Result<Self, Error> {
        let growing = Growing::new(grams.iter().flat_map(|(_, gram)| &gram.sums))?;
        Ok(Self { grams, growing })
    }

    fn finish(self, walk: &Calibrated) -> Result<Vec<(usize, Array2<f64>)>, Error> {
        let of: Vec<usize> = self.grams.iter().flat_map(|(t, gram)| vec![*t; gram.sums.len()]).collect();
        let mut blocks = self.growing.finish(&|i| named(of[i], walk.sublayer(of[i])))?.into_iter();
        let whole =
            |(t, gram): (usize, Gram)| (t, gram.whole(&blocks.by_ref().take(gram.sums.len()).collect::<Vec<_>>()));
        Ok(self.grams.into_iter().map(whole).collect())
    }
}
