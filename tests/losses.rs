//! The gradient of every kind of loss with respect to the outputs, against finite differences.
#![allow(missing_docs)]

mod support;

use kprune_passes::calculus::emit::Emit;
use kprune_passes::calculus::loss::{self, Criterion, SAMPLES, teacher_input};
use kprune_passes::calculus::objective::{Compared, Form, Objective, OutputKind};
use kprune_passes::ir::{ElementType, Graph, Model, Operator, Tensor, ValueId};
use kprune_passes::observe::{Observation, Seen, Sizes};
use kprune_passes::signature::declare;
use ndarray::{ArrayD, IxDyn};
use onnx_kprune::runtime::{Purpose, host, numbers, scalars};
use support::cpu;

const SAMPLES_PER_BATCH: usize = 2;
const TOKENS: usize = 3;
const IDS: [[i64; TOKENS]; SAMPLES_PER_BATCH] = [[1, 3, 0], [2, 1, 1]];

fn array(shape: &[usize], seed: usize) -> ArrayD<f64> {
    let number = |i: usize| ((i * 61 + seed * 17 + 5) % 41) as f64 / 20.0 - 1.0;
    ArrayD::from_shape_vec(IxDyn(shape), (0..shape.iter().product()).map(number).collect()).unwrap()
}

/// A model whose output is its input, with the loss; returns the names of the loss and of its gradient.
fn build(kind: OutputKind, shape: &[usize], criterion: Criterion, is_masked: bool) -> (Model, String, String) {
    let mut graph = Graph::new();
    let z = graph.add_input(declare("z", ElementType::F32, shape.len()));
    let mask = graph.add_input(declare("mask", ElementType::F32, 2));
    // Tokens, by the table that they are looked up in.
    let ids = graph.add_input(declare("ids", ElementType::I64, 2));
    let rows = Tensor::from_floats(ElementType::F32, &ArrayD::zeros(vec![shape[shape.len() - 1], 1])).unwrap();
    let table = graph.add_constant("table", rows);
    graph.add(Operator::new("Gather"), &[table, ids], "rows");
    let output = graph.add(Operator::new("Identity"), &[z], "output");
    let see = |shape: &[usize]| Seen { shape: shape.to_vec(), element: ElementType::F32, integers: None };
    let run = std::collections::HashMap::from([(output, see(shape)), (mask, see(&[SAMPLES_PER_BATCH, TOKENS]))]);
    let seen = Observation::new(&graph, Sizes::new(), [run.clone(), run]);
    let compared = Compared { value: output, output, kind, form: Form::Scores, why: String::new(), head: None };
    let objective = Objective { outputs: vec![compared], left_out: Vec::new() };
    let mut emit = Emit::new(&mut graph, 17, "test");
    let loss = loss::append(&mut emit, &seen, &objective, criterion, is_masked.then(|| mask.into()));
    let gradient = loss.seeds[0].1;
    graph.set_outputs(&[loss.value, gradient]);
    graph.remove_dead();
    graph.remove_unread_inputs();
    let name = |v: ValueId| graph.name(v).to_string();
    let (value, gradient) = (name(loss.value), name(gradient));
    (Model::new(graph, 17), value, gradient)
}

/// Loss and gradient of one output at `z`.
fn evaluate(model: &Model, names: (&str, &str), zs: &[ArrayD<f64>], teacher: &ArrayD<f64>) -> Vec<(f64, ArrayD<f64>)> {
    let runtime = cpu();
    let mut session = runtime.session(model, "testing", Purpose::Trial).unwrap_or_else(|e| panic!("{e}"));
    let mask = ArrayD::from_shape_vec(IxDyn(&[SAMPLES_PER_BATCH, TOKENS]), vec![1.0, 1.0, 1.0, 1.0, 0.0, 0.0]).unwrap();
    let (mask, teacher) = (numbers(&mask).unwrap(), numbers(teacher).unwrap());
    let samples = numbers(&ArrayD::from_elem(IxDyn(&[]), SAMPLES_PER_BATCH as f64)).unwrap();
    let ids = host(&Tensor::from_i64s(&[SAMPLES_PER_BATCH, TOKENS], &IDS.concat())).unwrap();
    let teacher_name = teacher_input("output");
    let mut run = |z: &ArrayD<f64>| {
        let z = numbers(z).unwrap();
        let values = session.run_with(|n| match n {
            "z" => Some(z.value()),
            "mask" => Some(mask.value()),
            "ids" => Some(ids.value()),
            SAMPLES => Some(samples.value()),
            n if n == teacher_name => Some(teacher.value()),
            _ => None,
        });
        let values = values.unwrap();
        (scalars(&values[names.0]).unwrap().sum(), scalars(&values[names.1]).unwrap())
    };
    zs.iter().map(&mut run).collect()
}

