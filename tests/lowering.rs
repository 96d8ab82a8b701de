//! Fused operators against what they are lowered to, both run by ONNX Runtime.
#![allow(missing_docs)]

mod support;

use kprune_passes::ir::{ElementType, Graph, Operator, Tensor, ValueId, attribute};
use kprune_passes::lower::{has_fused, lower};
use kprune_passes::signature::declare;
use ndarray::{ArrayD, IxDyn};
use onnx_kprune::runtime::scalars;
use onnx_kprune::verify::difference;
use support::{cpu, model, observe, run};

const BATCH: usize = 2;
const TOKENS: usize = 5;
const HEADS: usize = 3;
const WIDTH: usize = 4;
const ALL: usize = HEADS * WIDTH;

fn numbers(shape: &[usize], seed: usize) -> ArrayD<f64> {
    let number = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 1009) as f64 / 504.5 - 1.0;
    let values = (0..shape.iter().product()).map(number).collect();
    ArrayD::from_shape_vec(IxDyn(shape), values).unwrap()
}

fn microsoft(op_type: &str) -> Operator {
    Operator::new(op_type).of("com.microsoft")
}

/// Operands of a fused operator: constants, or nothing at a slot that is left out.
enum Operand {
    Floats(Vec<usize>),
    Ints(Vec<usize>, Vec<i32>),
    Bools(Vec<usize>, Vec<u8>),
    Absent,
}
use Operand::{Absent, Bools, Floats, Ints};

/// The operator on one activation and constants, fused and lowered: outputs agree and nothing fused is left.
fn check(name: &str, opset: i64, operator: &Operator, x: &[usize], operands: &[Operand]) {
    let mut graph = Graph::new();
    let input = graph.add_input(declare("x", ElementType::F32, x.len()));
    let mut inputs: Vec<Option<ValueId>> = vec![Some(input)];
    for (i, operand) in operands.iter().enumerate() {
        let raw = |element, dims: &[usize], bytes: Vec<u8>| Tensor::from_raw("", element, dims, bytes.into()).unwrap();
        inputs.push(match operand {
            Floats(dims) => {
                let tensor = Tensor::from_floats(ElementType::F32, &numbers(dims, i + 2)).unwrap();
                Some(graph.add_constant("w", tensor))
            }
            Ints(dims, values) => {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                Some(graph.add_constant("mask", raw(ElementType::I32, dims, bytes)))
            }
            Bools(dims, values) => Some(graph.add_constant("mask", raw(ElementType::Bool, dims, values.clone()))),
            Absent => None,
        });
    }
    let given: Vec<ValueId> = inputs.iter().flatten().copied().collect();
    let y = graph.add(operator.clone(), &given, "y");
    let node = graph.producer(y).unwrap().0;
    for (slot, value) in inputs.iter().enumerate() {
        graph.set_input(node, slot, *value);
    }
    graph.add_output(y);
    let fused = model(graph, opset).importing("com.microsoft", 1);
    let runtime = cpu();
    let data = numbers(x, 1);
    let seen = observe(&runtime, &fused, &[("x", &data)]);
    assert!(has_fused(&fused), "{name}");
    let lowered = lower(fused.clone(), &seen).model;
    assert!(!has_fused(&lowered), "{name} is left as it is");
    let output = |m| scalars(&run(&runtime, m, &[("x", &data)])[fused.graph.name(y)]).unwrap();
    let apart = difference(&output(&fused), &output(&lowered));
    assert!(apart < 1e-5, "{name}: outputs differ by {apart}");
}

const STREAM: [usize; 3] = [BATCH, TOKENS, ALL];

/// One token of padding in the first sample, two in the second.
fn mask() -> Operand {
    Ints(vec![BATCH, TOKENS], vec![1, 1, 1, 1, 0, 1, 1, 1, 0, 0])
}

#[test]
fn merged_attention() {
    let heads = || microsoft("Attention").with(attribute::int("num_heads", HEADS as i64));
    let (weight, bias) = (|| Floats(vec![ALL, 3 * ALL]), || Floats(vec![3 * ALL]));
    check("Attention", 17, &heads(), &STREAM, &[weight(), bias()]);
    check("Attention with a mask", 17, &heads(), &STREAM, &[weight(), bias(), mask()]);
    let lengths = Ints(vec![BATCH], vec![4, 3]);
    check("Attention with lengths", 17, &heads(), &STREAM, &[weight(), bias(), lengths]);
    let table = Floats(vec![1, HEADS, TOKENS, TOKENS]);
    check("Attention with positions", 17, &heads(), &STREAM, &[weight(), bias(), Absent, Absent, table]);
    let causal = heads().with(attribute::int("unidirectional", 1)).with(attribute::float("scale", 0.3));
    check("Attention that looks back", 17, &causal, &STREAM, &[weight(), bias()]);
    let narrow = heads().with(attribute::ints("qkv_hidden_sizes", &[6, 6, 9]));
    check("Attention of several widths", 17, &narrow, &STREAM, &[Floats(vec![ALL, 21]), Floats(vec![21])]);
}

