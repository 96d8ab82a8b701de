//! The pass of the teacher over the calibration set.

use std::collections::HashSet;
use std::time::Instant;

use kprune_passes::ir::Model;
use kprune_passes::probe::ColumnSums;
use ndarray::Array1;

use super::{Calibrated, MEASURING, vector};
use crate::data::Batch;
use crate::error::Error;
use crate::runtime::{Purpose, Runtime, Session, Values};

/// The original itself is timed on one in so many batches.
const TIMED: usize = 8;

impl Calibrated<'_> {
    /// Runs the untouched model over the calibration set: what its outputs are, and what the units of all
    /// sublayers contribute. Returns the seconds that one pass of `original`, as it is, takes: it is run on
    /// every eighth batch, beside the other.
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    pub fn meet_teacher(&mut self, original: &Model) -> Result<f64, Error> {
        let graph = self.probes.teacher();
        let mut session = self.world.runtime.session(&graph.model, MEASURING, Purpose::Work)?;
        let mut yardstick = Yardstick::new(self.world.runtime, original)?;
        let mut energies = self.no_sums(&graph.outputs);
        for (i, batch) in self.world.batches.iter().enumerate() {
            yardstick.run(i, self.world.batches)?;
            let (values, found) = self.met(&mut session, &graph.outputs, batch)?;
            energies.iter_mut().zip(found).for_each(|(energy, found)| *energy += &found);
            self.outputs.push(self.cache.keep(values)?);
            self.world.progress.advance(self.probes.discovery.sublayers.len());
        }
        self.energies = energies;
        Ok(yardstick.seconds(self.world.batches))
    }

    /// What the untouched model gives for a batch, and the energies of all sublayers.
    fn met(
        &self,
        session: &mut Session,
        sums: &[ColumnSums],
        batch: &Batch,
    ) -> Result<(Values, Vec<Array1<f64>>), Error> {
        self.world.runtime.check_cancelled()?;
        let names: HashSet<&str> = sums.iter().map(|s| s.energy.as_str()).collect();
        let mut values = session.run_keeping(|name| batch.find(name), |name| !names.contains(name))?;
        check_outputs(&values, &names, batch)?;
        let energy = |sum: &ColumnSums| vector(&values, &sum.energy, &|| self.place(sum.sublayer, batch));
        let energies = sums.iter().map(energy).collect::<Result<_, _>>()?;
        values.retain(|name, _| !names.contains(name.as_str()));
        Ok((values, energies))
    }

    /// The same error, or that of the first batch for which the untouched model does not give numbers: a sum over all
    /// batches that is not finite does not say whose it is.
    pub(super) fn traced(&self, error: Error) -> Error {
        let Error::NotFinite { .. } = error else { return error };
        let graph = self.probes.teacher();
        let first = || {
            let mut session = self.world.runtime.session(&graph.model, MEASURING, Purpose::Work)?;
            self.world.batches.iter().try_for_each(|batch| self.met(&mut session, &graph.outputs, batch).map(drop))
        };
        first().err().unwrap_or(error)
    }

    /// The seconds that one pass of `original` takes, where nothing else is asked of it.
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    pub fn time(&mut self, original: &Model) -> Result<f64, Error> {
        let mut yardstick = Yardstick::new(self.world.runtime, original)?;
        for i in 0..self.world.batches.len() {
            self.world.runtime.check_cancelled()?;
            yardstick.run(i, self.world.batches)?;
            self.world.progress.advance(self.probes.discovery.sublayers.len());
        }
        Ok(yardstick.seconds(self.world.batches))
    }
}

/// The original, timed on one in so many batches.
struct Yardstick {
    session: Session,
    seconds: f64,
    /// Tokens of the batches that were timed, with padding.
    timed: usize,
}

impl Yardstick {
    fn new(runtime: &Runtime, original: &Model) -> Result<Self, Error> {
        Ok(Self { session: runtime.session(original, "running the original", Purpose::Work)?, seconds: 0.0, timed: 0 })
    }

    /// Runs batch `i`, where it is one of those.
    fn run(&mut self, i: usize, batches: &[Batch]) -> Result<(), Error> {
        if i % TIMED == (batches.len() / 2).min(TIMED / 2) {
            let start = Instant::now();
            self.session.run_with(|name| batches[i].find(name))?;
            self.seconds += start.elapsed().as_secs_f64();
            self.timed += batches[i].padded;
        }
        Ok(())
    }

    /// What all batches take.
    fn seconds(&self, batches: &[Batch]) -> f64 {
        let all: usize = batches.iter().map(|b| b.padded).sum();
        self.seconds * all as f64 / self.timed as f64
    }
}

/// What the original gives must be numbers, or nothing can be learnt from it.
fn check_outputs(values: &Values, sums: &HashSet<&str>, batch: &Batch) -> Result<(), Error> {
    let mut names: Vec<&String> = values.keys().filter(|name| !sums.contains(name.as_str())).collect();
    names.sort();
    for name in names {
        if let Some((place, odd)) = batch.odd(&values[name])? {
            return Err(Error::NotFinite {
                place,
                what: format!("the original's output {name:?}"),
                value: odd.value,
                help: ODD_OUTPUT.into(),
            });
        }
    }
    Ok(())
}

/// What to do where an output is not finite.
pub(crate) const ODD_OUTPUT: &str = "is the sample empty, or all padding? Leave it out, or give data whose masks are as \
    the model wants them (some take 1 or true for padding); an output that is meant to be so is left out with \
    --output-kind NAME:ignore";
