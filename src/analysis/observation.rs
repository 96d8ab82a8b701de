//! Runs a model twice with different sizes, for the pass that observes shapes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use kprune_passes::ir::{Model, ValueId};
use kprune_passes::observe::{Observation, Seen, Sizes, observed_model};
use kprune_passes::signature::{self, Axis, Convolved, Input};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::data::{axes_of, fill, room_for};
use crate::error::Error;
use crate::runtime::{self, Runtime, Session};

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

/// What two trial runs may take, besides what goes with the model's size: what a file declares must not decide it.
const TIME: Duration = Duration::from_secs(10);
const TIME_PER_100_MB: Duration = Duration::from_secs(20);
const MEMORY: u64 = 1 << 30;
const MEMORY_TIMES: u64 = 16;

/// Lengths of the batch axis in the two runs.
const BATCHES: [usize; 2] = [2, 3];

/// Shapes and integers of all values, seen in two runs.
///
/// # Errors
/// Where the model does not run with any of the sizes tried.
pub fn observe(runtime: &Runtime, model: &Model, mask: Option<&str>) -> Result<Observation, Error> {
    let inputs = signature::inputs(model);
    let (observed, values) = observed_model(model);
    let mut session = runtime.session(&observed, "observing shapes", false)?;
    let mut failure = None;
    let weight: u64 = model
        .graph
        .constants()
        .iter()
        .filter_map(|&v| model.graph.constant(v)?.bytes().ok())
        .map(|b| b.len() as u64)
        .sum();
    let (time, memory) = (TIME + TIME_PER_100_MB.mul_f64(weight as f64 / 1e8), MEMORY + MEMORY_TIMES * weight);
    for sizes in attempts(model, &inputs) {
        let mut run = |i| look(&mut session, model, &inputs, &values, &sizes, i, mask);
        let fits =
            (0..2).try_for_each(|i| inputs.iter().try_for_each(|input| room_for(input, &dims(input, &sizes, i)?)));
        let runs = || fits.and_then(|()| run(0)).and_then(|first| Ok([first, run(1)?]));
        let shapes: Vec<_> = inputs.iter().filter_map(|input| dims(input, &sizes, 1).ok()).collect();
        let runs = runtime.within(time, memory, runs).unwrap_or_else(|reason| {
            let reason = format!("a trial run with inputs of {shapes:?} was ended: {reason}");
            let help = "export the model with smaller or free axes";
            Err(Error::Unsupported { path: PathBuf::new(), reason, help: help.into() })
        });
        match runs {
            Ok(runs) => return Ok(Observation::new(&model.graph, sizes, runs)),
            // Other sizes may do where these are too large for the model, or for anybody.
            Err(e @ (Error::Runtime { .. } | Error::Data { .. })) => failure = failure.or(Some(e)),
            Err(e) => return Err(e),
        }
    }
    Err(failure.unwrap_or_else(|| Error::internal("no sizes were tried")))
}

/// The sizes to try in turn, from those that tell most.
fn attempts(model: &Model, inputs: &[Input]) -> Vec<Sizes> {
    let convolved = signature::convolved(&model.graph);
    let mut attempts: Vec<Sizes> = TRIED.iter().map(|lengths| sizes(inputs, lengths, &convolved, None)).collect();
    // Some take images of one size only: as many patches as they have positions.
    let mut images: BTreeSet<usize> = BTreeSet::new();
    for stride in convolved.values().map(|c| c.stride).filter(|&s| s > 1) {
        images.extend((1..=MOST_PATCHES).map(|n| n * stride));
    }
    attempts.extend(images.into_iter().map(|n| sizes(inputs, TRIED[0], &convolved, Some(n))));
    // An exporter may have written down the length that it saw of an axis that it declares as free.
    attempts.extend(numbers(model).into_iter().map(|n| sizes(inputs, &[[n, n]], &convolved, None)));
    attempts
}

/// Small numbers that stand in the model's constants.
fn numbers(model: &Model) -> BTreeSet<usize> {
    let graph = &model.graph;
    let constants = graph.constants().into_iter().filter_map(|v| graph.constant(v));
    let small = constants.filter(|t| t.count() <= 8).filter_map(|t| t.to_i64().ok());
    let numbers = small.flatten().filter_map(|n| usize::try_from(n).ok());
    numbers.filter(|n| (2..=LONGEST).contains(n)).collect()
}

/// Lengths of every named axis: batches on first axes, what a convolution demands on second ones, `image`
/// after them, `lengths` elsewhere, others for every name.
fn sizes(
    inputs: &[Input],
    lengths: &[[usize; 2]],
    convolved: &HashMap<ValueId, Convolved>,
    image: Option<usize>,
) -> Sizes {
    let mut sizes = Sizes::new();
    let mut others = 0;
    for input in inputs {
        let convolution = convolved.get(&input.value).filter(|_| input.axes.as_ref().is_some_and(|a| a.len() > 2));
        for (i, axis) in input.axes.iter().flatten().enumerate() {
            let Axis::Named(name) = axis else { continue };
            if sizes.contains_key(name) {
                continue;
            }
            let size = match (i, convolution, image) {
                (0, ..) => BATCHES,
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

/// The shape of an input in one of the two runs.
fn dims(input: &Input, sizes: &Sizes, run: usize) -> Result<Vec<usize>, Error> {
    let length = |axis: &Axis| match axis {
        Axis::Fixed(n) => *n,
        Axis::Named(name) => sizes[name][run],
    };
    Ok(axes_of(input)?.iter().map(length).collect())
}

fn look(
    session: &mut Session,
    model: &Model,
    inputs: &[Input],
    values: &[ValueId],
    sizes: &BTreeMap<String, [usize; 2]>,
    run: usize,
    mask: Option<&str>,
) -> Result<HashMap<ValueId, Seen>, Error> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut seen = HashMap::new();
    let mut feeds = Vec::new();
    for input in inputs {
        let dims = dims(input, sizes, run)?;
        let tensor = fill(model, input, &dims, mask.unwrap_or("attention_mask"), &mut random)?;
        let integers = Seen::wants_integers(tensor.element(), tensor.count()).then(|| tensor.to_i64().ok()).flatten();
        // What an input holds is chance: its integers are different in the two runs and so never fixed.
        let integers = integers.map(|ints| ints + run as i64);
        seen.insert(input.value, Seen { shape: dims, element: tensor.element(), integers });
        feeds.push((input.name.as_str(), runtime::host(&tensor)?));
    }
    let results = session.run(feeds.iter().map(|(name, held)| (*name, held.value())))?;
    for &value in values {
        let Some(result) = results.get(model.graph.name(value)) else { continue };
        let (Some(shape), Some(element)) = (result.dtype().tensor_shape(), runtime::element(result)) else { continue };
        let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
        let wanted = Seen::wants_integers(element, shape.iter().product());
        let integers = wanted.then(|| runtime::integers(result).ok()).flatten();
        seen.insert(value, Seen { shape, element, integers });
    }
    Ok(seen)
}
