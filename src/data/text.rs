//! Data from text, through a `tokenizer.json`.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::signature::{Axis, Input};
use serde_json::Value;
use tokenizers::{EncodeInput, Encoding, PaddingDirection, PaddingStrategy, Tokenizer};

use super::Columns;
use super::config::Config;
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
    /// The padding token, where the model's settings name it.
    padding: Option<u32>,
    notes: Vec<String>,
    threads: usize,
}

/// A tokenizer for running text.
pub(super) struct Tokens {
    tokenizer: PathBuf,
    /// The token that opens texts, where the model's settings name it.
    opening: Option<u32>,
    threads: usize,
}

impl Texts {
    /// Reads a file of rows of text from these columns, to be tokenized on so many threads, for a model with these
    /// settings.
    pub(super) fn read(
        path: &Path,
        inputs: &[Input],
        tokenizer: &Path,
        (columns, threads): (&Columns, usize),
        config: &Config,
    ) -> Result<Self, Error> {
        let Rows { texts, labels, mut notes } = rows::read(path, columns)?;
        let labels = labels.and_then(|words| Labels::from_words(&words, config, &mut notes));
        let (path, tokenizer) = (path.to_path_buf(), tokenizer.to_path_buf());
        Ok(Self { path, tokenizer, inputs: inputs.to_vec(), texts, labels, padding: config.padding, notes, threads })
    }

    /// The text that is built into the program.
    pub(super) fn built_in(inputs: &[Input], tokenizer: &Path, threads: usize, config: &Config) -> Self {
        let texts = ENGLISH.lines().map(|line| (line.to_string(), None)).collect();
        let (path, tokenizer) = (PathBuf::new(), tokenizer.to_path_buf());
        let (inputs, padding) = (inputs.to_vec(), config.padding);
        Self { path, tokenizer, inputs, texts, labels: None, padding, notes: Vec::new(), threads }
    }

    /// The arrays of all inputs, for some of the texts.
    fn encode(&self, rows: &[usize]) -> Result<Vec<Tensor>, Error> {
        let tokens = tokenizer(&self.tokenizer)?;
        let padding = self.padding(&tokens);
        let fixed = self.fixed_length();
        let longest = fixed.or(tokens.get_truncation().map(|t| t.max_length)).unwrap_or(LONGEST);
        let encodings = self.tokenized(tokens, longest, rows)?;
        let most = encodings.iter().map(|e| e.len()).max().unwrap_or(0);
        let length = fixed.unwrap_or_else(|| padding.length(most));
        let meanings = meanings(&self.inputs);
        let meant = self.inputs.iter().zip(meanings);
        meant.map(|(input, meaning)| array(&self.path, (input, meaning), &encodings, length, &padding)).collect()
    }

    /// How texts are filled up: as the tokenizer says, or else at their end with the padding token of the model's settings,
    /// or with what the vocabulary calls so.
    fn padding(&self, tokens: &Tokenizer) -> Padding {
        let given = tokens.get_padding();
        let usual = || ["[PAD]", "<pad>"].iter().find_map(|token| tokens.token_to_id(token));
        let id = given.map(|p| p.pad_id).or(self.padding).or_else(usual).unwrap_or(0);
        Padding {
            id: id.into(),
            is_left: given.is_some_and(|p| matches!(p.direction, PaddingDirection::Left)),
            least: given.map_or(0, |p| if let PaddingStrategy::Fixed(n) = p.strategy { n } else { 0 }),
            multiple: given.and_then(|p| p.pad_to_multiple_of).unwrap_or(1).max(1),
        }
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
        let given = tokens.get_truncation().cloned().unwrap_or_default();
        let truncation = tokenizers::TruncationParams { max_length: longest, ..given };
        encode(&self.tokenizer, &mut tokens, texts, Some(truncation), self.threads)
    }
}

impl Tokens {
    /// The tokenizer at `tokenizer`, for a model with these settings, on so many threads.
    pub(super) fn new(tokenizer: &Path, config: &Config, threads: usize) -> Self {
        Self { tokenizer: tokenizer.to_path_buf(), opening: config.opening, threads }
    }

