//! The program: see the library for what it does.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use miette::MietteDiagnostic;
use onnx_kprune::cli::{self, Cli, Command, CompareArgs, InspectArgs, JsonLines, PruneArgs, Terminal};
use onnx_kprune::compare::compare_with;
use onnx_kprune::escape::{printable, printable_json};
use onnx_kprune::inspect::inspect_with;
use onnx_kprune::machine::return_large_pieces;
use onnx_kprune::progress::{Silent, say};
use onnx_kprune::store::litter;
use onnx_kprune::{Error, Progress, Pruner, Report};
use serde::Serialize;

fn main() -> ExitCode {
    let cli = Cli::read();
    return_large_pieces();
    // What is a defect is reported as one, in the words of all other errors.
    std::panic::set_hook(Box::new(|_| ()));
    let done = catch_unwind(AssertUnwindSafe(|| run(&cli))).unwrap_or_else(|panic| Err(Error::of_panic(&*panic)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{:?}", shown(&error)));
            ExitCode::from(error.status())
        }
    }
}

fn run(cli: &Cli) -> Result<(), Error> {
    match (&cli.command, &cli.prune) {
        (Some(Command::Inspect(arguments)), _) => run_inspect(arguments),
        (Some(Command::Compare(arguments)), _) => run_compare(arguments),
        (Some(Command::Completions { shell }), _) => print(&cli::completions(*shell)),
        (Some(Command::Man), _) => cli::manual().map_err(|e| Error::internal(e.to_string())).and_then(|m| print(&m)),
        (None, arguments) => run_prune(arguments),
    }
}

fn run_prune(arguments: &PruneArgs) -> Result<(), Error> {
    let progress: Box<dyn Progress> = match (arguments.quiet, arguments.json_progress) {
        (true, _) => Box::new(Silent),
        (_, true) => Box::new(JsonLines),
        _ => Box::new(Terminal::new()),
    };
    let pruner = Pruner::new(arguments.input()).options(|options| *options = arguments.options());
    let pruner = pruner.progress(progress.as_ref()).cancelled_by(cancel_on_signal());
    pruner.check()?;
    let runtime = pruner.runtime()?;
    if !arguments.quiet && !arguments.json_progress {
        let (library, provider) = (runtime.library().display(), runtime.provider());
        say(&printable(&format!("ONNX Runtime: {library} ({provider}, {} threads)", runtime.threads())));
    }
    let report = pruner.prune_with(&runtime, arguments.target())?;
    drop(pruner);
    drop(progress);
    if arguments.prints_report() {
        return print_json(&report);
    }
    if arguments.quiet || arguments.json_progress { Ok(()) } else { show(&report, arguments.verbose) }
}

fn run_inspect(arguments: &InspectArgs) -> Result<(), Error> {
    let options = arguments.options();
    let seen = inspect_with(&options.runtime.load(cancel_on_signal())?, &arguments.input, &options)?;
    if arguments.json { print_json(&seen) } else { print_text(&seen.text(arguments.verbose)) }
}

fn run_compare(arguments: &CompareArgs) -> Result<(), Error> {
    let options = arguments.options();
    let runtime = options.runtime.load(cancel_on_signal())?;
    let comparison = compare_with(&runtime, &arguments.first, &arguments.second, &options)?;
    if arguments.json { print_json(&comparison) } else { print_text(&comparison.table()) }
}

/// How long the work may take to end by itself after a signal.
const GRACE: Duration = Duration::from_millis(600);

/// A flag that SIGINT (Ctrl-C), SIGTERM and SIGHUP set. The work ends at its next step; where that takes long, as
/// inside a library, or after a second signal, the process ends without it. Nothing is left behind either way.
fn cancel_on_signal() -> Arc<AtomicBool> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = cancelled.clone();
    let leave = || {
        say(&format!("{:?}", shown(&Error::Interrupted)));
        litter::leave(i32::from(Error::Interrupted.status()))
    };
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            leave();
        }
        std::thread::spawn(move || {
            std::thread::sleep(GRACE);
            leave();
        });
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        say(&format!("warning: signals will end the program without tidying up: {error}"));
    }
    cancelled
}

/// An error as it is shown, with what it quotes of files made harmless.
fn shown(error: &Error) -> miette::Report {
    let help = miette::Diagnostic::help(error).map(|help| printable(&help.to_string()).into_owned());
    let message = printable(&error.to_string()).into_owned();
    miette::Report::new(MietteDiagnostic { help, ..MietteDiagnostic::new(message) })
}

fn show(report: &Report, verbose: bool) -> Result<(), Error> {
    for warning in &report.warnings {
        say(&printable(&format!("warning: {warning}")));
    }
    let mut text = String::new();
    if verbose {
        for output in &report.objective {
            text.push_str(&format!("output {:?} taken for {}\n", output.name, output.kind));
        }
        for declined in &report.declined {
            text.push_str(&format!("not pruned: {declined}\n"));
        }
    }
    text.push_str(&report.table());
    print_text(&text)
}

fn print_json(content: &impl Serialize) -> Result<(), Error> {
    let mut json = serde_json::to_string_pretty(content).map_err(|e| Error::internal(e.to_string()))?;
    json.push('\n');
    print(printable_json(&json).as_bytes())
}

fn print_text(text: &str) -> Result<(), Error> {
    print(printable(text).as_bytes())
}

/// Prints; a reader that has seen enough, as `head` has, is no error.
fn print(content: &[u8]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(content).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("write", "standard output".as_ref())(error))
        }
        _ => Ok(()),
    }
}
