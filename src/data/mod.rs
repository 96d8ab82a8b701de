//! Samples to measure on and to judge by: where they come from, and their batches.
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub use batches::{Batch, as_declared, find};
pub(crate) use config::{classes_beside, positions_beside};
pub use labels::Labels;
pub(crate) use mask::integers_like;
pub use polarity::Outputs;
pub(crate) use random::{axes_of, fill, normal, room_for};
#[cfg(feature = "text")]
pub(crate) use text::token_ids;

mod arrays;
mod batches;
mod config;
mod decoder;
#[cfg(feature = "text")]
mod decoding;
mod fence;
#[cfg(feature = "images")]
mod images;
mod labels;
mod mask;
mod opener;
mod polarity;
mod random;
#[cfg(feature = "text")]
mod rows;
mod samples;
#[cfg(feature = "text")]
mod segments;
mod shapes;
#[cfg(feature = "text")]
mod text;
mod trial;

use std::path::{Path, PathBuf};

use kprune_passes::calculus::TokenMask;
use kprune_passes::finite::first_odd;
use kprune_passes::ir::{Graph, Model, Tensor};
use kprune_passes::signature::{self, Axis, Input};

use crate::error::Error;
use decoder::is_empty_cache;
use mask::Mask;
use opener::Opener;
use samples::{FEW, Part, Samples, drawn, read_drawn, samples};
use shapes::Shapes;

/// Where data come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Files of arrays or of text, folders of images or in the ONNX test-data layout.
    pub files: Vec<PathBuf>,
    /// Arrays that a caller gives instead: batches, each an array for every input.
    pub batches: Vec<Vec<(String, Tensor)>>,
    /// So many of the samples, drawn with the seed; all where it is not given.
    pub samples: Option<usize>,
    /// The tokenizer for text; looked for beside the model where it is not given.
    pub tokenizer: Option<PathBuf>,
    /// Which columns of a table of texts hold what.
    pub columns: Columns,
    /// How images are made into numbers, as a `preprocessor_config.json`; looked for beside the model.
    pub preprocessor: Option<PathBuf>,
    /// The input that says which tokens are real.
    pub mask_input: Option<String>,
    /// Tokens of a segment, where text is running text; `None` where each text is a sample, or the model is to decide.
    pub segment: Option<usize>,
    /// Length of made-up sequences, and of the sample for which FLOPs and latencies are counted; there the mean true
    /// length of the samples where it is not given.
    pub seq_len: Option<usize>,
    /// Seed of whatever is drawn.
    pub seed: u64,
}

/// Which columns hold what; empty and `None` where that is to be guessed.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// One or two columns of text.
    pub texts: Vec<String>,
    /// The column of labels.
    pub label: Option<String>,
}

/// Samples that fit a model: one array for every input, samples along the first axis.
#[derive(Clone, Debug)]
pub struct Dataset {
    inputs: Vec<Input>,
    arrays: Vec<Tensor>,
    mask: Option<Mask>,
    /// The shapes of the samples, where they are not all alike.
    shapes: Option<Shapes>,
    /// The lengths that the model takes, where it does not take all.
    lengths_taken: Option<std::collections::BTreeSet<usize>>,
    /// Whether the program filled the masks itself.
    masks_are_ours: bool,
    /// Tokens of a segment of running text.
    segment: Option<usize>,
    /// What a user should know about how the samples were read.
    pub notes: Vec<String>,
    /// What is right for the samples, where that is known.
    pub labels: Option<Labels>,
    /// What people know the samples by, as a text or the name of a file; empty where they have no names.
    pub titles: Vec<String>,
    /// Where the samples come from, for people.
    pub source: String,
    /// Whether they are of the user's task.
    pub is_task_data: bool,
    /// Whether they are numbers that mean nothing.
    pub is_made_up: bool,
}

/// What made-up samples are called.
const MADE_UP: &str = "random inputs";

impl Sources {
    /// Whether the user gave samples.
    pub fn are_given(&self) -> bool {
        !self.batches.is_empty() || !self.files.is_empty()
    }

