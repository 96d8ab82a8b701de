//! Low-rank branches beside a weight (LoRA): x W + s (x A) B is x (W + s A B), as people merge adapters before they deploy
//! them. The weight and the branch must read the same value.

use ndarray::{Array2, Ix2};

use crate::ir::{Graph, NodeId, Slot, Tensor, ValueId};

/// Merges constant low-rank branches into the weights beside them; returns how many.
pub fn merge(graph: &mut Graph) -> usize {
    let mut merged = 0;
    for node in graph.sorted() {
        if graph.contains(node) && graph.operator(node).is("Add") && merge_at(graph, node).is_some() {
            merged += 1;
        }
    }
    graph.remove_dead();
    graph.checked("merging low-rank branches");
    merged
}

/// Merges the branch that an addition adds; `None` where there is none.
fn merge_at(graph: &mut Graph, add: NodeId) -> Option<()> {
    let sum = graph.operator(add).output(0)?;
    let (a, b) = (graph.operator(add).input(0)?, graph.operator(add).input(1)?);
    let (branch, other) =
        [(a, b), (b, a)].into_iter().find_map(|(branch, other)| Some((Branch::at(graph, branch)?, other)))?;
    let (product, weight) = weight_beside(graph, other, branch.reads)?;
    let is_transposed = graph.operator(product).int("transB", 0) != 0;
    let stored = graph.constant(weight)?;
    let update = if is_transposed { branch.update.reversed_axes() } else { branch.update };
    let numbers = stored.to_f64().ok()?.into_dimensionality::<Ix2>().ok()?;
    if numbers.dim() != update.dim() {
        return None;
    }
    let tensor = Tensor::from_floats(stored.element(), &(numbers + update).into_dyn()).ok()?.placed_like(stored);
    match graph.consumers(weight).len() {
        1 => graph.set_constant(weight, tensor.named(graph.name(weight))),
        _ => {
            let own = graph.add_constant(&format!("{}_merged", graph.name(weight)), tensor);
            graph.set_input(product, 1, Some(own));
        }
    }
    graph.take_over(sum, other);
    Some(())
}

/// s (x A) B, with constant s, A and B.
struct Branch {
    /// x.
    reads: ValueId,
    /// s A B.
    update: Array2<f64>,
}

impl Branch {
    fn at(graph: &Graph, value: ValueId) -> Option<Self> {
        let (value, outer) = unscaled(graph, value)?;
        let (inner, up) = product(graph, value)?;
        let (inner, middle) = unscaled(graph, inner)?;
        let (reads, down) = product(graph, inner)?;
        (down.ncols() == up.nrows()).then(|| Self { reads, update: down.dot(&up) * outer * middle })
    }
}

/// What a value is a constant multiple of, and the factor; nobody else reads what lies between.
fn unscaled(graph: &Graph, value: ValueId) -> Option<(ValueId, f64)> {
    let mut at = (value, 1.0);
    loop {
        let (node, _) = sole(graph, at.0)?;
        let operator = graph.operator(node);
        let scalar = |slot| {
            let tensor = graph.constant(operator.input(slot)?)?;
            (tensor.count() == 1 && tensor.dims().len() < 2).then(|| tensor.to_f64().ok()?.first().copied()).flatten()
        };
        at = match operator.op_type.as_str() {
            "Mul" if scalar(1).is_some() => (operator.input(0)?, at.1 * scalar(1)?),
            "Mul" if scalar(0).is_some() => (operator.input(1)?, at.1 * scalar(0)?),
            "Div" if scalar(1).is_some() => (operator.input(0)?, at.1 / scalar(1)?),
            "Identity" => (operator.input(0)?, at.1),
            _ => return Some(at),
        };
    }
}

/// A product with a constant matrix, that nobody else reads: what it reads, and the matrix.
fn product(graph: &Graph, value: ValueId) -> Option<(ValueId, Array2<f64>)> {
    let (node, _) = sole(graph, value)?;
    let operator = graph.operator(node);
    let matrix = || graph.constant(operator.input(1)?)?.to_f64().ok()?.into_dimensionality::<Ix2>().ok();
    operator.is("MatMul").then(|| Some((operator.input(0)?, matrix()?))).flatten()
}

/// The product with a constant weight that reads `reads` and reaches `value` through additions of constants.
fn weight_beside(graph: &Graph, mut value: ValueId, reads: ValueId) -> Option<(NodeId, ValueId)> {
    loop {
        let (node, _) = sole(graph, value)?;
        let operator = graph.operator(node);
        let (a, b) = (operator.input(0)?, operator.input(1)?);
        let is_constant = |v: ValueId| graph.constant(v).is_some();
        value = match operator.op_type.as_str() {
            "Add" if is_constant(b) => a,
            "Add" if is_constant(a) => b,
            "MatMul" if a == reads && is_constant(b) => return Some((node, b)),
            "Gemm" if a == reads && is_constant(b) => {
                let is_plain = operator.int("transA", 0) == 0 && operator.float("alpha", 1.0) == 1.0;
                return is_plain.then_some((node, b));
            }
            _ => return None,
        };
    }
}

/// The operator that makes a value which one operator reads, and no subgraph or output.
fn sole(graph: &Graph, value: ValueId) -> Option<(NodeId, usize)> {
    match graph.consumers(value)[..] {
        [(_, Slot::Input(_))] if !graph.outputs().contains(&value) => graph.producer(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{B, Sketch, n};

    /// x W + bias + scale (x A) B; the branch reads `other` where it is given.
    fn adapted(branch_reads_x: bool) -> (Sketch, ValueId) {
        let mut g = Sketch::default();
        let (x, z) = (g.input("x", &[B, n(4)]), g.input("z", &[B, n(4)]));
        let [w, a, b] = [("w", [4, 3]), ("a", [4, 2]), ("b", [2, 3])].map(|(name, dims)| g.weight(name, &dims));
        let (bias, scale) = (g.weight("bias", &[3]), g.weight("scale", &[]));
        let product = g.on("MatMul", &[x, w]);
        let down = g.on("MatMul", &[if branch_reads_x { x } else { z }, a]);
        let up = g.on("MatMul", &[down, b]);
        let scaled = g.on("Mul", &[up, scale]);
        let biased = g.on("Add", &[product, bias]);
        let y = g.on("Add", &[biased, scaled]);
        g.graph.add_output(y);
        (g, y)
    }

    #[test]
    fn a_branch_beside_a_weight_is_merged_into_it() {
        let (g, y) = adapted(true);
        let mut model = g.model();
        let before = |name: &str| {
            let value = model.graph.find(name).unwrap();
            model.graph.constant(value).unwrap().to_f64().unwrap()
        };
        let matrix = |name| before(name).into_dimensionality::<Ix2>().unwrap();
        let expected = matrix("w") + matrix("a").dot(&matrix("b")) * before("scale").first().copied().unwrap();
        assert_eq!(merge(&mut model.graph), 1);
        assert_eq!((model.graph.sorted().len(), model.graph.outputs()), (2, &[y][..]));
        let merged = model.graph.constant(model.graph.find("w").unwrap()).unwrap().to_f64().unwrap();
        assert!((merged.into_dimensionality::<Ix2>().unwrap() - expected).iter().all(|d| d.abs() < 1e-6));
    }

    #[test]
    fn a_branch_that_reads_something_else_stays() {
        let (g, _) = adapted(false);
        let mut model = g.model();
        let before = model.graph.sorted().len();
        assert_eq!(merge(&mut model.graph), 0);
        assert_eq!(model.graph.sorted().len(), before);
    }
}
