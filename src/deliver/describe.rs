//! What a run did, as its report.

use std::time::{SystemTime, UNIX_EPOCH};

use kprune_passes::calculus::objective::Compared;
use kprune_passes::discover::cost::Costs;
use kprune_passes::discover::{Discovery, Sublayer};
use kprune_passes::plan::Plan;
use kprune_passes::probe::Probes;
use kprune_passes::signature;

use super::make::{Maker, Original, Product};
use crate::analysis::parameters;
use crate::budget::Budget;
use crate::data;
use crate::judge::quality::Evaluation;
use crate::machine;
use crate::options::{Amount, Options};
use crate::report::{self, ModelReport, Report};
use crate::store::{self, Target};

impl Maker<'_> {
    /// What was done, but for what it cost.
    pub(super) fn report(
        &self,
        budget: &Budget,
        probes: &Probes,
        original: Original,
        products: &[Product],
        chosen: usize,
    ) -> Report {
        let found = &self.loaded.analysis.measured.found;
        let models: Vec<ModelReport> =
            products.iter().map(|p| model_report(found, budget, p, self.reports())).collect();
        let mut warnings = self.warnings(products);
        if let (Some(Evaluation { data, .. }), Some(judgement)) = (&self.evaluation, &original.judgement) {
            warnings.extend(data.notes.iter().filter(|note| !self.loaded.calibration.notes.contains(note)).cloned());
            warnings.extend(judgement.unused_labels(data));
        }
        warnings.extend(budget.forecast(found, &products[chosen].outcome.plan, &self.setting));
        let output = |compared: &Compared| report::Output {
            name: probes.model.graph.name(compared.output).into(),
            kind: compared.kind.to_string(),
            why: compared.why.clone(),
        };
        Report {
            schema: 2,
            version: env!("CARGO_PKG_VERSION").into(),
            command: self.options.command.clone(),
            time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            machine: machine::name(),
            input: self.input(),
            vocabulary: self.trimmed.map(|trimmed| trimmed.trimming.clone()),
            model: models[chosen].clone(),
            sweep: if models.len() > 1 { models } else { Vec::new() },
            settings: self.settings(),
            method: budget.plan.is_none().then(|| self.options.method.decided(found.sublayers.len())),
            runtime: self.runtime(),
            calibration: self.calibration(),
            objective: probes.objective.outputs.iter().map(output).collect(),
            original: report::Original {
                setting: original.timing.as_ref().map(|_| self.setting.clone()),
                latency: original.timing,
                judged_on: original.judgement.as_ref().and(self.evaluation.as_ref()).map(|e| self.judged_on(e)),
                quality: original.judgement,
            },
            declined: found.declined.iter().map(report::DeclinedReport::from).collect(),
            warnings,
            cost: report::Cost::default(),
        }
    }

    /// The samples that models were judged by.
    fn judged_on(&self, evaluation: &Evaluation) -> report::JudgedOn {
        report::JudgedOn {
            source: evaluation.data.source.clone(),
            origin: evaluation.origin,
            classes: data::classes_beside(&self.source.model),
        }
    }

    /// Whether a report is written, or the card of a folder.
    fn reports(&self) -> bool {
        !self.options.files.reports.is_empty() || matches!(self.target, Some(Target::Folder(_)))
    }

    fn input(&self) -> report::File {
        if let Some(trimmed) = self.trimmed {
            return trimmed.original.clone();
        }
        let (path, model) = (&self.source.model, &self.loaded.analysis.written.model);
        report::File {
            path: path.display().to_string(),
            bytes: store::size_with_data(path, model),
            parameters: parameters(model),
            sha256: self.reports().then(|| store::sha256(path).ok()).flatten(),
        }
    }

    fn runtime(&self) -> report::RuntimeInfo {
        let runtime = self.world.runtime;
        report::RuntimeInfo {
            library: runtime.library().display().to_string(),
            provider: runtime.provider().to_string(),
            threads: runtime.threads(),
        }
    }

    fn calibration(&self) -> report::CalibrationInfo {
        let calibration = &self.loaded.calibration;
        let seq_len = self.options.data.calibration.seq_len;
        report::CalibrationInfo {
            source: calibration.source.clone(),
            samples: calibration.samples(),
            tokens: self.tokens(),
            mask_input: calibration.mask_input().map(str::to_string),
            sequence_length: calibration.mean_length().map(|mean| seq_len.map_or(mean, |s| s as f64)),
        }
    }

    /// Real tokens of the calibration set; all positions where nothing says which are real.
    fn tokens(&self) -> usize {
        let calibration = &self.loaded.calibration;
        match calibration.mask_input() {
            Some(_) => self.world.batches.iter().map(|b| b.tokens).sum(),
            None => (calibration.samples() as f64 * self.loaded.tokens_of_a_sample(None)).round() as usize,
        }
    }

    fn settings(&self) -> report::Settings {
        let Options { aim, data, files, .. } = self.options;
        let (mut compression, mut speedup, mut latency_ms) = (None, None, None);
        match &aim.amount {
            Amount::Compression(_) if files.plan.is_some() => {}
            Amount::Compression(shares) => compression = shares.last().copied(),
            Amount::Speedup(times) => speedup = Some(*times),
            Amount::Latency(seconds) => latency_ms = Some(seconds * 1e3),
        }
        let batch_size = data.mini_batch(&self.kinds);
        let (align, seed) = (aim.alignment.0, data.calibration.seed);
        let max_drop = aim.max_drop;
        report::Settings { compression, of: aim.of, speedup, latency_ms, max_drop, batch_size, align, seed }
    }

    /// What the user should know, but for what the table of times says.
    fn warnings(&self, products: &[Product]) -> Vec<String> {
        let calibration = &self.loaded.calibration;
        let mut warnings = Vec::new();
        if !calibration.is_task_data {
            warnings.push(format!(
                "units were measured on {}; data of the task serve better (--calibration FILE)",
                calibration.source
            ));
        }
        if self.options.decides() && self.options.data.evaluation.is_empty() {
            let reason = "results were judged by samples of the calibration set that were set aside";
            warnings.push(format!("{reason}; labelled data of the task serve better (--eval FILE)"));
        }
        warnings.extend(self.trimmed.and_then(|trimmed| trimmed.trimming.warning()));
        warnings.extend(self.loaded.analysis.changes.iter().cloned());
        warnings.extend(self.loaded.calibration.notes.iter().cloned());
        let first_axes = signature::inputs(&self.loaded.analysis.written.model);
        let is_free = |i: &signature::Input| matches!(i.axes.iter().flatten().next(), Some(signature::Axis::Named(_)));
        if self.loaded.calibration.fixed_batch() == Some(1) && first_axes.iter().any(is_free) {
            let reason = "the model declares that it takes any number of samples, and runs on one at a time only";
            warnings.push(format!("{reason}; it was measured so"));
        }
        warnings.extend(products.iter().filter_map(|p| p.made.as_ref()?.verified.warning.clone()));
        warnings.extend(products.iter().filter_map(|p| p.warning.clone()));
        warnings.extend(products.iter().filter_map(|p| p.timing.as_ref()?.doubt()));
        warnings.dedup();
        warnings
    }
}

