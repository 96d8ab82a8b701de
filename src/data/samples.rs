//! The samples of files and folders: counted before they are read, and joined.

use std::path::Path;

use kprune_passes::ir::Tensor;
use kprune_passes::signature::Input;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::Sources;
use super::labels::Labels;
use crate::error::Error;

/// The samples of one file or folder, counted and not read yet.
pub(super) trait Samples {
    /// How many there are.
    fn count(&self) -> usize;

    /// Reads those with the numbers `rows`, in ascending order.
    ///
    /// # Errors
    /// Where they cannot be read, or do not fit the model.
    fn read(self: Box<Self>, rows: &[usize]) -> Result<Part, Error>;
}

/// The samples of one file: the arrays of the inputs in their order, and labels.
pub(super) struct Part {
    pub(super) arrays: Vec<Tensor>,
    pub(super) labels: Option<Labels>,
}

impl Part {
    /// Number of samples.
    pub(super) fn samples(&self) -> usize {
        self.arrays.first().and_then(|a| a.dims().first().copied()).unwrap_or(0)
    }

    /// The samples with these numbers, in that order.
    ///
    /// # Errors
    /// Where an array cannot be taken apart.
    pub(super) fn select(&self, rows: &[usize]) -> Result<Self, Error> {
        let select = |a: &Tensor| a.select(0, rows).map_err(|e| Error::internal(e.to_string()));
        let arrays = self.arrays.iter().map(select).collect::<Result<_, _>>()?;
        Ok(Self { arrays, labels: self.labels.as_ref().map(|l| l.select(rows)) })
    }
}

/// Reads the samples, or as many of them as are wanted, drawn with the seed.
pub(super) fn read_drawn(
    opened: Vec<Box<dyn Samples>>,
    inputs: &[Input],
    path: &Path,
    sources: &Sources,
) -> Result<Part, Error> {
    let all: usize = opened.iter().map(|o| o.count()).sum();
    let rows = match sources.samples.filter(|&wanted| wanted < all) {
        Some(wanted) => drawn(all, wanted, sources.seed),
        None => (0..all).collect(),
    };
    let mut parts = Vec::new();
    let mut before = 0;
    for opened in opened {
        let count = opened.count();
        let own: Vec<usize> = rows.iter().filter_map(|r| r.checked_sub(before)).filter(|&r| r < count).collect();
        if !own.is_empty() {
            parts.push(opened.read(&own)?);
        }
        before += count;
    }
    join(parts, inputs, path)
}

/// `wanted` of the numbers below `all`, drawn with `seed`, in order.
pub(super) fn drawn(all: usize, wanted: usize, seed: u64) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..all).collect();
    rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    rows.truncate(wanted);
    rows.sort_unstable();
    rows
}

/// Joins the samples of several files; shorter sequences are filled with zeros.
///
/// # Errors
/// Where their arrays have different numbers of axes, or are too large together.
pub(super) fn join(parts: Vec<Part>, inputs: &[Input], path: &Path) -> Result<Part, Error> {
    let (mut arrays, labels): (Vec<_>, Vec<_>) = parts.into_iter().map(|p| (p.arrays, p.labels)).unzip();
    let labels = Labels::joined(labels);
    match (arrays.pop(), arrays.is_empty()) {
        (None, _) => Err(Error::data(path, "holds no samples", FEW)),
        (Some(only), true) => Ok(Part { arrays: only, labels }),
        (Some(last), false) => {
            arrays.push(last);
            let joined = inputs.iter().enumerate().map(|(i, input)| {
                let pieces: Vec<&Tensor> = arrays.iter().filter_map(|part| part.get(i)).collect();
                concatenate(&pieces, input).map_err(|reason| {
                    let reason = format!("array {:?} of several files {reason}", input.name);
                    Error::data(path, reason, "give files whose arrays have the same axes")
                })
            });
            Ok(Part { arrays: joined.collect::<Result<_, _>>()?, labels })
        }
    }
}

/// What to do where there are no samples.
pub(super) const FEW: &str = "give at least a few dozen samples of the task";

/// Arrays concatenated along the first axis, each filled with zeros to the longest; the reason where that
/// cannot be done.
fn concatenate(pieces: &[&Tensor], input: &Input) -> Result<Tensor, String> {
    let first = pieces.first().ok_or("is missing")?;
    let (rank, element) = (first.dims().len(), first.element());
    if rank == 0 || pieces.iter().any(|p| p.dims().len() != rank || p.element() != element) {
        let shapes: Vec<_> = pieces.iter().map(|p| format!("{:?}", p.dims())).collect();
        return Err(format!("has the shapes {}", shapes.join(", ")));
    }
    let longest = |axis: usize| pieces.iter().filter_map(|p| p.dims().get(axis).copied()).max().unwrap_or(0);
    let mut dims: Vec<usize> = (0..rank).map(longest).collect();
    let row = |dims: &[usize]| dims.iter().skip(1).try_fold(element.bits() / 8, |n, &d| n.checked_mul(d));
    let too_large = || "is too large".to_string();
    let full = row(&dims).ok_or_else(too_large)?;
    let samples: usize = pieces.iter().filter_map(|p| p.dims().first()).sum();
    let mut data = Vec::new();
    data.try_reserve_exact(full.checked_mul(samples).ok_or_else(too_large)?).map_err(|_| too_large())?;
    for piece in pieces {
        let bytes = piece.bytes().map_err(|e| e.to_string())?;
        let own = row(piece.dims()).ok_or_else(too_large)?;
        for row in bytes.chunks(own.max(1)) {
            data.extend_from_slice(row);
            data.resize(data.len() + full.saturating_sub(own), 0);
        }
    }
    dims.splice(..1, [samples]);
    Tensor::from_raw(&input.name, element, &dims, data.into()).map_err(|e| e.to_string())
}