    /// Whether any of them is text, to be tokenized.
    pub(crate) fn hold_text(&self) -> bool {
        self.files.iter().any(|file| is_text(file))
    }
}

/// Whether a file holds text, to be tokenized.
pub(crate) fn is_text(file: &Path) -> bool {
    !file.is_dir() && opener::is_text(file)
}

/// Hands nobody the ids of a text's tokens: this build reads no text.
#[cfg(not(feature = "text"))]
pub(crate) fn token_ids(
    _: &Path,
    file: &Path,
    _: &Columns,
    _: usize,
    _: impl FnMut(&[u32]) -> Result<(), Error>,
) -> Result<(), Error> {
    Err(Error::data(file, "is text, which this build does not read", opener::BUILD))
}

impl Dataset {
    /// Reads or makes the samples for the model at `path`; text is tokenized on so many `threads`.
    ///
    /// # Errors
    /// Where the data do not fit the model; the message names the array and says what was expected.
    pub fn gather(model: &Model, path: &Path, sources: &Sources, threads: usize) -> Result<Self, Error> {
        let all = signature::inputs(model);
        let mut last = None;
        // Nobody needs to give what follows from the tokens of a decoder.
        for inputs in decoder::may_be_given(&all) {
            match Self::gather_of(model, (&all, &inputs), path, sources, threads) {
                // The fewer inputs are asked for, the nearer is the reason to what is wrong.
                Err(error @ Error::Data { .. }) => last = Some(error),
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| Error::internal("a model takes nothing")))
    }

    /// The same from samples that hold these inputs of all.
    fn gather_of(
        model: &Model,
        (all, inputs): (&[Input], &[Input]),
        path: &Path,
        sources: &Sources,
        threads: usize,
    ) -> Result<Self, Error> {
        let opener = Opener::new(inputs, path, sources, threads);
        let is_task_data = sources.are_given();
        let (opened, file, source): (Vec<Box<dyn Samples>>, _, _) = if !sources.batches.is_empty() {
            let given = arrays::Given::new(&sources.batches, inputs)?;
            (vec![Box::new(given)], Path::new("given arrays"), "given arrays".to_string())
        } else if let Some(first) = sources.files.first() {
            let names: Vec<_> = sources.files.iter().map(|f| f.display().to_string()).collect();
            let opened = sources.files.iter().map(|file| opener.open(file)).collect::<Result<_, _>>()?;
            (opened, first.as_path(), names.join(", "))
        } else if let Some(texts) = opener.built_in() {
            (vec![texts], Path::new(""), "built-in English text".to_string())
        } else {
            let arrays = random::samples(model, inputs, sources, random::SAMPLES)?;
            let part = arrays::Given::of(Part { arrays, masks_are_ours: true, ..Part::default() });
            (vec![Box::new(part)], Path::new(""), MADE_UP.to_string())
        };
        let part = read_drawn(opened, inputs, file, sources)?;
        let part = decoder::completed(part, all, inputs)?;
        Self::new(model, all.to_vec(), part, file, sources, source, is_task_data)
    }

    /// A made-up sample, for what depends on its shape alone.
    ///
    /// # Errors
    /// Where inputs of a type cannot be made up.
    pub fn made_up(model: &Model, sources: &Sources) -> Result<Self, Error> {
        let inputs = signature::inputs(model);
        let arrays = random::samples(model, &inputs, sources, 1)?;
        let part = Part { arrays, masks_are_ours: true, ..Part::default() };
        Self::new(model, inputs, part, Path::new(""), sources, MADE_UP.to_string(), false)
    }

    fn new(
        model: &Model,
        inputs: Vec<Input>,
        part: Part,
        path: &Path,
        sources: &Sources,
        source: String,
        is_task_data: bool,
    ) -> Result<Self, Error> {
        let Part { arrays, labels, titles, shapes, notes, masks_are_ours } = part;
        check(model, &inputs, &arrays, path)?;
        let mask = Mask::find(&inputs, &arrays, sources.mask_input.as_deref(), path)?;
        let samples = samples(&arrays);
        if let Some(labels) = labels.as_ref().filter(|l| l.len() != samples) {
            let reason = format!("holds {} labels and {samples} samples", labels.len());
            return Err(Error::data(path, reason, "give one label for every sample"));
        }
        let is_made_up = source == MADE_UP;
        Ok(Self {
            inputs,
            arrays,
            mask,
            shapes,
            lengths_taken: None,
            masks_are_ours,
            segment: sources.segment,
            notes,
            labels,
            titles,
            source,
            is_task_data,
            is_made_up,
        })
    }

