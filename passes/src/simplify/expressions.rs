//! Expressions of constants: weights that an exporter computes at run time (a normalised weight, numbers stored in half
//! precision, a matrix stored as a vector) and nobody downstream can see as constants.
//!
//! What they give is computed once, by whoever can run graphs, and stands in their place. A weight that was stored
//! narrowly is written narrowly again.

use std::collections::HashSet;

use ndarray::ArrayD;

use crate::ir::{ElementType, Graph, Model, NodeId, Operator, Slot, Tensor, TensorError, ValueId, attribute};

/// Below so many bytes an expression may grow when it is computed.
const SMALL: usize = 4096;

/// What gives other numbers in every run.
const RANDOM: &[&str] =
    &["RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"];

/// An expression of constants that gives floating-point numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Expression {
    /// What it gives.
    pub value: ValueId,
    /// Bytes of the constants that nothing else reads.
    bytes: usize,
    /// The element type of the largest of them.
    stored: ElementType,
}

/// The expressions of a graph that other operators read. Those of integers of eight bits or fewer are left out: they are
/// weights that were quantised.
pub fn expressions(graph: &Graph) -> Vec<Expression> {
    let order = graph.sorted();
    let mut constant: HashSet<NodeId> = HashSet::new();
    let is_constant = |value: ValueId, nodes: &HashSet<NodeId>| {
        graph.constant(value).is_some() || graph.producer(value).is_some_and(|(node, _)| nodes.contains(&node))
    };
    for &node in &order {
        let operator = graph.operator(node);
        let is_plain = operator.is_standard() && operator.captures().is_empty() && !operator.is("Constant");
        let reads_constants = operator.inputs().iter().flatten().all(|&v| is_constant(v, &constant));
        let is_computed = operator.inputs().iter().flatten().next().is_some() && reads_constants;
        if is_plain && is_computed && !RANDOM.contains(&operator.op_type.as_str()) {
            constant.insert(node);
        }
    }
    let is_read_elsewhere = |value: &ValueId| {
        let readers = graph.consumers(*value);
        readers.iter().any(|(node, slot)| matches!(slot, Slot::Input(_)) && !constant.contains(node))
    };
    let outputs = order.iter().filter(|node| constant.contains(node)).filter_map(|&n| graph.operator(n).output(0));
    outputs.filter(is_read_elsewhere).filter_map(|value| expression(graph, value, &constant)).collect()
}

/// The expression that gives `value`; `None` where other values need its parts, or it is of no use.
fn expression(graph: &Graph, value: ValueId, constant: &HashSet<NodeId>) -> Option<Expression> {
    if graph.outputs().contains(&value) {
        return None;
    }
    let (maker, _) = graph.producer(value)?;
    let nodes: HashSet<NodeId> = graph.ancestors([value]).into_iter().filter(|n| constant.contains(n)).collect();
    let (mut bytes, mut largest) = (0, None);
    let leaves = nodes.iter().flat_map(|&node| graph.operator(node).inputs().iter().flatten());
    for leaf in leaves.collect::<HashSet<_>>() {
        let Some(tensor) = graph.constant(*leaf) else { continue };
        let is_quantised = (1..=8).contains(&tensor.element().bits()) && tensor.element() != ElementType::Bool;
        if is_quantised {
            return None;
        }
        let is_own = graph.consumers(*leaf).iter().all(|(node, _)| nodes.contains(node));
        let size = if is_own { tensor.element().packed_len(tensor.count())? } else { 0 };
        bytes += size;
        if tensor.element().is_float() && largest.is_none_or(|(most, _)| size > most) {
            largest = Some((size, tensor.element()));
        }
    }
    let is_shared = nodes.iter().filter(|&&node| node != maker).any(|&node| {
        let outputs = graph.operator(node).outputs().iter().flatten();
        outputs.flat_map(|&v| graph.consumers(v)).any(|(reader, _)| !nodes.contains(&reader))
    });
    let (_, stored) = largest?;
    Some(Expression { value, bytes: if is_shared { 0 } else { bytes }, stored })
}

/// Puts what expressions give in their place, where nothing grows by it.
///
/// # Errors
/// Where a tensor cannot be made.
pub fn replace(model: &mut Model, computed: Vec<(Expression, ElementType, ArrayD<f64>)>) -> Result<(), TensorError> {
    for (expression, element, numbers) in computed {
        let narrow = Some(expression.stored).filter(|s| s.bits() < element.bits() && holds(*s, &numbers));
        let stored = narrow.unwrap_or(element);
        let bytes = stored.packed_len(numbers.len()).unwrap_or(usize::MAX);
        if bytes > expression.bytes.max(SMALL) {
            continue;
        }
        let hint = format!("{}_computed", model.graph.name(expression.value));
        let tensor = Tensor::from_floats(element, &numbers)?.stored_as(narrow);
        let constant = model.graph.add_constant(&hint, tensor);
        model.graph.replace_reads(expression.value, constant);
    }
    model.graph.remove_dead();
    model.graph.checked("computing constants");
    Ok(())
}

