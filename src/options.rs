//! What the user chose.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kprune_passes::calculus::objective::OutputKind;
use kprune_passes::discover::Scope;
use kprune_passes::discover::cost::Alignment;
use kprune_passes::methods::{Settings, besa};
use kprune_passes::quantise::Bits;
use kprune_passes::sparsity::Pattern;
use serde::Serialize;

use crate::data::Sources;
use crate::error::Error;
use crate::judge::quality::Kind;
use crate::machine::quarter_of_memory;
use crate::runtime::{Choice, Runtime};

/// No more of the prunable FLOPs than this can be removed.
pub const MOST: f64 = 0.95;

/// Everything that can be chosen; the defaults are those of the command line.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// What is wanted.
    pub aim: Aim,
    /// Texts: the tokens that do not occur in them go before anything else; of none, all stay.
    pub vocabulary: Vec<PathBuf>,
    /// What is measured on.
    pub data: Data,
    /// How units are chosen.
    pub method: Settings,
    /// Whether what stays learns from the original afterwards.
    pub distil: Distil,
    /// How many single weights of what stays go.
    pub sparsity: Option<Sparsity>,
    /// How many bits the weights of blocks have in the file, where not those that they came with.
    pub quantise: Option<Bits>,
    /// What graphs are run with.
    pub runtime: RuntimeOptions,
    /// What is read and written besides the models.
    pub files: Files,
    /// What the program was called with, for the report; empty where it is called as a library.
    pub command: Vec<String>,
}

/// What is wanted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Aim {
    /// How much is to be removed.
    pub amount: Amount,
    /// Of several models, the smallest is written whose score falls by no more than this.
    pub max_drop: Option<f64>,
    /// Which units are offered.
    pub scope: Scope,
    /// What a compression is a share of.
    pub of: Of,
    /// Whether layers that share weights get their own.
    pub untie: bool,
    /// Whether attentions with key/value caches may keep different numbers of heads.
    pub uneven_heads: bool,
    /// Which numbers of units are fast.
    pub alignment: Alignment,
    /// Samples of a run that is timed.
    pub latency_batch: usize,
}

/// How much is to be removed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Amount {
    /// This share of the prunable FLOPs, 0 to 0.95; several make several models.
    Compression(Vec<f64>),
    /// So much that the model is so many times as fast.
    Speedup(f64),
    /// So much that a run takes so many seconds.
    Latency(f64),
}

/// Whether a pruned model is distilled: all its weights learn from the original, on the calibration set.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Distil {
    /// It is not.
    #[default]
    Off,
    /// It is, and what was learnt stays, be it worse than what was there before.
    On,
    /// It is, and what was learnt stays unless samples that are set aside tell that it is worse.
    Auto,
    /// The same at the cost of so many passes of the original over the calibration set.
    Equivalents(f64),
}

/// What a compression is a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Of {
    /// The FLOPs of what can be pruned.
    #[default]
    Flops,
    /// All parameters of the model, embeddings among them.
    Params,
    /// The parameters of what can be pruned.
    BlockParams,
}

impl FromStr for Of {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "flops" => Self::Flops,
            "params" => Self::Params,
            "block-params" => Self::BlockParams,
            _ => return Err("expected flops, params or block-params".into()),
        })
    }
}

/// How many single weights go, and which.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sparsity {
    /// The share of the weights of every block that is to be zero, 0 to 0.9.
    pub share: f64,
    /// Where zeros may be.
    pub pattern: Pattern,
    /// Which weights go.
    pub method: WeightMethod,
    /// Whether the file gives matrices by their weights that are not zero, where that takes fewer bytes.
    pub by_nonzeros: bool,
}

/// How single weights are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "name", rename_all = "lowercase")]
#[non_exhaustive]
pub enum WeightMethod {
    /// The smallest of every row: a baseline.
    Magnitude,
    /// Those of every row that are smallest times what they are multiplied with (Sun et al. 2024): a baseline.
    Wanda,
    /// The same, with shares of rows that are learned (BESA, ICLR 2024).
    Besa(besa::Settings),
}

