//! Probes of outputs: what they are on average.
#![allow(missing_docs)]

mod support;

use kprune_passes::calculus::emit::Emit;
use kprune_passes::calculus::metric::{self, DRAW};
use kprune_passes::calculus::objective::{Compared, Form, Objective, OutputKind};
use kprune_passes::ir::{ElementType, Graph, Model, Operator, Tensor};
use kprune_passes::observe::{Observation, Seen, Sizes};
use kprune_passes::signature::declare;
use ndarray::{Array1, Array2, ArrayD, IxDyn, array};
use onnx_kprune::runtime::{Purpose, host, numbers, scalars};
use support::cpu;

/// So many samples, all the same but for their signs.
const SAMPLES: usize = 20_000;

/// The mean of v v^T over samples whose output is `z`, with a token mask of the first `real` positions.
fn mean(kind: OutputKind, z: &[f64], tau: f64, real: Option<usize>) -> Array2<f64> {
    let runtime = cpu();
    // One position for each sample, where there are any.
    let shape = if kind == OutputKind::NextToken { vec![SAMPLES, 1, z.len()] } else { vec![SAMPLES, z.len()] };
    let mut graph = Graph::new();
    let input = graph.add_input(declare("z", ElementType::F32, shape.len()));
    let mask = graph.add_input(declare("mask", ElementType::F32, 2));
    let output = graph.add(Operator::new("Identity"), &[input], "output");
    let see = || Seen { shape: shape.clone(), element: ElementType::F32, integers: None };
    let run = std::collections::HashMap::from([(output, see()), (mask, see())]);
    let seen = Observation::new(&graph, Sizes::new(), [run.clone(), run]);
    let compared = Compared { value: output, output, kind, form: Form::Scores, why: String::new(), head: None };
    let objective = Objective { outputs: vec![compared], left_out: Vec::new() };
    let mut emit = Emit::new(&mut graph, 17, "test");
    let seeds = metric::append(&mut emit, &seen, &objective, tau, real.map(|_| mask.into()));
    graph.set_outputs(&[seeds[0].1]);
    graph.remove_unread_inputs();
    let name = graph.name(seeds[0].1).to_string();
    let repeated = |row: &dyn Fn(usize) -> f64| {
        numbers(&ArrayD::from_shape_fn(IxDyn(&shape), |place| row(place[shape.len() - 1]))).unwrap()
    };
    let (logits, mask) = (repeated(&|i| z[i]), repeated(&|i| f64::from(i < real.unwrap_or(z.len()))));
    let draw = host(&Tensor::from_i64s(&[], &[424_242])).unwrap();
    let mut session =
        runtime.session(&Model::new(graph, 17), "testing", Purpose::Trial).unwrap_or_else(|e| panic!("{e}"));
    let values = session.run_with(|n| match n {
        "z" => Some(logits.value()),
        "mask" => Some(mask.value()),
        DRAW => Some(draw.value()),
        _ => None,
    });
    let probes = scalars(&values.unwrap()[&name]).unwrap().into_shape_with_order((SAMPLES, z.len())).unwrap();
    probes.t().dot(&probes) / SAMPLES as f64
}

fn softmax(z: &[f64], tau: f64) -> Array1<f64> {
    let p = Array1::from(z.to_vec()).mapv(|z| (z / tau).exp());
    let sum = p.sum();
    p / sum
}

fn assert_near(found: &Array2<f64>, expected: &Array2<f64>) {
    assert!((found - expected).iter().all(|d| d.abs() < 0.02), "{found} and not {expected}");
}

fn curvature(p: &Array1<f64>) -> Array2<f64> {
    let outer = p.clone().insert_axis(ndarray::Axis(1)).dot(&p.clone().insert_axis(ndarray::Axis(0)));
    Array2::from_diag(p) - outer
}

#[test]
fn distributions_are_probed_by_their_curvature() {
    let z = [1.0, -0.5, 2.0, 0.0];
    for tau in [1.0, 4.0] {
        assert_near(&mean(OutputKind::Logits, &z, tau, None), &curvature(&softmax(&z, tau)));
    }
    let two = mean(OutputKind::Logits, &[1.5, -0.5], 2.0, None);
    let exact = curvature(&softmax(&[1.5, -0.5], 2.0));
    assert!((two - exact).iter().all(|d| d.abs() < 1e-5), "of two classes nothing is left to chance but the sign");
}

#[test]
fn tokens_that_are_drawn_probe_the_same_curvature() {
    let z = [1.0, -0.5, 2.0, 0.0, -1.5];
    for tau in [1.0, 4.0] {
        assert_near(&mean(OutputKind::NextToken, &z, tau, None), &curvature(&softmax(&z, tau)));
    }
}

#[test]
fn positions_of_padding_are_not_probed() {
    let z = [1.0, -0.5, 2.0, 3.0];
    let mut expected = Array2::zeros((4, 4));
    expected.slice_mut(ndarray::s![..3, ..3]).assign(&curvature(&softmax(&z[..3], 4.0)));
    assert_near(&mean(OutputKind::SpanLogits, &z, 4.0, Some(3)), &expected);
}

#[test]
fn labels_numbers_and_states_are_probed_one_by_one() {
    let p = |z: f64| 1.0 / (1.0 + f64::exp(-z / 2.0));
    let each = |z: f64| p(z) * (1.0 - p(z));
    let expected = Array2::from_diag(&array![each(1.0), each(-3.0), each(0.0)]);
    assert_near(&mean(OutputKind::MultiLabel, &[1.0, -3.0, 0.0], 2.0, None), &expected);
    assert_near(&mean(OutputKind::Regression, &[5.0], 4.0, None), &array![[2.0]]);
    let relative = Array2::<f64>::eye(2) * (2.0 / 25.0);
    assert_near(&mean(OutputKind::Hidden, &[3.0, -4.0], 4.0, None), &relative);
}
