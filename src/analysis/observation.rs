//! Runs a model with different sizes, for the pass that observes shapes: on the user's samples where there are any,
//! else on inputs that are made up.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use kprune_passes::ir::{Model, Tensor, ValueId};
use kprune_passes::observe::{Observation, Seen, Sizes, Watched, observed_model, with_every_value};
use kprune_passes::signature::{self, Input};

use ort::value::DynValue;

use super::sizes::{self, MadeUp};
use crate::data::Dataset;
use crate::error::Error;
use crate::runtime::{self, Purpose, Runtime, Session};

/// What a trial run may take, besides what goes with the model's size: what a file declares must not decide it.
const TIME: Duration = Duration::from_secs(10);
const TIME_PER_100_MB: Duration = Duration::from_secs(20);
const MEMORY: u64 = 1 << 30;
const MEMORY_TIMES: u64 = 16;

/// How long a trial run of a model may take, and how many bytes of memory.
pub(super) fn allowance(model: &Model) -> (Duration, u64) {
    let constants = model.graph.constants().into_iter().filter_map(|v| model.graph.constant(v)?.bytes().ok());
    let weight: u64 = constants.map(|b| b.len() as u64).sum();
    (TIME + TIME_PER_100_MB.mul_f64(weight as f64 / 1e8), MEMORY + MEMORY_TIMES * weight)
}

/// What is fed to a run.
pub(crate) type Feeds = Vec<(String, Tensor)>;

/// What a run showed.
type Run = HashMap<ValueId, Seen>;

/// Shapes and integers of all values, seen in two runs of different sizes: of samples, where they are given, or of inputs
/// that are made up.
///
/// # Errors
/// Where the model does not run with any of the sizes tried.
pub fn observe(
    runtime: &Runtime,
    model: &Model,
    given: Option<&Dataset>,
    mask: Option<&str>,
) -> Result<Observation, Error> {
    let mut looker = Looker::new(runtime, model)?;
    let Some(samples) = given else { return looker.at_made_up(mask) };
    match looker.at_samples(samples) {
        // Samples may be too large to look at every value at once.
        Err(_) if looker.was_ended => looker.at_made_up(mask),
        seen => seen,
    }
}

/// What two runs of made-up inputs of these sizes show; `None` where the model does not take them.
///
/// # Errors
/// Where no session can be made.
pub(super) fn observe_at(runtime: &Runtime, model: &Model, sizes: Sizes) -> Result<Option<Observation>, Error> {
    let mut looker = Looker::new(runtime, model)?;
    let made_up = MadeUp { model, inputs: &looker.inputs.clone(), mask: None };
    let mut runs = Vec::new();
    for nth in 0..2 {
        let Ok(feeds) = made_up.feeds(&sizes, nth) else { return Ok(None) };
        match looker.look(&feeds, nth) {
            Ok(run) => runs.push(run),
            Err(error @ Error::Interrupted) => return Err(error),
            Err(_) => return Ok(None),
        }
    }
    Ok(<[Run; 2]>::try_from(runs).ok().map(|runs| Observation::new(&model.graph, sizes, runs)))
}

/// Notes the shapes for one sample of mean length, or of `seq_len`: operations are counted for those. Where the model does
/// not run at that size, they are taken from the sizes that were seen.
///
/// # Errors
/// Where an array cannot be taken apart.
pub(super) fn count(
    runtime: &Runtime,
    model: &Model,
    seen: &mut Observation,
    data: &Dataset,
    seq_len: Option<usize>,
) -> Result<(), Error> {
    let mut looker = Looker::new(runtime, model)?;
    data.fixed_batch().inspect(|&samples| seen.of_batches(samples));
    let whole = |(name, length): (String, f64)| (name, (length.round() as usize).max(1));
    let lengths = data.lengths(seq_len).into_iter().map(whole).collect();
    let feeds = data.cut(&data.mixed(0, data.fixed_batch().unwrap_or(1)), &lengths)?;
    match looker.look(&feeds, 0) {
        Ok(run) => seen.count_at(run),
        Err(error @ Error::Interrupted) => return Err(error),
        Err(_) => {}
    }
    Ok(())
}

/// Inputs of the sizes of the first run.
///
/// # Errors
/// Where an array cannot be taken apart, or made up.
pub(super) fn feeds(
    model: &Model,
    seen: &Observation,
    given: Option<&Dataset>,
    mask: Option<&str>,
) -> Result<Feeds, Error> {
    let sizes = seen.sizes();
    match given {
        Some(samples) => {
            let lengths = sizes.iter().map(|(name, size)| (name.clone(), size[0])).collect();
            let batch = samples.sample_axes().find_map(|name| sizes.get(name)).map(|size| size[0]);
            samples.cut(&samples.mixed(0, batch.or(samples.fixed_batch()).unwrap_or(1)), &lengths)
        }
        None => MadeUp { model, inputs: &signature::inputs(model), mask }.feeds(sizes, 0),
    }
}

