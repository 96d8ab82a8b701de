//! A block in sessions, as it is learned.

use std::collections::HashMap;

use kprune_passes::discover::blocks::Block;
use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::methods::Failure;
use kprune_passes::methods::besa::{Choice, Reconstruction, Share, Step, candidate_counts};
use kprune_passes::probe::{Graph, Probes, REFERENCE, ReconstructionOutputs, TOKENS};
use kprune_passes::sparsity::Order;
use ndarray::{Array2, Ix2, arr0};
use ort::value::DynValue;

use super::walk::Parts;
use crate::data::Batch;
use crate::error::{Error, not_finite};
use crate::runtime::{self, Held, Purpose, Runtime, Session, Values};
use crate::walk::World;

/// A block that is run without some of its weights.
pub(super) struct Learning<'a> {
    world: World<'a>,
    parts: Parts<'a>,
    place: &'a str,
    learning: Running,
    judging: Running,
    /// The batches of every mini-batch that is learned from.
    mini_batches: Vec<Vec<usize>>,
    /// Those that judge.
    judges: Vec<usize>,
    /// Rows of the stream of every batch that count.
    tokens: Vec<f64>,
    /// The sizes of the sums of every matrix.
    shapes: Vec<(usize, usize)>,
    steps: usize,
}

/// A session with the names of what it takes and gives.
struct Running {
    session: Session,
    names: ReconstructionOutputs,
}

impl Running {
    fn new(runtime: &Runtime, graph: Graph<ReconstructionOutputs>) -> Result<Self, Error> {
        Ok(Self { session: runtime.session(&graph.model, "learning a block", Purpose::Work)?, names: graph.outputs })
    }
}

/// What is to be learned of a block.
pub(super) struct Task<'a> {
    pub(super) block: &'a Block,
    /// In which order the weights of every row go.
    pub(super) orders: Vec<Order>,
    pub(super) share: Share,
    pub(super) place: &'a str,
}

impl<'a> Learning<'a> {
    pub(super) fn new(world: World<'a>, probes: &Probes, parts: Parts<'a>, task: &Task<'a>) -> Result<Self, Error> {
        let &Task { block, ref orders, ref share, place } = task;
        let groups: Vec<usize> = share.shapes.iter().map(|shape| shape.group).collect();
        let candidates = |inputs: usize| candidate_counts(share.pattern, inputs);
        let impossible = |e: kprune_passes::calculus::differentiate::DifferentiateError| {
            let help = "--method wanda needs no gradients";
            Error::Usage(format!("--method besa: {place} cannot be learned, since {e}; {help}"))
        };
        let learning = probes.reconstruction(block, orders, &groups, Some(&candidates)).map_err(impossible)?;
        let judging = probes.reconstruction(block, orders, &groups, None).map_err(impossible)?;
        let (learning, judging) = (Running::new(world.runtime, learning)?, Running::new(world.runtime, judging)?);
        let mut mini_batches: Vec<Vec<usize>> = Vec::new();
        let mut last = None;
        for (i, batch) in world.batches.iter().enumerate().filter(|(_, batch)| !batch.is_held_out) {
            match last == Some(batch.mini_batch) {
                true => mini_batches.last_mut().into_iter().for_each(|m| m.push(i)),
                false => mini_batches.push(vec![i]),
            }
            last = Some(batch.mini_batch);
        }
        let held_out: Vec<usize> = (0..world.batches.len()).filter(|&i| world.batches[i].is_held_out).collect();
        // Of very few samples none is held out.
        let judges = if held_out.is_empty() { (0..world.batches.len()).collect() } else { held_out };
        let follows_mask = probes.follows_token_mask(block.sublayers.start);
        let rows = |i: usize| rows(&parts, i, &world.batches[i], follows_mask);
        let tokens = (0..world.batches.len()).map(rows).collect::<Result<_, _>>()?;
        let shapes = block.matrices.iter().map(|m| (m.outputs, candidates(m.inputs).len())).collect();
        Ok(Self { world, parts, place, learning, judging, mini_batches, judges, tokens, shapes, steps: 0 })
    }

