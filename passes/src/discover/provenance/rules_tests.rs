use crate::discover::provenance::Channel;
use crate::ir::{Operator, ValueId, attribute};
use crate::observe::Dim;
use crate::testing::{B, S, Sketch, classes, is_frozen, n};

const H: usize = 12;

fn op(op_type: &str) -> Operator {
    Operator::new(op_type)
}

/// A stream times a weight of 12 columns: the channels that the tests follow.
fn start() -> (Sketch, ValueId) {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(8)]);
    let w = g.weight("w", &[8, H]);
    let y = g.on("MatMul", &[x, w]);
    (g, y)
}

fn distinct(mut classes: Vec<Channel>) -> usize {
    classes.sort_unstable();
    classes.dedup();
    classes.len()
}

const WIDE: [Dim; 3] = [B, S, n(H)];

#[test]
fn a_product_starts_channels_on_columns_and_ends_them_on_rows() {
    let (mut g, y) = start();
    let w = g.weight("v", &[H, 7]);
    let z = g.on("MatMul", &[y, w]);
    let p = g.trace();
    assert_eq!(p.contractions.len(), 1);
    assert_eq!(p.contractions[0].rows.iter().map(|&c| p.channels.find(c)).collect::<Vec<_>>(), classes(&p, y));
    assert_eq!(distinct(classes(&p, y)), H);
    assert_eq!(distinct(classes(&p, z)), 7);
}

#[test]
fn the_input_of_the_first_product_has_no_channels_and_its_rows_stay() {
    let (g, y) = start();
    let p = g.trace();
    let w = g.graph.find("w").unwrap();
    assert!(p.planes(w)[0].0.iter().all(|&c| p.channels.frozen(c).is_some()));
    assert!(!is_frozen(&p, y));
}

#[test]
fn elementwise_operators_pair_channels() {
    let (mut g, y) = start();
    let x = g.graph.find("x").unwrap();
    let w = g.weight("gate", &[8, H]);
    let gate = g.op(op("MatMul"), &[x, w], &WIDE);
    let z = g.op(op("Mul"), &[y, gate], &WIDE);
    let p = g.trace();
    assert_eq!(classes(&p, y), classes(&p, gate));
    assert_eq!(distinct(classes(&p, z)), H);
}

#[test]
fn a_partner_that_cannot_be_cut_freezes() {
    let (mut g, y) = start();
    let other = g.input("other", &[B, S, n(H)]);
    g.op(op("Add"), &[y, other], &WIDE);
    assert!(is_frozen(&g.trace(), y));
}

#[test]
fn a_partner_of_length_one_does_not_freeze() {
    let (mut g, y) = start();
    let other = g.input("other", &[B, S, n(1)]);
    g.op(op("Add"), &[y, other], &WIDE);
    assert!(!is_frozen(&g.trace(), y));
}

#[test]
fn a_vector_shared_by_two_layers_does_not_join_them() {
    let (mut g, y) = start();
    let x = g.graph.find("x").unwrap();
    let w = g.weight("second", &[8, H]);
    let second = g.op(op("MatMul"), &[x, w], &WIDE);
    let bias = g.weight("bias", &[H]);
    let a = g.op(op("Add"), &[y, bias], &WIDE);
    let b = g.op(op("Add"), &[second, bias], &WIDE);
    let p = g.trace();
    assert!(classes(&p, a).iter().all(|c| !classes(&p, b).contains(c)));
}

#[test]
fn a_matrix_shared_by_two_layers_joins_them() {
    let (mut g, y) = start();
    let x = g.graph.find("x").unwrap();
    let w = g.graph.find("w").unwrap();
    let again = g.op(op("MatMul"), &[x, w], &WIDE);
    let p = g.trace();
    assert_eq!(classes(&p, y), classes(&p, again));
}

