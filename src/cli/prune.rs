//! The options of pruning.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::Args;
use kprune_passes::calculus::objective::OutputKind;
use kprune_passes::discover::Scope;
use kprune_passes::discover::cost::Alignment;

use super::besa::SparsityArgs;
use super::parse::{above_one, above_zero, compression, distil, dump, output, positive, report, scope, weight};
use super::{DataArgs, MethodArgs, RuntimeArgs};
use crate::options::{Amount, Distil, Of, Options, Stage};

/// Compressions that are tried where only the drop is limited.
const TRIED: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// The compression where nothing is said of how much goes.
const USUAL: f64 = 0.5;

/// How to prune.
#[derive(Clone, Debug, Args)]
pub struct PruneArgs {
    /// The model to prune: a file, or a folder as optimum writes it; it is never changed
    #[arg(value_name = "IN", required = true)]
    input: Option<PathBuf>,

    /// The pruned model: a file, or for a folder a new folder; appears whole or not at all
    #[arg(value_name = "OUT", required_unless_present_any = ["dry_run", "named_output"])]
    pub output: Option<PathBuf>,

    /// The same, by name
    #[arg(short = 'o', long = "output", value_name = "OUT", conflicts_with = "output")]
    pub named_output: Option<PathBuf>,

    /// Samples of the task: .npz or .safetensors (one array per model input), .jsonl, .json, .csv, .tsv or .txt (text), a
    /// folder of images, or a folder with test_data_set_*; may be repeated
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub calibration: Vec<PathBuf>,

    /// Data to judge results by, with labels or without; of the same kinds
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub eval: Vec<PathBuf>,

    #[command(flatten)]
    #[allow(missing_docs)] // A line here would become the help of the command.
    pub data: DataArgs,

    /// Share of the prunable FLOPs, or of what --of names, to remove, 0 to 0.95 [default: 0.5, and 0 with --sparsity or
    /// --trim-vocabulary]
    #[arg(long, value_name = "R", value_parser = compression, help_heading = "How much")]
    pub compression: Option<f64>,

    /// What shares are of: flops (of what can be pruned), params (all of the model, as papers on decoders count) or
    /// block-params (of what can be pruned)
    #[arg(long, value_name = "WHAT", default_value = "flops", help_heading = "How much",
        conflicts_with_all = ["speedup", "latency_ms", "plan"])]
    pub of: Of,

    /// Remove as much as makes the model X times as fast, measured on this machine
    #[arg(long, value_name = "X", value_parser = above_one, help_heading = "How much",
        conflicts_with_all = ["compression", "sweep", "max_drop", "plan"])]
    pub speedup: Option<f64>,

    /// Remove as much as makes a run take X milliseconds on this machine
    #[arg(long, value_name = "X", value_parser = above_zero, help_heading = "How much",
        conflicts_with_all = ["compression", "speedup", "sweep", "max_drop", "plan"])]
    pub latency_ms: Option<f64>,

    /// Several compressions from one measurement, with commas or blanks between; OUT names them, as out-0.4.onnx
    #[arg(long, value_name = "R", num_args = 1.., value_delimiter = ',', value_parser = compression, help_heading = "How much",
        conflicts_with_all = ["compression", "plan"])]
    pub sweep: Vec<f64>,

    /// Write the smallest model whose score falls by at most D: accuracy (or what the labels allow), or without
    /// labels agreement with the original; of decoders the share by which perplexity rises; tries 0.1 to 0.9, or what --sweep says
    #[arg(long, value_name = "D", value_parser = weight, help_heading = "How much",
        conflicts_with_all = ["compression", "plan"])]
    pub max_drop: Option<f64>,

    /// Sequence length for which FLOPs are counted and latencies measured [default: the mean true length of the
    /// samples]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "How much")]
    pub seq_len: Option<usize>,

    /// Samples in a run whose latency is measured
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive, help_heading = "How much")]
    pub latency_batch: usize,

    /// Read the times of sublayers from FILE, or write them there where it is not yet; a table from another
    /// machine aims at that machine
    #[arg(long, value_name = "FILE", help_heading = "How much")]
    pub latency_table: Option<PathBuf>,

    /// What may be removed: heads and neurons of transformer sublayers, or all that ends in a matrix product
    #[arg(long, value_name = "WHICH", default_value = "transformer", value_parser = scope, help_heading = "What")]
    pub units: Scope,

    /// Give layers that share weights their own before pruning
    #[arg(long, help_heading = "What")]
    pub untie: bool,

    /// Leave the tokens that occur in this text, and letters to spell others: tables, scores, tokenizer.json and
    /// config.json of a folder follow; may be repeated. Nothing else goes where --compression does not say so
    #[arg(long, value_name = "TEXT", help_heading = "What")]
    pub trim_vocabulary: Vec<PathBuf>,

    /// Let attentions with key/value caches keep different numbers of heads; for runners that do not take one number for
    /// all
    #[arg(long, help_heading = "What")]
    pub uneven_heads: bool,

    /// Keep the units that FILE lists, and measure nothing but what tuning needs
    #[arg(long, value_name = "FILE", conflicts_with = "compression", help_heading = "What")]
    pub plan: Option<PathBuf>,

    /// Write the units that stay to FILE, to be looked at, edited, and applied with --plan
    #[arg(long, value_name = "FILE", conflicts_with = "sweep", help_heading = "What")]
    pub save_plan: Option<PathBuf>,

    /// Choose units and write no model
    #[arg(long, help_heading = "What")]
    pub dry_run: bool,

    #[command(flatten)]
    #[allow(missing_docs)] // A line here would become the help of the command.
    pub method: MethodArgs,

    #[command(flatten)]
    #[allow(missing_docs)] // A line here would become the help of the command.
    pub sparsity: SparsityArgs,

    /// Let what stays learn from the original afterwards: off, on, auto (unless it turns out worse on samples set aside), or
    /// auto at the cost of so many passes of the original over the calibration set
    #[arg(long, value_name = "WHEN", default_value = "off", value_parser = distil, help_heading = "Method")]
    pub distil: Distil,

    /// Samples in a mini-batch [default: 32, and 12 where outputs are spans]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Method")]
    pub batch_size: Option<usize>,

    /// Keep a multiple of N neurons in every sublayer [default: 16 in wide ones, which kernels like]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Method")]
    pub align: Option<usize>,

    /// Take an output for logits, span, tokens, next, multilabel, regression or hidden, or ignore it; may be repeated
    #[arg(long = "output-kind", value_name = "NAME:KIND", value_parser = output, help_heading = "Method")]
    pub outputs: Vec<(String, OutputKind)>,

    #[command(flatten)]
    #[allow(missing_docs)] // A line here would become the help of the command.
    pub runtime: RuntimeArgs,

    /// How much of the values between sublayers is kept in memory, as 2GiB or 500MB; the rest is kept in a
    /// temporary file [default: a quarter of the machine's memory]
    #[arg(long, value_name = "SIZE", help_heading = "Runtime")]
    pub memory: Option<ByteSize>,

    /// Write what was done: as a page where FILE ends in .html, as JSON where it ends in .json; - prints JSON on standard
    /// output; may be repeated
    #[arg(long, value_name = "FILE", value_parser = report, help_heading = "Report")]
    pub report: Vec<PathBuf>,

    /// Do what the run of this report.json did; IN, OUT and options that are given come before those of the report
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub config: Option<PathBuf>,

    /// Write a graph that the run makes on its way to FILE as ONNX, for looking at; STAGE is read, single, lowered,
    /// columns, equations or masked; may be repeated
    #[arg(long, value_name = "STAGE=FILE", value_parser = dump, help_heading = "Report")]
    pub dump_graph: Vec<(Stage, PathBuf)>,

    /// Say more: what was found, what was declined and why
    #[arg(short, long, conflicts_with = "quiet", help_heading = "Report")]
    pub verbose: bool,

    /// Say nothing but errors
    #[arg(short, long, help_heading = "Report")]
    pub quiet: bool,

    /// Say how far the work is in lines of JSON on standard error, for programs
    #[arg(long, hide = true, conflicts_with = "quiet")]
    pub json_progress: bool,

    /// What the program was called with.
    #[arg(skip)]
    pub(super) command: Vec<String>,
}

