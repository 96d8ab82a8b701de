//! Caches of earlier tokens as inputs: samples begin with none.

use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::signature::{Axis, Input};

use super::axes_of;
use super::samples::Part;
use crate::error::Error;
use crate::runtime::{self, Held};

/// The arrays of all inputs, from those of the inputs that are no caches of earlier tokens: of which there are none.
pub(super) fn with_empty_caches(part: Part, inputs: &[Input]) -> Result<Part, Error> {
    let samples = part.samples();
    let places = inputs.iter().map(|input| !is_empty_cache(input));
    let shapes = part.shapes.map(|shapes| shapes.with_more_inputs(places));
    let mut given = part.arrays.into_iter();
    let array = |input: &Input| match is_empty_cache(input) {
        true => Some(empty(input, samples)),
        false => given.next().map(Ok),
    };
    let arrays = inputs.iter().filter_map(array).collect::<Result<_, _>>()?;
    Ok(Part { arrays, shapes, ..part })
}

/// A cache of no tokens.
fn empty(input: &Input, samples: usize) -> Result<Tensor, Error> {
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
