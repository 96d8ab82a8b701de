//! What a graph demands whatever it is given: a file of a few kilobytes can ask for more than any machine has.

use crate::ir::schema::GraphProto;
use crate::ir::{Graph, NodeId, Operator, ValueId};

/// No value that a constant gives the shape of may have more elements.
const MOST_ELEMENTS: usize = 1 << 28;

/// A loop that nothing ends before this many rounds is taken for one without an end.
const MOST_ROUNDS: i64 = 1 << 24;

/// The first operator that demands too much, and what.
pub fn excessive(graph: &Graph) -> Option<(NodeId, String)> {
    graph.sorted().into_iter().find_map(|node| Some((node, demand(graph, graph.operator(node))?)))
}

fn demand(graph: &Graph, operator: &Operator) -> Option<String> {
    let elements = match operator.op_type.as_str() {
        _ if !operator.is_standard() => None,
        "ConstantOfShape" => integers(graph, operator, 0).map(|dims| product(&dims)),
        "Expand" | "Tile" => integers(graph, operator, 1).map(|dims| product(&dims)),
        "OneHot" => integers(graph, operator, 1).map(|depth| product(&depth)),
        "Pad" => {
            integers(graph, operator, 1).map(|pads| pads.iter().fold(0, |sum: usize, &n| sum.saturating_add(size(n))))
        }
        "Resize" => integers(graph, operator, 3).map(|dims| product(&dims)),
        "Range" => range(graph, operator),
        "RandomNormal" | "RandomUniform" => operator.ints("shape").map(product),
        "Loop" if runs_for_ever(graph, operator) => return Some("it is a loop that nothing ends".into()),
        _ => None,
    };
    elements.filter(|&n| n > MOST_ELEMENTS).map(|n| format!("it asks for {n} elements or more"))
}

fn integers(graph: &Graph, operator: &Operator, slot: usize) -> Option<Vec<i64>> {
    let constant = graph.constant(operator.input(slot)?)?;
    Some(constant.to_i64().ok()?.iter().copied().collect())
}

fn size(n: i64) -> usize {
    usize::try_from(n).unwrap_or(0)
}

/// The product of lengths, those of 0 and below left out: they mean something else, or nothing.
fn product(dims: &[i64]) -> usize {
    dims.iter().map(|&n| size(n).max(1)).fold(1, usize::saturating_mul)
}

fn range(graph: &Graph, operator: &Operator) -> Option<usize> {
    let number = |slot| integers(graph, operator, slot)?.first().copied();
    let (start, end, step) = (number(0)?, number(1)?, number(2)?);
    let length = end.saturating_sub(start).checked_div(step)?;
    Some(size(length))
}

/// Whether a loop has no end in sight: its number of rounds is not given or beyond all reason, and the condition by
/// which it goes on is never false.
fn runs_for_ever(graph: &Graph, operator: &Operator) -> bool {
    let rounds = match operator.input(0) {
        Some(_) => integers(graph, operator, 0).and_then(|n| n.first().copied()),
        None => Some(i64::MAX),
    };
    let body = operator.attribute("body").and_then(|a| a.g.as_ref());
    let goes_on = |value: Option<ValueId>| value.is_none_or(|v| is_true(graph, v));
    rounds.is_some_and(|n| n > MOST_ROUNDS) && goes_on(operator.input(1)) && body.is_some_and(never_stops)
}

fn is_true(graph: &Graph, value: ValueId) -> bool {
    let constant = graph.constant(value).and_then(|t| t.to_i64().ok());
    constant.is_some_and(|t| t.iter().all(|&n| n != 0))
}

/// Whether the body of a loop passes its condition on as it is, or as a constant.
fn never_stops(body: &GraphProto) -> bool {
    let Some(condition) = body.input.get(1).map(|i| i.name()) else { return false };
    let Some(mut made) = body.output.first().map(|o| o.name()) else { return false };
    // At most as many steps as there are operators, whatever circle they form.
    for _ in 0..=body.node.len() {
        if made == condition || body.initializer.iter().any(|t| t.name() == made) {
            return true;
        }
        let Some(maker) = body.node.iter().find(|n| n.output.iter().any(|o| o == made)) else { return false };
        match maker.op_type.as_deref() {
            Some("Constant") => return true,
            Some("Identity" | "Cast") => made = maker.input.first().map_or("", String::as_str),
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Tensor;
    use crate::ir::schema::{AttributeProto, NodeProto, ValueInfoProto};

    fn expanded(dims: &[i64]) -> Graph {
        let mut g = Graph::new();
        let one = g.add_constant("one", Tensor::from_i64s(&[1], &[1]));
        let shape = g.add_constant("shape", Tensor::from_i64s(&[dims.len()], dims));
        let y = g.add(Operator::new("Expand"), &[one, shape], "y");
        g.add_output(y);
        g
    }

    #[test]
    fn shapes_that_no_machine_has_room_for_are_found() {
        assert!(excessive(&expanded(&[4, 1 << 27])).is_some_and(|(_, why)| why.contains("536870912")));
        assert!(excessive(&expanded(&[i64::MAX, i64::MAX])).is_some());
        assert!(excessive(&expanded(&[-1, 3, 1024, 1024])).is_none());
    }

    fn looped(rounds: Option<i64>, stops: bool) -> Graph {
        let named = |name: &str| ValueInfoProto { name: Some(name.into()), ..Default::default() };
        let node = NodeProto {
            op_type: Some(if stops { "Less" } else { "Identity" }.into()),
            input: vec!["c".into()],
            output: vec!["c2".into()],
            ..Default::default()
        };
        let body = GraphProto {
            node: vec![node],
            input: vec![named("i"), named("c")],
            output: vec![named("c2")],
            ..Default::default()
        };
        let body = AttributeProto { name: Some("body".into()), g: Some(body), ..Default::default() };
        let mut g = Graph::new();
        let mut operator = Operator::new("Loop").with(body);
        let rounds = rounds.map(|n| g.add_constant("rounds", Tensor::from_i64s(&[], &[n])));
        operator.inputs = vec![rounds, None];
        g.insert(operator);
        g
    }

    #[test]
    fn loops_without_an_end_are_found() {
        assert!(excessive(&looped(None, false)).is_some());
        assert!(excessive(&looped(Some(1 << 62), false)).is_some());
        assert!(excessive(&looped(Some(1 << 62), true)).is_none(), "as exporters write while loops");
        assert!(excessive(&looped(Some(12), false)).is_none());
    }
}
