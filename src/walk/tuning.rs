//! The sums that a projection is solved from.

use std::collections::HashMap;

use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::measure::{COLUMNS, FEATURES, Measuring, SO_FAR, TuningOutputs, stream_input};
use kprune_passes::plan::Decision;
use kprune_passes::tune::Sums;
use ndarray::{Array2, Ix2};
use ort::value::DynValue;

use super::{Region, Walk, not_finite, vector};
use crate::data::Batch;
use crate::error::Error;
use crate::runtime::{self, Held, Runtime, Session};

/// Sums over so many tokens are formed in f32, and added up in f64.
const IN_SINGLE: usize = 4096;

/// Sums for tuning, and those of the batches that were held out.
pub struct TuningSums {
    /// Of the batches to solve for.
    pub solve: Sums,
    /// Of the batches to judge by.
    pub held_out: Sums,
}

impl Walk<'_> {
    /// Advances the teacher through sublayer `t` and sums up what tuning every student's projection needs for the
    /// units that it keeps. Those columns of its features are kept for [`Walk::advance`].
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    pub fn tuning_sums(&mut self, t: usize, decisions: &[&Decision]) -> Result<Vec<TuningSums>, Error> {
        let graph = self.measuring.region(t);
        let outputs = graph.outputs;
        let mut teacher = Region::new(self, t, graph.model, outputs.crossing)?;
        let mut tunings = Vec::new();
        for (student, decision) in self.students.iter().zip(decisions) {
            tunings.push(Tuning::new(self.runtime, &student.measuring, t, decision)?);
        }
        for (i, batch) in self.batches.iter().enumerate() {
            self.runtime.check_cancelled()?;
            let below = self.teacher[i].load()?;
            let mut values = teacher.run(&below, batch, None)?;
            let streams = outputs.streams.iter().enumerate();
            let streams: HashMap<String, &DynValue> = streams
                .filter_map(|(site, made)| {
                    Some((stream_input(site), values.get(made).or_else(|| below.get(made).map(Held::value))?))
                })
                .collect();
            for (student, tuning) in self.students.iter_mut().zip(&mut tunings) {
                let features = tuning.add(i, batch, self.batches.len(), &student.states[i].load()?, &streams)?;
                if let Some(features) = features {
                    self.cache.add(&mut student.states[i], FEATURES.to_string(), features)?;
                }
                self.progress.advance(1);
            }
            drop(streams);
            teacher.keep(&mut values, &mut self.teacher[i], &self.cache)?;
        }
        tunings.into_iter().map(Tuning::finish).collect()
    }
}

/// The sums of one student, as they grow.
struct Tuning {
    /// The sublayer, in words.
    place: String,
    session: Session,
    names: TuningOutputs,
    /// The columns that stay, for graphs from which the others could not be cut out.
    columns: Held,
    /// Of the batches to solve for, and of those that are held out.
    sums: [Growing; 2],
}

impl Tuning {
    fn new(runtime: &Runtime, measuring: &Measuring, t: usize, decision: &Decision) -> Result<Self, Error> {
        let sublayer = &measuring.discovery.sublayers[t];
        let graph = measuring.tuning(t, &decision.keep);
        let graph = graph.map_err(|e| Error::Runtime { doing: "tuning".into(), reason: e.to_string() })?;
        let session = runtime.session(&graph.model, "summing up features", true)?;
        let columns: Vec<i64> = decision.columns(sublayer).into_iter().map(|c| c as i64).collect();
        let (kept, outputs) = (columns.len(), sublayer.projection.outputs);
        let sums = [Growing::new(kept, outputs)?, Growing::new(kept, outputs)?];
        let columns = runtime::host(&Tensor::from_i64s(&[kept], &columns))?;
        let place = format!("sublayer {} ({})", t + 1, sublayer.name);
        Ok(Self { place, session, names: graph.outputs, columns, sums })
    }

    /// Adds batch `i` of so many; returns the kept features.
    fn add(
        &mut self,
        i: usize,
        batch: &Batch,
        batches: usize,
        state: &HashMap<String, Held>,
        streams: &HashMap<String, &DynValue>,
    ) -> Result<Option<DynValue>, Error> {
        let growing = &mut self.sums[is_held_out(i, batches) as usize];
        let so_far = |name: &str| SO_FAR.iter().position(|s| *s == name).map(|place| growing.recent[place].value());
        let find = |name: &str| match name {
            COLUMNS => Some(self.columns.value()),
            _ => so_far(name)
                .or_else(|| streams.get(name).copied())
                .or_else(|| state.get(name).map(Held::value))
                .or_else(|| batch.find(name)),
        };
        let names = &self.names;
        let mut results = self.session.run_keeping(find, |name| name != names.energy)?;
        growing.total.energy +=
            vector(&results, &names.energy, &|| format!("{}, {}", self.place, batch.describe()))?.sum();
        for (sum, name) in growing.recent.iter_mut().zip(&names.sums) {
            let missing = || Error::internal(format!("a tuning graph gave no {name:?}"));
            *sum = results.remove(name).ok_or_else(missing)?.into();
        }
        growing.add_up_after(batch.padded)?;
        Ok(names.features.as_ref().and_then(|name| results.remove(name)))
    }

    fn finish(self) -> Result<TuningSums, Error> {
        let [solve, held_out] = self.sums;
        let sums = TuningSums { solve: solve.finish()?, held_out: held_out.finish()? };
        for sums in [&sums.solve, &sums.held_out] {
            if let Some(value) = sums.gram.iter().chain(&sums.cross).find(|x| !x.is_finite()) {
                return Err(not_finite(self.place, "a sum over its features", *value));
            }
        }
        Ok(sums)
    }
}

/// Sums that grow batch by batch.
struct Growing {
    /// In f64, on the host.
    total: Sums,
    /// Gram matrix and cross terms of the last batches, in f32, where sessions run.
    recent: [Held; 2],
    /// Tokens of those batches.
    tokens: usize,
}

impl Growing {
    fn new(kept: usize, outputs: usize) -> Result<Self, Error> {
        let total = Sums::zeros(kept, outputs);
        Ok(Self { recent: nothing(&total)?, total, tokens: 0 })
    }

    /// Takes note of a batch of so many tokens; adds the last batches to the total when there are enough.
    fn add_up_after(&mut self, tokens: usize) -> Result<(), Error> {
        self.tokens += tokens;
        if self.tokens >= IN_SINGLE { self.add_up() } else { Ok(()) }
    }

    fn add_up(&mut self) -> Result<(), Error> {
        let [gram, cross] = &self.recent;
        self.total.gram += &matrix(gram)?;
        self.total.cross += &matrix(cross)?;
        self.recent = nothing(&self.total)?;
        self.tokens = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<Sums, Error> {
        self.add_up()?;
        Ok(self.total)
    }
}

/// Sums of no batch yet, of the shapes of `like`.
fn nothing(like: &Sums) -> Result<[Held; 2], Error> {
    let zeros = |shape: &[usize]| {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        let tensor = Tensor::from_raw("", ElementType::F32, shape, bytes.into());
        runtime::host(&tensor.map_err(|e| Error::internal(e.to_string()))?)
    };
    Ok([zeros(like.gram.shape())?, zeros(like.cross.shape())?])
}

fn matrix(sum: &Held) -> Result<Array2<f64>, Error> {
    runtime::scalars(sum.value())?.into_dimensionality::<Ix2>().map_err(|e| Error::internal(e.to_string()))
}

/// Every tenth batch, and at least one where there are several.
fn is_held_out(batch: usize, batches: usize) -> bool {
    batches > 1 && batch % 10 == (batches / 2).min(5)
}
