//! Data files of every kind; the first byte says which.
#![no_main]

use std::path::Path;

use kprune_fuzz::{Bench, Outcome};

const ENDINGS: [&str; 6] = ["npz", "safetensors", "jsonl", "csv", "tsv", "txt"];

thread_local!(static BENCH: Bench = Bench::new());

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    let Some((&kind, content)) = content.split_first() else { return };
    let ending = ENDINGS[usize::from(kind) % ENDINGS.len()];
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/reviews/model.onnx");
    let outcome = BENCH.with(|bench| bench.data(ending, content, &model));
    assert!(!matches!(outcome, Outcome::Defect(_)), "{outcome:?}");
});
