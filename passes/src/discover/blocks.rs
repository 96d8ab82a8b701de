//! Blocks: the layers of a transformer, an attention with its feed-forward network, and the matrices in them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::{Discovery, Kind};
use crate::ir::{Graph, NodeId, Slot, ValueId};

/// A layer, from the stream to the stream.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its sublayers.
    pub sublayers: Range<usize>,
    /// The stream after it.
    pub stream: ValueId,
    /// The constant matrices that it multiplies activations with, in the order in which it does. One that several blocks
    /// share belongs to the first of them.
    pub matrices: Vec<Matrix>,
}

/// A constant matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// The constant.
    pub weight: ValueId,
    /// The first product that reads it.
    pub node: NodeId,
    /// What the block multiplies with it, place by place.
    pub features: Vec<ValueId>,
    /// Its axis along which products are summed up: 0, or 1 where it is stored transposed.
    pub inputs_axis: usize,
    /// Its length along that axis.
    pub inputs: usize,
    /// Its length along the other axis.
    pub outputs: usize,
}

/// The blocks of a model, from input to output. What lies upstream of the first stream or downstream of the last, as
/// embeddings and heads do, belongs to none.
pub fn blocks(graph: &Graph, discovery: &Discovery) -> Vec<Block> {
    let sublayers = &discovery.sublayers;
    let mut taken = HashSet::new();
    let mut upstream = before_first(graph, discovery);
    let mut blocks = Vec::new();
    for range in ranges(discovery) {
        let streams: Vec<ValueId> = sublayers[range.clone()].iter().map(|s| s.residual.output).collect();
        let Some(&stream) = streams.last() else { continue };
        let reached = graph.ancestors(streams);
        let inside: HashSet<NodeId> = reached.difference(&upstream).copied().collect();
        let mut matrices = matrices(graph, &inside);
        matrices.retain(|matrix| taken.insert(matrix.weight));
        blocks.push(Block { sublayers: range, stream, matrices });
        upstream.extend(reached);
    }
    blocks
}

/// Which sublayers make a block: it ends with a feed-forward network, and with all that run beside it; where there is
/// none in the whole model, every sublayer is one.
fn ranges(discovery: &Discovery) -> Vec<Range<usize>> {
    let sublayers = &discovery.sublayers;
    let has_neurons = sublayers.iter().any(|s| s.kind == Kind::Neuron);
    let is_last = |t: usize| match sublayers.get(t + 1) {
        Some(next) => next.residual.output != sublayers[t].residual.output,
        None => true,
    };
    let is_beside_neurons = |t: usize| {
        let output = sublayers[t].residual.output;
        sublayers[..=t].iter().rev().take_while(|s| s.residual.output == output).any(|s| s.kind == Kind::Neuron)
    };
    let ends = (0..sublayers.len()).filter(|&t| is_last(t) && (!has_neurons || is_beside_neurons(t)));
    let mut ends: Vec<usize> = ends.map(|t| t + 1).collect();
    if ends.last().is_some_and(|&end| end < sublayers.len()) {
        ends.push(sublayers.len());
    }
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends.iter().copied()).map(|(start, end)| start..end).collect()
}

/// What makes the stream that the first sublayer is added to.
fn before_first(graph: &Graph, discovery: &Discovery) -> HashSet<NodeId> {
    let joint = discovery.sublayers.first().and_then(|s| s.residual.joint);
    let Some((node, slot)) = joint else { return HashSet::new() };
    let inputs = graph.operator(node).inputs().iter().enumerate();
    graph.ancestors(inputs.filter(|(i, _)| *i != slot).filter_map(|(_, v)| *v))
}

/// The constant matrices that the operators `inside` multiply activations with, and nothing else does otherwise.
fn matrices(graph: &Graph, inside: &HashSet<NodeId>) -> Vec<Matrix> {
    let mut places: HashMap<ValueId, usize> = HashMap::new();
    let mut matrices: Vec<Matrix> = Vec::new();
    for node in graph.sorted().into_iter().filter(|n| inside.contains(n)) {
        let Some((weight, features, inputs_axis)) = product(graph, node) else { continue };
        if let Some(&place) = places.get(&weight) {
            matrices[place].features.push(features);
            continue;
        }
        let is_product = |&(reader, slot): &(NodeId, Slot)| {
            slot == Slot::Input(1) && product(graph, reader).is_some_and(|(_, _, axis)| axis == inputs_axis)
        };
        let dims = graph.constant(weight).map(|t| t.dims().to_vec()).unwrap_or_default();
        if let (&[rows, columns], true) = (dims.as_slice(), graph.consumers(weight).iter().all(is_product)) {
            let (inputs, outputs) = if inputs_axis == 0 { (rows, columns) } else { (columns, rows) };
            places.insert(weight, matrices.len());
            matrices.push(Matrix { weight, node, features: vec![features], inputs_axis, inputs, outputs });
        }
    }
    matrices
}

