//! Operator sets 13 to 20, written as set 21: what few new element types need. The function stays the same.

use super::upgrade::changed_within;
use crate::ir::{Graph, Model, NodeId, Tensor, attribute};

/// The set that a model becomes.
pub const NEWEST: i64 = 21;

/// The version of the format that came with it.
const FORMAT: i64 = 10;

/// Reductions whose axes became an input with version 18.
const REDUCTIONS: &[&str] = &[
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
];

/// What else means something else from a set on.
const CHANGED: &[(&str, i64)] = &[("GridSample", 20), ("DFT", 20), ("GroupNormalization", 21), ("Upsample", 21)];

/// Writes a model as one of set 21.
///
/// # Errors
/// The operator for which there is no way, and why.
pub fn raise(model: &mut Model) -> Result<(), (String, String)> {
    let Some(old) = model.opset("").filter(|&old| old < NEWEST) else { return Ok(()) };
    let graph = &mut model.graph;
    for node in graph.sorted() {
        let operator = graph.operator(node).clone();
        let op_type = operator.op_type.as_str();
        let is_changed = |name: &str| {
            let since = CHANGED.iter().find(|(changed, _)| *changed == name).map(|c| c.1);
            since.is_some_and(|since| old < since) || (old < 18 && (REDUCTIONS.contains(&name) || name == "Split"))
        };
        if let Some(inner) = changed_within(&operator, &is_changed) {
            return Err((graph.label(node), format!("has {inner} of operator set {old} in a subgraph")));
        }
        if !operator.is_standard() || !is_changed(op_type) {
            continue;
        }
        match op_type {
            "Split" => split(graph, node),
            _ if REDUCTIONS.contains(&op_type) => axes(graph, node),
            _ => {
                return Err((
                    graph.label(node),
                    format!("{op_type} of operator set {old} means something else in {NEWEST}"),
                ));
            }
        }
    }
    model.raise_opset(NEWEST, FORMAT);
    model.graph.checked("raising the operator set");
    Ok(())
}

/// Axes become an input.
fn axes(graph: &mut Graph, node: NodeId) {
    let Some(axes) = graph.operator(node).ints("axes").map(<[i64]>::to_vec) else { return };
    let axes = graph.add_constant("axes", Tensor::from_i64s(&[axes.len()], &axes));
    graph.operator_mut(node).attributes.retain(|a| a.name.as_deref() != Some("axes"));
    graph.set_input(node, 1, Some(axes));
}

/// A split into equal parts says into how many.
fn split(graph: &mut Graph, node: NodeId) {
    let operator = graph.operator(node);
    if operator.input(1).is_none() && operator.attribute("num_outputs").is_none() {
        let parts = operator.outputs().len() as i64;
        graph.operator_mut(node).attributes.push(attribute::int("num_outputs", parts));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Operator;
    use crate::testing::{B, S, Sketch, n};

    fn raised(operator: Operator, opset: i64) -> Result<(Operator, i64), (String, String)> {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let y = g.op(operator, &[x], &[B, S, n(4)]);
        g.graph.add_output(y);
        let mut model = Model::new(g.graph.clone(), opset);
        raise(&mut model)?;
        let node = model.graph.producer(y).unwrap().0;
        Ok((model.graph.operator(node).clone(), model.opset("").unwrap()))
    }

    #[test]
    fn axes_of_reductions_become_an_input_and_splits_say_into_how_many() {
        let mean = || Operator::new("ReduceMean").with(attribute::ints("axes", &[-1]));
        let (operator, opset) = raised(mean(), 17).unwrap();
        assert_eq!((operator.inputs().len(), operator.ints("axes"), opset), (2, None, NEWEST));
        let (operator, _) = raised(Operator::new("ReduceMean"), 17).unwrap();
        assert_eq!(operator.inputs().len(), 1, "over all axes");
        let (operator, _) = raised(Operator::new("Split"), 17).unwrap();
        assert_eq!(operator.int("num_outputs", 0), 1);
        let (operator, _) = raised(Operator::new("Relu"), 17).unwrap();
        assert!(operator.attributes.is_empty());
    }

    #[test]
    fn what_is_of_the_newest_set_stays_and_what_there_is_no_way_for_is_refused() {
        assert_eq!(raised(Operator::new("GridSample"), 21).unwrap().1, 21);
        let (_, why) = raised(Operator::new("GridSample"), 17).unwrap_err();
        assert!(why.contains("means something else"), "{why}");
    }
}
