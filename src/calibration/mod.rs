//! The calibration set: where it comes from, and its batches.

pub use batches::Batch;
pub(crate) use random::fill;

mod batches;
mod npz;
mod random;
mod text;

use std::path::{Path, PathBuf};

use kprune_passes::ir::{Model, Tensor};
use kprune_passes::signature::{self, Axis, Input};

use crate::error::Error;

/// Where calibration data come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Files of arrays or of text.
    pub files: Vec<PathBuf>,
    /// The tokenizer for text; looked for beside the model where it is not given.
    pub tokenizer: Option<PathBuf>,
    /// The input that says which tokens are real.
    pub mask_input: Option<String>,
    /// Length of made-up sequences.
    pub seq_len: Option<usize>,
    /// Seed of made-up data.
    pub seed: u64,
}

/// Samples that fit a model: one array for every input, samples along the first axis.
#[derive(Debug)]
pub struct Calibration {
    inputs: Vec<Input>,
    arrays: Vec<Tensor>,
    mask: Option<Mask>,
    /// Where the samples come from, for people.
    pub source: String,
    /// Whether they are of the user's task.
    pub is_task_data: bool,
    /// Whether they are numbers that mean nothing.
    pub is_made_up: bool,
}

/// Which tokens are real.
#[derive(Debug)]
struct Mask {
    input: usize,
    /// Real tokens of every sample.
    tokens: Vec<usize>,
    /// One more than the place of the last real token of every sample.
    lengths: Vec<usize>,
}

/// What made-up samples are called.
const MADE_UP: &str = "random inputs";

impl Calibration {
    /// Reads or makes the calibration set of the model at `path`.
    ///
    /// # Errors
    /// Where the data do not fit the model; the message names the array and says what was expected.
    pub fn gather(model: &Model, path: &Path, sources: &Sources) -> Result<Self, Error> {
        let inputs = signature::inputs(model);
        let folder = path.parent().unwrap_or(Path::new(""));
        let beside = folder.join("tokenizer.json");
        let tokenizer = sources.tokenizer.clone().or_else(|| beside.is_file().then_some(beside));
        if sources.files.is_empty() {
            let arrays = match &tokenizer {
                Some(tokenizer) => text::built_in(&inputs, tokenizer)?,
                None => random::samples(model, &inputs, sources)?,
            };
            let source = if tokenizer.is_some() { "built-in English text" } else { MADE_UP };
            return Self::new(model, inputs, arrays, Path::new(""), sources, source, false);
        }
        let mut parts = Vec::new();
        for file in &sources.files {
            parts.push(read(file, &inputs, tokenizer.as_deref())?);
        }
        let arrays = concatenate(parts, &inputs)?;
        let names: Vec<_> = sources.files.iter().map(|f| f.display().to_string()).collect();
        Self::new(model, inputs, arrays, &sources.files[0], sources, &names.join(", "), true)
    }

    fn new(
        model: &Model,
        inputs: Vec<Input>,
        arrays: Vec<Tensor>,
        path: &Path,
        sources: &Sources,
        source: &str,
        is_task_data: bool,
    ) -> Result<Self, Error> {
        check(model, &inputs, &arrays, path)?;
        let mask = Mask::find(&inputs, &arrays, sources.mask_input.as_deref(), path)?;
        Ok(Self { inputs, arrays, mask, source: source.to_string(), is_task_data, is_made_up: source == MADE_UP })
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.arrays.first().map_or(0, |a| a.dims()[0])
    }

    /// The name of the input that says which tokens are real.
    pub fn mask_input(&self) -> Option<&str> {
        self.mask.as_ref().map(|m| self.inputs[m.input].name.as_str())
    }

    /// Mean number of real tokens of a sample; `None` where nothing says which are real.
    pub fn mean_length(&self) -> Option<f64> {
        self.mask.as_ref().map(|m| m.tokens.iter().sum::<usize>() as f64 / m.tokens.len() as f64)
    }

    /// How long every named axis of the inputs is: one sample, of mean length or of `seq_len`.
    pub fn lengths(&self, seq_len: Option<usize>) -> std::collections::BTreeMap<String, f64> {
        let mut lengths = std::collections::BTreeMap::new();
        let padded = self.mask.as_ref().map(|m| self.arrays[m.input].dims()[1]);
        for (input, array) in self.inputs.iter().zip(&self.arrays) {
            for (i, axis) in input.axes.iter().flatten().enumerate() {
                let Axis::Named(name) = axis else { continue };
                let length = match (i, self.mean_length()) {
                    (0, _) => 1.0,
                    (1, Some(mean)) if Some(array.dims()[1]) == padded => seq_len.map_or(mean, |s| s as f64),
                    _ => array.dims()[i] as f64,
                };
                lengths.entry(name.clone()).or_insert(length);
            }
        }
        lengths
    }
}

