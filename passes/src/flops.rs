//! Counting operations: two for every multiply-add.

use std::collections::BTreeMap;

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

/// FLOPs of all matrix products and convolutions of a graph, for inputs whose named axes are as long as `at` says.
pub fn total(graph: &Graph, seen: &Observation, at: &BTreeMap<String, f64>) -> f64 {
    let count = |node: NodeId| match graph.operator(node).op_type.as_str() {
        "Conv" | "ConvInteger" | "QLinearConv" => convolution(graph, seen, node, at),
        op if PRODUCTS.contains(&op) => product(graph, seen, node, at),
        _ => None,
    };
    graph.sorted().into_iter().filter_map(count).sum()
}

/// FLOPs of a matrix product; `None` where its shapes are not known.
pub fn product(graph: &Graph, seen: &Observation, node: NodeId, at: &BTreeMap<String, f64>) -> Option<f64> {
    let operator = graph.operator(node);
    let left = seen.dims(operator.input(0)?)?;
    let output = seen.dims(operator.output(0)?)?;
    let inner = if operator.int("transA", 0) != 0 { left.first()? } else { left.last()? };
    let size: f64 = output.iter().map(|&d| seen.extent(d, at)).product();
    Some(2.0 * size * seen.extent(*inner, at))
}

/// FLOPs of a convolution: every output sums up one kernel.
fn convolution(graph: &Graph, seen: &Observation, node: NodeId, at: &BTreeMap<String, f64>) -> Option<f64> {
    let operator = graph.operator(node);
    let slot = if operator.op_type == "QLinearConv" { 3 } else { 1 };
    let kernel: usize = graph.constant(operator.input(slot)?)?.dims().iter().skip(1).product();
    let output = seen.dims(operator.output(0)?)?;
    Some(2.0 * kernel as f64 * output.iter().map(|&d| seen.extent(d, at)).product::<f64>())
}
