use super::*;
use crate::ir::{ElementType, Operator, Slot, attribute};
use crate::signature::declare;
use crate::testing::{B, S, Sketch, feed_forward, n};

fn op(op_type: &str) -> Operator {
    Operator::new(op_type)
}

/// Up, Relu, down: what a feed-forward sublayer gives before it joins anything.
fn inner(g: &mut Sketch, x: ValueId) -> ValueId {
    let (up, down) = (g.weight("up", &[4, 6]), g.weight("down", &[6, 4]));
    let h = g.on("MatMul", &[x, up]);
    let h = g.on("Relu", &[h]);
    g.on("MatMul", &[h, down])
}

#[test]
fn an_output_is_followed_through_layouts_to_the_stream() {
    for (order, found) in [([0, 2, 1, 3], true), ([0, 1, 3, 2], false)] {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let y = inner(&mut g, x);
        let apart = g.integers("apart", &[0, -1, 1, 4]);
        let y = g.op(op("Reshape"), &[y, apart], &[B, S, n(1), n(4)]);
        let dims = if found { [B, n(1), S, n(4)] } else { [B, S, n(4), n(1)] };
        let y = g.op(op("Transpose").with(attribute::ints("perm", &order)), &[y], &dims);
        let joined = g.integers("joined", &[0, -1, 4]);
        let y = g.op(op("Reshape"), &[y, joined], &[B, S, n(4)]);
        let sum = g.on("Add", &[x, y]);
        g.graph.add_output(sum);
        let discovery = g.discover();
        assert_eq!(discovery.sublayers.len(), found as usize, "channels must stay on the last axis");
        if found {
            let residual = &discovery.sublayers[0].residual;
            assert_eq!((residual.path.len(), residual.joint.unwrap().1, residual.output), (4, 1, sum));
        }
    }
}

#[test]
fn a_rolled_output_is_one_path() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, n(5), n(4)]);
    let (up, down) = (g.weight("up", &[4, 6]), g.weight("down", &[6, 4]));
    let h = g.on("MatMul", &[x, up]);
    let h = g.on("Relu", &[h]);
    let y = g.on("MatMul", &[h, down]);
    let bounds: Vec<ValueId> = [0, 2, 5, 1].map(|i| g.integers("at", &[i])).to_vec();
    let head = g.op(op("Slice"), &[y, bounds[0], bounds[1], bounds[3]], &[B, n(2), n(4)]);
    let tail = g.op(op("Slice"), &[y, bounds[1], bounds[2], bounds[3]], &[B, n(3), n(4)]);
    let rolled = g.op(op("Concat").with(attribute::int("axis", 1)), &[tail, head], &[B, n(5), n(4)]);
    let sum = g.on("Add", &[x, rolled]);
    g.graph.add_output(sum);
    assert_eq!(g.discover().sublayers[0].residual.path.len(), 4);
}

#[test]
fn layers_side_by_side_share_the_stream_that_they_join() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let normal = g.on("Tanh", &[x]);
    let (a, b) = (inner(&mut g, normal), inner(&mut g, normal));
    let both = g.on("Add", &[a, b]);
    let sum = g.on("Add", &[x, both]);
    g.graph.add_output(sum);
    let discovery = g.discover();
    assert_eq!(discovery.sublayers.len(), 2);
    assert!(discovery.sublayers.iter().all(|s| s.residual.output == sum && s.can_go_whole()));
}

#[test]
fn an_output_that_is_normalised_first_is_its_own_target() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let stream = g.on("Tanh", &[x]);
    let y = inner(&mut g, stream);
    let (scale, shift) = (g.weight("scale", &[4]), g.weight("shift", &[4]));
    let normal = g.on("LayerNormalization", &[y, scale, shift]);
    let sum = g.on("Add", &[stream, normal]);
    g.graph.add_output(sum);
    let discovery = g.discover();
    let sublayer = &discovery.sublayers[0];
    assert_eq!((sublayer.residual.output, sublayer.can_go_whole()), (y, false));
    // Behind another product it is no sublayer's output.
    let w = g.weight("further", &[4, 4]);
    let further = g.on("MatMul", &[normal, w]);
    let sum = g.on("Add", &[stream, further]);
    g.graph.set_outputs(&[sum]);
    g.graph.remove_dead();
    assert!(g.discover().sublayers.iter().all(|s| s.projection.outputs != 4 || s.residual.output != y));
}

