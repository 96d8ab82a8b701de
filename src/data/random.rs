//! Made-up inputs that fit a model's signature.

use std::path::Path;

use kprune_passes::ir::{ElementType, Model, Tensor};
use kprune_passes::signature::{self, Axis, Input};
use ndarray::{ArrayD, IxDyn};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Sources;
use crate::error::Error;

/// So many samples are made up; fewer where they are large.
pub(super) const SAMPLES: usize = 128;

/// The length of made-up sequences; shorter where several axes are free.
const LENGTH: usize = 64;

/// No more numbers than this are made up for one input: what a file declares must not decide how much memory is
/// taken.
const MOST: usize = 1 << 23;

/// A sample of more numbers than this is made shorter where its length is free.
const LARGE: usize = 1 << 20;

/// `samples` samples, or fewer where they are large, for every input: ids within the model's tables, masks of ones,
/// normal numbers.
pub(super) fn samples(
    model: &Model,
    inputs: &[Input],
    sources: &Sources,
    samples: usize,
) -> Result<Vec<Tensor>, Error> {
    let mut random = ChaCha8Rng::seed_from_u64(sources.seed);
    let largest = |length| inputs.iter().map(|input| sample_size(input, length)).max().unwrap_or(1);
    let mut length = sources.seq_len.unwrap_or(LENGTH);
    while sources.seq_len.is_none() && length > 1 && largest(length) > LARGE {
        length /= 2;
    }
    let samples = (MOST / largest(length).max(1)).clamp(1, samples);
    let mask = sources.mask_input.as_deref().unwrap_or("attention_mask");
    inputs
        .iter()
        .map(|input| {
            let axes = axes_of(input)?;
            let axis = |(i, axis): (usize, &Axis)| match axis {
                _ if i == 0 => samples,
                Axis::Fixed(n) => *n,
                Axis::Named(_) => length,
            };
            let dims: Vec<_> = axes.iter().enumerate().map(axis).collect();
            fill(model, input, &dims, mask, &mut random)
        })
        .collect()
}

/// Numbers that one sample of an input has when all free axes are so long.
fn sample_size(input: &Input, length: usize) -> usize {
    let axes = input.axes.iter().flatten().skip(1);
    axes.map(|axis| if let Axis::Fixed(n) = axis { *n } else { length }).fold(1, usize::saturating_mul)
}

/// Refuses to make up an array that is too large.
///
/// # Errors
/// Where it is.
pub(crate) fn room_for(input: &Input, dims: &[usize]) -> Result<(), Error> {
    let count = dims.iter().copied().fold(1, usize::saturating_mul);
    match count <= MOST {
        true => Ok(()),
        false => {
            let reason = format!("it would take {count} numbers ({dims:?}), and {MOST} is the most");
            Err(impossible(input, &reason))
        }
    }
}

/// One array of the given shape.
pub(crate) fn fill(
    model: &Model,
    input: &Input,
    dims: &[usize],
    mask: &str,
    random: &mut ChaCha8Rng,
) -> Result<Tensor, Error> {
    room_for(input, dims)?;
    let count = dims.iter().product();
    let limits = signature::limits(&model.graph);
    let bytes: Vec<u8> = match input.element {
        Some(element) if element.is_float() => {
            let values: Vec<f64> = (0..count).map(|_| if input.name == mask { 1.0 } else { normal(random) }).collect();
            let array = ArrayD::from_shape_vec(IxDyn(dims), values).map_err(|e| Error::internal(e.to_string()))?;
            return Tensor::from_floats(element, &array).map_err(|e| Error::internal(e.to_string()));
        }
        Some(element @ (ElementType::I64 | ElementType::I32)) => {
            let limit = limits.get(&input.value).copied();
            let id = |random: &mut ChaCha8Rng| match limit {
                Some(limit) => random.random_range(0..limit as i64),
                None => 1,
            };
            let ids = (0..count).map(|_| id(random));
            match element {
                ElementType::I64 => ids.flat_map(i64::to_le_bytes).collect(),
                _ => ids.flat_map(|i| (i as i32).to_le_bytes()).collect(),
            }
        }
        Some(ElementType::Bool) => vec![1; count],
        Some(ElementType::U8) => (0..count).map(|_| random.random()).collect(),
        Some(other) => return Err(impossible(input, &format!("it is of type {other}"))),
        None => return Err(impossible(input, "it is no tensor of a known type")),
    };
    let element = input.element.unwrap_or(ElementType::I64);
    Tensor::from_raw(&input.name, element, dims, bytes.into()).map_err(|e| Error::internal(e.to_string()))
}

/// The axes of an input.
///
/// # Errors
/// Where it is no tensor, or its rank is not declared.
pub(crate) fn axes_of(input: &Input) -> Result<&[Axis], Error> {
    input.axes.as_deref().ok_or_else(|| impossible(input, "it is no tensor, or its rank is not declared"))
}

/// A standard normal number (Box and Muller).
pub(crate) fn normal(random: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

fn impossible(input: &Input, why: &str) -> Error {
    let reason = format!("inputs cannot be made up for {:?}: {why}", input.name);
    Error::data(
        Path::new(""),
        reason,
        "export the model with smaller or free axes, or give samples with --calibration FILE.npz",
    )
}
