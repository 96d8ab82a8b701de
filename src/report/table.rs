//! The table shown at the end of a run.

use std::fmt::Write as _;

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};

use super::Report;
use crate::judge::latency::Timing;
use crate::judge::quality::Judgement;

impl Report {
    /// The table shown at the end of a run.
    pub fn table(&self) -> String {
        let mut text = self.sublayer_table();
        if !self.sweep.is_empty() {
            text = format!("{text}{}\n", self.sweep_table());
        }
        let mut line = |label: &str, value: String| {
            let _ = writeln!(text, "{label:<12} {value}");
        };
        if let Some(trimming) = &self.vocabulary {
            line("vocabulary", trimming.to_string());
        }
        let flops = &self.model.flops;
        line("FLOPs", format!("{} of the prunable part", change(flops.prunable, flops.kept)));
        let blocks = &self.model.block_parameters;
        line("parameters", format!("{} of the prunable part", change(blocks.prunable, blocks.kept)));
        if let Some(new) = &self.model.output {
            line("", format!("{} of all", change(self.input.parameters as f64, new.parameters as f64)));
            let share = percent(new.bytes as f64, self.input.bytes as f64);
            line("file", format!("{} -> {} bytes ({share})", self.input.bytes, new.bytes));
            line("written", new.path.clone());
        }
        if let (Some(setting), Some(old), Some(new)) =
            (&self.original.setting, &self.original.latency, &self.model.latency)
        {
            let (old, times) = (old.median, new.speedup);
            line("latency", format!("{old:.3} -> {:.3} ms, {times:.2} times as fast ({setting})", new.median));
        }
        if let (Some(old), Some(new)) = (&self.original.quality, &self.model.quality) {
            line("quality", quality(old, new));
        }
        if let Some(distillation) = &self.model.distillation {
            line("distilled", distillation.to_string());
        }
        if let Some(sparsification) = &self.model.sparsification {
            line("sparse", sparsification.to_string());
            line("zeros", sparsification.advice().into());
        }
        if let Some(quantisation) = &self.model.quantisation {
            line("quantised", quantisation.to_string());
        }
        if let Some(verify) = &self.model.verify {
            let differ =
                |difference| format!("outputs differ from the masked original by {difference:.1e} of the largest");
            line("verified", verify.difference.map_or("nothing that could be compared".into(), differ));
        }
        let stages = self.cost.stages.iter().filter(|s| s.seconds >= SHOWN);
        let stages: Vec<_> = stages.map(|s| format!("{} {:.1} s", s.name, s.seconds)).collect();
        line("time", stages.join(", "));
        let cost = &self.cost;
        let passes = cost.forward.zip(cost.forward_equivalents);
        let passes = passes.map_or(String::new(), |(f, n)| format!(", {n:.1} forward-equivalents of {f:.2} s"));
        let memory = cost.peak_memory.map_or(String::new(), |n| format!(", {} of memory at most", ByteSize(n)));
        line("cost", format!("{:.1} s{passes}{memory}", cost.total));
        text
    }

    /// One row for every model of a sweep.
    fn sweep_table(&self) -> Table {
        let measure = self.model.quality.as_ref().map_or("", |q| q.main().0);
        let mut table = plain(&["compression", "FLOPs", "bytes", "ms", "speed-up", measure, "file"], &[6]);
        let first = self.original.quality.as_ref();
        table.add_row(row(None, 1.0, self.input.bytes, self.original.latency.as_ref(), first, "(the original)"));
        for model in &self.sweep {
            let kept = 1.0 - model.flops.removed();
            let (bytes, path) = model.output.as_ref().map_or((0, ""), |f| (f.bytes, f.path.as_str()));
            table.add_row(row(model.compression, kept, bytes, model.latency.as_ref(), model.quality.as_ref(), path));
        }
        table
    }

    fn sublayer_table(&self) -> String {
        let mut table = plain(&["", "sublayer", "kept", "of", "error untuned", "tuned"], &[1]);
        for (i, s) in self.model.sublayers.iter().enumerate() {
            let error = |e: Option<f64>| e.map_or("-".into(), |e| format!("{e:.4}"));
            let tuned = if s.tuned { error(s.error_tuned) } else { "-".into() };
            let units = format!("{} {}s", s.units, s.unit);
            table.add_row([
                (i + 1).to_string(),
                s.name.clone(),
                s.kept.len().to_string(),
                units,
                error(s.error_untuned),
                tuned,
            ]);
        }
        format!("{table}\n")
    }
}

fn row(
    compression: Option<f64>,
    flops: f64,
    bytes: u64,
    latency: Option<&Timing>,
    quality: Option<&Judgement>,
    path: &str,
) -> [String; 7] {
    [
        compression.map_or(String::new(), |c| c.to_string()),
        percent(flops, 1.0),
        bytes.to_string(),
        latency.map_or(String::new(), |l| format!("{:.3}", l.median)),
        latency.map_or(String::new(), |l| format!("{:.2}", l.speedup)),
        quality
            .filter(|q| q.fidelity.is_some() || !q.scores.is_empty())
            .map_or(String::new(), |q| format!("{:.4}", q.main().1)),
        path.to_string(),
    ]
}

/// Scores and nearness to the original, in words.
fn quality(old: &Judgement, new: &Judgement) -> String {
    if !new.is_known() {
        return "nothing that the models give could be compared".into();
    }
    let scores = old.scores.iter().zip(&new.scores);
    let mut parts: Vec<String> =
        scores.map(|(old, new)| format!("{} {:.4} -> {:.4}", old.name, old.value, new.value)).collect();
    if let Some(fidelity) = &new.fidelity {
        let (name, value) = fidelity.main();
        parts.push(format!("{name} with the original {value:.4}"));
    }
    format!("{} ({} samples)", parts.join(", "), new.samples)
}

/// A table without lines; all columns but those `to_the_left` are aligned to the right.
pub(crate) fn plain(headers: &[&str], to_the_left: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headers);
    for (_, column) in table.column_iter_mut().enumerate().filter(|(i, _)| !to_the_left.contains(i)) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Before and after, with the share that is left.
fn change(old: f64, new: f64) -> String {
    format!("{} -> {} ({})", count(old), count(new), percent(new, old))
}

/// Stages that take fewer seconds are not listed.
const SHOWN: f64 = 0.05;

/// A share in percent.
pub(crate) fn percent(new: f64, old: f64) -> String {
    if old == 0.0 { "-".into() } else { format!("{:.1} %", 100.0 * new / old) }
}

/// A number with a unit of thousands.
pub(crate) fn count(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.0}"),
    }
}
