//! Samples that are run together.
#![expect(
    clippy::indexing_slicing,
    reason = "rows are numbers of samples that were counted, and a mask has an entry for each"
)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kprune_passes::finite::Odd;
use kprune_passes::ir::{Model, Tensor};
use kprune_passes::signature::{self, Axis, Input};

use super::{Dataset, decoder};
use crate::error::Error;
use crate::runtime::{self, Held};

/// A part of a mini-batch has this many samples, if there are so many, before it ends for the sake of padding.
const FEWEST: usize = 4;

/// It ends before there is more than one padding token in so many real ones.
const LEAST_REAL: usize = 10;

/// So many samples are named in messages.
const NAMED: usize = 8;

/// Samples that are run together.
pub struct Batch {
    /// A tensor for every input.
    pub feeds: Vec<(String, Held)>,
    /// The samples, by their numbers in the data set.
    pub rows: Vec<usize>,
    /// Number of samples.
    pub samples: usize,
    /// Number of real tokens.
    pub tokens: usize,
    /// Number of tokens with padding.
    pub padded: usize,
    /// Which mini-batch the samples belong to; a mini-batch may be run in several batches.
    pub mini_batch: usize,
    /// Number of samples of that mini-batch.
    pub mini_batch_samples: usize,
    /// Whether the samples are held out of what is solved, to judge by.
    pub is_held_out: bool,
}

impl Batch {
    /// The samples, in words.
    pub fn describe(&self) -> String {
        let rows: Vec<String> = self.rows.iter().take(NAMED).map(usize::to_string).collect();
        let rest =
            if self.rows.len() > NAMED { format!(" and {} more", self.rows.len() - NAMED) } else { String::new() };
        let samples = if self.rows.len() == 1 { "sample" } else { "samples" };
        format!("{samples} {}{rest}", rows.join(", "))
    }

    /// The first number of an output that is not finite, with the sample that it belongs to, in words.
    ///
    /// # Errors
    /// Where the numbers cannot be had from a device.
    pub fn odd(&self, value: &ort::value::DynValue) -> Result<Option<(String, Odd)>, Error> {
        let Some(odd) = runtime::odd(value)? else { return Ok(None) };
        let shape = value.dtype().tensor_shape().map(|s| s.to_vec()).unwrap_or_default();
        let each: usize = shape.iter().skip(1).map(|&d| d as usize).product();
        let has_samples = shape.first() == Some(&(self.samples as i64));
        let row = self.rows.get(odd.place / each.max(1)).filter(|_| has_samples);
        Ok(Some((row.map_or_else(|| self.describe(), |row| format!("sample {row}")), odd)))
    }

    /// The tensor of the input called `name`.
    pub fn find(&self, name: &str) -> Option<&ort::value::DynValue> {
        find(&self.feeds, name)
    }

    /// The tensors by name, in the element types that `model` declares for its inputs.
    ///
    /// # Errors
    /// Where ONNX Runtime makes no tensor.
    pub fn feeds_for(&self, model: &Model) -> Result<Vec<(String, Held)>, Error> {
        as_declared(&self.feeds, model)
    }

    /// The tensors by name, for a session.
    pub fn feeds(&self) -> impl Iterator<Item = (&str, &ort::value::DynValue)> {
        self.feeds.iter().map(|(name, held)| (name.as_str(), held.value()))
    }
}

/// The tensor called `name`.
pub fn find<'f>(feeds: &'f [(String, Held)], name: &str) -> Option<&'f ort::value::DynValue> {
    feeds.iter().find(|(n, _)| n == name).map(|(_, held)| held.value())
}

/// Tensors by name, in the element types that `model` declares for its inputs; empty caches with as many heads.
///
/// # Errors
/// Where ONNX Runtime makes no tensor.
pub fn as_declared(feeds: &[(String, Held)], model: &Model) -> Result<Vec<(String, Held)>, Error> {
    let inputs = signature::inputs(model);
    let input = |name: &str| inputs.iter().find(|i| i.name == name);
    let element = |name: &str| input(name).and_then(|i| i.element);
    let convert = |(name, held): &(String, Held)| {
        if let Some(empty) = input(name).map(|input| decoder::fitted(held, input)).transpose()?.flatten() {
            return Ok((name.clone(), empty));
        }
        let held = match (element(name), runtime::element(held.value())) {
            (Some(to), Some(from)) if to != from && to.is_float() && from.is_float() => {
                let tensor = Tensor::from_floats(to, &runtime::scalars(held.value())?);
                runtime::host(&tensor.map_err(|e| Error::internal(e.to_string()))?)?
            }
            _ => held.clone(),
        };
        Ok((name.clone(), held))
    };
    feeds.iter().map(convert).collect()
}

