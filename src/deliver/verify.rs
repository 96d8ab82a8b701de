//! The last check before a file is written: the pruned model against the masked original.

use std::collections::{HashMap, HashSet};

use kprune_passes::discover::{Discovery, Sublayer};
use kprune_passes::ir::{ElementType, Model, Tensor, ValueId};
use kprune_passes::kv_cache;
use kprune_passes::onnx;
use kprune_passes::plan::{Plan, write_projections};
use kprune_passes::remove::masked::mask_units;
use kprune_passes::signature::tensor_type;
use kprune_passes::simplify::lower;
use ndarray::ArrayD;

use super::later::differ_later;
use crate::data::Batch;
use crate::error::Error;
use crate::runtime::{self, Held, Purpose, Runtime, Session};
use crate::store::Staged;

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
    /// The largest difference of an output, relative to the largest value of that output; `None` where nothing could
    /// be compared.
    pub difference: Option<f64>,
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
    if is_same(masked, pruned) {
        return Ok(Verified { difference: Some(0.0), warning: None });
    }
    let batches = &spread(batches);
    let compared = Compared::of(masked, pruned, discovery);
    let [masked, pruned] = [&compared.masked, &compared.pruned];
    let is_single = !lower::changes_precision(masked);
    let mut difference = None;
    if !is_single {
        let [masked, pruned] = [masked, pruned].map(lower::in_single_precision);
        let pair = Pair { runtime, masked: &masked, pruned: &pruned, discovery, batches };
        let expected = pair.expected(runtime.session(&masked, MASKED, Purpose::Work)?)?;
        difference = pair.difference(expected, runtime.session(&pruned, PRUNED, Purpose::Work)?)?;
    }
    let native = runtime.session(masked, MASKED, Purpose::Work);
    let pair = Pair { runtime, masked, pruned, discovery, batches };
    let expected = match native.and_then(|session| pair.expected(session)) {
        Ok(expected) => expected,
        Err(Error::Runtime { reason, .. }) if !is_single => {
            let warning =
                format!("ONNX Runtime cannot run this model here as it is, so it was checked in f32: {reason}");
            return Ok(Verified { difference, warning: Some(warning) });
        }
        Err(error) => return Err(error),
    };
    // External data are still under temporary names, where only the model that was read back finds them.
    let result = match staged.is_one_file() && compared.is_as_written {
        true => runtime.session_of_file(&staged.path(), PRUNED)?,
        false => runtime.session(pruned, PRUNED, Purpose::Work)?,
    };
    let as_written = pair.difference(expected, result)?;
    let difference = if is_single { as_written } else { difference };
    let later = batches.first().map(|batch| differ_later(runtime, [masked, pruned], batch)).transpose()?.flatten();
    if let Some(later) = later.filter(|&later| later > tolerance(masked)) {
        let reason = format!("an output differs by {later:.2e} of its largest value once caches hold earlier tokens");
        return Err(Error::Verify { reason });
    }
    let warning = match (difference, compared.is_as_written) {
        (None, _) => Some("no output is a tensor of floating-point numbers, so nothing could be compared".to_string()),
        (_, false) => Some(
            "no output is a tensor of floating-point numbers; what goes into them was compared instead".to_string(),
        ),
        _ => None,
    };
    Ok(Verified { difference, warning })
}

/// Compares a model that was written after its distillation, and read back, with the student that was `trained`: both in
/// f32. Returns the largest difference of an output; `None` where nothing could be compared.
///
/// # Errors
/// [`Error::Verify`] where they differ by more than rounding explains.
pub fn verify_trained(
    runtime: &Runtime,
    written: &Model,
    trained: &Model,
    discovery: &Discovery,
    batches: &[Batch],
) -> Result<Option<f64>, Error> {
    let allowed = tolerance(written);
    let (batches, written) = (&spread(batches), lower::in_single_precision(written));
    let pair = Pair { runtime, masked: trained, pruned: &written, discovery, batches };
    let expected = pair.expected(runtime.session(trained, TRAINED, Purpose::Work)?)?;
    // Kernels for few bits round what they multiply with as well; without them, what the file says is run as it is.
    pair.difference_within(allowed, expected, runtime.session(&written, PRUNED, Purpose::Trial)?)
}

/// The two models, with something to compare.
struct Compared {
    masked: Model,
    pruned: Model,
    /// Whether their outputs are those of the file.
    is_as_written: bool,
}

