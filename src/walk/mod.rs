//! Teacher and students, led over the calibration set sublayer by sublayer: whatever a method asks of a run.
//!
//! Several students, each pruned to another budget, share the teacher's runs, and what is measured on the one that
//! leads. What lies upstream of the sublayer in hand never runs again: the values that cross into it are kept. No method
//! is known here.

mod columns;
mod equations;
mod growing;
mod masked;
mod moments;
mod targets;
mod teacher;

pub(crate) use teacher::ODD_OUTPUT;

use std::collections::{BTreeMap, HashMap};

use kprune_passes::calculus::loss::Criterion;
use kprune_passes::discover::Sublayer;
use kprune_passes::ir::{ElementType, Model, Tensor};
use kprune_passes::methods::{Equations, Failure, Masked, Moments, Stored, Walk};
use kprune_passes::plan::{Decision, Plan, Tuned, bias_of};
use kprune_passes::probe::{Probes, WEIGHT};
use ndarray::{Array1, Array2, ArrayD, Axis, Ix1, Ix2, concatenate};
use ort::value::DynValue;

use crate::analysis::View;
use crate::clock::Clock;
use crate::data::{Batch, Labels};
use crate::error::{Error, not_finite};
use crate::progress::Progress;
use crate::report::unit_name;
use crate::runtime::{self, Cache, Held, Kept, Purpose, Runtime, Session, Values};

/// What is being done while columns are summed up.
const MEASURING: &str = "measuring units";

/// What measuring costs per sublayer, against running one: about as much again backward, and the sums.
const MEASURE_WORK: usize = 3;

/// The work of meeting the teacher and of measuring at the sublayers `measured`, in batches through one sublayer.
pub fn measuring_work(sublayers: usize, measured: &[usize], batches: usize) -> usize {
    let measuring: usize = measured.iter().map(|t| MEASURE_WORK * (sublayers - t)).sum();
    batches * (sublayers + measuring)
}

/// The work of leading so many students through all sublayers.
pub fn leading_work(sublayers: usize, students: usize, batches: usize) -> usize {
    batches * students * (2 * sublayers - 1)
}

/// What a walk takes from the world.
#[derive(Clone, Copy)]
pub struct World<'a> {
    /// What graphs are run with.
    pub runtime: &'a Runtime,
    /// The model as it is written: how projections are stored.
    pub written: &'a View,
    /// The calibration set.
    pub batches: &'a [Batch],
    /// What is right for its samples, where that is known.
    pub labels: Option<&'a Labels>,
    /// The seed of labels that are drawn.
    pub seed: u64,
    /// How long the named axes of the inputs are for one sample of mean length.
    pub lengths: &'a BTreeMap<String, f64>,
    /// Is told how far the work has come.
    pub progress: &'a dyn Progress,
    /// Books the time.
    pub clock: &'a Clock,
}

/// Teacher and students upstream of the sublayer in hand: for every batch, the values that cross into it.
pub struct Calibrated<'a> {
    world: World<'a>,
    /// The probes of the original.
    probes: Probes<'a>,
    /// Those of the teacher, where it is pruned too.
    pruned_teacher: Option<Probes<'a>>,
    cache: Cache,
    /// For every batch, the teacher's outputs.
    outputs: Vec<Kept>,
    /// For every sublayer, the teacher's squared features, summed by column.
    energies: Vec<Array1<f64>>,
    teacher: Vec<Kept>,
    students: Vec<Student<'a>>,
    /// The student on which columns are measured.
    leader: usize,
    /// How many units of the sublayer in hand the students keep that have settled there.
    kept: Vec<usize>,
    /// The model with masks on all units, while they are learned.
    masked: Option<masked::MaskedModel>,
}

/// The model as it is pruned so far, to one budget.
struct Student<'a> {
    probes: Probes<'a>,
    /// For every batch, the values that cross into the sublayer in hand.
    states: Vec<Kept>,
    /// The columns of the features of the sublayer in hand that are kept for it.
    columns: Vec<usize>,
}

impl<'a> Student<'a> {
    /// Of whom nothing is pruned yet.
    fn new(probes: Probes<'a>, batches: usize) -> Self {
        Self { probes, states: (0..batches).map(|_| Kept::default()).collect(), columns: Vec::new() }
    }
}

