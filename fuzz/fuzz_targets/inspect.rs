//! Models that are still messages: looked at, as a user would.
#![no_main]

use kprune_fuzz::{Bench, Choices, Outcome, encoded, graphs, mutate};

thread_local!(static BENCH: Bench = Bench::new());

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    let mut choices = Choices::of(content);
    let model = encoded(&graphs::graph(&mut choices));
    let model = mutate::model(&model, &mut choices);
    let outcome = BENCH.with(|bench| bench.inspect(&model));
    assert!(!matches!(outcome, Outcome::Defect(_)), "{outcome:?}");
});