fn model_report(found: &Discovery, budget: &Budget, product: &Product, hashes: bool) -> ModelReport {
    let outcome = &product.outcome;
    let rows = outcome.plan.each(found).zip(outcome.repairs.iter().zip(outcome.scores.iter().zip(&outcome.details)));
    let labels = report::names::short(found.sublayers.iter().map(|s| (s.name.as_str(), s.kind)));
    let sublayers =
        rows.zip(labels).map(|(((sublayer, decision), (repair, (scores, details))), label)| report::SublayerReport {
            name: sublayer.name.clone(),
            label,
            unit: report::unit_name(sublayer.kind),
            units: sublayer.units.len(),
            kept: (0..sublayer.units.len()).filter(|&u| decision.keep[u]).collect(),
            flops: sublayer.flops(),
            flops_kept: decision.flops(sublayer),
            error_untuned: repair.untuned,
            error_tuned: repair.tuned,
            tuned: repair.tuned.is_some(),
            scores: scores.iter().map(|&s| s as f32).collect(),
            details: details.clone(),
        });
    ModelReport {
        compression: product.compression,
        output: product.made.as_ref().map(|made| report::File {
            path: made.path().display().to_string(),
            bytes: made.bytes(),
            parameters: made.parameters,
            sha256: if hashes { made.staged.sha256() } else { None },
        }),
        flops: flops(found, budget, product, &outcome.plan),
        block_parameters: report::BlockParameters {
            prunable: Costs::Parameters.all(&found.sublayers),
            kept: outcome.plan.each(found).map(|(s, d)| d.parameters(s)).sum(),
        },
        sublayers: sublayers.collect(),
        verify: product.made.as_ref().map(|m| report::Verification { difference: m.verified.difference }),
        distillation: product.distillation.clone(),
        sparsification: product.sparsified.clone(),
        quantisation: product.quantised.clone(),
        latency: product.timing.clone(),
        quality: product.judgement.clone(),
    }
}

fn flops(found: &Discovery, budget: &Budget, product: &Product, plan: &Plan) -> report::Flops {
    let prunable: f64 = found.sublayers.iter().map(Sublayer::flops).sum();
    let kept = plan.each(found).map(|(s, d)| d.flops(s)).sum();
    let is_of_flops = matches!(budget.costs, Costs::Flops);
    let share = product.compression.filter(|_| budget.plan.is_none() && is_of_flops);
    report::Flops { prunable, budget: share.map(|s| prunable * (1.0 - s)), kept }
}
