//! Einsum as what it is: matrix products between transpositions, in the file too, so that every pass and every count
//! sees a product.
//!
//! Of two operands with labels in both, in the result or not, those in all three are batch axes, those in both operands
//! alone are summed over, and the others belong to one operand. Where there are several of a kind, they are folded into
//! one axis; that takes constant lengths, which a constant operand has.

use crate::ir::{Graph, NodeId, Operator, Tensor, ValueId, attribute};
use crate::rules::Decline;

/// Writes every Einsum of one or two operands as products; returns how many.
pub fn as_products(graph: &mut Graph) -> usize {
    let nodes: Vec<NodeId> = graph.sorted().into_iter().filter(|&n| graph.operator(n).is("Einsum")).collect();
    let written = nodes.into_iter().filter(|&node| as_product(graph, node).is_ok()).count();
    graph.remove_dead();
    graph.checked("writing Einsum as products");
    written
}

/// Labels of axes, in order.
type Labels = Vec<char>;

/// A value with labels for its axes.
#[derive(Clone, Debug)]
struct Operand {
    value: ValueId,
    labels: Labels,
}

fn as_product(graph: &mut Graph, node: NodeId) -> Result<(), Decline> {
    let operator = graph.operator(node).clone();
    let (operands, result) = parsed(operator.text("equation", ""))?;
    let values: Vec<ValueId> = operator.inputs().iter().copied().collect::<Option<_>>().ok_or("lacks an operand")?;
    if values.len() != operands.len() {
        return Err("has other operands than its equation".into());
    }
    let output = operator.output(0).ok_or("has no output")?;
    let operands: Vec<Operand> =
        values.into_iter().zip(operands).map(|(value, labels)| Operand { value, labels }).collect();
    let made = match &operands[..] {
        [only] if is_order_of(&only.labels, &result) => arranged(graph, only, &result)?,
        [left, right] => product(graph, left, right, &result)?,
        _ => return Err("has more than two operands, or sums over one".into()),
    };
    if made == operator.inputs()[0].ok_or("lacks an operand")? {
        return Err("does nothing".into());
    }
    graph.take_over(output, made);
    Ok(())
}

/// The labels of the operands and of the result.
fn parsed(equation: &str) -> Result<(Vec<Labels>, Labels), Decline> {
    let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = equation.split_once("->").map_or((equation.as_str(), None), |(l, r)| (l, Some(r)));
    let operands: Vec<Labels> = left.split(',').map(|labels| labels.chars().collect()).collect();
    let all: Labels = operands.concat();
    let result = right.map_or_else(
        || {
            // Without an arrow: labels that occur once, in alphabetical order.
            let mut once: Labels =
                all.iter().copied().filter(|c| all.iter().filter(|o| *o == c).count() == 1).collect();
            once.sort_unstable();
            once
        },
        |right| right.chars().collect(),
    );
    let repeats = |labels: &Labels| labels.iter().enumerate().any(|(i, c)| labels[..i].contains(c));
    if !all.iter().chain(&result).all(|c| c.is_ascii_alphabetic()) || operands.iter().any(repeats) || repeats(&result) {
        return Err("has an ellipsis or a label twice".into());
    }
    Ok((operands, result))
}

fn is_order_of(labels: &Labels, others: &Labels) -> bool {
    labels.len() == others.len() && labels.iter().all(|c| others.contains(c))
}

fn product(graph: &mut Graph, left: &Operand, right: &Operand, result: &Labels) -> Result<ValueId, Decline> {
    // A weight stands on the right; of two values, the one that the result's last axis belongs to.
    let swaps = match (graph.constant(left.value), graph.constant(right.value)) {
        (Some(_), None) => true,
        (None, Some(_)) => false,
        _ => result.last().is_some_and(|last| left.labels.contains(last) && !right.labels.contains(last)),
    };
    let (left, right) = if swaps { (right, left) } else { (left, right) };
    let of = |operand: &Operand, in_other: bool, in_result: bool| -> Labels {
        let other = if operand.labels == left.labels { right } else { left };
        let belongs = |c: &&char| other.labels.contains(c) == in_other && result.contains(c) == in_result;
        operand.labels.iter().filter(belongs).copied().collect()
    };
    if !of(left, false, false).is_empty() || !of(right, false, false).is_empty() {
        return Err("sums over one operand alone".into());
    }
    let (batch, rows, columns) = (of(left, true, true), of(left, false, true), of(right, false, true));
    // The order in which the left one has what is summed over needs no transposition of a value.
    let summed = of(left, true, false);
    if summed.is_empty() || columns.is_empty() || (rows.is_empty() && !batch.is_empty()) {
        return Err("is no matrix product".into());
    }
    let is_weight = graph.constant(right.value).is_some();
    let several = summed.len() > 1 || columns.len() > 1;
    if several && !(is_weight && batch.is_empty()) {
        return Err("folds axes whose lengths are not known".into());
    }
    // Rows but the last are batch axes of the left operand alone.
    let (outer, row) = rows.split_at(rows.len().saturating_sub(1));
    let order = [outer, &batch, row].concat();
    let mut features = arranged(graph, left, &[&order[..], &summed].concat())?;
    let weight = arranged(graph, right, &[&batch[..], &summed, &columns].concat())?;
    let weight = if several { folded(graph, weight, summed.len())? } else { weight };
    if summed.len() > 1 {
        features = reshaped(graph, features, order.len(), &[-1]);
    }
    let mut made = graph.add(Operator::new("MatMul"), &[features, weight], "einsum_product");
    if columns.len() > 1 {
        let lengths = lengths(graph, right, &columns)?;
        made = reshaped(graph, made, order.len(), &lengths);
    }
    arranged(graph, &Operand { value: made, labels: [&order[..], &columns].concat() }, result)
}

