//! Whether a trimmed tokenizer and a trimmed model do what they did.

use std::path::Path;

use kprune_passes::ir::Tensor;
use kprune_passes::vocabulary::Vocabulary;
use ndarray::{ArrayD, Axis};

use crate::analysis::{Feeds, Opened, made_up, outputs_of};
use crate::data::{Outputs, integers_like, token_ids};
use crate::error::Error;
use crate::options::Options;
use crate::runtime::{Purpose, Runtime};

/// How much outputs may differ, of the largest: products of other sizes add in another order.
const TOLERANCE: f64 = 1e-4;

/// Checks that a trimmed tokenizer cuts the texts that it was made for as before.
///
/// # Errors
/// Where it does not.
pub(super) fn same_tokens(
    [before, after]: [&Path; 2],
    options: &Options,
    threads: usize,
    keep: &[usize],
) -> Result<(), Error> {
    for text in &options.vocabulary {
        let tokens = |tokenizer: &Path| {
            let mut all: Vec<u32> = Vec::new();
            let add = |ids: &[u32]| {
                all.extend(ids);
                Ok(())
            };
            token_ids(tokenizer, text, &options.data.calibration.columns, threads, add).map(|()| all)
        };
        let (old, new) = (tokens(before)?, tokens(after)?);
        let is_same = |(old, new): (&u32, &u32)| keep.get(*new as usize) == Some(&(*old as usize));
        if old.len() != new.len() || !old.iter().zip(&new).all(is_same) {
            let reason = format!("cannot be trimmed: the tokens of {} would be others", text.display());
            return Err(Error::data(before, reason, "leave --trim-vocabulary away, and report it with the tokenizer"));
        }
    }
    Ok(())
}

/// Checks that a model gives the same outputs for the tokens that stay, on made-up inputs.
///
/// # Errors
/// Where it does not, or does not run any more.
pub(super) fn same_outputs(
    runtime: &Runtime,
    [before, after]: [&Path; 2],
    vocabulary: &Vocabulary,
    keep: &[usize],
) -> Result<(), Error> {
    let [before, after] = [Opened::read(before)?.single()?, Opened::read(after)?.single()?];
    let ids: Vec<&str> = vocabulary.ids.iter().map(|&ids| before.graph.name(ids)).collect();
    let feeds = made_up(runtime, &after)?;
    let old = feeds.iter().map(|(name, tensor)| {
        let tensor = if ids.contains(&name.as_str()) { renumbered(tensor, keep)? } else { tensor.clone() };
        Ok((name.clone(), tensor))
    });
    let old: Feeds = old.collect::<Result<_, Error>>()?;
    let run = |model, feeds: &Feeds| -> Result<Outputs, Error> {
        outputs_of(
            &mut runtime.session(model, "comparing the model before and after it was trimmed", Purpose::Trial)?,
            model,
            feeds,
        )
    };
    let (expected, found) = (run(&before, &old)?, run(&after, &feeds)?);
    for (name, numbers) in expected {
        let other = found.get(&name);
        let is_alike = other.is_some_and(|other| is_alike(&numbers, other, keep));
        if !is_alike {
            let reason = format!("the output {name:?} would be another with fewer tokens");
            return Err(Error::Usage(format!(
                "--trim-vocabulary: {reason}; leave it away, and report it with the model"
            )));
        }
    }
    Ok(())
}

/// The old ids of new ones.
fn renumbered(tensor: &Tensor, keep: &[usize]) -> Result<Tensor, Error> {
    let new = tensor.to_i64().map_err(|e| Error::internal(e.to_string()))?;
    let old = |&id: &i64| usize::try_from(id).ok().and_then(|id| keep.get(id)).map_or(id, |&id| id as i64);
    integers_like(tensor, tensor.dims(), &new.iter().map(old).collect::<Vec<_>>())
}

/// Whether outputs are alike: whole, or the scores of the tokens that stay.
fn is_alike(before: &ArrayD<f64>, after: &ArrayD<f64>, keep: &[usize]) -> bool {
    let picked;
    let before = match before.ndim().checked_sub(1).map(Axis) {
        Some(last) if before.shape() != after.shape() && keep.iter().all(|&id| id < before.len_of(last)) => {
            picked = before.select(last, keep);
            &picked
        }
        _ => before,
    };
    if before.shape() != after.shape() {
        return false;
    }
    let largest = before.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    before.iter().zip(after).all(|(a, b)| (a - b).abs() <= TOLERANCE * largest)
}
