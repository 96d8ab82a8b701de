//! Methods, through the command line.
#![allow(missing_docs)]

mod support;

use onnx_kprune::store::read_model;
use serde_json::Value;
use support::{cpu, kprune, prune_reviews, reviews, text};

fn kept(report: &Value) -> Vec<usize> {
    let sublayers = report["sublayers"].as_array().unwrap().iter();
    sublayers.map(|s| s["kept"].as_array().unwrap().len()).collect()
}

fn divergence(report: &Value) -> f64 {
    report["quality"]["fidelity"]["divergence"].as_f64().unwrap()
}

#[test]
fn every_method_keeps_the_budget_and_kprune_is_nearest_to_the_original() {
    let folder = tempfile::tempdir().unwrap();
    let eval = reviews().join("eval.npz");
    let prune = |method: &str, more: &[&str]| {
        let output = folder.path().join(format!("{method}.onnx"));
        let mut arguments = vec!["--method", method, "--compression", "0.7", "-q", "--eval", eval.to_str().unwrap()];
        arguments.extend(more);
        let report = prune_reviews(&output, &arguments);
        assert_eq!(report["method"]["name"], method);
        let removed = 1.0 - report["flops"]["kept"].as_f64().unwrap() / report["flops"]["prunable"].as_f64().unwrap();
        assert!((0.7..0.75).contains(&removed), "{method} removed {removed}");
        report
    };
    let chosen = prune("kprune", &[]);
    let magnitude = prune("magnitude", &[]);
    let (random, other) = (prune("random", &[]), prune("random", &["--seed", "1"]));
    assert_ne!(kept(&random), kept(&other), "the seed decides");
    let [chosen, magnitude, random] = [&chosen, &magnitude, &random].map(divergence);
    assert!(chosen < magnitude && chosen < random, "kprune {chosen}, magnitude {magnitude}, random {random}");
}

#[test]
fn a_baseline_makes_several_models_from_one_walk() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    let report = prune_reviews(&output, &["--method", "magnitude", "--sweep", "0.3,0.6", "-q"]);
    assert_eq!(report["sweep"].as_array().unwrap().len(), 2);
    assert!(report["method"]["refresh"].is_null(), "a method shows its own settings and no others");
}

#[test]
fn options_of_another_method_are_refused() {
    let model = reviews().join("model.onnx");
    let arguments = ["out.onnx", "--method", "random", "--lambda-pred", "2"];
    let refused = kprune([model.to_str().unwrap()].into_iter().chain(arguments));
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("--lambda-pred is an option of --method kprune"));
    let refused = kprune([model.to_str().unwrap(), "out.onnx", "--method", "best"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("kprune, magnitude, random"));
}

#[test]
fn graphs_on_the_way_can_be_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let stages = ["read", "single", "lowered", "columns", "equations", "masked"];
    let file = |stage: &str| folder.path().join(format!("{stage}.onnx"));
    let dumps: Vec<String> = stages.iter().map(|s| format!("{s}={}", file(s).display())).collect();
    let arguments: Vec<&str> = dumps.iter().flat_map(|dump| ["--dump-graph", dump.as_str()]).collect();
    prune_reviews(&folder.path().join("out.onnx"), &[&["-q"], arguments.as_slice()].concat());
    for stage in stages {
        let model = read_model(&file(stage)).unwrap();
        cpu().session(&model, "testing", false).unwrap_or_else(|e| panic!("{stage}: {e}"));
    }
    let model = reviews().join("model.onnx");
    let over = format!("read={}", model.display());
    let refused = kprune([model.to_str().unwrap(), "out.onnx", "--dump-graph", &over]);
    assert_eq!(refused.status.code(), Some(2), "nothing that a run reads is replaced");
}
