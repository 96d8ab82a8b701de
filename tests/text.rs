//! Text in the encodings, forms and words that people have it in, through the command line.
#![allow(missing_docs)]

mod support;

use std::path::Path;

use serde_json::Value;
use support::{fixtures, kprune, text};

/// What `compare` finds on text, of a model beside which a tokenizer and a config.json lie.
fn compare(data: &Path) -> Result<Value, String> {
    let model = fixtures().join("cases/text/model.onnx");
    let [model, data] = [&model, data].map(Path::as_os_str);
    let done = kprune(["compare".as_ref(), model, model, "--data".as_ref(), data, "--json".as_ref()]);
    match done.status.success() {
        true => Ok(serde_json::from_slice(&done.stdout).unwrap()),
        false => Err(text(&done.stderr).replace("│", " ").split_whitespace().collect::<Vec<_>>().join(" ")),
    }
}

/// The same of a file of this name with this content.
fn compare_content(name: &str, content: &[u8]) -> Result<Value, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    std::fs::write(&file, content).unwrap();
    compare(&file)
}

/// Sentences with names of classes, in the words of config.json.
fn plain() -> String {
    std::fs::read_to_string(fixtures().join("cases/text/upper.csv")).unwrap()
}

fn accuracy(found: &Value) -> Option<f64> {
    let scores = found["a"]["quality"]["scores"].as_array()?;
    scores.iter().find(|s| s["name"] == "accuracy")?["value"].as_f64()
}

#[test]
fn the_same_text_gives_the_same_accuracy_in_every_form() {
    let plain = plain();
    let right = accuracy(&compare(&fixtures().join("cases/text/upper.csv")).unwrap()).unwrap();
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let rows: Vec<_> = plain.lines().skip(1).filter_map(|line| line.rsplit_once(',')).collect();
    let objects: Vec<_> = rows.iter().map(|(t, l)| serde_json::json!({"text": t, "label": l}).to_string()).collect();
    let ids = plain.replace(",NEGATIVE", ",0.0").replace(",NEUTRAL", ",1.0").replace(",POSITIVE", ",2.0");
    let forms: [(&str, Vec<u8>); 10] = [
        ("marked.csv", format!("\u{feff}{}", plain.replace('\n', "\r\n")).into()),
        ("wide.csv", [b"\xff\xfe".to_vec(), utf16(&plain)].concat()),
        ("CAPITALS.CSV", plain.clone().into()),
        ("names.csv", plain.replace("text,label", "Text, LABEL").into()),
        ("small.csv", plain.replace("NEGATIVE", "negative").replace("POSITIVE", "Positive").into()),
        ("numbers.csv", ids.into()),
        ("semicolons.csv", plain.replace(',', ";").into()),
        ("blank.csv", plain.replace('\n', "\n\n").into()),
        ("marked.jsonl", format!("\u{feff}{}", objects.join("\n")).into()),
        ("list.json", format!("[{}]", objects.join(",\n")).into()),
    ];
    for (name, content) in forms {
        let found = compare_content(name, &content).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(accuracy(&found), Some(right), "{name}");
        assert_eq!(found["notes"].as_array().unwrap().len(), 0, "{name}: {}", found["notes"]);
    }
}

#[test]
fn labels_that_the_model_does_not_know_give_no_accuracy_and_a_note() {
    let other = plain().replace("POSITIVE", "good").replace("NEGATIVE", "bad").replace("NEUTRAL", "fair");
    let found = compare_content("other.csv", other.as_bytes()).unwrap();
    assert_eq!(accuracy(&found), None);
    let notes = found["notes"].to_string();
    assert!(notes.contains("is none of the classes of config.json, NEGATIVE, NEUTRAL, POSITIVE"), "{notes}");
    let beyond = compare_content(
        "beyond.csv",
        plain().replace(",POSITIVE", ",7").replace("NEGATIVE", "0").replace("NEUTRAL", "1").as_bytes(),
    );
    let refused = beyond.unwrap_err();
    assert!(refused.contains("holds the label 7, and the model has 3 classes"), "{refused}");
}

#[test]
fn what_is_no_text_is_refused_in_plain_words() {
    let plain = plain();
    let latin: Vec<u8> = [plain.as_bytes(), b"caf\xe9 great,POSITIVE\n"].concat();
    for (name, content, said) in [
        ("latin.csv", latin, "is no text in UTF-8: there is the byte 0xe9"),
        ("short.csv", format!("{plain}only one value\n").into(), "has 1 values, and others 2"),
        ("empty.csv", Vec::new(), "holds no samples"),
        ("names.csv", b"text,label\n".to_vec(), "holds no samples"),
        ("nothing.jsonl", b"{\"text\": null}\n".to_vec(), "line 1 has no \"text\""),
    ] {
        let refused = compare_content(name, &content).unwrap_err();
        assert!(refused.contains(said), "{name}: {refused}");
    }
    let tabs = compare_content("tabs.txt", b"a great film\tPOSITIVE\na bad one\tNEGATIVE\n").unwrap();
    assert!(tabs["notes"].to_string().contains("--text-columns 1"), "{}", tabs["notes"]);
}
