//! What can be pruned of a model, and what cannot and why.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use bytesize::ByteSize;
use comfy_table::Table;
use kprune_passes::calculus::TokenMask;
use kprune_passes::discover::{Sublayer, flops};
use kprune_passes::ir::ValueId;
use kprune_passes::kv_cache;
use kprune_passes::probe::Probes;
use kprune_passes::signature;
use serde::Serialize;

use crate::analysis::{Analysis, Opened, View, parameters};
use crate::clock::Clock;
use crate::data::describe;
use crate::deliver::targets::{source_ledger, with_samples};
use crate::error::Error;
use crate::judge::latency::Setting;
use crate::judge::latency_table::LatencyTable;
use crate::judge::quality::objective;
use crate::options::Options;
use crate::report::table::{count, percent, plain};
use crate::report::{DeclinedReport, Output, names, unit_name};
use crate::runtime::Runtime;
use crate::store::{self, Source, external_files};

/// What a model is made of.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The model file.
    pub path: String,
    /// Its size with external data, in bytes.
    pub bytes: u64,
    /// What wrote it, with the version.
    pub exporter: String,
    /// The version of the format.
    pub ir_version: i64,
    /// The operator sets by domain; the standard one is `""`.
    pub opsets: BTreeMap<String, i64>,
    /// The inputs, with element types and axes.
    pub inputs: Vec<String>,
    /// The outputs, with what they are taken for.
    pub outputs: Vec<Output>,
    /// What was changed before anything was looked for, in words.
    pub changes: Vec<String>,
    /// What should be known about the samples.
    pub notes: Vec<String>,
    /// Numbers in constants, floating-point or quantised.
    pub parameters: usize,
    /// Those that belong to units.
    pub prunable_parameters: usize,
    /// The length that FLOPs are counted for; 0 where samples without a token mask were given.
    pub sequence_length: usize,
    /// FLOPs of one sample.
    pub flops: f64,
    /// FLOPs of all units.
    pub prunable_flops: f64,
    /// The sublayers from input to output.
    pub sublayers: Vec<Part>,
    /// What stays, and why.
    pub declined: Vec<DeclinedReport>,
    /// Every reason that a rule gave, pass by pass.
    pub reasons: Vec<Reason>,
}

/// Why a rule does not apply.
#[derive(Debug, Serialize)]
pub struct Reason {
    /// "lowering", "channels" or "gradient".
    pub pass: &'static str,
    /// The operator or value.
    pub place: String,
    /// What stands in the way.
    pub why: String,
}

/// One sublayer.
#[derive(Debug, Serialize)]
pub struct Part {
    /// Its projection's name in the file.
    pub name: String,
    /// What people call it: "layer 3 attention".
    pub label: String,
    /// "head" or "neuron".
    pub unit: &'static str,
    /// Number of units.
    pub units: usize,
    /// Columns of the projection's input that a unit has.
    pub width: usize,
    /// FLOPs of all its units, for one sample.
    pub flops: f64,
    /// Parameters of all its units.
    pub parameters: usize,
    /// How many more places of the model apply the same weights.
    pub shared: usize,
}

/// Looks at the model at `input`; times its sublayers into the latency table that `options` name, if they do.
///
/// # Errors
/// Where ONNX Runtime is not found, or the file is no model, or one that cannot be pruned.
pub fn inspect(input: impl AsRef<Path>, options: &Options) -> Result<Inspection, Error> {
    inspect_with(&options.runtime.load(Arc::default())?, input.as_ref(), options)
}