impl<'a> Calibrated<'a> {
    /// Starts upstream of the first sublayer with one student; values are kept in `cache`.
    pub fn new(world: World<'a>, probes: Probes<'a>, cache: Cache) -> Self {
        let (outputs, energies, teacher, students, kept) = Default::default();
        let pruned_teacher = None;
        let mut walk = Self {
            world,
            probes,
            pruned_teacher,
            cache,
            outputs,
            energies,
            teacher,
            students,
            leader: 0,
            kept,
            masked: None,
        };
        walk.start(1, 0);
        walk
    }

    /// Goes back upstream of the first sublayer, with so many students of which nothing is pruned yet.
    pub fn start(&mut self, students: usize, leader: usize) {
        let batches = self.world.batches.len();
        self.teacher = (0..batches).map(|_| Kept::default()).collect();
        self.students = (0..students).map(|_| Student::new(self.probes.clone(), batches)).collect();
        self.leader = leader;
        self.pruned_teacher = None;
        self.kept.clear();
    }

    /// Moves the loss to where it can be differentiated; see [`Probes::reach_outputs`].
    ///
    /// # Errors
    /// Where there is no such place.
    pub fn reach_outputs(&mut self) -> Result<(), Error> {
        let reached = self.probes.reach_outputs();
        reached.map(|_| ()).map_err(|e| Error::Runtime { doing: MEASURING.into(), reason: e.to_string() })
    }

    /// Ends the walk and lets go of all values.
    pub fn finish(self) -> Probes<'a> {
        self.probes
    }

    /// Where a number was seen, in words.
    fn place(&self, t: usize, batch: &Batch) -> String {
        format!("{}, {}", named(t, self.sublayer(t)), batch.describe())
    }

    fn sublayer(&self, t: usize) -> &Sublayer {
        &self.probes.discovery.sublayers[t]
    }

    /// Says what is being done at sublayer `t`.
    fn stage(&self, t: usize, what: &str) {
        let sublayers = self.probes.discovery.sublayers.len();
        self.world.progress.stage(&format!("sublayer {} of {sublayers}: {what}", t + 1));
    }

    /// Advances a student through sublayer `t` from those columns of its features that [`Calibrated::sum_equations`] left,
    /// with its tuned projection, which is zero for those of them that go.
    fn advance(&mut self, student: usize, t: usize, tuned: &Tuned) -> Result<(), Error> {
        let columns = std::mem::take(&mut self.students[student].columns);
        let probes = &mut self.students[student].probes;
        let graph = probes.step(t);
        probes.settle(t, tuned).map_err(|e| Error::internal(e.to_string()))?;
        let mut region = Region::new(self, t, graph.model, graph.outputs)?;
        let bias = tuned.bias.view().insert_axis(Axis(0));
        let rows = concatenate(Axis(0), &[tuned.weight.select(Axis(0), &columns).view(), bias]);
        let rows = rows.map_err(|e| Error::internal(e.to_string()))?;
        let projection = &self.sublayer(t).projection;
        let element = self.probes.seen.element(projection.weight).unwrap_or(ElementType::F32);
        let stored = if projection.transposed { rows.reversed_axes() } else { rows };
        let weight = host(element, &stored.into_dyn())?;
        let World { runtime, batches, progress, .. } = self.world;
        for (state, batch) in self.students[student].states.iter_mut().zip(batches) {
            runtime.check_cancelled()?;
            let mut values = region.run(&state.load()?, batch, &|name| (name == WEIGHT).then_some(weight.value()))?;
            region.keep(&mut values, state, &self.cache)?;
            progress.advance(1);
        }
        Ok(())
    }
}

