//! The report as one page that needs nothing else: no script, no font, no picture from elsewhere.

use bytesize::ByteSize;
use kprune_passes::methods::Detail;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::table::{count, in_words, main, percent};
use super::{Distillation, ModelReport, Report, SublayerReport, charts};
use crate::escape::printable;

const STYLE: &str = include_str!("style.css");

impl Report {
    /// The page; of several models it shows the one where the curve bends.
    pub(super) fn page(&self) -> String {
        self.at_knee().page_of_one()
    }

    fn page_of_one(&self) -> String {
        let name = self.input.path.rsplit(['/', '\\']).next().unwrap_or("model");
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (name) " pruned" }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    main {
                        header {
                            h1 { (name) ", pruned" }
                            p { (self.summary()) }
                        }
                        @for warning in &self.warnings { p.warning { (warning) } }
                        (self.tiles())
                        (self.next_section())
                        (self.sweep_section())
                        (self.changed_section())
                        @if let Some(shown) = self.model.compression.filter(|_| !self.sweep.is_empty()) {
                            p.note.about { "What follows, and the numbers above, are about the model of compression " (shown) "." }
                        }
                        (kept_section(&self.model))
                        (heads_section(&self.model))
                        (neurons_section(&self.model))
                        (details_section(&self.model))
                        (errors_section(&self.model))
                        (self.sparsity_section())
                        (self.cost_section())
                        (self.settings_section())
                        (self.declined_section())
                    }
                }
            }
        };
        printable(&page.into_string()).into_owned()
    }

    fn summary(&self) -> String {
        let files = self.model.output.as_ref().map_or("nothing written".into(), |o| o.path.clone());
        format!("{} → {files} · onnx-kprune {}", self.input.path, self.version)
    }

    fn tiles(&self) -> Markup {
        let ModelReport { flops, output, latency, quality, distillation, sparsification, quantisation, .. } =
            &self.model;
        html! {
            div.tiles {
                @if let (Some(new), Some(old), Some(on)) = (quality, &self.original.quality, &self.original.judged_on) {
                    @let name = new.main().0;
                    @let before = old.scores.first().map_or("with the original".into(), |s| format!("from {}", in_words(s.name, s.value, None)));
                    (tile(&main(new), &format!("{name}, {before}, {}", on.describe(new.samples))))
                    @if let Some((name, value, error)) = new.fidelity.as_ref().and_then(|f| f.shown().into_iter().find(|s| s.0 != name)) {
                        (tile(&in_words(name, value, error), &format!("{name} from the original")))
                    }
                }
                (tile(&percent(flops.removed(), 1.0), "of the prunable FLOPs removed"))
                @if let Some(new) = output {
                    (tile(&ByteSize(new.bytes).to_string(), &format!("file, from {}", ByteSize(self.input.bytes))))
                    (tile(&count(new.parameters as f64), &format!("parameters, from {}", count(self.input.parameters as f64))))
                }
                @if let (Some(new), Some(old), Some(setting)) = (latency, &self.original.latency, &self.original.setting) {
                    @let [low, high] = new.interval;
                    (tile(&format!("{:.2} ×", new.speedup), &format!("as fast ({low:.2} to {high:.2}): {:.2} ms, from {:.2} ms ({setting})", new.median, old.median)))
                }
                @if let Some(Distillation { before, tried, kept, samples, .. }) = distillation {
                    @let after = kept.and_then(|place| tried.get(place)).map_or(*before, |t| t.loss);
                    (tile(&format!("{after:.4}"), &format!("loss after distillation, from {before:.4} ({samples} samples set aside)")))
                }
                @if let Some(sparse) = sparsification {
                    (tile(&percent(sparse.sparsity, 1.0), &format!("of the weights of blocks are zero ({})", sparse.settings.pattern)))
                }
                @if let Some(quantisation) = quantisation {
                    (tile(&quantisation.bits.to_string(), &format!("weights of {} matrices, moved by {}", quantisation.matrices, percent(quantisation.error, 1.0))))
                }
            }
        }
    }

    fn sparsity_section(&self) -> Markup {
        let Some(sparse) = &self.model.sparsification else { return html! {} };
        let error = |error: Option<f64>| error.map_or(String::new(), |e| format!("{e:.4}"));
        html! {
            section {
                h2 { "Zeros" }
                p.note { (sparse.advice()) "." }
                div.scroll { table {
                    tr { th { "block" } th { "product" } th { "weights" } th { "zero" } th { "of rows" } th { "error, all rows alike" } th { "error" } }
                    @for (i, block) in sparse.blocks.iter().enumerate() {
                        @for (j, matrix) in block.matrices.iter().enumerate() {
                            tr {
                                td { @if j == 0 { (i + 1) } }
                                td { (matrix.place) }
                                td { (format!("{} × {}", matrix.rows, matrix.inputs)) }
                                td { (percent(matrix.sparsity, 1.0)) }
                                td { (format!("{} to {}", percent(matrix.of_rows[0], 1.0), percent(matrix.of_rows[1], 1.0))) }
                                td { @if j == 0 { (error(block.error_uniform)) } }
                                td { @if j == 0 { (error(block.error)) } }
                            }
                        }
                    }
                } }
            }
        }
    }

    fn cost_section(&self) -> Markup {
        let cost = &self.cost;
        let longest = cost.stages.iter().map(|s| s.seconds).fold(f64::MIN_POSITIVE, f64::max);
        html! {
            section {
                h2 { "What the run cost" }
                p.note {
                    (format!("{:.1} s", cost.total))
                    @if let Some((forward, passes)) = cost.forward.zip(cost.forward_equivalents) {
                        (format!(": {passes:.1} passes of the original over the calibration set, of {forward:.2} s each"))
                    }
                    @if let Some(memory) = cost.peak_memory { ", " (ByteSize(memory)) " of memory at most" }
                    "."
                    @if let Some(verify) = &self.model.verify { " Self-check " (verify) "." }
                }
                div.rows {
                    @for stage in cost.stages.iter().filter(|s| s.seconds >= 0.005 * cost.total) {
                        span.label { (stage.name) }
                        div.bar.head { i style=(format!("width:{:.1}%", 100.0 * stage.seconds / longest)) {} }
                        span.value { (format!("{:.1} s", stage.seconds)) }
                    }
                }
            }
        }
    }

    fn settings_section(&self) -> Markup {
        let shown =
            [serde_json::to_value(&self.method), serde_json::to_value(&self.settings)].map(Result::unwrap_or_default);
        let named = |(name, value): (&String, &serde_json::Value)| {
            let name = if name == "name" { "method".to_string() } else { name.replace('_', " ") };
            (name, value.as_str().map_or_else(|| value.to_string(), str::to_string))
        };
        let settings = shown.iter().filter_map(|s| s.as_object()).flatten().filter(|(_, v)| !v.is_null()).map(named);
        let calibration = &self.calibration;
        let objective: Vec<_> = self.objective.iter().map(|o| format!("{} ({})", o.name, o.kind)).collect();
        html! {
            section {
                h2 { "Settings" }
                dl {
                    dt { "calibration" }
                    dd { (calibration.source) ", " (calibration.samples) " samples, " (calibration.tokens) " real tokens" }
                    dt { "outputs compared" } dd { (objective.join(", ")) }
                    dt { "ONNX Runtime" }
                    dd { code { (self.runtime.library) } " " (self.runtime.provider) ", " (self.runtime.threads) " threads" }
                    @for (name, value) in settings {
                        dt { (name) } dd { (value) }
                    }
                    @if !self.command.is_empty() {
                        dt { "called as" } dd { code { "onnx-kprune " (self.command.join(" ")) } }
                    }
                    dt { "made" }
                    dd { (self.date()) " by onnx-kprune " (self.version) " on " (self.machine) }
                    @for (what, file) in [("read", Some(&self.input)), ("written", self.model.output.as_ref())] {
                        @if let Some(hash) = file.and_then(|file| file.sha256.as_ref()) {
                            dt { (what) ", SHA-256" } dd { code { (hash) } }
                        }
                    }
                }
            }
        }
    }

    fn declined_section(&self) -> Markup {
        if self.declined.is_empty() {
            return html! {};
        }
        html! {
            section {
                h2 { "What was not pruned, and why" }
                ul {
                    @for declined in &self.declined {
                        li { (declined) }
                    }
                }
            }
        }
    }
}

