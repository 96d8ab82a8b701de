//! Fused operators against what they are lowered to, both run by ONNX Runtime.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;

use kprune_passes::discover::discover;
use kprune_passes::ir::{ElementType, Graph, Operator, Tensor, ValueId, attribute};
use kprune_passes::plan::{Plan, Tuned};
use kprune_passes::remove::remove;
use kprune_passes::signature::declare;
use kprune_passes::simplify::lower::{changes_precision, has_fused, in_single_precision, lower};
use ndarray::{Array1, Array2, ArrayD, IxDyn};
use onnx_kprune::deliver::verify::{difference, masked_original};
use onnx_kprune::runtime::scalars;
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
    Longs(Vec<usize>, Vec<i64>),
    Bools(Vec<usize>, Vec<u8>),
    Absent,
}
use Operand::{Absent, Bools, Floats, Ints, Longs};

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
            Longs(dims, values) => Some(graph.add_constant("places", Tensor::from_i64s(dims, values))),
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
fn grouped_attention() {
    let (heads, groups, width) = (4, 2, 16);
    let of = |op: Operator| {
        op.with(attribute::int("num_heads", heads as i64)).with(attribute::int("kv_num_heads", groups as i64))
    };
    let grouped = || of(microsoft("GroupQueryAttention"));
    let rotating = || grouped().with(attribute::int("do_rotary", 1));
    let x = [BATCH, TOKENS, heads * width];
    let kv = || Floats(vec![BATCH, TOKENS, groups * width]);
    let last = || Ints(vec![BATCH], vec![TOKENS as i32 - 1; BATCH]);
    let total = || Ints(vec![1], vec![TOKENS as i32]);
    let table = |pairs: usize| Floats(vec![TOKENS + 3, pairs]);
    let plain = |op: &Operator, name: &str| {
        check(name, 17, op, &x, &[kv(), kv(), Absent, Absent, last(), total()]);
    };
    plain(&grouped(), "GroupQueryAttention");
    plain(&grouped().with(attribute::float("scale", 0.3)), "with a scale");
    plain(&grouped().with(attribute::int("local_window_size", 3)), "with a window");
    let rotated = |op: &Operator, name: &str, pairs: usize| {
        let operands = [kv(), kv(), Absent, Absent, last(), total(), table(pairs), table(pairs)];
        check(name, 17, op, &x, &operands);
    };
    rotated(&rotating(), "that rotates", width / 2);
    rotated(&rotating().with(attribute::int("rotary_interleaved", 1)), "that rotates neighbours", width / 2);
    let packed = [BATCH, TOKENS, (heads + 2 * groups) * width];
    let operands = [Absent, Absent, Absent, Absent, last(), total(), table(width / 2), table(width / 2)];
    check("packed", 17, &rotating(), &packed, &operands);
}

