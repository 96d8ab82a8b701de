//! What is summed up over the untouched model, against sums formed on the host and finite differences.
#![allow(missing_docs)]

mod support;

use std::collections::HashMap;
use std::ops::Range;

use kprune_passes::calculus::metric::DRAW;
use kprune_passes::discover::{Discovery, discover};
use kprune_passes::ir::{ElementType, Model, Operator, Tensor};
use kprune_passes::observe::Observation;
use kprune_passes::probe::{Gram, Probes};
use kprune_passes::signature::declare;
use ndarray::{Array2, ArrayD, Axis, Ix2, IxDyn};
use onnx_kprune::analysis::observe;
use onnx_kprune::data::{Batch, Dataset, Sources};
use onnx_kprune::runtime::{Held, Purpose, Runtime, Values, host, integers, numbers, scalars};
use onnx_kprune::store::read_model;
use support::{cpu, fixtures, reviews};

const FIXTURES: [&str; 3] = ["reviews/model.onnx", "tiny/dynamo-sdpa-18.onnx", "tiny/torchscript-sdpa-14.onnx"];

struct Setting {
    runtime: Runtime,
    model: Model,
    seen: Observation,
    discovery: Discovery,
    batch: Batch,
}

impl Setting {
    /// With a batch of samples of different lengths where there are data, so that there is padding.
    fn of(fixture: &str, tokens: usize) -> Self {
        let runtime = cpu();
        let path = fixtures().join(fixture);
        let mut model = read_model(&path).unwrap();
        kprune_passes::simplify::fold::fold_constants(&mut model.graph);
        let files = if fixture.starts_with("reviews") { vec![reviews().join("calibration.npz")] } else { Vec::new() };
        let calibration = Dataset::gather(&model, &path, &Sources { files, ..Sources::default() }, 1).unwrap();
        let seen = observe(&runtime, &model, None, calibration.mask_input()).unwrap();
        let discovery = discover(&model.graph, &seen, &calibration.lengths(None));
        let batch = calibration.batches(tokens).unwrap().swap_remove(0);
        Self { runtime, model, seen, discovery, batch }
    }

    fn probes(&self) -> Probes<'_> {
        let mask = self.model.graph.find("attention_mask");
        Probes::new(&self.model, &self.seen, &self.discovery, mask.map(Into::into))
    }

    fn run(&self, model: &Model, given: &HashMap<String, Held>) -> Values {
        let mut session = self.runtime.session(model, "testing", Purpose::Work).unwrap_or_else(|e| panic!("{e}"));
        session.run_with(|n| given.get(n).map(Held::value).or_else(|| self.batch.find(n))).unwrap()
    }

    /// 1 for every real token, in rows of samples.
    fn real(&self) -> Vec<f64> {
        integers(self.batch.find("attention_mask").unwrap()).unwrap().iter().map(|&i| i as f64).collect()
    }
}

/// Sums so far that are ones, so that they are seen to be added to.
fn ones<'a>(grams: impl IntoIterator<Item = &'a Gram>) -> HashMap<String, Held> {
    let sums = grams.into_iter().flat_map(|gram| &gram.sums);
    sums.map(|sum| (sum.input.clone(), numbers(&ArrayD::ones(sum.shape.to_vec())).unwrap())).collect()
}

fn matrix(values: &Values, gram: &Gram) -> Array2<f64> {
    let block = |name: &str| scalars(&values[name]).unwrap().into_dimensionality::<Ix2>().unwrap() - 1.0;
    gram.whole(&gram.sums.iter().map(|sum| block(&sum.output)).collect::<Vec<_>>())
}

