//! What `fuzz/` feeds the program, bounded and with fixed seeds.
#![allow(missing_docs)]

use std::path::Path;

use kprune_fuzz::{Bench, Choices, Outcome, encoded, graphs, mutate, read};

const READ: u64 = 16_000;
const INSPECTED: u64 = 1_500;
const PRUNED: u64 = 400;
const DATA: u64 = 2_500;

/// No model that is not valid goes to ONNX Runtime here, since it ends the process for some.
fn sound(outcome: &Outcome) {
    assert!(!matches!(outcome, Outcome::Defect(_)), "{outcome:?}");
}

#[test]
fn damaged_models_are_read_or_refused() {
    let mut done = 0;
    for seed in 0..READ {
        let mut choices = Choices::seeded(seed);
        let model = encoded(&graphs::graph(&mut choices));
        let damaged = match choices.once_in(2) {
            true => mutate::bytes(&model, &mut choices),
            false => mutate::model(&model, &mut choices),
        };
        let outcome = read(&damaged);
        sound(&outcome);
        done += (outcome == Outcome::Done) as u64;
    }
    assert!(done > READ / 10 && done < READ, "{done} of {READ} were read");
}

#[test]
fn valid_graphs_are_looked_at_and_pruned() {
    let bench = Bench::new();
    for seed in 0..INSPECTED {
        let model = encoded(&graphs::graph(&mut Choices::seeded(seed)));
        assert_eq!(bench.inspect(&model), Outcome::Done, "seed {seed}");
    }
    let mut done = 0;
    for seed in INSPECTED..INSPECTED + PRUNED {
        let mut choices = Choices::seeded(seed);
        let model = encoded(&graphs::graph(&mut choices));
        // What the last check refuses would be a fault of discovery.
        let outcome = bench.prune(&model, &mut choices);
        assert!(!matches!(outcome, Outcome::Defect(_)), "seed {seed}: {outcome:?}");
        done += (outcome == Outcome::Done) as u64;
    }
    assert!(done > PRUNED / 2, "{done} of {PRUNED} had something to prune");
}

#[test]
fn damaged_data_are_read_or_refused() {
    let bench = Bench::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let entries = std::fs::read_dir(fixtures.join("cases/data")).unwrap().flatten();
    let mut files: Vec<_> = entries.map(|e| e.path()).collect();
    files.sort();
    assert!(files.len() >= 6);
    let model = fixtures.join("reviews/model.onnx");
    for path in &files {
        let ending = path.extension().unwrap().to_str().unwrap();
        let content = std::fs::read(path).unwrap();
        assert_eq!(bench.data(ending, &content, &model), Outcome::Done, "{}", path.display());
        for seed in 0..DATA / files.len() as u64 {
            sound(&bench.data(ending, &mutate::bytes(&content, &mut Choices::seeded(seed)), &model));
        }
    }
}
