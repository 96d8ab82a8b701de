//! Model folders as `optimum` writes them, through the command line.
#![allow(missing_docs)]

mod support;

use std::path::Path;

use onnx_kprune::store::read_model;
use serde_json::{Value, json};
use support::{program, reviews, text};

fn model_folder(folder: &Path) {
    std::fs::create_dir_all(folder.join("extra")).unwrap();
    std::fs::copy(reviews().join("model.onnx"), folder.join("model.onnx")).unwrap();
    std::fs::copy(reviews().join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    std::fs::write(folder.join("extra/notes.txt"), "kept").unwrap();
    std::fs::write(folder.join("pytorch_model.bin"), "the weights of the original").unwrap();
    let config = json!({"model_type": "bert", "num_hidden_layers": 4, "num_attention_heads": 6, "hidden_size": 96,
        "intermediate_size": 384, "label2id": {"bad": 0, "good": 1}});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn a_folder_comes_out_complete_with_a_true_configuration() {
    let place = tempfile::tempdir().unwrap();
    let (input, output) = (place.path().join("in"), place.path().join("out"));
    model_folder(&input);
    let data = reviews().join("calibration.jsonl");
    let run = |more: &[&str]| {
        program()
            .args([&input, &output])
            .arg("--calibration")
            .arg(&data)
            .args(["-q", "--samples", "256"])
            .args(more)
            .output()
            .unwrap()
    };
    let done = run(&["--compression", "0.6"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(std::fs::read_to_string(output.join("extra/notes.txt")).unwrap(), "kept");
    assert!(output.join("tokenizer.json").is_file() && !output.join("pytorch_model.bin").exists());
    let pruned = read_model(&output.join("model.onnx")).unwrap();
    assert!(!pruned.graph.initializers().is_empty());
    let config: Value = serde_json::from_str(&std::fs::read_to_string(output.join("config.json")).unwrap()).unwrap();
    let note = &config["onnx_kprune"];
    let heads: Vec<u64> = note["attention_heads"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!((heads.len(), note["neurons"].as_array().unwrap().len()), (4, 4));
    for (layer, &kept) in heads.iter().enumerate() {
        let gone = config["pruned_heads"][layer.to_string()].as_array().map_or(0, Vec::len);
        let uniform = heads.iter().all(|&h| h == kept);
        assert!(uniform && config["num_attention_heads"] == kept || gone as u64 == 6 - kept, "{config}");
    }
    assert_eq!(config["model_type"], "bert");
    let card = std::fs::read_to_string(output.join("PRUNED.md")).unwrap();
    for words in ["model.onnx, pruned", "| quality | agreement", "layer 3 FFN", "SHA-256", "onnx-kprune "] {
        assert!(card.contains(words), "{words:?} is not in:\n{card}");
    }

    let again = run(&[]);
    assert_eq!(again.status.code(), Some(2), "a folder that is there is not overwritten");
    assert!(text(&again.stderr).contains("no empty folder"), "{}", text(&again.stderr));
    let within = program().args([&input, &input.join("out")]).output().unwrap();
    assert_eq!(within.status.code(), Some(2), "{}", text(&within.stderr));
    assert!(text(&within.stderr).contains("lies within IN"), "{}", text(&within.stderr));
    let left =
        std::fs::read_dir(place.path()).unwrap().flatten().filter(|e| e.file_name().to_string_lossy().contains(".tmp"));
    assert_eq!(left.count(), 0);
}

#[test]
fn a_folder_can_give_a_file_and_be_compared() {
    let place = tempfile::tempdir().unwrap();
    let (input, output) = (place.path().join("in"), place.path().join("out.onnx"));
    model_folder(&input);
    let labelled = place.path().join("test.csv");
    let rows: String =
        (0..40).map(|i| format!("the food was {},{}\n", ["awful", "lovely"][i % 2], ["bad", "good"][i % 2])).collect();
    std::fs::write(&labelled, format!("text,label\n{rows}")).unwrap();
    let done = program().args([&input, &output]).args(["-q", "--sweep", "0.2,0.5"]).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let file = place.path().join("out-0.5.onnx");
    let done =
        program().arg("compare").args([&input, &file]).arg("--json").arg("--data").arg(&labelled).output().unwrap();
    let found: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{}", text(&done.stderr)));
    let accuracy = found["a"]["quality"]["scores"][0]["value"].as_f64().unwrap();
    assert!(accuracy > 0.9, "labels are understood by their names: {accuracy}");
}

#[test]
fn several_folders_come_out_of_a_sweep() {
    let place = tempfile::tempdir().unwrap();
    let (input, output) = (place.path().join("in"), place.path().join("out"));
    model_folder(&input);
    let done = program().args([&input, &output]).args(["-q", "--sweep", "0.2,0.5"]).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    for share in ["0.2", "0.5"] {
        assert!(place.path().join(format!("out-{share}/model.onnx")).is_file());
        assert!(place.path().join(format!("out-{share}/config.json")).is_file());
    }
    std::fs::remove_file(input.join("model.onnx")).unwrap();
    let done = program().args([&input, &place.path().join("other")]).output().unwrap();
    assert!(text(&done.stderr).contains("holds no .onnx file"), "{}", text(&done.stderr));
}
