//! The options of `compare`.

use std::path::PathBuf;

use clap::Args;
use kprune_passes::calculus::objective::OutputKind;

use super::parse::{output, positive};
use super::{DataArgs, RuntimeArgs};
use crate::options::Options;

/// What to compare, on what.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// The first model: a file, or a folder as optimum writes it
    #[arg(value_name = "A")]
    pub first: PathBuf,

    /// The second model, for the same task
    #[arg(value_name = "B")]
    pub second: PathBuf,

    /// Data to judge by, with labels or without: .npz or .safetensors (one array per model input, and labels),
    /// .jsonl, .json, .csv, .tsv or .txt (text), a folder of images, or a folder with test_data_set_*; may be repeated
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub data: Vec<PathBuf>,

    #[command(flatten)]
    #[allow(missing_docs)] // A line here would become the help of the command.
    pub reading: DataArgs,

    /// Take an output for logits, span, tokens, next, multilabel, regression or hidden, or ignore it; may be repeated
    #[arg(long = "output-kind", value_name = "NAME:KIND", value_parser = output)]
    pub outputs: Vec<(String, OutputKind)>,

    /// Sequence length for which FLOPs are counted and latencies measured [default: the mean true length of the
    /// samples]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub seq_len: Option<usize>,

    /// Samples in a run whose latency is measured
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    pub latency_batch: usize,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    #[allow(missing_docs)] // A line here would become the help of the command.
    pub runtime: RuntimeArgs,
}

impl CompareArgs {
    /// The options of the comparison.
    pub fn options(&self) -> Options {
        let mut options = Options::default();
        options.data.calibration = self.reading.sources(&self.data, self.seq_len);
        options.data.outputs.clone_from(&self.outputs);
        options.aim.latency_batch = self.latency_batch;
        options.runtime = self.runtime.options();
        options
    }
}
