//! Valid graphs, pruned.
#![no_main]

use kprune_fuzz::{Bench, Choices, Outcome, encoded, graphs};

thread_local!(static BENCH: Bench = Bench::new());

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    let mut choices = Choices::of(content);
    let model = encoded(&graphs::graph(&mut choices));
    let outcome = BENCH.with(|bench| bench.prune(&model, &mut choices));
    assert!(!matches!(outcome, Outcome::Defect(_)), "{outcome:?}");
});