    /// The tokens of all texts, one after the other. Where the tokenizer does not open a text itself, the token does that
    /// the model's settings name, or one with a usual name.
    pub(super) fn joined(&self, texts: Vec<String>) -> Result<Vec<i64>, Error> {
        let mut tokens = tokenizer(&self.tokenizer)?;
        let texts = texts.into_iter().map(EncodeInput::from).collect();
        let encodings = encode(&self.tokenizer, &mut tokens, texts, None, self.threads)?;
        let usual = || OPENING.iter().find_map(|token| tokens.token_to_id(token));
        let opening = self.opening.or_else(usual);
        let mut joined = Vec::new();
        for encoding in &encodings {
            let opens_itself = encoding.get_special_tokens_mask().first() == Some(&1);
            joined.extend(opening.filter(|_| !opens_itself).map(i64::from));
            joined.extend(encoding.get_ids().iter().copied().map(i64::from));
        }
        Ok(joined)
    }
}

/// Texts that are tokenized at once where all of them are only looked at.
const AT_ONCE: usize = 1024;

/// Hands `see` the ids of every text of a file, special tokens among them.
///
/// # Errors
/// Where the file or the tokenizer cannot be read, and what `see` fails with.
pub(crate) fn token_ids(
    tokenizer: &Path,
    file: &Path,
    columns: &Columns,
    threads: usize,
    mut see: impl FnMut(&[u32]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut tokens = self::tokenizer(tokenizer)?;
    let texts = rows::texts(file, columns)?;
    for texts in texts.chunks(AT_ONCE) {
        let texts = texts.iter().cloned().map(EncodeInput::from).collect();
        let encodings = encode(tokenizer, &mut tokens, texts, None, threads)?;
        encodings.iter().try_for_each(|encoding| see(encoding.get_ids()))?;
    }
    Ok(())
}

/// What the token that opens a text is called.
const OPENING: [&str; 6] = ["<s>", "<bos>", "<|begin_of_text|>", "[BOS]", "<|endoftext|>", "</s>"];

fn tokenizer(path: &Path) -> Result<Tokenizer, Error> {
    let content = store::read(path).map_err(Error::io("read", path))?;
    if has_false_map(&content) {
        return Err(unusable(path, "its precompiled_charsmap is shorter than it says".into()));
    }
    fenced(path, || Tokenizer::from_bytes(&content).map_err(|e| unusable(path, e)))
}

fn unusable(path: &Path, error: tokenizers::Error) -> Error {
    Error::data(path, format!("is no usable tokenizer: {error}"), "give a Hugging Face tokenizer.json")
}

fn encode(
    path: &Path,
    tokens: &mut Tokenizer,
    texts: Vec<EncodeInput>,
    truncation: Option<tokenizers::TruncationParams>,
    threads: usize,
) -> Result<Vec<Encoding>, Error> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::internal(e.to_string()))?;
    fenced(path, || {
        tokens.with_truncation(truncation).map_err(|e| unusable(path, e))?;
        tokens.with_padding(None);
        pool.install(|| tokens.encode_batch(texts, true)).map_err(|e| unusable(path, e))
    })
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

/// So many letters of a text are shown to people.
const LONGEST_TITLE: usize = 160;

/// What people know a text by: its beginning.
fn title((first, second): &(String, Option<String>)) -> String {
    let whole = second.as_ref().map_or(first.clone(), |second| format!("{first} | {second}"));
    match whole.char_indices().nth(LONGEST_TITLE) {
        Some((end, _)) => format!("{}…", &whole[..end]),
        None => whole,
    }
}

impl Samples for Texts {
    fn count(&self) -> usize {
        self.texts.len()
    }

    fn read(self: Box<Self>, rows: &[usize]) -> Result<Part, Error> {
        let labels = self.labels.as_ref().map(|l| l.select(rows));
        let arrays = self.encode(rows)?;
        let titles = rows.iter().filter_map(|&row| self.texts.get(row)).map(title).collect();
        Ok(Part { arrays, labels, titles, notes: self.notes, masks_are_ours: true, shapes: None })
    }
}

