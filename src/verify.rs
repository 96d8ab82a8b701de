//! The last check before a file is written: the pruned model against the masked original.

use kprune_passes::discover::{Discovery, Sublayer};
use kprune_passes::ir::{ElementType, Model};
use kprune_passes::lower;
use kprune_passes::mask::mask_units;
use kprune_passes::plan::{Plan, write_projections};
use ndarray::ArrayD;

use crate::calibration::Batch;
use crate::error::Error;
use crate::files::Staged;
use crate::runtime::{self, Runtime, Session, Values};

/// Batches that are compared, spread over the lengths of the calibration set.
const BATCHES: usize = 8;

/// How much the outputs of a model may differ, relative to the largest of the masked original's.
fn tolerance(model: &Model) -> f64 {
    let graph = &model.graph;
    let constants = graph.initializers().into_iter().filter_map(|v| graph.constant(v));
    let limit = |element| match element {
        ElementType::F16 => 2e-2,
        ElementType::BF16 => 1e-1,
        _ => 1e-4,
    };
    constants.map(|t| limit(t.element())).fold(1e-4, f64::max)
}

/// The original with the same masks and tuned weights, and nothing removed.
///
/// # Errors
/// Where the plan does not fit the model.
pub fn masked_original(model: &Model, discovery: &Discovery, plan: &Plan) -> Result<Model, Error> {
    let internal = |e: kprune_passes::ir::TensorError| Error::internal(e.to_string());
    let mut masked = model.clone();
    write_projections(&mut masked.graph, discovery, plan).map_err(internal)?;
    for (sublayer, decision) in plan.each(discovery) {
        if decision.keep.iter().any(|keep| !keep) {
            let element = model.graph.constant(sublayer.projection.weight).map_or(ElementType::F32, |t| t.element());
            mask_units(&mut masked.graph, sublayer, &decision.keep, element).map_err(internal)?;
        }
    }
    masked.graph.remove_dead();
    Ok(masked)
}

/// What the comparison showed.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The largest difference of an output, relative to the largest value of that output.
    pub difference: f64,
    /// What could not be checked.
    pub warning: Option<String>,
}

/// Compares the model that was staged, and read back as `pruned`, with the masked original on calibration
/// batches.
///
/// A model of half precision is compared in f32, where only what was removed makes a difference, and then
/// as it is, where this runtime can run it.
///
/// # Errors
/// [`Error::Verify`] where they differ by more than their element type explains; it names the first
/// sublayer that differs.
pub fn verify(
    runtime: &Runtime,
    pruned: &Model,
    staged: &Staged,
    masked: &Model,
    discovery: &Discovery,
    batches: &[Batch],
) -> Result<Verified, Error> {
    same_interface(masked, pruned)?;
    let batches = spread(batches);
    let doing = ["running the masked original", "running the pruned model"];
    let is_single = !lower::changes_precision(masked);
    let mut difference = 0.0;
    if !is_single {
        let pair = [lower::in_single_precision(masked), lower::in_single_precision(pruned)];
        let mut sessions = [runtime.session(&pair[0], doing[0], true)?, runtime.session(&pair[1], doing[1], true)?];
        difference = compare_all(runtime, &mut sessions, [&pair[0], &pair[1]], discovery, &batches)?;
    }
    let native = runtime.session(masked, doing[0], true).and_then(|mut session| {
        session.run(batches[0].feeds_for(masked)?.iter().map(|(n, v)| (n.as_str(), v.value())))?;
        Ok(session)
    });
    let original = match native {
        Ok(session) => session,
        Err(Error::Runtime { reason, .. }) if !is_single => {
            let warning =
                format!("ONNX Runtime cannot run this model here as it is, so it was checked in f32: {reason}");
            return Ok(Verified { difference, warning: Some(warning) });
        }
        Err(error) => return Err(error),
    };
    // External data are still under temporary names, where only the model that was read back finds them.
    let result = match staged.is_one_file() {
        true => runtime.session_of_file(staged.path(), doing[1])?,
        false => runtime.session(pruned, doing[1], true)?,
    };
    let as_written = compare_all(runtime, &mut [original, result], [masked, pruned], discovery, &batches)?;
    Ok(Verified { difference: if is_single { as_written } else { difference }, warning: None })
}

