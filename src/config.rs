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
    /// Knowledge is measured at the first two sublayers, and then at every one of so many.
    pub refresh: usize,
    /// How many bytes of values may be kept in memory; beyond them, a temporary file is used.
    pub memory: u64,
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
            refresh: 1,
            memory: quarter_of_memory(),
            provider: Choice::Auto,
            threads: 0,
            onnxruntime: None,
        }
    }
}

impl Options {
    /// Whether knowledge is measured at sublayer `t`. At the first one there is only the representational part,
    /// so the second is always measured.
    pub fn measures_at(&self, t: usize) -> bool {
        t == 0 || (t - 1).is_multiple_of(self.refresh)
    }
}

/// A quarter of the machine's memory, or of what this process is allowed, in bytes.
pub fn quarter_of_memory() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let allowed = system.cgroup_limits().map(|limits| limits.total_memory).filter(|&n| n > 0);
    system.total_memory().min(allowed.unwrap_or(u64::MAX)) / 4
}
