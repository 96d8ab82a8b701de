//! Where the scores of all tokens come from.

use super::{Found, Place};
use crate::ir::{Graph, NodeId, ValueId};
use crate::kv_cache;
use crate::rules::Decline;

/// Operators that make every score from one, or pick texts and places among them.
const EACH: [&str; 10] =
    ["Cast", "Identity", "Tanh", "Sigmoid", "Clip", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten"];

/// Arithmetic of scores and a constant.
const ARITHMETIC: [&str; 6] = ["Add", "Sub", "Mul", "Div", "Min", "Max"];

/// Notes the weights that `output` has its scores of all tokens from; nothing, where it has none.
///
/// # Errors
/// Where it is declared to have some, and it is not known how it comes to them.
pub(super) fn follow(graph: &Graph, output: ValueId, size: usize, found: &mut Found) -> Result<(), Decline> {
    let mut own = Found::default();
    let mut value = output;
    while let Some((node, _)) = graph.producer(value) {
        match step(graph, node, size, &mut own) {
            Step::Back(to) => value = to,
            Step::Done => {
                found.places.append(&mut own.places);
                found.readers.extend(own.readers);
                return Ok(());
            }
            Step::Unknown => break,
        }
    }
    let rank =
        graph.info(output).and_then(crate::signature::tensor_type).and_then(|t| Some(t.shape.as_ref()?.dim.len()));
    let last = rank.and_then(|rank| kv_cache::length(graph, output, rank.checked_sub(1)?));
    match last == Some(size as i64) {
        true => {
            let name = graph.name(output);
            Err(format!("the output {name:?} has a number for every token, and no product with a weight makes it")
                .into())
        }
        false => Ok(()),
    }
}

/// What a step back leads to.
enum Step {
    Back(ValueId),
    /// The product that makes the scores.
    Done,
    Unknown,
}

fn step(graph: &Graph, node: NodeId, size: usize, found: &mut Found) -> Step {
    let operator = graph.operator(node);
    let [first, second] = [operator.input(0), operator.input(1)];
    let name = operator.op_type.as_str();
    let back = |value: Option<ValueId>| value.map_or(Step::Unknown, Step::Back);
    match name {
        _ if EACH.contains(&name) && operator.is_standard() => back(first),
        "Reshape" => {
            let target = second.and_then(|shape| graph.constant(shape)?.to_i64().ok());
            if target.is_some_and(|target| target.last() == Some(&(size as i64))) {
                found.places.push(Place::Length { node, slot: 1 });
            }
            back(first)
        }
        _ if ARITHMETIC.contains(&name) => {
            let (Some(first), Some(second)) = (first, second) else { return Step::Unknown };
            let is_constant = |value| graph.constant(value).is_some();
            let (constant, other) = if is_constant(first) { (first, second) } else { (second, first) };
            let Some(dims) = graph.constant(constant).map(|constant| constant.dims()) else { return Step::Unknown };
            if let (Some(last), Some(&length)) = (dims.len().checked_sub(1), dims.last())
                && length > 1
                && found.add_entries(graph, constant, last, size).is_none()
            {
                return Step::Unknown;
            }
            found.readers.insert(node);
            Step::Back(other)
        }
        "MatMul" | "FusedMatMul" | "Gemm" => {
            let is_transposed = operator.int("transB", 0) != 0;
            let added = second.and_then(|weight| found.add_entries(graph, weight, usize::from(!is_transposed), size));
            if let Some(bias) = operator.input(2).filter(|_| name == "Gemm") {
                let last = graph.constant(bias).and_then(|bias| bias.dims().len().checked_sub(1));
                last.map(|last| found.add_entries(graph, bias, last, size));
            }
            found.readers.insert(node);
            added.map_or(Step::Unknown, |()| Step::Done)
        }
        _ => Step::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use ndarray::ArrayD;

    use super::*;
    use crate::ir::{ElementType, Operator, Tensor, attribute};
    use crate::signature::declare;

    fn graph(operator: Operator, dims: &[usize]) -> (Graph, ValueId) {
        let mut g = Graph::new();
        let x = g.add_input(declare("x", ElementType::F32, 2));
        let weight = Tensor::from_floats(ElementType::F32, &ArrayD::zeros(dims)).unwrap();
        let weight = g.add_constant("weight", weight);
        let y = g.add(operator, &[x, weight], "y");
        (g, y)
    }

    fn places(g: &Graph, output: ValueId) -> Result<Vec<Place>, Decline> {
        let mut found = Found::default();
        follow(g, output, 7, &mut found).map(|()| found.places)
    }

    #[test]
    fn columns_are_where_the_product_has_them() {
        let (g, y) = graph(Operator::new("MatMul"), &[3, 7]);
        let constant = g.find("weight").unwrap();
        assert_eq!(places(&g, y), Ok(vec![Place::Entries { constant, axis: 1 }]));
        let (g, y) = graph(Operator::new("Gemm").with(attribute::int("transB", 1)), &[7, 3]);
        assert_eq!(places(&g, y), Ok(vec![Place::Entries { constant, axis: 0 }]));
        let (g, y) = graph(Operator::new("MatMul"), &[3, 6]);
        assert_eq!(places(&g, y), Ok(vec![]), "classes, and not tokens");
    }

    #[test]
    fn scores_that_no_weight_makes_are_named() {
        let (mut g, y) = graph(Operator::new("CumSum"), &[]);
        g.set_info(y, Some(declare("y", ElementType::F32, 2)));
        assert_eq!(places(&g, y), Ok(vec![]));
        kv_cache::set_length(&mut g, y, 1, 7);
        assert!(places(&g, y).unwrap_err().0.contains("\"y\""));
    }
}
