//! The program: see the library for what it does.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use onnx_kprune::cli::Cli;
use onnx_kprune::error::Error;
use onnx_kprune::pipeline::prune;
use onnx_kprune::progress::Progress;
use onnx_kprune::report::Report;
use onnx_kprune::runtime::Runtime;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let status = error.status();
            eprintln!("{:?}", miette::Report::new(error));
            ExitCode::from(status)
        }
    }
}

fn run(cli: &Cli) -> Result<(), Error> {
    cli.check_paths()?;
    let options = cli.options();
    let runtime =
        Runtime::load(options.onnxruntime.as_deref(), options.provider, options.threads, cancel_on_interrupt())?
            .with_tf32(options.tf32);
    if !cli.quiet {
        eprintln!(
            "ONNX Runtime: {} ({}, {} threads)",
            runtime.library().display(),
            runtime.provider(),
            runtime.threads()
        );
    }
    let progress = if cli.quiet { Progress::silent() } else { Progress::visible() };
    let report = prune(&runtime, &cli.input, &cli.output, &options, &progress)?;
    drop(progress);
    if let Some(path) = &cli.report {
        report.save(path)?;
    }
    if !cli.quiet {
        show(&report, cli.verbose);
    }
    Ok(())
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

fn show(report: &Report, verbose: bool) {
    for warning in &report.warnings {
        eprintln!("warning: {warning}");
    }
    if verbose {
        for output in &report.objective {
            println!("output {:?} taken for {}", output.name, output.kind);
        }
        for declined in &report.declined {
            println!("not pruned: {} channels of {}: {}", declined.channels, declined.place, declined.why);
        }
    }
    print!("{}", report.table());
}