    /// The samples with these numbers, in that order.
    ///
    /// # Errors
    /// Where an array cannot be taken apart.
    fn select(&self, rows: &[usize]) -> Result<Self, Error> {
        let of = |all: &[usize]| rows.iter().filter_map(|&r| all.get(r).copied()).collect();
        let mask = self.mask.as_ref();
        let (arrays, labels, shapes) = (self.arrays.clone(), self.labels.clone(), self.shapes.clone());
        let Part { arrays, labels, shapes, .. } = Part { arrays, labels, shapes, ..Part::default() }.select(rows)?;
        Ok(Self {
            inputs: self.inputs.clone(),
            arrays,
            mask: mask.map(|m| Mask { tokens: of(&m.tokens), lengths: of(&m.lengths), ..*m }),
            shapes,
            labels,
            titles: samples::picked(&self.titles, rows),
            source: self.source.clone(),
            lengths_taken: self.lengths_taken.clone(),
            notes: self.notes.clone(),
            ..*self
        })
    }

    /// Sets `count` samples aside, or what makes full batches, drawn with `seed`: those that stay, and those.
    ///
    /// # Errors
    /// Where there are too few samples for both.
    pub fn split(&self, count: usize, seed: u64) -> Result<[Self; 2], Error> {
        let batch = self.fixed_batch().unwrap_or(1);
        let count = count.next_multiple_of(batch);
        if self.samples() < count + batch {
            let reason = format!("has {} samples, too few to set {count} aside to judge by", self.samples());
            return Err(Error::data(Path::new(&self.source), reason, "give more samples, or others with --eval FILE"));
        }
        let aside = drawn(self.samples(), count, seed);
        let stay: Vec<usize> = (0..self.samples()).filter(|i| aside.binary_search(i).is_err()).collect();
        Ok([self.select(&stay)?, self.select(&aside)?])
    }

    /// Tokens of a segment, where text was taken for running text.
    pub fn segment(&self) -> Option<usize> {
        self.segment
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        samples(&self.arrays)
    }

    /// One more than the place of the last real token of a sample; `None` where nothing says which are real.
    pub fn length(&self, row: usize) -> Option<usize> {
        self.mask.as_ref().and_then(|m| m.lengths.get(row).copied())
    }

    /// The token mask in a graph that has the same inputs.
    pub fn token_mask(&self, graph: &Graph) -> Option<TokenMask> {
        let mask = self.mask.as_ref()?;
        let input = graph.find(&self.inputs.get(mask.input)?.name)?;
        Some(TokenMask { input, marks_padding: mask.marks_padding })
    }

    /// The name of the input that says which tokens are real.
    pub fn mask_input(&self) -> Option<&str> {
        self.mask.as_ref().and_then(|m| Some(self.inputs.get(m.input)?.name.as_str()))
    }

    /// Whether the token mask is 1 at padding; `None` where there is none.
    pub fn mask_marks_padding(&self) -> Option<bool> {
        self.mask.as_ref().map(|mask| mask.marks_padding)
    }

    /// Whether an input's tokens are those that the token mask `mask` is of: their axes have one name.
    pub(crate) fn follows_mask_of(&self, input: &str, mask: &str) -> bool {
        let axis = |name: &str| self.inputs.iter().find(|i| i.name == name)?.axes.as_ref()?.get(1).cloned();
        axis(input) == axis(mask)
    }

    /// How long an axis of an input is for all samples, with padding.
    pub fn extent(&self, input: &str, axis: usize) -> Option<usize> {
        let place = self.inputs.iter().position(|i| i.name == input)?;
        self.arrays.get(place)?.dims().get(axis).copied()
    }

