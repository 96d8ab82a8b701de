//! The method, from a file to a smaller file.

use std::path::Path;
use std::time::Instant;

use kprune_passes::differentiate::DifferentiateError;
use kprune_passes::discover::{Discovery, Sublayer};
use kprune_passes::ir::{ElementType, Model, Tensor, ValueId};
use kprune_passes::measure::Measuring;
use kprune_passes::plan::{Decision, Plan, Tuned, bias_of};
use kprune_passes::remove::remove;
use kprune_passes::search::{Candidate, align, search};
use ndarray::{Array1, Array2, Axis, s};

use crate::calibration::Batch;
use crate::config::Options;
use crate::error::Error;
use crate::files::{self, Staged};
use crate::machine::peak_memory;
use crate::prepare::{Prepared, prepare};
use crate::progress::Progress;
use crate::report::{self, Report};
use crate::runtime::{Cache, Runtime};
use crate::verify::{Verified, masked_original, verify};
use crate::walk::{Knowledge, MEASURING, TuningSums, Walk, candidates, original_weight, work};

/// Prunes the model at `input` and writes the result to `output`.
///
/// # Errors
/// Whatever goes wrong; nothing has been written then.
pub fn prune(
    runtime: &Runtime,
    input: &Path,
    output: &Path,
    options: &Options,
    progress: &Progress,
) -> Result<Report, Error> {
    let mut clock = Clock::start();
    progress.stage("reading the model");
    let prepared = prepare(runtime, input, options, |name| {
        clock.stage(name);
    })?;
    let Prepared { model, lowered, calibration, seen, seen_as_written, found, written, .. } = &prepared;
    let most = runtime.tokens_at_once();
    let batches = calibration.batches_within(options.batch_size, most, prepared.tokens_of_a_sample(options.seq_len))?;

    let mask = calibration.mask_input().and_then(|name| lowered.graph.find(name));
    let mut measuring = Measuring::new(lowered, seen, found, mask, options.temperature);
    measuring.objective.overrule(lowered, &options.outputs).map_err(|name| unknown_output(lowered, &name))?;
    let cache = Cache::new(options.memory);
    let mut outcome = Outcome::untouched(found, options.compression);
    let mut forward = None;
    if options.compression > 0.0 {
        let failed = |e: DifferentiateError| Error::Runtime { doing: MEASURING.into(), reason: e.to_string() };
        measuring.reach_outputs().map_err(failed)?;
        let sublayers = found.sublayers.len();
        progress.expect(work(sublayers, (1..sublayers).filter(|&t| options.measures_at(t, sublayers)), batches.len()));
        let mut walk = Walk::new(runtime, measuring, &batches, cache.clone(), progress)?;
        progress.stage("running the original");
        forward = Some(walk.meet_teacher(&prepared.single)?);
        clock.stage("teacher");
        choose(&mut walk, &prepared, options, progress, &mut clock, &mut outcome)?;
        measuring = walk.finish();
    }
    progress.stage("removing");
    let pruned = remove(model, written, seen_as_written, &outcome.plan).map_err(|e| Error::internal(e.to_string()))?;
    clock.stage("remove");

    progress.stage("verifying");
    let (staged, verified) = write_verified(runtime, &prepared, &pruned, &outcome.plan, &batches, input, output)?;
    clock.stage("verify");

    let mut report = describe(runtime, input, output, options, &prepared, &batches, &measuring, &outcome);
    report.output.bytes = staged.bytes();
    report.output.parameters = parameters(&pruned);
    report.verify.difference = verified.difference;
    report.warnings.extend(verified.warning);
    staged.publish()?;
    clock.stage("export");
    report.cost = clock.cost(forward);
    report.cost.sessions = runtime.set_up().as_secs_f64();
    report.cost.spilled = cache.spilled();
    Ok(report)
}

fn unknown_output(model: &Model, name: &str) -> Error {
    let known: Vec<_> = model.graph.outputs().iter().map(|&v| model.graph.name(v)).collect();
    Error::Usage(format!("--output {name}: the model has no such output; it has {}", known.join(", ")))
}

/// What was decided, and how well each projection could be repaired.
struct Outcome {
    plan: Plan,
    repairs: Vec<Repair>,
    budget: f64,
}

/// Relative reconstruction errors of one sublayer on held-out batches.
#[derive(Clone, Copy, Debug, Default)]
struct Repair {
    untuned: Option<f64>,
    tuned: Option<f64>,
}

