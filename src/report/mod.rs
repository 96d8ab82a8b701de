//! What a run did: for machines (JSON), for people (a table, a page).

pub(crate) mod card;
mod charts;
mod html;
pub(crate) mod names;
mod sweep;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::path::Path;

use kprune_passes::discover::{Declined, Kind};
use kprune_passes::methods::Details;
use serde::Serialize;

pub use crate::distil::{Distillation, Tried};
use crate::error::Error;
use crate::judge::latency::{Setting, Timing};
use crate::judge::quality::{Judgement, Origin};
use crate::options::Of;
use crate::store;
pub use crate::vocabulary::Trimming;
pub use crate::weights::{Quantisation, SparseBlock, SparseMatrix, Sparsified};

/// The report of a run. Units: bytes, seconds, milliseconds for latencies, FLOPs (two for every multiply-add) of
/// one sample.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Version of this layout.
    pub schema: u32,
    /// Version of the program.
    pub version: String,
    /// What the program was called with, for --config; empty where it was called as a library.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// When it ended, in seconds since 1970, UTC.
    pub time: u64,
    /// The machine's processor, with the number of its cores.
    pub machine: String,
    /// The model that was read.
    pub input: File,
    /// How many tokens it was left with before anything else, where some went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<Trimming>,
    /// What was measured of it.
    pub original: Original,
    /// The model that was written; of several, the one that was chosen, or the last.
    #[serde(flatten)]
    pub model: ModelReport,
    /// All models, where several were made.
    pub sweep: Vec<ModelReport>,
    /// What the user chose.
    pub settings: Settings,
    /// The method that chose units, with its settings; `None` where they were given.
    pub method: Option<kprune_passes::methods::Settings>,
    /// What the graphs were run with.
    pub runtime: RuntimeInfo,
    /// The samples that units were measured on.
    pub calibration: CalibrationInfo,
    /// The outputs that teacher and student are compared at, with what they were taken for.
    pub objective: Vec<Output>,
    /// What was looked at and not pruned.
    pub declined: Vec<DeclinedReport>,
    /// What the run cost.
    pub cost: Cost,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// One model that was made.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ModelReport {
    /// The compression that was asked for; `None` where a time was, or units were given.
    pub compression: Option<f64>,
    /// Its file; `None` where nothing was written.
    pub output: Option<File>,
    /// Costs of the prunable part of the model.
    pub flops: Flops,
    /// Parameters of the prunable part of the model.
    pub block_parameters: BlockParameters,
    /// The sublayers from input to output.
    pub sublayers: Vec<SublayerReport>,
    /// The comparison of the pruned model with the masked original; `None` where nothing was written.
    pub verify: Option<Verification>,
    /// What its distillation did, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distillation: Option<Distillation>,
    /// Which single weights went, where some did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsification: Option<Sparsified>,
    /// How many bits weights have, where they were quantised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantisation: Option<Quantisation>,
    /// How long it takes, where that was measured.
    pub latency: Option<Timing>,
    /// How good it is, where that was measured.
    pub quality: Option<Judgement>,
}

/// What was measured of the model that was read.
#[derive(Clone, Debug, Serialize)]
pub struct Original {
    /// What latencies were measured at.
    pub setting: Option<Setting>,
    /// How long it takes.
    pub latency: Option<Timing>,
    /// What it was judged by.
    pub judged_on: Option<JudgedOn>,
    /// How good it is.
    pub quality: Option<Judgement>,
}

/// The samples that models were judged by.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct JudgedOn {
    /// The files.
    pub source: String,
    /// Whether they were given for it.
    pub origin: Origin,
    /// What the model's config.json calls the classes, by their numbers; empty where it does not.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<i64, String>,
}

impl JudgedOn {
    /// So many samples, in words.
    pub(crate) fn describe(&self, samples: usize) -> String {
        match self.origin {
            Origin::Given => format!("on {samples} samples of {}", self.source),
            Origin::SetAside => format!("on {samples} samples of {} that were set aside", self.source),
            Origin::Calibration => {
                format!("on the {samples} samples that it was fitted to, of {}: others will differ more", self.source)
            }
        }
    }
}

