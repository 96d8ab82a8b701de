//! Distillation of pruned students: their weights learn from the teacher, on the calibration set and copies of it with
//! tokens replaced, for a few passes of Adam. What is held out decides whether that stays.

mod guard;
mod lessons;
mod schedule;
mod student;
mod tokens;

use std::fmt;

use kprune_passes::calculus::objective::Objective;
use kprune_passes::distil::{Student, streams};
use kprune_passes::ir::{Model, ValueId};
use kprune_passes::observe::Observation;
use kprune_passes::probe::Probes;
use ndarray::ArrayD;
use serde::Serialize;

use crate::data::Batch;
use crate::error::Error;
use crate::options::Distil;
use crate::runtime::Cache;
use crate::walk::World;
use guard::{Guard, Judged};
use lessons::Lessons;
use schedule::Schedule;
use student::{Learner, Lesson};

/// Weights by the constants that they are.
pub(crate) type Values = Vec<(ValueId, ArrayD<f32>)>;

/// How much distributions are softened: as little as where they are judged.
const TAU: f64 = 1.0;

/// What a distillation did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distillation {
    /// Samples that nothing learnt from, and that judged.
    pub samples: usize,
    /// Their loss before any step: the divergence from the original, or the error of its numbers.
    pub before: f64,
    /// What was tried, in this order.
    pub tried: Vec<Tried>,
    /// Which of them was taken: the first that is not worse by more than one standard error; `None` where the weights stay
    /// as they were.
    pub kept: Option<usize>,
    /// The largest difference of an output between the file and what was trained, relative to its largest value.
    pub difference: Option<f64>,
}

impl fmt::Display for Distillation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, samples) = (self.before, self.samples);
        match self.kept.and_then(|place| self.tried.get(place)) {
            Some(Tried { loss, .. }) => write!(f, "loss {before:.5} -> {loss:.5} on {samples} samples set aside"),
            None => write!(f, "worse than a loss of {before:.5} on {samples} samples set aside, so weights stay"),
        }
    }
}

/// A student to be distilled, in f32, of primitive operators.
pub(crate) struct Pupil {
    /// The model.
    pub(crate) model: Model,
    /// Shapes and types of its values.
    pub(crate) seen: Observation,
    /// The constants that are trained.
    pub(crate) weights: Vec<ValueId>,
    /// What it costs, as a share of its teacher.
    pub(crate) kept: f64,
}

/// Weights that were judged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tried {
    /// After so many steps of Adam.
    pub steps: usize,
    /// How far on the way from the weights as they were to those.
    pub way: f64,
    /// The loss on the samples that judge.
    pub loss: f64,
}

/// Samples that judge, copies among them, are about so many where so many can be had.
const ENOUGH: usize = 256;

/// No sample judges with more copies than this: they are too much alike.
const MOST_COPIES: usize = 3;

/// The least of the way that is tried: noise of few steps grows with the square of the way, and what was learnt with the way.
const NEAREST: f64 = 0.5;

/// A teacher and its lessons.
pub(crate) struct Distiller<'a> {
    world: World<'a>,
    probes: &'a Probes<'a>,
    /// What the loss compares, with whole scores of the teacher.
    objective: Objective,
    settings: Distil,
    streams: Vec<ValueId>,
    lessons: Lessons<'a>,
    /// Batches that nothing learns from and copies of them, with the teacher's outputs.
    judges: Vec<Vec<Lesson<'a>>>,
}

impl<'a> Distiller<'a> {
    /// For students of the probes' model; what the teacher gives is kept in the `cache`.
    ///
    /// # Errors
    /// Where the teacher does not run.
    pub(crate) fn new(
        world: World<'a>,
        probes: &'a Probes<'a>,
        settings: Distil,
        judges: &'a [Batch],
        cache: Cache,
    ) -> Result<Self, Error> {
        let streams = streams(probes.discovery);
        // What makes scores of a vocabulary is trained too.
        let objective = probes.objective.clone().without_heads();
        let mut lessons = Lessons::new(world, probes, &objective, &streams, cache)?;
        let samples: usize = judges.iter().map(|b| b.samples).sum();
        let copies = (ENOUGH / samples.max(1)).min(MOST_COPIES);
        let mut judge = |batch| -> Result<Vec<Lesson<'a>>, Error> {
            let lessons = lessons.of_others(batch, copies)?;
            lessons.into_iter().map(|l| l.without_streams(&probes.model.graph, &objective)).collect()
        };
        let judges = judges.iter().map(&mut judge).collect::<Result<_, Error>>()?;
        Ok(Self { world, probes, objective, settings, streams, lessons, judges })
    }

    /// Lets a pupil learn. Returns what was done, and the weights where they are no worse than they were.
    ///
    /// # Errors
    /// Where it cannot be differentiated, or a number is not finite.
    pub(crate) fn distil(&mut self, pupil: &Pupil) -> Result<(Distillation, Option<Values>), Error> {
        let World { runtime, progress, batches, seed, .. } = self.world;
        let mut learner = Learner::new(runtime, &self.student(pupil), &pupil.weights)?;
        let mut mini_batches: Vec<usize> = batches.iter().map(|b| b.mini_batch).collect();
        mini_batches.dedup();
        let different = self.lessons.of_a_sample();
        let schedule = Schedule::new(self.settings.equivalents(), pupil.kept, different, &mini_batches, seed);
        let start = learner.weights()?;
        let mut guard = Guard::new(self.judged(&mut learner)?, self.settings.is_guarded());
        let mut highest = None;
        for (i, &mini_batch) in schedule.steps.iter().enumerate() {
            runtime.check_cancelled()?;
            progress.stage(&format!("distilling: step {} of {}", i + 1, schedule.steps.len()));
            let lessons = self.lessons.of(mini_batch, i % 2 == 1)?;
            let highest = match highest {
                Some(rate) => rate,
                None => *highest.insert(schedule.highest(learner.apart(&lessons)?)),
            };
            learner.learn(&lessons, schedule.rate(i, highest))?;
        }
        let mut way = 1.0;
        while !guard.takes(schedule.steps.len(), way, &self.judged(&mut learner)?) {
            if way <= NEAREST {
                return Ok((guard.finish(), None));
            }
            learner.go_half_way_to(&start)?;
            way /= 2.0;
        }
        Ok((guard.finish(), Some(learner.weights()?)))
    }

    /// What a pupil is compared by.
    fn student<'s>(&'s self, Pupil { model, seen, .. }: &'s Pupil) -> Student<'s> {
        let token_mask = self.probes.token_mask;
        Student { model, seen, objective: &self.objective, streams: &self.streams, token_mask }
    }

    /// The losses of the batches that judge.
    fn judged(&self, learner: &mut Learner) -> Result<Vec<Judged>, Error> {
        let mut judged = |lessons: &Vec<Lesson>| {
            let losses: Vec<f64> = lessons.iter().map(|l| learner.judged(l)).collect::<Result<_, Error>>()?;
            let samples = lessons.first().map_or(0, |l| l.batch.samples);
            Ok(Judged { samples, loss: losses.iter().sum::<f64>() / losses.len() as f64 })
        };
        self.judges.iter().map(&mut judged).collect()
    }
}
