//! Models that were made, written anew with other weights; and the same models as they are run to find those.

use kprune_passes::distil::{copy, trainable, write};
use kprune_passes::ir::{Graph, Model, Tensor, ValueId};
use kprune_passes::methods::Outcome;
use kprune_passes::probe::Probes;
use kprune_passes::remove::remove;

use super::make::{Made, Maker};
use super::verify::verify_trained;
use crate::analysis::{View, observe, parameters};
use crate::distil::{Pupil, Values};
use crate::error::Error;
use crate::store;

impl Maker<'_> {
    /// Writes a model with other weights beside its target, and compares what is read back with the same as it is run to
    /// find them. Returns the largest difference.
    pub(super) fn write_anew(&self, made: &mut Made, model: &Model, student: &Model) -> Result<Option<f64>, Error> {
        made.staged = store::stage(model, &self.source.model, made.staged.target())?;
        made.model = made.staged.reread()?;
        made.parameters = parameters(&made.model);
        let found = &self.loaded.analysis.measured.found;
        verify_trained(self.world.runtime, &made.model, student, found, self.world.batches)
    }

    /// The model of an outcome in f32, of primitive operators, with those weights that the file has too.
    pub(super) fn pupil(&self, outcome: &Outcome, probes: &Probes, written: &Model) -> Result<Pupil, Error> {
        let View { model, seen, found } = &self.loaded.analysis.measured;
        let model = remove(model, found, seen, &outcome.plan).map_err(|e| Error::internal(e.to_string()))?;
        let calibration = &self.loaded.calibration;
        let given = (!calibration.is_made_up).then_some(calibration);
        let seen = observe(self.world.runtime, &model, given, calibration.mask_input())?;
        let weights = common(&model.graph, probes.objective.outputs.iter().map(|o| o.value), &written.graph);
        Ok(Pupil { model, seen, weights, kept: self.kept(outcome) })
    }

    /// The share of the prunable FLOPs that stays.
    fn kept(&self, outcome: &Outcome) -> f64 {
        let found = &self.loaded.analysis.measured.found;
        let all: f64 = found.sublayers.iter().map(|s| s.flops()).sum();
        outcome.plan.each(found).map(|(sublayer, decision)| decision.flops(sublayer)).sum::<f64>() / all
    }
}

/// The weights that can be trained upstream of `ends`, and that the file has too, under the same name.
fn common(graph: &Graph, ends: impl IntoIterator<Item = ValueId>, written: &Graph) -> Vec<ValueId> {
    let is_common = |&value: &ValueId| {
        let other = written.find(graph.name(value)).and_then(|v| written.constant(v));
        graph.constant(value).zip(other).is_some_and(|(own, other)| is_rounded(own, other))
    };
    trainable(graph, ends).into_iter().filter(is_common).collect()
}

/// Whether a constant is what another one is when it is stored as that is.
fn is_rounded(own: &Tensor, other: &Tensor) -> bool {
    if own.dims() != other.dims() || !other.element().is_float() {
        return false;
    }
    let rounded = match own.element() == other.element() {
        true => Ok(own.clone()),
        false => own.to_f64().and_then(|numbers| Tensor::from_floats(other.element(), &numbers)),
    };
    rounded.and_then(|own| Ok(own.bytes()? == other.bytes()?)).unwrap_or(false)
}

/// The written model with what was trained, which the student gets too, as it is stored.
pub(super) fn trained(student: &mut Model, written: &Model, values: Values) -> Result<Model, Error> {
    let mut model = written.clone();
    let internal = |e: kprune_passes::ir::TensorError| Error::internal(e.to_string());
    for (value, numbers) in values {
        let name = student.graph.name(value).to_string();
        let missing = || Error::internal(format!("{name} is in no file"));
        let place = model.graph.find(&name).ok_or_else(missing)?;
        write(&mut model.graph, place, &numbers.mapv(f64::from)).map_err(internal)?;
        let stored = model.graph.constant(place).ok_or_else(missing)?;
        if let Some(odd) = stored.to_f64().map_err(internal)?.iter().find(|x| !x.is_finite()) {
            return Err(crate::error::not_finite(name, "a weight after distillation", *odd));
        }
        copy(&mut student.graph, value, stored).map_err(internal)?;
    }
    Ok(model)
}
