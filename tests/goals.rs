//! Several models from one measurement, plans, and models that are to be so fast, through the command line.
#![allow(missing_docs)]

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{program, prune_reviews, reviews, text};

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path}"))
}

fn kept(report: &Value) -> Vec<Vec<u64>> {
    let units = |s: &Value| s["kept"].as_array().unwrap().iter().map(|u| u.as_u64().unwrap()).collect();
    report["sublayers"].as_array().unwrap().iter().map(units).collect()
}

fn refused(more: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    let data = reviews().join("calibration.npz");
    let done =
        program().arg(reviews().join("model.onnx")).arg(&output).arg("--calibration").arg(data).args(more).output();
    let done = done.unwrap();
    assert!(!done.status.success() && !output.exists());
    text(&done.stderr).replace("\n  │ ", " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn one_measurement_gives_several_models() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    let labelled = reviews().join("eval.npz");
    let report = prune_reviews(&output, &["--sweep", "0.6,0.3,0", "--eval", labelled.to_str().unwrap()]);
    let models = report["sweep"].as_array().unwrap();
    let shares: Vec<f64> = models.iter().map(|m| number(m, "/compression")).collect();
    assert_eq!(shares, [0.0, 0.3, 0.6]);
    assert!(!output.exists(), "no model has the bare name");
    for (model, share) in models.iter().zip(&shares) {
        let path = folder.path().join(format!("out-{share}.onnx"));
        assert_eq!(model["output"]["bytes"].as_u64(), std::fs::metadata(&path).ok().map(|m| m.len()));
        let left = number(model, "/flops/kept") / number(model, "/flops/prunable");
        assert!(left <= 1.0 - share + 1e-9 && left > 0.9 - share, "{share}: {left}");
        assert!(number(model, "/verify/difference") < 1e-4);
        assert!(number(model, "/latency/median") > 0.0);
    }
    assert_eq!(number(&models[0], "/quality/fidelity/agreement"), 1.0);
    assert!(number(&models[1], "/quality/scores/0/value") > 0.82);
    assert_eq!(report["original"]["quality"]["scores"][0]["name"], "accuracy");
}

#[test]
fn a_model_of_fixed_sizes_is_judged_by_full_batches() {
    let folder = tempfile::tempdir().unwrap();
    let model = support::fixtures().join("zoo/bert.ts17.fixed.onnx");
    let report = folder.path().join("report.json");
    let done = program()
        .arg(&model)
        .arg(folder.path().join("out.onnx"))
        .args(["-q", "--sweep", "0.3,0.5", "--report"])
        .arg(&report)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    assert!(number(&report, "/quality/samples") >= 16.0, "an eighth of 128 made-up samples");
    assert!(report["warnings"].to_string().contains("set aside"), "{}", report["warnings"]);
}

#[test]
fn the_smallest_model_that_is_good_enough_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    let labelled = reviews().join("eval.npz");
    let more = ["--max-drop", "0.03", "--sweep", "0.3,0.6,0.95", "--eval", labelled.to_str().unwrap()];
    let report = prune_reviews(&output, &more);
    let original = number(&report, "/original/quality/scores/0/value");
    let drop = |model: &Value| original - number(model, "/quality/scores/0/value");
    assert!(drop(&report) <= 0.03);
    assert!(number(&report, "/quality/drop/error") > 0.0 && number(&report, "/settings/max_drop") == 0.03);
    let chosen = number(&report, "/compression");
    for model in report["sweep"].as_array().unwrap().iter().filter(|m| number(m, "/compression") > chosen) {
        assert!(drop(model) > 0.03, "a smaller one would have been good enough");
    }
    assert_eq!(number(&report, "/output/bytes") as u64, std::fs::metadata(&output).unwrap().len());
    let files = std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
    assert_eq!(files.filter(|name| name.ends_with(".onnx")).count(), 1, "only the chosen one is there");
    let message = refused(&["--max-drop", "0", "--sweep", "0.9,0.95"]);
    assert!(message.contains("no model is good enough") && message.contains("0.95 by"), "{message}");
}

#[test]
fn a_plan_is_saved_edited_and_applied() {
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan.json");
    let (model, data) = (reviews().join("model.onnx"), reviews().join("calibration.npz"));
    let dry = program()
        .arg(&model)
        .arg("--calibration")
        .arg(&data)
        .args(["--compression", "0.5", "--dry-run", "--save-plan"])
        .arg(&plan)
        .output()
        .unwrap();
    assert!(dry.status.success(), "{}", text(&dry.stderr));
    assert!(text(&dry.stdout).contains("kept"));
    let mut content: Value = serde_json::from_str(&std::fs::read_to_string(&plan).unwrap()).unwrap();
    assert_eq!(content["sublayers"].as_array().unwrap().len(), 8);
    content["sublayers"][0]["keep"] = json!("0-1, 4");
    content["sublayers"][1]["keep"] = json!("16-31, 100");
    std::fs::write(&plan, content.to_string()).unwrap();

    let output = folder.path().join("out.onnx");
    let report = prune_reviews(&output, &["--plan", plan.to_str().unwrap()]);
    let units = kept(&report);
    assert_eq!(units[0], [0, 1, 4]);
    assert_eq!(units[1], (16..32).chain([100]).collect::<Vec<u64>>());
    assert!(number(&report, "/sublayers/1/error_tuned") < number(&report, "/sublayers/1/error_untuned"));
    assert!(number(&report, "/verify/difference") < 1e-4);

    for (keep, expected) in [("0-9", "not among its 6 units"), ("some", "is no unit")] {
        content["sublayers"][0]["keep"] = json!(keep);
        std::fs::write(&plan, content.to_string()).unwrap();
        let message = refused(&["--plan", plan.to_str().unwrap()]);
        assert!(message.contains("plan.json") && message.contains(expected), "{message}");
    }
    content["sublayers"].as_array_mut().unwrap().pop();
    std::fs::write(&plan, content.to_string()).unwrap();
    assert!(refused(&["--plan", plan.to_str().unwrap()]).contains("has 7 sublayers, and the model 8"));
}