/// The largest difference of an output between two models.
fn compare_all(
    runtime: &Runtime,
    sessions: &mut [Session; 2],
    [masked, pruned]: [&Model; 2],
    discovery: &Discovery,
    batches: &[&Batch],
) -> Result<f64, Error> {
    let allowed = tolerance(masked);
    let mut worst: f64 = 0.0;
    for batch in batches {
        runtime.check_cancelled()?;
        let feeds = batch.feeds_for(masked)?;
        let mut run = |i: usize| sessions[i].run(feeds.iter().map(|(n, v)| (n.as_str(), v.value())));
        let (expected, found) = (run(0)?, run(1)?);
        for &output in masked.graph.outputs() {
            let name = masked.graph.name(output);
            let difference = compare(name, &expected, &found)?;
            worst = worst.max(difference);
            if difference > allowed {
                let place = first_difference(runtime, pruned, masked, discovery, batch)?;
                let reason = format!("output {name:?} differs by {difference:.2e} of its largest value; {place}");
                return Err(Error::Verify { reason });
            }
        }
    }
    Ok(worst)
}

/// The shortest, the longest and some batches between.
fn spread(batches: &[Batch]) -> Vec<&Batch> {
    let count = batches.len().min(BATCHES);
    (0..count).map(|i| &batches[i * (batches.len() - 1) / (count - 1).max(1)]).collect()
}

/// The relative difference of one output.
fn compare(name: &str, expected: &Values, found: &Values) -> Result<f64, Error> {
    let missing = || Error::Verify { reason: format!("output {name:?} is missing") };
    let (expected, found) = (expected.get(name).ok_or_else(missing)?, found.get(name).ok_or_else(missing)?);
    let element = runtime::element(expected);
    if !element.is_some_and(ElementType::is_float) {
        return Ok(0.0);
    }
    let (expected, found) = (runtime::scalars(expected)?, runtime::scalars(found)?);
    Ok(difference(&expected, &found))
}

/// Largest difference relative to the largest expected value; infinite where shapes differ.
pub fn difference(expected: &ArrayD<f64>, found: &ArrayD<f64>) -> f64 {
    if expected.shape() != found.shape() {
        return f64::INFINITY;
    }
    let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let differ = |(a, b): (&f64, &f64)| if a == b || (a.is_nan() && b.is_nan()) { 0.0 } else { (a - b).abs() };
    let worst =
        expected.iter().zip(found).map(differ).fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
    if worst == 0.0 { 0.0 } else { worst / largest.max(f64::MIN_POSITIVE) }
}

/// Inputs and outputs must keep their names, types and axes.
fn same_interface(masked: &Model, pruned: &Model) -> Result<(), Error> {
    let describe = |model: &Model| {
        let graph = &model.graph;
        let of = |values: &[_]| {
            values.iter().map(|&v| (graph.name(v).to_string(), graph.info(v).cloned())).collect::<Vec<_>>()
        };
        let given: Vec<_> = graph.inputs().iter().copied().filter(|&v| graph.constant(v).is_none()).collect();
        (of(&given), of(graph.outputs()))
    };
    if describe(masked) != describe(pruned) {
        return Err(Error::Verify { reason: "its inputs or outputs are declared differently".into() });
    }
    Ok(())
}

/// Which sublayer's residual stream differs first, in words.
fn first_difference(
    runtime: &Runtime,
    pruned: &Model,
    masked: &Model,
    discovery: &Discovery,
    batch: &Batch,
) -> Result<String, Error> {
    let known = |sublayer: &&Sublayer| masked.graph.holds(sublayer.residual.output);
    let stream = |model: &Model, sublayer: &Sublayer| model.graph.find(masked.graph.name(sublayer.residual.output));
    let feeds = batch.feeds_for(masked)?;
    let run = |model: &Model| -> Result<Values, Error> {
        let mut model = model.clone();
        for sublayer in discovery.sublayers.iter().filter(known) {
            if let Some(value) = stream(&model, sublayer).filter(|v| !model.graph.outputs().contains(v)) {
                model.graph.add_output(value);
            }
        }
        runtime
            .session(&model, "looking for the first difference", true)?
            .run(feeds.iter().map(|(n, v)| (n.as_str(), v.value())))
    };
    let (expected, found) = (run(masked)?, run(pruned)?);
    for (i, sublayer) in discovery.sublayers.iter().enumerate().filter(|(_, s)| known(s)) {
        let name = masked.graph.name(sublayer.residual.output);
        if compare(name, &expected, &found)? > tolerance(masked) {
            return Ok(format!("sublayer {} ({}) differs first", i + 1, sublayer.name));
        }
    }
    Ok("no sublayer differs: the difference arises behind the last one".into())
}
