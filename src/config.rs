//! What the user chose.

use std::path::PathBuf;

use kprune_passes::discover::{Kind, Scope, Sublayer};
use kprune_passes::loss::OutputKind;
use kprune_passes::search::Weights;

use crate::calibration::Sources;
use crate::machine::quarter_of_memory;
use crate::runtime::Choice;

/// Measurements after the first in the default schedule.
const REFRESHES: usize = 4;

/// Widths that are a multiple of this are the fastest per neuron (docs/speed.md).
pub const ALIGNED: usize = 16;

/// A sublayer is wide where it has at least this many times [`ALIGNED`] neurons.
const WIDE: usize = 8;

/// Settings of a run; the defaults are the published ones.
#[derive(Clone, Debug)]
pub struct Options {
    /// Share of the prunable FLOPs to remove, 0 to 0.95.
    pub compression: f64,
    /// Where calibration data come from.
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
            compression: 0.5,
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
    /// Whether knowledge is measured at sublayer `t` of so many. At the first one there is only the
    /// representational part, so the second is always measured.
    pub fn measures_at(&self, t: usize, sublayers: usize) -> bool {
        t == 0 || (t - 1).is_multiple_of(self.every(sublayers))
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