impl Outcome {
    /// Nothing is decided yet.
    fn untouched(found: &Discovery, compression: f64) -> Self {
        let prunable: f64 = found.sublayers.iter().map(Sublayer::flops).sum();
        let repairs = vec![Repair::default(); found.sublayers.len()];
        Self { plan: Plan::untouched(found), repairs, budget: prunable * (1.0 - compression) }
    }
}

/// For every sublayer from input to output: measure, search, tune, and go on with what is left.
fn choose(
    walk: &mut Walk,
    prepared: &Prepared,
    options: &Options,
    progress: &Progress,
    clock: &mut Clock,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let sublayers = &prepared.found.sublayers;
    let mut left = outcome.budget;
    let mut knowledge: Vec<Vec<Knowledge>> = Vec::new();
    for (t, sublayer) in sublayers.iter().enumerate() {
        let place = format!("sublayer {} of {}", t + 1, sublayers.len());
        if options.measures_at(t, sublayers.len()) {
            progress.stage(&format!("{place}: measuring"));
            knowledge.truncate(t);
            knowledge.extend(walk.knowledge(t)?);
        }
        clock.stage("measure");

        let ranked = candidates(sublayers, t, &knowledge[t..], options.weights);
        let decision = &mut outcome.plan.decisions[t];
        decision.keep = vec![false; sublayer.units.len()];
        let kept = align(&ranked, t, search(&ranked, t, left), options.step(sublayer), left);
        kept.into_iter().for_each(|unit| decision.keep[unit] = true);
        keep_one(sublayer, decision, &ranked);
        left -= decision.flops(sublayer);

        progress.stage(&format!("{place}: tuning"));
        let columns = decision.columns(sublayer);
        let sums = walk.tuning_sums(t, &columns)?;
        let (tuned, repair) = repair(prepared, t, &columns, &sums)?;
        clock.stage("tune");

        progress.stage(&format!("{place}: advancing"));
        if t + 1 < sublayers.len() {
            walk.advance(t, &columns, &tuned)?;
        }
        clock.stage("advance");
        progress.done(&format!(
            "{place}: {} of {} {}s kept",
            decision.kept(),
            sublayer.units.len(),
            report::unit_name(sublayer.kind)
        ));
        decision.tuned = Some(tuned);
        outcome.repairs[t] = repair;
    }
    Ok(())
}

/// Keeps the best unit of a sublayer that cannot go whole, because its output is normalised.
fn keep_one(sublayer: &Sublayer, decision: &mut Decision, ranked: &[Candidate]) {
    if sublayer.can_go_whole() || decision.kept() > 0 {
        return;
    }
    let own = ranked.iter().filter(|c| c.sublayer == ranked[0].sublayer);
    if let Some(best) = own.max_by(|a, b| a.score.total_cmp(&b.score)) {
        decision.keep[best.unit] = true;
    }
}

/// The better of the tuned and the untuned projection on the batches that were held out, both as the
/// model's element type rounds them.
fn repair(prepared: &Prepared, t: usize, columns: &[usize], sums: &TuningSums) -> Result<(Tuned, Repair), Error> {
    let sublayer = &prepared.found.sublayers[t];
    let original = original_weight(&prepared.lowered, sublayer)?;
    let weight = prepared.model.graph.constant(prepared.written.sublayers[t].projection.weight);
    let element = weight.map_or(ElementType::F32, |t| t.element());
    let (kept, outputs) = (columns.len(), sublayer.projection.outputs);
    let mut untuned = Array2::zeros((kept + 1, outputs));
    untuned.slice_mut(s![..kept, ..]).assign(&original.select(Axis(0), columns));
    let with_bias = kept == 0 || bias_of(&prepared.model.graph, &prepared.written.sublayers[t]).is_some();
    let solved = rounded(sums.solve.solve(with_bias), element)?;
    let judge = if sums.held_out.energy > 0.0 { &sums.held_out } else { &sums.solve };
    let (before, after) = (judge.error(&untuned), judge.error(&solved));
    let better = if after < before { &solved } else { &untuned };
    let mut weight = Array2::zeros((sublayer.projection.width, outputs));
    for (row, &column) in columns.iter().enumerate() {
        weight.row_mut(column).assign(&better.row(row));
    }
    let bias: Array1<f64> = better.row(kept).to_owned();
    let repair = Repair { untuned: Some(before), tuned: (after < before).then_some(after) };
    Ok((Tuned { weight, bias }, repair))
}

