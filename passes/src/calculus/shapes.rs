//! Symbolic shapes: what a session is told of inner values, so that it knows at once which of them can share memory.
//!
//! ONNX Runtime goes through all buffers that are free for every value that it makes room for, and one of unknown shape
//! fits nothing and stays free: of a graph of thousands of operators whose shapes are computed, forward and backward, most
//! of the time to make a session went there.

use crate::ir::{Graph, Model, ValueId};
use crate::observe::Observation;
use crate::signature;

/// Declares a value to have the shape that another was seen to have, where nothing is known of it.
pub(crate) fn declare_like(graph: &mut Graph, seen: &Observation, value: ValueId, like: ValueId) {
    if graph.info(value).is_some() || graph.constant(value).is_some() {
        return;
    }
    if let (Some(element), Some(symbols)) = (seen.element(like), seen.symbols(like)) {
        let info = signature::declare_symbols(graph.name(value), element, symbols);
        graph.set_info(value, Some(info));
    }
}

/// Declares the values of a part as they were seen, and lists all that is declared. What was seen need not hold for every
/// input: whoever runs the part has to do without where it does not.
pub(crate) fn declare(part: &mut Model, seen: &Observation) {
    let nodes = part.graph.sorted();
    let made: Vec<ValueId> = nodes.iter().flat_map(|&n| part.graph.operator(n).outputs()).flatten().copied().collect();
    for value in made {
        declare_like(&mut part.graph, seen, value, value);
    }
    for value in part.graph.inputs().to_vec() {
        let info = part.graph.info(value).and_then(signature::tensor_type);
        let is_open = info.and_then(|t| t.shape.as_ref()).is_some_and(|s| s.dim.iter().all(|d| d.value.is_none()));
        if is_open && seen.dims(value).is_some() {
            part.graph.set_info(value, None);
            declare_like(&mut part.graph, seen, value, value);
        }
    }
    part.list_declared();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::schema::tensor_shape_proto::dimension::Value;
    use crate::ir::{ElementType, Operator};
    use crate::testing::{B, S, Sketch, n};

    fn symbols(graph: &Graph, value: ValueId) -> Vec<Option<Value>> {
        let shape = graph.info(value).and_then(signature::tensor_type).and_then(|t| t.shape.as_ref());
        shape.map(|s| s.dim.iter().map(|d| d.value.clone()).collect()).unwrap_or_default()
    }

    #[test]
    fn axes_are_called_as_those_of_the_inputs_they_follow_and_never_given_a_number() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)]);
        let y = g.op(Operator::new("Relu"), &[x], &[B, S, n(4)]);
        let z = g.op(Operator::new("Relu"), &[y], &[B, S, n(4)]);
        g.graph.set_outputs(&[z]);
        let unknown = g.graph.add_input(signature::declare("sum_so_far", ElementType::F32, 2));
        let (mut part, seen) = (g.model(), g.seen());
        declare(&mut part, &seen);
        let named = |name: &str| Some(Value::DimParam(name.into()));
        let expected = vec![named("batch"), named("sequence"), named("kprune_4_4")];
        for value in [x, y, z] {
            assert_eq!(symbols(&part.graph, value), expected);
        }
        assert_eq!(symbols(&part.graph, unknown), [None, None], "what was not seen is left as it was");
        assert!(part.declares_shapes());
        let plain = part.without_declared_shapes();
        assert!(!plain.declares_shapes());
        assert_eq!(symbols(&plain.graph, x), [None, None, None]);
    }

    #[test]
    fn what_is_declared_already_stays() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, n(4)]);
        let y = g.op(Operator::new("Relu"), &[x], &[B, n(4)]);
        let own = signature::declare_symbols(g.graph.name(y), ElementType::F32, vec!["N".into(), "M".into()]);
        g.graph.set_info(y, Some(own.clone()));
        let seen = g.seen();
        declare_like(&mut g.graph, &seen, y, x);
        assert_eq!(g.graph.info(y), Some(&own));
    }
}
