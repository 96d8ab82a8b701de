//! The lessons of a distillation: the samples as they are, and a copy of each with tokens replaced, with what the teacher
//! gives for them.

use std::collections::HashMap;

use kprune_passes::calculus::objective::Objective;
use kprune_passes::distil;
use kprune_passes::ir::ValueId;
use kprune_passes::probe::Probes;
use ort::value::DynValue;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::student::{Lesson, as_inputs};
use super::tokens::Tokens;
use crate::data::Batch;
use crate::error::Error;
use crate::runtime::{Cache, Held, Kept, Purpose, Session, Values};
use crate::walk::World;

/// A teacher, asked once for each lesson as long as there is memory to keep what it gives.
pub(super) struct Lessons<'a> {
    batches: &'a [Batch],
    teacher: Session,
    /// What is replaced in copies, where something is.
    tokens: Option<Tokens>,
    seed: u64,
    cache: Cache,
    /// What was given for every batch: as it is, and for its copy.
    given: Vec<[Option<Given>; 2]>,
}

/// What a teacher gave.
struct Given {
    /// An input of the batch that is replaced.
    instead: Option<(String, Held)>,
    values: Kept,
}

impl<'a> Lessons<'a> {
    /// Of the calibration set.
    ///
    /// # Errors
    /// Where the teacher makes no session.
    pub(super) fn new(
        world: World<'a>,
        probes: &Probes,
        objective: &Objective,
        streams: &[ValueId],
        cache: Cache,
    ) -> Result<Self, Error> {
        let teacher = distil::teacher(probes.model, objective, streams);
        let teacher = world.runtime.session(&teacher, "running the original", Purpose::Work)?;
        let tokens = Tokens::of(&probes.model.graph, world.batches, probes.token_mask)?;
        let given = world.batches.iter().map(|_| [None, None]).collect();
        Ok(Self { batches: world.batches, teacher, tokens, seed: world.seed, cache, given })
    }

    /// How many different lessons each sample gives.
    pub(super) fn of_a_sample(&self) -> usize {
        if self.tokens.is_some() { 2 } else { 1 }
    }

    /// The lessons of a mini-batch, of copies where they are wanted and there are any.
    ///
    /// # Errors
    /// Where the teacher does not run.
    pub(super) fn of(&mut self, mini_batch: usize, copies: bool) -> Result<Vec<Lesson<'a>>, Error> {
        let (batches, copy) = (self.batches, usize::from(copies && self.tokens.is_some()));
        let parts = batches.iter().enumerate().filter(|(_, batch)| batch.mini_batch == mini_batch);
        parts.map(|(i, batch)| self.lesson(i, batch, copy)).collect()
    }

    fn lesson(&mut self, i: usize, batch: &'a Batch, copy: usize) -> Result<Lesson<'a>, Error> {
        if let Some(Given { instead, values }) = &self.given[i][copy] {
            return Ok(Lesson { batch, instead: instead.clone(), teacher: as_inputs(values.load()?) });
        }
        let instead = match (&self.tokens, copy) {
            (Some(tokens), 1) => tokens.replaced(batch, &mut self.random(i))?,
            _ => None,
        };
        let values = self.ask(batch, instead.as_ref())?;
        // Scores of a vocabulary may be larger than everything else: what would go to a disk is asked for again.
        if !self.cache.has_room_for(&values) {
            return Ok(Lesson { batch, instead, teacher: as_inputs(held(values)) });
        }
        let values = self.cache.keep(values)?;
        let teacher = as_inputs(values.load()?);
        self.given[i][copy] = Some(Given { instead: instead.clone(), values });
        Ok(Lesson { batch, instead, teacher })
    }

    /// Of samples that are no part of the calibration set: as they are, and so many copies where there are any.
    ///
    /// # Errors
    /// Where the teacher does not run.
    pub(super) fn of_others<'b>(&mut self, batch: &'b Batch, copies: usize) -> Result<Vec<Lesson<'b>>, Error> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut lessons = Vec::new();
        for copy in 0..=copies {
            let instead = match (&self.tokens, copy) {
                (_, 0) => None,
                (Some(tokens), _) => tokens.replaced(batch, &mut random)?,
                (None, _) => break,
            };
            let teacher = as_inputs(held(self.ask(batch, instead.as_ref())?));
            lessons.push(Lesson { batch, instead, teacher });
        }
        Ok(lessons)
    }

    /// What the teacher gives.
    fn ask(&mut self, batch: &Batch, instead: Option<&(String, Held)>) -> Result<Values, Error> {
        let replaced = |name: &str| instead.filter(|(n, _)| n == name).map(|(_, held): &(String, Held)| held.value());
        let find = |name: &str| -> Option<&DynValue> { replaced(name).or_else(|| batch.find(name)) };
        self.teacher.run_with(find)
    }

    /// Copies of a batch are the same in whatever order they are asked for.
    fn random(&self, batch: usize) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(batch as u64 + 1);
        random
    }
}

fn held(values: Values) -> HashMap<String, Held> {
    values.into_iter().map(|(name, value)| (name, Held::from(value))).collect()
}
