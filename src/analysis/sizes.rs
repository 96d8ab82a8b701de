//! The sizes of trial runs, and inputs made up for them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kprune_passes::ir::{Model, Tensor, ValueId};
use kprune_passes::observe::Sizes;
use kprune_passes::signature::{self, Axis, Convolved, Input};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::data::{Dataset, axes_of, fill, room_for};
use crate::error::Error;

/// Lengths of the first, second, ... axis in the two runs, tried in turn: some models take only multiples
/// of a window, others nothing shorter than a kernel. None grows as another does.
const TRIED: &[&[[usize; 2]]] = &[
    &[[7, 11], [13, 17], [19, 29], [23, 31]],
    &[[16, 32], [48, 80], [112, 176]],
    &[[64, 128], [192, 320]],
    &[[224, 256], [288, 320]],
];

/// The most patches along one side of an image that are tried.
const MOST_PATCHES: usize = 64;

/// The longest axis that is tried because a constant names its length.
const LONGEST: usize = 512;

/// Lengths of the batch axis in the two runs; one sample for graphs that take no more.
const BATCHES: [[usize; 2]; 2] = [[2, 3], [1, 1]];

/// Numbers of samples in the two runs, to try in turn.
pub(super) fn batches(samples: &Dataset) -> Vec<[usize; 2]> {
    match samples.fixed_batch() {
        Some(fixed) => vec![[fixed; 2]],
        None => BATCHES.to_vec(),
    }
}

/// Other lengths of an axis that is so long in the data, to try in turn: shorter ones, then longer ones.
pub(super) fn others(length: usize) -> Vec<usize> {
    let all = [length / 2, length - length / 4, length.saturating_sub(1), length + 1, 2 * length];
    let mut others: Vec<usize> = all.into_iter().filter(|&n| n != length && n > 1).collect();
    others.dedup();
    others
}

/// Lengths of all axes, none as in the data, to try in turn: first such that no two move alike.
pub(super) fn all_moved(lengths: &BTreeMap<String, usize>) -> Vec<BTreeMap<String, usize>> {
    let moved = |k: usize, apart: usize| {
        let each = lengths.iter().enumerate().map(|(i, (name, &length))| {
            let others = others(length);
            (name.clone(), others[(k + i * apart) % others.len()])
        });
        each.collect()
    };
    let most = lengths.values().map(|&n| others(n).len()).max().unwrap_or(1);
    let apart = if lengths.len() > 1 { vec![1, 0] } else { vec![0] };
    apart.into_iter().flat_map(|apart| (0..most).map(move |k| (k, apart))).map(|(k, apart)| moved(k, apart)).collect()
}

/// Inputs that are made up.
pub(super) struct MadeUp<'a> {
    pub(super) model: &'a Model,
    pub(super) inputs: &'a [Input],
    /// The token mask.
    pub(super) mask: Option<&'a str>,
}

impl MadeUp<'_> {
    /// The sizes to try in turn, from those that tell most: of several samples, and of one for graphs that take no more.
    pub(super) fn attempts(&self) -> [Vec<Sizes>; 2] {
        let convolved = signature::convolved(&self.model.graph);
        let [several, one] = BATCHES;
        let sizes = |lengths: &[[usize; 2]], image, batch| self.sizes(lengths, &convolved, image, batch);
        let mut attempts: Vec<Sizes> = TRIED.iter().map(|lengths| sizes(lengths, None, several)).collect();
        // Some take images of one size only: as many patches as they have positions.
        let mut images: BTreeSet<usize> = BTreeSet::new();
        for stride in convolved.values().map(|c| c.stride).filter(|&s| s > 1) {
            images.extend((1..=MOST_PATCHES).map(|n| n * stride));
        }
        attempts.extend(images.into_iter().map(|n| sizes(TRIED[0], Some(n), several)));
        // An exporter may have written down the length that it saw of an axis that it declares as free.
        attempts.extend(numbers(self.model).into_iter().map(|n| sizes(&[[n, n]], None, several)));
        [attempts, TRIED.iter().map(|lengths| sizes(lengths, None, one)).collect()]
    }

    /// Lengths of every named axis: batches on first axes, what a convolution demands on second ones, `image`
    /// after them, `lengths` elsewhere, others for every name.
    fn sizes(
        &self,
        lengths: &[[usize; 2]],
        convolved: &HashMap<ValueId, Convolved>,
        image: Option<usize>,
        batch: [usize; 2],
    ) -> Sizes {
        let mut sizes = Sizes::new();
        let mut others = 0;
        for input in self.inputs {
            let convolution = convolved.get(&input.value).filter(|_| input.axes.as_ref().is_some_and(|a| a.len() > 2));
            for (i, axis) in input.axes.iter().flatten().enumerate() {
                let Axis::Named(name) = axis else { continue };
                if sizes.contains_key(name) {
                    continue;
                }
                let size = match (i, convolution, image) {
                    (0, ..) => batch,
                    (1, Some(convolution), _) => [convolution.channels; 2],
                    (_, Some(_), Some(image)) => [image; 2],
                    _ => {
                        others += 1;
                        lengths[(others - 1).min(lengths.len() - 1)]
                    }
                };
                sizes.insert(name.clone(), size);
            }
        }
        sizes
    }

    /// Inputs of these sizes.
    ///
    /// # Errors
    /// Where an input cannot be made up, or would be too large.
    pub(super) fn feeds(&self, sizes: &Sizes, nth: usize) -> Result<Vec<(String, Tensor)>, Error> {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let shapes = self.inputs.iter().map(|input| {
            let length = |axis: &Axis| match axis {
                Axis::Fixed(n) => *n,
                Axis::Named(name) => sizes[name][nth],
            };
            let dims: Vec<usize> = axes_of(input)?.iter().map(length).collect();
            room_for(input, &dims).map(|()| (input, dims))
        });
        let shapes: Vec<_> = shapes.collect::<Result<_, _>>()?;
        let filled = shapes.into_iter().map(|(input, dims)| {
            let tensor = fill(self.model, input, &dims, self.mask.unwrap_or("attention_mask"), &mut random)?;
            Ok((input.name.clone(), tensor))
        });
        filled.collect()
    }
}

/// Small numbers that stand in the model's constants.
fn numbers(model: &Model) -> BTreeSet<usize> {
    let graph = &model.graph;
    let constants = graph.constants().into_iter().filter_map(|v| graph.constant(v));
    let small = constants.filter(|t| t.count() <= 8).filter_map(|t| t.to_i64().ok());
    let numbers = small.flatten().filter_map(|n| usize::try_from(n).ok());
    numbers.filter(|n| (2..=LONGEST).contains(n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_moves_to_lengths_that_the_data_have_and_then_beyond() {
        assert_eq!(others(13), [6, 10, 12, 14, 26]);
        assert_eq!(others(2), [3, 4]);
        assert_eq!(others(1), [2]);
    }

    #[test]
    fn axes_of_one_length_move_apart_where_the_model_allows_it() {
        let lengths = BTreeMap::from([("height".to_string(), 224), ("width".into(), 224)]);
        let moved = all_moved(&lengths);
        assert_eq!((moved[0]["height"], moved[0]["width"]), (112, 168));
        assert!(moved.iter().any(|m| m["height"] == 112 && m["width"] == 112));
        assert!(moved.iter().all(|m| m.values().all(|&n| n != 224)));
    }
}