impl std::fmt::Display for Verification {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.difference {
            Some(difference) => {
                write!(f, "passed: file and masked original differ by {difference:.1e} of the largest output")
            }
            None => f.write_str("passed: nothing that could be compared"),
        }
    }
}

/// A model file.
#[derive(Clone, Debug, Serialize)]
pub struct File {
    /// Its path.
    pub path: String,
    /// Its size with external data.
    pub bytes: u64,
    /// Numbers in its constants, floating-point or quantised.
    pub parameters: usize,
    /// The SHA-256 of the model file, without external data; `None` where no report is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// What the user chose.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
#[non_exhaustive]
pub struct Settings {
    pub compression: Option<f64>,
    pub of: Of,
    pub speedup: Option<f64>,
    pub latency_ms: Option<f64>,
    pub max_drop: Option<f64>,
    pub batch_size: usize,
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
    /// Why.
    pub why: String,
}

/// FLOPs of all units.
#[derive(Clone, Debug, Serialize)]
pub struct Flops {
    /// Of the original.
    pub prunable: f64,
    /// At most this was to be kept; `None` where a time was aimed at, or units were given.
    pub budget: Option<f64>,
    /// Of the pruned model.
    pub kept: f64,
}

/// Parameters of all units.
#[derive(Clone, Debug, Serialize)]
pub struct BlockParameters {
    /// Of the original.
    pub prunable: f64,
    /// Of the pruned model.
    pub kept: f64,
}

/// One sublayer.
#[derive(Clone, Debug, Serialize)]
pub struct SublayerReport {
    /// The projection's name in the file.
    pub name: String,
    /// What people call it: "layer 3 attention".
    pub label: String,
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
    /// Relative reconstruction error on held-out samples with the original rows.
    pub error_untuned: Option<f64>,
    /// The same with the tuned projection.
    pub error_tuned: Option<f64>,
    /// Whether the tuned projection was taken.
    pub tuned: bool,
    /// The units' scores when they were chosen, by which the better stay. Empty where nothing was measured.
    pub scores: Vec<f32>,
    /// What else the method has to say, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub details: Details,
}

/// Channels that were not pruned.
#[derive(Clone, Debug, Serialize)]
pub struct DeclinedReport {
    /// Where they end.
    pub place: String,
    /// How many there are; 0 where they were not looked at.
    pub channels: usize,
    /// Why they stay.
    pub why: String,
}

impl std::fmt::Display for DeclinedReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.channels {
            0 => write!(f, "{}: {}", self.place, self.why),
            channels => write!(f, "{channels} channels of {}: {}", self.place, self.why),
        }
    }
}

impl From<&Declined> for DeclinedReport {
    fn from(declined: &Declined) -> Self {
        Self { place: declined.place.clone(), channels: declined.channels, why: declined.why.clone() }
    }
}

/// The last check.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// Largest difference of an output, relative to its largest value; `None` where nothing could be compared.
    pub difference: Option<f64>,
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
    /// The content of a report file: a page where its path ends in `.html`, else JSON.
    ///
    /// # Errors
    /// Never, but for want of memory.
    pub fn content(&self, path: &Path) -> Result<Vec<u8>, Error> {
        match path.extension().is_some_and(|e| e == "html") {
            true => Ok(self.page().into_bytes()),
            false => store::json(self),
        }
    }

    /// When it ended, as 2026-01-31T12:00:00Z.
    pub fn date(&self) -> String {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(self.time);
        humantime::format_rfc3339_seconds(time).to_string()
    }

    /// Share of the prunable FLOPs that is removed.
    pub fn removed(&self) -> f64 {
        self.model.flops.removed()
    }
}

impl Flops {
    /// The share that is removed.
    pub fn removed(&self) -> f64 {
        if self.prunable > 0.0 { 1.0 - self.kept / self.prunable } else { 0.0 }
    }
}
