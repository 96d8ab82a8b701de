//! Mask gradients and energies of a whole model against finite differences of the loss.
#![allow(missing_docs)]

mod support;

use kprune_passes::calculus::emit::Emit;
use kprune_passes::calculus::loss::{self, Criterion, SAMPLES, teacher_input};
use kprune_passes::discover::{Discovery, discover};
use kprune_passes::ir::{ElementType, Model, Operator};
use kprune_passes::observe::Observation;
use kprune_passes::probe::{Probes, mask_input};
use kprune_passes::signature::declare;
use ndarray::{Array1, ArrayD, IxDyn};
use onnx_kprune::analysis::observe;
use onnx_kprune::data::{Batch, Dataset, Sources};
use onnx_kprune::runtime::{Held, Purpose, Runtime, numbers, scalars};
use onnx_kprune::store::read_model;
use support::{cpu, fixtures};

const CRITERION: Criterion = Criterion::Teacher { tau: 2.0 };

struct Setting {
    runtime: Runtime,
    model: Model,
    seen: Observation,
    discovery: Discovery,
    batches: Vec<Batch>,
}

impl Setting {
    fn of(fixture: &str) -> Self {
        let runtime = cpu();
        let path = fixtures().join(fixture);
        let mut model = read_model(&path).unwrap();
        kprune_passes::simplify::fold::fold_constants(&mut model.graph);
        let sources = Sources { seq_len: Some(6), ..Sources::default() };
        let calibration = Dataset::gather(&model, &path, &sources, 1).unwrap();
        let seen = observe(&runtime, &model, None, calibration.mask_input()).unwrap();
        let discovery = discover(&model.graph, &seen, &calibration.lengths(None));
        let batches = calibration.batches(4).unwrap();
        Self { runtime, model, seen, discovery, batches }
    }

    fn probes(&self) -> Probes<'_> {
        let mask = self.model.graph.find("attention_mask");
        Probes::new(&self.model, &self.seen, &self.discovery, mask.map(Into::into))
    }

    fn teacher(&self) -> Held {
        let logits = [0.9, -0.4, -1.2, 0.3, 0.1, 0.8, 2.0, -0.5];
        numbers(&ArrayD::from_shape_vec(IxDyn(&[4, 2]), logits.to_vec()).unwrap()).unwrap()
    }

    /// The loss of the first batch when the features of sublayer `l` are multiplied by `mask`.
    fn losses(&self, l: usize, masks: &[Array1<f64>]) -> Vec<f64> {
        let probes = self.probes();
        let mut model = self.model.clone();
        let projection = &self.discovery.sublayers[l].projection;
        let mask = model.graph.add_input(declare("test_mask", ElementType::F32, 1));
        let masked = model.graph.add(Operator::new("Mul"), &[projection.features, mask], "masked");
        model.graph.set_input(projection.node, projection.features_slot, Some(masked));
        let mut emit = Emit::new(&mut model.graph, 17, "test");
        let loss = loss::append(&mut emit, &self.seen, &probes.objective, CRITERION, probes.token_mask);
        model.graph.add_output(loss.value);
        let mut session = self.runtime.session(&model, "testing", Purpose::Work).unwrap_or_else(|e| panic!("{e}"));
        let (teacher, samples) = (self.teacher(), numbers(&ArrayD::from_elem(IxDyn(&[]), 4.0)).unwrap());
        let name = teacher_input("logits");
        let value = |mask: &Array1<f64>| {
            let mask = numbers(&mask.clone().into_dyn()).unwrap();
            let values = session.run_with(|n| match n {
                "test_mask" => Some(mask.value()),
                SAMPLES => Some(samples.value()),
                n if n == name => Some(teacher.value()),
                n => self.batches[0].find(n),
            });
            scalars(&values.unwrap()[model.graph.name(loss.value)]).unwrap().sum()
        };
        masks.iter().map(value).collect()
    }
}

#[test]
fn mask_gradients_are_those_of_the_loss() {
    for fixture in ["tiny/torchscript-eager-13.onnx", "tiny/torchscript-sdpa-17.onnx", "tiny/dynamo-eager-20.onnx"] {
        let setting = Setting::of(fixture);
        let probes = setting.probes();
        let graph = probes.columns(0, CRITERION).unwrap();
        let mut session =
            setting.runtime.session(&graph.model, "testing", Purpose::Work).unwrap_or_else(|e| panic!("{e}"));
        let (teacher, samples) = (setting.teacher(), numbers(&ArrayD::from_elem(IxDyn(&[]), 4.0)).unwrap());
        let name = teacher_input("logits");
        let sums = session.run_with(|n| match n {
            SAMPLES => Some(samples.value()),
            n if n == name => Some(teacher.value()),
            n => setting.batches[0].find(n),
        });
        let sums = sums.unwrap();
        assert_eq!(graph.outputs.len(), 4);
        for unit in &graph.outputs {
            let gradient = scalars(&sums[unit.gradient.as_ref().unwrap()]).unwrap();
            let width = setting.discovery.sublayers[unit.sublayer].projection.width;
            assert_eq!(gradient.shape(), [width]);
            let columns: Vec<usize> = (0..width).step_by(7).collect();
            let step = 0.02;
            let moved = |c: usize, by: f64| {
                let mut mask = Array1::ones(width);
                mask[c] += by;
                mask
            };
            let masks: Vec<_> = columns.iter().flat_map(|&c| [moved(c, step), moved(c, -step)]).collect();
            let losses = setting.losses(unit.sublayer, &masks);
            let scale = gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
            assert!(scale > 1e-3, "there is something to compare");
            for (pair, &column) in losses.chunks(2).zip(&columns) {
                let expected = (pair[0] - pair[1]) / (2.0 * step);
                let found = gradient[[column]];
                assert!(
                    (found - expected).abs() < 0.02 * scale,
                    "{fixture}, sublayer {}, column {column}: {found} and not {expected}",
                    unit.sublayer
                );
            }
        }
    }
}

