//! The options of `inspect`.

use std::path::PathBuf;

use clap::Args;
use kprune_passes::discover::Scope;

use super::parse::{positive, scope};
use super::{DataArgs, RuntimeArgs};
use crate::options::Options;

/// What to look at.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// The model: a file, or a folder as optimum writes it
    #[arg(value_name = "IN")]
    pub input: PathBuf,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Say more: every reason that a rule gave, operator by operator
    #[arg(short, long, conflicts_with = "json")]
    pub verbose: bool,

    /// Samples to look at the model with, as for pruning [default: inputs are made up]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub calibration: Vec<PathBuf>,

    /// Sequence length for which FLOPs are counted and latencies measured [default: the mean of the samples, or 128]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub seq_len: Option<usize>,

    /// What may be removed: heads and neurons of transformer sublayers, or all that ends in a matrix product
    #[arg(long, value_name = "WHICH", default_value = "transformer", value_parser = scope)]
    pub units: Scope,

    /// Give layers that share weights their own before looking
    #[arg(long)]
    pub untie: bool,

    /// Time the sublayers on this machine and write the table to FILE, for --latency-table of a run elsewhere
    #[arg(long, value_name = "FILE")]
    pub latency_table: Option<PathBuf>,

    /// Samples in a run whose latency is measured
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    pub latency_batch: usize,

    #[command(flatten)]
    #[allow(missing_docs)] // A line here would become the help of the command.
    pub data: DataArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub runtime: RuntimeArgs,
}

/// The length of sequences that are made up.
const MADE_UP_LENGTH: usize = 128;

impl InspectArgs {
    /// The options that looking at a model needs.
    pub fn options(&self) -> Options {
        let mut options = Options::default();
        let length = self.seq_len.or_else(|| self.calibration.is_empty().then_some(MADE_UP_LENGTH));
        options.data.calibration = self.data.sources(&self.calibration, length);
        options.aim.scope = self.units;
        options.aim.untie = self.untie;
        options.aim.latency_batch = self.latency_batch;
        options.files.latency_table.clone_from(&self.latency_table);
        options.runtime = self.runtime.options();
        options
    }
}
