//! The table shown at the end of a run.

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};

use super::Report;
use crate::judge::latency::Timing;
use crate::judge::quality::{Drop, Fidelity, Judgement, Origin, PERPLEXITY, Score, fixed};

impl Report {
    /// The table shown at the end of a run; of several models, all side by side, and one of them more closely.
    pub fn table(&self) -> String {
        self.at_knee().table_of_one()
    }

    fn table_of_one(&self) -> String {
        let mut text = self.sublayer_table();
        if !self.sweep.is_empty() {
            text = format!("{text}{}\n", self.sweep_table());
        }
        let mut line = |label: &str, value: String| {
            text.push_str(&labelled(label, &value));
        };
        if let Some(shown) = self.model.compression.filter(|_| !self.sweep.is_empty()) {
            line("shown", format!("compression {shown}, as sublayers above and all below"));
        }
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
            line("file", format!("{} -> {} ({share})", ByteSize(self.input.bytes), ByteSize(new.bytes)));
        }
        if let (Some(setting), Some(old), Some(new)) =
            (&self.original.setting, &self.original.latency, &self.model.latency)
        {
            line("latency", format!("{:.3} -> {:.3} ms, {}", old.median, new.median, new.faster()));
            line("", setting.to_string());
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
        let stages = self.cost.stages.iter().filter(|s| s.seconds >= SHOWN);
        let stages: Vec<_> = stages.map(|s| format!("{} {:.1} s", s.name, s.seconds)).collect();
        line("time", stages.join(", "));
        let cost = &self.cost;
        let passes = cost.forward.zip(cost.forward_equivalents);
        let passes = passes
            .map_or(String::new(), |(f, n)| format!(", {n:.1} times a pass of the model over the samples ({f:.2} s)"));
        let memory = cost.peak_memory.map_or(String::new(), |n| format!(", {} of memory at most", ByteSize(n)));
        line("cost", format!("{:.1} s{passes}{memory}", cost.total));
        if let Some(verify) = &self.model.verify {
            line("self-check", verify.to_string());
        }
        let models = if self.sweep.is_empty() { std::slice::from_ref(&self.model) } else { &self.sweep };
        let mut written: Vec<_> = models.iter().filter_map(|m| Some(m.output.as_ref()?.path.as_str())).collect();
        // Of those that --max-drop tried, one is written.
        written.dedup();
        if !written.is_empty() {
            line("written", written.join(", "));
        }
        for (label, value) in self.quality_lines() {
            line(label, value);
        }
        text
    }

    /// How good the model is and what that was seen on, line by line.
    fn quality_lines(&self) -> Vec<(&'static str, String)> {
        let (Some(old), Some(new), Some(on)) = (&self.original.quality, &self.model.quality, &self.original.judged_on)
        else {
            return Vec::new();
        };
        let lines = quality(old, new).into_iter().chain([on.describe(new.samples)]).enumerate();
        let mut lines: Vec<_> = lines.map(|(i, line)| (if i == 0 { "quality" } else { "" }, line)).collect();
        if let Some((allowed, drop)) = self.settings.max_drop.zip(new.drop) {
            let probability = percent(drop.sureness(allowed), 1.0);
            lines.push(("", format!("it falls by no more than {allowed} with a probability of {probability}")));
        }
        if let Some(output) = self.model.output.as_ref().filter(|_| on.origin != Origin::Given) {
            let command =
                format!("onnx-kprune compare {} {} --data FILE", quoted(&self.input.path), quoted(&output.path));
            lines.push(("next", format!("judge it on test data: {command}")));
        }
        lines
    }