#[test]
fn energies_are_the_squared_features_of_real_tokens() {
    let setting = Setting::of("tiny/torchscript-eager-17.onnx");
    let probes = setting.probes();
    let graph = probes.columns(0, CRITERION).unwrap();
    let mut plain = setting.model.clone();
    let features = setting.discovery.sublayers[1].projection.features;
    plain.graph.set_outputs(&[features]);
    // The second half of every sample is padding.
    let mut mask = ArrayD::ones(IxDyn(&[4, 6]));
    mask.indexed_iter_mut().for_each(|(i, m)| *m = if i[1] < 3 { 1.0 } else { 0.0 });
    let ints: Vec<u8> = mask.iter().flat_map(|&m: &f64| (m as i64).to_le_bytes()).collect();
    let tensor = kprune_passes::ir::Tensor::from_raw("m", ElementType::I64, &[4, 6], ints.into()).unwrap();
    let held = onnx_kprune::runtime::host(&tensor).unwrap();
    let feed = |n: &str| if n == "attention_mask" { Some(held.value()) } else { setting.batches[0].find(n) };
    let mut session = setting.runtime.session(&plain, "testing", Purpose::Work).unwrap();
    let values = session.run_with(feed).unwrap();
    let values = scalars(&values[plain.graph.name(features)]).unwrap();
    let (teacher, samples) = (setting.teacher(), numbers(&ArrayD::from_elem(IxDyn(&[]), 4.0)).unwrap());
    let name = teacher_input("logits");
    let mut session = setting.runtime.session(&graph.model, "testing", Purpose::Work).unwrap();
    let sums = session.run_with(|n| match n {
        SAMPLES => Some(samples.value()),
        n if n == name => Some(teacher.value()),
        n => feed(n),
    });
    let energy = scalars(&sums.unwrap()[&graph.outputs[1].energy]).unwrap();
    let mut expected = ArrayD::<f64>::zeros(energy.raw_dim());
    for (index, value) in values.indexed_iter() {
        if index[1] < 3 {
            expected[[index[2]]] += value * value;
        }
    }
    assert!((&energy - &expected).iter().zip(&expected).all(|(d, e)| d.abs() <= 1e-4 * e.max(1e-3)));
}

#[test]
fn mask_gradients_of_units_that_are_gone_are_those_of_the_loss_too() {
    let setting = Setting::of("tiny/torchscript-sdpa-17.onnx");
    let probes = setting.probes();
    let graph = probes.masks(CRITERION).unwrap();
    let mut session = setting.runtime.session(&graph.model, "testing", Purpose::Work).unwrap_or_else(|e| panic!("{e}"));
    let (teacher, samples) = (setting.teacher(), numbers(&ArrayD::from_elem(IxDyn(&[]), 4.0)).unwrap());
    let name = teacher_input("logits");
    let widths: Vec<usize> = setting.discovery.sublayers.iter().map(|s| s.projection.width).collect();
    // A third of all columns are gone, everywhere.
    let masks: Vec<Array1<f64>> =
        widths.iter().map(|&width| Array1::from_shape_fn(width, |c| f64::from(u8::from(c % 3 != 0)))).collect();
    let mut run = |masks: &[Array1<f64>]| {
        let held: Vec<(String, Held)> = masks
            .iter()
            .enumerate()
            .map(|(t, mask)| (mask_input(t), numbers(&mask.clone().into_dyn()).unwrap()))
            .collect();
        let values = session.run_with(|n| match n {
            SAMPLES => Some(samples.value()),
            n if n == name => Some(teacher.value()),
            n => held.iter().find(|(name, _)| name == n).map(|h| h.1.value()).or_else(|| setting.batches[0].find(n)),
        });
        let values = values.unwrap();
        let loss = scalars(&values[&graph.outputs.loss]).unwrap().sum();
        let gradients: Vec<ArrayD<f64>> =
            graph.outputs.gradients.iter().map(|g| scalars(&values[g.as_ref().unwrap()]).unwrap()).collect();
        (loss, gradients)
    };
    let (_, gradients) = run(&masks);
    for (t, gradient) in gradients.iter().enumerate() {
        let scale = gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        assert!(scale > 1e-4, "there is something to compare");
        for column in [0, 3, 4] {
            let mut at = |by: f64| {
                let mut masks = masks.clone();
                masks[t][column] += by;
                run(&masks).0
            };
            let expected = (at(0.02) - at(-0.02)) / 0.04;
            let found = gradient[[column]];
            assert!(
                (found - expected).abs() < 0.03 * scale,
                "sublayer {t}, column {column}: {found} and not {expected}"
            );
        }
    }
}
