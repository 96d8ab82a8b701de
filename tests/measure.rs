//! The graphs that measure and advance, against the same sums formed on the host.
#![allow(missing_docs)]

mod support;

use std::collections::HashMap;

use kprune_passes::discover::discover;
use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::plan::Decision;
use kprune_passes::probe::{COLUMNS, FEATURES, Probes, Sum, WEIGHT, stream_input};
use ndarray::{Array2, ArrayD, IxDyn};
use onnx_kprune::analysis::observe;
use onnx_kprune::data::{Dataset, Sources};
use onnx_kprune::runtime::{self, Held, Purpose, Values, host, numbers, scalars};
use onnx_kprune::store::read_model;
use onnx_kprune::walk::original_weight;
use support::{cpu, fixtures, reviews};

fn rows(value: ArrayD<f64>, width: usize) -> Array2<f64> {
    let count = value.len() / width;
    value.into_shape_with_order((count, width)).unwrap()
}

fn close(found: &Array2<f64>, expected: &Array2<f64>) -> bool {
    let scale = expected.iter().fold(1e-6f64, |m, x| m.max(x.abs()));
    found.shape() == expected.shape() && (found - expected).iter().all(|d| d.abs() < 1e-4 * scale)
}

#[test]
fn sublayer_by_sublayer_gives_what_the_whole_model_gives() {
    let cpu = cpu();
    for fixture in ["reviews/model.onnx", "tiny/dynamo-sdpa-18.onnx", "tiny/torchscript-sdpa-14.onnx"] {
        let path = fixtures().join(fixture);
        let mut model = read_model(&path).unwrap();
        kprune_passes::simplify::fold::fold_constants(&mut model.graph);
        let files = if fixture.starts_with("reviews") { vec![reviews().join("calibration.npz")] } else { Vec::new() };
        let calibration = Dataset::gather(&model, &path, &Sources { files, ..Sources::default() }, 1).unwrap();
        let seen = observe(&cpu, &model, None, calibration.mask_input()).unwrap();
        let discovery = discover(&model.graph, &seen, &calibration.lengths(None));
        let mask = model.graph.find("attention_mask");
        let probes = Probes::new(&model, &seen, &discovery, mask.map(Into::into));
        // A batch of samples of different lengths, so that there is padding.
        let batches = calibration.batches(64).unwrap();
        let batch = &batches[0];
        let mut whole = model.clone();
        for sublayer in &discovery.sublayers {
            whole.graph.add_output(sublayer.residual.output);
            whole.graph.add_output(sublayer.projection.features);
        }
        let expected = cpu.session(&whole, "testing", Purpose::Work).unwrap().run(batch.feeds()).unwrap();
        let name = |v| model.graph.name(v).to_string();
        let real: Vec<f64> = match expected_mask(batch.find("attention_mask")) {
            Some(mask) => mask,
            None => vec![1.0; batch.samples],
        };
        let mut state: HashMap<String, ort::value::DynValue> = HashMap::new();
        for (t, sublayer) in discovery.sublayers.iter().enumerate() {
            let projection = &sublayer.projection;
            let weight = original_weight(&model, sublayer).unwrap();
            let features = rows(scalars(&expected[&name(projection.features)]).unwrap(), projection.width);
            let stream = scalars(&expected[&name(sublayer.residual.output)]).unwrap();

            // The target of tuning against a teacher that is the model itself is what the projection gives.
            let mut decision = Decision::untouched(sublayer);
            decision.keep.iter_mut().step_by(3).for_each(|keep| *keep = false);
            let columns = decision.columns(sublayer);
            let equations = probes.equations(t, &decision.keep).unwrap();
            let is_gathered = equations.model.graph.find(COLUMNS).is_some();
            assert!(!is_gathered, "{fixture}, sublayer {t}: units are cut out of the graph, not out of the features");
            let teacher = numbers(&stream).unwrap();
            // The sums so far are ones, so that they are seen to be added to.
            let growing = equations.outputs.gram.sums.iter().chain([&equations.outputs.cross]);
            let one = |sum: &Sum| (sum.input.clone(), numbers(&ArrayD::ones(sum.shape.to_vec())).unwrap());
            let so_far: HashMap<String, Held> = growing.map(one).collect();
            let sums = cpu.session(&equations.model, "testing", Purpose::Work).unwrap().run_with(|n| match n {
                n if n == stream_input(0) => Some(teacher.value()),
                n => so_far.get(n).map(Held::value).or_else(|| state.get(n)).or_else(|| batch.find(n)),
            });
            let mut sums = sums.unwrap_or_else(|e| panic!("{fixture}, sublayer {t}: {e}"));
            let real = Array2::from_shape_fn((real.len(), 1), |(i, _)| real[i]);
            let kept = ndarray::concatenate![
                ndarray::Axis(1),
                features.select(ndarray::Axis(1), &columns),
                Array2::ones(real.raw_dim())
            ];
            let kept = kept * &real;
            let target = (&features * &real).dot(&weight);
            let matrix = |sum: &Sum| {
                let sum = scalars(&sums[&sum.output]).unwrap() - 1.0;
                sum.into_dimensionality::<ndarray::Ix2>().unwrap()
            };
            let gram = &equations.outputs.gram;
            let gram = gram.whole(&gram.sums.iter().map(matrix).collect::<Vec<_>>());
            let cross = matrix(&equations.outputs.cross);
            let energy = scalars(&sums[&equations.outputs.energy]).unwrap();
            assert!(close(&gram, &kept.t().dot(&kept)), "{fixture}, sublayer {t}: Gram matrix");
            assert!(close(&cross, &kept.t().dot(&target)), "{fixture}, sublayer {t}: cross terms");
            let norm = target.mapv(|y| y * y).sum();
            assert!((energy.sum() - norm).abs() < 1e-4 * norm, "{fixture}, sublayer {t}: energy");

            let region = probes.region(t);
            let mut session = cpu.session(&region.model, "testing", Purpose::Work).unwrap();
            let mut values: Values = session.run_with(|n| state.get(n).or_else(|| batch.find(n))).unwrap();
            let found = scalars(&values[&region.outputs.streams[0]]).unwrap();
            assert!(
                onnx_kprune::deliver::verify::difference(&stream, &found) < 1e-4,
                "{fixture}, sublayer {t}: stream"
            );

            // From the kept features on, the student comes to where it comes with the other rows at zero.
            if let Some(features) = equations.outputs.features.and_then(|name| sums.remove(&name)) {
                let advance = probes.step(t);
                let rows = |columns: &[usize]| {
                    let rows = weight.select(ndarray::Axis(0), columns);
                    let rows = ndarray::concatenate![ndarray::Axis(0), rows, Array2::zeros((1, projection.outputs))];
                    let stored = if projection.transposed { rows.t().to_owned() } else { rows };
                    numbers(&stored.into_dyn()).unwrap()
                };
                let mut session = cpu.session(&advance.model, "testing", Purpose::Work).unwrap();
                let mut run = |features: &Held, weight: Held| {
                    let values = session.run_with(|n| match n {
                        FEATURES => Some(features.value()),
                        WEIGHT => Some(weight.value()),
                        n => state.get(n).or_else(|| batch.find(n)),
                    });
                    values.unwrap()
                };
                let few = run(&features.into(), rows(&columns));
                let all: Vec<usize> = (0..projection.width).collect();
                let mut whole = scalars(&expected[&name(projection.features)]).unwrap();
                let last = ndarray::Axis(whole.ndim() - 1);
                let removed: Vec<usize> = all.iter().copied().filter(|c| !columns.contains(c)).collect();
                removed.iter().for_each(|&c| whole.index_axis_mut(last, c).fill(0.0));
                let mut ones = whole.shape().to_vec();
                ones[last.index()] = 1;
                let whole = ndarray::concatenate![last, whole, ArrayD::ones(ones)];
                let masked = run(&numbers(&whole).unwrap(), rows(&all));
                let is_float = |name: &&String| runtime::element(&few[*name]).is_some_and(ElementType::is_float);
                for crossing in advance.outputs.iter().filter(is_float) {
                    let [found, masked] = [&few, &masked].map(|v| scalars(&v[crossing]).unwrap());
                    let apart = onnx_kprune::deliver::verify::difference(&masked, &found);
                    assert!(apart < 1e-4, "{fixture}, sublayer {t}: {crossing} differs by {apart}");
                }
            }
            for crossing in &region.outputs.crossing {
                state.insert(crossing.clone(), values.remove(crossing).unwrap());
            }
        }
    }
}

fn expected_mask(value: Option<&ort::value::DynValue>) -> Option<Vec<f64>> {
    let ints = onnx_kprune::runtime::integers(value?).ok()?;
    Some(ints.iter().map(|&i| i as f64).collect())
}

#[test]
fn a_scalar_tensor_survives_the_way_into_a_session() {
    let scalar = Tensor::from_floats(ElementType::F32, &ArrayD::from_elem(IxDyn(&[]), 2.5)).unwrap();
    let _runtime = cpu();
    assert_eq!(scalars(host(&scalar).unwrap().value()).unwrap().sum(), 2.5);
}