impl PruneArgs {
    /// The options of the run.
    pub fn options(&self) -> Options {
        let mut options = Options::default();
        options.aim.amount = self.amount();
        options.aim.max_drop = self.max_drop;
        options.aim.scope = self.units;
        options.aim.of = self.of;
        options.aim.untie = self.untie;
        options.aim.uneven_heads = self.uneven_heads;
        options.aim.alignment = Alignment(self.align);
        options.aim.latency_batch = self.latency_batch;
        options.vocabulary.clone_from(&self.trim_vocabulary);
        options.data.calibration = self.data.sources(&self.calibration, self.seq_len);
        options.data.evaluation.clone_from(&self.eval);
        options.data.outputs.clone_from(&self.outputs);
        options.data.batch_size = self.batch_size;
        options.method = self.method.settings();
        options.distil = self.distil;
        options.quantise = self.sparsity.quantise;
        options.sparsity = self.sparsity.settings(self.method.method, &self.method.besa);
        options.runtime = self.runtime.options();
        options.runtime.memory = self.memory.map_or(options.runtime.memory, |size| size.as_u64());
        options.files.plan.clone_from(&self.plan);
        options.files.save_plan.clone_from(&self.save_plan);
        options.files.latency_table.clone_from(&self.latency_table);
        options.files.reports = self.report.iter().filter(|path| !is_output(path)).cloned().collect();
        options.files.dumps.clone_from(&self.dump_graph);
        options.command.clone_from(&self.command);
        options
    }

    fn amount(&self) -> Amount {
        match (self.speedup, self.latency_ms, self.sweep.as_slice(), self.max_drop) {
            (Some(times), ..) => Amount::Speedup(times),
            (_, Some(milliseconds), ..) => Amount::Latency(milliseconds / 1e3),
            (_, _, [], Some(_)) => Amount::Compression(TRIED.to_vec()),
            (_, _, [], None) => Amount::Compression(vec![self.compression.unwrap_or(self.usual())]),
            (_, _, shares, _) => {
                let mut shares = shares.to_vec();
                shares.sort_by(f64::total_cmp);
                shares.dedup();
                Amount::Compression(shares)
            }
        }
    }

    /// The compression where none is given.
    fn usual(&self) -> f64 {
        if self.sparsity.sparsity.is_some() || !self.trim_vocabulary.is_empty() { 0.0 } else { USUAL }
    }

    /// The model to prune.
    pub fn input(&self) -> &Path {
        self.input.as_deref().unwrap_or(Path::new(""))
    }

    /// Where the model is to be written; nowhere in a dry run.
    pub fn target(&self) -> Option<&Path> {
        self.output.as_deref().or(self.named_output.as_deref()).filter(|_| !self.dry_run)
    }

    /// Whether the report is printed on standard output too, for which it is called `-`.
    pub fn prints_report(&self) -> bool {
        self.report.iter().any(|path| is_output(path))
    }
}

fn is_output(path: &Path) -> bool {
    path == "-"
}