/// The same with a runtime that is there.
///
/// # Errors
/// Where the file is no model, or one that cannot be pruned.
pub fn inspect_with(runtime: &Runtime, input: &Path, options: &Options) -> Result<Inspection, Error> {
    let (clock, aim, sources) = (Clock::start(), &options.aim, &options.data.calibration);
    let table = options.files.latency_table.as_deref();
    let source = Source::find(input)?;
    let ledger = with_samples(source_ledger(&source), sources).writing_all("--latency-table", table);
    ledger.check()?;
    let opened = Opened::read(&source.model)?.prunable(aim)?;
    let mut observed = opened.observe(runtime, sources, &clock)?;
    let samples = observed.sample(runtime, sources)?;
    let lengths = samples.lengths(sources.seq_len);
    let simplified = observed.simplify(runtime, &samples, sources.seq_len, &clock)?;
    let mut analysis = simplified.discover(aim, &lengths, &clock);
    if let Some(path) = table {
        analysis = analysis.with_later_runs(runtime)?;
        ledger.reading_all("external data of IN", external_files(&source.model, &analysis.written.model)).check()?;
        let setting = Setting::new(runtime, aim.latency_batch, &samples, sources.seq_len)?;
        LatencyTable::measure(runtime, &analysis, aim.alignment, &setting)?.save(path)?;
    }
    let (model, View { model: lowered, seen, found }) = (&analysis.written.model, &analysis.measured);
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let header = model.header();
    let opsets = header.opset_import.iter().map(|o| (text(&o.domain), o.version.unwrap_or(0)));
    let labels = names::short(found.sublayers.iter().map(|s| (s.name.as_str(), s.kind)));
    let part = |(sublayer, label): (&Sublayer, String)| Part {
        name: sublayer.name.clone(),
        label,
        unit: unit_name(sublayer.kind),
        units: sublayer.units.len(),
        width: sublayer.projection.width / sublayer.units.len().max(1),
        flops: sublayer.flops(),
        parameters: sublayer.units.iter().map(|u| u.parameters).sum(),
        shared: sublayer.also.len(),
    };
    let sublayers: Vec<Part> = found.sublayers.iter().zip(labels).map(part).collect();
    let objective = objective(lowered, seen, token_mask(&analysis), &options.data.outputs)?;
    let presents: Vec<ValueId> = kv_cache::caches(&model.graph).into_iter().map(|cache| cache.present).collect();
    let output = |&value: &ValueId| {
        let name = model.graph.name(value).to_string();
        let place = lowered.graph.find(&name);
        let compared = objective.outputs.iter().find(|c| Some(c.output) == place);
        let left_out = || objective.left_out.iter().find(|(v, _)| Some(*v) == place).map(|(_, why)| why.clone());
        match compared {
            Some(compared) => Output { name, kind: compared.kind.to_string(), why: compared.why.clone() },
            None if presents.contains(&value) => Output { name, kind: NOT_COMPARED.into(), why: CACHE.into() },
            None => Output { name, kind: NOT_COMPARED.into(), why: left_out().unwrap_or_default() },
        }
    };
    Ok(Inspection {
        path: source.model.display().to_string(),
        bytes: store::size_with_data(&source.model, model),
        exporter: format!("{} {}", text(&header.producer_name), text(&header.producer_version)).trim().to_string(),
        ir_version: header.ir_version.unwrap_or(0),
        opsets: opsets.collect(),
        inputs: signature::inputs(model).iter().map(describe).collect(),
        outputs: model.graph.outputs().iter().map(output).collect(),
        changes: analysis.changes.clone(),
        notes: samples.notes.clone(),
        parameters: parameters(model),
        prunable_parameters: sublayers.iter().map(|s| s.parameters).sum(),
        sequence_length: sources.seq_len.unwrap_or_else(|| samples.mean_length().unwrap_or(0.0).round() as usize),
        flops: flops::total(&lowered.graph, seen, &lengths),
        prunable_flops: sublayers.iter().map(|s| s.flops).sum::<f64>() + 0.0,
        sublayers,
        declined: found.declined.iter().map(DeclinedReport::from).collect(),
        reasons: reasons(&analysis),
    })
}

/// What an output is that no loss looks at.
const NOT_COMPARED: &str = "not compared";

/// What a key/value cache is.
const CACHE: &str = "it is a key/value cache, which the samples begin without";

/// The token mask of a model; the usual one where there are no samples that show it.
fn token_mask(analysis: &Analysis) -> Option<TokenMask> {
    let name = analysis.mask_input.as_deref().unwrap_or("attention_mask");
    analysis.measured.model.graph.find(name).map(TokenMask::from)
}

