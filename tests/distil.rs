//! Distillation, through the command line.
#![allow(missing_docs)]

mod support;

use std::path::Path;

use serde_json::Value;
use support::{fixtures, kprune, program, prune_reviews, reviews, text};

fn divergence(report: &Value) -> f64 {
    report["quality"]["fidelity"]["divergence"].as_f64().unwrap()
}

/// The loss of what was taken, over the loss before.
fn gain(distillation: &Value) -> f64 {
    let loss = match distillation["kept"].as_u64() {
        Some(place) => &distillation["tried"][place as usize]["loss"],
        None => &distillation["before"],
    };
    loss.as_f64().unwrap() / distillation["before"].as_f64().unwrap()
}

#[test]
fn a_student_comes_nearer_to_its_teacher_and_keeps_its_units() {
    let folder = tempfile::tempdir().unwrap();
    let eval = reviews().join("eval.npz");
    let prune = |name: &str, distil: &[&str]| {
        let eval = ["--eval", eval.to_str().unwrap()];
        let more = ["--method", "random", "--compression", "0.8", "-q", eval[0], eval[1]];
        let output = folder.path().join(name);
        let report = prune_reviews(&output, &[&more[..], distil].concat());
        (report, std::fs::read(&output).unwrap())
    };
    let ((plain, _), (auto, bytes)) = (prune("plain.onnx", &[]), prune("auto.onnx", &["--distil", "8"]));
    assert!(plain["distillation"].is_null());
    let size = |report: &Value| (report["output"]["parameters"].clone(), report["sublayers"][0]["kept"].clone());
    assert_eq!(size(&plain), size(&auto), "no unit comes or goes");
    assert!(gain(&auto["distillation"]) < 0.9, "{}", auto["distillation"]);
    assert!(divergence(&auto) < 0.9 * divergence(&plain), "{} and {}", divergence(&auto), divergence(&plain));
    let (again, other) = prune("again.onnx", &["--distil", "8", "--memory", "1KB"]);
    assert_eq!(auto["distillation"], again["distillation"]);
    assert!(bytes == other, "the same seed gives the same bytes, whether the teacher is asked once or at every step");
}

#[test]
fn who_is_as_good_as_its_teacher_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--method", "obs", "--compression", "0.05", "-q", "--distil", "auto"];
    let report = prune_reviews(&folder.path().join("distilled.onnx"), &arguments);
    let done = &report["distillation"];
    assert!(gain(done) < 1.02 && divergence(&report) < 1e-4, "{done} and {}", divergence(&report));
}

#[test]
fn every_kind_of_model_can_be_distilled() {
    let folder = tempfile::tempdir().unwrap();
    // Half precision, shared weights, images, two inputs of tokens, sound, spans, external data, batches of one size.
    let names = [
        "bert.ts17.f16",
        "albert.ts17",
        "vit.dy20",
        "t5.ts17",
        "wav2vec2.ts17",
        "bert-qa.ts17",
        "bert.ts17.external",
        "bert.ts17.fixed",
    ];
    for name in names {
        let (model, output) = (fixtures().join(format!("zoo/{name}.onnx")), folder.path().join(format!("{name}.onnx")));
        let report = output.with_extension("json");
        let arguments = ["-q", "--method", "magnitude", "--compression", "0.5", "--samples", "32", "--distil", "on"];
        let mut command = program();
        command.args(arguments).arg("--report").arg(&report).arg(&model).arg(&output);
        let done = command.output().unwrap();
        assert!(done.status.success(), "{name}: {}", text(&done.stderr));
        let report: Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
        assert!(!report["distillation"]["kept"].is_null(), "{name}: what is on is kept");
        assert!(report["verify"]["difference"].as_f64().unwrap() < 2e-2, "{name}: the file is what was trained");
    }
}

#[test]
fn one_sample_is_too_few() {
    let (model, data) = (reviews().join("model.onnx"), reviews().join("calibration.npz"));
    let mut command = program();
    command.args([&model, Path::new("out.onnx"), Path::new("--calibration"), &data]);
    let refused = command.args(["--samples", "1", "--distil", "auto"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("there is only one"), "{}", text(&refused.stderr));
}

#[test]
fn what_is_no_amount_is_refused() {
    for wrong in ["0", "-1", "maybe", "inf"] {
        let model = reviews().join("model.onnx");
        let refused = kprune([model.as_path(), Path::new("out.onnx"), Path::new(&format!("--distil={wrong}"))]);
        assert_eq!(refused.status.code(), Some(2), "{wrong}");
        assert!(text(&refused.stderr).contains("off, on, auto or a number above 0"), "{}", text(&refused.stderr));
    }
}
