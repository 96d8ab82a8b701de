//! Samples cut to sizes that are asked for: for runs that show shapes, and for runs that are timed.

use std::collections::BTreeMap;

use kprune_passes::ir::{Model, Tensor};
use kprune_passes::signature::{self, Axis, Input};

use super::{Dataset, decoder};
use crate::error::Error;

impl Dataset {
    /// How long every named axis of the inputs is in the data, but those of samples; the axis of tokens as long as the
    /// longest sample.
    pub fn longest(&self) -> BTreeMap<String, usize> {
        let longest = self.mask.as_ref().and_then(|m| m.lengths.iter().max().copied());
        let mut found = self.widths();
        for (input, array) in self.inputs.iter().zip(&self.arrays) {
            for (i, axis) in input.axes.iter().flatten().enumerate().skip(1) {
                if let (Axis::Named(name), Some(longest), true) = (axis, longest, self.follows_mask(input, array, i)) {
                    found.insert(name.clone(), longest.max(1));
                }
            }
        }
        found
    }

    /// The same with padding.
    pub fn widths(&self) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for (input, array) in self.inputs.iter().zip(&self.arrays) {
            for (axis, &length) in input.axes.iter().flatten().zip(array.dims()).skip(1) {
                if let Axis::Named(name) = axis {
                    found.entry(name.clone()).or_insert(length);
                }
            }
        }
        found
    }

    /// The number of axes of an input in the data.
    pub fn rank(&self, input: &str) -> Option<usize> {
        let place = self.inputs.iter().position(|i| i.name == input)?;
        self.arrays.get(place).map(|array| array.dims().len())
    }

    /// The names of the axes of samples.
    pub fn sample_axes(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().filter_map(|input| match input.axes.as_ref()?.first()? {
            Axis::Named(name) => Some(name.as_str()),
            Axis::Fixed(_) => None,
        })
    }

    /// So many samples from place `first` of an order in which long ones and short ones take turns, beginning with the
    /// longest.
    pub fn mixed(&self, first: usize, samples: usize) -> Vec<usize> {
        let order = self.longest_first();
        let mixed = |k: usize| match k % 2 {
            0 => order.get(k / 2),
            _ => order.get(order.len() - 1 - k / 2),
        };
        (first..first + samples).filter_map(|k| mixed(k % order.len().max(1)).copied()).collect()
    }

    /// So many of the longest samples; the same again where there are fewer.
    pub fn longest_samples(&self, samples: usize) -> Vec<usize> {
        self.longest_first().into_iter().cycle().take(samples).collect()
    }

    /// All samples, those with most tokens first.
    pub(super) fn longest_first(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.samples()).collect();
        if let Some(mask) = &self.mask {
            order.sort_by_key(|&i| std::cmp::Reverse(mask.lengths.get(i).copied()));
        }
        order
    }

    /// The samples `rows`, their named axes as long as `lengths` says: cut, or filled up with themselves. What is of
    /// another length in the data than other inputs' axes of that name stays as it is.
    ///
    /// # Errors
    /// Where an array cannot be taken apart.
    pub fn cut(&self, rows: &[usize], lengths: &BTreeMap<String, usize>) -> Result<Vec<(String, Tensor)>, Error> {
        let widths = self.widths();
        let mut cut = Vec::new();
        for (input, array) in self.inputs.iter().zip(&self.arrays) {
            let mut tensor = array.clone();
            for (i, axis) in input.axes.iter().flatten().enumerate() {
                let all = array.dims().get(i).copied().unwrap_or(1);
                let wanted = match axis {
                    _ if i == 0 => Some(rows.to_vec()),
                    Axis::Named(name) if widths.get(name) == Some(&all) => {
                        lengths.get(name).filter(|&&n| n != all).map(|&n| (0..n).map(|k| k % all.max(1)).collect())
                    }
                    _ => None,
                };
                if let Some(wanted) = wanted {
                    tensor = tensor.select(i, &wanted).map_err(|e| Error::internal(e.to_string()))?;
                }
            }
            cut.push((input.name.clone(), tensor));
        }
        Ok(cut)
    }

    /// The same samples for another model, or for one whose axes are known better.
    ///
    /// # Errors
    /// Where it takes an input that the samples do not have.
    pub fn fitted(mut self, model: &Model) -> Result<Self, Error> {
        let inputs = signature::inputs(model);
        let place = |name: &str| self.inputs.iter().position(|i| i.name == name);
        let missing =
            |name: &str| Error::Usage(format!("the samples have no input {name:?}; compare models of one task"));
        let places = inputs.iter().map(|i| place(&i.name).ok_or_else(|| missing(&i.name)));
        let places: Vec<usize> = places.collect::<Result<_, _>>()?;
        self.mask = self.mask.and_then(|m| {
            let input = places.iter().position(|&p| p == m.input)?;
            Some(super::Mask { input, ..m })
        });
        let samples = self.samples();
        let array = |(input, &place): (&Input, &usize)| match decoder::is_empty_cache(input) {
            // The other model may have lost heads.
            true => Some(decoder::empty(input, samples)),
            false => self.arrays.get(place).cloned().map(Ok),
        };
        self.arrays = inputs.iter().zip(&places).filter_map(array).collect::<Result<_, _>>()?;
        self.shapes = self.shapes.map(|shapes| shapes.of_inputs(&places));
        self.inputs = inputs;
        Ok(self)
    }
}
