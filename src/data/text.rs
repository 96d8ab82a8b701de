//! Data from text, through a `tokenizer.json`.

use std::path::Path;

use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::signature::{Axis, Input};
use tokenizers::{EncodeInput, Encoding, Tokenizer};

use super::Part;
use super::labels::Labels;
use super::rows::{self, Columns, Rows};
use crate::error::Error;

/// Longest sequence where neither the tokenizer nor the model sets one.
const LONGEST: usize = 128;

/// A short English text of many kinds of sentence, one a line.
const ENGLISH: &str = include_str!("english.txt");

/// Samples from a file of rows of text; `id` gives the class that the model calls by a name.
pub(super) fn read(
    path: &Path,
    inputs: &[Input],
    tokenizer: &Path,
    columns: &Columns,
    id: impl Fn(&str) -> Option<i64>,
) -> Result<Part, Error> {
    let rows = rows::read(path, columns)?;
    let labels = rows.labels.as_ref().map(|words| Labels::from_words(words, id));
    Ok(Part { arrays: encode(path, rows, inputs, tokenizer)?, labels })
}

/// Samples from the text that is built into the program.
pub(super) fn built_in(inputs: &[Input], tokenizer: &Path) -> Result<Part, Error> {
    let texts = ENGLISH.lines().map(|line| (line.to_string(), None)).collect();
    let arrays = encode(Path::new(""), Rows { texts, labels: None }, inputs, tokenizer)?;
    Ok(Part { arrays, labels: None })
}

fn encode(path: &Path, rows: Rows, inputs: &[Input], tokenizer: &Path) -> Result<Vec<Tensor>, Error> {
    let unusable = |e: tokenizers::Error| {
        Error::data(tokenizer, format!("is no usable tokenizer: {e}"), "give a Hugging Face tokenizer.json")
    };
    let mut tokens = Tokenizer::from_file(tokenizer).map_err(unusable)?;
    let fixed = inputs.iter().find_map(|i| match i.axes.as_ref()?.get(1)? {
        Axis::Fixed(n) => Some(*n),
        Axis::Named(_) => None,
    });
    let longest = fixed.or(tokens.get_truncation().map(|t| t.max_length)).unwrap_or(LONGEST);
    let truncation = tokenizers::TruncationParams { max_length: longest, ..Default::default() };
    tokens.with_truncation(Some(truncation)).map_err(unusable)?;
    let padding = tokens.get_padding().map_or(0, |p| i64::from(p.pad_id));
    tokens.with_padding(None);
    let input = |(first, second): (String, Option<String>)| match second {
        Some(second) => EncodeInput::from((first, second)),
        None => EncodeInput::from(first),
    };
    let encodings = tokens.encode_batch(rows.texts.into_iter().map(input).collect(), true).map_err(unusable)?;
    let length = fixed.unwrap_or_else(|| encodings.iter().map(|e| e.len()).max().unwrap_or(0));
    inputs.iter().map(|input| array(path, input, &encodings, length, padding)).collect()
}

/// The array of one input, recognised by what tokenizers call their outputs.
fn array(path: &Path, input: &Input, encodings: &[Encoding], length: usize, padding: i64) -> Result<Tensor, Error> {
    let name = input.name.as_str();
    // The values of a text, and what fills the rest of the row.
    let values = |e: &Encoding| -> Option<(Vec<i64>, i64)> {
        let wide = |ids: &[u32]| ids.iter().map(|&i| i.into()).collect();
        match name {
            _ if name.contains("position") => Some(((0..e.len() as i64).collect(), 0)),
            _ if name.contains("mask") => Some((wide(e.get_attention_mask()), 0)),
            _ if name.contains("type") || name.contains("segment") => Some((wide(e.get_type_ids()), 0)),
            _ if name.contains("ids") || name.contains("token") => Some((wide(e.get_ids()), padding)),
            _ => None,
        }
    };
    let wrong = |reason: String| Error::data(path, reason, "give arrays with --calibration FILE.npz");
    let mut flat = Vec::with_capacity(encodings.len() * length);
    for encoding in encodings {
        let missing = || wrong(format!("text gives no values for the input {name:?}"));
        let (ids, fill) = values(encoding).ok_or_else(missing)?;
        flat.extend(ids.into_iter().chain(std::iter::repeat(fill)).take(length));
    }
    let bytes: Vec<u8> = match input.element {
        Some(ElementType::I64) => flat.iter().flat_map(|i| i.to_le_bytes()).collect(),
        Some(ElementType::I32) => flat.iter().flat_map(|&i| (i as i32).to_le_bytes()).collect(),
        Some(ElementType::Bool) => flat.iter().map(|&i| (i != 0) as u8).collect(),
        Some(ElementType::F32) => flat.iter().flat_map(|&i| (i as f32).to_le_bytes()).collect(),
        other => return Err(wrong(format!("text gives no values of {other:?} for the input {name:?}"))),
    };
    let element = input.element.unwrap_or(ElementType::I64);
    Tensor::from_raw(name, element, &[encodings.len(), length], bytes.into())
        .map_err(|e| Error::internal(e.to_string()))
}
