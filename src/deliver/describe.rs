//! What a run made, put in place, and what it did, as its report.

use std::path::Path;

use kprune_passes::discover::{Discovery, Sublayer};
use kprune_passes::plan::Plan;
use kprune_passes::probe::Probes;

use super::make::{Maker, Product, Products};
use crate::analysis::{Loaded, parameters};
use crate::budget::Budget;
use crate::error::Error;
use crate::judge::quality::Judgement;
use crate::options::{Amount, Options};
use crate::report::{self, ModelReport, Report};
use crate::store::{self, Publication};

impl Maker<'_> {
    /// Puts the models, the plan and the reports in place, all or none, and says what was done. `cost` is asked for
    /// what the run cost when all else is done.
    ///
    /// # Errors
    /// Where none of several is good enough, or a file cannot be written.
    pub(crate) fn deliver(
        &self,
        budget: &Budget,
        probes: &Probes,
        products: Products,
        cost: impl FnOnce() -> report::Cost,
    ) -> Result<Report, Error> {
        let Loaded { analysis, calibration } = self.loaded;
        let (found, runtime) = (&analysis.measured.found, self.world.runtime);
        let Products { original, models: products } = products;
        let chosen = self.chosen(&products, original.judgement.as_ref())?;
        let mut warnings = self.warnings();
        for product in &products {
            warnings.extend(product.made.as_ref().and_then(|m| m.verified.warning.clone()));
        }
        warnings.dedup();
        warnings.extend(budget.forecast(found, &products[chosen].outcome.plan, &self.setting));
        let mut publication = Publication::default();
        if let Some(path) = &self.options.files.save_plan {
            publication.add_content(path, &store::plan::content(found, &products[chosen].outcome.plan)?)?;
        }
        let reports: Vec<ModelReport> = products.iter().map(|p| model_report(found, budget, p)).collect();
        let writes_all = self.options.aim.max_drop.is_none();
        for (i, product) in products.into_iter().enumerate() {
            if let Some(made) = product.made.filter(|_| writes_all || i == chosen) {
                made.publish_with(&mut publication)?;
            }
        }
        let lengths =
            calibration.mean_length().map(|mean| self.options.data.calibration.seq_len.map_or(mean, |s| s as f64));
        let report = Report {
            schema: 2,
            version: env!("CARGO_PKG_VERSION").into(),
            input: self.file(&self.source.model),
            model: reports[chosen].clone(),
            sweep: if reports.len() > 1 { reports } else { Vec::new() },
            settings: self.settings(),
            method: budget.plan.is_none().then(|| self.options.method.decided(found.sublayers.len())),
            runtime: report::RuntimeInfo {
                library: runtime.library().display().to_string(),
                provider: runtime.provider().to_string(),
                threads: runtime.threads(),
            },
            calibration: report::CalibrationInfo {
                source: calibration.source.clone(),
                samples: calibration.samples(),
                tokens: self.world.batches.iter().map(|b| b.tokens).sum(),
                mask_input: calibration.mask_input().map(str::to_string),
                sequence_length: lengths,
            },
            objective: probes
                .objective
                .outputs
                .iter()
                .map(|&(v, kind)| report::Output { name: probes.model.graph.name(v).into(), kind: kind.to_string() })
                .collect(),
            original: report::Original {
                setting: original.timing.as_ref().map(|_| self.setting.clone()),
                latency: original.timing,
                quality: original.judgement,
            },
            declined: found.declined.iter().map(report::DeclinedReport::from).collect(),
            cost: cost(),
            warnings,
        };
        for path in &self.options.files.reports {
            publication.add_content(path, &report.content(path)?)?;
        }
        publication.commit(&self.ledger)?;
        Ok(report)
    }

    fn file(&self, path: &Path) -> report::File {
        let model = &self.loaded.analysis.written.model;
        report::File {
            path: path.display().to_string(),
            bytes: store::size_with_data(path, model),
            parameters: parameters(model),
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
        let (batch_size, align, seed) = (data.batch_size, aim.alignment.0, data.calibration.seed);
        report::Settings { compression, speedup, latency_ms, batch_size, align, seed }
    }

    fn warnings(&self) -> Vec<String> {
        let calibration = &self.loaded.calibration;
        let mut warnings = Vec::new();
        if !calibration.is_task_data {
            warnings.push(format!(
                "units were measured on {}; data of the task serve better (--calibration FILE)",
                calibration.source
            ));
        }
        if self.evaluation.is_some() && self.options.data.evaluation.is_empty() {
            let reason = "results were judged by samples of the calibration set that were set aside";
            warnings.push(format!("{reason}; labelled data of the task serve better (--eval FILE)"));
        }
        warnings
    }

    /// Which of several models it is: the smallest that is good enough, or else the last.
    fn chosen(&self, products: &[Product], original: Option<&Judgement>) -> Result<usize, Error> {
        let (Some(allowed), Some(original)) = (self.options.aim.max_drop, original) else {
            return Ok(products.len() - 1);
        };
        if products.iter().any(|p| p.judgement.as_ref().is_some_and(|j| !j.is_known())) {
            let help = "give labels that fit an output (--eval FILE), or say what it is with --output NAME:KIND";
            return Err(Error::Usage(format!(
                "--max-drop: the models give nothing that could be compared, so nobody knows how much they drop; {help}"
            )));
        }
        let drop = |p: &Product| p.judgement.as_ref().map_or(0.0, |j| j.drop_from(original));
        let size = |p: &Product| p.made.as_ref().map_or(0, |m| m.bytes());
        let good = (0..products.len()).filter(|&i| drop(&products[i]) <= allowed);
        good.min_by_key(|&i| size(&products[i])).ok_or_else(|| {
            let least = products.iter().map(|p| format!("{} by {:.4}", p.compression.unwrap_or(0.0), drop(p)));
            let (name, _) = products[0].judgement.as_ref().map_or(("fidelity", 0.0), Judgement::main);
            Error::Usage(format!(
                "no model is good enough: {name} falls by more than {allowed} (compression {}); \
                 allow more, or try smaller compressions with --sweep",
                least.collect::<Vec<_>>().join(", ")
            ))
        })
    }
}