#[test]
fn attention_of_three_inputs() {
    let heads = || microsoft("MultiHeadAttention").with(attribute::int("num_heads", HEADS as i64));
    let kv = || Floats(STREAM.to_vec());
    check("MultiHeadAttention", 17, &heads(), &STREAM, &[kv(), kv()]);
    check("with a bias", 17, &heads(), &STREAM, &[kv(), kv(), Floats(vec![3 * ALL])]);
    check("with a mask", 17, &heads(), &STREAM, &[kv(), kv(), Absent, mask()]);
    let longer = || Floats(vec![BATCH, TOKENS + 2, ALL]);
    check("across", 17, &heads(), &STREAM, &[longer(), longer()]);
    let split = || Floats(vec![BATCH, HEADS, TOKENS, WIDTH]);
    check("of split keys", 17, &heads(), &STREAM, &[split(), split()]);
    let table = Floats(vec![BATCH, HEADS, TOKENS, TOKENS]);
    check("with positions", 17, &heads(), &STREAM, &[kv(), kv(), Absent, Absent, table]);
}

#[test]
fn the_standard_attention() {
    let four = [BATCH, HEADS, TOKENS, WIDTH];
    let kv = || Floats(four.to_vec());
    check("Attention", 23, &Operator::new("Attention"), &four, &[kv(), kv()]);
    let causal = Operator::new("Attention").with(attribute::int("is_causal", 1));
    check("causal", 23, &causal, &four, &[kv(), kv()]);
    let real = (0..TOKENS * TOKENS).map(|i| (i % 3 != 1) as u8).collect();
    let chosen = Bools(vec![TOKENS, TOKENS], real);
    check("chosen", 23, &Operator::new("Attention"), &four, &[kv(), kv(), chosen]);
    let grouped = || Floats(vec![BATCH, 2, TOKENS, WIDTH]);
    check("grouped", 23, &Operator::new("Attention"), &[BATCH, 4, TOKENS, WIDTH], &[grouped(), grouped()]);
    let flat = Operator::new("Attention")
        .with(attribute::int("q_num_heads", HEADS as i64))
        .with(attribute::int("kv_num_heads", HEADS as i64));
    check("flat", 23, &flat, &STREAM, &[Floats(STREAM.to_vec()), Floats(STREAM.to_vec())]);
}

#[test]
fn normalisations_with_a_stream() {
    let vector = || Floats(vec![ALL]);
    let skip = || Floats(STREAM.to_vec());
    let layer = microsoft("SkipLayerNormalization").with(attribute::float("epsilon", 1e-3));
    check("SkipLayerNormalization", 17, &layer, &STREAM, &[skip(), vector(), vector()]);
    check("with a bias", 17, &layer, &STREAM, &[skip(), vector(), vector(), vector()]);
    let root = microsoft("SkipSimplifiedLayerNormalization").with(attribute::float("epsilon", 1e-3));
    check("SkipSimplifiedLayerNormalization", 17, &root, &STREAM, &[skip(), vector()]);
    let root = Operator::new("SimplifiedLayerNormalization").with(attribute::float("epsilon", 1e-3));
    check("SimplifiedLayerNormalization", 17, &root, &STREAM, &[vector()]);
}

#[test]
fn activations_and_products() {
    check("BiasGelu", 17, &microsoft("BiasGelu"), &STREAM, &[Floats(vec![ALL])]);
    check("FastGelu", 17, &microsoft("FastGelu"), &STREAM, &[Floats(vec![ALL])]);
    check("FastGelu without a bias", 17, &microsoft("FastGelu"), &STREAM, &[]);
    check("Gelu", 17, &microsoft("Gelu"), &STREAM, &[]);
    check("QuickGelu", 17, &microsoft("QuickGelu").with(attribute::float("alpha", 1.3)), &STREAM, &[]);
    let turned = microsoft("FusedMatMul").with(attribute::int("transB", 1)).with(attribute::float("alpha", 0.5));
    check("FusedMatMul", 17, &turned, &[BATCH, HEADS, TOKENS, WIDTH], &[Floats(vec![BATCH, HEADS, 7, WIDTH])]);
}

#[test]
fn what_has_no_rule_is_left_as_it_is() {
    let mut graph = Graph::new();
    let x = graph.add_input(declare("x", ElementType::F32, 3));
    let weight = Tensor::from_floats(ElementType::F32, &numbers(&[ALL, 3 * ALL], 2)).unwrap();
    let weight = graph.add_constant("w", weight);
    let operator =
        microsoft("Attention").with(attribute::int("num_heads", HEADS as i64)).with(attribute::int("do_rotary", 1));
    let y = graph.add(operator, &[x, weight], "y");
    graph.add_output(y);
    let fused = model(graph, 17).importing("com.microsoft", 1);
    let lowered = lower(fused, &Default::default()).model;
    assert!(has_fused(&lowered));
    assert_eq!(lowered.graph.sorted().len(), 1);
}
