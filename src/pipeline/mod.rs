//! The method, from a file to a smaller file.

mod choose;
mod describe;
mod goal;
mod paths;
mod product;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use kprune_passes::differentiate::DifferentiateError;
use kprune_passes::measure::Measuring;

use crate::config::Options;
use crate::data::{Dataset, Sources};
use crate::error::Error;
use crate::evaluate::{kinds, overrule};
use crate::latency::Setting;
use crate::machine::peak_memory;
use crate::prepare::{Prepared, prepare};
use crate::progress::Progress;
use crate::report::{self, Report};
use crate::runtime::{Cache, Runtime};
use crate::store::{Source, Target};
use crate::walk::{MEASURING, Walk, measuring_work, tuning_work};
use choose::{Choice, Chooser, Outcome};
use goal::Goal;
use product::{Factory, Products};

pub(crate) use paths::source_ledger;
pub use product::parameters;

/// Prunes the model at `input`, a file or a folder, and writes the result to `output`; without one, units are
/// chosen and nothing is written.
///
/// # Errors
/// Whatever goes wrong; nothing has been written then.
pub fn prune(
    runtime: &Runtime,
    input: &Path,
    output: Option<&Path>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report, Error> {
    let mut clock = Clock::start();
    progress.stage("reading the model");
    let source = Source::find(input)?;
    let target = output.map(|output| Target::of(output, &source)).transpose()?;
    let ledger = paths::ledger(&source, target.as_ref(), options);
    ledger.check()?;
    let mut prepared = prepare(runtime, &source.model, options, &mut |name| {
        clock.stage(name);
    })?;
    let ledger = paths::with_external(ledger, &source, target.as_ref(), options, &prepared.analysis);
    ledger.check()?;
    let evaluation = evaluation(&mut prepared, &source.model, options)?;
    let prepared = prepared;
    let most = runtime.tokens_at_once();
    let each = prepared.tokens_of_a_sample(options.seq_len);
    let batches = prepared.calibration.batches_within(options.batch_size, most, each)?;
    let measuring = measuring(&prepared, options)?;

    let setting = Setting::new(runtime, options.latency_batch, &prepared.calibration, options.seq_len);
    if options.aim.is_timed() {
        progress.stage("timing sublayers");
    }
    let mut goal = Goal::of(runtime, &prepared, options, &setting)?;
    clock.stage("time");
    let kinds = kinds(&prepared.lowered, &prepared.seen, prepared.mask.as_deref(), &options.outputs)?;
    let factory = Factory {
        runtime,
        prepared: &prepared,
        options,
        source: &source,
        target,
        ledger,
        batches: &batches,
        evaluation: evaluation.as_ref(),
        setting,
        kinds,
        progress,
    };
    let cache = Cache::new(options.memory);
    let mut run = Run { factory: &factory, clock: &mut clock, cache: cache.clone(), forward: None };
    let (measuring, mut products) = run.make(measuring, &mut goal)?;
    let forward = run.forward;
    factory.judge(&mut products)?;
    clock.stage("judge");

    factory.deliver(&goal, &measuring, products, || {
        clock.stage("export");
        let mut cost = clock.cost(forward);
        cost.sessions = runtime.set_up().as_secs_f64();
        cost.spilled = cache.spilled();
        cost
    })
}

/// What results are judged by, where they are to be judged; samples of the calibration set that are set aside,
/// where no other data are given.
fn evaluation(prepared: &mut Prepared, model: &Path, options: &Options) -> Result<Option<Dataset>, Error> {
    if !options.judges() {
        return Ok(None);
    }
    if options.evaluation.is_empty() {
        let aside = (prepared.calibration.samples() / SET_ASIDE).clamp(1, MOST_SET_ASIDE);
        let [stay, aside] = prepared.calibration.split(aside, options.sources.seed)?;
        prepared.calibration = stay;
        return Ok(Some(aside));
    }
    let sources =
        Sources { files: options.evaluation.clone(), batches: Vec::new(), samples: None, ..options.sources.clone() };
    Dataset::gather(&prepared.single, model, &sources).map(Some)
}

/// One of so many samples is set aside to judge by, where no other data are given.
const SET_ASIDE: usize = 8;

/// No more samples than this are set aside.
const MOST_SET_ASIDE: usize = 512;

/// What measuring needs, with the loss put where it can be differentiated.
fn measuring<'a>(prepared: &'a Prepared, options: &Options) -> Result<Measuring<'a>, Error> {
    let model = &prepared.lowered;
    let mask = prepared.calibration.mask_input().and_then(|name| model.graph.find(name));
    let mut measuring = Measuring::new(model, &prepared.seen, &prepared.found, mask, options.temperature);
    overrule(&mut measuring.objective, model, &options.outputs)?;
    Ok(measuring)
}

