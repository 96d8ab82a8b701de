//! Numbers that are not finite: nothing that is measured with them means anything.

use half::{bf16, f16};
use thiserror::Error;

use crate::ir::{ElementType, Graph, Operator, Slot, Tensor};

/// A number that is not finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Odd {
    /// Its place among the elements, the last axis fastest.
    pub place: usize,
    /// The number.
    pub value: f64,
}

/// Something that was computed, and is not finite where all before it was.
#[derive(Clone, Debug, Error)]
#[error("{place}: {what} is {value}, and nothing can be learnt from that")]
pub struct NotFinite {
    /// The sublayer, unit or samples.
    pub place: String,
    /// The sum, score or weight.
    pub what: String,
    /// NaN, or an infinity.
    pub value: f64,
}

/// The first of the packed little-endian elements that is not finite, where they are floating-point numbers.
pub fn first_odd(element: ElementType, bytes: &[u8]) -> Option<Odd> {
    match element {
        ElementType::F32 => find(bytes, |b| f32::from_le_bytes(b).into()),
        ElementType::F64 => find(bytes, f64::from_le_bytes),
        ElementType::F16 => find(bytes, |b| f16::from_le_bytes(b).into()),
        ElementType::BF16 => find(bytes, |b| bf16::from_le_bytes(b).into()),
        _ => None,
    }
}

fn find<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Option<Odd> {
    let numbers = bytes.as_chunks::<N>().0.iter().map(|&b| number(b));
    numbers.enumerate().find(|(_, value)| !value.is_finite()).map(|(place, value)| Odd { place, value })
}

/// The first constant that is not finite, by its name: NaN anywhere, infinity in what products and normalisations
/// read. Elsewhere infinities have their uses, as in masks that are added to scores.
pub fn odd_weight(graph: &Graph) -> Option<(String, Odd)> {
    graph.constants().into_iter().find_map(|value| {
        let odd = first_odd_of(graph.constant(value)?)?;
        let mut readers = graph.consumers(value).into_iter().filter(|(_, slot)| matches!(slot, Slot::Input(_)));
        let is_wrong = odd.value.is_nan() || readers.any(|(node, _)| spreads(graph.operator(node)));
        is_wrong.then(|| (graph.name(value).to_string(), odd))
    })
}

fn first_odd_of(tensor: &Tensor) -> Option<Odd> {
    tensor.element().is_float().then(|| tensor.bytes().ok()).flatten().and_then(|b| first_odd(tensor.element(), &b))
}

/// Whether an operator sums over what it reads.
fn spreads(operator: &Operator) -> bool {
    !operator.is_standard() || operator.contracts() || operator.op_type.ends_with("Normalization")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::schema::ValueInfoProto;

    fn graph(op_type: &str, numbers: &[f64]) -> Graph {
        let mut g = Graph::new();
        let x = g.add_input(ValueInfoProto { name: Some("x".into()), ..Default::default() });
        let array = ndarray::ArrayD::from_shape_vec(vec![1, numbers.len()], numbers.to_vec()).unwrap();
        let w = g.add_constant("w", Tensor::from_floats(ElementType::F16, &array).unwrap());
        let y = g.add(Operator::new(op_type), &[x, w], "y");
        g.add_output(y);
        g
    }

    #[test]
    fn weights_that_are_not_finite_are_named_and_masks_are_left_alone() {
        let odd = |op, numbers: &[f64]| odd_weight(&graph(op, numbers));
        let (name, found) = odd("MatMul", &[1.0, f64::INFINITY]).unwrap();
        assert_eq!((name.as_str(), found), ("w", Odd { place: 1, value: f64::INFINITY }));
        assert!(odd("Add", &[f64::NAN]).is_some_and(|(_, odd)| odd.place == 0));
        assert!(odd("Add", &[0.0, f64::NEG_INFINITY]).is_none());
        assert!(odd("MatMul", &[1.0, 2.0]).is_none());
    }
}