#[test]
fn softmax_and_normalisation_freeze_the_axis_they_reduce_and_no_other() {
    for (operator, is_reduced) in [
        (op("Softmax").with(attribute::int("axis", -1)), true),
        (op("Softmax").with(attribute::int("axis", 1)), false),
        (op("LogSoftmax").with(attribute::int("axis", 2)), true),
    ] {
        let (mut g, y) = start();
        g.op(operator, &[y], &WIDE);
        assert_eq!(is_frozen(&g.trace(), y), is_reduced);
    }
    let (mut g, y) = start();
    let (scale, bias) = (g.weight("scale", &[H]), g.weight("bias", &[H]));
    g.op(op("LayerNormalization"), &[y, scale, bias], &WIDE);
    assert!(is_frozen(&g.trace(), y));
}

#[test]
fn reductions_freeze_what_they_sum_over() {
    for (axis, is_reduced) in [(2, true), (-1, true), (1, false)] {
        let (mut g, y) = start();
        let axes = g.integers("axes", &[axis]);
        let dims = if is_reduced { [B, S, n(1)] } else { [B, n(1), n(H)] };
        let z = g.op(op("ReduceMean"), &[y, axes], &dims);
        let p = g.trace();
        assert_eq!(is_frozen(&p, y), is_reduced);
        if !is_reduced {
            assert_eq!(classes(&p, z), classes(&p, y));
        }
    }
    let (mut g, y) = start();
    let z =
        g.op(op("ReduceSum").with(attribute::ints("axes", &[1])).with(attribute::int("keepdims", 0)), &[y], &[B, n(H)]);
    let p = g.trace();
    assert_eq!(classes(&p, z), classes(&p, y));
}

#[test]
fn splitting_heads_keeps_channels_apart_until_attention_joins_them() {
    let (mut g, y) = start();
    let target = g.integers("target", &[0, 0, 3, 4]);
    let heads = g.op(op("Reshape"), &[y, target], &[B, S, n(3), n(4)]);
    let q = g.op(op("Transpose").with(attribute::ints("perm", &[0, 2, 1, 3])), &[heads], &[B, n(3), S, n(4)]);
    let k = g.op(op("Transpose").with(attribute::ints("perm", &[0, 2, 3, 1])), &[heads], &[B, n(3), n(4), S]);
    assert_eq!(distinct(classes(&g.trace(), y)), 3, "what is split and not joined again goes by heads");
    g.on("MatMul", &[q, k]);
    let p = g.trace();
    assert_eq!(distinct(classes(&p, y)), 3);
    assert_eq!(classes(&p, y)[..4], [classes(&p, y)[0]; 4]);
    assert_eq!(p.products.len(), 1);
}

#[test]
fn a_reshape_there_and_back_with_batch_and_heads_folded_keeps_heads() {
    let (mut g, y) = start();
    let turned = g.op(op("Transpose").with(attribute::ints("perm", &[1, 0, 2])), &[y], &[S, B, n(H)]);
    let folded = Dim([B.0[0] * 3, B.0[1] * 3]);
    let target = g.integers("target", &[0, -1, 4]);
    let heads = g.op(op("Reshape"), &[turned, target], &[S, folded, n(4)]);
    let sums = g.op(op("ReduceSum").with(attribute::ints("axes", &[0])), &[heads], &[n(1), folded, n(4)]);
    let p = g.trace();
    assert!(!is_frozen(&p, sums));
    assert_eq!(distinct(classes(&p, y)), 3);
}

