//! The command line.

mod besa;
mod compare;
mod inspect;
mod kprune;
mod kwon;
mod method;
mod obs;
mod parse;
mod prune;
mod replay;
mod shared;
mod terminal;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use compare::CompareArgs;
pub use inspect::InspectArgs;
pub use kprune::KpruneArgs;
pub use method::{Method, MethodArgs};
pub use prune::PruneArgs;
pub use shared::{DataArgs, RuntimeArgs};
pub use terminal::{JsonLines, Terminal};

/// Prune the attention heads and FFN neurons of a transformer in ONNX, without retraining.
///
/// Reads IN, measures on a small calibration set what every attention head and FFN neuron knows, removes
/// the least knowing ones physically, repairs the rest with a least-squares solution, and writes OUT, a
/// plain ONNX file that any runtime loads. Before OUT appears, it is checked against IN.
///
/// Exit status: 0 done, 2 wrong usage, 1 anything else.
#[derive(Debug, Parser)]
#[command(
    name = "onnx-kprune",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    after_long_help = EXAMPLES
)]
pub struct Cli {
    /// What to do instead of pruning.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// How to prune.
    #[command(flatten)]
    pub prune: PruneArgs,
}

impl Cli {
    /// What the program was called with; where that makes no sense, the program ends.
    pub fn read() -> Self {
        let refuse = |message: String| -> ! { Self::command().error(ErrorKind::ArgumentConflict, message).exit() };
        // Paths that are no text are taken as they are, and cannot be called again by a report.
        let texts: Result<Vec<String>, _> = std::env::args_os().map(std::ffi::OsString::into_string).collect();
        let called = texts.map(|texts| replay::completed(texts).unwrap_or_else(|message| refuse(message)));
        let called: Vec<std::ffi::OsString> = match called {
            Ok(texts) => texts.into_iter().map(Into::into).collect(),
            Err(_) => std::env::args_os().collect(),
        };
        let given = Self::command().args_override_self(true).get_matches_from(&called);
        let mut cli = Self::from_arg_matches(&given).unwrap_or_else(|error| error.exit());
        let texts = called.iter().skip(1).map(|argument| argument.clone().into_string());
        cli.prune.command = texts.collect::<Result<_, _>>().unwrap_or_default();
        let is_sparse = cli.prune.sparsity.sparsity.is_some();
        if let Some((option, method)) = cli.prune.method.stray(&given, is_sparse) {
            refuse(format!("{option} is an option of --method {method:?}").to_lowercase());
        }
        if !is_sparse && cli.prune.method.method == Method::Wanda {
            refuse("--method wanda makes single weights zero: say how many with --sparsity".into());
        }
        cli
    }
}

/// What can be done besides pruning.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what can be pruned, and what cannot and why
    Inspect(InspectArgs),
    /// Compare two models: quality on the same data, size, FLOPs, latency
    Compare(CompareArgs),
    /// Print a script that completes the options in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

const EXAMPLES: &str = "\
Examples:
  onnx-kprune model.onnx pruned.onnx --calibration task.jsonl
      removes half of the prunable FLOPs; task.jsonl holds {\"text\": \"...\"} lines, and tokenizer.json
      lies beside the model
  onnx-kprune model.onnx fast.onnx --calibration task.npz --speedup 2 --report report.html
      removes as much as makes the model twice as fast here, and draws what was done
  onnx-kprune model.onnx out.onnx --calibration train.csv --eval test.csv --max-drop 0.01
      writes the smallest model that loses at most one point of accuracy
  onnx-kprune bert-folder/ pruned-folder/ --sweep 0.2,0.4,0.6
      prunes a folder as optimum writes it, three times from one measurement
  onnx-kprune inspect model.onnx
  onnx-kprune compare model.onnx pruned.onnx --data test.csv";

/// The script that completes the options in `shell`.
pub fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "onnx-kprune", &mut script);
    script
}

/// The manual page, in roff.
///
/// # Errors
/// Never, but for want of memory.
pub fn manual() -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    for subcommand in Cli::command().get_subcommands().filter(|c| matches!(c.get_name(), "inspect" | "compare")) {
        let name = format!("onnx-kprune {}", subcommand.get_name());
        let subcommand = subcommand.clone().display_name(name.replace(' ', "-")).bin_name(name);
        clap_mangen::Man::new(subcommand).render(&mut page)?;
    }
    Ok(page)
}
