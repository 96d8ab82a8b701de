//! Import and export without a pass between, judged by a second, independent reader of ONNX.
#![allow(missing_docs)]

mod support;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use onnx_kprune::store::{read_model, stage};
use onnx_protobuf::ModelProto;
use protobuf::Message;
use support::fixtures;

fn models_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name == "cases") {
            // What is wrong there is not to come out again.
            continue;
        } else if path.is_dir() {
            found.extend(models_below(&path));
        } else if path.extension().is_some_and(|e| e == "onnx") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The model as the second reader sees it.
fn second_reader(path: &Path) -> ModelProto {
    ModelProto::parse_from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

fn write_again(path: &Path, output: &Path) {
    let model = read_model(path).unwrap_or_else(|e| panic!("{e}"));
    stage(&model, path, output).and_then(|s| s.publish()).unwrap_or_else(|e| panic!("{e}"));
}

/// Whether every operator comes after what it reads, as the format demands; otherwise it is put in order.
fn is_ordered(model: &ModelProto) -> bool {
    let graph = model.graph.as_ref().unwrap();
    let all: HashSet<&String> = graph.node.iter().flat_map(|n| &n.output).collect();
    let mut made: HashSet<&String> = HashSet::new();
    graph.node.iter().all(|node| {
        let known = node.input.iter().all(|name| made.contains(name) || !all.contains(name));
        made.extend(&node.output);
        known
    })
}

/// Types of values that nothing makes, which an optimiser left behind, are not written again.
fn drop_strays(model: &mut ModelProto) {
    let graph = model.graph.as_mut().unwrap();
    let mut made: HashSet<String> = graph.node.iter().flat_map(|n| n.output.clone()).collect();
    made.extend(graph.input.iter().map(|i| i.name.clone()));
    made.extend(graph.initializer.iter().map(|t| t.name.clone()));
    graph.value_info.retain(|info| made.contains(&info.name));
}

#[test]
fn every_fixture_comes_out_as_it_went_in() {
    let folder = tempfile::tempdir().unwrap();
    let models = models_below(&fixtures());
    assert!(models.len() > 5, "the fixtures are there");
    // External data get a new name; another test looks at those.
    for path in models.into_iter().filter(|p| !p.with_extension("data").exists()) {
        let output = folder.path().join("out.onnx");
        write_again(&path, &output);
        let (mut before, after) = (second_reader(&path), second_reader(&output));
        if !is_ordered(&before) {
            continue;
        }
        drop_strays(&mut before);
        assert_eq!(before.unknown_fields().iter().count(), after.unknown_fields().iter().count());
        assert!(before == after, "{} changed", path.display());
    }
}

/// A model with everything that the fixtures lack, written by the second reader's messages.
fn rich_model() -> ModelProto {
    let mut model = second_reader(&fixtures().join("tiny/torchscript-eager-17.onnx"));
    model.doc_string = "a doc string".into();
    model.model_version = 7;
    let mut entry = onnx_protobuf::StringStringEntryProto::new();
    (entry.key, entry.value) = ("author".into(), "somebody".into());
    model.metadata_props.push(entry.clone());
    let mut opset = onnx_protobuf::OperatorSetIdProto::new();
    (opset.domain, opset.version) = ("com.example".into(), 3);
    model.opset_import.push(opset.clone());
    let mut function = onnx_protobuf::FunctionProto::new();
    function.name = "Twice".into();
    function.domain = "com.example".into();
    function.input.push("x".into());
    function.output.push("y".into());
    function.opset_import.push(opset);
    let mut node = onnx_protobuf::NodeProto::new();
    node.op_type = "Add".into();
    node.input = vec!["x".into(), "x".into()];
    node.output = vec!["y".into()];
    node.doc_string = "adds".into();
    function.node.push(node);
    model.functions.push(function);
    let graph = model.graph.as_mut().unwrap();
    graph.doc_string = "a graph".into();
    for (i, (data_type, fill)) in listed_tensors().into_iter().enumerate() {
        let mut tensor = onnx_protobuf::TensorProto::new();
        tensor.name = format!("listed_{i}");
        tensor.dims = vec![2];
        tensor.data_type = data_type;
        fill(&mut tensor);
        graph.initializer.push(tensor);
    }
    model
}

type Fill = fn(&mut onnx_protobuf::TensorProto);

/// Element types whose values a file may list one by one.
fn listed_tensors() -> Vec<(i32, Fill)> {
    vec![
        (1, |t| t.float_data = vec![1.5, -2.0]),
        (11, |t| t.double_data = vec![1.5, -2.0]),
        (7, |t| t.int64_data = vec![1, -2]),
        (6, |t| t.int32_data = vec![1, -2]),
        (10, |t| t.int32_data = vec![0x3c00, 0xc000]),
        (16, |t| t.int32_data = vec![0x3f80, 0xc000]),
        (13, |t| t.uint64_data = vec![1, 2]),
        (8, |t| t.string_data = vec![b"one".to_vec(), b"two".to_vec()]),
        (9, |t| t.raw_data = vec![0, 1]),
        (3, |t| t.raw_data = vec![255, 1]),
    ]
}

#[test]
fn functions_metadata_and_listed_values_survive() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.onnx"), folder.path().join("out.onnx"));
    let model = rich_model();
    std::fs::write(&input, model.write_to_bytes().unwrap()).unwrap();
    write_again(&input, &output);
    assert!(second_reader(&output) == model);
}

