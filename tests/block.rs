//! The gradients of a block's masks against finite differences of its error.
#![allow(missing_docs)]

mod support;

use std::collections::HashMap;

use kprune_passes::discover::blocks::blocks;
use kprune_passes::discover::discover;
use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::methods::besa::candidate_counts;
use kprune_passes::probe::{Probes, REFERENCE, TOKENS};
use kprune_passes::simplify::fold::fold_constants;
use kprune_passes::sparsity::{Order, Pattern, importance};
use ndarray::{Array2, ArrayD, Ix2};
use onnx_kprune::analysis::observe;
use onnx_kprune::data::{Dataset, Sources};
use onnx_kprune::runtime::{Held, Purpose, host, numbers, scalars};
use onnx_kprune::store::read_model;
use support::{cpu, fixtures, reviews};

#[test]
fn sums_of_gradient_times_weight_are_the_slopes_of_the_error_along_masks() {
    let runtime = cpu();
    let path = fixtures().join("reviews/model.onnx");
    let mut model = read_model(&path).unwrap();
    fold_constants(&mut model.graph);
    let sources = Sources { files: vec![reviews().join("calibration.npz")], ..Sources::default() };
    let data = Dataset::gather(&model, &path, &sources, 1).unwrap();
    let seen = observe(&runtime, &model, None, data.mask_input()).unwrap();
    let found = discover(&model.graph, &seen, &data.lengths(None));
    let probes = Probes::new(&model, &seen, &found, data.token_mask(&model.graph));
    let blocks = blocks(&model.graph, &found);
    assert_eq!(2 * blocks.len(), found.sublayers.len(), "an attention and a feed-forward network each");
    assert!(blocks.iter().all(|b| b.matrices.len() == 6), "query, key, value, output, up and down");

    // Of the first block, into which nothing but the inputs of the model crosses; samples are of different lengths.
    let (block, batch) = (&blocks[0], data.batches(4).unwrap().swap_remove(0));
    let dense = |i: usize| {
        let stored = model.graph.constant(block.matrices[i].weight).unwrap().to_f64().unwrap();
        let stored = stored.into_dimensionality::<Ix2>().unwrap();
        if block.matrices[i].inputs_axis == 0 { stored.reversed_axes() } else { stored }
    };
    let dense: Vec<Array2<f64>> = (0..block.matrices.len()).map(dense).collect();
    let order =
        |w: &Array2<f64>| Order::of(importance(w.mapv(|x| x as f32).view(), None).view(), Pattern::Unstructured);
    let orders: Vec<Order> = dense.iter().map(order).collect();
    let features = probes.features(block);
    let mut session = runtime.session(&features.model, "testing", Purpose::Trial).unwrap();
    let reference = session.run_with(|name| batch.find(name)).unwrap().remove(&features.outputs.stream).unwrap();
    let integers = |counts: &[i32]| {
        let bytes: Vec<u8> = counts.iter().flat_map(|c| c.to_le_bytes()).collect();
        host(&Tensor::from_raw("", ElementType::I32, &[counts.len()], bytes.into()).unwrap()).unwrap()
    };
    let given = |names: &[String], share: f64| -> HashMap<String, Held> {
        let counts = names
            .iter()
            .zip(&block.matrices)
            .map(|(name, m)| (name.clone(), integers(&vec![(share * m.inputs as f64) as i32; m.outputs])));
        let tokens = numbers(&ArrayD::from_elem(vec![], batch.tokens as f64)).unwrap();
        counts.chain([(TOKENS.to_string(), tokens)]).collect()
    };
    let run = |probes: &Probes, share: f64, with_gradients: bool| {
        let candidates = |inputs: usize| candidate_counts(Pattern::Unstructured, inputs);
        let graph = probes.reconstruction(block, &orders, with_gradients.then_some(&candidates)).unwrap();
        let given = given(&graph.outputs.counts, share);
        let mut session = runtime.session(&graph.model, "testing", Purpose::Trial).unwrap();
        let find = |name: &str| if name == REFERENCE { Some(&reference) } else { given.get(name).map(Held::value) };
        let values = session.run_with(|name| find(name).or_else(|| batch.find(name))).unwrap();
        (values, graph.outputs)
    };
    let share = 0.5;
    let (values, names) = run(&probes, share, true);
    let loss = scalars(&values[&names.loss]).unwrap().sum();
    assert!(loss > 1e-3, "half of the weights are missing, and the error is {loss}");
    for (i, matrix) in block.matrices.iter().enumerate() {
        let sums = scalars(&values[names.sums[i].as_ref().unwrap()]).unwrap().into_dimensionality::<Ix2>().unwrap();
        let largest = sums.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        for candidate in [30, 70, 100] {
            // Along the row where the slope is steepest.
            let column = sums.column(candidate);
            let row = (0..matrix.outputs).max_by(|&a, &b| column[a].abs().total_cmp(&column[b].abs())).unwrap();
            let count = candidate * matrix.inputs / 100;
            let at = |by: f64| {
                let mut weight = dense[i].clone();
                for output in 0..matrix.outputs {
                    let gone = (share * matrix.inputs as f64) as usize;
                    for (input, stays) in orders[i].stays(output, gone).enumerate() {
                        let is_moved = output == row && (orders[i].places[[output, input]] as usize) < count;
                        weight[[output, input]] *= f64::from(u8::from(stays)) + if is_moved { by } else { 0.0 };
                    }
                }
                let mut moved = probes.clone();
                let rest: Vec<usize> = (0..dense.len()).filter(|&other| other != i).collect();
                let stored = if matrix.inputs_axis == 0 { weight.reversed_axes() } else { weight };
                moved.replace(matrix, tensor(&stored));
                let graph = moved.reconstruction(block, &orders, None).unwrap();
                let mut given = given(&graph.outputs.counts, share);
                assert_eq!(rest.len() + 1, graph.outputs.counts.len());
                given.insert(graph.outputs.counts[i].clone(), integers(&vec![0; matrix.outputs]));
                let mut session = runtime.session(&graph.model, "testing", Purpose::Trial).unwrap();
                let find =
                    |name: &str| if name == REFERENCE { Some(&reference) } else { given.get(name).map(Held::value) };
                let values = session.run_with(|name| find(name).or_else(|| batch.find(name))).unwrap();
                scalars(&values[&graph.outputs.loss]).unwrap().sum()
            };
            let slope = (at(2e-2) - at(-2e-2)) / 4e-2;
            let expected = sums[[row, candidate]];
            assert!(
                (slope - expected).abs() < 0.02 * expected.abs() + 2e-3 * largest,
                "matrix {i}, row {row}, candidate {candidate}: {expected} and not {slope}"
            );
        }
    }
}

fn tensor(numbers: &Array2<f64>) -> Tensor {
    Tensor::from_floats(ElementType::F32, &numbers.as_standard_layout().into_owned().into_dyn()).unwrap()
}
