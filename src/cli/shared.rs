//! Options that several commands have.

use std::path::PathBuf;

use clap::Args;

use super::parse::{positive, threads};
use crate::data::{Columns, Sources};
use crate::options::RuntimeOptions;
use crate::runtime::Choice;

/// How graphs are run.
#[derive(Clone, Debug, Args)]
pub struct RuntimeArgs {
    /// Execution provider: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "P", default_value = "auto", help_heading = "Runtime")]
    pub provider: Choice,

    /// Let CUDA round products to TF32: faster, and coarser
    #[arg(long, help_heading = "Runtime")]
    pub tf32: bool,

    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = threads, help_heading = "Runtime")]
    pub threads: Option<usize>,

    /// The ONNX Runtime library or its folder [default: searched for]
    #[arg(long, value_name = "PATH", help_heading = "Runtime")]
    pub onnxruntime: Option<PathBuf>,
}

impl RuntimeArgs {
    /// As options.
    pub fn options(&self) -> RuntimeOptions {
        let (threads, onnxruntime) = (self.threads.unwrap_or(0), self.onnxruntime.clone());
        RuntimeOptions { provider: self.provider, tf32: self.tf32, threads, onnxruntime, ..RuntimeOptions::default() }
    }
}

/// How data are read.
#[derive(Clone, Debug, Args)]
pub struct DataArgs {
    /// Take N samples of the data, drawn with the seed [default: all]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Data")]
    pub samples: Option<usize>,

    /// The tokenizer.json for text; looked for beside the model
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub tokenizer: Option<PathBuf>,

    /// One or two columns of text in .jsonl, .csv and .tsv, by name; in .txt with tabs, by number
    /// [default: text, sentence, or a usual pair such as premise,hypothesis]
    #[arg(long, value_name = "A[,B]", value_delimiter = ',', help_heading = "Data")]
    pub text_columns: Vec<String>,

    /// The column of labels [default: label, where there is one]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub label_column: Option<String>,

    /// Take text for running text, in segments of N tokens [default: for models that predict the next token, as many as
    /// their positions allow, at most 2048]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Data")]
    pub segment: Option<usize>,

    /// The preprocessor_config.json for images; looked for beside the model
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub preprocessor: Option<PathBuf>,

    /// The input that holds 1 for real tokens and 0 for padding, or none [default: recognised by its numbers]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub mask_input: Option<String>,

    /// Seed of whatever is drawn
    #[arg(long, value_name = "N", default_value = "0", help_heading = "Data")]
    pub seed: u64,
}

impl DataArgs {
    /// Where the data come from.
    pub fn sources(&self, files: &[PathBuf], seq_len: Option<usize>) -> Sources {
        Sources {
            files: files.to_vec(),
            batches: Vec::new(),
            samples: self.samples,
            tokenizer: self.tokenizer.clone(),
            columns: Columns { texts: self.text_columns.clone(), label: self.label_column.clone() },
            preprocessor: self.preprocessor.clone(),
            mask_input: self.mask_input.clone(),
            segment: self.segment,
            seq_len,
            seed: self.seed,
        }
    }
}