impl Walk for Calibrated<'_> {
    fn samples(&self) -> usize {
        self.world.batches.iter().map(|b| b.samples).sum()
    }

    fn tokens(&self, t: usize) -> f64 {
        match self.probes.follows_token_mask(t) {
            true => self.world.batches.iter().map(|b| b.tokens).sum::<usize>() as f64,
            false => self.samples() as f64 * self.probes.rows_of_a_sample(t, self.world.lengths),
        }
    }

    fn projection(&self, t: usize) -> Result<Stored, Failure> {
        let written = &self.world.written.found.sublayers[t];
        let model = &self.world.written.model;
        let (graph, element) = (&model.graph, model.stored(written.projection.weight).unwrap_or(ElementType::F32));
        let weight = original_weight(self.probes.model, self.sublayer(t))?;
        Ok(Stored { weight, element, has_bias: bias_of(graph, written).is_some() })
    }

    fn restart(&mut self, students: usize, teacher: Option<&Plan>) -> Result<(), Failure> {
        self.start(students, 0);
        self.pruned_teacher = teacher.map(|plan| self.probes.masked(plan)).transpose()?;
        Ok(())
    }

    fn columns(
        &mut self,
        t: usize,
        criterion: Criterion,
        each: &mut dyn FnMut(&[Array1<f64>]),
    ) -> Result<Vec<Array1<f64>>, Failure> {
        self.stage(t, "measuring");
        match (t, criterion) {
            (0, Criterion::Teacher { .. }) if !self.energies.is_empty() => Ok(self.energies.clone()),
            _ => Ok(self.sum_columns(t, criterion, each)?),
        }
    }

    fn mini_batches(&self) -> usize {
        self.world.batches.last().map_or(0, |batch| batch.mini_batch + 1)
    }

    fn masked(&mut self, mini_batch: usize, keep: &[Vec<bool>], tau: f64) -> Result<Masked, Failure> {
        self.world.progress.stage("learning which units stay");
        Ok(self.run_masked(mini_batch, keep, tau)?)
    }

    fn moments(
        &mut self,
        tau: f64,
        each: &mut dyn FnMut(usize, Moments) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.world.progress.stage("measuring the model");
        self.sum_moments(tau, each)?;
        self.world.clock.stage("measure");
        Ok(())
    }

    fn equations(&mut self, t: usize, keep: &[Vec<bool>]) -> Result<Vec<Equations>, Failure> {
        self.masked = None;
        self.world.clock.stage("measure");
        self.stage(t, "tuning");
        self.kept.clear();
        Ok(self.sum_equations(t, keep)?)
    }

    fn settle(&mut self, student: usize, t: usize, decision: &Decision) -> Result<(), Failure> {
        self.world.clock.stage("tune");
        let sublayers = self.probes.discovery.sublayers.len();
        let untuned = || Error::internal("a student settles without a projection");
        if t + 1 < sublayers {
            self.stage(t, "advancing");
            self.advance(student, t, decision.tuned.as_ref().ok_or_else(untuned)?)?;
        }
        self.world.clock.stage("advance");
        self.kept.push(decision.kept());
        if self.kept.len() == self.students.len() {
            let (units, unit) = (self.sublayer(t).units.len(), unit_name(self.sublayer(t).kind));
            let kept: Vec<String> = self.kept.iter().map(usize::to_string).collect();
            let line = format!("sublayer {} of {sublayers}: {} of {units} {unit}s kept", t + 1, kept.join(", "));
            self.world.progress.done(&line);
        }
        Ok(())
    }
}

/// Sublayer `t`, in words.
fn named(t: usize, sublayer: &Sublayer) -> String {
    format!("sublayer {} ({})", t + 1, sublayer.name)
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
    fn new(walk: &Calibrated, t: usize, model: Model, crossing: Vec<String>) -> Result<Self, Error> {
        let is_empty = model.graph.outputs().is_empty();
        let session =
            (!is_empty).then(|| walk.world.runtime.session(&model, "running a sublayer", Purpose::Work)).transpose()?;
        let next = walk.probes.crossings.at(t + 1).iter();
        let next = next.map(|&v| walk.probes.model.graph.name(v).to_string()).collect();
        Ok(Self { session, crossing, next })
    }

    /// Runs it on a batch and what crosses into the sublayer; `other` finds what is neither.
    fn run<'v>(
        &mut self,
        state: &'v HashMap<String, Held>,
        batch: &'v Batch,
        other: &dyn Fn(&str) -> Option<&'v DynValue>,
    ) -> Result<Values, Error> {
        let find = |name: &str| other(name).or_else(|| state.get(name).map(Held::value)).or_else(|| batch.find(name));
        let Some(session) = &mut self.session else { return Ok(Values::new()) };
        session.run_keeping(find, |_| true)
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

/// A sum that a probe gave, one number for every column.
///
/// # Errors
/// Where it is not finite; `place` says in words where that is.
pub(crate) fn vector(values: &Values, name: &str, place: &dyn Fn() -> String) -> Result<Array1<f64>, Error> {
    let value = values.get(name).ok_or_else(|| Error::internal(format!("a probe gave no {name:?}")))?;
    if let Some(odd) = runtime::odd(value)? {
        return Err(not_finite(place(), "a sum over its features", odd.value));
    }
    runtime::scalars(value)?.into_dimensionality::<Ix1>().map_err(|e| Error::internal(e.to_string()))
}

fn host(element: ElementType, array: &ArrayD<f64>) -> Result<Held, Error> {
    runtime::host(&Tensor::from_floats(element, array).map_err(|e| Error::internal(e.to_string()))?)
}
