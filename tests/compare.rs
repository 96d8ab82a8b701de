//! `compare` and `inspect`, through the command line.
#![allow(missing_docs)]

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::{fixtures, kprune, program, prune_reviews, python, reviews, shared, text};

fn zoo(name: &str) -> std::path::PathBuf {
    fixtures().join("zoo").join(format!("{name}.onnx"))
}

fn compare(a: &Path, b: &Path, more: &[&str]) -> Value {
    let done = program().arg("compare").args([a, b]).args(["--json", "--threads", "1"]).args(more).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {value}"))
}

#[test]
fn accuracy_size_and_speed_stand_side_by_side() {
    let Some(python) = python() else { return eprintln!("skipped: no Python environment") };
    let folder = tempfile::tempdir().unwrap();
    let pruned = folder.path().join("pruned.onnx");
    let report = prune_reviews(&pruned, &["--compression", "0.8"]);
    let (model, data) = (reviews().join("model.onnx"), reviews().join("eval.npz"));
    let found = compare(&model, &pruned, &["--data", data.to_str().unwrap()]);
    let judged = Command::new(python).arg(fixtures().join("evaluate.py")).arg(&data).args([&model, &pruned]).output();
    let judged = text(&judged.unwrap().stdout);
    let expected: Vec<&str> = judged.lines().skip(1).map(|l| l.split_whitespace().nth(1).unwrap()).collect();
    let scores = ["/a", "/b"].map(|side| number(&found, &format!("{side}/quality/scores/0/value")));
    assert_eq!(scores.map(|s| format!("{s:.4}")).to_vec(), expected);
    assert_eq!(found["a"]["quality"]["scores"][1]["name"], "F1");
    assert_eq!(found["a"]["quality"]["fidelity"], Value::Null);
    let agreement = number(&found, "/b/quality/fidelity/agreement");
    assert!(agreement > 0.8 && agreement < 1.0, "{agreement}");
    assert_eq!(found["b"]["bytes"], report["output"]["bytes"]);
    assert_eq!(found["b"]["parameters"], report["output"]["parameters"]);
    let kept = number(&report, "/flops/kept") / number(&report, "/flops/prunable");
    let flops = number(&found, "/b/flops") / number(&found, "/a/flops");
    assert!((kept - flops).abs() < 0.01, "nearly all of the fixture is prunable: {kept} {flops}");
    assert!(number(&found, "/b/latency/speedup") > 1.0);
    assert_eq!(found["setting"]["threads"], 1);
}

#[test]
fn the_same_model_agrees_with_itself_whatever_its_outputs_are() {
    for name in
        ["bert-qa.ts17", "bert-regression.ts17", "bert-token.ts17", "bert-bare.ts17", "vit.ts17", "bert.ts17.f16"]
    {
        let found = compare(&zoo(name), &zoo(name), &[]);
        let fidelity = &found["b"]["quality"]["fidelity"];
        for (field, expected) in [("agreement", 1.0), ("divergence", 0.0), ("correlation", 1.0), ("cosine", 1.0)] {
            if let Some(value) = fidelity[field].as_f64() {
                assert!((value - expected).abs() < 1e-9, "{name}: {field} {value}");
            }
        }
        assert_eq!(fidelity["largest_difference"], 0.0, "{name}");
        assert!(found["data"].as_str().unwrap().contains("random"), "{found}");
    }
}

#[test]
fn a_quantised_model_is_compared_with_what_it_was_made_from() {
    let found = compare(&zoo("bert.ts17"), &zoo("bert.ts17.quantised"), &[]);
    assert!(number(&found, "/b/quality/fidelity/cosine") > 0.9);
    assert!(number(&found, "/b/bytes") < number(&found, "/a/bytes"));
    let parameters = number(&found, "/b/parameters") / number(&found, "/a/parameters");
    assert!((0.95..1.05).contains(&parameters), "weights of eight bits are parameters too: {parameters}");
    let flops = number(&found, "/b/flops") / number(&found, "/a/flops");
    assert!((flops - 1.0).abs() < 1e-9, "quantised products count as well: {flops}");
}

