//! What the user chose.

use std::path::PathBuf;

use kprune_passes::discover::{Kind, Scope, Sublayer};
use kprune_passes::loss::OutputKind;
use kprune_passes::search::Weights;

use crate::data::Sources;
use crate::error::Error;
use crate::machine::quarter_of_memory;
use crate::runtime::Choice;

/// Measurements after the first in the default schedule.
const REFRESHES: usize = 4;

/// Widths that are a multiple of this are the fastest per neuron (docs/speed.md).
pub const ALIGNED: usize = 16;

/// A sublayer is wide where it has at least this many times [`ALIGNED`] neurons.
const WIDE: usize = 8;

/// No more of the prunable FLOPs than this can be removed.
pub const MOST: f64 = 0.95;

/// How much is to be removed.
#[derive(Clone, Debug, PartialEq)]
pub enum Aim {
    /// This share of the prunable FLOPs, 0 to 0.95; several make several models.
    Compression(Vec<f64>),
    /// So much that the model is so many times as fast.
    Speedup(f64),
    /// So much that a run takes so many seconds.
    Latency(f64),
}

impl Aim {
    /// Whether it is a time.
    pub fn is_timed(&self) -> bool {
        !matches!(self, Self::Compression(_))
    }
}

/// Settings of a run; the defaults are the published ones.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much is to be removed.
    pub aim: Aim,
    /// Of several models, the smallest is written whose score falls by no more than this.
    pub max_drop: Option<f64>,
    /// Data that results are judged by; where there are none and there is something to judge, an eighth of the
    /// calibration set is set aside.
    pub evaluation: Vec<PathBuf>,
    /// Units chosen before: nothing is measured then.
    pub plan: Option<PathBuf>,
    /// Where the units chosen are written to.
    pub save_plan: Option<PathBuf>,
    /// Where the times of sublayers are read from, or written to where there is no such file.
    pub latency_table: Option<PathBuf>,
    /// Where the report is written to: as a page where the path ends in `.html`, else as JSON.
    pub reports: Vec<PathBuf>,
    /// Samples of a run that is timed.
    pub latency_batch: usize,
    /// Whether the latency of what comes out is measured in any case.
    pub time: bool,
    /// Where the calibration set comes from.
    pub sources: Sources,
    /// Length of a sample for which FLOPs are counted; the mean true length where it is not given.
    pub seq_len: Option<usize>,
    /// Which units are offered.
    pub scope: Scope,
    /// What outputs are, where the guess is not to be trusted.
    pub outputs: Vec<(String, OutputKind)>,
    /// Whether layers that share weights get their own.
    pub untie: bool,
    /// Weights of the parts of a score.
    pub weights: Weights,
    /// The temperature tau of the distillation loss.
    pub temperature: f64,
    /// Samples in a mini-batch.
    pub batch_size: usize,
    /// Knowledge is measured at the first two sublayers, and then at every one of so many; where it is not
    /// given, at every fourth part of them (docs/speed.md). The published method measures at every one.
    pub refresh: Option<usize>,
    /// The number of neurons that a sublayer keeps is a multiple of this; where it is not given, of
    /// [`ALIGNED`] in sublayers wide enough.
    pub align: Option<usize>,
    /// How many bytes of values may be kept in memory; beyond them, a temporary file is used.
    pub memory: u64,
    /// The execution provider.
    pub provider: Choice,
    /// Whether CUDA may round products to TF32.
    pub tf32: bool,
    /// Threads; 0 leaves their number to the machine.
    pub threads: usize,
    /// The ONNX Runtime library, if it is not to be searched for.
    pub onnxruntime: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            aim: Aim::Compression(vec![0.5]),
            max_drop: None,
            evaluation: Vec::new(),
            plan: None,
            save_plan: None,
            latency_table: None,
            reports: Vec::new(),
            latency_batch: 1,
            time: false,
            sources: Sources::default(),
            seq_len: None,
            scope: Scope::default(),
            outputs: Vec::new(),
            untie: false,
            weights: Weights::default(),
            temperature: 2.0,
            batch_size: 32,
            refresh: None,
            align: None,
            memory: quarter_of_memory(),
            provider: Choice::Auto,
            tf32: false,
            threads: 0,
            onnxruntime: None,
        }
    }
}

impl Options {
    /// Refuses settings that make no sense, before any work.
    ///
    /// # Errors
    /// [`Error::Usage`] with the setting and what was expected.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Usage(what));
        let shares: &[f64] = if let Aim::Compression(shares) = &self.aim { shares } else { &[0.5] };
        if shares.is_empty() {
            return wrong("no compression is given".into());
        }
        if let Some(share) = shares.iter().find(|share| !(0.0..=MOST).contains(*share)) {
            return wrong(format!("a compression of {share} is not possible: it is a share from 0 to {MOST}"));
        }
        match self.aim {
            Aim::Speedup(times) if !(times.is_finite() && times > 1.0) => {
                return wrong(format!("{times} times as fast makes no sense: it is a number above 1"));
            }
            Aim::Latency(seconds) if !(seconds.is_finite() && seconds > 0.0) => {
                return wrong(format!("a latency of {seconds} s makes no sense: it is a time above 0"));
            }
            _ => {}
        }
        if self.latency_table.is_some() && !self.aim.is_timed() {
            let help = "onnx-kprune inspect IN --latency-table FILE measures one";
            return wrong(format!("a latency table is of use with --speedup or --latency-ms; {help}"));
        }
        if self.max_drop.is_some() && self.aim.is_timed() {
            return wrong("a largest drop and a time cannot be asked for together".into());
        }
        if self.batch_size == 0 || self.latency_batch == 0 || self.refresh == Some(0) || self.align == Some(0) {
            return wrong("sizes of batches, refresh and align are at least 1".into());
        }
        Ok(())
    }

    /// Whether knowledge is measured at sublayer `t` of so many. At the first one there is only the
    /// representational part, so the second is always measured.
    pub fn measures_at(&self, t: usize, sublayers: usize) -> bool {
        t == 0 || (t - 1).is_multiple_of(self.every(sublayers))
    }

    /// Whether anything but the last check is to be said about how good the results are.
    pub fn judges(&self) -> bool {
        let several = matches!(&self.aim, Aim::Compression(all) if all.len() > 1);
        several || self.max_drop.is_some() || !self.evaluation.is_empty()
    }

    /// At every how many of so many sublayers knowledge is measured.
    pub fn every(&self, sublayers: usize) -> usize {
        self.refresh.unwrap_or(sublayers.div_ceil(REFRESHES))
    }

    /// What the number of units that a sublayer keeps is a multiple of.
    pub fn step(&self, sublayer: &Sublayer) -> usize {
        let is_wide = sublayer.units.len() >= WIDE * ALIGNED;
        match sublayer.kind {
            Kind::Head => 1,
            Kind::Neuron => self.align.unwrap_or(if is_wide { ALIGNED } else { 1 }),
        }
    }
}
