//! Teacher and students, led over the calibration set sublayer by sublayer.
//!
//! One walk may lead several students, each pruned to another budget: they share the teacher's runs, and what is
//! measured on the one that leads.

mod knowledge;
mod teacher;
mod tuning;

pub use knowledge::{Knowledge, Measured, candidates};
pub(crate) use teacher::ODD_OUTPUT;
pub use tuning::TuningSums;

use std::collections::HashMap;

use kprune_passes::discover::Sublayer;
use kprune_passes::ir::{ElementType, Model, Tensor};
use kprune_passes::measure::{Measuring, WEIGHT};
use kprune_passes::plan::Tuned;
use ndarray::{Array1, Array2, ArrayD, Axis, Ix1, Ix2, concatenate};

use crate::data::Batch;
use crate::error::Error;
use crate::progress::Progress;
use crate::runtime::{self, Cache, Held, Kept, Runtime, Session, Values};

/// What is being done while knowledge is measured.
pub const MEASURING: &str = "measuring knowledge";

/// What measuring costs per sublayer, against running one: about as much again backward, and the sums.
const KNOWLEDGE_WORK: usize = 3;

/// The work of meeting the teacher and of measuring at the sublayers `measured`, in batches through one sublayer.
pub fn measuring_work(sublayers: usize, measured: impl Iterator<Item = usize>, batches: usize) -> usize {
    let measuring: usize = measured.map(|t| KNOWLEDGE_WORK * (sublayers - t)).sum();
    batches * (sublayers + measuring)
}

/// The work of tuning and advancing so many students through all sublayers.
pub fn tuning_work(sublayers: usize, students: usize, batches: usize) -> usize {
    batches * students * (2 * sublayers - 1)
}

/// Teacher and students below the sublayer in hand: for every batch, the values that cross into it.
pub struct Walk<'a> {
    runtime: &'a Runtime,
    /// What is known of the teacher.
    measuring: Measuring<'a>,
    batches: &'a [Batch],
    progress: &'a dyn Progress,
    cache: Cache,
    /// For every batch, the teacher's outputs.
    outputs: Vec<Kept>,
    /// For every sublayer, the mean over the outputs of W_cj^2, for every column c of its features.
    mean_squares: Vec<Array1<f64>>,
    /// What was summed up before anything was pruned.
    untouched: Option<knowledge::Totals>,
    teacher: Vec<Kept>,
    students: Vec<Student<'a>>,
    /// The student on which knowledge is measured.
    leader: usize,
}

/// The model as it is pruned so far, to one budget.
struct Student<'a> {
    measuring: Measuring<'a>,
    /// For every batch, the values that cross into the sublayer in hand.
    states: Vec<Kept>,
}

impl<'a> Walk<'a> {
    /// Starts below the first sublayer; values are kept in `cache`.
    ///
    /// # Errors
    /// Where the weight of a projection is no matrix.
    pub fn new(
        runtime: &'a Runtime,
        measuring: Measuring<'a>,
        batches: &'a [Batch],
        cache: Cache,
        progress: &'a dyn Progress,
    ) -> Result<Self, Error> {
        let mean_square = |sublayer| {
            let weight = original_weight(measuring.model, sublayer)?;
            Ok(weight.mapv_into(|w| w * w).mean_axis(Axis(1)).unwrap_or_default())
        };
        let mean_squares = measuring.discovery.sublayers.iter().map(mean_square).collect::<Result<_, Error>>()?;
        let mut walk = Self {
            runtime,
            measuring,
            batches,
            progress,
            cache,
            outputs: Vec::new(),
            mean_squares,
            untouched: None,
            teacher: Vec::new(),
            students: Vec::new(),
            leader: 0,
        };
        walk.start(1, 0);
        Ok(walk)
    }

    /// Goes back below the first sublayer, with so many students of which nothing is pruned yet.
    pub fn start(&mut self, students: usize, leader: usize) {
        let states = || self.batches.iter().map(|_| Kept::default()).collect();
        self.teacher = states();
        self.students =
            (0..students).map(|_| Student { measuring: self.measuring.clone(), states: states() }).collect();
        self.leader = leader;
    }

