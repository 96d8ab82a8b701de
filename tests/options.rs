//! Options that choose what is pruned and compared, through the command line, on models of the zoo.
#![allow(missing_docs)]

mod support;

use std::path::PathBuf;

use kprune_passes::ir::ElementType;
use onnx_kprune::store::read_model;
use serde_json::Value;
use support::{fixtures, program, text};

fn zoo(name: &str) -> PathBuf {
    fixtures().join("zoo").join(format!("{name}.onnx"))
}

/// Prunes a model of the zoo; returns its report and what the program said, or its error.
fn prune(name: &str, more: &[&str]) -> Result<(Value, PathBuf, tempfile::TempDir), String> {
    let folder = tempfile::tempdir().unwrap();
    let (output, report) = (folder.path().join("out.onnx"), folder.path().join("out.json"));
    let mut command = program();
    command.arg(zoo(name)).arg(&output).arg("--report").arg(&report).args(["-q", "--threads", "1"]).args(more);
    let done = command.output().expect("the program starts");
    if !done.status.success() {
        assert!(!output.exists(), "nothing is written on failure");
        return Err(text(&done.stderr).split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let report = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    Ok((report, output, folder))
}

fn sublayers(report: &Value) -> usize {
    report["sublayers"].as_array().unwrap().len()
}

#[test]
fn shared_weights_are_pruned_once_or_untied() {
    let (shared, ..) = prune("albert.ts17", &[]).unwrap();
    assert_eq!(sublayers(&shared), 2);
    let (untied, ..) = prune("albert.ts17", &["--untie"]).unwrap();
    assert_eq!(sublayers(&untied), 4);
    let parameters = |r: &Value| r["output"]["parameters"].as_u64().unwrap();
    assert!(parameters(&shared) < parameters(&untied));
}

#[test]
fn units_outside_of_transformer_sublayers_are_pruned_on_request() {
    let refused = prune("cnn.ts17", &[]).unwrap_err();
    assert!(refused.contains("nothing to prune") && refused.contains("not added to a residual stream"), "{refused}");
    let (report, ..) = prune("cnn.ts17", &["--units", "all"]).unwrap();
    assert_eq!(sublayers(&report), 2);
    let refused = prune("cnn.ts17", &["--units", "some"]).unwrap_err();
    assert!(refused.contains("transformer or all"), "{refused}");
}

#[test]
fn what_is_compared_can_be_overruled() {
    let kinds = |report: &Value| -> Vec<String> {
        let outputs = report["objective"].as_array().unwrap().iter();
        outputs.map(|o| format!("{}:{}", o["name"].as_str().unwrap(), o["kind"].as_str().unwrap())).collect()
    };
    let (guessed, ..) = prune("bert-bare.ts17", &[]).unwrap();
    assert_eq!(kinds(&guessed), ["last_hidden_state:hidden states", "pooler_output:hidden states"]);
    let more = ["--output-kind", "pooler_output:logits", "--output-kind", "last_hidden_state:ignore"];
    let (overruled, ..) = prune("bert-bare.ts17", &more).unwrap();
    assert_eq!(kinds(&overruled), ["pooler_output:logits"]);
    let refused = prune("bert-bare.ts17", &["--output-kind", "pool:logits"]).unwrap_err();
    assert!(refused.contains("no such output") && refused.contains("pooler_output"), "{refused}");
}

#[test]
fn element_types_stay_what_they_were() {
    for (name, element) in [("bert.ts17.f16", ElementType::F16), ("bert.ts17.bf16", ElementType::BF16)] {
        let (report, output, _folder) = prune(name, &[]).unwrap();
        let graph = read_model(&output).unwrap().graph;
        let weights = graph.initializers().into_iter().filter_map(|v| graph.constant(v));
        let mut weights = weights.filter(|t| t.element().is_float() && t.dims().len() == 2);
        assert!(weights.all(|t| t.element() == element), "{name}");
        let warned = report["warnings"].as_array().unwrap().iter().any(|w| w.as_str().unwrap().contains("in f32"));
        assert_eq!(warned, element == ElementType::BF16, "no CPU runs bfloat16, and the report says so");
    }
}

#[test]
fn a_loss_behind_an_operator_without_a_gradient_is_moved_before_it() {
    let (report, ..) = prune("bert.ts17.opaque", &[]).unwrap();
    assert_eq!(report["objective"][0]["name"], "before_logits");
    assert_eq!(report["objective"][0]["kind"], "logits");
}
