//! What the program is called with, before it is parsed: `prune` may stand for what is done without a command, and a report
//! for the options of the run that wrote it.

use std::path::Path;

use clap::{CommandFactory, FromArgMatches};
use serde_json::Value;

use super::{Cli, PruneArgs};
use crate::store;

/// The option that names a report.
const CONFIG: &str = "--config";

/// Options that say how much goes: one instead of another.
const AMOUNTS: [&str; 6] = ["--compression", "--sweep", "--speedup", "--latency-ms", "--max-drop", "--plan"];

/// What the program was called with, with what the report says that it names. The first is the program.
///
/// # Errors
/// Where the report cannot be read, or says nothing of that.
pub(super) fn completed(mut called: Vec<String>) -> Result<Vec<String>, String> {
    if called.get(1).is_some_and(|first| first == "prune") {
        called.remove(1);
    }
    let Some(report) = take(&mut called, CONFIG) else { return Ok(called) };
    let program = called.first().cloned().unwrap_or_default();
    let recorded = recorded(Path::new(&report))?;
    let own = positionals(&called);
    let theirs = positionals(&[vec![program.clone()], recorded.clone()].concat());
    // What is given instead comes where the report has its own.
    let mut options = recorded;
    for place in theirs.iter().filter(|_| !own.is_empty()) {
        if let Some(at) = options.iter().position(|argument| argument == place) {
            options.remove(at);
        }
    }
    let given = called.iter().skip(1).filter(|argument| argument.starts_with("--"));
    for option in given.map(|argument| argument.split('=').next().unwrap_or(argument)) {
        let alike = AMOUNTS.contains(&option).then_some(AMOUNTS.as_slice());
        for option in alike.unwrap_or(&[option]) {
            while take(&mut options, option).is_some() {}
        }
    }
    // Options that take several values end before the models.
    let rest = called.split_off(1.min(called.len()));
    Ok([vec![program], rest, options].concat())
}

/// Takes an option with its values out of what the program was called with; the first value.
fn take(called: &mut Vec<String>, option: &str) -> Option<String> {
    let with_value = format!("{option}=");
    let at = called.iter().position(|argument| argument == option || argument.starts_with(&with_value))?;
    let argument = called.remove(at);
    if let Some(value) = argument.strip_prefix(&with_value) {
        return Some(value.to_string());
    }
    let mut command = Cli::command();
    command.build();
    let long = option.trim_start_matches('-');
    let values = command.get_arguments().find(|a| a.get_long() == Some(long)).and_then(|a| a.get_num_args());
    let most = values.map_or(0, |values| values.max_values());
    let is_value = |argument: &&String| !argument.starts_with("--");
    let count = called.iter().skip(at).take(most).take_while(is_value).count();
    Some(called.drain(at..at + count).next().unwrap_or_default())
}

/// IN and OUT, where they are given.
fn positionals(called: &[String]) -> Vec<String> {
    let given = Cli::command().ignore_errors(true).try_get_matches_from(called);
    let prune = given.ok().and_then(|given| PruneArgs::from_arg_matches(&given).ok());
    let Some(prune) = prune else { return Vec::new() };
    let paths = [Some(prune.input()), prune.output.as_deref()];
    paths.into_iter().flatten().map(|path| path.display().to_string()).filter(|path| !path.is_empty()).collect()
}

/// What the program was called with when it wrote a report.
fn recorded(report: &Path) -> Result<Vec<String>, String> {
    let content = store::read(report).map_err(|e| format!("{CONFIG}: cannot read {}: {e}", report.display()))?;
    let report: Value = serde_json::from_slice(&content)
        .map_err(|e| format!("{CONFIG}: {} is no report in JSON: {e}", report.display()))?;
    let command = report.get("command").and_then(Value::as_array);
    let command = command.ok_or(format!("{CONFIG}: the report does not say how the program was called"))?;
    Ok(command.iter().filter_map(Value::as_str).map(str::to_string).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn with_report(command: &[&str], called: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        std::fs::write(&path, serde_json::json!({"command": command}).to_string()).unwrap();
        let called = called.replace("REPORT", path.to_str().unwrap());
        completed(called.split(' ').map(str::to_string).collect()).unwrap()
    }

    #[test]
    fn a_report_gives_what_is_not_said_anew() {
        let command = ["a.onnx", "b.onnx", "--calibration", "c.npz", "--compression", "0.4", "--untie"];
        let again = with_report(&command, "onnx-kprune --config REPORT");
        assert_eq!(again[1..], command);
        let other = with_report(&command, "onnx-kprune x.onnx y.onnx --config REPORT --compression=0.6");
        let more = with_report(&["--untie", "a.onnx", "b.onnx"], "onnx-kprune --untie --config REPORT");
        assert_eq!(more[1..], ["--untie", "a.onnx", "b.onnx"]);
        assert_eq!(other[1..], ["x.onnx", "y.onnx", "--compression=0.6", "--calibration", "c.npz", "--untie"]);
    }

    #[test]
    fn pruning_may_be_called_by_its_name() {
        let called = ["onnx-kprune", "prune", "in.onnx", "out.onnx"].map(str::to_string).to_vec();
        assert_eq!(completed(called).unwrap(), ["onnx-kprune", "in.onnx", "out.onnx"]);
    }
}
