//! Constants read directly: an exporter may pass one that layers share through `Identity`, or leave a
//! weight to be transposed at run time, and nobody downstream can see that it is a constant.

use std::collections::HashMap;

use crate::ir::{Graph, Operator, Slot, ValueId};

/// Makes operators read a constant itself where they read an `Identity` or a `Transpose` of it. What is tied stays tied: a
/// constant that others read as it is, as an embedding that is the weight of the head too, is not turned, which would
/// store it twice.
pub fn fold_constants(graph: &mut Graph) {
    let mut turned: HashMap<(ValueId, Vec<usize>), ValueId> = HashMap::new();
    for node in graph.sorted() {
        let operator = graph.operator(node).clone();
        let constant = operator.input(0).filter(|&v| graph.constant(v).is_some());
        let (Some(input), Some(output)) = (constant, operator.output(0)) else { continue };
        if operator.is("Identity") {
            graph.replace_reads(output, input);
        } else if operator.is("Transpose")
            && feeds_products(graph, output)
            && let Some(order) = order(graph, &operator, input)
        {
            let known = turned.get(&(input, order.clone())).copied();
            let own = || is_only_turned(graph, input).then(|| transposed(graph, &order, input)).flatten();
            if let Some(value) = known.or_else(own) {
                turned.insert((input, order), value);
                graph.replace_reads(output, value);
            }
        }
    }
    graph.remove_dead();
    graph.checked("folding constants");
}

/// Gives every matrix product a weight of its own where several share one.
pub fn untie(graph: &mut Graph) {
    for value in graph.initializers() {
        let Some(tensor) = graph.constant(value).filter(|t| t.dims().len() > 1).cloned() else { continue };
        let is_weight =
            |reader: &(crate::ir::NodeId, Slot)| reader.1 == Slot::Input(1) && graph.operator(reader.0).is_product();
        let readers: Vec<_> = graph.consumers(value).into_iter().filter(is_weight).skip(1).collect();
        for (node, _) in readers {
            let hint = format!("{}_untied", graph.name(value));
            let own = graph.add_constant(&hint, tensor.clone().placed_like(&tensor));
            graph.set_input(node, 1, Some(own));
        }
    }
    graph.checked("untying weights");
}

/// Whether only matrix products read a value.
fn feeds_products(graph: &Graph, value: ValueId) -> bool {
    let is_product = |reader: &(crate::ir::NodeId, Slot)| {
        matches!(reader.1, Slot::Input(_)) && graph.operator(reader.0).is_product()
    };
    graph.consumers(value).iter().all(is_product)
}

/// Whether everything that reads a constant turns it for products.
fn is_only_turned(graph: &Graph, constant: ValueId) -> bool {
    let turns = |(node, slot): &(crate::ir::NodeId, Slot)| {
        let operator = graph.operator(*node);
        let turned = operator.output(0).filter(|_| matches!(slot, Slot::Input(_)) && operator.is("Transpose"));
        turned.is_some_and(|turned| feeds_products(graph, turned))
    };
    graph.consumers(constant).iter().all(turns)
}

/// The order of axes that a `Transpose` of a constant gives.
fn order(graph: &Graph, operator: &Operator, input: ValueId) -> Option<Vec<usize>> {
    match operator.ints("perm") {
        Some(perm) => perm.iter().map(|&a| usize::try_from(a).ok()).collect(),
        None => Some((0..graph.constant(input)?.dims().len()).rev().collect()),
    }
}

fn transposed(graph: &mut Graph, order: &[usize], input: ValueId) -> Option<ValueId> {
    let tensor = graph.constant(input)?;
    let turned = tensor.transposed(order).ok()?.placed_like(tensor);
    let hint = format!("{}_transposed", graph.name(input));
    Some(graph.add_constant(&hint, turned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::schema::ValueInfoProto;
    use crate::ir::{Operator, Tensor};

    fn graph() -> (Graph, crate::ir::ValueId) {
        let mut g = Graph::new();
        let x = g.add_input(ValueInfoProto { name: Some("x".into()), ..Default::default() });
        (g, x)
    }

    #[test]
    fn identities_of_constants_go() {
        let (mut g, x) = graph();
        let c = g.add_constant("c", Tensor::from_i64s(&[1], &[7]));
        let first = g.add(Operator::new("Identity"), &[c], "first");
        let second = g.add(Operator::new("Identity"), &[first], "second");
        let y = g.add(Operator::new("Add"), &[x, second], "y");
        g.add_output(y);
        fold_constants(&mut g);
        assert_eq!(g.sorted().len(), 1);
        assert_eq!(g.operator(g.sorted()[0]).input(1), Some(c));
    }

    #[test]
    fn a_weight_that_is_turned_for_products_is_stored_turned() {
        for (reader, folded) in [("MatMul", true), ("Add", false)] {
            let (mut g, x) = graph();
            let w = g.add_constant("w", Tensor::from_i64s(&[2, 3], &[1, 2, 3, 4, 5, 6]));
            let turned = g.add(Operator::new("Transpose"), &[w], "turned");
            let y = g.add(Operator::new(reader), &[x, turned], "y");
            g.add_output(y);
            fold_constants(&mut g);
            let read = g.operator(g.producer(y).unwrap().0).input(1).unwrap();
            let constant = g.constant(read).map(|t| t.to_i64().unwrap().iter().copied().collect::<Vec<_>>());
            assert_eq!(constant, folded.then(|| vec![1, 4, 2, 5, 3, 6]), "{reader}");
        }
    }

    #[test]
    fn a_weight_that_is_tied_to_a_table_is_not_stored_twice() {
        let (mut g, x) = graph();
        let table = g.add_constant("table", Tensor::from_i64s(&[2, 3], &[1, 2, 3, 4, 5, 6]));
        let row = g.add(Operator::new("Gather"), &[table, x], "row");
        let turned = g.add(Operator::new("Transpose"), &[table], "turned");
        let y = g.add(Operator::new("MatMul"), &[row, turned], "y");
        g.add_output(y);
        fold_constants(&mut g);
        assert_eq!((g.sorted().len(), g.initializers()), (3, vec![table]));
    }

    #[test]
    fn layers_that_turn_one_weight_still_share_it() {
        let (mut g, x) = graph();
        let w = g.add_constant("w", Tensor::from_i64s(&[2, 2], &[1, 2, 3, 4]));
        let mut y = x;
        for layer in ["first", "second"] {
            let turned = g.add(Operator::new("Transpose"), &[w], layer);
            y = g.add(Operator::new("MatMul"), &[y, turned], layer);
        }
        g.add_output(y);
        fold_constants(&mut g);
        assert_eq!((g.sorted().len(), g.initializers().len()), (2, 1));
    }

    #[test]
    fn identities_of_activations_and_of_outputs_stay() {
        let (mut g, x) = graph();
        let c = g.add_constant("c", Tensor::from_i64s(&[1], &[7]));
        let through = g.add(Operator::new("Identity"), &[x], "through");
        let named = g.add(Operator::new("Identity"), &[c], "named");
        g.add_output(through);
        g.add_output(named);
        fold_constants(&mut g);
        assert_eq!(g.sorted().len(), 2);
    }
}
