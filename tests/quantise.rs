//! Weights of few bits, through the command line.
#![allow(missing_docs)]

mod support;

use std::path::Path;

use kprune_passes::ir::{ElementType, Model};
use onnx_kprune::store::read_model;
use serde_json::Value;
use support::{fixtures, program, prune_reviews, reviews, text};

fn quantised(folder: &Path, name: &str, more: &[&str]) -> (Value, Model) {
    let (output, eval) = (folder.join(name), reviews().join("eval.npz"));
    let report = prune_reviews(&output, &[&["-q", "--eval", eval.to_str().unwrap()], more].concat());
    (report, read_model(&output).unwrap())
}

fn agreement(report: &Value) -> f64 {
    report["quality"]["fidelity"]["agreement"].as_f64().unwrap()
}

/// Whole numbers of this type, one list for every matrix.
fn codes(model: &Model, element: ElementType) -> Vec<Vec<i8>> {
    let graph = &model.graph;
    let constants = graph.initializers().into_iter().filter_map(|v| graph.constant(v));
    let of = constants.filter(|t| t.element() == element && t.dims().len() == 2);
    of.map(|t| t.bytes().unwrap().iter().map(|&b| b as i8).collect()).collect()
}

#[test]
fn matrices_become_whole_numbers_and_the_model_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for (bits, element, least) in [("int8", ElementType::I8, 0.98), ("int4", ElementType::I4, 0.9)] {
        let (report, model) = quantised(folder.path(), "out.onnx", &["--compression", "0", "--quantise", bits]);
        let count = report["quantisation"]["matrices"].as_u64().unwrap() as usize;
        assert_eq!(count, 3 * report["sublayers"].as_array().unwrap().len(), "six in a block of two sublayers");
        assert_eq!(codes(&model, element).len(), count);
        assert!(agreement(&report) >= least, "{bits}: {}", agreement(&report));
        let [before, after] = ["input", "output"].map(|file| report[file]["bytes"].as_f64().unwrap());
        assert!(after < 0.9 * before, "{bits}: {before} -> {after} bytes");
    }
}

#[test]
fn units_go_weights_go_and_what_is_left_is_quantised() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--compression", "0.5", "--sparsity", "0.5", "--quantise", "int8", "--steps", "4"];
    let (report, model) = quantised(folder.path(), "out.onnx", &more);
    let codes = codes(&model, ElementType::I8).concat();
    let zeros = codes.iter().filter(|&&code| code == 0).count() as f64 / codes.len() as f64;
    assert!((0.49..0.55).contains(&zeros), "what is zero is a zero of the grid: {zeros}");
    assert!(report["sparsification"]["difference"].as_f64().unwrap() < 1e-4, "the file is what was learned");
    let (again, _) = quantised(folder.path(), "again.onnx", &more);
    assert_eq!(report["sparsification"], again["sparsification"]);
}

#[test]
fn quantisation_alone_keeps_the_default_compression() {
    let folder = tempfile::tempdir().unwrap();
    let (report, _) = quantised(folder.path(), "out.onnx", &["--quantise", "int8"]);
    assert_eq!(report["settings"]["compression"], 0.5);
    assert_eq!(report["quantisation"]["bits"], "int8");
}

#[test]
fn models_of_every_kind_are_quantised() {
    let folder = tempfile::tempdir().unwrap();
    let names =
        ["bert.ts17.f16", "vit.dy20.bf16", "albert.ts17", "vit.dy20", "t5.ts17", "gpt2.dy20", "bert-sdpa.dy20.ort"];
    for (name, bits) in names.iter().flat_map(|name| [(name, "int8"), (name, "int4")]) {
        let (model, output) = (fixtures().join(format!("zoo/{name}.onnx")), folder.path().join("out.onnx"));
        let more = ["--compression", "0", "--quantise", bits, "--samples", "8", "-q"];
        let out = program().args([&model, &output]).args(more).output().unwrap();
        assert!(out.status.success(), "{name} {bits}: {}", text(&out.stderr));
    }
}