impl Dataset {
    /// The samples in mini-batches of `size`, grouped by length, each cut to its longest member; the longest
    /// first, so that the memory that they need is there for all.
    ///
    /// A mini-batch is one batch, or several where its samples are of very different lengths or the model takes
    /// only batches of a fixed size; samples that do not fill one are then left out. One sample in ten is held out, whatever
    /// the batches, and shares none with others.
    ///
    /// # Errors
    /// Where there are too few samples for one batch.
    pub fn batches(&self, size: usize) -> Result<Vec<Batch>, Error> {
        self.batches_within(size, usize::MAX, 1.0)
    }

    /// The same, of at most `most` tokens where samples are not longer. Where nothing says how many tokens a
    /// sample has, it counts as `each`.
    ///
    /// # Errors
    /// Where there are too few samples for one batch.
    pub fn batches_within(&self, size: usize, most: usize, each: f64) -> Result<Vec<Batch>, Error> {
        let fixed = self.fixed_batch();
        let step = fixed.unwrap_or(1);
        let (mut batches, mut mini_batch) = (Vec::new(), 0);
        let mut held_out = HeldOut::of(self.samples() / step);
        for group in self.groups() {
            let usable = group.len() / step * step;
            for rows in group[..usable].chunks(size.min(usable.max(1)).next_multiple_of(step)) {
                let (aside, others): (Vec<&[usize]>, Vec<&[usize]>) = rows.chunks(step).partition(|_| held_out.next());
                for (own, is_held_out) in [(others.concat(), false), (aside.concat(), true)] {
                    let parts: Vec<&[usize]> = match (fixed, &self.mask) {
                        (Some(fixed), _) => own.chunks(fixed).collect(),
                        (None, Some(mask)) => alike(&mask.lengths, &own, most),
                        (None, None) => own.chunks(((most as f64 / each) as usize).max(1)).collect(),
                    };
                    for part in parts {
                        let batch = self.batch(part)?;
                        batches.push(Batch { mini_batch, mini_batch_samples: rows.len(), is_held_out, ..batch });
                    }
                }
                mini_batch += 1;
            }
        }
        if batches.is_empty() {
            let reason = format!("has {} samples, and the model takes batches of {step}", self.samples());
            return Err(Error::data(Path::new(&self.source), reason, "give more samples"));
        }
        Ok(batches)
    }

    /// The samples of a batch of another form of this data set.
    ///
    /// # Errors
    /// Where an array cannot be taken apart.
    pub fn same_samples(&self, batch: &Batch) -> Result<Batch, Error> {
        self.batch(&batch.rows)
    }

    /// The only number of samples that the model takes at once, if there is but one.
    pub fn fixed_batch(&self) -> Option<usize> {
        self.inputs.iter().find_map(|i| match i.axes.as_ref()?.first()? {
            Axis::Fixed(n) => Some(*n),
            Axis::Named(_) => None,
        })
    }

    fn batch(&self, rows: &[usize]) -> Result<Batch, Error> {
        let longest = self.mask.as_ref().and_then(|m| rows.iter().map(|&r| m.lengths[r]).max());
        let longest = longest.map(|n| self.width(n.max(1)));
        let mut feeds = Vec::new();
        for (k, (input, array)) in self.inputs.iter().zip(&self.arrays).enumerate() {
            let mut batch = if array.dims().is_empty() { array.clone() } else { select(array, 0, rows)? };
            for axis in 1..array.dims().len() {
                let own = || self.shapes.as_ref().and_then(|shapes| shapes.length(*rows.first()?, k, axis));
                let length = longest.filter(|_| self.follows_mask(input, array, axis)).or_else(own);
                if let Some(length) = length.filter(|&n| n < array.dims()[axis]) {
                    batch = select(&batch, axis, &(0..length).collect::<Vec<_>>())?;
                }
            }
            feeds.push((input.name.clone(), runtime::host(&batch)?));
        }
        let tokens = match &self.mask {
            Some(mask) => rows.iter().map(|&r| mask.tokens[r]).sum(),
            None => rows.len(),
        };
        let padded = rows.len() * longest.unwrap_or(1);
        Ok(Batch {
            feeds,
            rows: rows.to_vec(),
            samples: rows.len(),
            tokens,
            padded,
            mini_batch: 0,
            mini_batch_samples: rows.len(),
            is_held_out: false,
        })
    }

    /// Samples that may share a batch, each group the longest first: those of one shape but for what the token mask masks.
    fn groups(&self) -> Vec<Vec<usize>> {
        let order = self.longest_first();
        let Some(shapes) = &self.shapes else { return vec![order] };
        let axes = self.inputs.iter().zip(&self.arrays).enumerate().flat_map(|(k, (input, array))| {
            let others = (1..array.dims().len()).filter(move |&axis| !self.follows_mask(input, array, axis));
            others.map(move |axis| (k, axis))
        });
        let axes: Vec<(usize, usize)> = axes.collect();
        let mut groups: BTreeMap<Reverse<Vec<Option<usize>>>, Vec<usize>> = BTreeMap::new();
        for row in order {
            let shape = axes.iter().map(|&(k, axis)| shapes.length(row, k, axis)).collect();
            groups.entry(Reverse(shape)).or_default().push(row);
        }
        groups.into_values().collect()
    }