fn tile(value: &str, label: &str) -> Markup {
    html! { div.tile { b { (value) } span { (label) } } }
}

/// Sublayers of a model with what people call them.
fn numbered(model: &ModelReport) -> Vec<(String, &SublayerReport)> {
    model.sublayers.iter().map(|s| (s.label.clone(), s)).collect()
}

fn legend() -> Markup {
    html! {
        div.legend {
            span.head { i.swatch {} "heads" }
            span.neuron { i.swatch {} "neurons" }
        }
    }
}

fn kept_section(model: &ModelReport) -> Markup {
    html! {
        section {
            h2 { "What stays" }
            p.note { "Units kept in every sublayer, from the input to the output of the model." }
            (legend())
            div.rows {
                @for (label, s) in numbered(model) {
                    span.label title=(s.name) { (label) }
                    div class=(format!("bar {}", s.unit)) {
                        i style=(format!("width:{:.1}%", 100.0 * s.kept.len() as f64 / s.units.max(1) as f64)) {}
                    }
                    span.value { (s.kept.len()) " of " (s.units) }
                }
            }
        }
    }
}

fn heads_section(model: &ModelReport) -> Markup {
    let with_scores = |s: &SublayerReport| s.unit == "head" && !s.scores.is_empty();
    let rows: Vec<_> = numbered(model).into_iter().filter(|(_, s)| with_scores(s)).collect();
    if rows.is_empty() {
        return html! {};
    }
    html! {
        section {
            h2 { "Importance of heads" }
            p.note { "Scores, on a logarithmic scale within each sublayer: the stronger the colour, the more a head is worth for what it costs. Dashed heads were removed." }
            div.heads {
                @for (label, s) in rows {
                    span.label title=(s.name) { (label) }
                    div.cells {
                        @for (unit, share) in charts::shares(&s.scores).into_iter().enumerate() {
                            @let stays = s.kept.contains(&unit);
                            div class=(if stays { "cell stays" } else { "cell goes" })
                                style=(format!("--share:{:.0}%", 20.0 + 80.0 * share))
                                title=(format!("head {unit}: {:.3e}, {}", s.scores[unit], if stays { "stays" } else { "removed" })) {}
                        }
                    }
                }
            }
        }
    }
}