    /// What a batch gives with these weights, where the loss is a mean over so many tokens.
    fn run(&mut self, i: usize, is_learning: bool, chosen: &Given, tokens: f64) -> Result<(Values, f64), Error> {
        self.world.runtime.check_cancelled()?;
        let batch = &self.world.batches[i];
        let (state, reference) = (self.parts.states[i].load()?, self.parts.references[i].load()?);
        let tokens = runtime::numbers(&arr0(tokens).into_dyn())?;
        let Running { session, names } = if is_learning { &mut self.learning } else { &mut self.judging };
        let find = |name: &str| -> Option<&DynValue> {
            match name {
                REFERENCE => reference.values().next().map(Held::value),
                TOKENS => Some(tokens.value()),
                _ => chosen
                    .get(name)
                    .map(Held::value)
                    .or_else(|| state.get(name).map(Held::value).or_else(|| batch.find(name))),
            }
        };
        let values = session.run_with(find)?;
        let loss = values.get(&names.loss).ok_or_else(|| Error::internal("a block gave no loss"))?;
        let loss = runtime::scalars(loss)?.sum();
        match loss.is_finite() {
            true => Ok((values, loss)),
            false => Err(not_finite(format!("{}, {}", self.place, batch.describe()), "the error of the block", loss)),
        }
    }

    fn total(&self, batches: &[usize]) -> f64 {
        batches.iter().map(|&i| self.tokens[i]).sum()
    }
}

impl Reconstruction for Learning<'_> {
    fn mini_batches(&self) -> usize {
        self.mini_batches.len()
    }

    fn step(&mut self, mini_batch: usize, choice: &Choice) -> Result<Step, Failure> {
        self.steps += 1;
        self.world.progress.stage(&format!("{}: learning, step {}", self.place, self.steps));
        let (chosen, batches) = (given(&self.learning.names, choice)?, self.mini_batches[mini_batch].clone());
        let total = self.total(&batches);
        let sums = self.shapes.iter().map(|&shape| Array2::zeros(shape)).collect();
        let of_scales = choice.scales.iter().map(|scales| Array2::zeros(scales.raw_dim())).collect();
        let mut step = Step { loss: 0.0, sums, of_scales };
        for i in batches {
            let (values, loss) = self.run(i, true, &chosen, total)?;
            step.loss += loss;
            let ReconstructionOutputs { sums, of_scales, .. } = &self.learning.names;
            let of_scales = step.of_scales.iter_mut().zip(of_scales);
            for (sum, name) in step.sums.iter_mut().zip(sums).chain(of_scales) {
                let Some(found) = name.as_ref().and_then(|name| values.get(name)) else { continue };
                if let Some(odd) = runtime::odd(found)? {
                    let place = format!("{}, {}", self.place, self.world.batches[i].describe());
                    return Err(not_finite(place, "a gradient of the block", odd.value).into());
                }
                let found = runtime::scalars(found)?.into_dimensionality::<Ix2>();
                *sum += &found.map_err(|e| Error::internal(e.to_string()))?;
            }
        }
        Ok(step)
    }

    fn judge(&mut self, choice: &Choice) -> Result<f64, Failure> {
        let (chosen, judges) = (given(&self.judging.names, choice)?, self.judges.clone());
        let total = self.total(&judges);
        let mut sum = 0.0;
        for i in judges {
            sum += self.run(i, false, &chosen, total)?.1;
        }
        Ok(sum)
    }
}

/// Rows of what a block gives that count: real tokens, where the token mask says which are real.
fn rows(parts: &Parts, i: usize, batch: &Batch, follows_mask: bool) -> Result<f64, Error> {
    if follows_mask {
        return Ok(batch.tokens as f64);
    }
    let reference = parts.references[i].load()?;
    let stream = reference.values().next().ok_or_else(|| Error::internal("a block gave nothing"))?;
    let shape =
        stream.value().dtype().tensor_shape().ok_or_else(|| Error::internal("what a block gave is no tensor"))?;
    Ok(shape.iter().rev().skip(1).map(|&length| length as f64).product())
}

/// What a graph takes besides what crosses into the block.
type Given = HashMap<String, Held>;

/// A choice as a graph takes it.
fn given(names: &ReconstructionOutputs, choice: &Choice) -> Result<Given, Error> {
    let mut given = Given::new();
    for (name, counts) in names.counts.iter().zip(&choice.counts) {
        let bytes: Vec<u8> = counts.iter().flat_map(|&count| (count as i32).to_le_bytes()).collect();
        let tensor = Tensor::from_raw("", ElementType::I32, counts.shape(), bytes.into());
        given.insert(name.clone(), runtime::host(&tensor.map_err(|e| Error::internal(e.to_string()))?)?);
    }
    for (name, scales) in names.scales.iter().zip(&choice.scales) {
        given.insert(name.clone(), runtime::numbers(&scales.mapv(f64::from).into_dyn())?);
    }
    Ok(given)
}
