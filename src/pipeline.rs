//! The method, from a file to a smaller file.

use std::path::Path;
use std::time::Instant;

use kprune_passes::discover::{Discovery, Sublayer, discover};
use kprune_passes::fold::fold_identities;
use kprune_passes::ir::{ElementType, Graph, Model, NodeId, ValueId};
use kprune_passes::measure::Measuring;
use kprune_passes::plan::{Plan, Tuned, bias_of};
use kprune_passes::remove::remove;
use kprune_passes::search::search;
use ndarray::{Array1, Array2, Axis, s};

use crate::calibration::{Batch, Calibration};
use crate::config::Options;
use crate::error::Error;
use crate::files::{self, Staged};
use crate::knowledge::{TuningSums, Walk, candidates, original_weight, work};
use crate::observation::observe;
use crate::progress::Progress;
use crate::report::{self, Report};
use crate::runtime::{Runtime, Values};
use crate::verify::{masked_original, verify};

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
    let mut model = files::read_model(input)?;
    fold_identities(&mut model.graph);
    check_supported(&model, input)?;
    let calibration = Calibration::gather(&model, input, &options.sources)?;
    let batches = calibration.batches(options.batch_size)?;
    clock.stage("import");

    progress.stage("observing shapes");
    let seen = observe(runtime, &model, &calibration)?;
    let discovery = discover(&model.graph, &seen, &calibration.lengths(options.seq_len));
    if discovery.sublayers.is_empty() {
        return Err(nothing_to_prune(input, &discovery));
    }
    check_precision(&model.graph, &discovery, input)?;
    clock.stage("discover");

    progress.expect(work(discovery.sublayers.len(), batches.len()));
    let teacher = run_teacher(runtime, &model, &batches, progress)?;
    let forward = clock.stage("teacher");

    let mask = calibration.mask_input().and_then(|name| model.graph.find(name));
    let measuring = Measuring::new(&model, &seen, &discovery, mask, options.temperature);
    let mut walk = Walk::new(runtime, &measuring, &batches, teacher, progress);
    let outcome = choose(&mut walk, &measuring, options, progress, &mut clock)?;
    progress.stage("removing");
    let pruned = remove(&model, &discovery, &seen, &outcome.plan).map_err(|e| Error::internal(e.to_string()))?;
    clock.stage("remove");

    progress.stage("verifying");
    let (staged, difference) =
        write_verified(runtime, &model, &pruned, &discovery, &outcome.plan, &batches, input, output)?;
    clock.stage("verify");

    let mut report = describe(runtime, input, output, options, &calibration, &batches, &measuring, &outcome);
    report.output.bytes = staged.bytes();
    report.output.parameters = parameters(&pruned);
    report.verify.difference = difference;
    staged.publish()?;
    clock.stage("export");
    report.cost = clock.cost(forward);
    Ok(report)
}

/// Refuses what cannot be pruned yet, before any work.
fn check_supported(model: &Model, path: &Path) -> Result<(), Error> {
    let refuse = |reason: String, help: &str| {
        Err(Error::Unsupported { path: path.to_path_buf(), reason, help: help.to_string() })
    };
    let opset = model.opset("").unwrap_or(0);
    if opset < OLDEST_OPSET {
        let reason = format!(
            "the model uses version {opset} of the standard operators, and {OLDEST_OPSET} is the oldest supported"
        );
        return refuse(reason, "convert it with onnx.version_converter, or export it with opset_version=17");
    }
    let graph = &model.graph;
    let is_quantised = |n: &NodeId| QUANTISED.contains(&graph.operator(*n).op_type.as_str());
    if let Some(node) = graph.sorted().into_iter().find(is_quantised) {
        let reason = format!("the model is quantised ({})", graph.label(node));
        return refuse(reason, "prune the model before it is quantised");
    }
    Ok(())
}

/// Refuses projections that cannot be measured and tuned.
fn check_precision(graph: &Graph, discovery: &Discovery, path: &Path) -> Result<(), Error> {
    for sublayer in &discovery.sublayers {
        let element = graph.constant(sublayer.projection.weight).map(|t| t.element());
        if let Some(element) = element.filter(|e| *e != ElementType::F32) {
            let reason = format!("the weight of {} is of type {element}", sublayer.name);
            let help = "export the model in float32, prune it, and convert it afterwards".to_string();
            return Err(Error::Unsupported { path: path.to_path_buf(), reason, help });
        }
    }
    Ok(())
}

/// The oldest version of the standard operators that gradients can be written in.
const OLDEST_OPSET: i64 = 13;

/// Operators of quantised graphs.
const QUANTISED: &[&str] = &[
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "MatMulNBits",
    "QAttention",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
];