fn check(kind: OutputKind, shape: &[usize], tau: f64) -> (f64, ArrayD<f64>) {
    check_masked(kind, shape, tau, true)
}

fn check_masked(kind: OutputKind, shape: &[usize], tau: f64, is_masked: bool) -> (f64, ArrayD<f64>) {
    let built = build(kind, shape, Criterion::Teacher { tau }, is_masked);
    let teacher = array(shape, 2);
    let found = differences(kind, &built, &teacher);
    let (model, loss, gradient) = &built;
    let same = evaluate(model, (loss, gradient), std::slice::from_ref(&teacher), &teacher);
    assert!(same[0].0.abs() < 1e-6 && same[0].1.iter().all(|g| g.abs() < 1e-6), "no loss where both agree");
    found
}

/// Loss and gradient at some place, the gradient compared with finite differences.
fn differences(
    kind: OutputKind,
    (model, loss, gradient): &(Model, String, String),
    teacher: &ArrayD<f64>,
) -> (f64, ArrayD<f64>) {
    let z = array(teacher.shape(), 1);
    let step = 0.01;
    let mut moved = vec![z.clone()];
    for i in 0..z.len() {
        for by in [step, -step] {
            let mut z = z.clone();
            z.as_slice_mut().unwrap()[i] += by;
            moved.push(z);
        }
    }
    let results = evaluate(model, (loss, gradient), &moved, teacher);
    let found = &results[0].1;
    for (i, pair) in results[1..].chunks(2).enumerate() {
        let expected = (pair[0].0 - pair[1].0) / (2.0 * step);
        let found = found.iter().nth(i).unwrap();
        assert!((found - expected).abs() < 2e-3, "{kind}, element {i}: {found} and not {expected}");
    }
    results[0].clone()
}

#[test]
fn logits_of_samples_tokens_and_spans() {
    check(OutputKind::Logits, &[2, 4], 2.0);
    check(OutputKind::Logits, &[2, 4], 1.0);
    check(OutputKind::SpanLogits, &[2, 3], 2.0);
    let (_, gradient) = check(OutputKind::TokenLogits, &[2, 3, 4], 2.0);
    assert!(
        gradient.indexed_iter().filter(|(i, _)| i[0] == 1 && i[1] > 0).all(|(_, g)| *g == 0.0),
        "padding counts nothing"
    );
}

#[test]
fn squared_errors() {
    let (loss, _) = check(OutputKind::Regression, &[2, 1], 2.0);
    let (z, teacher) = (array(&[2, 1], 1), array(&[2, 1], 2));
    assert!((loss - (z - teacher).mapv(|d| d * d).sum() / 2.0).abs() < 1e-5);
}

#[test]
fn scores_of_labels_that_are_right_or_not_for_themselves() {
    let (loss, _) = check(OutputKind::MultiLabel, &[2, 4], 1.0);
    let p = |seed: usize| array(&[2, 4], seed).mapv(|z| 1.0 / (1.0 + (-z).exp()));
    let kl = |p: f64, q: f64| p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln();
    let expected: f64 = p(2).iter().zip(&p(1)).map(|(&p, &q)| kl(p, q)).sum();
    assert!((loss - expected / 2.0).abs() < 1e-5, "{loss}");
    check(OutputKind::MultiLabel, &[2, 4], 2.0);
    check_masked(OutputKind::MultiLabel, &[2, 3, 1], 2.0, false);
}