/// One run over the calibration set.
struct Run<'a, 'f, 'c> {
    factory: &'a Factory<'f>,
    clock: &'c mut Clock,
    cache: Cache,
    /// Seconds of one pass of the original.
    forward: Option<f64>,
}

impl<'a> Run<'a, '_, '_> {
    /// Chooses units and makes the models; where a model misses the time that it was to take, once more.
    fn make(&mut self, measuring: Measuring<'a>, goal: &mut Goal) -> Result<(Measuring<'a>, Products), Error> {
        let Factory { runtime, prepared, options, batches, progress, .. } = *self.factory;
        let found = &prepared.found;
        let touched: Vec<usize> = (0..goal.budgets.len()).filter(|&i| goal.removes(i)).collect();
        let mut outcomes = vec![Outcome::untouched(found); goal.budgets.len()];
        if touched.is_empty() {
            let products = self.factory.make(outcomes, goal, self.clock)?;
            return Ok((measuring, products));
        }
        let mut measuring = measuring;
        let mut measured: Vec<usize> = Vec::new();
        if goal.plan.is_none() {
            let failed = |e: DifferentiateError| Error::Runtime { doing: MEASURING.into(), reason: e.to_string() };
            measuring.reach_outputs().map_err(failed)?;
            let sublayers = found.sublayers.len();
            measured.extend((1..sublayers).filter(|&t| options.measures_at(t, sublayers)));
        }
        let mut expected = measuring_work(found.sublayers.len(), measured.into_iter(), batches.len());
        progress.expect(expected);
        let mut walk = Walk::new(runtime, measuring, batches, self.cache.clone(), progress)?;
        progress.stage("running the original");
        self.forward = Some(walk.meet_teacher(&prepared.single)?);
        self.clock.stage("teacher");
        // What the most pruned one has to make up for serves the others too (docs/speed.md).
        let budget = |student: usize| goal.budgets[touched[student]];
        let leader = (0..touched.len()).min_by(|&a, &b| budget(a).total_cmp(&budget(b))).unwrap_or(0);
        let mut chooser = Chooser { prepared, options, progress, known: BTreeMap::new() };
        loop {
            let budgets: Vec<f64> = touched.iter().map(|&i| goal.budgets[i]).collect();
            let choice = match &goal.plan {
                Some(plan) => Choice::Given(plan),
                None => Choice::Search { costs: &goal.costs, budgets: &budgets },
            };
            expected += tuning_work(found.sublayers.len(), touched.len(), batches.len());
            progress.expect(expected);
            walk.start(touched.len(), leader);
            let chosen = chooser.choose(&mut walk, &choice, self.clock)?;
            touched.iter().zip(chosen).for_each(|(&i, outcome)| outcomes[i] = outcome);
            let products = self.factory.make(outcomes.clone(), goal, self.clock)?;
            if !goal.correct(products.models.first().and_then(|p| p.timing.as_ref())) {
                return Ok((walk.finish(), products));
            }
            progress.done("the time was missed: choosing once more");
        }
    }
}

/// Time by stage.
struct Clock {
    start: Instant,
    last: Instant,
    stages: Vec<report::Stage>,
}

impl Clock {
    fn start() -> Self {
        let now = Instant::now();
        Self { start: now, last: now, stages: Vec::new() }
    }

    /// Books the time since the last call on a stage; returns it in seconds.
    fn stage(&mut self, name: &'static str) -> f64 {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        match self.stages.iter_mut().find(|s| s.name == name) {
            Some(stage) => stage.seconds += seconds,
            None => self.stages.push(report::Stage { name, seconds }),
        }
        seconds
    }

    fn cost(self, forward: Option<f64>) -> report::Cost {
        let total = self.start.elapsed().as_secs_f64();
        report::Cost {
            forward,
            total,
            forward_equivalents: forward.map(|f| total / f),
            stages: self.stages,
            peak_memory: peak_memory(),
            ..report::Cost::default()
        }
    }
}