/// The operand with its axes in another order; a constant is turned itself.
fn arranged(graph: &mut Graph, operand: &Operand, order: &[char]) -> Result<ValueId, Decline> {
    let place = |c: &char| operand.labels.iter().position(|l| l == c);
    let perm: Vec<usize> = order.iter().map(place).collect::<Option<_>>().ok_or("has a label that no operand has")?;
    if perm.iter().copied().eq(0..operand.labels.len()) {
        return Ok(operand.value);
    }
    if let Some(tensor) = graph.constant(operand.value) {
        let turned = tensor.transposed(&perm).map_err(|e| e.to_string())?.placed_like(tensor);
        let hint = format!("{}_turned", graph.name(operand.value));
        return Ok(graph.add_constant(&hint, turned));
    }
    let perm: Vec<i64> = perm.into_iter().map(|axis| axis as i64).collect();
    Ok(graph.add(Operator::new("Transpose").with(attribute::ints("perm", &perm)), &[operand.value], "einsum_turned"))
}

/// A constant as a matrix: its first `rows` axes by the others.
fn folded(graph: &mut Graph, value: ValueId, rows: usize) -> Result<ValueId, Decline> {
    let tensor = graph.constant(value).ok_or("folds axes whose lengths are not known")?;
    let (rows, columns) = tensor.dims().split_at(rows);
    let dims = [rows.iter().product(), columns.iter().product()];
    let bytes = tensor.bytes().map_err(|e| e.to_string())?;
    let matrix = Tensor::from_raw("", tensor.element(), &dims, bytes).map_err(|e| e.to_string())?.placed_like(tensor);
    let hint = format!("{}_matrix", graph.name(value));
    Ok(graph.add_constant(&hint, matrix))
}

/// The value with its axes from `kept` on replaced by others.
fn reshaped(graph: &mut Graph, value: ValueId, kept: usize, lengths: &[i64]) -> ValueId {
    let shape: Vec<i64> = std::iter::repeat_n(0, kept).chain(lengths.iter().copied()).collect();
    let shape = graph.add_constant("einsum_shape", Tensor::from_i64s(&[shape.len()], &shape));
    graph.add(Operator::new("Reshape"), &[value, shape], "einsum_reshaped")
}

/// The lengths of some axes of a constant.
fn lengths(graph: &Graph, operand: &Operand, of: &Labels) -> Result<Vec<i64>, Decline> {
    let dims = graph.constant(operand.value).ok_or("folds axes whose lengths are not known")?.dims();
    let length = |c: &char| operand.labels.iter().position(|l| l == c).and_then(|i| dims.get(i)).map(|&n| n as i64);
    of.iter().map(length).collect::<Option<_>>().ok_or_else(|| "has other axes than its equation".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{B, S, Sketch, n};

    /// The types of the operators that an Einsum of two operands becomes.
    fn written(equation: &str, weight: Option<&[usize]>, ranks: [usize; 2]) -> Vec<String> {
        let mut g = Sketch::default();
        let axes = [B, S, n(4), n(4), n(4)];
        let x = g.input("x", &axes[..ranks[0]]);
        let w = match weight {
            Some(dims) => g.weight("w", dims),
            None => g.input("y", &axes[..ranks[1]]),
        };
        let einsum = Operator::new("Einsum").with(attribute::text("equation", equation));
        let y = g.op(einsum, &[x, w], &axes[..2]);
        g.graph.add_output(y);
        as_products(&mut g.graph);
        g.graph.sorted().into_iter().map(|node| g.graph.operator(node).op_type.clone()).collect()
    }

    #[test]
    fn weights_with_axes_of_heads_are_matrices() {
        assert_eq!(written("abc,cde->abde", Some(&[4, 2, 3]), [3, 3]), ["MatMul", "Reshape"]);
        assert_eq!(written("abcd,cde->abe", Some(&[4, 4, 5]), [4, 3]), ["Reshape", "MatMul"]);
        assert_eq!(written("bsd,fd->bsf", Some(&[6, 4]), [3, 2]), ["MatMul"], "a constant is turned itself");
    }

    #[test]
    fn scores_are_products_of_two_values() {
        assert_eq!(written("bhid,bhjd->bhij", None, [4, 4]), ["Transpose", "MatMul"]);
        assert_eq!(written("bhij,bhjd->bhid", None, [4, 4]), ["MatMul"]);
        let swapped = written("aecd,abcd->acbe", None, [4, 4]);
        assert_eq!(swapped.iter().filter(|o| *o == "MatMul").count(), 1);
        assert_eq!(swapped.len(), 3, "both are turned, the product is not: {swapped:?}");
        assert_eq!(written("bhwc,hkc->bhwk", Some(&[4, 5, 4]), [4, 3]), ["MatMul"], "batch axes broadcast");
    }

    #[test]
    fn what_is_no_product_stays() {
        for (equation, weight) in [("...d,df->...f", Some(&[4, 5][..])), ("bsd,bsd->bs", None), ("bsd,bse->bs", None)] {
            assert_eq!(written(equation, weight, [3, 3]), ["Einsum"], "{equation}");
        }
    }
}
