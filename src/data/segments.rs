//! Running text in segments of one length, for models that predict the next token.

use std::path::{Path, PathBuf};

use kprune_passes::ir::Tensor;
use kprune_passes::signature::Input;

use super::Columns;
use super::rows;
use super::samples::{Part, Samples};
use super::text::{Meaning, Tokens, array_of, meanings};
use crate::error::Error;

/// The tokens of all texts, one after the other, cut into segments.
pub(super) struct Segments {
    path: PathBuf,
    inputs: Vec<Input>,
    tokens: Vec<i64>,
    /// Tokens of each.
    length: usize,
}

impl Segments {
    /// Reads and tokenizes a file of texts, each opened as the tokenizer or the model's settings say, and cuts them into
    /// segments of `length` tokens. What is left at the end and fills none is left out, where there is another.
    ///
    /// # Errors
    /// Where the file is not readable, or holds fewer than two tokens.
    pub(super) fn read(
        path: &Path,
        inputs: &[Input],
        columns: &Columns,
        tokenizer: &Tokens,
        length: usize,
    ) -> Result<Self, Error> {
        let texts = rows::documents(path, columns)?;
        let tokens = tokenizer.joined(texts)?;
        let length = length.min(tokens.len());
        if length < 2 {
            let reason = format!("holds {} tokens, and the next one is to be predicted", tokens.len());
            return Err(Error::data(path, reason, "give running text, and segments of at least 2 tokens"));
        }
        Ok(Self { path: path.to_path_buf(), inputs: inputs.to_vec(), tokens, length })
    }
}

impl Samples for Segments {
    fn count(&self) -> usize {
        self.tokens.len() / self.length
    }

    fn read(self: Box<Self>, rows: &[usize]) -> Result<Part, Error> {
        let segment = |&row: &usize| self.tokens.get(row * self.length..(row + 1) * self.length).unwrap_or_default();
        let input = |(input, meaning): (&Input, Option<Meaning>)| -> Result<Tensor, Error> {
            let values = rows.iter().map(|row| match meaning {
                Some(Meaning::Ids) => Some(segment(row).to_vec()),
                Some(Meaning::Mask) => Some(vec![1; self.length]),
                Some(Meaning::Types) => Some(vec![0; self.length]),
                Some(Meaning::Positions) => Some((0..self.length as i64).collect()),
                None => None,
            });
            let missing = || {
                let reason = format!("text gives no values for the input {:?}", input.name);
                Error::data(&self.path, reason, "give arrays with --calibration FILE.npz")
            };
            let values = values.collect::<Option<Vec<Vec<i64>>>>().ok_or_else(missing)?;
            array_of(&self.path, input, &values.concat(), [rows.len(), self.length])
        };
        let arrays = self.inputs.iter().zip(meanings(&self.inputs)).map(input).collect::<Result<_, _>>()?;
        Ok(Part { arrays, masks_are_ours: true, ..Part::default() })
    }
}