#[test]
fn gram_matrices_are_of_the_features_of_real_tokens_in_one_pass_or_several() {
    for fixture in FIXTURES {
        let setting = Setting::of(fixture, 64);
        let mut whole = setting.model.clone();
        setting.discovery.sublayers.iter().for_each(|s| whole.graph.add_output(s.projection.features));
        let expected = setting.run(&whole, &HashMap::new());
        let (probes, real, count) = (setting.probes(), setting.real(), setting.discovery.sublayers.len());
        let width = |t: usize| setting.discovery.sublayers[t].projection.width;
        let check = |values: &Values, part: Range<usize>, grams: &[Gram]| {
            for (t, gram) in part.zip(grams) {
                let features = setting.discovery.sublayers[t].projection.features;
                let features = scalars(&expected[setting.model.graph.name(features)]).unwrap();
                let features = features.into_shape_with_order((real.len(), width(t))).unwrap();
                let mask = Array2::from_shape_fn((real.len(), 1), |(i, _)| real[i]);
                let rows = ndarray::concatenate![Axis(1), features * &mask, mask];
                let (expected, found) = (rows.t().dot(&rows), matrix(values, gram));
                let scale = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                let apart = (&expected - &found).iter().fold(0.0f64, |m, x| m.max(x.abs()));
                assert!(apart < 1e-4 * scale, "{fixture}, sublayer {t}: {apart} of {scale}");
            }
        };
        for ends in [vec![0, count], vec![0, 1, count - 1, count]] {
            let mut given = HashMap::new();
            for part in ends.windows(2).map(|pair| pair[0]..pair[1]) {
                let graph = probes.moments(part.clone());
                given.extend(ones(&graph.outputs.grams));
                let mut values = setting.run(&graph.model, &given);
                check(&values, part, &graph.outputs.grams);
                let crossing = graph.outputs.crossing;
                given.extend(crossing.into_iter().map(|name| (name.clone(), values.remove(&name).unwrap().into())));
            }
        }
        let graph = probes.sensitivity(4.0, true).unwrap();
        let in_blocks = graph.outputs.grams.iter().any(|gram| gram.sums.len() > 1);
        assert!(in_blocks || !fixture.starts_with("reviews"), "no matrix is wide enough for blocks");
        let mut given = ones(graph.outputs.grams.iter().chain(graph.outputs.felt.iter().flatten()));
        given.insert(DRAW.into(), host(&Tensor::from_i64s(&[], &[12_345])).unwrap());
        check(&setting.run(&graph.model, &given), 0..count, &graph.outputs.grams);
    }
}

/// With two classes, the sign of a sample's probe is all that is random, and g g^T knows no sign.
#[test]
fn sensitivity_is_the_gradient_of_a_probe_at_real_tokens() {
    for fixture in FIXTURES {
        let setting = Setting::of(fixture, 24);
        let graph = setting.probes().sensitivity(4.0, false).unwrap();
        let outputs = |t: usize| setting.discovery.sublayers[t].projection.outputs;
        let mut given = ones(graph.outputs.felt.iter().flatten());
        given.insert(DRAW.into(), host(&Tensor::from_i64s(&[], &[12_345])).unwrap());
        let sums = setting.run(&graph.model, &given);
        for (t, gram) in graph.outputs.felt.iter().enumerate() {
            let found = matrix(&sums, gram.as_ref().unwrap());
            let direction: Vec<f64> = (0..outputs(t)).map(|i| ((i * 37 + 11) % 23) as f64 / 23.0 - 0.4).collect();
            let direction = ndarray::Array1::from(direction);
            let (expected, found) = (setting.felt(t, &direction), direction.dot(&found.dot(&direction)));
            assert!(
                expected > 0.0 && (found - expected).abs() < 0.02 * expected,
                "{fixture}, {t}: {found}, {expected}"
            );
        }
    }
}

impl Setting {
    /// The sum over real tokens of the squared derivative of sqrt(p_0 p_1) (z_0 - z_1) along a direction of what the
    /// projection of a sublayer gives at that token.
    fn felt(&self, t: usize, direction: &ndarray::Array1<f64>) -> f64 {
        let node = self.discovery.sublayers[t].projection.node;
        let mut model = self.model.clone();
        let made = model.graph.operator(node).output(0).unwrap();
        let rank = self.seen.dims(made).unwrap().len();
        let moved = model.graph.add_input(declare("test_moved", ElementType::F32, rank));
        model.graph.add_behind(made, Operator::new("Add"), moved, "moved");
        let logits = self.model.graph.name(self.probes().objective.outputs[0].value).to_string();
        let mut session = self.runtime.session(&model, "testing", Purpose::Work).unwrap_or_else(|e| panic!("{e}"));
        let (samples, real) = (self.batch.samples, self.real());
        let length = real.len() / samples;
        let mut shape = if rank == 3 { vec![samples, length] } else { vec![samples * length] };
        shape.push(direction.len());
        let mut logits_at = |token: usize, step: f64| {
            let mut moved = Array2::zeros((samples * length, direction.len()));
            (0..samples).for_each(|sample| moved.row_mut(sample * length + token).scaled_add(step, direction));
            let moved = numbers(&moved.into_shape_with_order(IxDyn(&shape)).unwrap()).unwrap();
            let feed = |n: &str| if n == "test_moved" { Some(moved.value()) } else { self.batch.find(n) };
            let values = session.run_with(feed).unwrap();
            scalars(&values[&logits]).unwrap().into_dimensionality::<Ix2>().unwrap()
        };
        let (here, step) = (logits_at(0, 0.0), 0.02);
        let mut sum = 0.0;
        for token in 0..length {
            let change = (logits_at(token, step) - logits_at(token, -step)) / (2.0 * step);
            for sample in (0..samples).filter(|sample| real[sample * length + token] != 0.0) {
                let odds = ((here[[sample, 0]] - here[[sample, 1]]) / 4.0).exp();
                let root = (odds / (1.0 + odds) / (1.0 + odds)).sqrt();
                sum += (root * (change[[sample, 0]] - change[[sample, 1]])).powi(2);
            }
        }
        sum
    }
}