#[test]
fn split_slice_gather_and_concat_move_channels() {
    let (mut g, y) = start();
    let sizes = g.integers("sizes", &[5, 7]);
    let parts = g.ops(op("Split").with(attribute::int("axis", 2)), &[y, sizes], &[&[B, S, n(5)], &[B, S, n(7)]]);
    let joined = g.op(op("Concat").with(attribute::int("axis", 2)), &[parts[1], parts[0]], &WIDE);
    let (starts, ends, axes) = (g.integers("starts", &[7]), g.integers("ends", &[1 << 40]), g.integers("axes", &[2]));
    let sliced = g.op(op("Slice"), &[joined, starts, ends, axes], &[B, S, n(5)]);
    let index = g.integers("index", &[4, -5]);
    let picked = g.op(op("Gather").with(attribute::int("axis", 2)), &[sliced, index], &[B, S, n(2)]);
    let p = g.trace();
    let original = classes(&p, y);
    assert_eq!(classes(&p, sliced), original[..5]);
    assert_eq!(classes(&p, picked), [original[4], original[0]]);
    assert!(!is_frozen(&p, y));
}

#[test]
fn picking_by_what_is_only_known_at_run_time_freezes() {
    let (mut g, y) = start();
    let index = g.shape(op("Shape"), &[y], &[S]);
    g.op(op("Gather").with(attribute::int("axis", 2)), &[y, index], &[B, S, n(1)]);
    assert!(is_frozen(&g.trace(), y));
    let (mut g, y) = start();
    let end = g.shape(op("Shape"), &[y], &[S]);
    let (start, axes) = (g.integers("start", &[0]), g.integers("axes", &[2]));
    g.op(op("Slice"), &[y, start, end, axes], &[B, S, S]);
    assert!(is_frozen(&g.trace(), y));
}

#[test]
fn joining_with_a_piece_that_cannot_be_cut_leaves_the_rest_free() {
    let (mut g, y) = start();
    let other = g.input("other", &[B, S, n(4)]);
    let joined = g.op(op("Concat").with(attribute::int("axis", 2)), &[y, other], &[B, S, n(H + 4)]);
    let p = g.trace();
    assert!(!is_frozen(&p, y));
    assert!(p.planes(joined)[0].0.iter().skip(H).all(|&c| p.channels.frozen(c).is_some()));
}

#[test]
fn an_expanded_axis_follows_what_it_is_joined_with() {
    let (mut g, y) = start();
    let flat = g.input("flat", &[B, S, n(1)]);
    let target = g.integers("target", &[1, 1, H as i64]);
    let wide = g.op(op("Expand"), &[flat, target], &WIDE);
    g.op(op("Add"), &[y, wide], &WIDE);
    let p = g.trace();
    assert!(!is_frozen(&p, y));
    assert_eq!(classes(&p, wide), classes(&p, y));
}

#[test]
fn an_operator_without_a_rule_and_a_graph_output_freeze() {
    let (mut g, y) = start();
    g.op(op("NonMaxSuppression"), &[y], &WIDE);
    assert!(is_frozen(&g.trace(), y));
    let (mut g, y) = start();
    g.graph.add_output(y);
    let p = g.trace();
    assert!(is_frozen(&p, y));
    assert!(p.channels.frozen(classes(&p, y)[0]).unwrap().place.contains("matmul"));
    let (mut g, y) = start();
    g.op(Operator { domain: "com.example".into(), ..op("Relu") }, &[y], &WIDE);
    assert!(is_frozen(&g.trace(), y));
}

#[test]
fn gemm_carries_channels_through_transposed_weights_and_its_bias() {
    let (mut g, y) = start();
    let target = g.integers("target", &[-1, H as i64]);
    let rows = Dim([10, 21]);
    let flat = g.op(op("Reshape"), &[y, target], &[rows, n(H)]);
    let (w, c) = (g.weight("v", &[7, H]), g.weight("c", &[7]));
    let z = g.op(op("Gemm").with(attribute::int("transB", 1)), &[flat, w, c], &[rows, n(7)]);
    let p = g.trace();
    assert_eq!(p.contractions.len(), 1);
    assert_eq!(p.contractions[0].rows.len(), H);
    assert_eq!(distinct(classes(&p, z)), 7);
    assert!(!is_frozen(&p, z));
}

