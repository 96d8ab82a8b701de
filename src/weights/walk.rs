//! A model, led over the calibration set block by block.

use std::collections::HashMap;

use kprune_passes::discover::blocks::Block;
use kprune_passes::ir::Graph;
use kprune_passes::methods::besa::{self, Learnt};
use kprune_passes::probe::{self, Probes};
use ndarray::{Array1, Array2};

use super::learning::{Learning, Task};
use super::{stored, tensor};
use crate::data::Batch;
use crate::error::Error;
use crate::runtime::{self, Cache, Held, Kept, Purpose, Session};
use crate::walk::{World, vector};

/// Upstream of the block in hand: for every batch, the values that cross into it.
pub(super) struct Walk<'a> {
    world: World<'a>,
    /// The model without the weights that went so far.
    probes: Probes<'a>,
    cache: Cache,
    states: Vec<Kept>,
    /// What the block in hand is to give, for every batch.
    references: Vec<Kept>,
}

impl<'a> Walk<'a> {
    /// Upstream of the first block.
    pub(super) fn new(world: World<'a>, probes: Probes<'a>, cache: Cache) -> Self {
        let states = world.batches.iter().map(|_| Kept::default()).collect();
        Self { world, probes, cache, states, references: Vec::new() }
    }

    /// Runs the block as it is: for every matrix, the squares of what it is multiplied with, summed up over tokens. What it
    /// gives is kept where it is to be learned from.
    pub(super) fn features(&mut self, block: &Block, is_kept: bool, place: &str) -> Result<Vec<Vec<f64>>, Error> {
        self.world.progress.stage(&format!("{place}: measuring"));
        let probe::Graph { model, outputs } = self.probes.features(block);
        let mut session = self.world.runtime.session(&model, "measuring a block", Purpose::Work)?;
        let mut squares: Vec<Array1<f64>> = block.matrices.iter().map(|m| Array1::zeros(m.inputs)).collect();
        self.references.clear();
        for (state, batch) in self.states.iter().zip(self.world.batches) {
            let mut values = run(&self.world, &mut session, state, batch)?;
            for (sum, name) in squares.iter_mut().zip(&outputs.squares) {
                *sum += &vector(&values, name, &|| format!("{place}, {}", batch.describe()))?;
            }
            values.retain(|name, _| is_kept && *name == outputs.stream);
            self.references.push(self.cache.keep(values)?);
        }
        Ok(squares.into_iter().map(|sum| sum.to_vec()).collect())
    }

    /// Learns how many weights of every row go, and what the others are multiplied with.
    pub(super) fn learn(&mut self, task: &Task, besa: &besa::Settings) -> Result<Learnt, Error> {
        let parts = Parts { states: &self.states, references: &self.references };
        let mut learning = Learning::new(self.world, &self.probes, parts, task)?;
        let learnt = besa::learn(&mut learning, &task.share, besa, self.world.seed)?;
        self.world.clock.stage("learn");
        Ok(learnt)
    }

    /// Puts other numbers in the place of a block's matrices, [outputs, inputs].
    pub(super) fn replace(&mut self, block: &Block, numbers: &[Array2<f32>]) -> Result<(), Error> {
        for (matrix, numbers) in block.matrices.iter().zip(numbers) {
            self.probes.replace(matrix, tensor(&stored(matrix, numbers))?);
        }
        Ok(())
    }

    /// Lets go of the numbers of a block's matrices, for those of the model that it came from.
    pub(super) fn forget(&mut self, block: &Block, origin: &Graph) {
        for matrix in &block.matrices {
            let own = origin.constant(matrix.weight).cloned();
            own.into_iter().for_each(|own| self.probes.replace(matrix, own));
        }
    }

    /// Goes through the block, with its matrices as they are now.
    pub(super) fn advance(&mut self, block: &Block, is_last: bool) -> Result<(), Error> {
        if !is_last {
            advance(&self.world, &self.probes, block, &mut self.states, &self.cache)?;
        }
        self.world.clock.stage("advance");
        Ok(())
    }
}

/// What crosses into a block, and what it is to give.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) states: &'a [Kept],
    pub(super) references: &'a [Kept],
}

/// Moves what crosses into a block on to what crosses into the next.
fn advance(world: &World, probes: &Probes, block: &Block, states: &mut [Kept], cache: &Cache) -> Result<(), Error> {
    let probe::Graph { model, outputs } = probes.advance(block);
    let mut session = match outputs.is_empty() {
        true => None,
        false => Some(world.runtime.session(&model, "running a block", Purpose::Work)?),
    };
    let next = probes.crossings.at(block.sublayers.end).iter();
    let next: Vec<&str> = next.map(|&v| probes.model.graph.name(v)).collect();
    for (state, batch) in states.iter_mut().zip(world.batches) {
        let values = match &mut session {
            Some(session) => run(world, session, state, batch)?,
            None => HashMap::new(),
        };
        state.retain(|name| next.contains(&name));
        values.into_iter().try_for_each(|(name, value)| cache.add(state, name, value))?;
    }
    Ok(())
}

/// Runs a part of the model on a batch and what crosses into it.
fn run(world: &World, session: &mut Session, state: &Kept, batch: &Batch) -> Result<runtime::Values, Error> {
    world.runtime.check_cancelled()?;
    let state = state.load()?;
    session.run_keeping(|name| state.get(name).map(Held::value).or_else(|| batch.find(name)), |_| true)
}
