//! What is changed in a model before anything is looked for, and the proof that it computes the same.

use std::path::Path;

use kprune_passes::ir::{ElementType, Model};
use kprune_passes::simplify::{lower, upgrade};
use ndarray::ArrayD;

use super::observation::{Feeds, observe};
use crate::data::{Dataset, Outputs, as_declared};
use crate::error::Error;
use crate::runtime::{self, Purpose, Runtime, Session};

/// How much outputs may differ, relative to the largest: weights that are merged are rounded once more.
const TOLERANCE: f64 = 1e-4;
const TOLERANCE_HALF: f64 = 2e-2;

/// Upgrades a model of an older operator set; says so. Ranks and types are seen in a run of the model as it came, on the
/// samples where there are some.
///
/// # Errors
/// Where the model does not run, or an operator cannot be upgraded.
pub(super) fn upgraded(
    runtime: &Runtime,
    model: &mut Model,
    path: &Path,
    given: Option<&Dataset>,
    mask: Option<&str>,
) -> Result<Option<String>, Error> {
    if model.opset("").is_none_or(|set| set >= upgrade::NEW) {
        return Ok(None);
    }
    // Samples are read in f32.
    let given = given.filter(|_| !lower::changes_precision(model));
    let seen = observe(runtime, model, given, mask).map_err(|e| e.about(path))?;
    let old = upgrade::upgrade(model, &seen).map_err(|(node, why)| Error::Unsupported {
        path: path.to_path_buf(),
        reason: format!("{node} {why}"),
        help: "convert it with onnx.version_converter, or export it with opset_version=17".into(),
    })?;
    Ok(old.map(|old| format!("operator set {old} was upgraded to {}", upgrade::NEW)))
}

/// Checks that a model gives the same outputs as it did before it was changed.
///
/// # Errors
/// Where it does not, or does not run any more.
pub(super) fn check(
    runtime: &Runtime,
    [before, after]: [&Model; 2],
    path: &Path,
    feeds: &Feeds,
    changes: &[String],
) -> Result<(), Error> {
    let is_half = lower::changes_precision(before);
    // Not every runtime has kernels for half precision.
    let is_new = before.opset("").is_some_and(|set| set >= upgrade::NEW);
    let pair = [before, after].map(|m| if is_half && is_new { lower::in_single_precision(m) } else { m.clone() });
    let [expected, found] = [outputs(runtime, &pair[0], feeds)?, outputs(runtime, &pair[1], feeds)?];
    let tolerance = if is_half { TOLERANCE_HALF } else { TOLERANCE };
    for (name, expected) in &expected {
        let largest = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let same = found.get(name).filter(|found| found.shape() == expected.shape());
        let differs =
            |found: &ArrayD<f64>| expected.iter().zip(found).any(|(a, b)| (a - b).abs() > tolerance * largest);
        if same.is_none_or(differs) {
            let reason = format!("its output {name:?} is another once {}", changes.join("; "));
            let help = "this is a defect of onnx-kprune: please report it with the model";
            return Err(Error::Unsupported { path: path.to_path_buf(), reason, help: help.into() });
        }
    }
    Ok(())
}

/// The floating-point outputs of a model, by name.
fn outputs(runtime: &Runtime, model: &Model, feeds: &Feeds) -> Result<Outputs, Error> {
    let mut session = runtime.session(model, "comparing the model before and after it was changed", Purpose::Trial)?;
    outputs_of(&mut session, model, feeds)
}

/// The floating-point outputs of a model in a session, by name.
///
/// # Errors
/// Where it does not run.
pub(crate) fn outputs_of(session: &mut Session, model: &Model, feeds: &Feeds) -> Result<Outputs, Error> {
    let held = feeds.iter().map(|(name, tensor)| Ok((name.clone(), runtime::host(tensor)?)));
    let held = as_declared(&held.collect::<Result<Vec<_>, Error>>()?, model)?;
    let values = session.run(held.iter().map(|(name, held)| (name.as_str(), held.value())))?;
    let is_float = |value: &ort::value::DynValue| runtime::element(value).is_some_and(ElementType::is_float);
    let floats = values.into_iter().filter(|(_, value)| is_float(value));
    floats.map(|(name, value)| Ok((name, runtime::scalars(&value)?))).collect()
}