/// How texts are filled up to one length.
struct Padding {
    /// The padding token.
    id: i64,
    is_left: bool,
    /// No text is shorter than this, with padding.
    least: usize,
    /// Lengths are multiples of this.
    multiple: usize,
}

impl Padding {
    /// The length of texts of which the longest has so many tokens.
    fn length(&self, most: usize) -> usize {
        most.max(self.least).next_multiple_of(self.multiple)
    }

    /// The values of a text and what fills the rest of the row.
    fn filled(&self, values: Vec<i64>, fill: i64, length: usize) -> impl Iterator<Item = i64> {
        let missing = vec![fill; length.saturating_sub(values.len())];
        let [first, second] = if self.is_left { [missing, values] } else { [values, missing] };
        first.into_iter().chain(second).take(length)
    }
}

/// What a tokenizer gives for a text.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Meaning {
    Ids,
    Mask,
    Types,
    Positions,
}

/// What every input takes, by what tokenizers call their outputs; where no input is called so, ids are what the only other
/// input of whole numbers takes.
pub(super) fn meanings(inputs: &[Input]) -> Vec<Option<Meaning>> {
    let by_name = |input: &Input| match input.name.to_lowercase() {
        name if name.contains("position") => Some(Meaning::Positions),
        name if name.contains("mask") => Some(Meaning::Mask),
        name if name.contains("type") || name.contains("segment") => Some(Meaning::Types),
        name if name.contains("ids") || name.contains("token") => Some(Meaning::Ids),
        _ => None,
    };
    let mut meanings: Vec<Option<Meaning>> = inputs.iter().map(by_name).collect();
    let is_whole = |input: &Input| matches!(input.element, Some(ElementType::I64 | ElementType::I32));
    let mut open = meanings.iter_mut().zip(inputs).filter(|(m, input)| m.is_none() && is_whole(input));
    if let (Some((only, _)), None) = (open.next(), open.next())
        && !inputs.iter().any(|input| by_name(input) == Some(Meaning::Ids))
    {
        *only = Some(Meaning::Ids);
    }
    meanings
}

/// The array of one input.
fn array(
    path: &Path,
    (input, meaning): (&Input, Option<Meaning>),
    encodings: &[Encoding],
    length: usize,
    padding: &Padding,
) -> Result<Tensor, Error> {
    let name = input.name.as_str();
    // The values of a text, and what fills the rest of the row.
    let values = |e: &Encoding| -> Option<(Vec<i64>, i64)> {
        let wide = |ids: &[u32]| ids.iter().map(|&i| i.into()).collect();
        Some(match meaning? {
            Meaning::Positions => ((0..e.len() as i64).collect(), 0),
            Meaning::Mask => (wide(e.get_attention_mask()), 0),
            Meaning::Types => (wide(e.get_type_ids()), 0),
            Meaning::Ids => (wide(e.get_ids()), padding.id),
        })
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
        flat.extend(padding.filled(ids, fill, length));
    }
    array_of(path, input, &flat, [encodings.len(), length])
}

/// The array of one input, of whole numbers, in the type that it takes.
///
/// # Errors
/// Where it takes another.
pub(super) fn array_of(path: &Path, input: &Input, flat: &[i64], dims: [usize; 2]) -> Result<Tensor, Error> {
    let bytes: Vec<u8> = match input.element {
        Some(ElementType::I64) => flat.iter().flat_map(|i| i.to_le_bytes()).collect(),
        Some(ElementType::I32) => flat.iter().flat_map(|&i| (i as i32).to_le_bytes()).collect(),
        Some(ElementType::Bool) => flat.iter().map(|&i| (i != 0) as u8).collect(),
        Some(ElementType::F32) => flat.iter().flat_map(|&i| (i as f32).to_le_bytes()).collect(),
        other => {
            let reason = format!("text gives no values of {other:?} for the input {:?}", input.name);
            return Err(Error::data(path, reason, "give arrays with --calibration FILE.npz"));
        }
    };
    let element = input.element.unwrap_or(ElementType::I64);
    Tensor::from_raw(&input.name, element, &dims, bytes.into()).map_err(|e| Error::internal(e.to_string()))
}
