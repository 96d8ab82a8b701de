//! Inputs of decoders that nobody needs to give: caches without earlier tokens, masks without padding, positions from 0.

use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::signature::{Axis, Input};
use ndarray::ArrayD;

use super::samples::Part;
use super::{axes_of, integers_like};
use crate::error::Error;
use crate::runtime::{self, Held};

/// What follows from the tokens of a decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Follows {
    /// All tokens are real.
    Mask,
    /// The first token is at 0.
    Positions,
}

impl Follows {
    /// What an input takes, by its name and shape.
    fn of(input: &Input) -> Option<Self> {
        let name = input.name.to_lowercase();
        let is_whole = matches!(input.element, Some(ElementType::I64 | ElementType::I32));
        match is_whole && input.axes.as_ref().is_some_and(|axes| axes.len() == 2) {
            true if name.contains("position") => Some(Self::Positions),
            true if name.contains("mask") => Some(Self::Mask),
            _ => None,
        }
    }
}

/// The inputs that samples may hold, from all but caches to the fewest.
pub(super) fn may_be_given(all: &[Input]) -> Vec<Vec<Input>> {
    let without = |left_out: &[Follows]| -> Vec<Input> {
        let stays = |input: &&Input| {
            !is_empty_cache(input) && Follows::of(input).is_none_or(|follows| !left_out.contains(&follows))
        };
        all.iter().filter(stays).cloned().collect()
    };
    let mut lists = vec![without(&[])];
    if all.iter().any(is_empty_cache) {
        let fewer: [&[Follows]; 3] = [&[Follows::Positions], &[Follows::Mask], &[Follows::Mask, Follows::Positions]];
        lists.extend(fewer.map(without));
        lists.dedup();
    }
    lists
}

/// The arrays of all inputs, from those of the inputs that are `given`.
///
/// # Errors
/// Where an input is none that follows from the others.
pub(super) fn completed(part: Part, all: &[Input], given: &[Input]) -> Result<Part, Error> {
    let samples = part.samples();
    let is_given = |input: &Input| given.iter().any(|other| other.name == input.name);
    let shapes = part.shapes.map(|shapes| shapes.with_more_inputs(all.iter().map(is_given)));
    let tokens = part.arrays.iter().find(|array| array.dims().len() == 2 && !array.element().is_float()).cloned();
    let mask = given.iter().zip(&part.arrays).find(|(input, _)| Follows::of(input) == Some(Follows::Mask));
    let mask = mask.and_then(|(_, array)| array.to_i64().ok());
    let mut arrays = part.arrays.into_iter();
    let array = |input: &Input| match (is_given(input), &tokens) {
        (true, _) => arrays.next().ok_or_else(|| Error::internal("an array is missing")),
        (false, Some(tokens)) if !is_empty_cache(input) => following(input, tokens, mask.as_ref()),
        _ => empty(input, samples),
    };
    let arrays = all.iter().map(array).collect::<Result<_, _>>()?;
    Ok(Part { arrays, shapes, ..part })
}

/// What follows from tokens, [samples, tokens], and from a mask of those that are real: positions are counted from the first
/// real one, since padding may be on the left.
fn following(input: &Input, tokens: &Tensor, mask: Option<&ArrayD<i64>>) -> Result<Tensor, Error> {
    let &[samples, length] = tokens.dims() else { return Err(Error::internal("tokens have two axes")) };
    let is_real = |sample: usize, token: usize| mask.and_then(|m| m.get([sample, token])).is_none_or(|&flag| flag != 0);
    let mut flat = Vec::new();
    for sample in 0..samples {
        let mut before = 0;
        for token in 0..length {
            match Follows::of(input) {
                Some(Follows::Positions) => flat.push(before),
                _ => flat.push(1),
            }
            before += i64::from(is_real(sample, token));
        }
    }
    let like = Tensor::from_raw(&input.name, input.element.unwrap_or(ElementType::I64), &[0], Vec::new().into());
    integers_like(&like.map_err(|e| Error::internal(e.to_string()))?, &[samples, length], &flat)
}

