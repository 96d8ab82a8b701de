//! A block in sessions, as it is learned.

use kprune_passes::discover::blocks::Block;
use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::methods::Failure;
use kprune_passes::methods::besa::{Reconstruction, Step, candidate_counts};
use kprune_passes::probe::{Graph, Probes, REFERENCE, ReconstructionOutputs, TOKENS};
use kprune_passes::sparsity::{Order, Pattern};
use ndarray::{Array1, Array2, Ix2, arr0};
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

impl<'a> Learning<'a> {
    pub(super) fn new(
        world: World<'a>,
        probes: &Probes,
        parts: Parts<'a>,
        block: &Block,
        orders: &[Order],
        pattern: Pattern,
        place: &'a str,
    ) -> Result<Self, Error> {
        let candidates = |inputs: usize| candidate_counts(pattern, inputs);
        let impossible = |e: kprune_passes::calculus::differentiate::DifferentiateError| {
            let help = "--method wanda needs no gradients";
            Error::Usage(format!("--method besa: {place} cannot be learned, since {e}; {help}"))
        };
        let learning = probes.reconstruction(block, orders, Some(&candidates)).map_err(impossible)?;
        let judging = probes.reconstruction(block, orders, None).map_err(impossible)?;
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

    /// What a batch gives, where the loss is a mean over so many tokens.
    fn run(&mut self, i: usize, is_learning: bool, counts: &[Held], tokens: f64) -> Result<(Values, f64), Error> {
        self.world.runtime.check_cancelled()?;
        let batch = &self.world.batches[i];
        let (state, reference) = (self.parts.states[i].load()?, self.parts.references[i].load()?);
        let tokens = runtime::numbers(&arr0(tokens).into_dyn())?;
        let Running { session, names } = if is_learning { &mut self.learning } else { &mut self.judging };
        let find = |name: &str| -> Option<&DynValue> {
            match name {
                REFERENCE => reference.values().next().map(Held::value),
                TOKENS => Some(tokens.value()),
                _ => names
                    .counts
                    .iter()
                    .position(|n| n == name)
                    .map(|place| counts[place].value())
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

    fn step(&mut self, mini_batch: usize, counts: &[Array1<usize>]) -> Result<Step, Failure> {
        self.steps += 1;
        self.world.progress.stage(&format!("{}: learning, step {}", self.place, self.steps));
        let (counts, batches) = (held(counts)?, self.mini_batches[mini_batch].clone());
        let total = self.total(&batches);
        let mut step = Step { loss: 0.0, sums: self.shapes.iter().map(|&shape| Array2::zeros(shape)).collect() };
        for i in batches {
            let (values, loss) = self.run(i, true, &counts, total)?;
            step.loss += loss;
            for (sum, name) in step.sums.iter_mut().zip(&self.learning.names.sums) {
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

    fn judge(&mut self, counts: &[Array1<usize>]) -> Result<f64, Failure> {
        let (counts, judges) = (held(counts)?, self.judges.clone());
        let total = self.total(&judges);
        let mut sum = 0.0;
        for i in judges {
            sum += self.run(i, false, &counts, total)?.1;
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

/// Counts as ONNX Runtime takes them.
fn held(counts: &[Array1<usize>]) -> Result<Vec<Held>, Error> {
    let held = |counts: &Array1<usize>| {
        let bytes: Vec<u8> = counts.iter().flat_map(|&count| (count as i32).to_le_bytes()).collect();
        let tensor = Tensor::from_raw("", ElementType::I32, counts.shape(), bytes.into());
        runtime::host(&tensor.map_err(|e| Error::internal(e.to_string()))?)
    };
    counts.iter().map(held).collect()
}