#[test]
fn shared_weights_are_one_sublayer_with_several_places() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let (up, down) = (g.weight("up", &[4, 6]), g.weight("down", &[6, 4]));
    let mut stream = x;
    for _ in 0..3 {
        let h = g.on("MatMul", &[stream, up]);
        let h = g.on("Relu", &[h]);
        let y = g.on("MatMul", &[h, down]);
        stream = g.on("Add", &[stream, y]);
    }
    g.graph.add_output(stream);
    let discovery = g.discover();
    assert_eq!(discovery.sublayers.len(), 1);
    assert_eq!((discovery.sublayers[0].also.len(), discovery.sublayers[0].units.len()), (2, 6));
    let untied = {
        crate::simplify::fold::untie(&mut g.graph);
        g.discover()
    };
    assert_eq!(untied.sublayers.len(), 3);
}

#[test]
fn channels_that_end_in_different_weights_are_declined() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let (up, a, b) = (g.weight("up", &[4, 6]), g.weight("a", &[6, 4]), g.weight("b", &[6, 4]));
    let h = g.on("MatMul", &[x, up]);
    let first = g.on("MatMul", &[h, a]);
    let second = g.on("MatMul", &[h, b]);
    let sum = g.on("Add", &[x, first]);
    let sum = g.on("Add", &[sum, second]);
    g.graph.add_output(sum);
    let discovery = g.discover();
    assert!(discovery.sublayers.is_empty());
    assert!(discovery.declined.iter().any(|d| d.why.contains("several projections")));
}

#[test]
fn layers_that_share_a_weight_are_declined_with_the_remedy() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let (up, first, second) = (g.weight("up", &[4, 6]), g.weight("first", &[6, 4]), g.weight("second", &[6, 4]));
    let mut stream = x;
    for down in [first, second] {
        let h = g.on("MatMul", &[stream, up]);
        let h = g.on("Relu", &[h]);
        let y = g.on("MatMul", &[h, down]);
        stream = g.on("Add", &[stream, y]);
    }
    g.graph.add_output(stream);
    let declined = g.discover().declined;
    assert!(declined.iter().any(|d| d.why.contains("share the weight \"up\"; --untie")), "{declined:?}");
    crate::simplify::fold::untie(&mut g.graph);
    assert_eq!(g.discover().sublayers.len(), 2);
}

#[test]
fn neurons_outside_of_a_stream_are_offered_on_request() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let y = feed_forward(&mut g, x, 4, 6);
    let logits = inner(&mut g, y);
    g.graph.add_output(logits);
    assert_eq!(g.discover().sublayers.len(), 1);
    let all = discover_units(&g.graph, &g.seen(), &BTreeMap::new(), Scope::All);
    assert_eq!(all.sublayers.len(), 2);
    assert_eq!(all.sublayers[1].residual.output, logits);
}

#[test]
fn a_sum_that_stretches_the_stream_is_no_residual() {
    for (dims, found) in [([B, S, n(4)], 1), ([B, n(1), n(4)], 0)] {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let y = inner(&mut g, x);
        let stream = g.input("stream", &dims);
        let sum = g.on("Add", &[stream, y]);
        g.graph.add_output(sum);
        let discovery = g.discover();
        assert_eq!(discovery.sublayers.len(), found, "{:?}", discovery.declined);
        let says = |d: &Declined| d.why.contains("which the sum stretches");
        assert_eq!(discovery.declined.iter().any(says), found == 0);
    }
}