impl Mask {
    /// The input that was named, or the one called `attention_mask`.
    fn find(inputs: &[Input], arrays: &[Tensor], given: Option<&str>, path: &Path) -> Result<Option<Self>, Error> {
        let name = given.unwrap_or("attention_mask");
        let Some(input) = inputs.iter().position(|i| i.name == name) else {
            let known: Vec<_> = inputs.iter().map(|i| i.name.as_str()).collect();
            return match given {
                Some(name) => Err(Error::Usage(format!(
                    "--mask-input {name}: the model has no such input; it has {}",
                    known.join(", ")
                ))),
                None => Ok(None),
            };
        };
        let array = &arrays[input];
        let wrong =
            |reason: String| Error::calibration(path, reason, "the mask holds 1 for real tokens and 0 for padding");
        if array.dims().len() != 2 {
            return Err(wrong(format!("the mask {name:?} has the shape {:?} and not [samples, tokens]", array.dims())));
        }
        let real: Vec<bool> = match array.to_i64() {
            Ok(ints) => ints.iter().map(|&x| x != 0).collect(),
            Err(_) => array.to_f64().map_err(|e| wrong(e.to_string()))?.iter().map(|&x| x != 0.0).collect(),
        };
        let rows = || real.chunks(array.dims()[1].max(1));
        let tokens: Vec<_> = rows().map(|r| r.iter().filter(|&&x| x).count()).collect();
        if let Some(empty) = tokens.iter().position(|&n| n == 0) {
            return Err(wrong(format!("sample {empty} has no real token in {name:?}")));
        }
        let lengths = rows().map(|r| r.iter().rposition(|&x| x).map_or(0, |last| last + 1)).collect();
        Ok(Some(Self { input, tokens, lengths }))
    }
}

fn read(file: &Path, inputs: &[Input], tokenizer: Option<&Path>) -> Result<Vec<Tensor>, Error> {
    match file.extension().and_then(|e| e.to_str()).unwrap_or("") {
        "npz" => npz::read(file, inputs),
        "txt" | "jsonl" => {
            let missing = || {
                Error::calibration(
                    file,
                    "is text, and there is no tokenizer.json beside the model",
                    "name one with --tokenizer PATH",
                )
            };
            text::read(file, inputs, tokenizer.ok_or_else(missing)?)
        }
        other => {
            let reason = format!("is of the unknown kind {other:?}");
            Err(Error::calibration(file, reason, "give .npz (one array per input), .jsonl or .txt"))
        }
    }
}

/// Joins the samples of several files; shorter sequences are filled with zeros.
fn concatenate(parts: Vec<Vec<Tensor>>, inputs: &[Input]) -> Result<Vec<Tensor>, Error> {
    if parts.len() == 1 {
        return Ok(parts.into_iter().next().unwrap_or_default());
    }
    (0..inputs.len())
        .map(|i| {
            let arrays: Vec<&Tensor> = parts.iter().map(|p| &p[i]).collect();
            let rank = arrays[0].dims().len();
            let mut dims: Vec<usize> = (0..rank)
                .map(|a| arrays.iter().map(|t| t.dims().get(a).copied().unwrap_or(0)).max().unwrap_or(0))
                .collect();
            let row_len = |dims: &[usize]| dims.iter().product::<usize>() * arrays[0].element().bits() / 8;
            let mut data = Vec::new();
            for array in &arrays {
                let bytes = array.bytes().map_err(|e| Error::internal(e.to_string()))?;
                let (own, full) = (row_len(&array.dims()[1..]), row_len(&dims[1..]));
                for row in bytes.chunks(own.max(1)) {
                    data.extend_from_slice(row);
                    data.resize(data.len() + full - own, 0);
                }
            }
            dims[0] = arrays.iter().map(|t| t.dims()[0]).sum();
            Tensor::from_raw(&inputs[i].name, arrays[0].element(), &dims, data.into())
                .map_err(|e| Error::internal(format!("joining calibration files: {e}")))
        })
        .collect()
}

/// Checks that the arrays can be fed to the model.
fn check(model: &Model, inputs: &[Input], arrays: &[Tensor], path: &Path) -> Result<(), Error> {
    let limits = signature::limits(&model.graph);
    let samples = arrays.first().and_then(|a| a.dims().first().copied()).unwrap_or(0);
    if samples == 0 {
        return Err(Error::calibration(path, "holds no samples", "give at least a few dozen samples of the task"));
    }
    for (input, array) in inputs.iter().zip(arrays) {
        let wrong = |reason: String| {
            let help = format!("the model takes {}", describe(input));
            Error::calibration(path, format!("array {:?} {reason}", input.name), help)
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
        if array.dims().first() != Some(&samples) {
            return Err(wrong(format!("holds {:?} samples, another array {samples}", array.dims().first())));
        }
        let odd = array.to_f64().ok().and_then(|floats| floats.iter().position(|x| !x.is_finite()));
        if let Some(i) = odd {
            return Err(wrong(format!("holds a value that is not finite (element {i})")));
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
fn describe(input: &Input) -> String {
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
