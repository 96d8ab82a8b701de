use std::collections::BTreeMap;

use super::*;
use crate::ir::{Operator, Slot, attribute};
use crate::observe::Dim;
use crate::plan::Tuned;
use crate::signature::declare;
use crate::testing::{B, S, Sketch, feed_forward, n, one_feed_forward};

fn op(op_type: &str) -> Operator {
    Operator::new(op_type)
}

/// A plan that keeps the given units of the only sublayer.
fn keep(discovery: &Discovery, kept: &[usize]) -> Plan {
    let mut plan = Plan::untouched(&discovery.sublayers);
    let decision = &mut plan.decisions[0];
    decision.keep = (0..decision.keep.len()).map(|u| kept.contains(&u)).collect();
    plan
}

fn prune(g: &Sketch, kept: &[usize]) -> Result<Model, RemoveError> {
    let discovery = g.discover();
    assert_eq!(discovery.sublayers.len(), 1, "declined: {:?}", discovery.declined);
    remove(&g.model(), &discovery, &g.seen(), &keep(&discovery, kept))
}

/// Shape of the constant that an operator reads.
fn dims_at(model: &Model, op_type: &str, nth: usize, slot: usize) -> Vec<usize> {
    let graph = &model.graph;
    let node = graph.sorted().into_iter().filter(|&n| graph.operator(n).is(op_type)).nth(nth).unwrap();
    graph.constant(graph.operator(node).input(slot).unwrap()).unwrap().dims().to_vec()
}

fn integers_at(model: &Model, op_type: &str, slot: usize) -> Vec<i64> {
    let graph = &model.graph;
    let node = graph.sorted().into_iter().find(|&n| graph.operator(n).is(op_type)).unwrap();
    let value = graph.operator(node).input(slot).unwrap();
    graph.constant(value).unwrap().to_i64().unwrap().iter().copied().collect()
}

#[test]
fn neurons_leave_both_weights_and_the_bias_between() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let y = feed_forward(&mut g, x, 4, 6);
    g.graph.add_output(y);
    let pruned = prune(&g, &[0, 2, 5]).unwrap();
    assert_eq!(dims_at(&pruned, "MatMul", 0, 1), [4, 3]);
    assert_eq!(dims_at(&pruned, "MatMul", 1, 1), [3, 4]);
    assert_eq!(dims_at(&pruned, "Add", 0, 1), [3]);
    let old = g.graph.constant(g.graph.find("down").unwrap()).unwrap().select(0, &[0, 2, 5]).unwrap();
    let graph = &pruned.graph;
    let down = graph.constant(graph.find("down_pruned").unwrap()).unwrap();
    assert_eq!(down.to_f64().unwrap(), old.to_f64().unwrap());
    assert!(graph.find("down").is_none_or(|v| graph.constant(v).is_none()), "nothing of the old weight is left");
}

#[test]
fn the_version_of_the_format_rises_where_initializers_leave_the_inputs() {
    for (listed, version) in [(true, 4), (false, 3)] {
        let mut g = one_feed_forward(6);
        if listed {
            let down = g.graph.find("down").unwrap();
            g.graph.list_input(down);
        }
        let discovery = g.discover();
        let mut model = g.model();
        model.header.ir_version = Some(3);
        let pruned = remove(&model, &discovery, &g.seen(), &keep(&discovery, &[0, 1])).unwrap();
        assert_eq!(pruned.header().ir_version, Some(version));
    }
}

#[test]
fn a_sublayer_without_units_leaves_only_its_bias() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let y = feed_forward(&mut g, x, 4, 6);
    g.graph.add_output(y);
    let discovery = g.discover();
    let mut plan = keep(&discovery, &[]);
    let bias = ndarray::arr1(&[1.0, 2.0, 3.0, 4.0]);
    plan.decisions[0].tuned = Some(Tuned { weight: ndarray::Array2::zeros((6, 4)), bias: bias.clone() });
    let pruned = remove(&g.model(), &discovery, &g.seen(), &plan).unwrap();
    let graph = &pruned.graph;
    assert_eq!(graph.sorted().len(), 1);
    let add = graph.operator(graph.sorted()[0]);
    let old = g.graph.constant(g.graph.find("down_bias").unwrap()).unwrap().to_f64().unwrap();
    let new = graph.constant(add.input(0).unwrap()).unwrap().to_f64().unwrap();
    assert!((&new - &old - &bias.into_dyn()).iter().all(|d| d.abs() < 1e-6));
    assert_eq!(add.input(1), Some(x));
}

