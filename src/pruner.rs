//! The program as a library call.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kprune_passes::ir::Tensor;
use kprune_passes::methods::Settings;

use crate::error::Error;
use crate::options::{Amount, Options};
use crate::progress::{Progress, Silent};
use crate::prune::prune;
use crate::report::Report;
use crate::runtime::Runtime;

/// Prunes one model; what is not set has the defaults of the command line.
///
/// ```no_run
/// use onnx_kprune::Pruner;
///
/// let report = Pruner::new("model.onnx").calibration("task.npz").compression(0.6).prune("pruned.onnx")?;
/// println!("{:.0} % of the FLOPs went", 100.0 * report.removed());
/// # Ok::<(), onnx_kprune::Error>(())
/// ```
///
/// `examples/prune.rs` gives its own calibration batches and shows its own progress.
pub struct Pruner<'p> {
    input: PathBuf,
    options: Options,
    progress: &'p dyn Progress,
    cancelled: Arc<AtomicBool>,
}

impl<'p> Pruner<'p> {
    /// For the model at `input`, a file or a folder; it is never changed.
    pub fn new(input: impl Into<PathBuf>) -> Self {
        Self { input: input.into(), options: Options::default(), progress: &Silent, cancelled: Arc::default() }
    }

    /// Adds a file or folder of calibration samples.
    pub fn calibration(mut self, file: impl Into<PathBuf>) -> Self {
        self.options.data.calibration.files.push(file.into());
        self
    }

    /// Takes calibration samples from the caller: batches, each an array for every input of the model, samples
    /// along the first axis. Sequences of different lengths are filled with zeros.
    pub fn calibration_batches(mut self, batches: impl IntoIterator<Item = Vec<(String, Tensor)>>) -> Self {
        self.options.data.calibration.batches.extend(batches);
        self
    }

    /// Share of the prunable FLOPs to remove, 0 to 0.95.
    pub fn compression(mut self, share: f64) -> Self {
        self.options.aim.amount = Amount::Compression(vec![share]);
        self
    }

    /// Removes so much that the model is so many times as fast here.
    pub fn speedup(mut self, times: f64) -> Self {
        self.options.aim.amount = Amount::Speedup(times);
        self
    }

    /// Writes the report to `file`: as a page where its name ends in `.html`, else as JSON.
    pub fn report(mut self, file: impl Into<PathBuf>) -> Self {
        self.options.files.reports.push(file.into());
        self
    }

    /// Chooses units by this method.
    pub fn method(mut self, method: Settings) -> Self {
        self.options.method = method;
        self
    }

    /// Changes any other setting.
    pub fn options(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self
    }

    /// Tells `progress` how far the work has come.
    pub fn progress(mut self, progress: &'p dyn Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Stops as soon as it can once the flag is set, with [`Error::Interrupted`].
    pub fn cancelled_by(mut self, flag: Arc<AtomicBool>) -> Self {
        self.cancelled = flag;
        self
    }

    /// Refuses options that make no sense, before any work.
    ///
    /// # Errors
    /// [`Error::Usage`] with the option and what was expected.
    pub fn check(&self) -> Result<(), Error> {
        self.options.check()
    }

    /// Loads ONNX Runtime as the settings say.
    ///
    /// # Errors
    /// Where no library is found, or the provider asked for is not there.
    pub fn runtime(&self) -> Result<Runtime, Error> {
        self.options.runtime.load(self.cancelled.clone())
    }

    /// Prunes the model and writes the result to `output`.
    ///
    /// # Errors
    /// Whatever goes wrong; nothing has been written then.
    pub fn prune(self, output: impl AsRef<Path>) -> Result<Report, Error> {
        self.prune_with(&self.runtime()?, Some(output.as_ref()))
    }

    /// Chooses units and writes no model.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn plan(self) -> Result<Report, Error> {
        self.prune_with(&self.runtime()?, None)
    }

    /// Prunes the model with a runtime that is there; without an `output` no model is written.
    ///
    /// # Errors
    /// Whatever goes wrong; nothing has been written then.
    pub fn prune_with(&self, runtime: &Runtime, output: Option<&Path>) -> Result<Report, Error> {
        self.check()?;
        prune(runtime, &self.input, output, &self.options, self.progress)
    }
}