    /// Mean number of real tokens of a sample; `None` where nothing says which are real.
    pub fn mean_length(&self) -> Option<f64> {
        self.mask.as_ref().map(|m| m.tokens.iter().sum::<usize>() as f64 / m.tokens.len() as f64)
    }

    /// How long every named axis of the inputs is: one sample, of mean length or of `seq_len`.
    pub fn lengths(&self, seq_len: Option<usize>) -> std::collections::BTreeMap<String, f64> {
        let mut lengths = std::collections::BTreeMap::new();
        for (k, (input, array)) in self.inputs.iter().zip(&self.arrays).enumerate() {
            for (i, axis) in input.axes.iter().flatten().enumerate() {
                let Axis::Named(name) = axis else { continue };
                let length = match self.mean_length().filter(|_| self.follows_mask(input, array, i)) {
                    _ if i == 0 => 1.0,
                    Some(mean) => seq_len.map_or(mean, |s| s as f64),
                    None => self.mean_extent(k, i).unwrap_or(1.0),
                };
                lengths.entry(name.clone()).or_insert(length);
            }
        }
        lengths
    }

    /// How long an axis of an input is for a sample, in the mean.
    fn mean_extent(&self, input: usize, axis: usize) -> Option<f64> {
        let all = *self.arrays.get(input)?.dims().get(axis)? as f64;
        let Some(shapes) = &self.shapes else { return Some(all) };
        let sum: usize = (0..self.samples()).filter_map(|row| shapes.length(row, input, axis)).sum();
        Some(sum as f64 / self.samples().max(1) as f64)
    }
}

/// Checks that the arrays can be fed to the model.
fn check(model: &Model, inputs: &[Input], arrays: &[Tensor], path: &Path) -> Result<(), Error> {
    let limits = signature::limits(&model.graph);
    let samples = samples(arrays);
    if samples == 0 {
        return Err(Error::data(path, "holds no samples", FEW));
    }
    for (input, array) in inputs.iter().zip(arrays) {
        let wrong = |reason: String| {
            let help = format!("the model takes {}", describe(input));
            Error::data(path, format!("array {:?} {reason}", input.name), help)
        };
        if input.element.is_some_and(|e| e != array.element()) {
            return Err(wrong(format!("is of type {}", array.element())));
        }
        let fits = |(&n, axis): (&usize, &Axis)| {
            *axis == Axis::Named(String::new()) || !matches!(axis, Axis::Fixed(f) if *f != n)
        };
        if let Some(axes) = &input.axes {
            let rest_fits = array.dims().iter().zip(axes).skip(1).all(fits);
            if array.dims().len() != axes.len() || !rest_fits {
                return Err(wrong(format!("has the shape {:?}", array.dims())));
            }
        }
        if array.count() == 0 && !is_empty_cache(input) {
            return Err(wrong(format!("of shape {:?} holds no numbers", array.dims())));
        }
        if array.dims().first().is_some_and(|&n| n != samples) {
            return Err(wrong(format!("holds {:?} samples, another array {samples}", array.dims().first())));
        }
        let odd = array.bytes().ok().and_then(|bytes| first_odd(array.element(), &bytes));
        if let Some(odd) = odd {
            let sample = odd.place / (array.count() / samples.max(1)).max(1);
            return Err(wrong(format!("holds {} in sample {sample}, which is not finite", odd.value)));
        }
        if let Some(&limit) = limits.get(&input.value) {
            let outside = |id: &i64| *id < 0 || *id >= limit as i64;
            if let Some(id) = array.to_i64().ok().and_then(|ids| ids.iter().copied().find(outside)) {
                return Err(wrong(format!("holds the id {id}, and the model's table has {limit} entries")));
            }
        }
    }
    Ok(())
}

/// An input as messages describe it.
pub(crate) fn describe(input: &Input) -> String {
    let axes: Vec<_> = input
        .axes
        .iter()
        .flatten()
        .map(|a| match a {
            Axis::Fixed(n) => n.to_string(),
            Axis::Named(name) => name.clone(),
        })
        .collect();
    let element = input.element.map_or("unknown type".into(), |e| e.to_string());
    format!("{:?}: {element} [{}]", input.name, axes.join(", "))
}
