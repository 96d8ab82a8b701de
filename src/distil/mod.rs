//! Distillation of pruned students: their weights learn from the teacher, on the calibration set and copies of it with
//! tokens replaced, for a few passes of Adam. What is held out decides when to stop, and whether to keep it.

mod guard;
mod schedule;
mod student;
mod tokens;

use std::fmt;

use kprune_passes::calculus::objective::Objective;
use kprune_passes::distil::{self, Student, streams};
use kprune_passes::ir::{Model, ValueId};
use kprune_passes::observe::Observation;
use kprune_passes::probe::Probes;
use ndarray::ArrayD;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::data::Batch;
use crate::error::Error;
use crate::options::Distil;
use crate::runtime::{Purpose, Session};
use crate::walk::World;
use guard::{Guard, Judged};
use schedule::Schedule;
use student::{Learner, Lesson, as_inputs};
use tokens::Tokens;

/// Weights by the constants that they are.
pub(crate) type Values = Vec<(ValueId, ArrayD<f32>)>;

/// How much distributions are softened.
const TAU: f64 = 2.0;

/// Of so many lessons, one is of the samples as they are, and the others of copies with tokens replaced.
const COPIES: usize = 3;

/// What a distillation did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distillation {
    /// Samples that nothing learnt from, and that judged.
    pub samples: usize,
    /// Their loss before any step: the divergence from the original, or the error of its numbers.
    pub before: f64,
    /// What was tried, in this order.
    pub tried: Vec<Tried>,
    /// Which of them was taken: the best, where it is better by more than one standard error; `None` where the weights stay as they were.
    pub kept: Option<usize>,
    /// The largest difference of an output between the file and what was trained, relative to its largest value.
    pub difference: Option<f64>,
}

impl fmt::Display for Distillation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, samples) = (self.before, self.samples);
        match self.kept.and_then(|place| self.tried.get(place)) {
            Some(Tried { loss, .. }) => write!(f, "loss {before:.5} -> {loss:.5} on {samples} samples set aside"),
            None => {
                write!(f, "no better on {samples} samples set aside (loss {before:.5}), so weights stay as they were")
            }
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

/// How far to go towards where the last step led: noise of few steps grows with the square of the way, and what was learnt
/// with the way.
const WAYS: [f64; 2] = [0.5, 0.25];

/// A teacher and its lessons.
pub(crate) struct Distiller<'a> {
    world: World<'a>,
    probes: &'a Probes<'a>,
    /// What the loss compares, with whole scores of the teacher.
    objective: Objective,
    settings: Distil,
    teacher: Session,
    streams: Vec<ValueId>,
    tokens: Option<Tokens>,
    /// Batches that nothing learns from, with the teacher's outputs.
    judges: Vec<Lesson<'a>>,
}

impl<'a> Distiller<'a> {
    /// For students of the probes' model.
    ///
    /// # Errors
    /// Where the teacher does not run.
    pub(crate) fn new(
        world: World<'a>,
        probes: &'a Probes<'a>,
        settings: Distil,
        judges: &'a [Batch],
    ) -> Result<Self, Error> {
        let streams = streams(probes.discovery);
        // What makes scores of a vocabulary is trained too.
        let objective = probes.objective.clone().without_heads();
        let teacher = distil::teacher(probes.model, &objective, &streams);
        let teacher = world.runtime.session(&teacher, "running the original", Purpose::Work)?;
        let tokens = Tokens::of(&probes.model.graph, world.batches, probes.token_mask)?;
        let mut this = Self { world, probes, objective, settings, teacher, streams, tokens, judges: Vec::new() };
        for batch in judges {
            let lesson = this.lesson(batch, None)?.without_streams(&probes.model.graph, &this.objective)?;
            this.judges.push(lesson);
        }
        Ok(this)
    }

    /// Lets a pupil learn. Returns what was done, and the weights where they are better than they were.
    ///
    /// # Errors
    /// Where it cannot be differentiated, or a number is not finite.
    pub(crate) fn distil(&mut self, pupil: &Pupil) -> Result<(Distillation, Option<Values>), Error> {
        let World { runtime, progress, batches, seed, .. } = self.world;
        let mut learner = Learner::new(runtime, &self.student(pupil), &pupil.weights)?;
        let mut mini_batches: Vec<usize> = batches.iter().map(|b| b.mini_batch).collect();
        mini_batches.dedup();
        let schedule = Schedule::new(self.settings.equivalents(), pupil.kept, &mini_batches, seed);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let start = learner.weights()?;
        let mut guard = Guard::new(self.judged(&mut learner)?, self.settings.is_guarded());
        for (i, &mini_batch) in schedule.steps.iter().enumerate() {
            runtime.check_cancelled()?;
            progress.stage(&format!("distilling: step {} of {}", i + 1, schedule.steps.len()));
            let parts = batches.iter().filter(|b| b.mini_batch == mini_batch);
            let copies = (i % COPIES != 0).then_some(&mut random);
            learner.learn(&self.lessons(parts, copies)?, schedule.rate(i))?;
            if schedule.is_checked(i) {
                guard.see(i + 1, 1.0, self.judged(&mut learner)?, &learner)?;
            }
        }
        let end = learner.weights()?;
        for way in WAYS {
            learner.go_between([&start, &end], way)?;
            guard.see(schedule.steps.len(), way, self.judged(&mut learner)?, &learner)?;
        }
        Ok(guard.finish())
    }

    /// What a pupil is compared by.
    fn student<'s>(&'s self, Pupil { model, seen, .. }: &'s Pupil) -> Student<'s> {
        let token_mask = self.probes.token_mask;
        Student { model, seen, objective: &self.objective, streams: &self.streams, token_mask }
    }

    /// The losses of the batches that judge.
    fn judged(&self, learner: &mut Learner) -> Result<Vec<Judged>, Error> {
        let judged = |lesson: &Lesson| Ok(Judged { samples: lesson.batch.samples, loss: learner.judged(lesson)? });
        self.judges.iter().map(judged).collect()
    }

    fn lessons(
        &mut self,
        parts: impl Iterator<Item = &'a Batch>,
        mut random: Option<&mut ChaCha8Rng>,
    ) -> Result<Vec<Lesson<'a>>, Error> {
        parts.map(|batch| self.lesson(batch, random.as_deref_mut())).collect()
    }

    /// A batch with what the teacher gives for it; of a copy where there is a source of random numbers.
    fn lesson(&mut self, batch: &'a Batch, random: Option<&mut ChaCha8Rng>) -> Result<Lesson<'a>, Error> {
        let instead = match (&self.tokens, random) {
            (Some(tokens), Some(random)) => tokens.replaced(batch, random)?,
            _ => None,
        };
        let given = |name: &str| instead.as_ref().filter(|(n, _)| n == name).map(|(_, held)| held.value());
        let values = self.teacher.run_with(|name| given(name).or_else(|| batch.find(name)))?;
        Ok(Lesson { batch, teacher: as_inputs(values), instead })
    }
}
