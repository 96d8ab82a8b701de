//! The command line.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::Parser;
use kprune_passes::discover::Scope;
use kprune_passes::loss::OutputKind;
use kprune_passes::search::Weights;

use crate::calibration::Sources;
use crate::config::Options;
use crate::error::Error;
use crate::machine::quarter_of_memory;
use crate::runtime::Choice;

/// Prune the attention heads and FFN neurons of an ONNX encoder, without retraining.
///
/// Reads IN, measures on a small calibration set what every attention head and FFN neuron knows, removes
/// the least knowing ones physically, repairs the rest with a least-squares solution, and writes OUT, a
/// plain ONNX file that any runtime loads. Before OUT appears, it is checked against IN.
///
/// Exit status: 0 done, 2 wrong usage, 1 anything else.
#[derive(Debug, Parser)]
#[command(name = "onnx-kprune", version, max_term_width = 100)]
pub struct Cli {
    /// The model to prune; it is never changed
    #[arg(value_name = "IN")]
    pub input: PathBuf,

    /// The pruned model; appears whole or not at all
    #[arg(value_name = "OUT")]
    pub output: PathBuf,

    /// Samples of the task: .npz (one array per model input), .jsonl ({"text": ...}) or .txt; may be repeated
    #[arg(long, value_name = "PATH", help_heading = "Calibration")]
    pub calibration: Vec<PathBuf>,

    /// Share of the prunable FLOPs to remove, 0 to 0.95
    #[arg(long, value_name = "R", default_value = "0.5", value_parser = compression)]
    pub compression: f64,

    /// The tokenizer.json for text; looked for beside IN
    #[arg(long, value_name = "PATH", help_heading = "Calibration")]
    pub tokenizer: Option<PathBuf>,

    /// The input that holds 1 for real tokens and 0 for padding [default: attention_mask]
    #[arg(long, value_name = "NAME", help_heading = "Calibration")]
    pub mask_input: Option<String>,

    /// Samples in a mini-batch
    #[arg(long, value_name = "N", default_value = "32", value_parser = positive, help_heading = "Calibration")]
    pub batch_size: usize,

    /// Keep a multiple of N neurons in every sublayer [default: 16 in wide ones, which kernels like]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Method")]
    pub align: Option<usize>,

    /// Measure knowledge anew at the second sublayer and then at every K-th [default: a quarter of them;
    /// published: 1]
    #[arg(long, value_name = "K", value_parser = positive, help_heading = "Method")]
    pub refresh: Option<usize>,

    /// How much of the values between sublayers is kept in memory, as 2GiB or 500MB; the rest is kept in a
    /// temporary file [default: a quarter of the machine's memory]
    #[arg(long, value_name = "SIZE", help_heading = "Runtime")]
    pub memory: Option<ByteSize>,

    /// What may be removed: heads and neurons of transformer sublayers, or all that ends in a matrix product
    #[arg(long, value_name = "WHICH", default_value = "transformer", value_parser = scope)]
    pub units: Scope,

    /// Take an output for logits, span, tokens, regression or hidden, or ignore it; may be repeated
    #[arg(long = "output", value_name = "NAME:KIND", value_parser = output, help_heading = "Method")]
    pub outputs: Vec<(String, OutputKind)>,

    /// Give layers that share weights their own before pruning
    #[arg(long)]
    pub untie: bool,

    /// Sequence length for which FLOPs are counted [default: the mean true length of the samples]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub seq_len: Option<usize>,

    /// Seed of whatever is drawn
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,

    /// Weight of the predictive knowledge
    #[arg(long, value_name = "X", default_value = "1", value_parser = weight, help_heading = "Method")]
    pub lambda_pred: f64,

    /// Weight of the representational knowledge
    #[arg(long, value_name = "X", default_value = "0.00025", value_parser = weight, help_heading = "Method")]
    pub lambda_rep: f64,

    /// Weight of heads against neurons
    #[arg(long, value_name = "X", default_value = "64", value_parser = weight, help_heading = "Method")]
    pub mu: f64,