fn neurons_section(model: &ModelReport) -> Markup {
    let with_scores = |s: &SublayerReport| s.unit == "neuron" && !s.scores.is_empty();
    let panels: Vec<_> = numbered(model).into_iter().filter(|(_, s)| with_scores(s)).collect();
    if panels.is_empty() {
        return html! {};
    }
    html! {
        section {
            h2 { "Importance of neurons" }
            p.note { "The neurons of every sublayer, sorted by score, on a logarithmic scale. The filled part stays." }
            div.multiples {
                @for (label, s) in panels {
                    figure title=(s.name) {
                        (charts::sorted_scores(&label, &s.scores, s.kept.len()))
                        figcaption { (label) ", " (s.kept.len()) " of " (s.units) }
                    }
                }
            }
        }
    }
}

/// What the method says of every sublayer besides.
fn details_section(model: &ModelReport) -> Markup {
    let rows: Vec<_> = numbered(model).into_iter().filter(|(_, s)| !s.details.is_empty()).collect();
    if rows.is_empty() {
        return html! {};
    }
    html! {
        section {
            h2 { "What the method did" }
            p.note { "Of many numbers, the smallest, the middle one and the largest." }
            div.rows {
                @for (label, s) in rows {
                    span.label title=(s.name) { (label) }
                    span { (s.details.iter().map(|(name, detail)| format!("{name} {}", of_detail(detail))).collect::<Vec<_>>().join(", ")) }
                    span.value {}
                }
            }
        }
    }
}

fn of_detail(detail: &Detail) -> String {
    match detail {
        Detail::Count(count) => count.to_string(),
        Detail::Text(text) => text.clone(),
        Detail::Numbers(numbers) => {
            let mut sorted = numbers.clone();
            sorted.sort_by(f64::total_cmp);
            match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
                (Some(least), Some(middle), Some(most)) => format!("{least:.2}, {middle:.2}, {most:.2}"),
                _ => "none".into(),
            }
        }
    }
}

fn errors_section(model: &ModelReport) -> Markup {
    let rows: Vec<_> = numbered(model).into_iter().filter_map(|(l, s)| Some((l, s, s.error_untuned?))).collect();
    let largest = rows.iter().map(|r| r.2).fold(0.0, f64::max);
    if largest <= 0.0 {
        return html! {};
    }
    html! {
        section {
            h2 { "Reconstruction error before and after tuning" }
            p.note { "How far each projection's output is from what it should give, relative to that, on samples it was not fitted to: the ring with the original rows, the disc with the tuned ones." }
            div.rows {
                @for (label, s, before) in rows {
                    @let after = s.error_tuned.unwrap_or(before);
                    span.label title=(s.name) { (label) }
                    div class=(format!("track {}", s.unit)) {
                        @let (low, apart) = (after.min(before), (before - after).abs());
                        div.span style=(format!("left:{:.1}%;width:{:.1}%", 100.0 * low / largest, 100.0 * apart / largest)) {}
                        div.dot.before style=(format!("left:{:.1}%", 100.0 * before / largest)) {}
                        div.dot style=(format!("left:{:.1}%", 100.0 * after / largest)) {}
                    }
                    span.value { (format!("{before:.3} → {after:.3}")) }
                }
            }
        }
    }
}
