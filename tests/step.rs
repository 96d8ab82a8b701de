//! The step of a distillation against finite differences of its loss.
#![allow(missing_docs)]

mod support;

use std::collections::HashMap;

use kprune_passes::calculus::loss::{SAMPLES, teacher_input};
use kprune_passes::calculus::objective::Objective;
use kprune_passes::discover::discover;
use kprune_passes::distil::{SHARE, Student, step, stream_input, streams, teacher, trainable};
use kprune_passes::simplify::fold::fold_constants;
use ndarray::ArrayD;
use onnx_kprune::analysis::observe;
use onnx_kprune::data::{Dataset, Sources};
use onnx_kprune::runtime::{Held, Purpose, numbers, scalars};
use onnx_kprune::store::read_model;
use support::{cpu, fixtures, reviews};

/// Numbers of both signs that look random, about as large as `size`.
fn direction(like: &ArrayD<f64>, size: f64) -> ArrayD<f64> {
    let number = |i: usize| ((i * 7919 + 13) % 1009) as f64 / 504.5 - 1.0;
    let mut numbers = ArrayD::zeros(like.raw_dim());
    numbers.iter_mut().enumerate().for_each(|(i, x)| *x = size * number(i));
    numbers
}

#[test]
fn gradients_of_weights_are_the_slopes_of_the_loss() {
    let runtime = cpu();
    let path = fixtures().join("reviews/model.onnx");
    let mut model = read_model(&path).unwrap();
    fold_constants(&mut model.graph);
    let sources = Sources { files: vec![reviews().join("calibration.npz")], ..Sources::default() };
    let data = Dataset::gather(&model, &path, &sources, 1).unwrap();
    let seen = observe(&runtime, &model, None, data.mask_input()).unwrap();
    let discovery = discover(&model.graph, &seen, &data.lengths(None));
    let token_mask = data.token_mask(&model.graph);
    let objective = Objective::guess(&model, &seen, token_mask);
    let streams = streams(&discovery);
    let weights = trainable(&model.graph, objective.outputs.iter().map(|o| o.value));
    let student = Student { model: &model, seen: &seen, objective: &objective, streams: &streams, token_mask };
    let step = step(&student, 2.0, &weights).unwrap();
    assert!(step.weights.len() > 4 * discovery.sublayers.len(), "{} weights are trained", step.weights.len());

    // The teacher is another model than the student; the samples are of different lengths.
    let batch = data.batches(4).unwrap().swap_remove(0);
    let mut session = runtime.session(&teacher(&model, &objective, &streams), "testing", Purpose::Trial).unwrap();
    let mut given: HashMap<String, Held> = HashMap::new();
    for (name, value) in session.run_with(|n| batch.find(n)).unwrap() {
        let value = scalars(&value).unwrap();
        let other = numbers(&(&value + &direction(&value, 0.3))).unwrap();
        given.insert(teacher_input(&name), other.clone());
        given.insert(stream_input(&name), other);
    }
    let scalar = |x: f64| numbers(&ArrayD::from_elem(vec![], x)).unwrap();
    given.insert(SAMPLES.into(), scalar(batch.samples as f64));
    given.insert(SHARE.into(), scalar(0.5));
    let stored = |v| model.graph.constant(v).unwrap().to_f64().unwrap();
    given.extend(step.weights.iter().map(|w| (w.name.clone(), numbers(&stored(w.value)).unwrap())));

    let mut session = runtime.session(&step.model, "testing", Purpose::Trial).unwrap();
    let mut run = |moved: Option<(&str, ArrayD<f64>)>| {
        let moved = moved.map(|(name, array)| (name, numbers(&array).unwrap()));
        let find = |n: &str| moved.iter().find(|(name, _)| *name == n).map(|(_, held)| held);
        session.run_with(|n| find(n).or_else(|| given.get(n)).map(Held::value).or_else(|| batch.find(n))).unwrap()
    };
    let found = run(None);
    let length = |gradient: &ArrayD<f64>| gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
    let gradients = step.weights.iter().map(|w| length(&scalars(&found[&w.gradient]).unwrap()));
    let largest = gradients.fold(0.0, f64::max);
    for weight in step.weights.iter().step_by(5) {
        let (at, gradient) = (stored(weight.value), scalars(&found[&weight.gradient]).unwrap());
        // Along the gradient the slope is steep enough to be told from rounding.
        let size = length(&gradient);
        let along = gradient.mapv(|g| g / size) + direction(&gradient, 0.1 / (gradient.len() as f64).sqrt());
        let mut loss = |by: f64| scalars(&run(Some((&weight.name, &at + &(by * &along))))[&step.loss]).unwrap().sum();
        let slope = (loss(1e-2) - loss(-1e-2)) / 2e-2;
        let expected = (&gradient * &along).sum();
        // A bias of keys changes nothing.
        let allowed = 0.02 * expected.abs() + 1e-4 * largest;
        assert!((slope - expected).abs() < allowed, "{}: {expected} and not {slope}", weight.name);
    }
}