/// A table in which only heads, or only neurons, take time.
fn table(path: &Path, model: &Path, heads: f64, neurons: f64) {
    let seen = program().arg("inspect").arg(model).arg("--json").output().unwrap();
    let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
    let row = |s: &Value| {
        let each = if s["unit"] == "head" { heads } else { neurons };
        json!({"name": s["name"], "units": s["units"], "times": [[0, 0.0], [s["units"], each]]})
    };
    let rows: Vec<Value> = seen["sublayers"].as_array().unwrap().iter().map(row).collect();
    let content = json!({"schema": 1, "device": "another machine", "provider": "npu", "threads": 1, "batch": 1,
        "lengths": {}, "whole": 10.0, "sublayers": rows});
    std::fs::write(path, content.to_string()).unwrap();
}

#[test]
fn a_table_from_another_machine_aims_at_that_machine() {
    let folder = tempfile::tempdir().unwrap();
    let (output, path) = (folder.path().join("out.onnx"), folder.path().join("table.json"));
    let model = reviews().join("model.onnx");
    let count =
        |report: &Value, first: usize| -> usize { kept(report).iter().skip(first).step_by(2).map(Vec::len).sum() };
    let options = ["--speedup", "1.25", "--latency-table", path.to_str().unwrap()];
    // Of 10 ms, four sublayers take 2 each: to take 8, one of the four must go in all.
    table(&path, &model, 2.0, 0.0);
    let report = prune_reviews(&output, &options);
    assert_eq!(report["latency"], Value::Null, "it cannot be measured here");
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("(another machine)") && warnings.contains("instead of 10.000"), "{warnings}");
    assert!((17..=18).contains(&count(&report, 0)), "of 24 heads {} stay", count(&report, 0));
    assert!(count(&report, 1) > 4 * 384 * 9 / 10, "neurons are free there");
    table(&path, &model, 0.0, 2.0);
    let report = prune_reviews(&output, &options);
    assert_eq!(count(&report, 0), 24, "heads are free there");
    let neurons = count(&report, 1);
    assert!((1100..=1152).contains(&neurons), "of 1536 neurons {neurons} stay");

    table(&path, &model, 1.0, 1.0);
    let message = refused(&["--speedup", "9", "--latency-table", path.to_str().unwrap()]);
    assert!(message.contains("cannot be reached") && message.contains("5.00 times as fast"), "{message}");
    let message = refused(&["--latency-ms", "11", "--latency-table", path.to_str().unwrap()]);
    assert!(message.contains("takes 10.000 ms as it is"), "{message}");
    std::fs::write(&path, "{}").unwrap();
    let message = refused(&["--speedup", "2", "--latency-table", path.to_str().unwrap()]);
    assert!(message.contains("table.json") && message.contains("no latency table"), "{message}");
}

#[test]
fn a_model_becomes_as_much_faster_as_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (output, path) = (folder.path().join("out.onnx"), folder.path().join("table.json"));
    let more =
        ["--speedup", "1.6", "--threads", "1", "--latency-batch", "64", "--latency-table", path.to_str().unwrap()];
    let report = prune_reviews(&output, &more);
    let measured = number(&report, "/latency/speedup");
    // What the program reaches is in benches/RESULTS.md; a test runs beside others on a machine of two cores.
    let interval = [0, 1].map(|end| number(&report, &format!("/latency/interval/{end}")));
    let is_open = (interval[0]..interval[1]).contains(&1.6);
    assert!((1.35..1.9).contains(&measured) || is_open, "{measured} and not 1.6");
    assert_eq!(report["settings"]["speedup"], 1.6);
    assert_eq!(report["original"]["setting"]["batch"], 64);
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let times = saved["sublayers"][1]["times"].as_array().unwrap();
    assert!(times.len() >= 4 && number(&times[0], "/1") <= number(&times[times.len() - 1], "/1"), "{times:?}");
}

#[test]
fn what_contradicts_itself_is_refused() {
    for more in [
        &["--speedup", "2", "--compression", "0.5"] as &[&str],
        &["--speedup", "0.5"],
        &["--sweep", "0.2", "--plan", "x"],
        &["--sweep", "0.2,2"],
        &["--max-drop", "-1"],
    ] {
        assert!(refused(more).contains("error:"), "{more:?}");
    }
    assert!(refused(&["--latency-table", "x.json"]).contains("of use with --speedup"));
}
