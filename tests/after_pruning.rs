//! What comes out goes through the tools that people use next.
#![allow(missing_docs)]

mod support;

use std::process::Command;

use support::{fixtures, prune_reviews, python, reviews, text};

/// Runs one tool of fixtures/after_pruning.py on a pruned model.
fn goes_through(tool: &str, package: &str) {
    let Some(python) = python() else { return eprintln!("skipped: no Python environment") };
    let has = Command::new(&python).args(["-c", &format!("import {package}")]).output().unwrap();
    if !has.status.success() {
        return eprintln!("skipped: {package} is not installed");
    }
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("pruned.onnx");
    prune_reviews(&output, &["--compression", "0.6"]);
    let script = Command::new(python)
        .arg(fixtures().join("after_pruning.py"))
        .args([&output, &reviews().join("eval.npz")])
        .arg(tool)
        .output()
        .unwrap();
    assert!(script.status.success(), "{}{}", text(&script.stdout), text(&script.stderr));
    assert!(text(&script.stdout).contains(tool));
}

#[test]
fn onnx_runtimes_transformer_optimiser_takes_it() {
    goes_through("optimizer", "sympy");
}

#[test]
fn it_can_be_quantised() {
    goes_through("quantise", "onnxruntime.quantization");
}

#[test]
fn openvino_runs_it() {
    goes_through("openvino", "openvino");
}

#[test]
fn tract_runs_it() {
    goes_through("tract", "tract");
}
