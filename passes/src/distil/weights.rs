//! Which constants are trained.

use std::collections::HashSet;

use ndarray::ArrayD;

use crate::ir::{Graph, NodeId, Slot, Tensor, TensorError, ValueId};

/// The weights of products, biases, and scales of normalisations, upstream of `ends`: in the order of their names. Tables
/// that are looked up in, masks and other constants are none.
pub fn trainable(graph: &Graph, ends: impl IntoIterator<Item = ValueId>) -> Vec<ValueId> {
    let upstream = graph.ancestors(ends);
    let is_trained = |&value: &ValueId| {
        let readers = graph.consumers(value);
        let is_weight = |&(node, slot): &(NodeId, Slot)| match slot {
            Slot::Input(slot) => upstream.contains(&node) && is_weight(graph, value, node, slot),
            _ => false,
        };
        !readers.is_empty() && readers.iter().all(is_weight)
    };
    let mut weights: Vec<ValueId> = graph.initializers().into_iter().filter(is_trained).collect();
    weights.sort_by_key(|&v| graph.name(v));
    weights
}

/// Whether an operator uses a constant as a weight.
fn is_weight(graph: &Graph, value: ValueId, node: NodeId, slot: usize) -> bool {
    let Some(tensor) = graph.constant(value).filter(|t| t.element().is_float()) else { return false };
    let operator = graph.operator(node);
    let others = operator.inputs().iter().enumerate().filter(|(i, _)| *i != slot).filter_map(|(_, v)| *v);
    let meets_an_activation = others.into_iter().any(|v| graph.constant(v).is_none());
    let is_vector = tensor.dims().len() == 1 && tensor.count() > 1;
    let suits = match operator.op_type.as_str() {
        "MatMul" => tensor.dims().len() == 2,
        "Gemm" => slot == 2 || tensor.dims().len() == 2,
        "Add" | "Sub" | "Mul" => is_vector,
        "LayerNormalization" | "RMSNormalization" => slot > 0,
        _ => false,
    };
    operator.is_standard() && suits && meets_an_activation
}

/// Those of `weights` that are not needed upstream of an operator.
pub(super) fn not_upstream(graph: &Graph, weights: &[ValueId], node: NodeId) -> Vec<ValueId> {
    let outputs = graph.operator(node).outputs().iter().flatten().copied();
    let upstream: HashSet<NodeId> = graph.ancestors(outputs);
    let is_read = |v: &ValueId| graph.consumers(*v).iter().any(|(reader, _)| upstream.contains(reader));
    weights.iter().copied().filter(|v| !is_read(v)).collect()
}

/// Puts numbers in the place of a constant's, as its element type rounds them.
///
/// # Errors
/// Where it is no constant of a floating-point type.
pub fn write(graph: &mut Graph, value: ValueId, numbers: &ArrayD<f64>) -> Result<(), TensorError> {
    let old = graph.constant(value).ok_or(TensorError::Missing)?;
    let new = Tensor::from_floats(old.element(), numbers)?.placed_like(old).named(graph.name(value));
    graph.set_constant(value, new);
    Ok(())
}

/// Puts the numbers of another constant in the place of a constant's, as its element type rounds them; where that is the
/// same, both share them.
///
/// # Errors
/// As [`write()`].
pub fn copy(graph: &mut Graph, value: ValueId, from: &Tensor) -> Result<(), TensorError> {
    if graph.constant(value).ok_or(TensorError::Missing)?.element() != from.element() {
        return write(graph, value, &from.to_f64()?);
    }
    let name = graph.name(value).to_string();
    graph.set_constant(value, from.clone().named(&name));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{B, S, Sketch, n};

    fn names(graph: &Graph, values: Vec<ValueId>) -> Vec<&str> {
        values.into_iter().map(|v| graph.name(v)).collect()
    }

    #[test]
    fn weights_biases_and_scales_are_trained_and_no_other_constants() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let (w, b, scale, square) =
            (g.weight("w", &[4, 4]), g.weight("b", &[4]), g.weight("scale", &[4]), g.weight("square", &[4, 4]));
        let (number, positions) = (g.weight("number", &[1]), g.weight("positions", &[4, 4]));
        let product = g.on("MatMul", &[x, w]);
        let biased = g.on("Add", &[product, b]);
        let scaled = g.on("Mul", &[biased, scale]);
        let halved = g.on("Mul", &[scaled, number]);
        // The same table is looked up in elsewhere; another is added.
        let tied = g.on("MatMul", &[halved, square]);
        let ids = g.integers("ids", &[0, 1]);
        let looked_up = g.graph.add(crate::ir::Operator::new("Gather"), &[square, ids], "looked_up");
        let y = g.on("Add", &[tied, positions]);
        g.graph.add_output(looked_up);
        g.graph.add_output(y);
        let unread = g.weight("unread", &[4, 4]);
        let aside = g.on("MatMul", &[x, unread]);
        g.graph.add_output(aside);
        assert_eq!(names(&g.graph, trainable(&g.graph, [y])), ["b", "scale", "w"]);
    }

    #[test]
    fn weights_upstream_of_an_operator_are_those_that_it_depends_on() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, n(4)]);
        let (first, second) = (g.weight("first", &[4, 4]), g.weight("second", &[4, 4]));
        let before = g.on("MatMul", &[x, first]);
        let opaque = g.on("Opaque", &[before]);
        let after = g.on("MatMul", &[opaque, second]);
        g.graph.add_output(after);
        let (node, _) = g.graph.producer(opaque).unwrap();
        assert_eq!(names(&g.graph, not_upstream(&g.graph, &[first, second], node)), ["second"]);
    }

    #[test]
    fn numbers_are_written_under_the_same_name() {
        let mut g = Sketch::default();
        let w = g.weight("w", &[2]);
        let numbers = ndarray::arr1(&[3.0, 4.0]).into_dyn();
        write(&mut g.graph, w, &numbers).unwrap();
        let tensor = g.graph.constant(w).unwrap();
        assert_eq!((tensor.to_f64().unwrap(), tensor.proto().name()), (numbers, "w"));
    }
}