#[test]
fn rotary_positions() {
    let (rotary, table) = (|| microsoft("RotaryEmbedding"), || Floats(vec![TOKENS + 3, WIDTH / 2]));
    let places = || Longs(vec![BATCH, TOKENS], vec![0, 1, 2, 3, 4, 2, 3, 4, 5, 6]);
    check("RotaryEmbedding", 17, &rotary(), &STREAM, &[places(), table(), table()]);
    let neighbours = rotary().with(attribute::int("interleaved", 1));
    check("of neighbours", 17, &neighbours, &STREAM, &[places(), table(), table()]);
    check("from a place on", 17, &rotary(), &STREAM, &[Longs(vec![1], vec![2]), table(), table()]);
    let four = [BATCH, HEADS, TOKENS, WIDTH];
    check("of split heads", 17, &rotary(), &four, &[places(), table(), table()]);
    let (half, wide) = (Floats(vec![TOKENS + 3, 2]), [BATCH, TOKENS, 2 * 8]);
    let partly = rotary().with(attribute::int("num_heads", 2)).with(attribute::int("rotary_embedding_dim", 4));
    check("of a part of each head", 17, &partly, &wide, &[places(), half, Floats(vec![TOKENS + 3, 2])]);
    let standard = || Operator::new("RotaryEmbedding");
    check("the standard one", 23, &standard(), &four, &[table(), table(), places()]);
    let rows = || Floats(vec![BATCH, TOKENS, WIDTH / 2]);
    check("with a row for every token", 23, &standard(), &four, &[rows(), rows()]);
    let named = standard().with(attribute::int("num_heads", HEADS as i64));
    check("of all heads", 23, &named, &STREAM, &[table(), table(), places()]);
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

/// Attention, its projection and the addition in three operators, one of which knows the number of heads.
fn fused_sublayer() -> (kprune_passes::ir::Model, ArrayD<f64>) {
    let mut graph = Graph::new();
    let x = graph.add_input(declare("x", ElementType::F32, 3));
    let mut weight = |dims: &[usize], seed| {
        let tensor = Tensor::from_floats(ElementType::F32, &numbers(dims, seed)).unwrap();
        graph.add_constant("w", tensor)
    };
    let (merged, bias, projection) = (weight(&[ALL, 3 * ALL], 2), weight(&[3 * ALL], 3), weight(&[ALL, ALL], 4));
    let (scale, shift, out) = (weight(&[ALL], 5), weight(&[ALL], 6), weight(&[ALL], 7));
    let attention = microsoft("Attention").with(attribute::int("num_heads", HEADS as i64));
    let context = graph.add(attention, &[x, merged, bias], "context");
    let y = graph.add(Operator::new("MatMul"), &[context, projection], "y");
    let sum = graph.add(microsoft("SkipLayerNormalization"), &[y, x, scale, shift, out], "sum");
    graph.add_output(sum);
    (model(graph, 17).importing("com.microsoft", 1), numbers(&STREAM, 1))
}

#[test]
fn a_fused_attention_stays_fused_and_names_the_heads_that_are_left() {
    let (fused, data) = fused_sublayer();
    let runtime = cpu();
    let lowered = lower(fused.clone(), &observe(&runtime, &fused, &[("x", &data)]));
    let seen = observe(&runtime, &lowered.model, &[("x", &data)]);
    let found = discover(&lowered.model.graph, &seen, &BTreeMap::new());
    assert_eq!(found.sublayers.len(), 1, "{:?}", found.declined);
    assert_eq!(found.sublayers[0].units.len(), HEADS);
    let written = lowered.bring_back(&found, &fused.graph);
    for (keep, tuned) in [(vec![true, false, true], false), (vec![false; 3], false), (vec![false, false, true], true)] {
        let mut plan = Plan::untouched(&written.sublayers);
        plan.decisions[0].keep = keep.clone();
        plan.decisions[0].tuned = tuned.then(|| Tuned {
            weight: Array2::from_shape_fn((ALL, ALL), |(i, j)| if i < 2 * WIDTH { 0.0 } else { (i * j % 5) as f64 }),
            bias: Array1::from_elem(ALL, 0.5),
        });
        let pruned = remove(&fused, &written, &seen.of(&fused.graph), &plan).unwrap();
        let masked = masked_original(&fused, &written, &plan).unwrap();
        let output = |m| scalars(&run(&runtime, m, &[("x", &data)])["sum"]).unwrap();
        let apart = difference(&output(&masked), &output(&pruned));
        assert!(apart < 1e-5, "{keep:?}: outputs differ by {apart}");
        let nodes = pruned.graph.sorted();
        let attention = nodes.iter().map(|&n| pruned.graph.operator(n)).find(|o| o.op_type == "Attention");
        let left = keep.iter().filter(|&&k| k).count() as i64;
        let size = WIDTH as i64 * left;
        match attention {
            None => assert_eq!(left, 0),
            Some(operator) => {
                assert_eq!(operator.int("num_heads", 0), left);
                assert_eq!(operator.ints("qkv_hidden_sizes"), Some([size; 3].as_slice()));
            }
        }
    }
}

#[test]
fn half_precision_becomes_single_and_nothing_else_does() {
    let mut graph = Graph::new();
    let x = graph.add_input(declare("x", ElementType::F16, 2));
    let w = graph.add_constant("w", Tensor::from_floats(ElementType::F16, &numbers(&[3, 3], 1)).unwrap());
    let exact = graph.add_constant("t", Tensor::from_floats(ElementType::F64, &numbers(&[3], 1)).unwrap());
    let y = graph.add(Operator::new("MatMul"), &[x, w], "y");
    let to = |element: ElementType| Operator::new("Cast").with(attribute::int("to", element.code().into()));
    let (wide, half) = (graph.add(to(ElementType::F64), &[y], "wide"), graph.add(to(ElementType::F16), &[y], "half"));
    let sum = graph.add(Operator::new("Add"), &[wide, exact], "sum");
    graph.add_output(sum);
    graph.add_output(half);
    let mixed = model(graph, 13);
    assert!(changes_precision(&mixed));
    let single = in_single_precision(&mixed);
    let graph = &single.graph;
    let element = |v| graph.constant(v).unwrap().element();
    assert_eq!((element(w), element(exact)), (ElementType::F32, ElementType::F64));
    let cast = |v| graph.operator(graph.producer(v).unwrap().0).int("to", 0);
    assert_eq!((cast(wide), cast(half)), (ElementType::F64.code().into(), ElementType::F32.code().into()));
    assert_eq!(single.opset(""), Some(17));
    assert!(!changes_precision(&single));
}
