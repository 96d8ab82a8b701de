//! The stages of a run on the trained fixture, one by one.
#![allow(missing_docs)]

use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use kprune_passes::discover::{Discovery, discover};
use kprune_passes::ir::Model;
use kprune_passes::measure::Measuring;
use kprune_passes::observe::Observation;
use kprune_passes::plan::{Decision, Plan};
use kprune_passes::remove::remove;
use kprune_passes::tune::Sums;
use ndarray::Array2;
use onnx_kprune::data::{Batch, Dataset, Sources};
use onnx_kprune::observation::observe;
use onnx_kprune::progress::Silent;
use onnx_kprune::runtime::{Cache, Choice, Runtime};
use onnx_kprune::store::read_model;
use onnx_kprune::walk::Walk;

struct Setting {
    runtime: Runtime,
    model: Model,
    seen: Observation,
    discovery: Discovery,
    calibration: Dataset,
    batches: Vec<Batch>,
}

fn setting() -> Setting {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reviews");
    let path = folder.join("model.onnx");
    let runtime = Runtime::load(None, Choice::Cpu, 1, Arc::default()).expect("ONNX Runtime is installed");
    let model = read_model(&path).expect("the fixture is there");
    let sources = Sources { files: vec![folder.join("calibration.npz")], ..Sources::default() };
    let calibration = Dataset::gather(&model, &path, &sources).expect("the data fit");
    let seen = observe(&runtime, &model, calibration.mask_input()).expect("the model runs");
    let discovery = discover(&model.graph, &seen, &calibration.lengths(None));
    let batches = calibration.batches(32).expect("there are samples");
    Setting { runtime, model, seen, discovery, calibration, batches }
}

impl Setting {
    fn measuring(&self) -> Measuring<'_> {
        let mask = self.model.graph.find("attention_mask");
        Measuring::new(&self.model, &self.seen, &self.discovery, mask, 2.0)
    }

    fn forward(&self) {
        let mut session = self.runtime.session(&self.model, "the teacher", true).expect("the model runs");
        self.batches.iter().for_each(|b| drop(session.run(b.feeds()).expect("the model runs")));
    }
}

fn analysis(c: &mut Criterion) {
    let s = setting();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reviews/model.onnx");
    c.bench_function("read", |b| b.iter(|| read_model(&path).expect("the fixture is there")));
    c.bench_function("observe", |b| b.iter(|| observe(&s.runtime, &s.model, None).expect("it runs")));
    let at = s.calibration.lengths(None);
    c.bench_function("discover", |b| b.iter(|| discover(&s.model.graph, &s.seen, &at)));
    let mut plan = Plan::untouched(&s.discovery);
    for decision in &mut plan.decisions {
        decision.keep.iter_mut().step_by(2).for_each(|k| *k = false);
    }
    c.bench_function("remove", |b| b.iter(|| remove(&s.model, &s.discovery, &s.seen, &plan).expect("it can be cut")));
}

fn measuring(c: &mut Criterion) {
    let s = setting();
    let progress = Silent;
    let cache = Cache::new(u64::MAX);
    let mut group = c.benchmark_group("calibration set");
    group.sample_size(10);
    group.bench_function("forward", |b| b.iter(|| s.forward()));
    let walk = || {
        let walk = Walk::new(&s.runtime, s.measuring(), &s.batches, cache.clone(), &progress);
        let mut walk = walk.expect("projections have matrices");
        walk.meet_teacher(&s.model).expect("it runs");
        walk
    };
    group.bench_function("knowledge", |b| {
        b.iter_batched(walk, |w| w.knowledge(1).expect("it runs"), BatchSize::PerIteration);
    });
    let decision = Decision::untouched(&s.discovery.sublayers[0]);
    group.bench_function("tuning sums", |b| {
        b.iter_batched(walk, |mut w| w.tuning_sums(0, &[&decision]).expect("it runs"), BatchSize::PerIteration);
    });
}

fn tuning(c: &mut Criterion) {
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
    group.bench_function("600 features", |b| b.iter(|| sums.solve(true)));
}

criterion_group!(benches, analysis, measuring, tuning);
criterion_main!(benches);
