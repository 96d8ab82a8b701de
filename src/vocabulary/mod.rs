//! Trimming: the tokens that occur in no text of the user's go from a model's tables and scores, from its tokenizer and
//! from its configuration, before anything is measured.
//!
//! The trimmed folder lies beside the target until the run ends, and is pruned as any other.

mod beside;
mod check;
mod merges;
mod tokenizer;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use kprune_passes::simplify::fold::fold_constants;
use kprune_passes::vocabulary::Vocabulary;
use serde::Serialize;
use serde_json::Value;

use crate::analysis::parameters;
use crate::data::{is_text, token_ids};
use crate::error::Error;
use crate::options::Options;
use crate::report;
use crate::runtime::Runtime;
use crate::store::{self, Scratch, Source};
use tokenizer::Tokens;

/// A model of fewer tokens, and what it was.
pub(crate) struct Trimmed {
    /// Where it is.
    pub(crate) source: Source,
    /// The model that it was made of.
    pub(crate) original: report::File,
    /// What was done.
    pub(crate) trimming: Trimming,
    _place: Scratch,
}

/// How many tokens a model was left with.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Trimming {
    /// The texts whose tokens stay.
    pub texts: Vec<String>,
    /// Rows of the original's table.
    pub tokens: usize,
    /// Rows that are left.
    pub kept: usize,
    /// How many of them occur in the texts; the others are letters, to spell other words with, and special tokens.
    pub occur: usize,
    /// The share of the tokens of other texts of the kind that are not among them: those that occur once, as a share of all
    /// that were read (Good 1953, the probability of what was never seen).
    pub unseen: f64,
}

/// Texts are too few where they leave out more of others than this.
const MUCH: f64 = 0.01;

impl Trimming {
    fn of(options: &Options, tokens: usize, kept: usize, seen: &BTreeMap<usize, usize>) -> Self {
        let once = seen.values().filter(|&&times| times == 1).count();
        Self {
            texts: options.vocabulary.iter().map(|text| text.display().to_string()).collect(),
            tokens,
            kept,
            occur: seen.len(),
            unseen: once as f64 / seen.values().sum::<usize>().max(1) as f64,
        }
    }

    /// That texts of other words are cut into letters now, where there will be many.
    pub(crate) fn warning(&self) -> Option<String> {
        let Self { texts, unseen, .. } = self;
        let share = 100.0 * unseen;
        let files = texts.join(", ");
        (*unseen > MUCH).then(|| {
            format!(
                "about {share:.1} % of the tokens of other texts such as {files} are gone, and their words are spelled by \
                 letters now; give --trim-vocabulary more text, all that the model will read"
            )
        })
    }
}

impl fmt::Display for Trimming {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { tokens, kept, occur, .. } = self;
        write!(f, "{tokens} -> {kept} tokens, {occur} of which occur in {}", self.texts.join(", "))
    }
}

/// What the folder of a model must hold.
const TOKENIZER: &str = "tokenizer.json";

/// Leaves the model of a folder the tokens that occur in the texts that `options` name; the result lies beside `target` until
/// it is dropped.
///
/// # Errors
/// Where there is no folder with a tokenizer, where the tokenizer or the model cannot be trimmed, or where the trimmed
/// model is another one.
pub(crate) fn trim(runtime: &Runtime, source: &Source, options: &Options, target: &Path) -> Result<Trimmed, Error> {
    check_options(options)?;
    let (path, tokenizer) = (&source.model, tokenizer_of(source)?);
    let mut model = store::read_inlined(path)?;
    fold_constants(&mut model.graph);
    let bytes = store::size_with_data(path, &model);
    let original =
        report::File { path: path.display().to_string(), bytes, parameters: parameters(&model), sha256: None };
    let vocabulary = Vocabulary::find(&model.graph).map_err(|reason| Error::Unsupported {
        path: path.clone(),
        reason: format!("its vocabulary cannot be trimmed: {reason}"),
        help: "leave --trim-vocabulary away".into(),
    })?;

    // Which tokens stay.
    let tokens = Tokens::parse(&tokenizer, vocabulary.size)?;
    let seen = counted(&tokenizer, options, vocabulary.size, runtime.threads())?;
    let named = vocabulary.named.iter().copied().chain(beside::named(source, vocabulary.size)?);
    let keep: Vec<usize> = tokens.closed(seen.keys().copied().chain(named).collect()).into_iter().collect();
    let trimming = Trimming::of(options, vocabulary.size, keep.len(), &seen);

    // Write, and compare.
    let place = Scratch::beside(target)?;
    let folder = place.path().to_path_buf();
    let trimmed = Source { model: folder.join(path.file_name().unwrap_or_default()), folder: Some(folder.clone()) };
    beside::write(source, &model, &folder, &keep, &tokens)?;
    vocabulary.cut(&mut model.graph, &keep).map_err(|e| Error::internal(e.to_string()))?;
    store::stage(&model, path, &trimmed.model)?.publish()?;
    check::same_tokens([&tokenizer, &folder.join(TOKENIZER)], options, runtime.threads(), &keep)?;
    check::same_outputs(runtime, [path, &trimmed.model], &vocabulary, &keep)?;
    Ok(Trimmed { source: trimmed, original, trimming, _place: place })
}

/// The tokenizer of a folder.
fn tokenizer_of(source: &Source) -> Result<PathBuf, Error> {
    let tokenizer = source.model.with_file_name(TOKENIZER);
    match source.folder.is_some() && tokenizer.is_file() {
        true => Ok(tokenizer),
        false => {
            let reason = "--trim-vocabulary: token ids change, and the tokenizer with them";
            let help = "name a folder with the model and its tokenizer.json as IN, and a folder as OUT";
            Err(Error::Usage(format!("{reason}; {help}")))
        }
    }
}

/// How often every token occurs in the texts, of those that a table of `size` rows has.
fn counted(tokenizer: &Path, options: &Options, size: usize, threads: usize) -> Result<BTreeMap<usize, usize>, Error> {
    let mut seen = BTreeMap::new();
    for text in &options.vocabulary {
        token_ids(tokenizer, text, &options.data.calibration.columns, threads, |ids| {
            let ids = ids.iter().map(|&id| id as usize).filter(|id| *id < size);
            ids.for_each(|id| *seen.entry(id).or_default() += 1);
            Ok(())
        })?;
    }
    Ok(seen)
}

/// Refuses samples that would have to be tokenized anew, and were not by this program.
fn check_options(options: &Options) -> Result<(), Error> {
    let data = &options.data;
    let refused = |reason: String| Err(Error::Usage(format!("--trim-vocabulary: {reason}")));
    if data.calibration.tokenizer.is_some() {
        return refused("the tokenizer is the one in the folder IN; leave --tokenizer away".into());
    }
    let mut files = options.vocabulary.iter().chain(&data.calibration.files).chain(&data.evaluation);
    if let Some(file) = files.find(|file| !is_text(file)) {
        let help = "give text: .txt, .jsonl, .json, .csv or .tsv";
        return refused(format!("{} is no text, and ids change; {help}", file.display()));
    }
    match data.calibration.batches.is_empty() {
        true => Ok(()),
        false => refused("arrays hold ids of the original, and ids change; give text".into()),
    }
}

/// The new id of a token that stays.
fn new_id(keep: &[usize], old: usize) -> Option<usize> {
    keep.binary_search(&old).ok()
}

/// Reads a JSON file.
fn read_json(path: &Path) -> Result<Value, Error> {
    let content = store::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&content).map_err(|e| Error::data(path, format!("is no JSON: {e}"), "repair or remove it"))
}
