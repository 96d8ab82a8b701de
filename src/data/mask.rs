//! Which tokens of the samples are real.

use std::path::Path;

use kprune_passes::ir::Tensor;
use kprune_passes::signature::Input;

use crate::error::Error;

/// Which tokens are real.
#[derive(Clone, Debug)]
pub(super) struct Mask {
    pub(super) input: usize,
    /// Real tokens of every sample.
    pub(super) tokens: Vec<usize>,
    /// One more than the place of the last real token of every sample.
    pub(super) lengths: Vec<usize>,
}

impl Mask {
    /// The input that was named, or the one called `attention_mask`.
    pub(super) fn find(
        inputs: &[Input],
        arrays: &[Tensor],
        given: Option<&str>,
        path: &Path,
    ) -> Result<Option<Self>, Error> {
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
        let wrong = |reason: String| Error::data(path, reason, "the mask holds 1 for real tokens and 0 for padding");
        let array = arrays.get(input).ok_or_else(|| wrong(format!("there is no mask {name:?}")))?;
        let &[_, width] = array.dims() else {
            return Err(wrong(format!("the mask {name:?} has the shape {:?} and not [samples, tokens]", array.dims())));
        };
        let real: Vec<bool> = match array.to_i64() {
            Ok(ints) => ints.iter().map(|&x| x != 0).collect(),
            Err(_) => array.to_f64().map_err(|e| wrong(e.to_string()))?.iter().map(|&x| x != 0.0).collect(),
        };
        let rows = || real.chunks(width.max(1));
        let tokens: Vec<_> = rows().map(|r| r.iter().filter(|&&x| x).count()).collect();
        if let Some(empty) = tokens.iter().position(|&n| n == 0) {
            return Err(wrong(format!("sample {empty} has no real token in {name:?}")));
        }
        let lengths = rows().map(|r| r.iter().rposition(|&x| x).map_or(0, |last| last + 1)).collect();
        Ok(Some(Self { input, tokens, lengths }))
    }
}