#[test]
fn labels_of_every_kind() {
    let of = |kind: OutputKind, target: ArrayD<f64>, is_masked: bool| {
        differences(kind, &build(kind, target.shape(), Criterion::Labels, is_masked), &target)
    };
    let marked = |shape: &[usize], places: &[&[usize]]| {
        let mut target = ArrayD::zeros(shape.to_vec());
        places.iter().for_each(|&place| target[place] = 1.0);
        target
    };
    let (loss, _) = of(OutputKind::Logits, marked(&[2, 4], &[&[0, 3], &[1, 1]]), true);
    let z = array(&[2, 4], 1);
    let log_p = |i: usize, class: usize| z[[i, class]] - (0..4).map(|c| z[[i, c]].exp()).sum::<f64>().ln();
    assert!((loss + (log_p(0, 3) + log_p(1, 1)) / 2.0).abs() < 1e-5, "mean cross entropy, and not {loss}");
    let (_, gradient) = of(OutputKind::Logits, marked(&[2, 4], &[&[0, 3]]), true);
    assert!(gradient.index_axis(ndarray::Axis(0), 1).iter().all(|g| *g == 0.0), "a sample without a label");
    // Of the second sample only the first token is real.
    let (_, gradient) = of(OutputKind::SpanLogits, marked(&[2, 3], &[&[0, 2], &[1, 0]]), true);
    assert!(gradient[[1, 1]].abs() < 1e-6 && gradient[[1, 2]].abs() < 1e-6);
    of(OutputKind::TokenLogits, marked(&[2, 3, 4], &[&[0, 0, 1], &[0, 2, 3], &[1, 0, 2]]), true);
    of(OutputKind::MultiLabel, marked(&[2, 4], &[&[0, 1], &[0, 2], &[1, 0]]), true);
    of(OutputKind::Regression, array(&[2, 1], 2), true);
    of(OutputKind::Hidden, array(&[2, 3, 5], 2), true);
}

#[test]
fn the_token_that_follows_is_right() {
    check(OutputKind::NextToken, &[2, 3, 4], 2.0);
    let shape = [2, 3, 4];
    let z = array(&shape, 1);
    let surprise =
        |i: usize, j: usize| (0..4).map(|c| z[[i, j, c]].exp()).sum::<f64>().ln() - z[[i, j, IDS[i][j + 1] as usize]];
    for (is_masked, expected) in [
        (false, (surprise(0, 0) + surprise(0, 1) + surprise(1, 0) + surprise(1, 1)) / 6.0),
        // Of the second sample the first token alone is real, and none follows.
        (true, (surprise(0, 0) + surprise(0, 1)) / 6.0),
    ] {
        let built = build(OutputKind::NextToken, &shape, Criterion::Labels, is_masked);
        let (loss, gradient) = differences(OutputKind::NextToken, &built, &ArrayD::zeros(shape.to_vec()));
        assert!((loss - expected).abs() < 1e-5, "{loss} and not {expected}");
        let last = gradient.index_axis(ndarray::Axis(1), 2).to_owned();
        assert!(last.iter().all(|g| *g == 0.0), "nothing follows the last");
    }
}

#[test]
fn states_are_compared_relative_to_their_size() {
    check(OutputKind::Hidden, &[2, 5], 2.0);
    let (_, gradient) = check(OutputKind::Hidden, &[2, 3, 5], 2.0);
    assert!(gradient.indexed_iter().filter(|(i, _)| i[0] == 1 && i[1] > 0).all(|(_, g)| *g == 0.0));
}

#[test]
fn without_a_mask_every_position_counts_and_all_are_averaged() {
    // Squared error of every row by the square of the teacher's, and a thousandth of the largest.
    let apart = |shape: &[usize]| {
        let rows =
            |seed: usize| array(shape, seed).into_shape_with_order((shape.iter().product::<usize>() / 5, 5)).unwrap();
        let (student, teacher) = (rows(1), rows(2));
        let square = |array: ndarray::Array2<f64>| array.mapv(|x| x * x).sum_axis(ndarray::Axis(1));
        let (errors, sizes) = (square(&student - &teacher), square(teacher));
        let largest = sizes.iter().fold(0.0f64, |m, &x| m.max(x));
        errors.iter().zip(&sizes).map(|(e, s)| e / (s + 1e-3 * largest)).sum::<f64>()
    };
    let (loss, gradient) = check_masked(OutputKind::Hidden, &[2, 3, 5], 1.0, false);
    assert!((loss - apart(&[2, 3, 5]) / (2.0 * 3.0)).abs() < 1e-4, "{loss}");
    assert!(gradient.iter().all(|g| *g != 0.0));
    let (loss, _) = check_masked(OutputKind::Hidden, &[2, 3, 2, 5], 1.0, false);
    assert!((loss - apart(&[2, 3, 2, 5]) / (2.0 * 6.0)).abs() < 1e-4, "{loss}");
    check_masked(OutputKind::TokenLogits, &[2, 3, 4], 2.0, false);
}