#[test]
fn every_kind_of_label_is_scored() {
    let Some(python) = python() else { return eprintln!("skipped: no Python environment") };
    let folder = tempfile::tempdir().unwrap();
    // The labels are what the model itself says, one of them made wrong, so that every score is known.
    let script = "import sys, numpy as np, onnxruntime as ort\n\
        model, target = sys.argv[1:]\n\
        s = ort.InferenceSession(model)\n\
        rng = np.random.default_rng(0)\n\
        feed = {i.name: rng.integers(1, 2, (8, 12)) for i in s.get_inputs()}\n\
        feed['input_ids'] = rng.integers(0, 40, (8, 12))\n\
        out = dict(zip([o.name for o in s.get_outputs()], s.run(None, feed)))\n\
        if 'start_logits' in out:\n\
        \x20   labels = {'start_positions': out['start_logits'].argmax(1), 'end_positions': out['end_logits'].argmax(1)}\n\
        \x20   labels['end_positions'][0] += 1\n\
        elif out['logits'].ndim == 3:\n\
        \x20   labels = {'labels': out['logits'].argmax(2)}\n\
        \x20   labels['labels'][0, :3] = -100\n\
        \x20   labels['labels'][1, 0] = (labels['labels'][1, 0] + 1) % out['logits'].shape[2]\n\
        else:\n\
        \x20   labels = {'labels': 2.0 * out['logits'][:, 0] + 1}\n\
        np.savez(target, **feed, **labels)\n";
    for (name, score, expected) in [
        ("bert-qa.ts17", "exact match", 7.0 / 8.0),
        ("bert-token.ts17", "accuracy", 1.0 - 1.0 / 93.0),
        ("bert-regression.ts17", "Spearman", 1.0),
    ] {
        let data = folder.path().join(format!("{name}.npz"));
        let made = Command::new(&python).args(["-c", script]).arg(zoo(name)).arg(&data).output().unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        let found = compare(&zoo(name), &zoo(name), &["--data", data.to_str().unwrap()]);
        let first = &found["a"]["quality"]["scores"][0];
        assert_eq!(first["name"], score, "{name}");
        assert!((first["value"].as_f64().unwrap() - expected).abs() < 1e-9, "{name}: {first}");
    }
}

#[test]
fn models_of_different_tasks_are_not_compared() {
    let done = program().arg("compare").args([zoo("bert.ts17"), zoo("vit.ts17")]).output().unwrap();
    assert_eq!(done.status.code(), Some(2), "{}", text(&done.stderr));
    let message = text(&done.stderr).replace("\n  │ ", " ");
    assert!(message.contains("compare models of one task"), "{message}");
}

#[test]
fn the_accuracy_of_a_real_encoder_is_that_of_another_program() {
    let (Some(shared), Some(python)) = (shared(), python()) else { return };
    let (model, data) = (shared.join("sst2/model.onnx"), shared.join("sst2/eval.npz"));
    let judged = Command::new(python).arg(shared.join("eval/accuracy.py")).args([&model, &data]).output().unwrap();
    let judged: Value = serde_json::from_slice(&judged.stdout).unwrap();
    let found = compare(&model, &model, &["--data", data.to_str().unwrap()]);
    let score = number(&found, "/a/quality/scores/0/value");
    assert_eq!(format!("{score:.4}"), format!("{:.4}", number(&judged, "/score")));
}

#[test]
fn inspecting_says_what_can_be_pruned_and_what_cannot() {
    let model = reviews().join("model.onnx");
    let done = program().arg("inspect").arg(&model).arg("--json").output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let seen: Value = serde_json::from_slice(&done.stdout).unwrap();
    let sublayers = seen["sublayers"].as_array().unwrap();
    assert_eq!(sublayers.len(), 8);
    assert_eq!(
        (&sublayers[0]["unit"], &sublayers[0]["units"], &sublayers[0]["width"]),
        (&"head".into(), &6.into(), &16.into())
    );
    assert_eq!((&sublayers[1]["unit"], &sublayers[1]["units"]), (&"neuron".into(), &384.into()));
    // By hand: a neuron has a column of 96 and its bias, and a row of 96; of 384.
    assert_eq!(sublayers[1]["parameters"], 384 * (96 + 1 + 96));
    assert_eq!(seen["opsets"][""], 17);
    assert!(number(&seen, "/prunable_flops") < number(&seen, "/flops"));
    assert!(seen["exporter"].as_str().unwrap().starts_with("pytorch"));
    let words = text(&program().arg("inspect").arg(&model).output().unwrap().stdout);
    for expected in ["6 heads", "384 neurons", "attention_mask", "taken for logits", "What stays, and why"] {
        assert!(words.contains(expected), "{expected:?} is not in {words}");
    }
}

#[test]
fn inspecting_a_model_without_units_says_so() {
    let words = text(&program().arg("inspect").arg(zoo("cnn.ts17")).output().unwrap().stdout);
    assert!(words.contains("There is nothing to prune") && words.contains("not added to a residual stream"), "{words}");
}

#[test]
fn completions_and_a_manual_come_with_the_program() {
    let script = kprune(["completions", "bash"]);
    assert!(text(&script.stdout).contains("--max-drop"));
    let page = kprune(["man"]);
    let page = text(&page.stdout);
    assert!(page.contains(".TH onnx-kprune") && page.contains("latency") && page.contains("compare"), "{page}");
    let help = text(&kprune(["--help"]).stdout);
    assert!(help.contains("Examples:") && help.contains("onnx-kprune inspect model.onnx"), "{help}");
}
