//! The command line, end to end.
#![allow(missing_docs)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use onnx_kprune::runtime::{Purpose, scalars};
use serde_json::Value;
use support::{cpu, fixtures, kprune, program, prune_reviews, python, reviews, text};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn model() -> PathBuf {
    reviews().join("model.onnx")
}

fn tiny() -> PathBuf {
    fixtures().join("tiny/torchscript-eager-17.onnx")
}

/// Runs the program on a file that it must refuse: nothing is written and the message says `expected`.
fn refused(output: &Path, done: &Output, expected: &[&str]) {
    let message = text(&done.stderr).replace("\n  │ ", " ").replace('\n', " ");
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(done.status.code(), Some(1), "{message}");
    for words in expected {
        assert!(message.contains(words), "{words:?} is not in: {message}");
    }
    assert!(!output.exists(), "nothing is written");
    if let Some(folder) = output.parent().filter(|f| f.is_dir()) {
        let left =
            std::fs::read_dir(folder).unwrap().flatten().filter(|e| e.file_name().to_string_lossy().ends_with(".tmp"));
        assert_eq!(left.count(), 0, "no temporary file is left");
    }
}

fn prune_file(input: &Path, more: &[&str]) -> (TempDir, PathBuf, Output) {
    let folder = folder();
    let output = folder.path().join("out.onnx");
    let done = program().arg(input).arg(&output).args(more).output().unwrap();
    (folder, output, done)
}

/// Logits of the first evaluation samples.
fn logits(path: &Path) -> ndarray::ArrayD<f64> {
    let runtime = cpu();
    let model = onnx_kprune::store::read_model(path).unwrap();
    let sources = onnx_kprune::data::Sources { files: vec![reviews().join("calibration.npz")], ..Default::default() };
    let data = onnx_kprune::data::Dataset::gather(&model, path, &sources, 1).unwrap();
    let batches = data.batches(64).unwrap();
    let mut session = runtime.session(&model, "testing", Purpose::Work).unwrap();
    scalars(&session.run(batches[3].feeds()).unwrap()["logits"]).unwrap()
}

#[test]
fn half_of_the_flops_go_and_the_report_says_how() {
    let folder = folder();
    let output = folder.path().join("pruned.onnx");
    let report = prune_reviews(&output, &["--compression", "0.5", "--seed", "3"]);
    let number = |path: &str| report.pointer(path).and_then(|v| v.as_f64()).unwrap_or_else(|| panic!("no {path}"));
    let (budget, kept) = (number("/flops/budget"), number("/flops/kept"));
    assert_eq!(budget, 0.5 * number("/flops/prunable"));
    assert!(kept <= budget * (1.0 + 1e-9), "{kept} of {budget}");
    let sublayers = report["sublayers"].as_array().unwrap();
    let unit = |s: &serde_json::Value| s["flops"].as_f64().unwrap() / s["units"].as_f64().unwrap();
    let largest = sublayers.iter().map(unit).fold(0.0, f64::max);
    assert!(budget - kept < largest, "within one unit: {kept} of {budget}, unit {largest}");
    assert!(number("/verify/difference") < 1e-4);
    assert_eq!(number("/output/bytes") as u64, std::fs::metadata(&output).unwrap().len());
    let removed = number("/input/parameters") - number("/output/parameters");
    let bytes = number("/input/bytes") - number("/output/bytes");
    assert!((bytes - 4.0 * removed).abs() < 0.02 * bytes, "{removed} parameters and {bytes} bytes went");
    assert!(number("/cost/forward_equivalents") > 1.0);
    assert_eq!(report["objective"][0]["kind"], "logits");
    for s in sublayers.iter().filter(|s| s["tuned"] == true) {
        assert!(s["error_tuned"].as_f64() < s["error_untuned"].as_f64());
    }
}