    /// Temperature of the distillation loss
    #[arg(long, value_name = "X", default_value = "2", value_parser = temperature, help_heading = "Method")]
    pub temperature: f64,

    /// Execution provider: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "P", default_value = "auto", help_heading = "Runtime")]
    pub provider: Choice,

    /// Let CUDA round products to TF32: faster, and coarser
    #[arg(long, help_heading = "Runtime")]
    pub tf32: bool,

    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Runtime")]
    pub threads: Option<usize>,

    /// The ONNX Runtime library or its folder [default: searched for]
    #[arg(long, value_name = "PATH", help_heading = "Runtime")]
    pub onnxruntime: Option<PathBuf>,

    /// Write what was done as JSON
    #[arg(long, value_name = "PATH.json", help_heading = "Output")]
    pub report: Option<PathBuf>,

    /// Say more: what was found, what was declined and why
    #[arg(short, long, conflicts_with = "quiet", help_heading = "Output")]
    pub verbose: bool,

    /// Say nothing but errors
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a whole number above 0".into())
}

fn number(text: &str, fits: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&x: &f64| fits(x)).ok_or_else(|| format!("expected {expected}"))
}

fn compression(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..=0.95).contains(&x), "a number from 0 to 0.95")
}

fn weight(text: &str) -> Result<f64, String> {
    number(text, |x| x.is_finite() && x >= 0.0, "a number, 0 or above")
}

fn temperature(text: &str) -> Result<f64, String> {
    number(text, |x| x.is_finite() && x > 0.0, "a number above 0")
}

fn scope(text: &str) -> Result<Scope, String> {
    match text {
        "transformer" => Ok(Scope::Transformer),
        "all" => Ok(Scope::All),
        _ => Err("expected transformer or all".into()),
    }
}

fn output(text: &str) -> Result<(String, OutputKind), String> {
    let (name, kind) = text.rsplit_once(':').ok_or("expected NAME:KIND")?;
    Ok((name.to_string(), kind.parse()?))
}

impl Cli {
    /// The settings of the run.
    pub fn options(&self) -> Options {
        Options {
            compression: self.compression,
            sources: Sources {
                files: self.calibration.clone(),
                tokenizer: self.tokenizer.clone(),
                mask_input: self.mask_input.clone(),
                seq_len: self.seq_len,
                seed: self.seed,
            },
            seq_len: self.seq_len,
            scope: self.units,
            outputs: self.outputs.clone(),
            untie: self.untie,
            weights: Weights { pred: self.lambda_pred, rep: self.lambda_rep, head: self.mu },
            temperature: self.temperature,
            batch_size: self.batch_size,
            refresh: self.refresh,
            align: self.align,
            memory: self.memory.map_or_else(quarter_of_memory, |size| size.as_u64()),
            provider: self.provider,
            tf32: self.tf32,
            threads: self.threads.unwrap_or(0),
            onnxruntime: self.onnxruntime.clone(),
        }
    }

    /// Refuses to overwrite the input, in whatever way it is named, and folders that are not there.
    ///
    /// # Errors
    /// [`Error::Usage`] where IN and OUT are the same file, [`Error::Io`] for a missing folder.
    pub fn check_paths(&self) -> Result<(), Error> {
        let same = match (self.input.canonicalize(), self.output.canonicalize()) {
            (Ok(input), Ok(output)) => input == output,
            _ => self.input == self.output,
        };
        if same {
            return Err(Error::Usage("OUT is the same file as IN, which is never changed; name another file".into()));
        }
        let reports_over = |report: &Path| report == self.output || report == self.input;
        if self.report.as_deref().is_some_and(reports_over) {
            return Err(Error::Usage("--report names the model file; name another file".into()));
        }
        // Found out now rather than when all the work is done.
        for path in [Some(&self.output), self.report.as_ref()].into_iter().flatten() {
            crate::files::check_folder(path)?;
        }
        Ok(())
    }
}