/// A cache of no tokens.
///
/// # Errors
/// Where the rank of the input is not declared.
pub(super) fn empty(input: &Input, samples: usize) -> Result<Tensor, Error> {
    let length = |(i, axis): (usize, &Axis)| match axis {
        Axis::Fixed(n) => *n,
        Axis::Named(_) if i == 0 => samples,
        Axis::Named(_) => 0,
    };
    let dims: Vec<usize> = axes_of(input)?.iter().enumerate().map(length).collect();
    let element = input.element.unwrap_or(ElementType::F32);
    Tensor::from_raw(&input.name, element, &dims, Vec::new().into()).map_err(|e| Error::internal(e.to_string()))
}

/// A cache of no tokens as an input wants it; `None` where it is no such cache.
///
/// # Errors
/// Where ONNX Runtime makes no tensor.
pub(super) fn fitted(held: &Held, input: &Input) -> Result<Option<Held>, Error> {
    let Some(shape) = held.value().dtype().tensor_shape().filter(|shape| shape.contains(&0)) else { return Ok(None) };
    let declared = axes_of(input)?.iter().zip(shape.iter().map(|&n| n as usize));
    let length = |(axis, own): (&Axis, usize)| match axis {
        Axis::Fixed(n) if own > 0 => *n,
        _ => own,
    };
    let dims: Vec<usize> = declared.map(length).collect();
    let element = input.element.unwrap_or(ElementType::F32);
    let tensor = Tensor::from_raw(&input.name, element, &dims, Vec::new().into());
    runtime::host(&tensor.map_err(|e| Error::internal(e.to_string()))?).map(Some)
}

/// Whether it is a cache of earlier tokens, of which there are none.
pub(super) fn is_empty_cache(input: &Input) -> bool {
    input.axes.iter().flatten().any(|axis| *axis == Axis::Fixed(0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use kprune_passes::ir::{Graph, Model};
    use kprune_passes::kv_cache;
    use kprune_passes::signature::{declare, inputs};

    fn inputs_of(with_cache: bool) -> Vec<Input> {
        let mut graph = Graph::new();
        for name in ["input_ids", "attention_mask", "position_ids"] {
            graph.add_input(declare(name, ElementType::I64, 2));
        }
        if with_cache {
            let past = graph.add_input(declare("past_key_values.0.key", ElementType::F32, 4));
            [(1, 3), (2, 0), (3, 4)].into_iter().for_each(|(axis, n)| kv_cache::set_length(&mut graph, past, axis, n));
        }
        inputs(&Model::new(graph, 17))
    }

    #[test]
    fn masks_positions_and_caches_follow_from_the_tokens_of_a_decoder() {
        let all = inputs_of(true);
        let lists = may_be_given(&all);
        let names = |inputs: &Vec<Input>| inputs.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&lists[0]), ["input_ids", "attention_mask", "position_ids"]);
        assert_eq!(names(&lists[3]), ["input_ids"]);
        let ids = Tensor::from_i64s(&[2, 3], &[5, 6, 7, 8, 9, 4]);
        let part = Part { arrays: vec![ids], ..Part::default() };
        let made = completed(part, &all, &lists[3]).unwrap().arrays;
        let integers = |i: usize| made[i].to_i64().unwrap().into_iter().collect::<Vec<_>>();
        assert_eq!(integers(1), [1; 6]);
        assert_eq!(integers(2), [0, 1, 2, 0, 1, 2]);
        assert_eq!(made[3].dims(), [2, 3, 0, 4]);
        let (ids, mask) = (made[0].clone(), Tensor::from_i64s(&[2, 3], &[0, 0, 1, 1, 1, 1]));
        let part = Part { arrays: vec![ids, mask], ..Part::default() };
        let made = completed(part, &all, &lists[1]).unwrap().arrays;
        let places: Vec<i64> = made[2].to_i64().unwrap().into_iter().collect();
        assert_eq!(places, [0, 0, 0, 0, 1, 2], "padding on the left");
    }

    #[test]
    fn an_encoder_is_given_all_that_it_takes() {
        assert_eq!(may_be_given(&inputs_of(false)).len(), 1);
    }
}