    /// Ends the walk and lets go of all values.
    pub fn finish(self) -> Measuring<'a> {
        self.measuring
    }

    /// Where a number was seen, in words.
    fn place(&self, t: usize, batch: &Batch) -> String {
        format!("sublayer {} ({}), {}", t + 1, self.sublayer(t).name, batch.describe())
    }

    fn sublayer(&self, t: usize) -> &Sublayer {
        &self.measuring.discovery.sublayers[t]
    }

    /// Advances student `s` through sublayer `t` with the kept `columns` of its features, which
    /// [`Walk::tuning_sums`] left, and its tuned projection.
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    pub fn advance(&mut self, s: usize, t: usize, columns: &[usize], tuned: &Tuned) -> Result<(), Error> {
        let measuring = &mut self.students[s].measuring;
        let graph = measuring.advance(t);
        measuring.settle(t, tuned).map_err(|e| Error::internal(e.to_string()))?;
        let mut region = Region::new(self, t, graph.model, graph.outputs)?;
        let bias = tuned.bias.view().insert_axis(Axis(0));
        let rows = concatenate(Axis(0), &[tuned.weight.select(Axis(0), columns).view(), bias]);
        let rows = rows.map_err(|e| Error::internal(e.to_string()))?;
        let projection = &self.sublayer(t).projection;
        let element = self.measuring.seen.element(projection.weight).unwrap_or(ElementType::F32);
        let stored = if projection.transposed { rows.reversed_axes() } else { rows };
        let weight = host(element, &stored.into_dyn())?;
        for (state, batch) in self.students[s].states.iter_mut().zip(self.batches) {
            self.runtime.check_cancelled()?;
            let mut values = region.run(&state.load()?, batch, Some(&weight))?;
            region.keep(&mut values, state, &self.cache)?;
            self.progress.advance(1);
        }
        Ok(())
    }
}

/// A session of one sublayer.
struct Region {
    /// `None` where there is nothing to run.
    session: Option<Session>,
    /// What it makes that crosses into the next sublayer.
    crossing: Vec<String>,
    /// What crosses into the next sublayer.
    next: Vec<String>,
}

impl Region {
    fn new(walk: &Walk, t: usize, model: Model, crossing: Vec<String>) -> Result<Self, Error> {
        let is_empty = model.graph.outputs().is_empty();
        let session = (!is_empty).then(|| walk.runtime.session(&model, "running a sublayer", true)).transpose()?;
        let next = walk.measuring.crossings.at(t + 1).iter();
        let next = next.map(|&v| walk.measuring.model.graph.name(v).to_string()).collect();
        Ok(Self { session, crossing, next })
    }

    fn run(&mut self, state: &HashMap<String, Held>, batch: &Batch, weight: Option<&Held>) -> Result<Values, Error> {
        let find = |name: &str| match name {
            WEIGHT => weight,
            _ => state.get(name),
        };
        let Some(session) = &mut self.session else { return Ok(Values::new()) };
        session.run_keeping(|name| find(name).map(Held::value).or_else(|| batch.find(name)), |_| true)
    }

    /// Moves a state into the next sublayer.
    fn keep(&self, values: &mut Values, state: &mut Kept, cache: &Cache) -> Result<(), Error> {
        state.retain(|name| self.next.iter().any(|n| n == name));
        for name in &self.crossing {
            if let Some(value) = values.remove(name) {
                cache.add(state, name.clone(), value)?;
            }
        }
        Ok(())
    }
}

/// The weight of a sublayer's projection, features by outputs.
///
/// # Errors
/// Where it is no matrix of floating-point numbers.
pub fn original_weight(model: &Model, sublayer: &Sublayer) -> Result<Array2<f64>, Error> {
    let tensor = model.graph.constant(sublayer.projection.weight);
    let array = tensor.and_then(|t| t.to_f64().ok()).and_then(|a| a.into_dimensionality::<Ix2>().ok());
    let array = array.ok_or_else(|| Error::internal(format!("the weight of {} is no matrix", sublayer.name)))?;
    Ok(if sublayer.projection.transposed { array.reversed_axes() } else { array })
}

fn vector(values: &Values, name: &str, place: &dyn Fn() -> String) -> Result<Array1<f64>, Error> {
    let value = values.get(name).ok_or_else(|| Error::internal(format!("a measuring graph gave no {name:?}")))?;
    if let Some(odd) = runtime::odd(value)? {
        return Err(not_finite(place(), "a sum over its features", odd.value));
    }
    runtime::scalars(value)?.into_dimensionality::<Ix1>().map_err(|e| Error::internal(e.to_string()))
}

/// A number that is not finite, where all before it were.
pub(crate) fn not_finite(place: String, what: &str, value: f64) -> Error {
    let help = "leave these samples out; where that does not help, the model overflows within: keep it in float32, or \
                scale its inputs";
    Error::NotFinite { place, what: what.into(), value, help: help.into() }
}

fn host(element: ElementType, array: &ArrayD<f64>) -> Result<Held, Error> {
    runtime::host(&Tensor::from_floats(element, array).map_err(|e| Error::internal(e.to_string()))?)
}
