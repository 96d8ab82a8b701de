//! The numbers that a model's constants hold.

use kprune_passes::ir::{ElementType, Model, Tensor};

/// Numbers in the constants of a model: of floating-point types, or quantised to eight bits or fewer.
pub fn parameters(model: &Model) -> usize {
    weights(model).map(|t| t.count()).sum()
}

/// The share of them that is zero.
pub fn zeros(model: &Model) -> f64 {
    let zeros: usize = weights(model).map(zeros_of).sum();
    zeros as f64 / parameters(model).max(1) as f64
}

fn weights(model: &Model) -> impl Iterator<Item = &Tensor> {
    let constants = model.graph.initializers().into_iter().filter_map(|v| model.graph.constant(v));
    constants.filter(|t| {
        let element = t.element();
        element.is_float() || (1..=8).contains(&element.bits()) && element != ElementType::Bool
    })
}

fn zeros_of(tensor: &Tensor) -> usize {
    let Ok(bytes) = tensor.bytes() else { return 0 };
    match tensor.element() {
        // Minus zero is one too.
        ElementType::F32 => bytes.as_chunks::<4>().0.iter().filter(|b| f32::from_le_bytes(**b) == 0.0).count(),
        element if element.is_float() => tensor.to_f64().map_or(0, |n| n.iter().filter(|x| **x == 0.0).count()),
        element if element.bits() == 4 => {
            let halves = bytes.iter().flat_map(|b| [b & 0xf, b >> 4]).take(tensor.count());
            halves.filter(|half| *half == 0).count()
        }
        _ => bytes.iter().filter(|b| **b == 0).count(),
    }
}