#[test]
fn trilu_and_cumsum_look_at_positions() {
    let (mut g, y) = start();
    g.op(op("Trilu"), &[y], &WIDE);
    assert!(is_frozen(&g.trace(), y));
    let (mut g, y) = start();
    let axis = g.integers("axis", &[1]);
    g.op(op("CumSum"), &[y, axis], &WIDE);
    assert!(!is_frozen(&g.trace(), y));
}

#[test]
fn a_vector_over_the_width_of_all_heads_stays_and_heads_stay_apart() {
    let (mut g, y) = start();
    let target = g.integers("target", &[0, 0, 3, 4]);
    let heads = g.op(op("Reshape"), &[y, target], &[B, S, n(3), n(4)]);
    let rotation = g.weight("rotation", &[4]);
    let turned = g.on("Mul", &[heads, rotation]);
    let k = g.op(op("Transpose").with(attribute::ints("perm", &[0, 2, 3, 1])), &[turned], &[B, n(3), n(4), S]);
    let q = g.op(op("Transpose").with(attribute::ints("perm", &[0, 2, 1, 3])), &[turned], &[B, n(3), S, n(4)]);
    g.on("MatMul", &[q, k]);
    let p = g.trace();
    assert_eq!(distinct(classes(&p, y)), 3);
    assert!(!is_frozen(&p, y));
    let (_, _, planes) = p
        .cut_uses()
        .into_iter()
        .find(|(_, _, planes)| planes.iter().any(|q| q.0.len() == 4 && q.0.ndim() == 1))
        .unwrap();
    assert!(planes[0].0.iter().all(|&c| p.channels.frozen(c).is_some()));
}

#[test]
fn a_number_for_each_head_goes_with_its_head() {
    let (mut g, y) = start();
    let target = g.integers("target", &[0, 0, 3, 4]);
    let heads = g.op(op("Reshape"), &[y, target], &[B, S, n(3), n(4)]);
    let scale = g.weight("scale", &[3, 1]);
    let scaled = g.on("Mul", &[heads, scale]);
    let p = g.trace();
    assert_eq!(distinct(classes(&p, y)), 3);
    assert!(!is_frozen(&p, scaled));
    let uses = p.cut_uses();
    let (_, _, planes) = uses.iter().find(|(_, _, planes)| planes.iter().any(|q| q.0.shape() == [3, 1])).unwrap();
    let of_scale: Vec<_> = planes[0].0.iter().map(|&c| p.channels.find(c)).collect();
    let of_heads = classes(&p, y);
    assert_eq!(of_scale, [of_heads[0], of_heads[4], of_heads[8]]);
}

#[test]
fn a_bias_that_several_layers_read_is_cut_for_each() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(8)]);
    let table = g.weight("table", &[6, 3]);
    let positions = g.shape(op("Range"), &[x], &[S]);
    let gathered = g.op(op("Gather"), &[table, positions], &[S, n(3)]);
    let bias = g.op(op("Transpose"), &[gathered], &[n(3), S]);
    let mut layers = Vec::new();
    for name in ["a", "b"] {
        let w = g.weight(name, &[8, 3]);
        let y = g.on("MatMul", &[x, w]);
        let y = g.op(op("Transpose").with(attribute::ints("perm", &[0, 2, 1])), &[y], &[B, n(3), S]);
        layers.push(g.on("Add", &[y, bias]));
    }
    let p = g.trace();
    assert!(layers.iter().all(|&v| !is_frozen(&p, v)));
    assert!(classes(&p, layers[0]).iter().all(|c| !classes(&p, layers[1]).contains(c)));
    assert!(is_frozen(&p, bias), "what all read stays whole");
}

#[test]
fn copies_of_a_channel_are_one_channel() {
    let (mut g, y) = start();
    let copies = g.integers("copies", &[1, 1, 2]);
    let tiled = g.op(op("Tile"), &[y, copies], &[B, S, n(2 * H)]);
    let p = g.trace();
    assert_eq!(classes(&p, tiled)[..H], classes(&p, tiled)[H..]);
    assert_eq!(classes(&p, tiled)[..H], classes(&p, y));
}

