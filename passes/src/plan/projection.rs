//! Projections in a graph: where a bias is read, what lies on the way to the stream, and tuned ones written.

use std::collections::HashMap;

use ndarray::{Array1, Array2, ArrayD};

use super::{Plan, Tuned};
use crate::discover::{Discovery, Projection, Residual, Sublayer};
use crate::ir::{Graph, NodeId, Operator, Tensor, TensorError, ValueId};

/// Writes the tuned projections into a graph in which nothing has been removed yet.
///
/// # Errors
/// Where a weight is of no floating-point type.
pub fn write_projections(graph: &mut Graph, discovery: &Discovery, plan: &Plan) -> Result<(), TensorError> {
    for (sublayer, decision) in plan.each(discovery) {
        if let Some(tuned) = &decision.tuned {
            write_projection(graph, sublayer, tuned)?;
        }
    }
    graph.checked("writing projections");
    Ok(())
}

/// Writes the tuned projection of one sublayer, wherever its weights are applied.
///
/// # Errors
/// Where a weight is of no floating-point type.
pub fn write_projection(graph: &mut Graph, sublayer: &Sublayer, tuned: &Tuned) -> Result<(), TensorError> {
    write_weight(graph, sublayer, &tuned.weight)?;
    if tuned.bias.iter().any(|&b| b != 0.0) {
        write_bias(graph, sublayer, &tuned.bias)?;
    }
    Ok(())
}

fn write_weight(graph: &mut Graph, sublayer: &Sublayer, weight: &Array2<f64>) -> Result<(), TensorError> {
    let projection = &sublayer.projection;
    let old = graph.constant(projection.weight).ok_or(TensorError::Missing)?.clone();
    let stored = if projection.transposed { weight.t().to_owned() } else { weight.clone() };
    let new = Tensor::from_floats(old.element(), &stored.into_dyn())?;
    let name = graph.name(projection.weight).to_string();
    let value = graph.add_constant(&format!("{name}_tuned"), new.placed_like(&old));
    for (projection, _) in sublayer.sites() {
        graph.set_input(projection.node, projection.weight_slot, Some(value));
    }
    Ok(())
}

/// Adds to the bias constants downstream of the projection, or adds a bias where there is none.
fn write_bias(graph: &mut Graph, sublayer: &Sublayer, bias: &Array1<f64>) -> Result<(), TensorError> {
    let element = graph.constant(sublayer.projection.weight).ok_or(TensorError::Missing)?.element();
    let mut made: HashMap<Option<ValueId>, ValueId> = HashMap::new();
    for (projection, residual) in sublayer.sites() {
        let found = bias_at(graph, projection, residual);
        let old = found.as_ref().and_then(|&(node, slot, _)| graph.operator(node).input(slot));
        let value = match (made.get(&old), &found) {
            (Some(&value), _) => value,
            (None, Some((_, _, old))) => {
                let new = Tensor::from_floats(old.element(), &(old.to_f64()? + bias.view().into_dyn()))?;
                graph.add_constant(&format!("{}_tuned", old.proto().name()), new.placed_like(old))
            }
            (None, None) => {
                let tensor = Tensor::from_floats(element, &bias.clone().into_dyn())?;
                graph.add_constant(&format!("{}_bias", sublayer.name), tensor)
            }
        };
        made.insert(old, value);
        if let Some((node, slot, _)) = found {
            graph.set_input(node, slot, Some(value));
            continue;
        }
        let output = graph.operator(projection.node).output(0).ok_or(TensorError::Missing)?;
        let hint = format!("{}_biased", graph.name(output));
        graph.add_behind(output, Operator::new("Add"), value, &hint);
    }
    Ok(())
}

/// Where the bias of a sublayer's projection is read, and the bias; one number for every output.
pub fn bias_of(graph: &Graph, sublayer: &Sublayer) -> Option<(NodeId, usize, Tensor)> {
    bias_at(graph, &sublayer.projection, &sublayer.residual)
}

/// [`bias_of`] at one of the places where a sublayer's weights are applied.
pub fn bias_at(graph: &Graph, projection: &Projection, residual: &Residual) -> Option<(NodeId, usize, Tensor)> {
    let outputs = projection.outputs;
    let is_bias = |t: &&Tensor| t.dims() == [outputs] && t.element().is_float();
    let at = |node, slot| {
        let value = graph.operator(node).input(slot)?;
        graph.constant(value).filter(is_bias).map(|t| (node, slot, t.clone()))
    };
    if graph.operator(projection.node).is("Gemm") {
        return at(projection.node, 2);
    }
    if let Some((joint, _)) = residual.joint.filter(|&(n, _)| graph.contains(n)) {
        let slot = match graph.operator(joint).op_type.as_str() {
            "SkipLayerNormalization" => Some(4),
            "SkipSimplifiedLayerNormalization" => Some(3),
            _ => None,
        };
        if let Some(found) = slot.and_then(|slot| at(joint, slot)) {
            return Some(found);
        }
    }
    let unscaled = residual.before_joint().iter().take_while(|&&n| !graph.operator(n).is("Mul"));
    let adds = unscaled.filter(|&&n| graph.operator(n).is("Add"));
    adds.flat_map(|&n| [0, 1].map(|slot| at(n, slot))).flatten().next()
}

/// The constant at one input of an operator that adds or multiplies by it.
fn constant_operand(graph: &Graph, node: NodeId) -> Option<ArrayD<f64>> {
    let constants = graph.operator(node).inputs().iter().flatten().filter_map(|&v| graph.constant(v));
    constants.filter_map(|t| t.to_f64().ok()).next()
}

/// What the operators between the projection and the stream multiply its output by, one factor for
/// every output (layer scale); `None` where they do not.
pub fn scale_of(graph: &Graph, projection: &Projection, residual: &Residual) -> Option<Array1<f64>> {
    let scaling = residual.path.iter().filter(|&&n| graph.operator(n).is("Mul"));
    let mut scale: Option<Array1<f64>> = None;
    for factor in scaling.filter_map(|&n| constant_operand(graph, n)) {
        let ones = Array1::ones(projection.outputs).into_dyn();
        let factor = (ones * factor).into_dimensionality().ok()?;
        scale = Some(scale.map_or(factor.clone(), |s| s * &factor));
    }
    scale
}

/// What a projection's output `start`, one number for every channel, becomes on its way to the stream.
pub fn along_path(graph: &Graph, residual: &Residual, start: Array1<f64>) -> Array1<f64> {
    let outputs = start.len();
    let mut value = start.into_dyn();
    for &node in residual.before_joint() {
        match (constant_operand(graph, node), graph.operator(node).op_type.as_str()) {
            (Some(constant), "Mul") => value = value * constant,
            (Some(constant), "Add") => value = value + constant,
            _ => {}
        }
    }
    value.into_dimensionality().unwrap_or_else(|_| Array1::zeros(outputs))
}