/// Four heads of two channels, whose keys and values are those of `groups` that they share.
fn attention(g: &mut Sketch, groups: usize) -> ValueId {
    let x = g.input("x", &[B, n(5), n(8)]);
    let heads = |g: &mut Sketch, count: usize, name: &str| {
        let weight = g.weight(name, &[8, 2 * count]);
        let y = g.on("MatMul", &[x, weight]);
        let apart = g.integers("apart", &[0, 5, count as i64, 2]);
        let y = g.op(op("Reshape"), &[y, apart], &[B, n(5), n(count), n(2)]);
        g.op(op("Transpose").with(attribute::ints("perm", &[0, 2, 1, 3])), &[y], &[B, n(count), n(5), n(2)])
    };
    let repeated = |g: &mut Sketch, y: ValueId| {
        let axis = g.integers("axis", &[2]);
        let y = g.op(op("Unsqueeze"), &[y, axis], &[B, n(groups), n(1), n(5), n(2)]);
        let times = g.integers("times", &[1, 1, (4 / groups) as i64, 1, 1]);
        let y = g.op(op("Expand"), &[y, times], &[B, n(groups), n(4 / groups), n(5), n(2)]);
        let all = g.integers("all", &[0, 4, 5, 2]);
        g.op(op("Reshape"), &[y, all], &[B, n(4), n(5), n(2)])
    };
    let query = heads(g, 4, "query");
    let [key, value] = ["key", "value"].map(|name| {
        let shared = heads(g, groups, name);
        if groups == 4 { shared } else { repeated(g, shared) }
    });
    let key = g.op(op("Transpose").with(attribute::ints("perm", &[0, 1, 3, 2])), &[key], &[B, n(4), n(2), n(5)]);
    let scores = g.on("MatMul", &[query, key]);
    let shares = g.op(op("Softmax").with(attribute::int("axis", -1)), &[scores], &[B, n(4), n(5), n(5)]);
    let context = g.on("MatMul", &[shares, value]);
    let order = attribute::ints("perm", &[0, 2, 1, 3]);
    let context = g.op(op("Transpose").with(order), &[context], &[B, n(5), n(4), n(2)]);
    let joined = g.integers("joined", &[0, 5, 8]);
    let context = g.op(op("Reshape"), &[context, joined], &[B, n(5), n(8)]);
    let weight = g.weight("projection", &[8, 8]);
    let y = g.on("MatMul", &[context, weight]);
    g.on("Add", &[x, y])
}

#[test]
fn heads_that_share_keys_go_together_and_are_counted() {
    // Where all share one head of keys and values, that stays, and nothing keeps them together.
    for (groups, count, members) in [(4, 4, 1), (2, 2, 2), (1, 4, 1)] {
        let mut g = Sketch::default();
        let y = attention(&mut g, groups);
        g.graph.add_output(y);
        let found = g.discover();
        let units = &found.sublayers[0].units;
        assert_eq!(units.len(), count);
        assert!(units.iter().all(|u| u.members == members && u.columns.len() == 2 * members), "{groups}: {units:?}");
    }
}

/// The model as it is written: the heads of `name` are put behind earlier ones, and kept.
fn with_cache(graph: &Graph, name: &str, is_joined: bool) -> Graph {
    let mut graph = graph.clone();
    let mut value = graph.find(name).unwrap();
    for _ in 0..3 {
        // A product, a Reshape and a Transpose.
        let (node, _) = graph.consumers(value)[0];
        value = graph.operator(node).output(0).unwrap();
    }
    let past = graph.add_input(declare(&format!("past_key_values.0.{name}"), ElementType::F32, 4));
    let join = if is_joined { op("Concat").with(attribute::int("axis", 2)) } else { op("Add") };
    let readers = graph.consumers(value);
    let present = graph.add(join, &[past, value], &format!("present.0.{name}"));
    for (node, slot) in readers {
        if let Slot::Input(slot) = slot {
            graph.set_input(node, slot, Some(present));
        }
    }
    graph.set_info(present, Some(declare(&format!("present.0.{name}"), ElementType::F32, 4)));
    graph.add_output(present);
    graph
}

#[test]
fn heads_of_a_cache_cannot_all_go() {
    let mut g = Sketch::default();
    let y = attention(&mut g, 2);
    g.graph.add_output(y);
    let mut found = g.discover();
    assert!(found.sublayers[0].can_go_whole());
    assert!(found.find_caches(&with_cache(&g.graph, "key", true)));
    assert!(found.sublayers[0].has_cache && !found.sublayers[0].can_go_whole());
}

#[test]
fn where_one_attention_keeps_all_heads_all_do() {
    let mut g = Sketch::default();
    let y = attention(&mut g, 2);
    g.graph.add_output(y);
    let mut found = g.discover();
    let written = with_cache(&with_cache(&g.graph, "key", true), "value", false);
    assert!(!found.find_caches(&written), "nobody knows whose heads are added");
    found.leave_caches();
    assert!(found.sublayers.is_empty());
    assert!(found.declined.last().unwrap().why.contains("--uneven-heads"));
}