/// One product split into three heads of four, joined again and projected back to the stream.
struct Heads {
    g: Sketch,
    x: ValueId,
}

impl Heads {
    fn new() -> Self {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(8)]);
        Self { g, x }
    }

    fn product(&mut self, name: &str, columns: usize) -> ValueId {
        let w = self.g.weight(name, &[8, columns]);
        self.g.on("MatMul", &[self.x, w])
    }

    /// Scores of the heads against each other and a sum over them, from [B, S, 3, 4].
    fn attend(&mut self, heads: ValueId) -> ValueId {
        let g = &mut self.g;
        let q = g.op(op("Transpose").with(attribute::ints("perm", &[0, 2, 1, 3])), &[heads], &[B, n(3), S, n(4)]);
        let k = g.op(op("Transpose").with(attribute::ints("perm", &[0, 2, 3, 1])), &[heads], &[B, n(3), n(4), S]);
        let scores = g.on("MatMul", &[q, k]);
        let context = g.on("MatMul", &[scores, q]);
        g.op(op("Transpose").with(attribute::ints("perm", &[0, 2, 1, 3])), &[context], &[B, S, n(3), n(4)])
    }

    fn finish(&mut self, features: ValueId) {
        let g = &mut self.g;
        let w = g.weight("out", &[12, 8]);
        let y = g.on("MatMul", &[features, w]);
        let y = g.on("Add", &[self.x, y]);
        g.graph.add_output(y);
    }
}

#[test]
fn constant_targets_are_replaced_and_never_changed_in_place() {
    let mut h = Heads::new();
    let y = h.product("w", 12);
    let split = h.g.integers("split", &[0, 0, 3, 4]);
    let heads = h.g.op(op("Reshape"), &[y, split], &[B, S, n(3), n(4)]);
    // Another operator needs the same target unchanged.
    let other = h.g.input("other", &[B, S, n(12)]);
    let kept = h.g.op(op("Reshape"), &[other, split], &[B, S, n(3), n(4)]);
    h.g.graph.add_output(kept);
    let context = h.attend(heads);
    let join = h.g.integers("join", &[0, 0, 12]);
    let features = h.g.op(op("Reshape"), &[context, join], &[B, S, n(12)]);
    h.finish(features);
    let pruned = prune(&h.g, &[0, 2]).unwrap();
    let graph = &pruned.graph;
    let targets: Vec<Vec<i64>> = graph
        .sorted()
        .into_iter()
        .filter(|&node| graph.operator(node).is("Reshape"))
        .map(|node| {
            graph.constant(graph.operator(node).input(1).unwrap()).unwrap().to_i64().unwrap().iter().copied().collect()
        })
        .collect();
    assert_eq!(targets, [vec![0, 0, 2, 4], vec![0, 0, 3, 4], vec![0, 0, 8]]);
    assert_eq!(dims_at(&pruned, "MatMul", 0, 1), [8, 8]);
}

#[test]
fn targets_computed_from_shapes_are_rebuilt() {
    let mut h = Heads::new();
    let y = h.product("w", 12);
    let split = h.g.shape(op("Concat").with(attribute::int("axis", 0)), &[y], &[B, S, n(3), n(4)]);
    let heads = h.g.op(op("Reshape"), &[y, split], &[B, S, n(3), n(4)]);
    let context = h.attend(heads);
    let join = h.g.shape(op("Concat").with(attribute::int("axis", 0)), &[context], &[B, S, n(12)]);
    let features = h.g.op(op("Reshape"), &[context, join], &[B, S, n(12)]);
    h.finish(features);
    let pruned = prune(&h.g, &[1]).unwrap();
    assert_eq!(integers_at(&pruned, "Reshape", 1), [0, 0, 1, 4]);
    assert!(pruned.graph.sorted().iter().all(|&n| !pruned.graph.operator(n).is("Concat")), "the old targets are gone");
}

