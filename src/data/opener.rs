//! Files and folders of samples, opened by what they are.

use std::path::{Path, PathBuf};

use kprune_passes::signature::Input;

#[cfg(feature = "text")]
use super::config::Config;
use super::samples::Samples;
#[cfg(feature = "text")]
use super::segments::Segments;
#[cfg(feature = "text")]
use super::text::Tokens;
use super::{Sources, arrays};
use crate::error::Error;

/// What a file is by the end of its name, in small letters.
pub(super) fn kind(file: &Path) -> String {
    file.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// Whether a file is of texts, by the end of its name.
pub(super) fn is_text(file: &Path) -> bool {
    matches!(kind(file).as_str(), "txt" | "jsonl" | "json" | "csv" | "tsv")
}

/// Opens samples for one model.
pub(super) struct Opener<'a> {
    inputs: &'a [Input],
    /// The model file.
    #[cfg(any(feature = "text", feature = "images"))]
    model: &'a Path,
    #[cfg(feature = "text")]
    sources: &'a Sources,
    #[cfg(feature = "text")]
    threads: usize,
    #[cfg(feature = "text")]
    tokenizer: Option<PathBuf>,
    #[cfg(feature = "images")]
    preprocessor: Option<PathBuf>,
}

impl<'a> Opener<'a> {
    /// For the model at `model`, beside which a tokenizer and a preprocessor are looked for; text is tokenized on so many
    /// `threads`.
    #[cfg_attr(not(feature = "text"), expect(unused_variables, reason = "only text needs threads"))]
    pub(super) fn new(inputs: &'a [Input], model: &'a Path, sources: &'a Sources, threads: usize) -> Self {
        let beside = |given: &Option<PathBuf>, name: &str| {
            let found = model.with_file_name(name);
            given.clone().or_else(|| found.is_file().then_some(found))
        };
        Self {
            inputs,
            #[cfg(any(feature = "text", feature = "images"))]
            model,
            #[cfg(feature = "text")]
            sources,
            #[cfg(feature = "text")]
            threads,
            #[cfg(feature = "text")]
            tokenizer: beside(&sources.tokenizer, "tokenizer.json"),
            #[cfg(feature = "images")]
            preprocessor: beside(&sources.preprocessor, "preprocessor_config.json"),
        }
    }

    /// Opens one file or folder.
    pub(super) fn open(&self, file: &Path) -> Result<Box<dyn Samples>, Error> {
        if file.is_dir() {
            return match arrays::test_data_sets(file).is_empty() {
                true => self.images(file),
                false => Ok(Box::new(arrays::Sets::new(file, self.inputs)?)),
            };
        }
        match kind(file).as_str() {
            "npz" => arrays::npz(file, self.inputs),
            "safetensors" => arrays::safetensors(file, self.inputs),
            _ if is_text(file) => self.texts(file),
            other => {
                let reason = format!("is of the unknown kind {other:?}");
                let help = "give .npz or .safetensors (one array per input), .jsonl, .json, .csv, .tsv or .txt, a folder of \
                            images, or a folder with test_data_set_*";
                Err(Error::data(file, reason, help))
            }
        }
    }

    #[cfg(feature = "images")]
    fn images(&self, folder: &Path) -> Result<Box<dyn Samples>, Error> {
        let images = super::images::Images::new(folder, self.inputs, self.model, self.preprocessor.as_deref())?;
        Ok(Box::new(images))
    }

    #[cfg(not(feature = "images"))]
    fn images(&self, folder: &Path) -> Result<Box<dyn Samples>, Error> {
        Err(Error::data(folder, "is a folder of images, which this build does not read", BUILD))
    }

    #[cfg(feature = "text")]
    fn texts(&self, file: &Path) -> Result<Box<dyn Samples>, Error> {
        let missing = || {
            let reason = "is text, and there is no tokenizer.json beside the model";
            Error::data(file, reason, "name one with --tokenizer PATH")
        };
        let tokenizer = self.tokenizer.as_deref().ok_or_else(missing)?;
        let config = Config::beside(self.model);
        if let Some(length) = self.sources.segment {
            let tokens = Tokens::new(tokenizer, &config, self.threads);
            let segments = Segments::read(file, self.inputs, &self.sources.columns, &tokens, length)?;
            return Ok(Box::new(segments));
        }
        let columns = (&self.sources.columns, self.threads);
        Ok(Box::new(super::text::Texts::read(file, self.inputs, tokenizer, columns, &config)?))
    }

    #[cfg(not(feature = "text"))]
    fn texts(&self, file: &Path) -> Result<Box<dyn Samples>, Error> {
        Err(Error::data(file, "is text, which this build does not read", BUILD))
    }

    /// The text that is built into the program, where there is a tokenizer.
    #[cfg(feature = "text")]
    pub(super) fn built_in(&self) -> Option<Box<dyn Samples>> {
        let tokenizer = self.tokenizer.as_deref()?;
        let config = Config::beside(self.model);
        Some(Box::new(super::text::Texts::built_in(self.inputs, tokenizer, self.threads, &config)))
    }

    #[cfg(not(feature = "text"))]
    pub(super) fn built_in(&self) -> Option<Box<dyn Samples>> {
        None
    }
}

/// What to do where a build lacks something.
#[cfg(not(all(feature = "text", feature = "images")))]
pub(super) const BUILD: &str = "build onnx-kprune with its features text and images, as it is by default";
