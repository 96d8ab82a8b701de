//! The check of a decoder's later runs: from what its caches hold after the first tokens, the last must follow as in the
//! original.

use std::collections::BTreeMap;

use kprune_passes::ir::{ElementType, Model, Tensor};
use kprune_passes::kv_cache::{KvCache, caches};
use ndarray::{ArrayD, Axis};

use super::verify::difference;
use crate::data::{Batch, integers_like};
use crate::error::Error;
use crate::runtime::{self, Held, Purpose, Runtime};

/// What a run is fed, by name.
type Feeds = BTreeMap<String, Held>;

/// The largest difference of an output, relative to its largest value, between two models that are given the last tokens of a
/// batch after the others; `None` where they have no caches, or the first does not run so.
///
/// # Errors
/// Where a model does not go on from its own caches.
pub(super) fn differ_later(
    runtime: &Runtime,
    [masked, pruned]: [&Model; 2],
    batch: &Batch,
) -> Result<Option<f64>, Error> {
    let expected = match last_token(runtime, masked, batch) {
        Ok(Some(expected)) => expected,
        Err(error @ Error::Interrupted) => return Err(error),
        _ => return Ok(None),
    };
    let Some(found) = last_token(runtime, pruned, batch)? else { return Ok(None) };
    let differences = expected.iter().filter_map(|(name, expected)| Some(difference(expected, found.get(name)?)));
    Ok(differences.reduce(f64::max))
}

/// What a model gives for the last token of each sample after the others, but for its caches.
fn last_token(runtime: &Runtime, model: &Model, batch: &Batch) -> Result<Option<BTreeMap<String, ArrayD<f64>>>, Error> {
    let graph = &model.graph;
    let caches = caches(graph);
    let name = |value| graph.name(value).to_string();
    let given: Vec<(String, Held)> = batch.feeds_for(model)?;
    let of_tokens = |held: &Held| held.value().dtype().tensor_shape().filter(|s| s.len() == 2).map(|s| s[1] as usize);
    let tokens = given.iter().filter_map(|(_, held)| of_tokens(held)).max().unwrap_or(0);
    let Some(last) = tokens.checked_sub(1).filter(|&last| last > 0 && !caches.is_empty()) else { return Ok(None) };
    let mut session = runtime.session(model, "going on from caches", Purpose::Work)?;
    let [mut first, mut second] = [Feeds::new(), Feeds::new()];
    for (input, held) in given {
        match of_tokens(&held) {
            Some(length) if length == tokens => {
                let is_mask = input.contains("mask");
                first.insert(input.clone(), part(&held, 0, last)?);
                second.insert(input, if is_mask { held } else { part(&held, last, tokens)? });
            }
            _ => drop(first.insert(input, held)),
        }
    }
    let before = session.run_with(|name| first.get(name).map(Held::value))?;
    let presents: BTreeMap<String, &KvCache> = caches.iter().map(|cache| (name(cache.past), cache)).collect();
    let after = session.run_with(|input| match presents.get(input) {
        Some(cache) => before.get(graph.name(cache.present)),
        None => second.get(input).or_else(|| first.get(input)).map(Held::value),
    })?;
    let is_cache = |output: &str| caches.iter().any(|cache| graph.name(cache.present) == output);
    let floats = after
        .into_iter()
        .filter(|(output, value)| !is_cache(output) && runtime::element(value).is_some_and(ElementType::is_float));
    floats.map(|(output, value)| Ok((output, runtime::scalars(&value)?))).collect::<Result<_, Error>>().map(Some)
}

/// The tokens from one place to another, of whole numbers.
fn part(held: &Held, from: usize, to: usize) -> Result<Held, Error> {
    let all = runtime::integers(held.value())?;
    let part = all.slice_axis(Axis(1), (from..to).into()).to_owned();
    let dims = part.shape().to_vec();
    let element = runtime::element(held.value()).unwrap_or(ElementType::I64);
    let like = Tensor::from_raw("", element, &[0], Vec::new().into()).map_err(|e| Error::internal(e.to_string()))?;
    runtime::host(&integers_like(&like, &dims, &part.into_iter().collect::<Vec<_>>())?)
}
