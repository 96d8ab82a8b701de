//! The card of a pruned folder: what was done to the model that it came from, for whoever finds it.

use std::fmt::Write as _;

use bytesize::ByteSize;

use super::table::{count, percent, quality, quoted};
use super::{ModelReport, Report};

/// What the card of a folder is called; a README of the original stays what it is.
pub(crate) const CARD: &str = "PRUNED.md";

impl Report {
    /// The cards of all models that were made, in their order.
    pub(crate) fn cards(&self) -> Vec<String> {
        match self.sweep.as_slice() {
            [] => vec![self.card(&self.model)],
            models => models.iter().map(|model| self.card(model)).collect(),
        }
    }

    fn card(&self, model: &ModelReport) -> String {
        let name = self.input.path.rsplit(['/', '\\']).next().unwrap_or("model.onnx");
        let mut text =
            format!("# {name}, pruned\n\nMade of another model by onnx-kprune {}, {}.\n\n", self.version, self.date());
        let mut row = |what: &str, value: String| {
            let _ = writeln!(text, "| {what} | {value} |");
        };
        row("", String::new());
        row("---", "---".into());
        row("FLOPs", format!("{} less in what could be pruned", percent(model.flops.removed(), 1.0)));
        if let Some(output) = &model.output {
            let [before, after] = [self.input.parameters, output.parameters].map(|n| count(n as f64));
            row("parameters", format!("{before} before, {after} now"));
            row("file", format!("{} before, {} now", ByteSize(self.input.bytes), ByteSize(output.bytes)));
        }
        if let Some(trimming) = &self.vocabulary {
            row("vocabulary", trimming.to_string());
        }
        if let (Some(old), Some(new), Some(on)) = (&self.original.quality, &model.quality, &self.original.judged_on) {
            quality(old, new).into_iter().for_each(|line| row("quality", line));
            row("judged", on.describe(new.samples));
        }
        if let Some(distillation) = &model.distillation {
            row("distilled", distillation.to_string());
        }
        if let Some(sparsification) = &model.sparsification {
            row("sparse", sparsification.to_string());
        }
        if let Some(quantisation) = &model.quantisation {
            row("quantised", quantisation.to_string());
        }
        row("calibrated", format!("on {} samples of {}", self.calibration.samples, self.calibration.source));
        if let Some(hash) = &self.input.sha256 {
            row("original", format!("SHA-256 {hash}"));
        }
        text.push_str("\nWhat stays of every sublayer:\n\n| | kept | of |\n|---|---|---|\n");
        for sublayer in &model.sublayers {
            let _ = writeln!(
                text,
                "| {} | {} | {} {}s |",
                sublayer.label,
                sublayer.kept.len(),
                sublayer.units,
                sublayer.unit
            );
        }
        if !self.command.is_empty() {
            let command: Vec<String> = self.command.iter().map(|argument| quoted(argument)).collect();
            let _ = write!(text, "\n    onnx-kprune {}\n", command.join(" "));
        }
        text
    }
}