    /// Whether an axis of an input runs over the same tokens as the mask.
    pub(super) fn follows_mask(&self, input: &Input, array: &Tensor, axis: usize) -> bool {
        let Some(mask) = &self.mask else { return false };
        let named = |input: &Input, i: usize| input.axes.as_ref().and_then(|a| a.get(i).cloned());
        let (name, masked) = (named(input, axis), named(&self.inputs[mask.input], 1));
        let may_vary = axis > 0 && !matches!(name, Some(Axis::Fixed(_)) | None);
        may_vary && name == masked && array.dims().get(axis) == self.arrays[mask.input].dims().get(1)
    }

    /// The least length from `longest` on that the model takes.
    fn width(&self, longest: usize) -> usize {
        let taken = self.lengths_taken.as_ref().and_then(|taken| taken.range(longest..).next());
        taken.copied().unwrap_or(longest)
    }

    /// Finds out to what lengths samples can be cut: `runs` says whether the model runs on a batch.
    ///
    /// # Errors
    /// Where an array cannot be taken apart.
    pub fn try_cuts(&mut self, mut runs: impl FnMut(&Batch) -> bool) -> Result<(), Error> {
        let Some(mask) = &self.mask else { return Ok(()) };
        let lengths: BTreeMap<usize, usize> =
            mask.lengths.iter().enumerate().map(|(row, &n)| (n.max(1), row)).collect();
        let samples = self.fixed_batch().unwrap_or(1);
        let mut taken = BTreeSet::from([self.arrays[mask.input].dims()[1]]);
        for (&length, &row) in &lengths {
            let is_taken = runs(&self.batch(&vec![row; samples])?);
            match (is_taken, taken.len()) {
                // What takes the shortest takes the others.
                (true, 1) if lengths.keys().next() == Some(&length) => return Ok(()),
                (true, _) => drop(taken.insert(length)),
                (false, _) => {}
            }
        }
        self.lengths_taken = Some(taken);
        Ok(())
    }
}

fn select(array: &Tensor, axis: usize, keep: &[usize]) -> Result<Tensor, Error> {
    array.select(axis, keep).map_err(|e| Error::internal(e.to_string()))
}

/// Which samples are held out, one after the other: every tenth, and at least one where there are several.
struct HeldOut {
    first: usize,
    seen: usize,
}

/// One sample in so many is held out.
const HELD_OUT: usize = 10;

impl HeldOut {
    fn of(samples: usize) -> Self {
        let first = if samples > 1 { (samples / 2).min(HELD_OUT / 2) } else { HELD_OUT };
        Self { first, seen: 0 }
    }

    fn next(&mut self) -> bool {
        self.seen += 1;
        (self.seen - 1) % HELD_OUT == self.first
    }
}

/// Samples, the longest first, in parts in which little is padding, of at most `most` tokens with padding.
fn alike<'r>(lengths: &[usize], mut rows: &'r [usize], most: usize) -> Vec<&'r [usize]> {
    let mut parts = Vec::new();
    while let Some(&first) = rows.first() {
        let mut real = 0;
        let fits = |(count, row): &(usize, &usize)| {
            real += lengths[**row];
            let all = lengths[first] * (count + 1);
            *count == 0 || all <= most && (*count < FEWEST || (all - real) * LEAST_REAL <= real)
        };
        let length = rows.iter().enumerate().take_while(fits).count();
        let (part, rest) = rows.split_at(length);
        parts.push(part);
        rows = rest;
    }
    parts
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_mini_batch_is_parted_where_padding_begins_to_cost() {
        let lengths = [40, 39, 38, 36, 12, 12, 11, 11, 11, 3];
        let rows: Vec<usize> = (0..lengths.len()).collect();
        assert_eq!(alike(&lengths, &rows, 999), [&rows[..4], &rows[4..9], &rows[9..]]);
        assert_eq!(alike(&[5; 10], &rows, 999), [&rows[..]]);
    }

    #[test]
    fn a_part_has_no_more_tokens_than_are_allowed_but_one_sample_at_least() {
        let rows: Vec<usize> = (0..7).collect();
        let lengths = [100, 20, 20, 20, 20, 20, 20];
        assert_eq!(alike(&lengths, &rows, 60), [&rows[..1], &rows[1..4], &rows[4..]]);
    }

    #[test]
    fn one_sample_in_ten_is_held_out_and_one_of_a_few() {
        let places = |samples: usize| {
            let mut held_out = HeldOut::of(samples);
            (0..samples).filter(|_| held_out.next()).collect::<Vec<_>>()
        };
        assert_eq!([places(25), places(4), places(2)], [vec![5, 15], vec![2], vec![1]]);
        assert_eq!([places(1), places(0)], [Vec::<usize>::new(), Vec::new()], "one sample is needed to solve");
    }

    #[test]
    fn a_few_samples_stay_together_however_different() {
        assert_eq!(alike(&[50, 30, 9, 1], &[0, 1, 2, 3], 999).len(), 1);
    }
}
