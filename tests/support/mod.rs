//! What the end-to-end tests share.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use kprune_passes::ir::{Graph, Model, ValueId};
use kprune_passes::observe::{Observation, Seen, Sizes, with_every_value};
use ndarray::ArrayD;
use onnx_kprune::runtime::{self, Choice, Purpose, Runtime, Values};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

pub fn reviews() -> PathBuf {
    fixtures().join("reviews")
}

/// Data beside the repository that not everybody has.
pub fn shared() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("shared");
    if !folder.is_dir() {
        eprintln!("skipped: no shared data");
        return None;
    }
    Some(folder)
}

pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_onnx-kprune"))
}

/// Runs the program.
pub fn kprune<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    program().args(arguments).output().expect("the program starts")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Prunes the trained fixture with further arguments; returns its report.
pub fn prune_reviews(output: &Path, more: &[&str]) -> serde_json::Value {
    let report = output.with_extension("json");
    let (model, data) = (reviews().join("model.onnx"), reviews().join("calibration.npz"));
    let mut command = program();
    command.arg(&model).arg(output).arg("--calibration").arg(&data).arg("--report").arg(&report).args(more);
    let done = command.output().expect("the program starts");
    assert!(done.status.success(), "{}", text(&done.stderr));
    serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap()
}

/// The Python of the test environment, if there is one.
pub fn python() -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os("VIRTUAL_ENV")?).join("bin/python");
    python.is_file().then_some(python)
}

pub fn cpu() -> Runtime {
    Runtime::load(None, Choice::Cpu, 1, Arc::default()).expect("ONNX Runtime is installed for tests")
}

pub fn run(runtime: &Runtime, model: &Model, feeds: &[(&str, &ArrayD<f64>)]) -> Values {
    let held: Vec<_> = feeds.iter().map(|(name, array)| (*name, runtime::numbers(array).unwrap())).collect();
    let mut session = runtime.session(model, "testing", Purpose::Trial).unwrap_or_else(|e| panic!("{e}"));
    session.run(held.iter().map(|(name, held)| (*name, held.value()))).unwrap_or_else(|e| panic!("{e}"))
}

/// Observes a graph of floating-point inputs at one size only.
pub fn observe(runtime: &Runtime, model: &Model, feeds: &[(&str, &ArrayD<f64>)]) -> Observation {
    let (observed, values) = with_every_value(model);
    let results = run(runtime, &observed, feeds);
    let mut seen: HashMap<ValueId, Seen> = HashMap::new();
    for value in values {
        let Some(result) = results.get(model.graph.name(value)) else { continue };
        let shape = result.dtype().tensor_shape().unwrap().iter().map(|&d| d as usize).collect();
        let element = runtime::element(result).unwrap();
        let integers = runtime::integers(result).ok();
        seen.insert(value, Seen { shape, element, integers });
    }
    for (name, array) in feeds {
        let value = model.graph.find(name).unwrap();
        let element = kprune_passes::ir::ElementType::F32;
        seen.insert(value, Seen { shape: array.shape().to_vec(), element, integers: None });
    }
    Observation::new(&model.graph, Sizes::new(), [seen.clone(), seen])
}

pub fn model(graph: Graph, opset: i64) -> Model {
    Model::new(graph, opset)
}

/// Copies a file of arrays without its labels; false where there is no Python environment to do it.
pub fn without_labels(from: &Path, to: &Path) -> bool {
    let Some(python) = python() else {
        eprintln!("skipped: no Python environment");
        return false;
    };
    let code = "import sys, numpy as np; d = dict(np.load(sys.argv[1])); d.pop('labels'); np.savez(sys.argv[2], **d)";
    let done = Command::new(python).args(["-c", code]).args([from, to]).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    true
}
