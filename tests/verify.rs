//! The last check must be able to fail, and must say where.
#![allow(missing_docs)]

mod support;

use kprune_passes::discover::discover;
use kprune_passes::ir::Tensor;
use kprune_passes::plan::Plan;
use kprune_passes::remove::remove;
use onnx_kprune::Error;
use onnx_kprune::analysis::observe;
use onnx_kprune::data::{Dataset, Sources};
use onnx_kprune::deliver::verify::{difference, masked_original, verify};
use onnx_kprune::store::{read_model, stage};
use support::{cpu, fixtures};

#[test]
fn a_wrong_weight_is_found_and_its_sublayer_named() {
    let runtime = cpu();
    let path = fixtures().join("tiny/torchscript-eager-17.onnx");
    let mut model = read_model(&path).unwrap();
    kprune_passes::simplify::fold::fold_constants(&mut model.graph);
    let calibration = Dataset::gather(&model, &path, &Sources::default(), 1).unwrap();
    let seen = observe(&runtime, &model, None, calibration.mask_input()).unwrap();
    let discovery = discover(&model.graph, &seen, &calibration.lengths(None));
    let batches = calibration.batches(16).unwrap();
    let mut plan = Plan::untouched(&discovery.sublayers);
    plan.decisions.iter_mut().for_each(|d| d.keep[1] = false);
    let masked = masked_original(&model, &discovery, &plan).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out.onnx");

    let sound = remove(&model, &discovery, &seen, &plan).unwrap();
    let check = |pruned: &kprune_passes::ir::Model| {
        let staged = stage(pruned, &path, &target).unwrap();
        verify(&runtime, &staged.reread().unwrap(), &staged, &masked, &discovery, &batches)
    };
    assert!(check(&sound).unwrap().difference.unwrap() < 1e-5);

    let mut wrong = sound.clone();
    let node = discovery.sublayers[2].projection.node;
    let weight = wrong.graph.operator(node).input(1).unwrap();
    let tensor = wrong.graph.constant(weight).unwrap().clone();
    let moved = tensor.to_f64().unwrap().mapv(|w| w * 1.01);
    let changed = wrong.graph.add_constant("changed", Tensor::from_floats(tensor.element(), &moved).unwrap());
    wrong.graph.set_input(node, 1, Some(changed));
    wrong.graph.remove_dead();
    let error = check(&wrong).unwrap_err();
    assert!(matches!(error, Error::Verify { .. }));
    assert!(error.to_string().contains("sublayer 3 ("), "{error}");

    let mut renamed = sound;
    let output = renamed.graph.outputs()[0];
    renamed.graph.set_info(output, None);
    let error = check(&renamed).unwrap_err();
    assert!(error.to_string().contains("declared differently"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left when nothing is published");
}

#[test]
fn differences_are_relative_and_shapes_must_agree() {
    let a = ndarray::arr1(&[1.0, -4.0]).into_dyn();
    assert_eq!(difference(&a, &a), 0.0);
    assert_eq!(difference(&a, &ndarray::arr1(&[1.0, -4.4]).into_dyn()), 0.10000000000000009);
    assert!(difference(&a, &ndarray::arr1(&[1.0]).into_dyn()).is_infinite());
    let with = |x: f64| ndarray::arr1(&[1.0, x]).into_dyn();
    assert!(difference(&with(f64::NAN), &with(f64::NAN)).is_infinite(), "NaN is equal to nothing");
    assert!(difference(&with(1.0), &with(f64::INFINITY)).is_infinite());
    assert_eq!(difference(&with(f64::NEG_INFINITY), &with(f64::NEG_INFINITY)), 0.0);
}
