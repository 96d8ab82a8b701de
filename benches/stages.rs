//! The stages of a run on the trained fixture, one by one.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use kprune_passes::calculus::loss;
use kprune_passes::discover::discover;
use kprune_passes::linalg::least_squares::{RIDGES, Sums};
use kprune_passes::methods::Walk;
use kprune_passes::plan::Plan;
use kprune_passes::probe::Probes;
use kprune_passes::remove::remove;
use ndarray::Array2;
use onnx_kprune::analysis::{Loaded, View, observe};
use onnx_kprune::clock::Clock;
use onnx_kprune::data::{Batch, Sources};
use onnx_kprune::options::Aim;
use onnx_kprune::progress::Silent;
use onnx_kprune::runtime::{Cache, Choice, Runtime};
use onnx_kprune::store::read_model;
use onnx_kprune::walk::{Calibrated, World};

struct Setting {
    lengths: BTreeMap<String, f64>,
    runtime: Runtime,
    loaded: Loaded,
    batches: Vec<Batch>,
    clock: Clock,
}

fn setting() -> Setting {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reviews");
    let runtime = Runtime::load(None, Choice::Cpu, 1, Arc::default()).expect("ONNX Runtime is installed");
    let sources = Sources { files: vec![folder.join("calibration.npz")], ..Sources::default() };
    let clock = Clock::start();
    let loaded = Loaded::read(&runtime, &folder.join("model.onnx"), &Aim::default(), &sources, &clock);
    let loaded = loaded.expect("the fixture can be pruned");
    let batches = loaded.calibration.batches(32).expect("there are samples");
    Setting { lengths: loaded.calibration.lengths(None), runtime, loaded, batches, clock }
}

impl Setting {
    /// A walk that has met the teacher.
    fn walk(&self) -> Calibrated<'_> {
        let View { model, seen, found } = &self.loaded.analysis.measured;
        let probes = Probes::new(model, seen, found, model.graph.find("attention_mask").map(Into::into));
        let Self { runtime, batches, clock, lengths, .. } = self;
        let world = World {
            runtime,
            written: &self.loaded.analysis.written,
            batches,
            labels: None,
            seed: 0,
            lengths,
            progress: &Silent,
            clock,
        };
        let mut walk = Calibrated::new(world, probes, Cache::new(u64::MAX));
        walk.meet_teacher(&self.loaded.analysis.single).expect("it runs");
        walk
    }

    fn forward(&self) {
        let mut session = self
            .runtime
            .session(&self.loaded.analysis.single, "the teacher", onnx_kprune::runtime::Purpose::Work)
            .expect("it runs");
        self.batches.iter().for_each(|b| drop(session.run(b.feeds()).expect("it runs")));
    }
}

fn analysis(c: &mut Criterion) {
    let s = setting();
    let View { model, seen, found } = &s.loaded.analysis.measured;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reviews/model.onnx");
    c.bench_function("read", |b| b.iter(|| read_model(&path).expect("the fixture is there")));
    c.bench_function("observe", |b| b.iter(|| observe(&s.runtime, model, None, None).expect("it runs")));
    let at = s.loaded.calibration.lengths(None);
    c.bench_function("discover", |b| b.iter(|| discover(&model.graph, seen, &at)));
    let mut plan = Plan::untouched(&found.sublayers);
    for decision in &mut plan.decisions {
        decision.keep.iter_mut().step_by(2).for_each(|k| *k = false);
    }
    c.bench_function("remove", |b| b.iter(|| remove(model, found, seen, &plan).expect("it can be cut")));
}

fn walking(c: &mut Criterion) {
    let s = setting();
    let mut group = c.benchmark_group("calibration set");
    group.sample_size(10);
    group.bench_function("forward", |b| b.iter(|| s.forward()));
    let columns = |mut walk: Calibrated| walk.columns(1, loss::Criterion::default(), &mut |_| ()).expect("it runs");
    group.bench_function("columns", |b| b.iter_batched(|| s.walk(), columns, BatchSize::PerIteration));
    let keep = vec![vec![true; s.loaded.analysis.measured.found.sublayers[0].units.len()]];
    let equations = |mut walk: Calibrated| walk.equations(0, &keep).expect("it runs");
    group.bench_function("equations", |b| b.iter_batched(|| s.walk(), equations, BatchSize::PerIteration));
}

fn solving(c: &mut Criterion) {
    let kept = 600;
    let features = Array2::from_shape_fn((2 * kept, kept + 1), |(i, j)| ((i * 31 + j * 17) % 101) as f64 / 101.0);
    let target = Array2::from_shape_fn((2 * kept, 384), |(i, j)| ((i * 13 + j * 7) % 89) as f64 / 89.0);
    let sums = Sums {
        gram: features.t().dot(&features),
        cross: features.t().dot(&target),
        energy: target.mapv(|y| y * y).sum(),
    };
    let mut group = c.benchmark_group("tune");
    group.sample_size(10);
    let prior = ndarray::Array2::zeros(sums.cross.raw_dim());
    group.bench_function("600 features", |b| b.iter(|| sums.solve(&prior, RIDGES[0], true)));
}

criterion_group!(benches, analysis, walking, solving);
criterion_main!(benches);