#[test]
fn heads_folded_with_the_batch_take_a_free_length() {
    let mut h = Heads::new();
    let y = h.product("w", 12);
    let g = &mut h.g;
    let folded = Dim([B.0[0] * 3, B.0[1] * 3]);
    let turned = g.op(op("Transpose").with(attribute::ints("perm", &[1, 0, 2])), &[y], &[S, B, n(12)]);
    let split = g.shape(op("Concat").with(attribute::int("axis", 0)), &[turned], &[S, folded, n(4)]);
    let heads = g.op(op("Reshape"), &[turned, split], &[S, folded, n(4)]);
    let q = g.op(op("Transpose").with(attribute::ints("perm", &[1, 0, 2])), &[heads], &[folded, S, n(4)]);
    let k = g.op(op("Transpose").with(attribute::ints("perm", &[1, 2, 0])), &[heads], &[folded, n(4), S]);
    let scores = g.on("MatMul", &[q, k]);
    let context = g.on("MatMul", &[scores, q]);
    let back = g.op(op("Transpose").with(attribute::ints("perm", &[1, 0, 2])), &[context], &[S, folded, n(4)]);
    let join = g.shape(op("Concat").with(attribute::int("axis", 0)), &[back], &[S, B, n(12)]);
    let joined = g.op(op("Reshape"), &[back, join], &[S, B, n(12)]);
    let features = g.op(op("Transpose").with(attribute::ints("perm", &[1, 0, 2])), &[joined], &[B, S, n(12)]);
    h.finish(features);
    let pruned = prune(&h.g, &[0, 1]).unwrap();
    let graph = &pruned.graph;
    let reshapes: Vec<_> = graph.sorted().into_iter().filter(|&n| graph.operator(n).is("Reshape")).collect();
    let target = |i: usize| graph.operator(reshapes[i]).input(1).unwrap();
    let ints = |i: usize| graph.constant(target(i)).unwrap().to_i64().unwrap().iter().copied().collect::<Vec<i64>>();
    assert_eq!(ints(0), [0, -1, 4]);
    assert_eq!(ints(1), [0, -1, 8]);
}

#[test]
fn merged_products_are_split_slice_by_slice() {
    for by_slices in [false, true] {
        let mut h = Heads::new();
        let merged = h.product("qkv", 24);
        let parts: Vec<ValueId> = if by_slices {
            [(0, 12), (12, i64::MAX)]
                .iter()
                .map(|&(from, to)| {
                    let (from, to) = (h.g.integers("from", &[from]), h.g.integers("to", &[to]));
                    let axes = h.g.integers("axes", &[-1]);
                    h.g.op(op("Slice"), &[merged, from, to, axes], &[B, S, n(12)])
                })
                .collect()
        } else {
            let operator = op("Split").with(attribute::int("axis", -1)).with(attribute::int("num_outputs", 2));
            h.g.ops(operator, &[merged], &[&[B, S, n(12)], &[B, S, n(12)]])
        };
        let split = h.g.integers("split", &[0, 0, 3, 4]);
        let sum = h.g.op(op("Mul"), &[parts[0], parts[1]], &[B, S, n(12)]);
        let heads = h.g.op(op("Reshape"), &[sum, split], &[B, S, n(3), n(4)]);
        let context = h.attend(heads);
        let join = h.g.integers("join", &[0, 0, -1]);
        let features = h.g.op(op("Reshape"), &[context, join], &[B, S, n(12)]);
        h.finish(features);
        let pruned = prune(&h.g, &[0, 2]).unwrap();
        assert_eq!(dims_at(&pruned, "MatMul", 0, 1), [8, 16]);
        if by_slices {
            assert_eq!((integers_at(&pruned, "Slice", 1), integers_at(&pruned, "Slice", 2)), (vec![0], vec![8]));
        } else {
            assert_eq!(integers_at(&pruned, "Split", 1), [8, 8]);
            let graph = &pruned.graph;
            let node = graph.sorted().into_iter().find(|&n| graph.operator(n).is("Split")).unwrap();
            assert!(graph.operator(node).attribute("num_outputs").is_none());
        }
    }
}

