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
