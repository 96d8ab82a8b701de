//! What a run did, for machines (JSON) and for people (a table).

use std::fmt::Write as _;
use std::path::Path;

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};
use kprune_passes::discover::Kind;
use serde::Serialize;

/// The report of a run. Units: bytes, seconds, FLOPs (two for every multiply-add) of one sample.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this layout.
    pub schema: u32,
    /// Version of the program.
    pub version: String,
    /// The model that was read.
    pub input: File,
    /// The model that was written.
    pub output: File,
    /// What the user chose.
    pub settings: Settings,
    /// What the graphs were run with.
    pub runtime: RuntimeInfo,
    /// The samples that knowledge was measured on.
    pub calibration: CalibrationInfo,
    /// The outputs that teacher and student are compared at, with what they were taken for.
    pub objective: Vec<Output>,
    /// Costs of the prunable part of the model.
    pub flops: Flops,
    /// The sublayers from input to output.
    pub sublayers: Vec<SublayerReport>,
    /// What was looked at and not pruned.
    pub declined: Vec<DeclinedReport>,
    /// The comparison of the pruned model with the masked original.
    pub verify: Verification,
    /// What the run cost.
    pub cost: Cost,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// A model file.
#[derive(Clone, Debug, Serialize)]
pub struct File {
    /// Its path.
    pub path: String,
    /// Its size with external data.
    pub bytes: u64,
    /// Floating-point numbers in its constants.
    pub parameters: usize,
}

/// What the user chose.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Settings {
    pub compression: f64,
    pub lambda_pred: f64,
    pub lambda_rep: f64,
    pub mu: f64,
    pub temperature: f64,
    pub batch_size: usize,
    pub refresh: usize,
    pub align: Option<usize>,
    pub seed: u64,
}

/// What the graphs were run with.
#[derive(Clone, Debug, Serialize)]
pub struct RuntimeInfo {
    /// The ONNX Runtime library.
    pub library: String,
    /// The execution provider.
    pub provider: String,
    /// Threads.
    pub threads: usize,
}

/// The calibration set.
#[derive(Clone, Debug, Serialize)]
pub struct CalibrationInfo {
    /// Where the samples come from.
    pub source: String,
    /// Number of samples.
    pub samples: usize,
    /// Number of real tokens.
    pub tokens: usize,
    /// The input that says which tokens are real.
    pub mask_input: Option<String>,
    /// The length of a sample for which FLOPs are counted.
    pub sequence_length: Option<f64>,
}

/// An output of the model.
#[derive(Clone, Debug, Serialize)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// What it was taken for.
    pub kind: String,
}

/// FLOPs of all units.
#[derive(Clone, Debug, Serialize)]
pub struct Flops {
    /// Of the original.
    pub prunable: f64,
    /// At most this was to be kept.
    pub budget: f64,
    /// Of the pruned model.
    pub kept: f64,
}

/// One sublayer.
#[derive(Clone, Debug, Serialize)]
pub struct SublayerReport {
    /// The projection's name in the file.
    pub name: String,
    /// "head" or "neuron".
    pub unit: &'static str,
    /// Number of units.
    pub units: usize,
    /// The units that stay.
    pub kept: Vec<usize>,
    /// FLOPs before.
    pub flops: f64,
    /// FLOPs after.
    pub flops_kept: f64,
    /// Relative reconstruction error on held-out batches with the original rows.
    pub error_untuned: Option<f64>,
    /// The same with the tuned projection.
    pub error_tuned: Option<f64>,
    /// Whether the tuned projection was taken.
    pub tuned: bool,
}

/// Channels that were not pruned.
#[derive(Clone, Debug, Serialize)]
pub struct DeclinedReport {
    /// Where they end.
    pub place: String,
    /// How many there are.
    pub channels: usize,
    /// Why they stay.
    pub why: String,
}

/// The last check.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// Largest difference of an output, relative to its largest value.
    pub difference: f64,
}

/// What the run cost.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cost {
    /// One pass of the original over the calibration set, in seconds; `None` where none was needed.
    pub forward: Option<f64>,
    /// The whole run, in seconds.
    pub total: f64,
    /// The whole run in passes of the original.
    pub forward_equivalents: Option<f64>,
    /// Seconds of every stage.
    pub stages: Vec<Stage>,
    /// Seconds of all stages that went into making sessions.
    pub sessions: f64,
    /// The most memory that the process has had, in bytes; pages of mapped files count.
    pub peak_memory: Option<u64>,
    /// Bytes of the temporary file that held what did not fit into memory.
    pub spilled: u64,
}

/// A stage of the run.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// Its name.
    pub name: &'static str,
    /// How long it took.
    pub seconds: f64,
}

/// How reports call a unit.
pub fn unit_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Head => "head",
        Kind::Neuron => "neuron",
    }
}

impl Report {
    /// Writes the report as JSON; the file appears whole or not at all.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), crate::error::Error> {
        let json = serde_json::to_string_pretty(self).map_err(|e| crate::error::Error::internal(e.to_string()))?;
        crate::files::write_whole(path, json.as_bytes())
    }

    /// The table shown at the end of a run.
    pub fn table(&self) -> String {
        let mut text = self.sublayer_table();
        let share = |new: f64, old: f64| if old == 0.0 { 0.0 } else { 100.0 * new / old };
        let mut line = |label: &str, value: String| {
            let _ = writeln!(text, "{label:<12} {value}");
        };
        let (old, new) = (&self.input, &self.output);
        let flops = &self.flops;
        line(
            "FLOPs",
            format!(
                "{} -> {} of the prunable part ({:.1} %)",
                count(flops.prunable),
                count(flops.kept),
                share(flops.kept, flops.prunable)
            ),
        );
        line(
            "parameters",
            format!(
                "{} -> {} ({:.1} %)",
                count(old.parameters as f64),
                count(new.parameters as f64),
                share(new.parameters as f64, old.parameters as f64)
            ),
        );
        line(
            "file",
            format!("{} -> {} bytes ({:.1} %)", old.bytes, new.bytes, share(new.bytes as f64, old.bytes as f64)),
        );
        line(
            "verified",
            format!("outputs differ from the masked original by {:.1e} of the largest", self.verify.difference),
        );
        let stages: Vec<_> = self.cost.stages.iter().map(|s| format!("{} {:.1} s", s.name, s.seconds)).collect();
        line("time", stages.join(", "));
        let cost = &self.cost;
        let passes = cost.forward.zip(cost.forward_equivalents);
        let passes = passes.map_or(String::new(), |(f, n)| format!(", {n:.1} forward-equivalents of {f:.2} s"));
        let memory = cost.peak_memory.map_or(String::new(), |n| format!(", {} of memory at most", ByteSize(n)));
        line("cost", format!("{:.1} s{passes}{memory}", cost.total));
        text
    }

    fn sublayer_table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["", "sublayer", "kept", "of", "error untuned", "tuned"]);
        for column in [0, 2, 3, 4, 5] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for (i, s) in self.sublayers.iter().enumerate() {
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

/// A number with a unit of thousands.
fn count(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.0}"),
    }
}