#[test]
fn an_expanded_mask_and_picked_channels_shrink_along() {
    let mut h = Heads::new();
    let y = h.product("w", 12);
    let index = h.g.integers("index", &[11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
    let turned = h.g.op(op("Gather").with(attribute::int("axis", 2)), &[y, index], &[B, S, n(12)]);
    let split = h.g.integers("split", &[0, 0, 3, 4]);
    let heads = h.g.op(op("Reshape"), &[turned, split], &[B, S, n(3), n(4)]);
    let flat = h.g.input("bias", &[n(1), n(1)]);
    let target = h.g.integers("target", &[1, 1, 3, 1]);
    let wide = h.g.op(op("Expand"), &[flat, target], &[n(1), n(1), n(3), n(1)]);
    let heads = h.g.on("Add", &[heads, wide]);
    let context = h.attend(heads);
    let join = h.g.integers("join", &[0, 0, -1]);
    let features = h.g.op(op("Reshape"), &[context, join], &[B, S, n(12)]);
    h.finish(features);
    let pruned = prune(&h.g, &[0, 1]).unwrap();
    assert_eq!(integers_at(&pruned, "Expand", 1), [1, 1, 2, 1]);
    // The last head is made of the first four columns of the weight.
    assert_eq!(integers_at(&pruned, "Gather", 1), [7, 6, 5, 4, 3, 2, 1, 0]);
    let graph = &pruned.graph;
    let kept = graph.constant(graph.find("w_pruned").unwrap()).unwrap().to_f64().unwrap();
    let old = g_weight(&h.g, "w").select(1, &(4..12).collect::<Vec<_>>()).unwrap();
    assert_eq!(kept, old.to_f64().unwrap());
}

fn g_weight(g: &Sketch, name: &str) -> Tensor {
    g.graph.constant(g.graph.find(name).unwrap()).unwrap().clone()
}

#[test]
fn declared_shapes_follow() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let y = feed_forward(&mut g, x, 4, 6);
    g.graph.add_output(y);
    let mut model = g.model();
    let hidden = model.graph.find("relu").unwrap();
    let mut info = declare("relu", ElementType::F32, 3);
    if let Some(type_proto::Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        t.shape.as_mut().unwrap().dim[2].value = Some(dimension::Value::DimValue(6));
    }
    model.graph.set_info(hidden, Some(info));
    let discovery = g.discover();
    let pruned = remove(&model, &discovery, &g.seen(), &keep(&discovery, &[1, 4])).unwrap();
    let info = pruned.graph.info(pruned.graph.find("relu").unwrap()).unwrap();
    let dims = &crate::signature::tensor_type(info).unwrap().shape.as_ref().unwrap().dim;
    assert_eq!(dims[2].value, Some(dimension::Value::DimValue(2)));
}

#[test]
fn units_cost_what_their_channels_take_part_in() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let y = feed_forward(&mut g, x, 4, 6);
    g.graph.add_output(y);
    let discovery = discover_at(&g, 10.0);
    // 4 s h for a neuron; its column, its bias and its row.
    assert_eq!(discovery.sublayers[0].units[0].flops, 4.0 * 10.0 * 4.0);
    assert_eq!(discovery.sublayers[0].units[0].parameters, 9);

    let mut h = Heads::new();
    let y = h.product("w", 12);
    let split = h.g.integers("split", &[0, 0, 3, 4]);
    let heads = h.g.op(op("Reshape"), &[y, split], &[B, S, n(3), n(4)]);
    let context = h.attend(heads);
    let join = h.g.integers("join", &[0, 0, -1]);
    let features = h.g.op(op("Reshape"), &[context, join], &[B, S, n(12)]);
    h.finish(features);
    let discovery = discover_at(&h.g, 10.0);
    // One product for queries and keys here: 2 + 2 times s h k, and 4 s^2 k.
    assert_eq!(discovery.sublayers[0].units[0].flops, 4.0 * 10.0 * 8.0 * 4.0 + 4.0 * 100.0 * 4.0);
    assert_eq!(discovery.sublayers[0].kind, crate::discover::Kind::Head);
}