/// No more of the weights of a block than this can go.
pub const SPARSEST: f64 = 0.9;

impl Sparsity {
    /// Whether what weights are multiplied with counts.
    pub(crate) fn measures(&self) -> bool {
        self.method != WeightMethod::Magnitude
    }

    /// Whether shares are learned.
    pub(crate) fn learns(&self) -> bool {
        matches!(self.method, WeightMethod::Besa(_))
    }

    fn check(&self) -> Result<(), String> {
        let (share, most) = (self.share, self.pattern.most());
        if !(share > 0.0 && share <= SPARSEST) {
            return Err(format!("a sparsity of {share} is not possible: it is a share above 0, up to {SPARSEST}"));
        }
        if share > most {
            return Err(format!("a sparsity of {share} is more than the {most} that the pattern {} has", self.pattern));
        }
        if share < most && self.pattern != Pattern::Unstructured && !self.learns() {
            let reason = format!("with the pattern {}, {most} of every matrix go", self.pattern);
            return Err(format!(
                "{reason}: --sparsity {share} needs --method besa, which learns which matrices take part"
            ));
        }
        Ok(())
    }
}

/// What is measured on.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Data {
    /// Where the calibration set comes from; for `compare`, what models are judged by.
    pub calibration: Sources,
    /// Data that results are judged by; where there are none and there is something to judge, an eighth of the
    /// calibration set is set aside.
    pub evaluation: Vec<PathBuf>,
    /// What outputs are, where the guess is not to be trusted.
    pub outputs: Vec<(String, OutputKind)>,
    /// Samples in a mini-batch; as published, 32, and 12 where outputs are spans, if it is not given.
    pub batch_size: Option<usize>,
}

/// What graphs are run with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RuntimeOptions {
    /// The execution provider.
    pub provider: Choice,
    /// Whether CUDA may round products to TF32.
    pub tf32: bool,
    /// Threads; 0 leaves their number to the machine.
    pub threads: usize,
    /// How many bytes of values may be kept in memory; beyond them, a temporary file is used.
    pub memory: u64,
    /// The ONNX Runtime library, if it is not to be searched for.
    pub onnxruntime: Option<PathBuf>,
}

/// What is read and written besides the models.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Files {
    /// Units chosen before: nothing is measured then.
    pub plan: Option<PathBuf>,
    /// Where the units chosen are written to.
    pub save_plan: Option<PathBuf>,
    /// Where the times of sublayers are read from, or written to where there is no such file.
    pub latency_table: Option<PathBuf>,
    /// Where the report is written to: as a page where the path ends in `.html`, else as JSON.
    pub reports: Vec<PathBuf>,
    /// Graphs to write on the way, as ONNX, for looking at: of which stage, and where to.
    pub dumps: Vec<(Stage, PathBuf)>,
}

/// Graphs that a run makes on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// The model as it is read: functions inlined, constants folded.
    Read,
    /// The same in f32.
    Single,
    /// The same with fused operators taken apart: what is measured.
    Lowered,
    /// The probe of mask gradients and energies, from the first sublayer on.
    Columns,
    /// The probe of the first sublayer's normal equations.
    Equations,
    /// The original with the tuned projections and masks: what the result is verified against.
    Masked,
}

impl Default for Aim {
    fn default() -> Self {
        Self {
            amount: Amount::Compression(vec![0.5]),
            max_drop: None,
            scope: Scope::default(),
            of: Of::default(),
            untie: false,
            uneven_heads: false,
            alignment: Alignment::default(),
            latency_batch: 1,
        }
    }
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self { provider: Choice::Auto, tf32: false, threads: 0, memory: quarter_of_memory(), onnxruntime: None }
    }
}

/// What a distillation costs, in passes of the original over the calibration set.
const EQUIVALENTS: f64 = 10.0;

