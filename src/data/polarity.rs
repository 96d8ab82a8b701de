//! What a token mask means, tried on the model: whether 1 stands for real tokens or for padding.
//!
//! Padding is what may be anything: where a mask says so, other tokens there leave the outputs as they are, and other
//! tokens elsewhere do not.

use std::collections::BTreeMap;

use kprune_passes::ir::Tensor;
use ndarray::{ArrayD, Axis};

use super::Dataset;
use super::mask::{Mask, NONE, is_of_ones_and_zeros, marking};
use crate::error::Error;

/// What a run is fed.
type Feeds = Vec<(String, Tensor)>;

/// The floating-point outputs of a run, by name.
pub type Outputs = BTreeMap<String, ArrayD<f64>>;

/// Outputs that differ by less than this of their largest are alike.
const ALIKE: f64 = 1e-4;

/// An input that may be the token mask.
struct Candidate {
    input: usize,
    /// Whether it was recognised without the model.
    is_known: bool,
}

impl Dataset {
    /// Finds out from the model which input is the token mask and what it means; `run` gives the outputs for some inputs,
    /// and `None` where the model does not take them. `given` is the input that the user named.
    ///
    /// # Errors
    /// Where the model cannot be run, or a mask has a sample without a real token.
    pub fn settle_mask(
        &mut self,
        given: Option<&str>,
        mut run: impl FnMut(&Feeds) -> Result<Option<Outputs>, Error>,
    ) -> Result<(), Error> {
        if given == Some(NONE) {
            return Ok(());
        }
        let Some(&row) = self.longest_first().first() else { return Ok(()) };
        let rows = vec![row; self.fixed_batch().unwrap_or(1)];
        for candidate in self.mask_candidates(given) {
            for marks_padding in [false, true] {
                if Trial::new(self, &rows, candidate.input, marks_padding)?.passes(&mut run)? {
                    return self.take_mask(candidate.input, marks_padding);
                }
            }
            if candidate.is_known && self.masks_are_ours {
                return self.keep_finite(&rows, candidate.input, &mut run);
            }
            if candidate.is_known {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes the token mask of other samples for the same model.
    ///
    /// # Errors
    /// Where a sample has no real token then.
    pub fn with_mask_of(mut self, other: &Self) -> Result<Self, Error> {
        let name = other.mask_input();
        let input = self.inputs.iter().position(|input| Some(input.name.as_str()) == name);
        if let (Some(input), Some(mask)) = (input, &other.mask) {
            self.take_mask(input, mask.marks_padding)?;
        }
        Ok(self)
    }

    /// Inputs of ones and zeros, [samples, tokens]: the mask that was recognised by its numbers, or named; or else all.
    fn mask_candidates(&self, given: Option<&str>) -> Vec<Candidate> {
        let known = self.mask.as_ref().map(|mask| mask.input);
        let named = given.and_then(|name| self.inputs.iter().position(|input| input.name == name));
        let is_flags = |&i: &usize| self.arrays.get(i).is_some_and(|a| is_of_ones_and_zeros(a) && width(a) > 1);
        let all = || (0..self.inputs.len()).collect();
        let candidates: Vec<usize> = known.or(named).map_or_else(all, |input| vec![input]);
        let of = |input| Candidate { input, is_known: known.or(named) == Some(input) };
        candidates.into_iter().filter(is_flags).map(of).collect()
    }

    fn take_mask(&mut self, input: usize, marks_padding: bool) -> Result<(), Error> {
        let (Some(declared), Some(array)) = (self.inputs.get(input), self.arrays.get_mut(input)) else { return Ok(()) };
        if marks_padding && self.masks_are_ours {
            *array = flipped(array)?;
        }
        if marks_padding {
            self.notes.push(format!("the input {:?} holds 1 for padding: so the model behaves", declared.name));
        }
        let path = std::path::Path::new(&self.source);
        self.mask = Some(Mask::of(input, &declared.name, array, (false, marks_padding), path)?);
        Ok(())
    }

    /// Fills a mask of ours, in which all tokens are real, the way in which the outputs are finite.
    fn keep_finite(
        &mut self,
        rows: &[usize],
        input: usize,
        run: &mut impl FnMut(&Feeds) -> Result<Option<Outputs>, Error>,
    ) -> Result<(), Error> {
        let mut are_finite = |marks_padding: bool| {
            let trial = Trial::new(self, rows, input, marks_padding)?;
            let outputs = run(&trial.feeds(trial.width, None)?)?;
            Ok::<_, Error>(outputs.is_some_and(|outputs| outputs.values().flatten().all(|x| x.is_finite())))
        };
        if !are_finite(false)? && are_finite(true)? {
            return self.take_mask(input, true);
        }
        Ok(())
    }
}

/// The same samples with other tokens in different places.
struct Trial<'a> {
    data: &'a Dataset,
    rows: &'a [usize],
    input: usize,
    marks_padding: bool,
    width: usize,
}

impl<'a> Trial<'a> {
    fn new(data: &'a Dataset, rows: &'a [usize], input: usize, marks_padding: bool) -> Result<Self, Error> {
        let width = data.arrays.get(input).map_or(0, width);
        Ok(Self { data, rows, input, marks_padding, width })
    }

    /// Whether tokens that the mask calls padding, the last half, do not matter, and the others do.
    fn passes(&self, run: &mut impl FnMut(&Feeds) -> Result<Option<Outputs>, Error>) -> Result<bool, Error> {
        let real = self.width.div_ceil(2);
        let Some(before) = run(&self.feeds(real, None)?)? else { return Ok(false) };
        let Some(padding) = run(&self.feeds(real, Some(real..self.width))?)? else { return Ok(false) };
        if !self.alike(&before, &padding, real) {
            return Ok(false);
        }
        let Some(content) = run(&self.feeds(real, Some(0..real))?)? else { return Ok(false) };
        Ok(!self.alike(&before, &content, real))
    }

    /// The samples with so many real tokens, and at the places `other` the tokens of the opposite end.
    fn feeds(&self, real: usize, other: Option<std::ops::Range<usize>>) -> Result<Feeds, Error> {
        let internal = |e: kprune_passes::ir::TensorError| Error::internal(e.to_string());
        let place = |i: usize| if other.as_ref().is_some_and(|o| o.contains(&i)) { self.width - 1 - i } else { i };
        let places: Vec<usize> = (0..self.width).map(place).collect();
        let mut feeds = Vec::new();
        for (i, (input, array)) in self.data.inputs.iter().zip(&self.data.arrays).enumerate() {
            let tensor = match array.dims() {
                _ if i == self.input => marking(array, (self.rows.len(), self.width), real, self.marks_padding)?,
                [] => array.clone(),
                [_, tokens, ..] if *tokens == self.width => {
                    array.select(0, self.rows).and_then(|a| a.select(1, &places)).map_err(internal)?
                }
                _ => array.select(0, self.rows).map_err(internal)?,
            };
            feeds.push((input.name.clone(), tensor));
        }
        Ok(feeds)
    }

    /// Whether outputs are finite and alike; of those over tokens, at the real ones.
    fn alike(&self, a: &Outputs, b: &Outputs, real: usize) -> bool {
        let seen = |array: &ArrayD<f64>| match array.shape() {
            [_, tokens, ..] if *tokens == self.width => array.slice_axis(Axis(1), (..real).into()).to_owned(),
            _ => array.clone(),
        };
        let all_alike = |(a, b): (&ArrayD<f64>, &ArrayD<f64>)| {
            let (a, b) = (seen(a), seen(b));
            let largest = a.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            a.shape() == b.shape()
                && a.iter().zip(&b).all(|(a, b)| a.is_finite() && (a - b).abs() <= ALIKE * largest.max(ALIKE))
        };
        a.len() == b.len() && a.values().zip(b.values()).all(all_alike)
    }
}

fn width(mask: &Tensor) -> usize {
    mask.dims().get(1).copied().unwrap_or(0)
}

/// The mask with ones for zeros and the other way round.
fn flipped(mask: &Tensor) -> Result<Tensor, Error> {
    let numbers = super::mask::numbers(mask).unwrap_or_default();
    let flipped: Vec<i64> = numbers.iter().map(|&x| (x == 0.0) as i64).collect();
    super::mask::integers_like(mask, mask.dims(), &flipped)
}
