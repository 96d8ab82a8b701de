//! The normal equations of projections, and the teacher's way through a sublayer.

use std::collections::HashMap;

use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::linalg::least_squares::Sums;
use kprune_passes::methods::Equations;
use kprune_passes::probe::{COLUMNS, EquationOutputs, FEATURES, Probes, SO_FAR, stream_input};
use ndarray::{Array2, Ix2};
use ort::value::DynValue;

use super::{Calibrated, Region, Student, vector};
use crate::data::Batch;
use crate::error::{Error, not_finite};
use crate::runtime::{self, Held, Runtime, Session};

/// Sums over so many tokens are formed in f32, and added up in f64.
const IN_SINGLE: usize = 4096;

impl Calibrated<'_> {
    /// See [`Walk::equations`](kprune_passes::methods::Walk::equations). The columns of the units that stay are kept
    /// for [`Calibrated::advance`].
    pub(super) fn sum_equations(&mut self, t: usize, keep: &[Vec<bool>]) -> Result<Vec<Equations>, Error> {
        let graph = self.pruned_teacher.as_ref().unwrap_or(&self.probes).region(t);
        let outputs = graph.outputs;
        let mut teacher = Region::new(self, t, graph.model, outputs.crossing)?;
        let own = |(student, keep): (&Student, &Vec<bool>)| Own::new(self.world.runtime, &student.probes, t, keep);
        let mut all = self.students.iter().zip(keep).map(own).collect::<Result<Vec<_>, _>>()?;
        for (i, batch) in self.world.batches.iter().enumerate() {
            self.world.runtime.check_cancelled()?;
            let state = self.teacher[i].load()?;
            let mut values = teacher.run(&state, batch, None)?;
            let streams = outputs.streams.iter().enumerate();
            let streams: HashMap<String, &DynValue> = streams
                .filter_map(|(site, made)| {
                    Some((stream_input(site), values.get(made).or_else(|| state.get(made).map(Held::value))?))
                })
                .collect();
            for (student, own) in self.students.iter_mut().zip(&mut all) {
                let features = own.add(batch, &student.states[i].load()?, &streams)?;
                if let Some(features) = features {
                    self.cache.add(&mut student.states[i], FEATURES.to_string(), features)?;
                }
                self.world.progress.advance(1);
            }
            drop(streams);
            teacher.keep(&mut values, &mut self.teacher[i], &self.cache)?;
        }
        all.into_iter().map(Own::finish).collect()
    }
}

/// The equations of one student, as they grow.
struct Own {
    /// The sublayer, in words.
    place: String,
    session: Session,
    names: EquationOutputs,
    /// The columns that stay, for graphs from which the others could not be cut out.
    columns: Held,
    /// Of the samples to solve for, and of those that are held out.
    sums: [Growing; 2],
}

impl Own {
    fn new(runtime: &Runtime, probes: &Probes, t: usize, keep: &[bool]) -> Result<Self, Error> {
        let sublayer = &probes.discovery.sublayers[t];
        let graph = probes.equations(t, keep);
        let graph = graph.map_err(|e| Error::Runtime { doing: "tuning".into(), reason: e.to_string() })?;
        let session = runtime.session(&graph.model, "summing up features", true)?;
        let columns: Vec<i64> = sublayer.columns(keep).into_iter().map(|c| c as i64).collect();
        let (kept, outputs) = (columns.len(), sublayer.projection.outputs);
        let sums = [Growing::new(kept, outputs)?, Growing::new(kept, outputs)?];
        let columns = runtime::host(&Tensor::from_i64s(&[kept], &columns))?;
        let place = format!("sublayer {} ({})", t + 1, sublayer.name);
        Ok(Self { place, session, names: graph.outputs, columns, sums })
    }

    /// Adds a batch; returns the kept features.
    fn add(
        &mut self,
        batch: &Batch,
        state: &HashMap<String, Held>,
        streams: &HashMap<String, &DynValue>,
    ) -> Result<Option<DynValue>, Error> {
        let growing = &mut self.sums[batch.is_held_out as usize];
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
            let missing = || Error::internal(format!("a probe gave no {name:?}"));
            *sum = results.remove(name).ok_or_else(missing)?.into();
        }
        growing.add_up_after(batch.padded)?;
        Ok(names.features.as_ref().and_then(|name| results.remove(name)))
    }

    fn finish(self) -> Result<Equations, Error> {
        let [solve, held_out] = self.sums;
        let equations = Equations { solve: solve.finish()?, held_out: held_out.finish()? };
        for sums in [&equations.solve, &equations.held_out] {
            if let Some(value) = sums.gram.iter().chain(&sums.cross).find(|x| !x.is_finite()) {
                return Err(not_finite(self.place, "a sum over its features", *value));
            }
        }
        Ok(equations)
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
