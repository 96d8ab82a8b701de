//! The program: see the library for what it does.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use onnx_kprune::cli::{self, Cli, Command, CompareArgs, InspectArgs, PruneArgs};
use onnx_kprune::compare::{Terms, compare};
use onnx_kprune::error::Error;
use onnx_kprune::files::check_folder;
use onnx_kprune::inspect::inspect;
use onnx_kprune::pipeline::prune;
use onnx_kprune::progress::{Progress, Silent, Terminal};
use onnx_kprune::report::Report;
use serde::Serialize;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match (&cli.command, &cli.prune) {
        (Some(Command::Inspect(arguments)), _) => run_inspect(arguments),
        (Some(Command::Compare(arguments)), _) => run_compare(arguments),
        (Some(Command::Completions { shell }), _) => print(&cli::completions(*shell)),
        (Some(Command::Man), _) => cli::manual().map_err(|e| Error::internal(e.to_string())).and_then(|m| print(&m)),
        (None, arguments) => run_prune(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let status = error.status();
            eprintln!("{:?}", miette::Report::new(error));
            ExitCode::from(status)
        }
    }
}

fn run_prune(arguments: &PruneArgs) -> Result<(), Error> {
    arguments.check_paths()?;
    let options = arguments.options();
    options.check()?;
    let runtime = arguments.runtime.load(cancel_on_interrupt())?;
    if !arguments.quiet {
        eprintln!(
            "ONNX Runtime: {} ({}, {} threads)",
            runtime.library().display(),
            runtime.provider(),
            runtime.threads()
        );
    }
    let progress: Box<dyn Progress> = if arguments.quiet { Box::new(Silent) } else { Box::new(Terminal::new()) };
    let report = prune(&runtime, arguments.input(), arguments.target(), &options, progress.as_ref())?;
    drop(progress);
    for path in &arguments.report {
        report.save(path)?;
    }
    if arguments.quiet { Ok(()) } else { show(&report, arguments.verbose) }
}

fn run_inspect(arguments: &InspectArgs) -> Result<(), Error> {
    arguments.latency_table.as_deref().map_or(Ok(()), check_folder)?;
    let runtime = arguments.runtime.load(cancel_on_interrupt())?;
    let seen = inspect(&runtime, &arguments.input, &arguments.options(), arguments.latency_table.as_deref())?;
    if arguments.json { print_json(&seen) } else { print(seen.text().as_bytes()) }
}

fn run_compare(arguments: &CompareArgs) -> Result<(), Error> {
    let runtime = arguments.runtime.load(cancel_on_interrupt())?;
    let terms = Terms {
        sources: arguments.reading.sources(&arguments.data, arguments.seq_len),
        outputs: arguments.outputs.clone(),
        seq_len: arguments.seq_len,
        batch: arguments.latency_batch,
    };
    let comparison = compare(&runtime, &arguments.first, &arguments.second, &terms)?;
    if arguments.json { print_json(&comparison) } else { print(comparison.table().as_bytes()) }
}

/// A flag that Ctrl-C sets; a second Ctrl-C ends the program at once.
fn cancel_on_interrupt() -> Arc<AtomicBool> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = cancelled.clone();
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(1);
        }
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        eprintln!("warning: Ctrl-C will end the program without tidying up: {error}");
    }
    cancelled
}

fn show(report: &Report, verbose: bool) -> Result<(), Error> {
    for warning in &report.warnings {
        eprintln!("warning: {warning}");
    }
    let mut text = String::new();
    if verbose {
        for output in &report.objective {
            text.push_str(&format!("output {:?} taken for {}\n", output.name, output.kind));
        }
        for declined in &report.declined {
            text.push_str(&format!(
                "not pruned: {} channels of {}: {}\n",
                declined.channels, declined.place, declined.why
            ));
        }
    }
    text.push_str(&report.table());
    print(text.as_bytes())
}

fn print_json(content: &impl Serialize) -> Result<(), Error> {
    let mut json = serde_json::to_string_pretty(content).map_err(|e| Error::internal(e.to_string()))?;
    json.push('\n');
    print(json.as_bytes())
}

/// Prints; a reader that has seen enough, as `head` has, is no error.
fn print(content: &[u8]) -> Result<(), Error> {
    match std::io::stdout().write_all(content) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("write", "standard output".as_ref())(error))
        }
        _ => Ok(()),
    }
}