fn model_report(found: &Discovery, budget: &Budget, product: &Product) -> ModelReport {
    let outcome = &product.outcome;
    let rows = outcome.plan.each(found).zip(outcome.repairs.iter().zip(&outcome.scores));
    let sublayers = rows.map(|((sublayer, decision), (repair, scores))| report::SublayerReport {
        name: sublayer.name.clone(),
        unit: report::unit_name(sublayer.kind),
        units: sublayer.units.len(),
        kept: (0..sublayer.units.len()).filter(|&u| decision.keep[u]).collect(),
        flops: sublayer.flops(),
        flops_kept: decision.flops(sublayer),
        error_untuned: repair.untuned,
        error_tuned: repair.tuned,
        tuned: repair.tuned.is_some(),
        scores: scores.iter().map(|&s| s as f32).collect(),
    });
    ModelReport {
        compression: product.compression,
        output: product.made.as_ref().map(|made| report::File {
            path: made.path().display().to_string(),
            bytes: made.bytes(),
            parameters: made.parameters,
        }),
        flops: flops(found, budget, product, &outcome.plan),
        sublayers: sublayers.collect(),
        verify: product.made.as_ref().map(|m| report::Verification { difference: m.verified.difference }),
        latency: product.timing.clone(),
        quality: product.judgement.clone(),
    }
}

fn flops(found: &Discovery, budget: &Budget, product: &Product, plan: &Plan) -> report::Flops {
    let prunable: f64 = found.sublayers.iter().map(Sublayer::flops).sum();
    let kept = plan.each(found).map(|(s, d)| d.flops(s)).sum();
    let share = product.compression.filter(|_| budget.plan.is_none());
    report::Flops { prunable, budget: share.map(|s| prunable * (1.0 - s)), kept }
}