impl Compared {
    /// Where all outputs are of types that are not compared, as strings and maps are, the streams that go into them
    /// are outputs too.
    fn of(masked: &Model, pruned: &Model, discovery: &Discovery) -> Self {
        let mut pair = [masked.clone(), pruned.clone()];
        let is_number = |model: &Model, &v: &ValueId| {
            let declared = model.graph.info(v).and_then(tensor_type);
            declared.is_none_or(|t| ElementType::from_code(t.elem_type()).is_none_or(ElementType::is_float))
                && !is_of_collection(model, v)
        };
        let is_as_written = masked.graph.outputs().iter().any(|v| is_number(masked, v));
        if !is_as_written && let Some(last) = discovery.sublayers.last() {
            let name = masked.graph.name(last.residual.output);
            for model in &mut pair {
                if let Some(stream) = model.graph.find(name).filter(|&v| model.graph.holds(v)) {
                    model.graph.add_output(stream);
                }
            }
        }
        let [masked, pruned] = pair;
        Self { masked, pruned, is_as_written }
    }
}

/// Whether a value is declared as a sequence, a map or an optional value.
fn is_of_collection(model: &Model, value: ValueId) -> bool {
    let declared = model.graph.info(value).and_then(|info| info.r#type.as_ref()?.value.as_ref());
    declared.is_some() && model.graph.info(value).and_then(tensor_type).is_none()
}

/// What is being done while one of the two runs.
const MASKED: &str = "running the masked original";
const TRAINED: &str = "running the distilled model";
const PRUNED: &str = "running the pruned model";

/// Whether two models are the same, byte by byte; they need not be run then.
fn is_same(masked: &Model, pruned: &Model) -> bool {
    let [masked, pruned] = [masked, pruned].map(|m| onnx::write_detached(m, LARGE));
    let all = || masked.constants.iter().zip(&pruned.constants);
    let same = |((a, x), (b, y)): ((&String, &Tensor), (&String, &Tensor))| {
        a == b && x.element() == y.element() && x.dims() == y.dims() && x.bytes().ok() == y.bytes().ok()
    };
    masked.bytes == pruned.bytes && masked.constants.len() == pruned.constants.len() && all().all(same)
}

/// Constants of so many bytes are compared where they lie.
const LARGE: usize = 4096;

/// What a model gives, by name.
type Outputs = HashMap<String, Held>;

/// Two models that are compared on batches.
struct Pair<'a> {
    runtime: &'a Runtime,
    masked: &'a Model,
    pruned: &'a Model,
    discovery: &'a Discovery,
    batches: &'a [&'a Batch],
}

impl Pair<'_> {
    /// What the masked original gives for every batch. Its session is gone afterwards, and the memory that it took.
    fn expected(&self, mut session: Session) -> Result<Vec<Outputs>, Error> {
        self.batches.iter().map(|batch| self.outputs(&mut session, self.masked, batch)).collect()
    }

    /// The largest difference between what was expected and what the pruned model gives; `None` where they gave nothing that
    /// can be compared.
    fn difference(&self, expected: Vec<Outputs>, session: Session) -> Result<Option<f64>, Error> {
        self.difference_within(tolerance(self.masked), expected, session)
    }

    fn difference_within(
        &self,
        allowed: f64,
        expected: Vec<Outputs>,
        mut session: Session,
    ) -> Result<Option<f64>, Error> {
        let mut worst: Option<f64> = None;
        for (expected, batch) in expected.into_iter().zip(self.batches) {
            let found = self.outputs(&mut session, self.pruned, batch)?;
            for name in comparable(self.masked, self.pruned) {
                let Some(difference) = compare(name, &expected, &found)? else { continue };
                worst = Some(worst.unwrap_or(0.0).max(difference));
                if difference > allowed {
                    let place = first_difference(self.runtime, self.pruned, self.masked, self.discovery, batch);
                    let place = place.unwrap_or_else(|e| format!("where it arises could not be found out ({e})"));
                    let reason = format!("output {name:?} differs by {difference:.2e} of its largest value; {place}");
                    return Err(Error::Verify { reason });
                }
            }
        }
        Ok(worst)
    }

    /// What one of the two gives for a batch, of the outputs that are compared.
    fn outputs(&self, session: &mut Session, model: &Model, batch: &Batch) -> Result<Outputs, Error> {
        self.runtime.check_cancelled()?;
        let names: HashSet<&str> = comparable(self.masked, self.pruned).collect();
        outputs(session, model, batch, |name| names.contains(name))
    }
}

