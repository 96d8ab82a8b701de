//! The samples of files and folders: counted before they are read, and joined.

use std::path::Path;

use kprune_passes::ir::Tensor;
use kprune_passes::signature::Input;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::Sources;
use super::labels::Labels;
use super::shapes::{self, Shapes};
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

/// The samples of one file: the arrays of the inputs in their order, and labels. What is a single number is the same for
/// all samples.
#[derive(Default)]
pub(super) struct Part {
    pub(super) arrays: Vec<Tensor>,
    pub(super) labels: Option<Labels>,
    /// What people know the samples by, as a text or the name of a file; empty where they have no names.
    pub(super) titles: Vec<String>,
    /// What a user should know about how they were read.
    pub(super) notes: Vec<String>,
    /// Whether masks among the arrays are the program's own.
    pub(super) masks_are_ours: bool,
    /// The shapes of the samples, where they are not all alike.
    pub(super) shapes: Option<Shapes>,
}

impl Part {
    /// Number of samples.
    pub(super) fn samples(&self) -> usize {
        samples(&self.arrays)
    }

    /// The samples with these numbers, in that order.
    ///
    /// # Errors
    /// Where an array cannot be taken apart.
    pub(super) fn select(&self, rows: &[usize]) -> Result<Self, Error> {
        let select = |a: &Tensor| match a.dims() {
            [] => Ok(a.clone()),
            _ => a.select(0, rows).map_err(|e| Error::internal(e.to_string())),
        };
        let arrays = self.arrays.iter().map(select).collect::<Result<_, _>>()?;
        let shapes = self.shapes.as_ref().map(|s| s.select(rows));
        let labels = self.labels.as_ref().map(|l| l.select(rows));
        let titles = picked(&self.titles, rows);
        Ok(Self { arrays, labels, titles, shapes, notes: self.notes.clone(), ..*self })
    }
}

/// Those titles that samples with these numbers have.
pub(super) fn picked(titles: &[String], rows: &[usize]) -> Vec<String> {
    rows.iter().filter_map(|&row| titles.get(row).cloned()).collect()
}

/// How many samples arrays hold.
pub(super) fn samples(arrays: &[Tensor]) -> usize {
    arrays.iter().find_map(|a| a.dims().first().copied()).unwrap_or(0)
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

/// Joins the samples of several files; those that are shorter along an axis are filled with zeros there.
///
/// # Errors
/// Where their arrays have different numbers of axes, or are too large together.
pub(super) fn join(mut parts: Vec<Part>, inputs: &[Input], path: &Path) -> Result<Part, Error> {
    if parts.len() < 2 {
        return parts.pop().ok_or_else(|| Error::data(path, "holds no samples", FEW));
    }
    let pieces: Vec<_> = parts.iter().map(|p| (p.shapes.as_ref(), p.arrays.as_slice())).collect();
    let shapes = Shapes::joined(&pieces);
    let masks_are_ours = parts.iter().all(|p| p.masks_are_ours);
    let notes = parts.iter().flat_map(|p| p.notes.iter().cloned()).collect();
    let are_titled = parts.iter().all(|p| p.titles.len() == p.samples());
    let titles = parts.iter_mut().filter(|_| are_titled).flat_map(|p| std::mem::take(&mut p.titles)).collect();
    let (arrays, labels): (Vec<_>, Vec<_>) = parts.into_iter().map(|p| (p.arrays, p.labels)).unzip();
    let joined = inputs.iter().enumerate().map(|(i, input)| {
        let pieces: Vec<&Tensor> = arrays.iter().filter_map(|part| part.get(i)).collect();
        concatenate(&pieces, input).map_err(|reason| {
            let reason = format!("array {:?} of several files {reason}", input.name);
            Error::data(path, reason, "give files whose arrays have the same axes")
        })
    });
    let arrays = joined.collect::<Result<_, _>>()?;
    Ok(Part { arrays, labels: Labels::joined(labels), titles, notes, masks_are_ours, shapes })
}

/// What to do where there are no samples.
pub(super) const FEW: &str = "give at least a few dozen samples of the task";

/// Arrays concatenated along the first axis, each filled with zeros to the longest; the reason where that
/// cannot be done.
fn concatenate(pieces: &[&Tensor], input: &Input) -> Result<Tensor, String> {
    let first = pieces.first().ok_or("is missing")?;
    let (rank, element) = (first.dims().len(), first.element());
    if pieces.iter().any(|p| p.dims().len() != rank || p.element() != element) {
        let shapes: Vec<_> = pieces.iter().map(|p| format!("{:?}", p.dims())).collect();
        return Err(format!("has the shapes {}", shapes.join(", ")));
    }
    if rank == 0 {
        let bytes = |p: &Tensor| p.bytes().map_err(|e| e.to_string());
        let first_bytes = bytes(first)?;
        let is_same = pieces.iter().map(|p| Ok(bytes(p)? == first_bytes)).collect::<Result<Vec<_>, String>>()?;
        return match is_same.iter().all(|&same| same) {
            true => Ok((*first).clone()),
            false => Err("is another single number in each".into()),
        };
    }
    let longest = |axis: usize| pieces.iter().filter_map(|p| p.dims().get(axis).copied()).max().unwrap_or(0);
    let mut dims: Vec<usize> = (0..rank).map(longest).collect();
    let size = element.bits() / 8;
    let row = |dims: &[usize]| dims.iter().skip(1).try_fold(size, |n, &d| n.checked_mul(d));
    let too_large = || "is too large".to_string();
    let full = row(&dims).ok_or_else(too_large)?;
    let samples: usize = pieces.iter().filter_map(|p| p.dims().first()).sum();
    let mut data = Vec::new();
    data.try_reserve_exact(full.checked_mul(samples).ok_or_else(too_large)?).map_err(|_| too_large())?;
    for piece in pieces {
        let bytes = piece.bytes().map_err(|e| e.to_string())?;
        let (larger, own) = (dims.get(1..).unwrap_or_default(), piece.dims().get(1..).unwrap_or_default());
        for row in bytes.chunks(row(piece.dims()).ok_or_else(too_large)?.max(1)) {
            let start = data.len();
            data.resize(start.saturating_add(full), 0);
            shapes::place(data.get_mut(start..).unwrap_or_default(), larger, row, own, size);
        }
    }
    dims.splice(..1, [samples]);
    Tensor::from_raw(&input.name, element, &dims, data.into()).map_err(|e| e.to_string())
}
