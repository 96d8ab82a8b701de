//! Data from text, through a `tokenizer.json`.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::signature::{Axis, Input};
use serde_json::Value;
use tokenizers::{EncodeInput, Encoding, Tokenizer};

use super::Columns;
use super::fence::fenced;
use super::labels::Labels;
use super::rows::{self, Rows};
use super::samples::{Part, Samples};
use crate::error::Error;
use crate::store;

/// Longest sequence where neither the tokenizer nor the model sets one.
const LONGEST: usize = 128;

/// No more tokens than this are kept, with padding: 4 GiB for every input.
const MOST_TOKENS: usize = 1 << 29;

/// A short English text of many kinds of sentence, one a line.
const ENGLISH: &str = include_str!("english.txt");

/// Texts that are read and not tokenized yet.
pub(super) struct Texts {
    path: PathBuf,
    tokenizer: PathBuf,
    inputs: Vec<Input>,
    texts: Vec<(String, Option<String>)>,
    labels: Option<Labels>,
    threads: usize,
}

impl Texts {
    /// Reads a file of rows of text from these columns, to be tokenized on so many threads; `id` gives the class that
    /// the model calls by a name.
    pub(super) fn read(
        path: &Path,
        inputs: &[Input],
        tokenizer: &Path,
        (columns, threads): (&Columns, usize),
        id: impl Fn(&str) -> Option<i64>,
    ) -> Result<Self, Error> {
        let Rows { texts, labels } = rows::read(path, columns)?;
        let labels = labels.as_ref().map(|words| Labels::from_words(words, id));
        let (path, tokenizer) = (path.to_path_buf(), tokenizer.to_path_buf());
        Ok(Self { path, tokenizer, inputs: inputs.to_vec(), texts, labels, threads })
    }

    /// The text that is built into the program.
    pub(super) fn built_in(inputs: &[Input], tokenizer: &Path, threads: usize) -> Self {
        let texts = ENGLISH.lines().map(|line| (line.to_string(), None)).collect();
        let (path, tokenizer) = (PathBuf::new(), tokenizer.to_path_buf());
        Self { path, tokenizer, inputs: inputs.to_vec(), texts, labels: None, threads }
    }

    /// The arrays of all inputs, for some of the texts.
    fn encode(&self, rows: &[usize]) -> Result<Vec<Tensor>, Error> {
        let tokens = self.tokenizer()?;
        let padding = tokens.get_padding().map_or(0, |p| i64::from(p.pad_id));
        let fixed = self.fixed_length();
        let longest = fixed.or(tokens.get_truncation().map(|t| t.max_length)).unwrap_or(LONGEST);
        let encodings = self.tokenized(tokens, longest, rows)?;
        let length = fixed.unwrap_or_else(|| encodings.iter().map(|e| e.len()).max().unwrap_or(0));
        self.inputs.iter().map(|input| array(&self.path, input, &encodings, length, padding)).collect()
    }

    fn tokenizer(&self) -> Result<Tokenizer, Error> {
        let content = store::read(&self.tokenizer).map_err(Error::io("read", &self.tokenizer))?;
        if has_false_map(&content) {
            return Err(self.unusable("its precompiled_charsmap is shorter than it says".into()));
        }
        fenced(&self.tokenizer, || Tokenizer::from_bytes(&content).map_err(|e| self.unusable(e)))
    }

    fn unusable(&self, error: tokenizers::Error) -> Error {
        let reason = format!("is no usable tokenizer: {error}");
        Error::data(&self.tokenizer, reason, "give a Hugging Face tokenizer.json")
    }

    /// The only length that the model takes, if there is but one.
    fn fixed_length(&self) -> Option<usize> {
        self.inputs.iter().find_map(|i| match i.axes.as_ref()?.get(1)? {
            Axis::Fixed(n) => Some(*n),
            Axis::Named(_) => None,
        })
    }

    fn tokenized(&self, mut tokens: Tokenizer, longest: usize, rows: &[usize]) -> Result<Vec<Encoding>, Error> {
        let text = |&row: &usize| self.texts.get(row).cloned();
        let input = |(first, second): (String, Option<String>)| match second {
            Some(second) => EncodeInput::from((first, second)),
            None => EncodeInput::from(first),
        };
        let texts: Vec<EncodeInput> = rows.iter().filter_map(text).map(input).collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads).build();
        let pool = pool.map_err(|e| Error::internal(e.to_string()))?;
        fenced(&self.tokenizer, || {
            let truncation = tokenizers::TruncationParams { max_length: longest, ..Default::default() };
            tokens.with_truncation(Some(truncation)).map_err(|e| self.unusable(e))?;
            tokens.with_padding(None);
            pool.install(|| tokens.encode_batch(texts, true)).map_err(|e| self.unusable(e))
        })
    }
}

/// Whether a precompiled map in a tokenizer begins with a length, of four bytes, beyond its end: whoever reads it would
/// ask for that much memory first.
fn has_false_map(tokenizer: &[u8]) -> bool {
    fn is_false(value: &Value) -> bool {
        match value {
            Value::Object(entries) => entries.iter().any(|(key, value)| match (key.as_str(), value) {
                ("precompiled_charsmap", Value::String(map)) => BASE64_STANDARD.decode(map).is_ok_and(|map| {
                    let length = map.first_chunk::<4>().map_or(0, |start| u32::from_le_bytes(*start));
                    length as usize > map.len()
                }),
                _ => is_false(value),
            }),
            Value::Array(values) => values.iter().any(is_false),
            _ => false,
        }
    }
    serde_json::from_slice(tokenizer).is_ok_and(|value: Value| is_false(&value))
}

impl Samples for Texts {
    fn count(&self) -> usize {
        self.texts.len()
    }

    fn read(self: Box<Self>, rows: &[usize]) -> Result<Part, Error> {
        Ok(Part { arrays: self.encode(rows)?, labels: self.labels.as_ref().map(|l| l.select(rows)), shapes: None })
    }
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
    if length == 0 {
        return Err(wrong("the tokenizer makes no tokens of any text".into()));
    }
    if encodings.len().saturating_mul(length) > MOST_TOKENS {
        return Err(wrong(format!(
            "{} texts of length {length} are too many; take fewer with --samples",
            encodings.len()
        )));
    }
    let mut flat = Vec::new();
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