/// The numbers that are left once they are stored as `element`.
fn rounded(matrix: Array2<f64>, element: ElementType) -> Result<Array2<f64>, Error> {
    let stored = Tensor::from_floats(element, &matrix.into_dyn()).and_then(|t| t.to_f64());
    let stored = stored.map_err(|e| Error::internal(e.to_string()))?;
    stored.into_dimensionality().map_err(|e| Error::internal(e.to_string()))
}

/// Writes the pruned model beside its target and checks it there.
#[allow(clippy::too_many_arguments)]
fn write_verified(
    runtime: &Runtime,
    prepared: &Prepared,
    pruned: &Model,
    plan: &Plan,
    batches: &[Batch],
    input: &Path,
    output: &Path,
) -> Result<(Staged, Verified), Error> {
    let staged = files::stage(pruned, input, output)?;
    let masked = masked_original(&prepared.model, &prepared.written, plan)?;
    let verified = verify(runtime, &staged.reread()?, &staged, &masked, &prepared.written, batches)?;
    Ok((staged, verified))
}

/// Floating-point numbers in the constants of a model.
fn parameters(model: &Model) -> usize {
    let constants = model.graph.initializers().into_iter().filter_map(|v: ValueId| model.graph.constant(v));
    constants.filter(|t| t.element().is_float()).map(|t| t.count()).sum()
}

#[allow(clippy::too_many_arguments)]
fn describe(
    runtime: &Runtime,
    input: &Path,
    output: &Path,
    options: &Options,
    prepared: &Prepared,
    batches: &[Batch],
    measuring: &Measuring,
    outcome: &Outcome,
) -> Report {
    let Prepared { model, calibration, found: discovery, .. } = prepared;
    let file = |path: &Path| report::File {
        path: path.display().to_string(),
        bytes: files::size_with_data(path, model),
        parameters: parameters(model),
    };
    let sublayers = outcome.plan.each(discovery).zip(&outcome.repairs).map(|((sublayer, decision), repair)| {
        report::SublayerReport {
            name: sublayer.name.clone(),
            unit: report::unit_name(sublayer.kind),
            units: sublayer.units.len(),
            kept: (0..sublayer.units.len()).filter(|&u| decision.keep[u]).collect(),
            flops: sublayer.flops(),
            flops_kept: decision.flops(sublayer),
            error_untuned: repair.untuned,
            error_tuned: repair.tuned,
            tuned: repair.tuned.is_some(),
        }
    });
    let mut warnings = Vec::new();
    if !calibration.is_task_data {
        warnings.push(format!(
            "knowledge was measured on {}; data of the task serve better (--calibration FILE)",
            calibration.source
        ));
    }
    let lengths = calibration.mean_length().map(|mean| options.seq_len.map_or(mean, |s| s as f64));
    Report {
        schema: 1,
        version: env!("CARGO_PKG_VERSION").into(),
        input: file(input),
        output: report::File { path: output.display().to_string(), bytes: 0, parameters: 0 },
        settings: report::Settings {
            compression: options.compression,
            lambda_pred: options.weights.pred,
            lambda_rep: options.weights.rep,
            mu: options.weights.head,
            temperature: options.temperature,
            batch_size: options.batch_size,
            refresh: options.every(discovery.sublayers.len()),
            align: options.align,
            seed: options.sources.seed,
        },
        runtime: report::RuntimeInfo {
            library: runtime.library().display().to_string(),
            provider: runtime.provider().to_string(),
            threads: runtime.threads(),
        },
        calibration: report::CalibrationInfo {
            source: calibration.source.clone(),
            samples: calibration.samples(),
            tokens: batches.iter().map(|b| b.tokens).sum(),
            mask_input: calibration.mask_input().map(str::to_string),
            sequence_length: lengths,
        },
        objective: measuring
            .objective
            .outputs
            .iter()
            .map(|&(v, kind)| report::Output { name: measuring.model.graph.name(v).into(), kind: kind.to_string() })
            .collect(),
        flops: report::Flops {
            prunable: discovery.sublayers.iter().map(Sublayer::flops).sum(),
            budget: outcome.budget,
            kept: outcome.plan.each(discovery).map(|(s, d)| d.flops(s)).sum(),
        },
        sublayers: sublayers.collect(),
        declined: discovery
            .declined
            .iter()
            .map(|d| report::DeclinedReport { place: d.place.clone(), channels: d.channels, why: d.why.clone() })
            .collect(),
        verify: report::Verification { difference: 0.0 },
        cost: report::Cost::default(),
        warnings,
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
