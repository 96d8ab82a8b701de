//! Shapes of a decoder in later runs, when its caches hold earlier tokens.
//!
//! In the first run there are as many tokens in all as there are new ones. What is written into the file must tell the two
//! apart.

use kprune_passes::ir::Model;
use kprune_passes::kv_cache::{self, caches};
use kprune_passes::observe::{Observation, Sizes};
use kprune_passes::signature::{self, Axis, Input};
use kprune_passes::simplify::lower;

use super::observation::observe_at;
use crate::error::Error;
use crate::runtime::Runtime;

/// What differs between the two runs.
#[derive(Clone, Copy)]
struct Runs {
    samples: [usize; 2],
    /// New tokens.
    new: [usize; 2],
    /// Earlier tokens.
    earlier: [usize; 2],
}

/// Runs to try in turn: some attentions take several new tokens of one sample, or one of several.
const TRIED: [Runs; 2] =
    [Runs { samples: [2, 3], new: [7, 11], earlier: [4, 6] }, Runs { samples: [2, 1], new: [1, 11], earlier: [4, 6] }];

/// What two runs of the model with earlier tokens show; `None` where it has no caches, or does not run so.
///
/// # Errors
/// Where no session can be made.
pub(super) fn observe_later(runtime: &Runtime, model: &Model) -> Result<Option<Observation>, Error> {
    let caches = caches(&model.graph);
    if caches.is_empty() {
        return Ok(None);
    }
    let single = lower::in_single_precision(model);
    let inputs = signature::inputs(&single);
    let is_past = |input: &Input| caches.iter().any(|cache| cache.past == input.value);
    let ids = kv_cache::ids(&single.graph);
    let ids = inputs.iter().find(|input| Some(input.value) == ids);
    let new = ids.and_then(|ids| ids.axes.as_ref()?.get(1).cloned());
    for runs in TRIED {
        let sizes = sizes(&inputs, is_past, new.as_ref(), runs);
        if let Some(seen) = observe_at(runtime, &single, sizes)? {
            return Ok(Some(seen));
        }
    }
    Ok(None)
}

/// The lengths of the named axes; `new` is that of new tokens.
fn sizes(inputs: &[Input], is_past: impl Fn(&Input) -> bool, new: Option<&Axis>, runs: Runs) -> Sizes {
    let all = [0, 1].map(|nth| runs.new[nth] + runs.earlier[nth]);
    let mut sizes = Sizes::new();
    for input in inputs {
        for (i, axis) in input.axes.iter().flatten().enumerate() {
            let Axis::Named(name) = axis else { continue };
            let size = match i {
                0 => runs.samples,
                kv_cache::HEADS if is_past(input) => continue,
                _ if is_past(input) => runs.earlier,
                _ if Some(axis) == new => runs.new,
                _ => all,
            };
            sizes.entry(name.clone()).or_insert(size);
        }
    }
    sizes
}