/// A model of which every value can be looked at.
struct Looker<'a> {
    runtime: &'a Runtime,
    model: &'a Model,
    inputs: Vec<Input>,
    watched: Vec<Watched>,
    session: Session,
    /// What a run may take.
    time: Duration,
    memory: u64,
    /// The shapes of inputs with which the model did not run, and what was said of the first.
    tried: Vec<String>,
    failure: Option<String>,
    /// Whether a run took too long, or too much memory.
    was_ended: bool,
}

impl<'a> Looker<'a> {
    fn new(runtime: &'a Runtime, model: &'a Model) -> Result<Self, Error> {
        let (every, _) = with_every_value(model);
        let elements = runtime.session(&every, OBSERVING, Purpose::Trial)?.elements();
        let (observed, watched) = observed_model(model, |name| elements.get(name).copied());
        let session = runtime.session(&observed, OBSERVING, Purpose::Trial)?;
        let (time, memory) = allowance(model);
        Ok(Self {
            runtime,
            model,
            inputs: signature::inputs(model),
            watched,
            session,
            time,
            memory,
            tried: Vec::new(),
            failure: None,
            was_ended: false,
        })
    }

    /// Two runs of the user's samples that differ in number and length as far as data and model allow.
    fn at_samples(&mut self, samples: &Dataset) -> Result<Observation, Error> {
        for batch in sizes::batches(samples) {
            for longest in [samples.longest(), samples.widths()] {
                if let Some(first) = self.attempt(samples, batch[0], &longest, 0)? {
                    let (second, run) = self.moved(samples, batch, &longest)?;
                    let mut sizes: Sizes =
                        longest.iter().map(|(name, &n)| (name.clone(), [n, second.lengths[name]])).collect();
                    sizes.extend(samples.sample_axes().map(|name| (name.to_string(), [batch[0], second.samples])));
                    let run = run.unwrap_or_else(|| first.clone());
                    return Ok(Observation::new(&self.model.graph, sizes, [first, run]));
                }
            }
        }
        Err(self.refusal(&samples.source, "leave out samples that it does not take, or give others of its task"))
    }

    /// A run in which every axis that can move has another length than in `longest`.
    fn moved(
        &mut self,
        samples: &Dataset,
        batch: [usize; 2],
        longest: &BTreeMap<String, usize>,
    ) -> Result<(Moved, Option<Run>), Error> {
        for lengths in sizes::all_moved(longest) {
            if let Some(run) = self.attempt(samples, batch[1], &lengths, 1)? {
                return Ok((Moved { samples: batch[1], lengths }, Some(run)));
            }
        }
        // Not all at once: each for itself, as far as the model allows.
        let mut moved = Moved { samples: batch[0], lengths: longest.clone() };
        let mut last = self.attempt(samples, batch[1], longest, 1)?;
        if last.is_some() {
            moved.samples = batch[1];
        }
        for (name, &length) in longest {
            for other in sizes::others(length) {
                let lengths = moved.lengths.clone().into_iter().chain([(name.clone(), other)]).collect();
                if let Some(run) = self.attempt(samples, moved.samples, &lengths, 1)? {
                    (moved.lengths, last) = (lengths, Some(run));
                    break;
                }
            }
        }
        Ok((moved, last))
    }

    /// A run of samples of these sizes, if the model takes them.
    fn attempt(
        &mut self,
        samples: &Dataset,
        batch: usize,
        lengths: &BTreeMap<String, usize>,
        nth: usize,
    ) -> Result<Option<Run>, Error> {
        let rows = samples.mixed(nth * batch, batch);
        let feeds = samples.cut(&rows, lengths)?;
        self.look_if_it_runs(&feeds, nth)
    }

