//! Calibration data from text, through a `tokenizer.json`.

use std::path::Path;

use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::signature::{Axis, Input};
use tokenizers::{Encoding, Tokenizer};

use crate::error::Error;

/// Longest sequence where neither the tokenizer nor the model sets one.
const LONGEST: usize = 128;

/// A short English text of many kinds of sentence, one a line.
const ENGLISH: &str = include_str!("english.txt");

/// Samples from a file of one text a line, plain or as JSON objects with a `text`.
pub(super) fn read(path: &Path, inputs: &[Input], tokenizer: &Path) -> Result<Vec<Tensor>, Error> {
    let content = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let is_json = path.extension().is_some_and(|e| e == "jsonl");
    let mut lines = Vec::new();
    for (number, line) in content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        lines.push(if is_json { json_text(path, number + 1, line)? } else { line.to_string() });
    }
    encode(path, lines, inputs, tokenizer)
}

/// Samples from the text that is built into the program.
pub(super) fn built_in(inputs: &[Input], tokenizer: &Path) -> Result<Vec<Tensor>, Error> {
    encode(Path::new(""), ENGLISH.lines().map(str::to_string).collect(), inputs, tokenizer)
}

fn json_text(path: &Path, line: usize, json: &str) -> Result<String, Error> {
    let help = "every line is an object such as {\"text\": \"...\"}";
    let wrong = |reason: String| Error::calibration(path, format!("line {line} {reason}"), help);
    let value: serde_json::Value = serde_json::from_str(json).map_err(|e| wrong(format!("is no JSON: {e}")))?;
    let text = value.get("text").and_then(|t| t.as_str());
    text.map(str::to_string).ok_or_else(|| wrong("has no \"text\"".into()))
}

fn encode(path: &Path, lines: Vec<String>, inputs: &[Input], tokenizer: &Path) -> Result<Vec<Tensor>, Error> {
    let unusable = |e: tokenizers::Error| {
        Error::calibration(tokenizer, format!("is no usable tokenizer: {e}"), "give a Hugging Face tokenizer.json")
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
    let encodings = tokens.encode_batch(lines, true).map_err(unusable)?;
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
    let wrong = |reason: String| Error::calibration(path, reason, "give arrays with --calibration FILE.npz");
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
