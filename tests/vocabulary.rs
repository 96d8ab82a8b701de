//! Tokens that go from a model, its tokenizer and its settings, through the command line.
#![allow(missing_docs)]

mod support;

use std::path::Path;

use kprune_passes::signature::limits;
use onnx_kprune::store::read_model;
use serde_json::{Value, json};
use support::{fixtures, program, reviews, text};

const FEW: &str = "nobody could call the music cold .\nthe bread was not noisy .\n";

fn parse(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What was printed, without its lines.
fn words(printed: &[u8]) -> String {
    text(printed).replace('\u{2502}', " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A folder with the trained classifier, and a text of few of its words.
fn classifier(place: &Path) {
    let folder = place.join("in");
    std::fs::create_dir(&folder).unwrap();
    for name in ["model.onnx", "tokenizer.json"] {
        std::fs::copy(reviews().join(name), folder.join(name)).unwrap();
    }
    let words: Value = parse(&folder.join("tokenizer.json"))["model"]["vocab"].clone();
    let config = json!({"vocab_size": words.as_object().unwrap().len(), "pad_token_id": words["[PAD]"]});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(place.join("few.txt"), FEW).unwrap();
}

#[test]
fn a_classifier_of_few_words_says_of_them_what_it_said() {
    let place = tempfile::tempdir().unwrap();
    classifier(place.path());
    let path = |name: &str| place.path().join(name);
    let done = program()
        .args([path("in"), path("out")])
        .args(["--trim-vocabulary".as_ref(), path("few.txt").as_os_str()])
        .args(["--report".as_ref(), path("report.json").as_os_str()])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report = parse(&path("report.json"));
    let kept = report["vocabulary"]["kept"].as_u64().unwrap();
    assert!(kept < 30 && report["vocabulary"]["tokens"].as_u64().unwrap() > 70, "{}", report["vocabulary"]);
    assert!(report["output"]["bytes"].as_u64() < report["input"]["bytes"].as_u64());
    assert!(text(&done.stdout).contains("vocabulary"), "{}", text(&done.stdout));

    let words = parse(&path("out/tokenizer.json"))["model"]["vocab"].clone();
    let config = parse(&path("out/config.json"));
    assert_eq!(words.as_object().unwrap().len() as u64, kept);
    assert_eq!((config["vocab_size"].as_u64(), &config["pad_token_id"]), (Some(kept), &words["[PAD]"]));
    assert!(words["music"].is_u64() && words["coffee"].is_null());
    let left = std::fs::read_dir(place.path()).unwrap().flatten();
    assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().contains(".tmp")));

    let compared = program()
        .arg("compare")
        .args([path("in"), path("out")])
        .args(["--data".as_ref(), path("few.txt").as_os_str(), "--json".as_ref()])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}", text(&compared.stderr));
    let compared: Value = serde_json::from_str(&text(&compared.stdout)).unwrap();
    let fidelity = &compared["b"]["quality"]["fidelity"];
    assert_eq!(fidelity["agreement"], 1.0);
    assert!(fidelity["largest_difference"].as_f64().unwrap() < 1e-5, "{fidelity}");
}

#[test]
fn what_would_hold_the_ids_of_the_original_is_refused() {
    let place = tempfile::tempdir().unwrap();
    classifier(place.path());
    let path = |name: &str| place.path().join(name);
    let refused = |output: &str, more: &[&Path]| {
        let mut command = program();
        command.args([path("in"), path(output)]).arg("--trim-vocabulary").arg(path("few.txt")).args(more);
        let done = command.output().unwrap();
        assert_eq!(done.status.code(), Some(2), "{}", text(&done.stdout));
        assert!(!path(output).exists());
        words(&done.stderr)
    };
    assert!(refused("out.onnx", &[]).contains("name a folder"));
    let arrays = reviews().join("calibration.npz");
    assert!(refused("out", &[Path::new("--calibration"), &arrays]).contains("is no text"));
    assert!(refused("out", &[Path::new("--eval"), &arrays]).contains("is no text"));
    let tokenizer = reviews().join("tokenizer.json");
    assert!(refused("out", &[Path::new("--tokenizer"), &tokenizer]).contains("leave --tokenizer away"));
}

#[test]
fn models_of_every_exporter_can_be_trimmed() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let vocabulary: Value = (0..4000).map(|id| (format!("w{id}"), json!(id))).collect();
    let tokenizer = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "unk_token": "w0", "vocab": vocabulary}});
    let line = |i: usize| (0..9).map(|j| format!("w{}", (7 * i + j) % 40 + 2)).collect::<Vec<_>>().join(" ");
    std::fs::write(path("few.txt"), (0..12).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    let mut trimmed = 0;
    for entry in std::fs::read_dir(fixtures().join("zoo")).unwrap().flatten() {
        let (file, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let takes_ids = || read_model(&file).is_ok_and(|model| limits(&model.graph).values().any(|&rows| rows == ROWS));
        // Two take images too, one has nothing to prune, and one is quantised.
        let is_other = ["clip.", "squeezebert", "bert.ts17.quantised"].iter().any(|other| name.starts_with(other));
        if !name.ends_with(".onnx") || is_other || !takes_ids() {
            continue;
        }
        let (input, output) = (path(&format!("{name}.in")), path(&format!("{name}.out")));
        std::fs::create_dir(&input).unwrap();
        for part in [file.clone(), file.with_extension("data")].iter().filter(|part| part.is_file()) {
            std::fs::copy(part, input.join(part.file_name().unwrap())).unwrap();
        }
        std::fs::write(input.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let done =
            program().args([&input, &output]).arg("--trim-vocabulary").arg(path("few.txt")).arg("-q").output().unwrap();
        assert!(done.status.success(), "{name}: {}", words(&done.stderr));
        let model = read_model(&output.join(&name)).unwrap();
        let rows = limits(&model.graph);
        assert!(rows.values().any(|&rows| rows < 43) && rows.values().all(|&rows| rows != ROWS), "{name}: {rows:?}");
        trimmed += 1;
    }
    assert!(trimmed > 100, "{trimmed}");
}

/// Tokens of the models of the zoo.
const ROWS: usize = 53;
