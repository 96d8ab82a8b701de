//! From a file to a model whose sublayers are known, step by step: open, observe, simplify, discover.

mod causal;
mod changes;
mod constants;
mod later;
mod observation;
mod parameters;
mod sizes;
mod supported;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kprune_passes::discover::{Discovery, discover_units, flops};
use kprune_passes::ir::Model;
use kprune_passes::kv_cache;
use kprune_passes::observe::Observation;
use kprune_passes::signature;
use kprune_passes::simplify::einsum;
use kprune_passes::simplify::fold::{fold_constants, untie};
use kprune_passes::simplify::low_rank;
use kprune_passes::simplify::lower::{self, Lowered};

pub use observation::observe;
pub use parameters::{parameters, zeros};

use crate::clock::Clock;
use crate::data::{Dataset, Sources};
use crate::error::Error;
use crate::options::Aim;
use crate::report::DeclinedReport;
use crate::runtime::{Purpose, Runtime, Session};
use crate::store;
use observation::{count, feeds};
pub(crate) use {changes::outputs_of, observation::Feeds};

/// A model with what is known of it.
pub struct View {
    /// The model.
    pub model: Model,
    /// Shapes and types of its values.
    pub seen: Observation,
    /// Its sublayers.
    pub found: Discovery,
}

/// One model in two views with the same sublayers: as it is written, and as it is measured.
pub struct Analysis {
    /// The model of the file.
    pub written: View,
    /// The same in f32, of primitive operators.
    pub measured: View,
    /// The same in f32, as it is run: for what is asked of the original.
    pub single: Model,
    /// The name of the token mask, where it is given.
    pub mask_input: Option<String>,
    /// Fused operators that could not be taken apart, and why.
    pub fused: Vec<(String, String)>,
    /// What was changed before anything was looked for, in words.
    pub changes: Vec<String>,
}

/// A model with data to measure it on.
pub struct Loaded {
    /// What is known of the model.
    pub analysis: Analysis,
    /// Samples to measure on.
    pub calibration: Dataset,
}

/// A model that was read.
pub struct Opened {
    path: PathBuf,
    /// The model of the file.
    original: Model,
    model: Model,
    /// What was changed since, in words.
    changes: Vec<String>,
    /// Whether it predicts the next token, once that was tried.
    is_causal: Option<bool>,
}

/// A model that was read and run.
pub struct Observed {
    path: PathBuf,
    model: Model,
    changes: Vec<String>,
    single: Model,
    seen: Observation,
    /// The user's samples.
    given: Option<Dataset>,
    mask_input: Option<String>,
}

/// A model whose fused operators were taken apart.
pub struct Simplified {
    model: Model,
    changes: Vec<String>,
    single: Model,
    lowered: Lowered,
    seen: Observation,
    mask_input: Option<String>,
}

impl Opened {
    /// Reads the model at `path`; operators read constants themselves then.
    ///
    /// # Errors
    /// Where the file is no model, or has operators that ONNX Runtime does not know.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut model = store::read_inlined(path)?;
        supported::check_domains(&model, path)?;
        fold_constants(&mut model.graph);
        let original = model.clone();
        let products = einsum::as_products(&mut model.graph);
        let changed = (products > 0).then(|| format!("{products} Einsum operators were written as matrix products"));
        Ok(Self { path: path.to_path_buf(), original, model, changes: changed.into_iter().collect(), is_causal: None })
    }

    /// The model, which can be pruned: layers that share weights have their own where `aim` wants it.
    ///
    /// # Errors
    /// Where the model is one that cannot be pruned.
    pub fn prunable(mut self, aim: &Aim) -> Result<Self, Error> {
        if aim.untie {
            untie(&mut self.model.graph);
        }
        supported::check(&self.model, &self.path)?;
        let merged = low_rank::merge(&mut self.model.graph);
        if merged > 0 {
            self.changes.push(format!("{merged} low-rank branches (LoRA) were merged into the weights beside them"));
        }
        Ok(self)
    }

    /// Observes shapes in f32: on the samples of `sources`, where there are any.
    ///
    /// # Errors
    /// Where the model does not run, or the samples do not fit it.
    pub fn observe(mut self, runtime: &Runtime, sources: &Sources, clock: &Clock) -> Result<Observed, Error> {
        let given = match sources.are_given() {
            true => Some(self.gather(runtime, sources)?),
            false => None,
        };
        self.observe_on(runtime, given, sources, clock)
    }

    /// The user's samples; text in segments, where the model predicts the next token.
    fn gather(&mut self, runtime: &Runtime, sources: &Sources) -> Result<Dataset, Error> {
        let single = self.single()?;
        if sources.hold_text() {
            self.is_causal = Some(causal::is_causal(runtime, &single)?);
        }
        let sources = match self.is_causal {
            Some(true) => &causal::in_segments(runtime, &single, &self.path, sources)?,
            _ => sources,
        };
        Dataset::gather(&single, &self.path, sources, runtime.threads())
    }

    /// The model in f32, before its first token.
    ///
    /// # Errors
    /// Where it has caches of which that is not known.
    pub(crate) fn single(&self) -> Result<Model, Error> {
        let mut single = lower::in_single_precision(&self.model);
        kv_cache::start_empty(&mut single.graph).map_err(|reason| Error::Unsupported {
            path: self.path.clone(),
            reason,
            help: "export it with caches of [samples, heads, tokens, width], heads and width fixed, or without".into(),
        })?;
        Ok(single)
    }

    /// The same on samples that were read for another model.
    ///
    /// # Errors
    /// Where the model does not run, or the samples do not fit it.
    pub fn observe_on(
        mut self,
        runtime: &Runtime,
        given: Option<Dataset>,
        sources: &Sources,
        clock: &Clock,
    ) -> Result<Observed, Error> {
        let mask_input = given.as_ref().and_then(Dataset::mask_input).map(str::to_string);
        let mask_input = mask_input.or_else(|| sources.mask_input.clone());
        let mask = mask_input.as_deref();
        self.changes.extend(changes::upgraded(runtime, &mut self.model, &self.path, given.as_ref(), mask)?);
        constants::compute(runtime, &mut self.model)?;
        let mut single = self.single()?;
        if let Some(samples) = &given {
            signature::declare_ranks(&mut single.graph, |name| samples.rank(name));
        }
        let given = given.map(|samples| samples.fitted(&single)).transpose()?;
        clock.stage("import");
        let mut seen = observe(runtime, &single, given.as_ref(), mask).map_err(|e| e.about(&self.path))?;
        seen.of_causal(self.is_causal.map_or_else(|| causal::is_causal(runtime, &single), Ok)?);
        if !self.changes.is_empty() {
            let feeds = feeds(&single, &seen, given.as_ref(), mask)?;
            changes::check(runtime, [&self.original, &self.model], &self.path, &feeds, &self.changes)?;
        }
        signature::fix_axes(&mut single.graph, seen.sizes());
        let given = given.map(|samples| samples.fitted(&single)).transpose()?;
        let Self { path, model, changes, .. } = self;
        Ok(Observed { path, model, changes, single, seen, given, mask_input })
    }
}

