//! Constants read directly: an exporter that shares a constant between layers may pass it through
//! `Identity`, behind which nobody can see that it is one.

use crate::ir::Graph;

/// Makes operators read a constant itself where they read an `Identity` of it.
pub fn fold_identities(graph: &mut Graph) {
    for node in graph.sorted() {
        let operator = graph.operator(node);
        if !operator.is("Identity") {
            continue;
        }
        let constant = operator.input(0).filter(|&v| graph.constant(v).is_some());
        if let (Some(input), Some(output)) = (constant, operator.output(0)) {
            graph.replace_reads(output, input);
        }
    }
    graph.remove_dead();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Operator, Tensor};
    use crate::onnx::schema::ValueInfoProto;

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
        fold_identities(&mut g);
        assert_eq!(g.sorted().len(), 1);
        assert_eq!(g.operator(g.sorted()[0]).input(1), Some(c));
    }

    #[test]
    fn identities_of_activations_and_of_outputs_stay() {
        let (mut g, x) = graph();
        let c = g.add_constant("c", Tensor::from_i64s(&[1], &[7]));
        let through = g.add(Operator::new("Identity"), &[x], "through");
        let named = g.add(Operator::new("Identity"), &[c], "named");
        g.add_output(through);
        g.add_output(named);
        fold_identities(&mut g);
        assert_eq!(g.sorted().len(), 2);
    }
}