/// What rules said of the operators of a model.
fn reasons(analysis: &Analysis) -> Vec<Reason> {
    let View { model, seen, found } = &analysis.measured;
    let reason = |pass| move |(place, why): (String, String)| Reason { pass, place, why };
    let channels = found.provenance.channels.reasons().into_iter().map(|f| (f.place.clone(), f.why.clone()));
    let gradient = match Probes::new(model, seen, found, token_mask(analysis)).reach_outputs() {
        Ok(opaque) => opaque,
        Err(error) => vec![(error.node, error.why)],
    };
    let lowering = analysis.fused.iter().cloned().map(reason("lowering"));
    lowering.chain(channels.map(reason("channels"))).chain(gradient.into_iter().map(reason("gradient"))).collect()
}

impl Inspection {
    /// What was seen, for people; with every reason that a rule gave where `verbose`.
    pub fn text(&self, verbose: bool) -> String {
        let mut text = String::new();
        let mut line = |label: &str, value: String| {
            let _ = writeln!(text, "{label:<12} {value}");
        };
        line("model", format!("{} ({})", self.path, ByteSize(self.bytes)));
        let exporter = if self.exporter.is_empty() { "unknown exporter" } else { &self.exporter };
        let opset = |(domain, version): (&String, &i64)| match domain.as_str() {
            "" | "ai.onnx" => version.to_string(),
            _ => format!("{domain} {version}"),
        };
        let opsets: Vec<_> = self.opsets.iter().map(opset).collect();
        line("written by", format!("{exporter}, ONNX IR {}, operator sets {}", self.ir_version, opsets.join(", ")));
        self.changes.iter().for_each(|change| line("changed", change.clone()));
        self.notes.iter().for_each(|note| line("note", note.clone()));
        self.inputs.iter().for_each(|input| line("input", input.clone()));
        for Output { name, kind, why } in &self.outputs {
            let taken = if kind == NOT_COMPARED { kind.clone() } else { format!("taken for {kind}") };
            line("output", format!("{name:?}, {taken}: {why}"));
        }
        let part = |all: f64, prunable: f64| {
            format!("{}, of them {} ({}) in what can be pruned", count(all), count(prunable), percent(prunable, all))
        };
        line("parameters", part(self.parameters as f64, self.prunable_parameters as f64));
        let length =
            if self.sequence_length > 0 { format!(" at length {}", self.sequence_length) } else { String::new() };
        line("FLOPs", format!("{}{length}", part(self.flops, self.prunable_flops)));
        if self.sublayers.is_empty() {
            text.push_str("\nThere is nothing to prune.\n");
        } else {
            let _ = write!(text, "\n{}\n", self.table());
        }
        if !self.declined.is_empty() {
            text.push_str("\nWhat stays, and why:\n");
        }
        for declined in &self.declined {
            let _ = writeln!(text, "  {declined}");
        }
        if verbose && !self.sublayers.is_empty() {
            text.push_str("\nWhere sublayers end:\n");
            for part in &self.sublayers {
                let _ = writeln!(text, "  {}: {}", part.label, part.name);
            }
        }
        if verbose {
            text.push_str("\nWhat rules said, operator by operator:\n");
            for Reason { pass, place, why } in &self.reasons {
                let _ = writeln!(text, "  {pass}: {place} {why}");
            }
        }
        text
    }

    fn table(&self) -> Table {
        let mut table = plain(&["", "sublayer", "units", "wide", "FLOPs", "of all", "parameters"], &[1]);
        for (i, part) in self.sublayers.iter().enumerate() {
            let shared = if part.shared > 0 { format!(" ({} times)", part.shared + 1) } else { String::new() };
            table.add_row([
                (i + 1).to_string(),
                format!("{}{shared}", part.label),
                format!("{} {}s", part.units, part.unit),
                part.width.to_string(),
                count(part.flops),
                percent(part.flops, self.flops),
                count(part.parameters as f64),
            ]);
        }
        table
    }
}