impl Observed {
    /// The samples that were given, cut to what the model takes, or else made-up ones, or built-in text.
    ///
    /// # Errors
    /// Where they do not fit the model.
    pub fn samples(&mut self, runtime: &Runtime, sources: &Sources) -> Result<Dataset, Error> {
        let mut samples = match self.given.take() {
            Some(samples) => samples,
            None => gather(runtime, &self.single, &self.path, sources)?,
        };
        let trial = self.settle_mask(runtime, &mut samples, sources)?;
        if samples.mask_input().is_some() {
            let mut session = trial.map_or_else(|| self.trial(runtime), Ok)?;
            samples.try_cuts(|batch| session.run(batch.feeds()).is_ok())?;
        }
        Ok(samples)
    }

    fn trial(&self, runtime: &Runtime) -> Result<Session, Error> {
        runtime.session(&self.single, TRYING, Purpose::Trial)
    }

    /// Tries on the model what its token mask means; returns the session of it, where one was needed.
    fn settle_mask(
        &mut self,
        runtime: &Runtime,
        samples: &mut Dataset,
        sources: &Sources,
    ) -> Result<Option<Session>, Error> {
        let mut session = None;
        samples.settle_mask(sources.mask_input.as_deref(), |feeds| {
            let session = match &mut session {
                Some(session) => session,
                none => none.insert(self.trial(runtime)?),
            };
            match changes::outputs_of(session, &self.single, feeds) {
                Err(error @ Error::Interrupted) => Err(error),
                outputs => Ok(outputs.ok()),
            }
        })?;
        self.mask_input = samples.mask_input().map(str::to_string).or_else(|| sources.mask_input.clone());
        Ok(session)
    }

    /// The samples that were given, or else a single one that is made up.
    ///
    /// # Errors
    /// Where it cannot be made up.
    pub fn sample(&mut self, runtime: &Runtime, sources: &Sources) -> Result<Dataset, Error> {
        let Some(mut samples) = self.given.take() else { return Dataset::made_up(&self.single, sources) };
        self.settle_mask(runtime, &mut samples, sources)?;
        Ok(samples)
    }

    /// Takes fused operators apart, and counts for `samples`, of which one has `seq_len` tokens or as many as they have in
    /// the mean.
    ///
    /// # Errors
    /// Where the model does not run then.
    pub fn simplify(
        self,
        runtime: &Runtime,
        samples: &Dataset,
        seq_len: Option<usize>,
        clock: &Clock,
    ) -> Result<Simplified, Error> {
        let Self { model, changes, single, seen, mask_input, .. } = self;
        let samples = &samples.clone().fitted(&single)?;
        let (lowered, mut seen) = match lower::has_fused(&single) {
            true => {
                let lowered = lower::lower(single.clone(), &seen);
                let given = (!samples.is_made_up).then_some(samples);
                let mut lowered_seen = observe(runtime, &lowered.model, given, mask_input.as_deref())?;
                lowered_seen.of_causal(seen.is_causal());
                (lowered, lowered_seen)
            }
            false => (Lowered::unchanged(single.clone()), seen),
        };
        count(runtime, &lowered.model, &mut seen, samples, seq_len)?;
        clock.stage("observe");
        Ok(Simplified { model, changes, single, lowered, seen, mask_input })
    }
}

