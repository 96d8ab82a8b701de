//! Whether a model predicts the next token, tried on it, and how long its segments of text are.

use std::path::Path;

use kprune_passes::ir::{ElementType, Model, Tensor, ValueId};
use kprune_passes::signature::{self, Axis, Input};
use ndarray::{ArrayD, Axis as Along};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::TRYING;
use super::changes::outputs_of;
use super::observation::{Feeds, allowance};
use crate::data::{Outputs, Sources, axes_of, fill, integers_like, positions_beside};
use crate::error::Error;
use crate::runtime::{Purpose, Runtime, Session};

/// Tokens of a trial.
const TOKENS: usize = 8;

/// Numbers that differ by less than this of the largest are alike.
const ALIKE: f64 = 1e-4;

/// No segment is longer where nothing is said.
const LONGEST: usize = 2048;

/// No segment that is tried is shorter.
const SHORTEST: usize = 16;

/// Whether every number of an output over the vocabulary stays as it is when a later token is another one. `model` is in
/// f32, and takes no earlier tokens.
///
/// # Errors
/// Where no session can be made.
pub(super) fn is_causal(runtime: &Runtime, model: &Model) -> Result<bool, Error> {
    let Some((ids, outputs)) = scores(model) else { return Ok(false) };
    let mut trial = Trial::new(runtime, model, ids)?;
    let Some(before) = trial.run(TOKENS, 0)? else { return Ok(false) };
    let Some(after) = trial.run(TOKENS, 1)? else { return Ok(false) };
    Ok(outputs.iter().any(|name| is_alike_but_at_the_end(before.get(name), after.get(name))))
}

/// The same sources, with a length of segments: as long as the model's positions allow.
///
/// # Errors
/// Where no session can be made.
pub(super) fn in_segments(runtime: &Runtime, model: &Model, path: &Path, sources: &Sources) -> Result<Sources, Error> {
    let segment = match (sources.segment, positions_beside(path)) {
        (Some(given), _) => given,
        (None, Some(positions)) => positions.min(LONGEST),
        (None, None) => longest(runtime, model)?,
    };
    Ok(Sources { segment: Some(segment), ..sources.clone() })
}

/// The only length that the model takes, or the longest of those that are halves of the longest.
fn longest(runtime: &Runtime, model: &Model) -> Result<usize, Error> {
    let Some((ids, _)) = scores(model) else { return Ok(LONGEST) };
    let inputs = signature::inputs(model);
    let axes = inputs.iter().find(|input| input.value == ids).and_then(|input| input.axes.as_ref());
    if let Some(Axis::Fixed(only)) = axes.and_then(|axes| axes.get(1)) {
        return Ok(*only);
    }
    let mut trial = Trial::new(runtime, model, ids)?;
    let mut length = LONGEST;
    while length > SHORTEST && trial.run(length, 0)?.is_none() {
        length /= 2;
    }
    Ok(length)
}

/// The input of token ids, and the names of the outputs that may be scores of every token of its table.
fn scores(model: &Model) -> Option<(ValueId, Vec<String>)> {
    let graph = &model.graph;
    let limits = signature::limits(graph);
    let mut tables: Vec<(ValueId, usize)> = limits.into_iter().collect();
    // Tables of positions are smaller than those of tokens, as a rule.
    tables.sort_by_key(|&(value, rows)| (std::cmp::Reverse(rows), graph.name(value).to_string()));
    let may_be = |value: ValueId, rows: usize, is_sure: bool| {
        let Some(tensor) = graph.info(value).and_then(signature::tensor_type) else { return !is_sure };
        let is_float = ElementType::from_code(tensor.elem_type()).is_some_and(ElementType::is_float);
        let fits = |last: Option<usize>| last.map_or(!is_sure, |n| n == rows);
        let shape = tensor.shape.as_ref().map(signature::lengths);
        is_float && shape.map_or(!is_sure, |dims| matches!(dims[..], [_, _, last] if fits(last)))
    };
    let found = [true, false].into_iter().flat_map(|is_sure| tables.iter().map(move |&table| (table, is_sure)));
    let outputs = |((ids, rows), is_sure): ((ValueId, usize), bool)| {
        let names = graph.outputs().iter().filter(|&&v| may_be(v, rows, is_sure)).map(|&v| graph.name(v).into());
        let names: Vec<String> = names.collect();
        (!names.is_empty()).then_some((ids, names))
    };
    found.map(outputs).find_map(|found| found)
}

