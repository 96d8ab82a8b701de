//! The schema's messages against the descriptors of PyPI's `onnx`, where Python has it.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::process::Command;

/// Prints message, field, number, kind and repetition of every field, one a line.
const SCRIPT: &str = r#"
from google.protobuf.descriptor import FieldDescriptor as F
from onnx import onnx_ml_pb2 as pb, IR_VERSION
KIND = {F.TYPE_FLOAT: "float", F.TYPE_DOUBLE: "double", F.TYPE_INT64: "int64", F.TYPE_UINT64: "uint64",
        F.TYPE_INT32: "int32", F.TYPE_STRING: "string", F.TYPE_BYTES: "bytes", F.TYPE_ENUM: "int32",
        F.TYPE_MESSAGE: "message"}
def dump(message):
    for f in message.fields:
        repeated = f.is_repeated if hasattr(f, "is_repeated") else f.label == F.LABEL_REPEATED
        print(message.name, f.number, KIND[f.type], "repeated" if repeated else "single")
    for nested in message.nested_types:
        dump(nested)
print("IR_VERSION", IR_VERSION)
for message in pb.DESCRIPTOR.message_types_by_name.values():
    dump(message)
"#;

/// The same, read off the source of our messages.
fn ours() -> BTreeSet<String> {
    let source = include_str!("../passes/src/ir/schema.rs");
    let mut found = BTreeSet::new();
    let mut message = String::new();
    let mut oneofs: Vec<(String, Vec<String>)> = Vec::new();
    let attribute = |line: &str| -> Option<String> {
        line.trim().strip_prefix("#[prost(").and_then(|l| l.strip_suffix(")]")).map(str::to_string)
    };
    let mut owner = String::new();
    for line in source.lines() {
        let trimmed = line.trim();
        if let Some(name) = trimmed.strip_prefix("pub struct ").and_then(|l| l.strip_suffix(" {")) {
            message = name.to_string();
        } else if trimmed.starts_with("pub enum ") {
            owner = oneofs.last().map(|(m, _)| m.clone()).unwrap_or_default();
        } else if let Some(inner) = attribute(line) {
            let tag = inner.split("tag = \"").nth(1).and_then(|t| t.split('"').next()).map(str::to_string);
            let kind = inner.split([',', ' ', '=']).next().unwrap_or_default().to_string();
            if kind == "oneof" {
                oneofs.push((message.clone(), Vec::new()));
                continue;
            }
            let in_oneof = !inner.contains("optional") && !inner.contains("repeated");
            let of = if in_oneof { &owner } else { &message };
            let repetition = if inner.contains("repeated") { "repeated" } else { "single" };
            found.insert(format!("{of} {} {kind} {repetition}", tag.unwrap_or_default()));
        }
    }
    found
}

#[test]
fn every_field_of_the_newest_schema_is_there() {
    let Some(python) = support::python() else { return eprintln!("skipped: no Python environment") };
    let answer = Command::new(python).args(["-c", SCRIPT]).output().unwrap();
    if !answer.status.success() {
        return eprintln!("skipped: Python has no onnx");
    }
    let text = support::text(&answer.stdout);
    let (version, fields) = text.split_once('\n').unwrap();
    assert_eq!(version, format!("IR_VERSION {}", kprune_passes::ir::schema::IR_VERSION));
    let theirs: BTreeSet<String> = fields.lines().map(str::to_string).collect();
    let ours = ours();
    assert!(ours.len() > 100);
    let missing: Vec<_> = theirs.difference(&ours).collect();
    let extra: Vec<_> = ours.difference(&theirs).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing {missing:?}, extra {extra:?}");
}