/// What a model gives for a batch, of the outputs that are wanted.
fn outputs(
    session: &mut Session,
    model: &Model,
    batch: &Batch,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Outputs, Error> {
    let values = session.run(batch.feeds_for(model)?.iter().map(|(n, v)| (n.as_str(), v.value())))?;
    let wanted = values.into_iter().filter(|(name, _)| is_wanted(name));
    wanted.map(|(name, value)| Ok((name, runtime::own(value)?))).collect()
}

/// The names of the outputs but for caches that have lost heads.
fn comparable<'m>(masked: &'m Model, pruned: &Model) -> impl Iterator<Item = &'m str> {
    let [before, after] = [masked, pruned].map(|model| {
        let heads = |value| kv_cache::length(&model.graph, value, kv_cache::HEADS);
        let caches = kv_cache::caches(&model.graph).into_iter();
        caches.map(|c| (model.graph.name(c.present).to_string(), heads(c.past))).collect::<HashMap<_, _>>()
    });
    let names = masked.graph.outputs().iter().map(|&v| masked.graph.name(v));
    names.filter(move |&name| before.get(name) == after.get(name))
}

/// The shortest, the longest and some batches between.
fn spread(batches: &[Batch]) -> Vec<&Batch> {
    let count = batches.len().min(BATCHES);
    (0..count).map(|i| &batches[i * (batches.len() - 1) / (count - 1).max(1)]).collect()
}

/// The relative difference of one output; `None` where it is no tensor of floating-point numbers.
fn compare(name: &str, expected: &Outputs, found: &Outputs) -> Result<Option<f64>, Error> {
    let missing = || Error::Verify { reason: format!("output {name:?} is missing") };
    let (expected, found) = (expected.get(name).ok_or_else(missing)?, found.get(name).ok_or_else(missing)?);
    let (expected, found) = (expected.value(), found.value());
    let element = runtime::element(expected);
    if !element.is_some_and(ElementType::is_float) {
        return Ok(None);
    }
    let (expected, found) = (runtime::scalars(expected)?, runtime::scalars(found)?);
    Ok(Some(difference(&expected, &found)))
}

/// Largest difference relative to the largest expected value; infinite where shapes differ, or where one is NaN,
/// which is never equal to anything, or only one infinite.
pub fn difference(expected: &ArrayD<f64>, found: &ArrayD<f64>) -> f64 {
    if expected.shape() != found.shape() {
        return f64::INFINITY;
    }
    let largest = expected.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
    let differ = |(a, b): (&f64, &f64)| if a == b { 0.0 } else { (a - b).abs() };
    let worst = expected.iter().zip(found).map(differ);
    let worst = worst.fold(0.0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
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
    let masked = &with_heads_of(masked, pruned);
    if describe(masked) != describe(pruned) {
        return Err(Error::Verify { reason: "its inputs or outputs are declared differently".into() });
    }
    Ok(())
}

/// A model whose caches are declared with as many heads as those of another.
fn with_heads_of(model: &Model, other: &Model) -> Model {
    let mut model = model.clone();
    for cache in kv_cache::caches(&other.graph) {
        for value in [cache.past, cache.present] {
            let own = model.graph.find(other.graph.name(value));
            if let (Some(own), Some(heads)) = (own, kv_cache::length(&other.graph, value, kv_cache::HEADS)) {
                kv_cache::set_length(&mut model.graph, own, kv_cache::HEADS, heads as usize);
            }
        }
    }
    model
}

/// Which sublayer's residual stream differs first, in words.
fn first_difference(
    runtime: &Runtime,
    pruned: &Model,
    masked: &Model,
    discovery: &Discovery,
    batch: &Batch,
) -> Result<String, Error> {
    let is_known = |sublayer: &Sublayer| {
        let stream = sublayer.residual.output;
        let in_pruned = || pruned.graph.find(masked.graph.name(stream)).filter(|&v| pruned.graph.holds(v));
        masked.graph.holds(stream) && in_pruned().is_some()
    };
    let known = |sublayer: &&Sublayer| is_known(sublayer);
    let stream = |model: &Model, sublayer: &Sublayer| model.graph.find(masked.graph.name(sublayer.residual.output));
    let run = |model: &Model| -> Result<Outputs, Error> {
        let mut model = model.clone();
        for sublayer in discovery.sublayers.iter().filter(known) {
            if let Some(value) = stream(&model, sublayer).filter(|v| !model.graph.outputs().contains(v)) {
                model.graph.add_output(value);
            }
        }
        let mut session = runtime.session(&model, "looking for the first difference", Purpose::Work)?;
        outputs(&mut session, &model, batch, |_| true)
    };
    let (expected, found) = (run(masked)?, run(pruned)?);
    for (i, sublayer) in discovery.sublayers.iter().enumerate().filter(|(_, s)| is_known(s)) {
        let name = masked.graph.name(sublayer.residual.output);
        if compare(name, &expected, &found)?.is_some_and(|d| d > tolerance(masked)) {
            return Ok(format!("sublayer {} ({}) differs first", i + 1, sublayer.name));
        }
    }
    Ok("no sublayer differs: the difference arises downstream of the last one".into())
}