/// Runs of one made-up sample.
struct Trial<'a> {
    runtime: &'a Runtime,
    model: &'a Model,
    ids: ValueId,
    session: Session,
}

impl<'a> Trial<'a> {
    fn new(runtime: &'a Runtime, model: &'a Model, ids: ValueId) -> Result<Self, Error> {
        Ok(Self { runtime, model, ids, session: runtime.session(model, TRYING, Purpose::Trial)? })
    }

    /// What it gives with so many tokens, the last of which is so many entries further in the table; `None` where the model
    /// does not take it, or takes too long or too much memory for it.
    fn run(&mut self, tokens: usize, further: i64) -> Result<Option<Outputs>, Error> {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let inputs = signature::inputs(self.model);
        let feeds = inputs.iter().map(|input| self.array(input, tokens, further, &mut random));
        let Ok(feeds) = feeds.collect::<Result<Feeds, Error>>() else { return Ok(None) };
        let ((time, memory), session) = (allowance(self.model), &mut self.session);
        match self.runtime.within(time, memory, || outputs_of(session, self.model, &feeds)) {
            Ok(Err(error @ Error::Interrupted)) => Err(error),
            Ok(outputs) => Ok(outputs.ok()),
            Err(_) => Ok(None),
        }
    }

    fn array(
        &self,
        input: &Input,
        tokens: usize,
        further: i64,
        random: &mut ChaCha8Rng,
    ) -> Result<(String, Tensor), Error> {
        let length = |(i, axis): (usize, &Axis)| match axis {
            Axis::Fixed(n) => *n,
            Axis::Named(_) if i == 0 => 1,
            Axis::Named(_) => tokens,
        };
        let dims: Vec<usize> = axes_of(input)?.iter().enumerate().map(length).collect();
        let tensor = fill(self.model, input, &dims, "attention_mask", random)?;
        let tensor = match tensor.to_i64() {
            Ok(ids) if input.value == self.ids && further > 0 => {
                let rows = signature::limits(&self.model.graph).get(&self.ids).copied().unwrap_or(1) as i64;
                let mut ids: Vec<i64> = ids.into_iter().collect();
                ids.iter_mut().rev().take(1).for_each(|id| *id = (*id + further) % rows);
                integers_like(&tensor, &dims, &ids)?
            }
            _ => tensor,
        };
        Ok((input.name.clone(), tensor))
    }
}

/// Whether two arrays of [1, tokens, vocabulary] differ at the last token, and nowhere else.
fn is_alike_but_at_the_end(a: Option<&ArrayD<f64>>, b: Option<&ArrayD<f64>>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    let &[_, tokens, _] = a.shape() else { return false };
    if a.shape() != b.shape() || tokens < 2 {
        return false;
    }
    let largest = a.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let apart = |token: usize| {
        let of = |x: &ArrayD<f64>| x.index_axis(Along(1), token).to_owned();
        (of(a) - of(b)).iter().fold(0.0f64, |most, x| most.max(x.abs()))
    };
    let is_alike = |token: usize| apart(token) <= ALIKE * largest;
    (0..tokens - 1).all(is_alike) && !is_alike(tokens - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr3;

    #[test]
    fn a_later_token_changes_nothing_but_its_own_scores() {
        let a = arr3(&[[[1.0, 2.0], [3.0, 4.0]]]).into_dyn();
        let later = arr3(&[[[1.0, 2.0], [3.0, 5.0]]]).into_dyn();
        let earlier = arr3(&[[[1.5, 2.0], [3.0, 5.0]]]).into_dyn();
        assert!(is_alike_but_at_the_end(Some(&a), Some(&later)));
        assert!(!is_alike_but_at_the_end(Some(&a), Some(&earlier)), "as in an encoder");
        assert!(!is_alike_but_at_the_end(Some(&a), Some(&a)), "nothing is said of a token that changes nothing");
    }
}
