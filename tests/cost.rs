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
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let outputs = [["1"].as_slice(), &["2"], &["2", "--memory", "1MB"]].map(|options| {
        let output = folder.path().join(format!("{}.onnx", options.join("")));
        let more = [&["--compression", "0.6", "--seed", "7", "--samples", "300", "--threads"], options].concat();
        prune_reviews(&output, &more);
        std::fs::read(output).unwrap()
    });
    assert!(outputs[0] == outputs[1] && outputs[1] == outputs[2], "the models are the same, byte by byte");
}

/// What the README promises: three times the model file and 1 GiB; of a sweep, three times all files.
#[test]
fn memory_stays_within_what_the_readme_promises() {
    let bound = |report: &Value| {
        let products = report["sweep"].as_array().unwrap().iter().map(|m| m["output"]["bytes"].as_u64().unwrap());
        3 * (report["input"]["bytes"].as_u64().unwrap() + products.sum::<u64>()) + (1 << 30)
    };
    let peak = |report: &Value| report["cost"]["peak_memory"].as_u64().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let one = prune_reviews(&folder.path().join("out.onnx"), &[]);
    assert!(peak(&one) < bound(&one), "{} of {}", peak(&one), bound(&one));
    let Some(shared) = support::shared() else { return };
    let (model, data) = (shared.join("sst2/model.onnx"), shared.join("sst2/calibration.npz"));
    let report = folder.path().join("report.json");
    let mut command = support::program();
    command.arg(model).arg(folder.path().join("real.onnx")).arg("--calibration").arg(data);
    let done =
        command.args(["--sweep", "0.2,0.4,0.6,0.8", "--samples", "256", "--report"]).arg(&report).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let real: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    assert!(peak(&real) < bound(&real), "{} of {}", peak(&real), bound(&real));
}

#[test]
fn knowledge_is_measured_as_often_as_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    let run = |more: &[&str]| prune_reviews(&output, &[&["--method", "kprune"], more].concat());
    let [once, default, published] = [run(&["--refresh", "99"]), run(&[]), run(&["--refresh", "1"])];
    assert_eq!(default["method"]["refresh"], (sublayers(&default).len()).div_ceil(4));
    assert_eq!(published["method"]["refresh"], 1);
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