impl Simplified {
    /// The model of the file.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model in f32, of primitive operators.
    pub fn lowered(&self) -> &Model {
        &self.lowered.model
    }

    /// Shapes and types of the values of [`Simplified::lowered`].
    pub fn seen(&self) -> &Observation {
        &self.seen
    }

    /// Finds the sublayers; `lengths` are those of the inputs' named axes that FLOPs are counted for.
    pub fn discover(self, aim: &Aim, lengths: &BTreeMap<String, f64>, clock: &Clock) -> Analysis {
        let Self { model, changes, single, lowered, seen, mask_input } = self;
        let mut found = discover_units(&lowered.model.graph, &seen, lengths, aim.scope);
        if !found.find_caches(&model.graph) && !aim.uneven_heads {
            found.leave_caches();
        }
        let written = View { found: lowered.bring_back(&found, &model.graph), seen: seen.of(&model.graph), model };
        clock.stage("discover");
        let measured = View { model: lowered.model, seen, found };
        Analysis { written, measured, single, mask_input, fused: lowered.declined, changes }
    }
}

impl Analysis {
    /// The same with the shapes of the written model as they are once its caches hold earlier tokens, where it has some:
    /// before anything is cut out of it.
    ///
    /// # Errors
    /// Where no session can be made.
    pub fn with_later_runs(mut self, runtime: &Runtime) -> Result<Self, Error> {
        if let Some(seen) = later::observe_later(runtime, &self.written.model)? {
            self.written.seen = seen;
        }
        Ok(self)
    }
}

impl Loaded {
    /// Reads the model at `path` and its calibration set, and finds the model's sublayers.
    ///
    /// # Errors
    /// Where the file is no model, or one that cannot be pruned, or the calibration data do not fit it.
    pub fn read(runtime: &Runtime, path: &Path, aim: &Aim, sources: &Sources, clock: &Clock) -> Result<Self, Error> {
        let mut observed = Opened::read(path)?.prunable(aim)?.observe(runtime, sources, clock)?;
        let calibration = observed.samples(runtime, sources)?;
        let lengths = calibration.lengths(sources.seq_len);
        let simplified = observed.simplify(runtime, &calibration, sources.seq_len, clock)?;
        let analysis = simplified.discover(aim, &lengths, clock).with_later_runs(runtime)?;
        if analysis.measured.found.sublayers.is_empty() {
            return Err(nothing_to_prune(path, &analysis.measured.found));
        }
        Ok(Self { analysis, calibration })
    }

    /// Tokens of a sample of mean length, or of `seq_len`, as the projections see them.
    pub fn tokens_of_a_sample(&self, seq_len: Option<usize>) -> f64 {
        let lengths = self.calibration.lengths(seq_len);
        let View { found, seen, .. } = &self.analysis.measured;
        let rows = found.sublayers.iter().map(|sublayer| flops::rows(sublayer, seen, &lengths));
        rows.fold(1.0, f64::max)
    }
}

/// Samples for the model at `path`; made-up sequences are made shorter until the model takes them.
///
/// # Errors
/// Where the data do not fit the model.
fn gather(runtime: &Runtime, model: &Model, path: &Path, sources: &Sources) -> Result<Dataset, Error> {
    let mut data = Dataset::gather(model, path, sources, runtime.threads())?;
    if !data.is_made_up || sources.seq_len.is_some() {
        return Ok(data);
    }
    let mut session = runtime.session(model, TRYING, Purpose::Trial)?;
    for length in SHORTER {
        let runs = data.batches(2)?;
        if runs.first().is_some_and(|batch| session.run(batch.feeds()).is_ok()) {
            break;
        }
        let sources = Sources { seq_len: Some(*length), ..sources.clone() };
        data = Dataset::gather(model, path, &sources, runtime.threads())?;
    }
    Ok(data)
}

/// Inputs that are made up for a model, of sizes that it takes.
///
/// # Errors
/// Where it takes none that were tried.
pub(crate) fn made_up(runtime: &Runtime, model: &Model) -> Result<Feeds, Error> {
    feeds(model, &observe(runtime, model, None, None)?, None, None)
}

/// What is being done while the model runs on samples as it is.
const TRYING: &str = "trying the model";

/// Lengths of made-up sequences for models that do not take the usual one.
const SHORTER: &[usize] = &[32, 16, 8];

fn nothing_to_prune(path: &Path, discovery: &Discovery) -> Error {
    let looked: Vec<_> = discovery.declined.iter().map(|d| DeclinedReport::from(d).to_string()).collect();
    let help = if looked.is_empty() {
        "no matrix product with a constant weight was found; is this a transformer?".to_string()
    } else {
        format!("what was looked at and stays:\n  {}", looked.join("\n  "))
    };
    Error::Unsupported { path: path.to_path_buf(), reason: "there is nothing to prune".into(), help }
}