#[test]
fn the_pruned_model_is_nearly_as_good_and_valid() {
    let Some(python) = python() else { return eprintln!("skipped: no Python environment") };
    let folder = folder();
    let output = folder.path().join("pruned.onnx");
    prune_reviews(&output, &["--compression", "0.5"]);
    let check = "import onnx, sys; onnx.checker.check_model(onnx.load(sys.argv[1]), full_check=True)";
    let checked = Command::new(&python).args(["-c", check]).arg(&output).output().unwrap();
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    let script = fixtures().join("evaluate.py");
    let done =
        Command::new(&python).arg(script).arg(reviews().join("eval.npz")).args([&model(), &output]).output().unwrap();
    let accuracy: Vec<f64> =
        text(&done.stdout).lines().skip(1).map(|l| l.split_whitespace().nth(1).unwrap().parse().unwrap()).collect();
    assert!(accuracy[0] > 0.8, "the fixture solves its task: {accuracy:?}");
    assert!(accuracy[1] > accuracy[0] - 0.02, "half of it does nearly as well: {accuracy:?}");
}

#[test]
fn every_exporters_graph_prunes_to_the_same_units() {
    let folder = folder();
    let mut all = Vec::new();
    for entry in std::fs::read_dir(fixtures().join("tiny")).unwrap().flatten() {
        let report = folder.path().join("report.json");
        let output = folder.path().join(entry.file_name());
        let done = program().arg(entry.path()).arg(&output).arg("--report").arg(&report).output().unwrap();
        assert!(done.status.success(), "{:?}: {}", entry.file_name(), text(&done.stderr));
        let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
        let kept: Vec<_> = report["sublayers"].as_array().unwrap().iter().map(|s| s["kept"].clone()).collect();
        all.push((entry.file_name(), kept));
    }
    assert!(all.len() >= 5);
    for (name, kept) in &all {
        assert_eq!(kept, &all[0].1, "{name:?} and {:?}", all[0].0);
    }
}

#[test]
fn compression_0_changes_no_output() {
    let folder = folder();
    let output = folder.path().join("same.onnx");
    let report = prune_reviews(&output, &["--compression", "0"]);
    assert_eq!(logits(&output), logits(&model()));
    assert_eq!(report["flops"]["kept"], report["flops"]["prunable"]);
}

#[test]
fn extreme_compression_empties_sublayers() {
    let folder = folder();
    let output = folder.path().join("least.onnx");
    let report = prune_reviews(&output, &["--compression", "0.95"]);
    let empty = |s: &&serde_json::Value| s["kept"].as_array().unwrap().is_empty();
    let sublayers = report["sublayers"].as_array().unwrap();
    assert!(sublayers.iter().filter(empty).count() > 0, "some sublayer loses all its units");
    let names = |path: &Path| onnx_kprune::store::read_model(path).unwrap().graph.sorted().len();
    assert!(names(&output) < names(&model()), "and all its nodes");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let folder = folder();
    let (first, second) = (folder.path().join("a.onnx"), folder.path().join("b.onnx"));
    for output in [&first, &second] {
        prune_reviews(output, &["--threads", "2", "--provider", "cpu"]);
    }
    assert!(std::fs::read(first).unwrap() == std::fs::read(second).unwrap());
}

#[test]
fn text_serves_as_calibration_data() {
    let folder = folder();
    let jsonl = folder.path().join("jsonl.onnx");
    let arrays = folder.path().join("npz.onnx");
    let data = reviews().join("calibration.jsonl");
    let done = program().arg(model()).arg(&jsonl).arg("--calibration").arg(&data).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    prune_reviews(&arrays, &[]);
    assert!(std::fs::read(&jsonl).unwrap() == std::fs::read(&arrays).unwrap(), "the same samples either way");
    let plain = folder.path().join("plain.txt");
    std::fs::write(&plain, "the food was great .\nthe room was not clean .\n\nnobody could call the staff rude .\n")
        .unwrap();
    let output = folder.path().join("txt.onnx");
    let tokenizer = reviews().join("tokenizer.json");
    let copy = folder.path().join("elsewhere.onnx");
    std::fs::copy(model(), &copy).unwrap();
    let mut command = program();
    command.arg(&copy).arg(&output).arg("--calibration").arg(&plain);
    refused(&output, &command.output().unwrap(), &["plain.txt", "tokenizer"]);
    let done = command.arg("--tokenizer").arg(tokenizer).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
}