    /// One row for every model of a sweep.
    fn sweep_table(&self) -> Table {
        let measure = self.model.quality.as_ref().map_or("", |q| q.main().0);
        let mut table = plain(&["compression", "FLOPs", "size", "ms", "speed-up", measure, "file"], &[6]);
        let first = self.original.quality.as_ref();
        table.add_row(row(None, 1.0, self.input.bytes, self.original.latency.as_ref(), first, "(original)"));
        for model in &self.sweep {
            let kept = 1.0 - model.flops.removed();
            let (bytes, path) = model.output.as_ref().map_or((0, ""), |f| (f.bytes, f.path.as_str()));
            let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
            table.add_row(row(model.compression, kept, bytes, model.latency.as_ref(), model.quality.as_ref(), name));
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
                s.label.clone(),
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
        ByteSize(bytes).to_string(),
        latency.map_or(String::new(), |l| format!("{:.3}", l.median)),
        latency.map_or(String::new(), |l| format!("{:.2}", l.speedup)),
        quality.filter(|q| q.fidelity.is_some() || !q.scores.is_empty()).map_or(String::new(), main),
        path.to_string(),
    ]
}

/// What tells most of a model, with its error.
pub(crate) fn main(judgement: &Judgement) -> String {
    let (name, value) = judgement.main();
    in_words(name, value, judgement.main_error())
}

/// A score in the unit that people know it in, with its error: shares in percent.
pub(crate) fn in_words(name: &str, value: f64, error: Option<f64>) -> String {
    let (unit, factor, digits) = match name {
        PERPLEXITY => ("", 1.0, 2),
        "accuracy" | "agreement" | "exact match" => (" %", 100.0, 2),
        _ => ("", 1.0, 4),
    };
    let shown = |number: f64| fixed(factor * number, digits);
    let error = error.map_or(String::new(), |error| format!(" \u{b1} {}", shown(error)));
    format!("{}{error}{unit}", shown(value))
}

/// Scores, and nearness to the original, in words: a line for each.
pub(super) fn quality(old: &Judgement, new: &Judgement) -> Vec<String> {
    if !new.is_known() {
        return vec!["nothing that the models give could be compared".into()];
    }
    let score = |(place, (old, own)): (usize, (&Score, &Score))| {
        let [before, after] = [old, own].map(|score| in_words(score.name, score.value, None));
        let drop =
            new.drop.filter(|_| place == 0).map_or(String::new(), |drop| format!(" ({})", change_of(old.name, &drop)));
        format!("{} {before} -> {after}{drop}", old.name)
    };
    let scores: Vec<String> = old.scores.iter().zip(&new.scores).enumerate().map(score).collect();
    let near = new.fidelity.iter().flat_map(Fidelity::shown);
    let near: Vec<String> =
        near.map(|(name, value, error)| format!("{name} {}", in_words(name, value, error))).collect();
    [scores, near].iter().filter(|parts| !parts.is_empty()).map(|parts| parts.join(", ")).collect()
}

/// A label and what belongs to it, in lines that a terminal has room for; a number and its unit stay together.
fn labelled(label: &str, value: &str) -> String {
    let mut lines = vec![String::new()];
    let mut words: Vec<String> = Vec::new();
    for word in value.split(' ') {
        match words.last_mut().filter(|last| last.ends_with(|c: char| c.is_ascii_digit())) {
            Some(number) => number.extend([" ", word]),
            None => words.push(word.to_string()),
        }
    }
    for word in words {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > WIDTH - INDENT {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&word);
        }
    }
    let line = |(i, line): (usize, &String)| {
        let label = if i == 0 { label } else { "" };
        format!("{label:<INDENT$}{line}\n")
    };
    lines.iter().enumerate().map(line).collect()
}

/// Columns of a terminal, and where values stand.
const WIDTH: usize = 80;
const INDENT: usize = 13;

/// A drop as a change, in points or in percent.
pub(crate) fn change_of(name: &str, drop: &Drop) -> String {
    let (unit, factor, digits) = match name {
        PERPLEXITY => (" %", -100.0, 2),
        "accuracy" | "exact match" => (" points", 100.0, 2),
        _ => ("", 1.0, 4),
    };
    let change = fixed(-factor * drop.value, digits);
    let sign = if change.starts_with('-') { "" } else { "+" };
    let error = drop.error.map_or(String::new(), |e| format!(" \u{b1} {}", fixed(factor.abs() * e, digits)));
    format!("{sign}{change}{error}{unit}")
}

/// A path as a shell takes it.
pub(super) fn quoted(path: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=:,@\\".contains(c);
    if path.chars().all(is_plain) { path.to_string() } else { format!("'{}'", path.replace('\'', "'\\''")) }
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

#[cfg(test)]
mod tests {
    #[test]
    fn long_values_are_wrapped() {
        let text = super::labelled("time", "measure 26.5 s, ".repeat(9).trim_end());
        assert!(text.lines().count() == 3 && text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(
            text.starts_with("time         measure") && text.lines().skip(1).all(|l| l.starts_with("             "))
        );
    }
}