impl Distil {
    /// What it costs, in passes of the original over the calibration set.
    pub fn equivalents(self) -> f64 {
        match self {
            Self::Off => 0.0,
            Self::On | Self::Auto => EQUIVALENTS,
            Self::Equivalents(passes) => passes,
        }
    }

    /// Whether samples may tell that it is not to stay.
    pub fn is_guarded(self) -> bool {
        self != Self::On
    }
}

impl Data {
    /// Samples in a mini-batch, for outputs of these kinds.
    pub(crate) fn mini_batch(&self, kinds: &[Kind]) -> usize {
        let is_span = kinds.iter().any(|k| k.kind == OutputKind::SpanLogits);
        self.batch_size.unwrap_or(if is_span { SPANS } else { SAMPLES })
    }
}

/// The published sizes of mini-batches.
const SAMPLES: usize = 32;
const SPANS: usize = 12;

impl RuntimeOptions {
    /// Loads ONNX Runtime. Once `cancelled` is set, its work ends at the next operator.
    ///
    /// # Errors
    /// Where no library is found, or the provider asked for is not there.
    pub fn load(&self, cancelled: Arc<AtomicBool>) -> Result<Runtime, Error> {
        let runtime = Runtime::load(self.onnxruntime.as_deref(), self.provider, self.threads, cancelled)?;
        Ok(runtime.with_tf32(self.tf32))
    }
}

impl Amount {
    /// Whether it is a time.
    pub fn is_timed(&self) -> bool {
        !matches!(self, Self::Compression(_))
    }

    /// Whether it is possible at all.
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Compression(shares) if shares.is_empty() => Err("no compression is given".into()),
            Self::Compression(shares) => match shares.iter().find(|share| !(0.0..=MOST).contains(*share)) {
                Some(share) => Err(format!("a compression of {share} is not possible: it is a share from 0 to {MOST}")),
                None => Ok(()),
            },
            Self::Speedup(times) if !(times.is_finite() && *times > 1.0) => {
                Err(format!("{times} times as fast makes no sense: it is a number above 1"))
            }
            Self::Latency(seconds) if !(seconds.is_finite() && *seconds > 0.0) => {
                Err(format!("a latency of {seconds} s makes no sense: it is a time above 0"))
            }
            Self::Speedup(_) | Self::Latency(_) => Ok(()),
        }
    }
}

impl Options {
    /// Refuses settings that make no sense, before any work.
    ///
    /// # Errors
    /// [`Error::Usage`] with the setting and what was expected.
    pub fn check(&self) -> Result<(), Error> {
        self.aim.amount.check().map_err(Error::Usage)?;
        self.method.check().map_err(Error::Usage)?;
        self.sparsity.as_ref().map_or(Ok(()), Sparsity::check).map_err(Error::Usage)?;
        let wrong = |what: &str| Err(Error::Usage(what.into()));
        if self.files.latency_table.is_some() && !self.aim.amount.is_timed() {
            return wrong(
                "a latency table is of use with --speedup or --latency-ms; onnx-kprune inspect IN --latency-table FILE \
                 measures one",
            );
        }
        if self.aim.max_drop.is_some() && self.aim.amount.is_timed() {
            return wrong("a largest drop and a time cannot be asked for together");
        }
        if self.data.batch_size == Some(0) || self.aim.latency_batch == 0 || self.aim.alignment.0 == Some(0) {
            return wrong("sizes of batches and align are at least 1");
        }
        Ok(())
    }

    /// Whether something is to be decided by how good the results are.
    pub(crate) fn decides(&self) -> bool {
        let several = matches!(&self.aim.amount, Amount::Compression(all) if all.len() > 1);
        several || self.aim.max_drop.is_some()
    }
}

impl Files {
    /// Whether a page is drawn, which shows times.
    pub(crate) fn draw_a_page(&self) -> bool {
        self.reports.iter().any(|path| path.extension().is_some_and(|e| e == "html"))
    }
}
