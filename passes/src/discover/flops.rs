//! Counting operations: two for every multiply-add.

use std::collections::BTreeMap;

use super::Sublayer;
use crate::ir::{Graph, NodeId};
use crate::observe::Observation;

/// Matrix products, plain, fused and quantised.
const PRODUCTS: &[&str] = &[
    "MatMul",
    "Gemm",
    "FusedMatMul",
    "FusedGemm",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
];

/// FLOPs of all matrix products and convolutions of a graph, for one sample of inputs whose named axes are as long as `at` says.
pub fn total(graph: &Graph, seen: &Observation, at: &BTreeMap<String, f64>) -> f64 {
    let count = |node: NodeId| match graph.operator(node).op_type.as_str() {
        "Conv" | "ConvInteger" | "QLinearConv" => convolution(graph, seen, node, at),
        op if PRODUCTS.contains(&op) => product(graph, seen, node, at),
        _ => None,
    };
    // The sum of nothing is -0.
    graph.sorted().into_iter().filter_map(count).sum::<f64>() + 0.0
}

/// Rows of a sublayer's features for one sample, for inputs whose named axes are as long as `at` says.
pub fn rows(sublayer: &Sublayer, seen: &Observation, at: &BTreeMap<String, f64>) -> f64 {
    let extents = seen.extents(sublayer.projection.features, at).unwrap_or_default();
    extents.iter().rev().skip(1).product::<f64>() / seen.samples()
}

/// FLOPs of a matrix product for one sample; `None` where its shapes are not known.
pub fn product(graph: &Graph, seen: &Observation, node: NodeId, at: &BTreeMap<String, f64>) -> Option<f64> {
    let operator = graph.operator(node);
    let left = seen.extents(operator.input(0)?, at)?;
    let output = seen.extents(operator.output(0)?, at)?;
    let inner = if operator.int("transA", 0) != 0 { left.first()? } else { left.last()? };
    Some(2.0 * output.iter().product::<f64>() * inner / seen.samples())
}

/// FLOPs of a convolution for one sample: every output sums up one kernel.
fn convolution(graph: &Graph, seen: &Observation, node: NodeId, at: &BTreeMap<String, f64>) -> Option<f64> {
    let operator = graph.operator(node);
    let slot = if operator.op_type == "QLinearConv" { 3 } else { 1 };
    let kernel: usize = graph.constant(operator.input(slot)?)?.dims().iter().skip(1).product();
    let output = seen.extents(operator.output(0)?, at)?;
    Some(2.0 * kernel as f64 * output.iter().product::<f64>() / seen.samples())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Operator;
    use crate::testing::{B, S, Sketch, n};

    #[test]
    fn products_and_convolutions_count_and_nothing_else_does() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let w = g.weight("w", &[4, 6]);
        let y = g.on("MatMul", &[x, w]);
        let y = g.on("Relu", &[y]);
        g.graph.add_output(y);
        let image = g.input("image", &[B, n(3), n(8), n(8)]);
        let kernel = g.weight("kernel", &[5, 3, 2, 2]);
        let patches = g.op(Operator::new("Conv"), &[image, kernel], &[B, n(5), n(4), n(4)]);
        g.graph.add_output(patches);
        let at = BTreeMap::from([("batch".to_string(), 1.0), ("sequence".to_string(), 10.0)]);
        // 2 * 10 * 4 * 6, and 2 * 5 * 4 * 4 outputs of 3 * 2 * 2 products each.
        assert_eq!(total(&g.graph, &g.seen(), &at), 480.0 + 1920.0);
    }

    #[test]
    fn of_a_batch_that_cannot_be_another_one_sample_counts() {
        let mut g = Sketch::default();
        let x = g.input("x", &[n(8), S, n(4)]);
        let w = g.weight("w", &[4, 6]);
        let y = g.on("MatMul", &[x, w]);
        g.graph.add_output(y);
        let at = BTreeMap::from([("sequence".to_string(), 10.0)]);
        let mut seen = g.seen();
        assert_eq!(total(&g.graph, &seen, &at), 8.0 * 480.0);
        seen.of_batches(8);
        assert_eq!(total(&g.graph, &seen, &at), 480.0);
    }

    #[test]
    fn what_is_not_known_counts_nothing() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let w = g.weight("w", &[4, 6]);
        let y = g.graph.add(Operator::new("MatMul"), &[x, w], "unseen");
        g.graph.add_output(y);
        assert_eq!(total(&g.graph, &g.seen(), &BTreeMap::new()), 0.0);
    }
}