/// Stores constants as narrowly as they came, where that loses nothing.
///
/// # Errors
/// Where a tensor cannot be made.
pub fn narrow(model: &mut Model) -> Result<(), TensorError> {
    for value in model.graph.initializers() {
        let graph = &mut model.graph;
        let Some((tensor, element)) = graph.constant(value).and_then(|t| Some((t, t.stored()?))) else { continue };
        let (wide, numbers) = (tensor.element(), tensor.to_f64()?);
        if graph.consumers(value).is_empty() || !holds(element, &numbers) {
            continue;
        }
        let hint = format!("{}_stored", graph.name(value));
        let narrow = graph.add_constant(&hint, Tensor::from_floats(element, &numbers)?);
        let cast = Operator::new("Cast").with(attribute::int("to", wide.code().into()));
        let widened = graph.add(cast, &[narrow], &hint);
        graph.replace_reads(value, widened);
    }
    model.graph.remove_dead();
    model.graph.checked("storing constants narrowly");
    Ok(())
}

/// Whether numbers are the same in another element type.
fn holds(element: ElementType, numbers: &ArrayD<f64>) -> bool {
    Tensor::from_floats(element, numbers).and_then(|t| t.to_f64()).is_ok_and(|same| same == *numbers)
}

#[cfg(test)]
mod tests {
    use ndarray::{IxDyn, array};

    use super::*;
    use crate::testing::{B, Sketch, n};

    /// y = x W with W = Cast(constant), and the constant read by `others`.
    fn cast_weight(element: ElementType, also_read: bool) -> (Sketch, ValueId) {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, n(2)]);
        let numbers = array![[1.0, 2.0], [3.0, 4.5]].into_dyn();
        let stored = match element.is_float() {
            true => Tensor::from_floats(element, &numbers).unwrap(),
            false => Tensor::from_raw("w", element, &[2, 2], vec![1u8, 2, 3, 4].into()).unwrap(),
        };
        let stored = g.graph.add_constant("w", stored);
        let weight = g.graph.add(Operator::new("Cast").with(attribute::int("to", 1)), &[stored], "cast");
        let y = g.graph.add(Operator::new("MatMul"), &[x, weight], "y");
        g.graph.add_output(y);
        if also_read {
            let shape = g.graph.add(Operator::new("Shape"), &[stored], "shape");
            let ones = g.graph.add(Operator::new("Add"), &[x, shape], "other");
            g.graph.add_output(ones);
        }
        (g, weight)
    }

    #[test]
    fn a_weight_in_half_precision_is_computed_and_written_narrowly_again() {
        let (g, weight) = cast_weight(ElementType::F16, false);
        let mut model = g.model();
        let found = expressions(&model.graph);
        assert_eq!(found, [Expression { value: weight, bytes: 8, stored: ElementType::F16 }]);
        let numbers = array![[1.0, 2.0], [3.0, 4.5]].into_dyn();
        replace(&mut model, vec![(found[0].clone(), ElementType::F32, numbers)]).unwrap();
        let product = model.graph.sorted()[0];
        let constant = model.graph.operator(product).input(1).unwrap();
        assert_eq!(model.graph.constant(constant).unwrap().element(), ElementType::F32);
        narrow(&mut model).unwrap();
        let types: Vec<_> = model.graph.sorted().iter().map(|&n| model.graph.operator(n).op_type.clone()).collect();
        assert_eq!(types, ["Cast", "MatMul"]);
        let elements: Vec<_> =
            model.graph.initializers().iter().map(|&v| model.graph.constant(v).unwrap().element()).collect();
        assert_eq!(elements, [ElementType::F16]);
    }

    #[test]
    fn eight_bit_weights_are_no_expressions_and_what_others_read_counts_for_nothing() {
        let (g, _) = cast_weight(ElementType::I8, false);
        assert_eq!(expressions(&g.graph), []);
        let (g, weight) = cast_weight(ElementType::F32, true);
        let found = expressions(&g.graph);
        assert_eq!(found.iter().find(|e| e.value == weight).unwrap().bytes, 0);
    }

    #[test]
    fn nothing_is_computed_that_would_grow() {
        let (g, weight) = cast_weight(ElementType::F32, true);
        let mut model = g.model();
        let large = ArrayD::from_elem(IxDyn(&[2, 2000]), 0.1);
        let expression = expressions(&model.graph).into_iter().find(|e| e.value == weight).unwrap();
        replace(&mut model, vec![(expression, ElementType::F32, large)]).unwrap();
        assert!(model.graph.holds(weight) && model.graph.constant(weight).is_none());
    }
}
