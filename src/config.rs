//! What the user chose.

use std::path::PathBuf;

use kprune_passes::discover::Scope;
use kprune_passes::loss::OutputKind;
use kprune_passes::search::Weights;

use crate::calibration::Sources;
use crate::runtime::Choice;

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
    /// The execution provider.
    pub provider: Choice,
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
            provider: Choice::Auto,
            threads: 0,
            onnxruntime: None,
        }
    }
}
