//! The last check before a file is written: the pruned model against the masked original.

use kprune_passes::discover::{Discovery, Sublayer};
use kprune_passes::ir::{ElementType, Model};
use kprune_passes::mask::mask_units;
use kprune_passes::plan::{Plan, write_projections};
use ndarray::ArrayD;

use crate::calibration::Batch;
use crate::error::Error;
use crate::files::Staged;
use crate::runtime::{self, Runtime, Values};

/// Batches that are compared, spread over the lengths of the calibration set.
const BATCHES: usize = 8;

/// How much the outputs may differ, relative to the largest of the masked original's.
fn tolerance(element: Option<ElementType>) -> f64 {
    match element {
        Some(ElementType::F16) => 2e-2,
        Some(ElementType::BF16) => 1e-1,
        _ => 1e-4,
    }
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

/// Compares the model that was staged, and read back as `pruned`, with the masked original on calibration batches; returns the
/// largest difference of an output, relative to the largest value of that output.
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
) -> Result<f64, Error> {
    same_interface(masked, pruned)?;
    let mut original = runtime.session(masked, "running the masked original", true)?;
    let doing = "running the pruned model";
    // External data are still under temporary names, where only the model that was read back finds them.
    let mut result = match staged.is_one_file() {
        true => runtime.session_of_file(staged.path(), doing)?,
        false => runtime.session(pruned, doing, true)?,
    };
    let mut worst: f64 = 0.0;
    for batch in spread(batches) {
        runtime.check_cancelled()?;
        let (expected, found) = (original.run(batch.feeds())?, result.run(batch.feeds())?);
        for &output in masked.graph.outputs() {
            let name = masked.graph.name(output);
            let (difference, allowed) = compare(name, &expected, &found)?;
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

/// The relative difference of one output, and how much is allowed.
fn compare(name: &str, expected: &Values, found: &Values) -> Result<(f64, f64), Error> {
    let missing = || Error::Verify { reason: format!("output {name:?} is missing") };
    let (expected, found) = (expected.get(name).ok_or_else(missing)?, found.get(name).ok_or_else(missing)?);
    let element = runtime::element(expected);
    if !element.is_some_and(ElementType::is_float) {
        return Ok((0.0, 0.0));
    }
    let (expected, found) = (runtime::scalars(expected)?, runtime::scalars(found)?);
    Ok((difference(&expected, &found), tolerance(element)))
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
        (of(graph.inputs()), of(graph.outputs()))
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
    let stream = |model: &Model, sublayer: &Sublayer| model.graph.find(masked.graph.name(sublayer.residual.output));
    let run = |model: &Model| -> Result<Values, Error> {
        let mut model = model.clone();
        for sublayer in &discovery.sublayers {
            if let Some(value) = stream(&model, sublayer).filter(|v| !model.graph.outputs().contains(v)) {
                model.graph.add_output(value);
            }
        }
        runtime.session(&model, "looking for the first difference", true)?.run(batch.feeds())
    };
    let (expected, found) = (run(masked)?, run(pruned)?);
    for (i, sublayer) in discovery.sublayers.iter().enumerate() {
        let name = masked.graph.name(sublayer.residual.output);
        let (difference, allowed) = compare(name, &expected, &found)?;
        if difference > allowed {
            return Ok(format!("sublayer {} ({}) differs first", i + 1, sublayer.name));
        }
    }
    Ok("no sublayer differs: the difference arises behind the last one".into())
}
