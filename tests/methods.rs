//! Methods, through the command line.
#![allow(missing_docs)]

mod support;

use std::path::Path;

use onnx_kprune::store::read_model;
use serde_json::Value;
use support::{cpu, fixtures, kprune, prune_reviews, reviews, text};

fn kept(report: &Value) -> Vec<usize> {
    let sublayers = report["sublayers"].as_array().unwrap().iter();
    sublayers.map(|s| s["kept"].as_array().unwrap().len()).collect()
}

fn divergence(report: &Value) -> f64 {
    report["quality"]["fidelity"]["divergence"].as_f64().unwrap()
}

#[test]
fn every_method_keeps_the_budget_and_obs_is_nearest_to_the_original() {
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
    let (obs, kwon, magnitude) = (prune("obs", &[]), prune("kwon", &[]), prune("magnitude", &[]));
    let (obs, besa) = (divergence(&obs), divergence(&prune("besa", &[])));
    let (random, other) = (prune("random", &[]), prune("random", &["--seed", "1"]));
    assert_ne!(kept(&random), kept(&other), "the seed decides");
    let [chosen, kwon, magnitude, random] = [&chosen, &kwon, &magnitude, &random].map(divergence);
    assert!(chosen < magnitude && chosen < random, "kprune {chosen}, magnitude {magnitude}, random {random}");
    assert!(chosen < kwon, "kprune {chosen}, kwon {kwon}: scales alone make up for less");
    assert!(obs < 0.5 * chosen, "obs {obs}, kprune {chosen}");
    assert!(obs < besa && besa < random, "obs {obs}, besa {besa}, random {random}");
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
    assert!(text(&refused.stderr).contains("kprune, obs, kwon, besa, wanda, magnitude, random"));
}

#[test]
fn kwon_uses_labels_and_shows_what_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let labelled = reviews().join("eval.npz");
    let run = |data: &Path, more: &[&str]| -> Value {
        let mut command = support::program();
        command.arg(reviews().join("model.onnx")).arg(folder.path().join("out.onnx")).arg("--calibration").arg(data);
        command.args(["--method", "kwon", "--compression", "0.6", "--samples", "256", "-q", "--report", "-"]);
        let done = command.args(more).output().unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap()
    };
    let with = run(&labelled, &[]);
    let mut has_stopped = false;
    for sublayer in with["sublayers"].as_array().unwrap() {
        let details = &sublayer["details"];
        assert_eq!(sublayer["scores"].as_array().unwrap().len() as u64, sublayer["units"].as_u64().unwrap());
        assert!(details["swapped"].is_u64(), "{details}");
        let scales = details["scales"].as_array().map(Vec::len);
        has_stopped |= details["stopped"].as_str().is_some_and(|why| why.contains("a scale is"));
        let expected = (!has_stopped).then(|| sublayer["kept"].as_array().unwrap().len());
        assert_eq!(scales, expected, "{}: {details}", sublayer["name"]);
    }
    let swapped = |report: &Value| -> u64 {
        report["sublayers"].as_array().unwrap().iter().filter_map(|s| s["details"]["swapped"].as_u64()).sum()
    };
    assert!(swapped(&with) > 0, "some units work against each other");
    let plain = run(&labelled, &["--no-rearrange", "--no-tune"]);
    assert_eq!((swapped(&plain), &plain["sublayers"][0]["details"]["scales"]), (0, &Value::Null));
    assert_eq!(plain["method"], serde_json::json!({"name": "kwon", "rearrange": false, "tune": false}));
    // The labels of the same samples, drawn from the teacher instead: another Fisher.
    let unlabelled = folder.path().join("unlabelled.npz");
    if support::without_labels(&labelled, &unlabelled) {
        let (one, other) = (run(&unlabelled, &[]), run(&unlabelled, &["--seed", "1"]));
        assert_ne!(one["sublayers"][1]["scores"], with["sublayers"][1]["scores"]);
        assert_ne!(one["sublayers"][1]["scores"], other["sublayers"][1]["scores"], "the seed draws them");
    }
}

#[test]
fn every_kind_of_output_and_graph_is_taken() {
    for (method, compression) in [("kwon", "0.5"), ("obs", "0.6")] {
        for model in [
            "bert-qa.ts17",
            "bert-token.ts17",
            "bert-regression.ts17",
            "sentence.ts17",
            "albert.ts17",
            "qwen2.ts17",
            "swin.ts17",
            "gpt-neox.ts17",
            "bert.ts17.f16",
            "bert.ts17.ort",
            "swinv2.ts17",
            "torch-encoder.ts17.fixed",
            "bert-sdpa.dy23",
            // Of its decoder, all that reads the encoder goes.
            "bart.ts17",
        ] {
            takes(method, compression, model);
        }
    }
}

fn takes(method: &str, compression: &str, model: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = support::program();
    command.arg(fixtures().join("zoo").join(format!("{model}.onnx"))).arg(folder.path().join("out.onnx"));
    command.args(["--method", method, "--compression", compression, "-q", "--report", "-"]);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{method}, {model}: {}", text(&done.stderr));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    let [kept, budget] = ["kept", "budget"].map(|k| report["flops"][k].as_f64().unwrap());
    assert!(kept <= budget * (1.0 + 1e-9), "{method}, {model}: {kept} of {budget}");
}

#[test]
fn several_models_are_made_and_a_time_is_met() {
    for method in ["kwon", "obs"] {
        makes_several_and_meets_a_time(method);
    }
}

fn makes_several_and_meets_a_time(method: &str) {
    let folder = tempfile::tempdir().unwrap();
    let report = prune_reviews(&folder.path().join("out.onnx"), &["--method", method, "--sweep", "0.3,0.6", "-q"]);
    let kept = |model: &Value| model["flops"]["kept"].as_f64().unwrap();
    let sweep = report["sweep"].as_array().unwrap();
    assert!(sweep.len() == 2 && kept(&sweep[1]) < kept(&sweep[0]));
    let report = prune_reviews(&folder.path().join("out.onnx"), &["--method", method, "--speedup", "1.5", "-q"]);
    assert!(report["latency"]["speedup"].as_f64().unwrap() > 1.1, "{}", report["latency"]);
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
        cpu()
            .session(&model, "testing", onnx_kprune::runtime::Purpose::Trial)
            .unwrap_or_else(|e| panic!("{stage}: {e}"));
    }
    let model = reviews().join("model.onnx");
    let over = format!("read={}", model.display());
    let refused = kprune([model.to_str().unwrap(), "out.onnx", "--dump-graph", &over]);
    assert_eq!(refused.status.code(), Some(2), "nothing that a run reads is replaced");
}
