//! The options of `inspect`.

use std::path::PathBuf;

use clap::Args;
use kprune_passes::discover::Scope;

use super::RuntimeArgs;
use super::parse::{positive, scope};
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

    /// Sequence length for which FLOPs are counted and latencies measured
    #[arg(long, value_name = "N", default_value = "128", value_parser = positive)]
    pub seq_len: usize,

    /// What may be removed: heads and neurons of transformer sublayers, or all that ends in a matrix product
    #[arg(long, value_name = "WHICH", default_value = "transformer", value_parser = scope)]
    pub units: Scope,

    /// Give layers that share weights their own before looking
    #[arg(long)]
    pub untie: bool,

    /// The input that holds 1 for real tokens and 0 for padding, or none [default: recognised by its numbers]
    #[arg(long, value_name = "NAME")]
    pub mask_input: Option<String>,

    /// Time the sublayers on this machine and write the table to FILE, for --latency-table of a run elsewhere
    #[arg(long, value_name = "FILE")]
    pub latency_table: Option<PathBuf>,

    /// Samples in a run whose latency is measured
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    pub latency_batch: usize,

    #[command(flatten)]
    #[allow(missing_docs)] // A line here would become the help of the command.
    pub runtime: RuntimeArgs,
}

impl InspectArgs {
    /// The options that looking at a model needs.
    pub fn options(&self) -> Options {
        let mut options = Options::default();
        options.data.calibration.mask_input.clone_from(&self.mask_input);
        options.data.calibration.seq_len = Some(self.seq_len);
        options.aim.scope = self.units;
        options.aim.untie = self.untie;
        options.aim.latency_batch = self.latency_batch;
        options.files.latency_table.clone_from(&self.latency_table);
        options.runtime = self.runtime.options();
        options
    }
}