fn nothing_to_prune(path: &Path, discovery: &Discovery) -> Error {
    let looked: Vec<_> =
        discovery.declined.iter().map(|d| format!("{} channels of {}: {}", d.channels, d.place, d.why)).collect();
    let help = if looked.is_empty() {
        "no matrix product with a constant weight was found; is this a transformer?".to_string()
    } else {
        format!("what was looked at and stays:\n  {}", looked.join("\n  "))
    };
    Error::Unsupported { path: path.to_path_buf(), reason: "there is nothing to prune".into(), help }
}

/// The outputs of the untouched model for every batch: one forward-equivalent.
fn run_teacher(runtime: &Runtime, model: &Model, batches: &[Batch], progress: &Progress) -> Result<Vec<Values>, Error> {
    progress.stage("running the original");
    let mut session = runtime.session(model, "running the original", true)?;
    batches
        .iter()
        .map(|batch| {
            runtime.check_cancelled()?;
            session.run(batch.feeds())
        })
        .collect()
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

/// For every sublayer from input to output: measure, search, tune, and go on with what is left.
fn choose(
    walk: &mut Walk,
    measuring: &Measuring,
    options: &Options,
    progress: &Progress,
    clock: &mut Clock,
) -> Result<Outcome, Error> {
    let sublayers = &measuring.discovery.sublayers;
    let prunable: f64 = sublayers.iter().map(Sublayer::flops).sum();
    let budget = prunable * (1.0 - options.compression);
    let mut outcome = Outcome { plan: Plan::untouched(measuring.discovery), repairs: Vec::new(), budget };
    outcome.repairs.resize(sublayers.len(), Repair::default());
    if options.compression == 0.0 {
        return Ok(outcome);
    }
    let mut left = budget;
    for (t, sublayer) in sublayers.iter().enumerate() {
        let place = format!("sublayer {} of {}", t + 1, sublayers.len());
        progress.stage(&format!("{place}: measuring"));
        let knowledge = walk.knowledge(t)?;
        clock.stage("measure");

        let ranked = candidates(sublayers, t, &knowledge, options.weights);
        let decision = &mut outcome.plan.decisions[t];
        decision.keep = vec![false; sublayer.units.len()];
        search(&ranked, t, left).into_iter().for_each(|unit| decision.keep[unit] = true);
        left -= decision.flops(sublayer);

        progress.stage(&format!("{place}: tuning"));
        let columns = decision.columns(sublayer);
        let sums = walk.gram(t, &columns)?;
        let (tuned, repair) = repair(measuring.model, sublayer, &columns, &sums)?;
        clock.stage("tune");

        progress.stage(&format!("{place}: advancing"));
        if t + 1 < sublayers.len() {
            walk.advance(t, &tuned)?;
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
    Ok(outcome)
}

/// The better of the tuned and the untuned projection on the batches that were held out.
fn repair(model: &Model, sublayer: &Sublayer, columns: &[usize], sums: &TuningSums) -> Result<(Tuned, Repair), Error> {
    let original = original_weight(model, sublayer)?;
    let (kept, outputs) = (columns.len(), sublayer.projection.outputs);
    let mut untuned = Array2::zeros((kept + 1, outputs));
    untuned.slice_mut(s![..kept, ..]).assign(&original.select(Axis(0), columns));
    let with_bias = kept == 0 || bias_of(&model.graph, sublayer).is_some();
    let solved = sums.solve.solve(with_bias);
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

/// Writes the pruned model beside its target and checks it there.
#[allow(clippy::too_many_arguments)]
fn write_verified(
    runtime: &Runtime,
    model: &Model,
    pruned: &Model,
    discovery: &Discovery,
    plan: &Plan,
    batches: &[Batch],
    input: &Path,
    output: &Path,
) -> Result<(Staged, f64), Error> {
    let staged = files::stage(pruned, input, output)?;
    let masked = masked_original(model, discovery, plan)?;
    let difference = verify(runtime, &staged.reread()?, &staged, &masked, discovery, batches)?;
    Ok((staged, difference))
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
    calibration: &Calibration,
    batches: &[Batch],
    measuring: &Measuring,
    outcome: &Outcome,
) -> Report {
    let discovery = measuring.discovery;
    let file = |path: &Path| report::File {
        path: path.display().to_string(),
        bytes: files::size_with_data(path, measuring.model),
        parameters: parameters(measuring.model),
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
        cost: report::Cost { forward: 0.0, total: 0.0, forward_equivalents: 0.0, stages: Vec::new() },
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

    fn cost(self, forward: f64) -> report::Cost {
        let total = self.start.elapsed().as_secs_f64();
        report::Cost { forward, total, forward_equivalents: total / forward, stages: self.stages }
    }
}
