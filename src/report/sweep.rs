//! The sections of the page about quality: several models side by side, answers that changed, and what to do next.

use bytesize::ByteSize;
use maud::{Markup, html};

use super::charts::{self, Point};
use super::table::{in_words, main, percent, quoted};
use super::{ModelReport, Report};
use crate::judge::quality::{Judgement, Origin};

impl Report {
    /// Of several models that were judged, the one where quality begins to fall faster than FLOPs: it is farthest from the line
    /// between the first and the last (the rule of Satopaa et al. 2011, "Finding a Kneedle in a Haystack"). `None` where
    /// --max-drop has chosen one.
    fn knee(&self) -> Option<usize> {
        let is_chosen = self.sweep.iter().any(|m| m.output.is_some()) && self.sweep.iter().all(|m| m.quality.is_some());
        if !is_chosen || self.sweep.len() < 3 || self.settings.max_drop.is_some() {
            return None;
        }
        let points: Vec<[f64; 2]> =
            self.sweep.iter().filter_map(|m| Some([m.flops.removed(), m.quality.as_ref()?.drop?.value])).collect();
        let (first, last) = (*points.first()?, *points.last()?);
        let [dx, dy] = [last[0] - first[0], last[1] - first[1]];
        let below = |p: &[f64; 2]| {
            (p[0] - first[0]) / dx.max(f64::MIN_POSITIVE) - (p[1] - first[1]) / dy.abs().max(f64::MIN_POSITIVE)
        };
        (points.len() == self.sweep.len() && dy > 0.0)
            .then(|| (0..points.len()).max_by(|&a, &b| below(&points[a]).total_cmp(&below(&points[b]))))?
    }

    /// The report with the model of the knee for the one that people are shown.
    pub(super) fn at_knee(&self) -> Self {
        let model = self.knee().and_then(|knee| self.sweep.get(knee)).unwrap_or(&self.model).clone();
        Self { model, ..self.clone() }
    }

    /// Compression against quality, speed against quality, and the numbers.
    pub(super) fn sweep_section(&self) -> Markup {
        if self.sweep.is_empty() {
            return html! {};
        }
        let measure = self.model.quality.as_ref().map_or("", |q| q.main().0);
        let original = self.original.quality.as_ref().filter(|q| !q.scores.is_empty());
        let first = original.map_or(1.0, |q| q.main().1);
        let points = |x: &dyn Fn(&ModelReport) -> Option<f64>, start: f64, name: &dyn Fn(f64) -> String| {
            let point = |x: f64, quality: &Judgement| Point {
                x,
                y: quality.main().1,
                error: quality.main_error(),
                title: format!("{}: {measure} {}", name(x), main(quality)),
            };
            let own = self.sweep.iter().filter_map(|m| Some(point(x(m)?, m.quality.as_ref()?)));
            let start = Point { x: start, y: first, error: None, title: format!("the original: {first:.4}") };
            std::iter::once(start).chain(own).collect::<Vec<_>>()
        };
        let share = |x: f64| format!("{:.0} %", 100.0 * x);
        let times = |x: f64| format!("{x:.2} \u{d7}");
        let removed = points(&|m| Some(m.flops.removed()), 0.0, &share);
        let faster = points(&|m| Some(m.latency.as_ref()?.speedup), 1.0, &times);
        let chosen = self.model.compression;
        html! {
            section {
                h2 { "Compression against quality" }
                p.note { "One measurement, several models. From left to right the share of the prunable FLOPs removed, upwards " (measure) ", with twice its standard error." }
                (charts::curve(removed, &format!("{measure} by the share of FLOPs removed"), share))
                @if faster.len() > 1 {
                    h2 { "Speed against quality" }
                    p.note { "From left to right how many times as fast as the original, upwards " (measure) "." }
                    (charts::curve(faster, &format!("{measure} by speed-up"), times))
                }
                div.scroll { table {
                    tr { th { "compression" } th { (measure) } th { "speed-up" } th { "latency" } th { "FLOPs left" } th { "file" } }
                    tr {
                        td { "original" }
                        td { @if let Some(quality) = original { (main(quality)) } }
                        td { "1.00" }
                        td { @if let Some(l) = &self.original.latency { (format!("{:.2} ms", l.median)) } }
                        td { "100 %" } td { (ByteSize(self.input.bytes)) }
                    }
                    @for model in &self.sweep {
                        tr.chosen[model.compression == chosen] {
                            td { (model.compression.map_or(String::new(), |c| c.to_string())) }
                            td { @if let Some(q) = &model.quality { (main(q)) } }
                            td { @if let Some(l) = &model.latency { (format!("{:.2}", l.speedup)) } }
                            td { @if let Some(l) = &model.latency { (format!("{:.2} ms", l.median)) } }
                            td { (percent(1.0 - model.flops.removed(), 1.0)) }
                            td { @if let Some(file) = &model.output { (ByteSize(file.bytes)) } }
                        }
                    }
                } }
            }
        }
    }

    /// A few samples of which the answer changed.
    pub(super) fn changed_section(&self) -> Markup {
        let Some(quality) = self.model.quality.as_ref().filter(|q| !q.changed.is_empty()) else { return html! {} };
        let has_right = quality.changed.iter().any(|c| c.right.is_some());
        let has_titles = quality.changed.iter().any(|c| c.title.is_some());
        let class = |number: i64| {
            let named = self.original.judged_on.as_ref().and_then(|on| on.classes.get(&number));
            named.cloned().unwrap_or_else(|| number.to_string())
        };
        html! {
            section {
                h2 { "Answers that changed" }
                p.note { "The first samples for which the pruned model prefers another class; of " (quality.samples) " samples the answers of " (in_words("agreement", 1.0 - quality.main_agreement(), None)) " changed." }
                div.scroll { table {
                    tr { th { "sample" } th { "before" } th { "after" } @if has_right { th { "right" } } @if has_titles { th.text {} } }
                    @for changed in &quality.changed {
                        tr {
                            td { (changed.sample) }
                            td { (class(changed.before)) } td { (class(changed.after)) }
                            @if has_right { td { (changed.right.map_or(String::new(), class)) } }
                            @if has_titles { td.text { (changed.title.as_deref().unwrap_or_default()) } }
                        }
                    }
                } }
            }
        }
    }

    /// What may be done with the result.
    pub(super) fn next_section(&self) -> Markup {
        let Some(output) = &self.model.output else { return html! {} };
        let [input, output] = [&self.input.path, &output.path].map(|path| quoted(path));
        let is_given = self.original.judged_on.as_ref().is_some_and(|on| on.origin == Origin::Given);
        let is_distilled = self.model.distillation.is_some();
        let is_quantised = self.model.quantisation.is_some();
        html! {
            section {
                h2 { "What to do next" }
                ul {
                    @if !is_given {
                        li { "Judge it on test data: " code { "onnx-kprune compare " (input) " " (output) " --data FILE" } }
                    }
                    @if !is_distilled {
                        li { "Let it learn from the original, guarded: the same call with " code { "--distil auto" } }
                    }
                    @if !is_quantised {
                        li { "Make it smaller and faster once more: " code { "--quantise int8" } }
                    }
                    li { "See what other compressions give: " code { "--sweep 0.2,0.4,0.6,0.8" } }
                }
            }
        }
    }
}