#[test]
fn gathered_elements_keep_other_axes_and_freeze_the_one_they_pick_from() {
    for (axis, is_picked) in [(1, false), (2, true)] {
        let (mut g, y) = start();
        let index = g.input("index", &[B, S, n(1)]);
        let target = g.integers("target", &[1, 1, H as i64]);
        let wide = g.op(op("Expand"), &[index, target], &WIDE);
        g.op(op("GatherElements").with(attribute::int("axis", axis)), &[y, wide], &WIDE);
        assert_eq!(is_frozen(&g.trace(), y), is_picked);
    }
}

#[test]
fn an_axis_of_batch_and_heads_folded_expands_by_heads() {
    let mut g = Sketch::default();
    let x = g.input("x", &[n(1), S]);
    let folded = Dim([B.0[0] * 3, B.0[1] * 3]);
    let target = g.shape(op("Concat"), &[x], &[folded, S]);
    let wide = g.op(op("Expand"), &[x, target], &[folded, S]);
    let p = g.trace();
    assert_eq!(distinct(classes(&p, wide)), 3);
    assert_eq!(classes(&p, wide)[..3], classes(&p, wide)[3..]);
    let batch = g.shape(op("Concat"), &[x], &[B, S]);
    let plain = g.op(op("Expand"), &[x, batch], &[B, S]);
    assert!(g.trace().planes(plain).is_empty(), "the batch itself carries no channels");
}

#[test]
fn channels_summed_over_in_scores_stay_and_those_of_the_values_do_not() {
    for (shared, frozen) in [(true, true), (false, false)] {
        let (mut g, y) = start();
        let x = g.graph.find("x").unwrap();
        let own = g.weight("own", &[8, H]);
        let values = if shared { y } else { g.op(op("MatMul"), &[x, own], &WIDE) };
        let turned = g.op(op("Transpose").with(attribute::ints("perm", &[0, 2, 1])), &[y], &[B, n(H), S]);
        let scores = g.on("MatMul", &[y, turned]);
        let z = g.op(op("MatMul"), &[scores, values], &WIDE);
        let p = g.trace();
        assert!(is_frozen(&p, y), "queries and keys weigh all others");
        assert_eq!(is_frozen(&p, z), frozen, "one projection for all three: {shared}");
    }
}

#[test]
fn a_channel_that_is_picked_alone_stays_and_several_do_not() {
    for count in [1, 3] {
        let (mut g, y) = start();
        let ends = [0, count as i64, 2].map(|i| g.integers("at", &[i]));
        g.op(op("Slice"), &[y, ends[0], ends[1], ends[2]], &[B, S, n(count)]);
        let p = g.trace();
        let stays = |c: Channel| p.channels.frozen(c).is_some();
        let frozen = classes(&p, y).into_iter().filter(|&c| stays(c)).count();
        assert_eq!(frozen, if count == 1 { 1 } else { 0 });
    }
}

#[test]
fn entries_picked_from_a_turned_value_keep_their_channels() {
    let (mut g, y) = start();
    let apart = g.integers("apart", &[0, 0, 3, 4]);
    let apart = g.op(op("Reshape"), &[y, apart], &[B, S, n(3), n(4)]);
    let turned = g.op(op("Transpose").with(attribute::ints("perm", &[0, 2, 1, 3])), &[apart], &[B, n(3), S, n(4)]);
    let indices = g.integers("indices", &[3, 0]);
    let picked = g.op(op("Gather").with(attribute::int("axis", 3)), &[turned, indices], &[B, n(3), S, n(2)]);
    let p = g.trace();
    let all = classes(&p, y);
    assert_eq!(classes(&p, picked), [3, 0, 7, 4, 11, 8].map(|i| all[i]));
}
