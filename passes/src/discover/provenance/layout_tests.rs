//! Rules for norms within heads, convolutions, resizing and copies.

use crate::ir::{Operator, ValueId, attribute};
use crate::testing::{B, S, Sketch, classes, is_frozen, n};

fn op(op_type: &str) -> Operator {
    Operator::new(op_type)
}

fn distinct(mut classes: Vec<u32>) -> usize {
    classes.sort_unstable();
    classes.dedup();
    classes.len()
}

/// A product split into 3 heads of width 4.
fn heads() -> (Sketch, ValueId) {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(8)]);
    let w = g.weight("w", &[8, 12]);
    let y = g.on("MatMul", &[x, w]);
    let target = g.integers("heads", &[0, 0, 3, 4]);
    let split = g.op(op("Reshape"), &[y, target], &[B, S, n(3), n(4)]);
    (g, split)
}

#[test]
fn a_norm_within_heads_makes_heads_whole_and_a_norm_over_all_freezes() {
    for op_type in ["ReduceL2", "Softmax", "LpNormalization"] {
        let (mut g, split) = heads();
        let dims = if op_type == "ReduceL2" { [B, S, n(3), n(1)] } else { [B, S, n(3), n(4)] };
        let operator = op(op_type).with(attribute::int("axis", -1)).with(attribute::ints("axes", &[-1]));
        g.op(operator, &[split], &dims);
        let p = g.trace();
        assert!(!is_frozen(&p, split), "{op_type}");
        assert_eq!(distinct(classes(&p, split)), 3, "{op_type}");
    }
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(8)]);
    let w = g.weight("w", &[8, 12]);
    let y = g.on("MatMul", &[x, w]);
    g.op(op("ReduceL2").with(attribute::ints("axes", &[-1])), &[y], &[B, S, n(1)]);
    assert!(is_frozen(&g.trace(), y));
}

#[test]
fn convolutions_start_and_end_channels_on_their_second_axis() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, n(3), n(8), n(8)]);
    let (first, bias, second) = (g.weight("a", &[6, 3, 3, 3]), g.weight("bias", &[6]), g.weight("b", &[5, 6, 1, 1]));
    let y = g.op(op("Conv"), &[x, first, bias], &[B, n(6), n(6), n(6)]);
    let statistics: Vec<ValueId> = (0..4).map(|i| g.weight(&format!("s{i}"), &[6])).collect();
    let y = g.op(op("BatchNormalization"), &[&[y], statistics.as_slice()].concat(), &[B, n(6), n(6), n(6)]);
    let z = g.op(op("Conv"), &[y, second], &[B, n(5), n(6), n(6)]);
    let pooled = g.op(op("GlobalAveragePool"), &[z], &[B, n(5), n(1), n(1)]);
    let p = g.trace();
    assert_eq!((distinct(classes(&p, y)), distinct(classes(&p, pooled))), (6, 5));
    assert!(!is_frozen(&p, y) && !is_frozen(&p, pooled));
    assert_eq!(p.contractions.len(), 1);
    let rows: Vec<_> = p.contractions[0].rows.iter().map(|&c| p.channels.find(c)).collect();
    assert_eq!(rows, classes(&p, y));
}

#[test]
fn a_convolution_of_every_channel_for_itself_hands_channels_on_and_one_in_groups_freezes() {
    for (kernel, group, free) in [([6, 1, 3, 3], 6, true), ([6, 2, 3, 3], 3, false), ([6, 3, 3, 3], 2, false)] {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, n(3), n(8), n(8)]);
        let (first, second, bias) = (g.weight("a", &[6, 3, 1, 1]), g.weight("b", &kernel), g.weight("bias", &[6]));
        let y = g.op(op("Conv"), &[x, first], &[B, n(6), n(8), n(8)]);
        let groups = op("Conv").with(attribute::int("group", group));
        let z = g.op(groups, &[y, second, bias], &[B, n(6), n(6), n(6)]);
        let p = g.trace();
        assert_eq!(!is_frozen(&p, y), free, "{kernel:?}");
        if free {
            assert_eq!(classes(&p, y), classes(&p, z));
            assert_eq!(distinct(classes(&p, z)), 6);
        }
    }
}

#[test]
fn resizing_keeps_axes_that_keep_their_length() {
    for (dims, frozen) in [([n(1), n(6), n(9), n(9)], false), ([n(1), n(12), n(4), n(4)], true)] {
        let mut g = Sketch::default();
        let x = g.input("x", &[n(1), n(3), n(4), n(4)]);
        let w = g.weight("w", &[6, 3, 1, 1]);
        let y = g.op(op("Conv"), &[x, w], &[n(1), n(6), n(4), n(4)]);
        let sizes = g.integers("sizes", &dims.map(|d| d.0[0] as i64));
        let node = g.op(op("Resize"), &[y, sizes, sizes, sizes], &dims);
        assert_eq!(is_frozen(&g.trace(), y), frozen);
        assert_eq!(g.trace().planes(node).is_empty(), frozen);
    }
}