#[test]
fn without_calibration_data_a_warning_says_so() {
    let (_folder, output, done) = prune_file(&model(), &[]);
    assert!(done.status.success() && output.exists());
    assert!(text(&done.stderr).contains("warning") && text(&done.stderr).contains("--calibration"));
    assert!(text(&done.stderr).contains("English"), "the tokenizer beside the model is used");
    let (_folder, _, done) = prune_file(&tiny(), &[]);
    assert!(text(&done.stderr).contains("random"), "{}", text(&done.stderr));
}

#[test]
fn wrong_usage_exits_with_2() {
    let model = model();
    let model = model.to_str().unwrap();
    for arguments in [
        vec![model],
        vec![model, "out.onnx", "--compression", "0.96"],
        vec![model, "out.onnx", "--compression", "half"],
        vec![model, "out.onnx", "--provider", "tpu"],
        vec![model, "out.onnx", "--threads", "0"],
        vec![model, "out.onnx", "-v", "-q"],
        vec![model, model],
        vec![model, "out.onnx", "--mask-input", "nothing"],
    ] {
        assert_eq!(kprune(&arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert!(!Path::new("out.onnx").exists());
    let folder = folder();
    let link = folder.path().join("link.onnx");
    #[cfg(unix)]
    {
        let copy = folder.path().join("copy.onnx");
        std::fs::copy(model, &copy).unwrap();
        std::os::unix::fs::symlink(&copy, &link).unwrap();
        assert_eq!(program().arg(&copy).arg(&link).output().unwrap().status.code(), Some(2));
        assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(model).unwrap());
    }
}

#[test]
fn what_is_no_model_is_refused() {
    let folder = folder();
    let whole = std::fs::read(tiny()).unwrap();
    for (i, length) in
        [0, 1, 2, 17, 300, whole.len() / 3, whole.len() / 2, whole.len() - 20, whole.len() - 1].into_iter().enumerate()
    {
        let path = folder.path().join(format!("cut{i}.onnx"));
        std::fs::write(&path, &whole[..length]).unwrap();
        let (_kept, output, done) = prune_file(&path, &[]);
        refused(&output, &done, &[&format!("cut{i}.onnx")]);
    }
    let path = folder.path().join("text.onnx");
    std::fs::write(&path, "this is no model, it is a text of some length").unwrap();
    let (_kept, output, done) = prune_file(&path, &[]);
    refused(&output, &done, &["text.onnx", "no ONNX model"]);
    let (_kept, output, done) = prune_file(&folder.path().join("missing.onnx"), &[]);
    refused(&output, &done, &["missing.onnx", "no such file"]);
    let (_kept, output, done) = prune_file(folder.path(), &[]);
    refused(&output, &done, &["several models"]);
}

#[test]
fn inconsistent_graphs_are_refused_by_name() {
    use onnx_protobuf::{GraphProto, ModelProto, NodeProto};
    use protobuf::Message;
    type Break = fn(&mut GraphProto);
    let sound = ModelProto::parse_from_bytes(&std::fs::read(tiny()).unwrap()).unwrap();
    let cases: [(&str, Break, &[&str]); 5] = [
        ("dangling", |g| g.node[3].input[0] = "nowhere".into(), &["nowhere", "nothing in the graph makes"]),
        ("duplicate", |g| g.node.push(g.node[5].clone()), &["made twice"]),
        (
            "cycle",
            |g| {
                let node = |input: &str, output: &str| {
                    let mut node = NodeProto::new();
                    (node.op_type, node.name) = ("Relu".into(), format!("to_{output}"));
                    (node.input, node.output) = (vec![input.into()], vec![output.into()]);
                    node
                };
                g.node.extend([node("there", "back"), node("back", "there")]);
            },
            &["cycle", "to_back"],
        ),
        (
            "short",
            |g| {
                let tensor = g.initializer.iter_mut().find(|t| t.raw_data.len() > 100).unwrap();
                tensor.raw_data.truncate(50);
            },
            &["holds 50 bytes", "needs"],
        ),
        ("twice", |g| g.initializer.push(g.initializer[0].clone()), &["made twice"]),
    ];
    for (name, change, expected) in cases {
        let folder = folder();
        let path = folder.path().join(format!("{name}.onnx"));
        let mut model = sound.clone();
        change(model.graph.as_mut().unwrap());
        std::fs::write(&path, model.write_to_bytes().unwrap()).unwrap();
        let (_kept, output, done) = prune_file(&path, &[]);
        refused(&output, &done, expected);
    }
}

#[test]
fn a_model_with_nothing_to_prune_says_what_was_looked_at() {
    use kprune_passes::ir::schema::{tensor_shape_proto, type_proto};
    use kprune_passes::ir::{ElementType, Graph, Model, Operator, Tensor};
    let mut graph = Graph::new();
    let mut info = kprune_passes::signature::declare("x", ElementType::F32, 2);
    if let Some(type_proto::Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        t.shape.as_mut().unwrap().dim[1].value = Some(tensor_shape_proto::dimension::Value::DimValue(3));
    }
    let x = graph.add_input(info);
    let weight = Tensor::from_floats(ElementType::F32, &ndarray::Array2::ones((3, 4)).into_dyn()).unwrap();
    let w = graph.add_constant("w", weight);
    let y = graph.add(Operator::new("MatMul"), &[x, w], "y");
    graph.add_output(y);
    let folder = folder();
    let path = folder.path().join("plain.onnx");
    let model = Model::new(graph, 17);
    onnx_kprune::store::stage(&model, &path, &path).and_then(|s| s.publish()).unwrap_or_else(|e| panic!("{e}"));
    let (_kept, output, done) = prune_file(&path, &[]);
    refused(&output, &done, &["nothing to prune", "what was looked at", "do not come from a weight"]);
}

#[test]
fn quantised_and_old_models_are_refused_with_advice() {
    let Some(python) = python() else { return eprintln!("skipped: no Python environment") };
    let folder = folder();
    let convert = r#"
import sys, onnx, numpy as np
from onnx import helper, numpy_helper, TensorProto
source, folder = sys.argv[1:]
def save(name, change):
    model = onnx.load(source)
    change(model)
    onnx.save(model, f"{folder}/{name}.onnx")
def old(model):
    model.opset_import[0].version = 6
def quantised(model):
    weight = next(t for t in model.graph.initializer if len(t.dims) == 2 and t.dims[0] == 40 and t.dims[1] == 40)
    name = weight.name
    model.graph.initializer.remove(weight)
    for part in (numpy_helper.from_array(np.zeros((40, 40), np.int8), "q"),
                 numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")):
        model.graph.initializer.append(part)
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "s", "z"], [name]))
save("old", old)
save("quantised", quantised)
"#;
    let done = Command::new(python).args(["-c", convert]).arg(tiny()).arg(folder.path()).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    for (name, expected) in
        [("old", ["version 6", "opset_version=17"]), ("quantised", ["DequantizeLinear", "before it is quantised"])]
    {
        let (_kept, output, done) = prune_file(&folder.path().join(format!("{name}.onnx")), &[]);
        refused(&output, &done, &expected);
    }
}

