//! Options that bound or save work and memory, through the command line.
#![allow(missing_docs)]

mod support;

use serde_json::Value;
use support::{kprune, prune_reviews, text};

fn sublayers(report: &Value) -> &Vec<Value> {
    report["sublayers"].as_array().unwrap()
}

fn kept(report: &Value) -> Vec<&Value> {
    sublayers(report).iter().map(|s| &s["kept"]).collect()
}

#[test]
fn values_that_do_not_fit_into_memory_go_to_a_file_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let all = prune_reviews(&folder.path().join("all.onnx"), &[]);
    let few = prune_reviews(&folder.path().join("few.onnx"), &["--memory", "1MB"]);
    assert_eq!(all["cost"]["spilled"], 0);
    assert!(few["cost"]["spilled"].as_u64().unwrap() > 1_000_000);
    assert_eq!(kept(&all), kept(&few));
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(read("all.onnx") == read("few.onnx"), "the models are the same, byte by byte");
    let refused = kprune(["in.onnx", "out.onnx", "--memory", "much"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
}

#[test]
fn knowledge_is_measured_as_often_as_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    let run = |more: &[&str]| prune_reviews(&output, more);
    let [once, default, published] = [run(&["--refresh", "99"]), run(&[]), run(&["--refresh", "1"])];
    assert_eq!(default["settings"]["refresh"], (sublayers(&default).len()).div_ceil(4));
    assert_eq!(published["settings"]["refresh"], 1);
    // Up to the second sublayer the three do the same.
    assert!(kept(&once)[..2] == kept(&published)[..2] && kept(&once)[..2] == kept(&default)[..2]);
    assert_ne!(kept(&once), kept(&published));
}

#[test]
fn widths_are_a_multiple_of_what_is_asked_for_and_fit_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    for step in [1, 32] {
        let report = prune_reviews(&output, &["--compression", "0.6", "--align", &step.to_string()]);
        let [budget, used] = ["budget", "kept"].map(|name| report["flops"][name].as_f64().unwrap());
        assert!(used <= budget * (1.0 + 1e-9), "{used} of {budget}");
        let neurons = sublayers(&report).iter().filter(|s| s["unit"] == "neuron");
        let counts: Vec<usize> = neurons.map(|s| s["kept"].as_array().unwrap().len()).collect();
        assert_eq!(step == 32, counts.iter().all(|n| n % 32 == 0), "{counts:?}");
    }
}