#[test]
fn query_heads_that_share_keys_go_with_their_group() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(8)]);
    let w = g.weight("w", &[8, 8]);
    let y = g.on("MatMul", &[x, w]);
    let target = g.integers("groups", &[0, 0, 2, 1, 4]);
    let groups = g.op(op("Reshape"), &[y, target], &[B, S, n(2), n(1), n(4)]);
    let copies = g.integers("copies", &[1, 1, 2, 3, 4]);
    let wide = g.op(op("Expand"), &[groups, copies], &[B, S, n(2), n(3), n(4)]);
    let joined = g.integers("joined", &[0, 0, 6, 4]);
    let heads = g.op(op("Reshape"), &[wide, joined], &[B, S, n(6), n(4)]);
    let p = g.trace();
    let classes = classes(&p, heads);
    assert_eq!(classes.len(), 24);
    assert_eq!(distinct(classes.clone()), 2, "a group goes whole, with all its copies");
    assert_eq!((classes[0], classes[12]), (classes[11], classes[23]));
}

#[test]
fn query_heads_that_all_share_one_head_of_keys_and_values_go_one_by_one() {
    let (mut g, split) = heads();
    let x = g.graph.inputs()[0];
    let turned = |perm: [i64; 4]| op("Transpose").with(attribute::ints("perm", &perm));
    let queries = g.op(turned([0, 2, 1, 3]), &[split], &[B, n(3), S, n(4)]);
    let apart = g.integers("apart", &[0, 0, 1, 4]);
    let [keys, values] = ["keys", "values"].map(|name| {
        let w = g.weight(name, &[8, 4]);
        let y = g.on("MatMul", &[x, w]);
        g.op(op("Reshape"), &[y, apart], &[B, S, n(1), n(4)])
    });
    let turned_keys = g.op(turned([0, 2, 3, 1]), &[keys], &[B, n(1), n(4), S]);
    let scores = g.on("MatMul", &[queries, turned_keys]);
    let turned_values = g.op(turned([0, 2, 1, 3]), &[values], &[B, n(1), S, n(4)]);
    let context = g.on("MatMul", &[scores, turned_values]);
    let back = g.op(turned([0, 2, 1, 3]), &[context], &[B, S, n(3), n(4)]);
    let joined = g.integers("joined", &[0, 0, 12]);
    let features = g.op(op("Reshape"), &[back, joined], &[B, S, n(12)]);
    let p = g.trace();
    let classes_of_features = classes(&p, features);
    assert_eq!(distinct(classes_of_features.clone()), 3);
    assert_eq!(classes_of_features[0], classes_of_features[3], "a head goes whole");
    assert!(!is_frozen(&p, features) && is_frozen(&p, keys) && is_frozen(&p, values));
}

#[test]
fn what_cannot_go_has_no_say_where_axes_are_folded() {
    let mut g = Sketch::default();
    let x = g.input("x", &[n(2), S]);
    // A constant as large as the batch is frozen by what it is joined with.
    let zeros = g.weight("zeros", &[2, 1]);
    let masked = g.on("Add", &[x, zeros]);
    let target = g.integers("apart", &[2, 1, -1]);
    let apart = g.op(op("Reshape"), &[masked, target], &[n(2), n(1), S]);
    let heads = g.integers("heads", &[2, 5, 1]);
    let wide = g.op(op("Expand"), &[apart, heads], &[n(2), n(5), S]);
    let folded = g.integers("folded", &[10, -1]);
    let folded = g.op(op("Reshape"), &[wide, folded], &[n(10), S]);
    let p = g.trace();
    assert_eq!(distinct(classes(&p, folded)), 5);
    assert!(!is_frozen(&p, folded));
}

#[test]
fn padding_other_axes_lets_channels_pass_and_padding_theirs_does_not() {
    for (pads, frozen) in [([0, 1, 0, 0, 2, 0], false), ([0, 0, 0, 0, 0, 3], true)] {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, n(5), n(4)]);
        let w = g.weight("w", &[4, 6]);
        let y = g.on("MatMul", &[x, w]);
        let amounts = g.integers("pads", &pads);
        let dims = [B, n(5 + pads[1] as usize + pads[4] as usize), n(6 + pads[5] as usize)];
        let padded = g.op(op("Pad"), &[y, amounts], &dims);
        let p = g.trace();
        assert_eq!((is_frozen(&p, y), p.planes(padded).is_empty()), (frozen, frozen));
    }
}

#[test]
fn a_stride_within_heads_makes_them_whole_and_along_channels_freezes_them() {
    let stride = |g: &mut Sketch, axis: i64| [0, i64::MAX, axis, 2].map(|n| g.integers("at", &[n]));
    let (mut g, y) = heads();
    let [from, to, axis, step] = stride(&mut g, 3);
    g.op(op("Slice"), &[y, from, to, axis, step], &[B, S, n(3), n(2)]);
    let p = g.trace();
    assert!(!is_frozen(&p, y));
    assert_eq!(distinct(classes(&p, y)), 3, "whole heads");

    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let w = g.weight("w", &[4, 6]);
    let y = g.on("MatMul", &[x, w]);
    let [from, to, axis, step] = stride(&mut g, 2);
    g.op(op("Slice"), &[y, from, to, axis, step], &[B, S, n(3)]);
    assert!(is_frozen(&g.trace(), y));
}