/// The constant matrix of a product, what is multiplied with it, and the axis along which it is summed up.
fn product(graph: &Graph, node: NodeId) -> Option<(ValueId, ValueId, usize)> {
    let operator = graph.operator(node);
    let (features, weight) = (operator.input(0)?, operator.input(1)?);
    let tensor = graph.constant(weight).filter(|t| t.element().is_float() && t.dims().len() == 2)?;
    let axis = match (operator.is_product(), operator.op_type.as_str()) {
        (true, "MatMul") => 0,
        (true, _) if operator.int("transA", 0) == 0 => usize::from(operator.int("transB", 0) != 0),
        _ => return None,
    };
    (graph.constant(features).is_none() && tensor.count() > 0).then_some((weight, features, axis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Operator, attribute};
    use crate::testing::{B, S, Sketch, n};

    /// x + down(Relu(up(x))).
    fn feed_forward(g: &mut Sketch, x: ValueId, names: [&str; 2]) -> ValueId {
        let (up, down) = (g.weight(names[0], &[4, 6]), g.weight(names[1], &[6, 4]));
        let h = g.on("MatMul", &[x, up]);
        let h = g.on("Relu", &[h]);
        let y = g.on("MatMul", &[h, down]);
        g.on("Add", &[x, y])
    }

    fn named(g: &Sketch, blocks: &[Block]) -> Vec<Vec<String>> {
        let names = |b: &Block| b.matrices.iter().map(|m| g.graph.name(m.weight).to_string()).collect();
        blocks.iter().map(names).collect()
    }

    #[test]
    fn matrices_belong_to_the_block_that_they_work_in_and_those_around_to_none() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let (embedding, head) = (g.weight("embedding", &[4, 4]), g.weight("head", &[4, 2]));
        let x = g.on("MatMul", &[x, embedding]);
        let x = feed_forward(&mut g, x, ["up.0", "down.0"]);
        let y = feed_forward(&mut g, x, ["up.1", "down.1"]);
        let out = g.on("MatMul", &[y, head]);
        g.graph.add_output(out);
        let blocks = blocks(&g.graph, &g.discover());
        assert_eq!(named(&g, &blocks), [["up.0", "down.0"], ["up.1", "down.1"]]);
        assert_eq!((blocks[0].sublayers.clone(), blocks[0].stream, blocks[1].stream), (0..1, x, y));
        let down = &blocks[0].matrices[1];
        assert_eq!((down.inputs_axis, down.inputs, down.outputs, down.features.len()), (0, 6, 4, 1));
    }

    #[test]
    fn a_shared_matrix_belongs_to_the_first_block_and_one_that_is_looked_up_in_to_none() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let (up, down) = (g.weight("up", &[4, 6]), g.weight("down", &[6, 4]));
        let table = g.weight("table", &[4, 4]);
        let mut x = x;
        for _ in 0..2 {
            let y = g.on("MatMul", &[x, table]);
            let h = g.on("MatMul", &[y, up]);
            let h = g.on("Relu", &[h]);
            let y = g.on("MatMul", &[h, down]);
            x = g.on("Add", &[x, y]);
        }
        let ids = g.integers("ids", &[0]);
        let looked_up = g.graph.add(Operator::new("Gather"), &[table, ids], "looked_up");
        g.graph.add_output(x);
        g.graph.add_output(looked_up);
        let blocks = blocks(&g.graph, &g.discover());
        assert_eq!(named(&g, &blocks).concat(), ["up", "down"]);
    }

    #[test]
    fn a_transposed_matrix_is_summed_up_along_its_second_axis() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, n(4)]);
        let (up, down) = (g.weight("up", &[6, 4]), g.weight("down", &[6, 4]));
        let transposed = || Operator::new("Gemm").with(attribute::int("transB", 1));
        let h = g.op(transposed(), &[x, up], &[B, n(6)]);
        let h = g.on("Relu", &[h]);
        let y = g.op(Operator::new("Gemm"), &[h, down], &[B, n(4)]);
        let y = g.on("Add", &[x, y]);
        g.graph.add_output(y);
        let blocks = blocks(&g.graph, &g.discover());
        let axes: Vec<_> = blocks[0].matrices.iter().map(|m| (m.inputs_axis, m.inputs, m.outputs)).collect();
        assert_eq!(axes, [(1, 4, 6), (0, 6, 4)]);
    }
}
