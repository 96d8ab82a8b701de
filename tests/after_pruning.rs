//! What comes out goes through the tools that people use next.
#![allow(missing_docs)]

mod support;

use std::process::Command;

use support::{fixtures, prune_reviews, python, reviews, text};

/// Runs one tool of fixtures/after_pruning.py on a model that was pruned with `options`.
fn goes_through(tool: &str, package: &str, options: &[&str]) {
    let Some(python) = python() else { return eprintln!("skipped: no Python environment") };
    let has = Command::new(&python).args(["-c", &format!("import {package}")]).output().unwrap();
    if !has.status.success() {
        return eprintln!("skipped: {package} is not installed");
    }
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("pruned.onnx");
    prune_reviews(&output, options);
    let script = Command::new(python)
        .arg(fixtures().join("after_pruning.py"))
        .args([&output, &reviews().join("eval.npz")])
        .arg(tool)
        .output()
        .unwrap();
    assert!(script.status.success(), "{}{}", text(&script.stdout), text(&script.stderr));
    assert!(text(&script.stdout).contains(tool));
}

const UNITS: [&str; 2] = ["--compression", "0.6"];

#[test]
fn onnx_runtimes_transformer_optimiser_takes_it() {
    goes_through("optimizer", "sympy", &UNITS);
}

#[test]
fn it_can_be_quantised() {
    goes_through("quantise", "onnxruntime.quantization", &UNITS);
}

#[test]
fn openvino_runs_it() {
    goes_through("openvino", "openvino", &UNITS);
}

#[test]
fn openvino_runs_it_with_zeros_and_few_bits() {
    for bits in ["int8", "int4"] {
        goes_through("openvino", "openvino", &["--compression", "0.3", "--sparsity", "0.3", "--quantise", bits]);
    }
}

#[test]
fn tract_runs_it() {
    goes_through("tract", "tract", &UNITS);
}