    /// Two runs of made-up inputs.
    fn at_made_up(&mut self, mask: Option<&str>) -> Result<Observation, Error> {
        let made_up = MadeUp { model: self.model, inputs: &self.inputs.clone(), mask };
        let mut impossible = None;
        let [several, one] = made_up.attempts();
        let several = several.into_iter().map(|sizes| (sizes, true));
        for (sizes, is_several) in several.chain(one.into_iter().map(|sizes| (sizes, false))) {
            // One sample may fit where several are too large for anybody, and would tell too little.
            if !is_several && impossible.is_some() {
                break;
            }
            let feeds = [0, 1].map(|nth| made_up.feeds(&sizes, nth));
            let feeds = match feeds {
                [Ok(first), Ok(second)] => [first, second],
                // Other sizes may do where these are too large for anybody.
                [Err(error), _] | [_, Err(error)] => {
                    impossible.get_or_insert(error);
                    continue;
                }
            };
            let runs = feeds.iter().enumerate().map(|(nth, feeds)| self.look_if_it_runs(feeds, nth));
            let runs: Option<Vec<Run>> = runs.collect::<Result<_, _>>()?;
            if let Some(Ok(runs)) = runs.map(<[Run; 2]>::try_from) {
                return Ok(Observation::new(&self.model.graph, sizes, runs));
            }
        }
        let help =
            "give samples of its task with --calibration FILE (inspect takes them too), or export it with free axes";
        Err(impossible.filter(|_| self.tried.is_empty()).unwrap_or_else(|| self.refusal("made-up inputs", help)))
    }

    fn refusal(&self, what: &str, help: &str) -> Error {
        let (first, more) = (self.tried.iter().take(MOST_SHOWN), self.tried.len().saturating_sub(MOST_SHOWN));
        let mut tried: Vec<&str> = first.map(String::as_str).collect();
        let rest = format!("{more} other sizes");
        tried.extend((more > 0).then_some(rest.as_str()));
        let failure = self.failure.as_deref().unwrap_or("no sizes were tried");
        let reason = format!("it does not run on {what}; tried were {}: {failure}", tried.join("; "));
        Error::Unsupported { path: PathBuf::new(), reason, help: help.into() }
    }

    /// What a run shows; `None` where the model does not take the inputs, or takes too long or too much memory for them.
    fn look_if_it_runs(&mut self, feeds: &Feeds, nth: usize) -> Result<Option<Run>, Error> {
        match self.look(feeds, nth) {
            Ok(run) => Ok(Some(run)),
            Err(error) if self.was_ended || matches!(error, Error::Interrupted) => Err(error),
            Err(error) => {
                let shapes: Vec<_> = feeds.iter().map(|(name, t)| format!("{name} {:?}", t.dims())).collect();
                self.tried.push(shapes.join(" "));
                self.failure.get_or_insert_with(|| error.to_string());
                Ok(None)
            }
        }
    }

    fn look(&mut self, feeds: &Feeds, nth: usize) -> Result<Run, Error> {
        let mut seen = HashMap::new();
        let mut held = Vec::new();
        for (name, tensor) in feeds {
            let Some(input) = self.inputs.iter().find(|i| i.name == *name) else { continue };
            let element = tensor.element();
            let integers = Seen::wants_integers(element, tensor.count()).then(|| tensor.to_i64().ok()).flatten();
            // What an input holds is chance: its integers are different in the two runs and so never fixed.
            let integers = integers.map(|ints| ints + nth as i64);
            seen.insert(input.value, Seen { shape: tensor.dims().to_vec(), element, integers });
            held.push((name.as_str(), runtime::host(tensor)?));
        }
        let session = &mut self.session;
        let run = || session.run(held.iter().map(|(name, held)| (*name, held.value())));
        let results = self.runtime.within(self.time, self.memory, run).unwrap_or_else(|reason| {
            self.was_ended = true;
            let shapes: Vec<_> = feeds.iter().map(|(_, tensor)| tensor.dims()).collect();
            let reason = format!("a trial run with inputs of {shapes:?} was ended: {reason}");
            let help = "export the model with smaller or free axes";
            Err(Error::Unsupported { path: PathBuf::new(), reason, help: help.into() })
        })?;
        for watched in &self.watched {
            if let Some(found) = shown(watched, &results[&watched.output])? {
                seen.insert(watched.value, found);
            }
        }
        Ok(seen)
    }
}

/// What an output shows of a value; `None` where it is no tensor.
fn shown(watched: &Watched, output: &DynValue) -> Result<Option<Seen>, Error> {
    let element = watched.element;
    if !watched.is_whole {
        let shape = runtime::integers(output)?.into_iter().map(|length| length as usize).collect();
        return Ok(Some(Seen { shape, element, integers: None }));
    }
    let Some(shape) = output.dtype().tensor_shape() else { return Ok(None) };
    let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
    let wanted = Seen::wants_integers(element, shape.iter().product());
    let integers = wanted.then(|| runtime::integers(output).ok()).flatten();
    Ok(Some(Seen { shape, element, integers }))
}

/// What is being done while a model is looked at.
const OBSERVING: &str = "observing shapes";

/// Sizes of which so many are named in a message.
const MOST_SHOWN: usize = 3;

/// Sizes of the second run.
struct Moved {
    samples: usize,
    lengths: BTreeMap<String, usize>,
}