/// Moves the raw data of all larger tensors into one external file.
fn with_external_data(folder: &Path) -> PathBuf {
    let mut model = second_reader(&fixtures().join("tiny/torchscript-eager-17.onnx"));
    let mut data = Vec::new();
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        if tensor.raw_data.len() < 256 {
            continue;
        }
        data.resize(data.len().next_multiple_of(64), 0);
        let mut add = |key: &str, value: String| {
            let mut entry = onnx_protobuf::StringStringEntryProto::new();
            (entry.key, entry.value) = (key.into(), value);
            tensor.external_data.push(entry);
        };
        add("location", "model.onnx.data".into());
        add("offset", data.len().to_string());
        add("length", tensor.raw_data.len().to_string());
        tensor.data_location = protobuf::EnumOrUnknown::from_i32(1);
        data.append(&mut tensor.raw_data);
    }
    let path = folder.join("model.onnx");
    std::fs::write(folder.join("model.onnx.data"), data).unwrap();
    std::fs::write(&path, model.write_to_bytes().unwrap()).unwrap();
    path
}

#[test]
fn external_data_keep_their_layout_under_a_new_name() {
    let folder = tempfile::tempdir().unwrap();
    let input = with_external_data(folder.path());
    let output = folder.path().join("copy.onnx");
    write_again(&input, &output);
    let old = std::fs::read(folder.path().join("model.onnx.data")).unwrap();
    assert_eq!(std::fs::read(folder.path().join("copy.onnx.data")).unwrap(), old);
    let rename = |mut model: ModelProto| {
        for tensor in &mut model.graph.as_mut().unwrap().initializer {
            for entry in tensor.external_data.iter_mut().filter(|e| e.key == "location") {
                entry.value = "same".into();
            }
        }
        model
    };
    assert!(rename(second_reader(&input)) == rename(second_reader(&output)));
}

#[test]
fn a_model_with_external_data_is_pruned_into_one() {
    let folder = tempfile::tempdir().unwrap();
    let input = with_external_data(folder.path());
    let output = folder.path().join("pruned.onnx");
    let done = support::kprune([input.as_os_str(), output.as_os_str()]);
    assert!(done.status.success(), "{}", support::text(&done.stderr));
    let size = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().len();
    assert!(size("pruned.onnx.data") < size("model.onnx.data"));
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "no temporary file is left: {names:?}");
}

#[test]
fn missing_and_escaping_external_data_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = with_external_data(folder.path());
    let sound = second_reader(&path);
    for (location, expected) in [
        ("gone.data", "cannot read"),
        ("../secret.data", "inside the model's folder"),
        ("/etc/passwd", "inside the model's folder"),
    ] {
        let mut model = sound.clone();
        for tensor in &mut model.graph.as_mut().unwrap().initializer {
            tensor.external_data.iter_mut().filter(|e| e.key == "location").for_each(|e| e.value = location.into());
        }
        let bad = folder.path().join("bad.onnx");
        std::fs::write(&bad, model.write_to_bytes().unwrap()).unwrap();
        let error = read_model(&bad).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(location), "{error}");
    }
}
