//! The normal equations of projections, and the teacher's way through a sublayer.

use std::collections::HashMap;

use kprune_passes::ir::Tensor;
use kprune_passes::linalg::least_squares::Sums;
use kprune_passes::methods::Equations;
use kprune_passes::probe::{COLUMNS, EquationOutputs, FEATURES, Probes, stream_input};
use ort::value::DynValue;

use super::growing::Growing;
use super::{Calibrated, Region, Student, named, vector};
use crate::data::Batch;
use crate::error::Error;
use crate::runtime::{self, Held, Purpose, Runtime, Session};

impl Calibrated<'_> {
    /// See [`Walk::equations`](kprune_passes::methods::Walk::equations). The columns of the units that stay are kept
    /// for [`Calibrated::advance`].
    pub(super) fn sum_equations(&mut self, t: usize, keep: &[Vec<bool>]) -> Result<Vec<Equations>, Error> {
        let graph = self.pruned_teacher.as_ref().unwrap_or(&self.probes).region(t);
        let outputs = graph.outputs;
        let mut teacher = Region::new(self, t, graph.model, outputs.crossing)?;
        let own = |(student, keep): (&Student, &Vec<bool>)| Own::new(self.world.runtime, &student.probes, t, keep);
        let mut all = self.students.iter().zip(keep).map(own).collect::<Result<Vec<_>, _>>()?;
        let sublayer = &self.probes.discovery.sublayers[t];
        self.students.iter_mut().zip(keep).for_each(|(student, keep)| student.columns = sublayer.columns(keep));
        for (i, batch) in self.world.batches.iter().enumerate() {
            self.world.runtime.check_cancelled()?;
            let state = self.teacher[i].load()?;
            let mut values = teacher.run(&state, batch, &|_| None)?;
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
    /// Gram matrix and cross terms of the samples to solve for, and of those that are held out.
    sums: [Growing; 2],
    /// The squared norm of the targets of either.
    energies: [f64; 2],
}

impl Own {
    fn new(runtime: &Runtime, probes: &Probes, t: usize, keep: &[bool]) -> Result<Self, Error> {
        let sublayer = &probes.discovery.sublayers[t];
        let graph = probes.equations(t, keep);
        let graph = graph.map_err(|e| Error::Runtime { doing: "tuning".into(), reason: e.to_string() })?;
        let session = runtime.session(&graph.model, "summing up features", Purpose::Work)?;
        let columns: Vec<i64> = sublayer.columns(keep).into_iter().map(|c| c as i64).collect();
        let growing = || Growing::new(graph.outputs.gram.sums.iter().chain([&graph.outputs.cross]));
        let sums = [growing()?, growing()?];
        let columns = runtime::host(&Tensor::from_i64s(&[columns.len()], &columns))?;
        Ok(Self { place: named(t, sublayer), session, names: graph.outputs, columns, sums, energies: [0.0; 2] })
    }

    /// Adds a batch; returns the kept features.
    fn add(
        &mut self,
        batch: &Batch,
        state: &HashMap<String, Held>,
        streams: &HashMap<String, &DynValue>,
    ) -> Result<Option<DynValue>, Error> {
        let part = batch.is_held_out as usize;
        let growing = &mut self.sums[part];
        let find = |name: &str| match name {
            COLUMNS => Some(self.columns.value()),
            _ => growing
                .find(name)
                .or_else(|| streams.get(name).copied())
                .or_else(|| state.get(name).map(Held::value))
                .or_else(|| batch.find(name)),
        };
        let names = &self.names;
        let mut results = self.session.run_keeping(find, |name| name != names.energy)?;
        let energy = vector(&results, &names.energy, &|| format!("{}, {}", self.place, batch.describe()))?;
        self.energies[part] += energy.sum();
        growing.take(&mut results, batch.padded)?;
        Ok(names.features.as_ref().and_then(|name| results.remove(name)))
    }

    fn finish(self) -> Result<Equations, Error> {
        let sums = |growing: Growing, energy: f64| {
            let mut found = growing.finish(&|_| self.place.clone())?;
            let cross = found.pop().ok_or_else(|| Error::internal("cross terms were expected"))?;
            Ok::<_, Error>(Sums { gram: self.names.gram.whole(&found), cross, energy })
        };
        let ([solve, held_out], [energy, held_out_energy]) = (self.sums, self.energies);
        Ok(Equations { solve: sums(solve, energy)?, held_out: sums(held_out, held_out_energy)? })
    }
}