fn discover_at(g: &Sketch, length: f64) -> Discovery {
    let at = BTreeMap::from([("batch".to_string(), 1.0), ("sequence".to_string(), length)]);
    crate::discover::discover(&g.graph, &g.seen(), &at)
}

#[test]
fn what_joins_no_stream_is_declined() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let (up, down) = (g.weight("up", &[4, 6]), g.weight("down", &[6, 4]));
    let h = g.on("MatMul", &[x, up]);
    let y = g.on("MatMul", &[h, down]);
    g.graph.add_output(y);
    let discovery = g.discover();
    assert!(discovery.sublayers.is_empty());
    assert!(discovery.declined.iter().any(|d| d.why.contains("residual stream")));
    // Added to something that the features do not come from.
    let other = g.input("other", &[B, S, n(4)]);
    let branch = g.on("Relu", &[other]);
    let sum = g.on("Add", &[y, branch]);
    g.graph.set_outputs(&[sum]);
    assert!(g.discover().sublayers.is_empty());
    assert!(g.graph.consumers(sum).iter().all(|(_, slot)| *slot == Slot::Output));
}

#[test]
fn a_shared_bias_is_picked_from_where_it_is_read() {
    let mut h = Heads::new();
    let y = h.product("w", 12);
    let split = h.g.integers("split", &[0, 0, 3, 4]);
    let heads = h.g.op(op("Reshape"), &[y, split], &[B, S, n(3), n(4)]);
    let table = h.g.weight("table", &[3, 1]);
    let flat = h.g.input("flat", &[n(1), n(1)]);
    let bias = h.g.on("Mul", &[table, flat]);
    let heads = h.g.on("Add", &[heads, bias]);
    h.g.graph.add_output(bias);
    let context = h.attend(heads);
    let join = h.g.integers("join", &[0, 0, -1]);
    let features = h.g.op(op("Reshape"), &[context, join], &[B, S, n(12)]);
    h.finish(features);
    let pruned = prune(&h.g, &[0, 2]).unwrap();
    assert_eq!(integers_at(&pruned, "Gather", 1), [0, 2]);
    assert_eq!(dims_at(&pruned, "Mul", 0, 0), [3, 1], "the other reader still gets all of it");
}

#[test]
fn layer_scale_lies_on_the_way_to_the_stream() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let (up, down) = (g.weight("up", &[4, 6]), g.weight("down", &[6, 4]));
    let (bias, scale) = (g.weight("bias", &[4]), g.weight("scale", &[4]));
    let stream = [B, S, n(4)];
    let h = g.on("MatMul", &[x, up]);
    let h = g.on("Relu", &[h]);
    let y = g.op(op("MatMul"), &[h, down], &stream);
    let y = g.op(op("Add"), &[y, bias], &stream);
    let y = g.op(op("Mul"), &[y, scale], &stream);
    let y = g.op(op("Add"), &[x, y], &stream);
    g.graph.add_output(y);
    let discovery = g.discover();
    let factor =
        crate::plan::scale_of(&g.graph, &discovery.sublayers[0].projection, &discovery.sublayers[0].residual).unwrap();
    assert_eq!(factor.into_dyn(), g_weight(&g, "scale").to_f64().unwrap());
    let pruned = prune(&g, &[]).unwrap();
    let graph = &pruned.graph;
    let left = graph.constant(graph.operator(graph.sorted()[0]).input(1).unwrap()).unwrap().to_f64().unwrap();
    let expected = g_weight(&g, "bias").to_f64().unwrap() * g_weight(&g, "scale").to_f64().unwrap();
    assert!((left - expected).iter().all(|d| d.abs() < 1e-6), "bias times scale stays");
}
