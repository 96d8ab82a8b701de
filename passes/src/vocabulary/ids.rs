//! Who reads token ids.

use std::collections::HashSet;

use super::{Found, Place};
use crate::ir::{Graph, NodeId, Slot, ValueId};
use crate::rules::Decline;
use crate::signature::table_read_by;

/// Operators that hand ids on as they are, in other places.
const MOVES: [&str; 12] = [
    "Cast",
    "Identity",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Transpose",
    "Expand",
    "Tile",
    "Split",
    "Gather",
];

/// Operators that compare ids, for which their order is enough.
const COMPARISONS: [&str; 5] = ["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"];

/// Operators that look at the order of ids, or not at them at all.
const ENDS: [&str; 4] = ["Shape", "Size", "ArgMax", "ArgMin"];

/// Notes the tables that are read by `ids`, and the ids that they are compared with.
pub(super) fn follow(graph: &Graph, ids: ValueId, size: usize, found: &mut Found) -> Result<(), Decline> {
    let mut open = vec![ids];
    let mut seen = HashSet::new();
    while let Some(value) = open.pop() {
        if !seen.insert(value) {
            continue;
        }
        for (node, slot) in graph.consumers(value) {
            match slot {
                Slot::Input(slot) => open.extend(read(graph, (node, slot), size, found)?),
                Slot::Capture => return Err(unknown(graph, node)),
                Slot::Output => return Err("token ids are an output of the model".into()),
            }
        }
    }
    Ok(())
}

fn unknown(graph: &Graph, node: NodeId) -> Decline {
    let op_type = &graph.operator(node).op_type;
    format!("{op_type} {} reads token ids, and needs their numbers", graph.label(node)).into()
}

/// Notes what an operator that reads ids at `slot` does with them; returns the ids that it makes.
fn read(graph: &Graph, (node, slot): (NodeId, usize), size: usize, found: &mut Found) -> Result<Vec<ValueId>, Decline> {
    let operator = graph.operator(node);
    let outputs = || operator.outputs().iter().flatten().copied().collect();
    if let Some(table) = table_read_by(graph, node, slot) {
        found.readers.insert(node);
        let added = found.add_entries(graph, table, 0, size);
        return added.map(|()| Vec::new()).ok_or_else(|| unknown(graph, node));
    }
    match operator.op_type.as_str() {
        _ if !operator.is_standard() => Err(unknown(graph, node)),
        "Cast" if operator.int("to", 0) == BOOL => {
            // It asks which ids are 0.
            found.named.insert(0);
            Ok(Vec::new())
        }
        name if MOVES.contains(&name) && slot == 0 => Ok(outputs()),
        name if ENDS.contains(&name) => Ok(Vec::new()),
        name if COMPARISONS.contains(&name) => {
            compare(graph, (node, 1 - slot.min(1)), size, found).map(|()| Vec::new())
        }
        "Where" if slot > 0 => compare(graph, (node, 3 - slot.min(2)), size, found).map(|()| outputs()),
        _ => Err(unknown(graph, node)),
    }
}

/// The code of truth values, in Cast.
const BOOL: i64 = 9;

/// Notes the ids that a constant beside other ids holds.
fn compare(graph: &Graph, (node, slot): (NodeId, usize), size: usize, found: &mut Found) -> Result<(), Decline> {
    let constant = graph.operator(node).input(slot).and_then(|value| graph.constant(value));
    let ids = constant.and_then(|constant| constant.to_i64().ok()).ok_or_else(|| unknown(graph, node))?;
    let named = ids.iter().filter_map(|&id| usize::try_from(id).ok().filter(|id| *id < size));
    found.named.extend(named);
    found.places.push(Place::Ids { node, slot });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{ElementType, Operator, Tensor, attribute};
    use crate::signature::declare;

    fn found(operator: Operator, constant: i64, at: usize) -> Result<Vec<usize>, Decline> {
        let mut g = Graph::new();
        let ids = g.add_input(declare("ids", ElementType::I64, 2));
        let constant = g.add_constant("constant", Tensor::from_i64s(&[], &[constant]));
        let inputs = if at == 0 { [constant, ids] } else { [ids, constant] };
        let y = g.add(operator, &inputs, "y");
        g.add_output(y);
        let mut found = Found::default();
        follow(&g, ids, 10, &mut found).map(|()| found.named.into_iter().collect())
    }

    #[test]
    fn ids_that_others_are_compared_with_must_stay() {
        assert_eq!(found(Operator::new("Equal"), 3, 1), Ok(vec![3]));
        assert_eq!(found(Operator::new("Greater"), 0, 0), Ok(vec![0]));
        assert_eq!(found(Operator::new("Equal"), -100, 1), Ok(vec![]), "no token at all");
        assert!(found(Operator::new("Mod"), 7, 1).is_err());
    }

    #[test]
    fn truth_values_of_ids_ask_for_the_first() {
        let mut g = Graph::new();
        let ids = g.add_input(declare("ids", ElementType::I64, 2));
        let y = g.add(Operator::new("Cast").with(attribute::int("to", BOOL)), &[ids], "y");
        g.add_output(y);
        let mut found = Found::default();
        follow(&g, ids, 10, &mut found).unwrap();
        assert!(found.named.contains(&0));
    }
}