/// Writes an .npz by numpy.
fn npz(folder: &Path, script: &str) -> Option<PathBuf> {
    let path = folder.join("data.npz");
    let program = format!("import numpy as np, sys\nids = np.ones((40, 9), np.int64)\nnp.savez(sys.argv[1], {script})");
    let done = Command::new(python()?).args(["-c", &program]).arg(&path).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    Some(path)
}

#[test]
fn calibration_data_that_do_not_fit_are_refused() {
    let sound = "input_ids=ids, attention_mask=ids, token_type_ids=ids*0";
    for (script, expected) in [
        ("input_ids=ids, attention_mask=ids", vec!["token_type_ids", "data.npz"]),
        ("input_ids=ids, attention_mask=ids, token_type_ids=ids*0, other=ids[:, 0]", vec!["other", "no input"]),
        ("input_ids=ids, attention_mask=ids, token_type_ids=ids*0, labels=ids[:3, 0]", vec!["3 labels", "samples"]),
        ("input_ids=ids.astype(np.float32), attention_mask=ids, token_type_ids=ids*0", vec!["input_ids", "int64"]),
        ("input_ids=ids[0], attention_mask=ids, token_type_ids=ids*0", vec!["input_ids", "shape"]),
        ("input_ids=ids[:20], attention_mask=ids, token_type_ids=ids*0", vec!["samples"]),
        ("input_ids=ids*5000, attention_mask=ids, token_type_ids=ids*0", vec!["input_ids", "5000", "61"]),
        ("input_ids=-ids, attention_mask=ids, token_type_ids=ids*0", vec!["input_ids", "-1"]),
        ("input_ids=ids, attention_mask=ids*0, token_type_ids=ids*0", vec!["no real token"]),
        ("input_ids=ids[:0], attention_mask=ids[:0], token_type_ids=ids[:0]", vec!["no samples"]),
    ] {
        let folder = folder();
        let Some(path) = npz(folder.path(), script) else { return eprintln!("skipped: no Python environment") };
        let (_kept, output, done) = prune_file(&tiny(), &["--calibration", path.to_str().unwrap()]);
        refused(&output, &done, &expected);
    }
    let folder = folder();
    let path = npz(folder.path(), sound).unwrap();
    let (_kept, output, done) = prune_file(&tiny(), &["--calibration", path.to_str().unwrap()]);
    assert!(done.status.success() && output.exists(), "{}", text(&done.stderr));
    for (name, content, expected) in [
        ("broken.npz", "PK no", "readable"),
        ("broken.jsonl", "{\"text\": \"fine\"}\n{\"words\": 3}", "line 2"),
        ("data.csv", "a,b\n1,2", "no columns that look like text"),
        ("data.parquet", "a,b", "unknown kind"),
        ("empty.txt", "", "no samples"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let (_kept, output, done) = prune_file(&model(), &["--calibration", path.to_str().unwrap()]);
        refused(&output, &done, &[name, expected]);
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = folder();
    let output = folder.path().join("missing/out.onnx");
    let done = program().arg(tiny()).arg(&output).output().unwrap();
    refused(&output, &done, &["cannot write", "missing/out.onnx"]);
    let output = folder.path().join("out.onnx");
    let done = program()
        .arg(tiny())
        .arg(&output)
        .arg("--report")
        .arg(folder.path().join("gone/report.json"))
        .output()
        .unwrap();
    refused(&output, &done, &["cannot write", "gone/report.json"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing() {
    // A limit on the size of files stands for a full disk: the write fails half-way.
    let folder = folder();
    let output = folder.path().join("out.onnx");
    let limited = "trap '' XFSZ; ulimit -f 20; exec \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", limited, "bash", env!("CARGO_BIN_EXE_onnx-kprune")]).arg(tiny()).arg(&output);
    refused(&output, &command.output().unwrap(), &["cannot write", "out.onnx"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing() {
    for delay in [0, 300, 1500, 4000] {
        let folder = folder();
        let output = folder.path().join("out.onnx");
        let mut child = program()
            .arg(model())
            .arg(&output)
            .arg("--calibration")
            .arg(reviews().join("calibration.npz"))
            // Nobody waits for so much of it, on however fast a machine.
            .args(["--threads", "1", "--distil", "500"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The first line is printed once signals are heard.
        let mut line = String::new();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        said.read_line(&mut line).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(1), "{line}{rest}");
        assert!(rest.contains("interrupted"), "{rest}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "after {delay} ms");
    }
}

#[test]
fn a_library_that_is_none_is_named() {
    let folder = folder();
    let library = folder.path().join("libonnxruntime.so");
    std::fs::write(&library, "no library").unwrap();
    let (_kept, output, done) = prune_file(&tiny(), &["--onnxruntime", library.to_str().unwrap()]);
    refused(&output, &done, &["libonnxruntime.so", "cannot load"]);
    let output = folder.path().join("out.onnx");
    let mut command = program();
    command.arg(tiny()).arg(&output).env_remove("VIRTUAL_ENV").env_remove("ORT_DYLIB_PATH").env("PATH", "/nowhere");
    let done = command.output().unwrap();
    if !done.status.success() {
        refused(&output, &done, &["not found", "pip install onnxruntime"]);
    }
}

#[test]
fn cuda_without_a_device_is_an_error() {
    let (_folder, output, done) = prune_file(&tiny(), &["--provider", "cuda"]);
    if !done.status.success() {
        refused(&output, &done, &["CUDA", "--provider cpu"]);
    }
    let (_folder, _, done) = prune_file(&tiny(), &["--provider", "auto"]);
    assert!(done.status.success());
    assert!(text(&done.stderr).contains("cpu") || text(&done.stderr).contains("cuda"), "it says which it took");
}

#[test]
fn the_report_for_people_names_sublayers_and_what_was_declined() {
    let (_folder, _, done) = prune_file(&tiny(), &["-v"]);
    let shown = text(&done.stdout);
    for words in [
        "kept",
        "FLOPs",
        "parameters",
        "self-check   passed",
        "cost",
        "layer 0 attention",
        "not pruned",
        "taken for logits",
    ] {
        assert!(shown.contains(words), "{words:?} is not in:\n{shown}");
    }
    let (_folder, _, done) = prune_file(&tiny(), &["-q"]);
    assert!(done.stdout.is_empty() && done.stderr.is_empty());
}

#[test]
fn a_run_says_how_good_its_result_is_and_fits_a_terminal() {
    let (folder, data) = (tempfile::tempdir().unwrap(), reviews().join("calibration.npz"));
    let output = folder.path().join("out.onnx");
    let done = program()
        .current_dir(folder.path())
        .arg("prune")
        .arg(reviews().join("model.onnx"))
        .args(["-o", "out.onnx", "--calibration"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(done.status.success() && output.is_file(), "{}", text(&done.stderr));
    let shown = text(&done.stdout);
    let last: Vec<&str> = shown.lines().rev().take(8).collect();
    let last = last.into_iter().rev().collect::<Vec<_>>().join(" ");
    for words in ["quality", "agreement", "\u{b1}", "set aside", "onnx-kprune compare"] {
        assert!(last.contains(words), "{words:?} is not at the end of:\n{shown}");
    }
    // Paths are as long as they are.
    let wide = shown.lines().filter(|line| line.chars().count() > 80 && !line.contains('/'));
    assert_eq!(wide.collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(!shown.contains("-0 ") && !shown.contains("-0.0"), "{shown}");
}

#[test]
fn a_report_can_be_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let done = program()
        .arg(tiny())
        .arg(path("a.onnx"))
        .args(["-q", "--sweep", "0.2", "0.6", "--seed", "3", "--report"])
        .arg(path("report.json"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let first = std::fs::read(path("a-0.6.onnx")).unwrap();
    std::fs::copy(path("report.json"), path("kept.json")).unwrap();
    let again = program().arg("--config").arg(path("kept.json")).output().unwrap();
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(std::fs::read(path("a-0.6.onnx")).unwrap(), first);
    let other = program()
        .args([tiny(), path("b.onnx")])
        .args(["--compression", "0.6", "--report"])
        .arg(path("other.json"))
        .arg("--config")
        .arg(path("kept.json"))
        .output()
        .unwrap();
    assert!(other.status.success(), "{}", text(&other.stderr));
    let report: Value = serde_json::from_slice(&std::fs::read(path("other.json")).unwrap()).unwrap();
    assert_eq!((report["settings"]["seed"].as_u64(), report["settings"]["compression"].as_f64()), (Some(3), Some(0.6)));
    let wrong = program().arg("--config").arg(tiny()).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn what_may_have_been_meant_is_said() {
    let help = |name: &str| {
        let done = program().args([name, "out.onnx"]).output().unwrap();
        assert_eq!(done.status.code(), Some(1));
        text(&done.stderr).replace('\u{2502}', " ").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(help("inspekt").contains("the command inspect"));
    assert!(help("google/bert-tiny").contains("optimum-cli export onnx --model google/bert-tiny"));
    assert!(help("none.onnx").contains("no such file"));
    let done = program().arg(tiny()).args(["out.onnx", "--report", "report.pdf"]).output().unwrap();
    assert!(done.status.code() == Some(2) && text(&done.stderr).contains(".html"), "{}", text(&done.stderr));
}

#[test]
fn progress_can_be_read_by_programs() {
    let (_folder, _, done) = prune_file(&tiny(), &["--json-progress"]);
    assert!(done.status.success());
    let lines: Vec<Value> = text(&done.stderr).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |key: &str| lines.iter().filter_map(|line| line[key].as_u64()).collect::<Vec<_>>();
    assert_eq!(of("expect").last().copied(), Some(of("advance").iter().sum()), "{lines:?}");
    assert!(lines.iter().any(|line| line["stage"] == "verifying"));
}
