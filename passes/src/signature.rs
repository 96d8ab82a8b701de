//! What a model takes: its inputs with their element types and axes.

use std::collections::{HashMap, HashSet};

use crate::ir::schema::tensor_shape_proto::{Dimension, dimension};
use crate::ir::schema::{TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto};
use crate::ir::{ElementType, Graph, Model, NodeId, Slot, ValueId};
use crate::kv_cache;

/// One axis of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Always this long.
    Fixed(usize),
    /// As long as the caller likes; axes of the same name are equally long. Axes that the file leaves
    /// without a name are called after their index.
    Named(String),
}

/// One input of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The value in the graph.
    pub value: ValueId,
    /// Its name.
    pub name: String,
    /// Its element type; `None` where it is no tensor or of an unknown type.
    pub element: Option<ElementType>,
    /// Its axes; `None` where not even the rank is declared.
    pub axes: Option<Vec<Axis>>,
}

/// The inputs that a caller must give, in order; initializers listed as inputs are left out.
pub fn inputs(model: &Model) -> Vec<Input> {
    let graph = &model.graph;
    let given = graph.inputs().iter().filter(|&&v| graph.constant(v).is_none());
    given.map(|&value| input(graph, value)).collect()
}

fn input(graph: &Graph, value: ValueId) -> Input {
    let name = graph.name(value).to_string();
    let tensor = graph.info(value).and_then(tensor_type);
    let element = tensor.and_then(|t| ElementType::from_code(t.elem_type()));
    let axes = tensor.and_then(|t| t.shape.as_ref()).map(|shape| {
        let axis = |(i, dim): (usize, &tensor_shape_proto::Dimension)| match &dim.value {
            Some(tensor_shape_proto::dimension::Value::DimValue(n)) if *n > 0 => Axis::Fixed(*n as usize),
            Some(tensor_shape_proto::dimension::Value::DimValue(0)) if kv_cache::is_past(&name) => Axis::Fixed(0),
            Some(tensor_shape_proto::dimension::Value::DimParam(p)) if !p.is_empty() => Axis::Named(p.clone()),
            _ => Axis::Named(format!("axis {i}")),
        };
        shape.dim.iter().enumerate().map(axis).collect()
    });
    Input { value, name, element, axes }
}

/// How many rows the tables have that an integer input looks entries up in; the smallest of each.
///
/// An input that reaches a table only through arithmetic has no limit here.
pub fn limits(graph: &Graph) -> HashMap<ValueId, usize> {
    let mut limits = HashMap::new();
    for &input in graph.inputs() {
        for (node, slot) in
            readers_through(graph, input, &["Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze"])
        {
            if let Some(table) = table_read_by(graph, node, slot) {
                let table = graph.constant(table).filter(|t| t.dims().len() > 1);
                let limit = limits.entry(input).or_insert(usize::MAX);
                *limit = table.map_or(*limit, |t| t.dims()[0].min(*limit));
            }
        }
    }
    limits.retain(|_, limit| *limit < usize::MAX);
    limits
}

/// The table of which an operator looks up the rows that it reads the numbers of at `slot`.
pub(crate) fn table_read_by(graph: &Graph, node: NodeId, slot: usize) -> Option<ValueId> {
    let operator = graph.operator(node);
    match (operator.op_type.as_str(), slot) {
        ("Gather", 1) if operator.is_standard() && operator.int("axis", 0) == 0 => operator.input(0),
        ("EmbedLayerNormalization", 0) if !operator.is_standard() => operator.input(2),
        ("EmbedLayerNormalization", 1) if !operator.is_standard() => operator.input(4),
        _ => None,
    }
}

/// The input of token ids whose table has so many rows; of two, as encoders with a decoder have them, the decoder's, whose
/// scores there are.
pub fn ids(graph: &Graph, vocabulary: Option<usize>) -> Option<ValueId> {
    let limits = limits(graph);
    let is_ids = |input: &ValueId| limits.get(input).copied().is_some_and(|n| Some(n) == vocabulary);
    let own: Vec<ValueId> = graph.inputs().iter().copied().filter(is_ids).collect();
    let decoders = own.iter().find(|input| graph.name(**input).contains("decoder"));
    decoders.or(own.first()).copied()
}

/// Who reads an input and where, directly or downstream of operators of the types `passed`.
fn readers_through(graph: &Graph, input: ValueId, passed: &[&str]) -> Vec<(NodeId, usize)> {
    let mut readers = Vec::new();
    let mut values = vec![input];
    let mut visited = HashSet::new();
    while let Some(value) = values.pop() {
        if !visited.insert(value) {
            continue;
        }
        for (node, slot) in graph.consumers(value) {
            let Slot::Input(slot) = slot else { continue };
            let operator = graph.operator(node);
            match operator.is_standard() && passed.contains(&operator.op_type.as_str()) {
                true => values.extend(operator.output(0)),
                false => readers.push((node, slot)),
            }
        }
    }
    readers
}

/// The tensor type that a declaration gives, if it gives one.
pub fn tensor_type(info: &ValueInfoProto) -> Option<&type_proto::Tensor> {
    match info.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => Some(tensor),
        _ => None,
    }
}

/// The lengths of the axes of a declared shape, where they are declared.
pub fn lengths(shape: &TensorShapeProto) -> Vec<Option<usize>> {
    let length = |dim: &Dimension| match &dim.value {
        Some(dimension::Value::DimValue(n)) => usize::try_from(*n).ok().filter(|&n| n > 0),
        _ => None,
    };
    shape.dim.iter().map(length).collect()
}

/// A declaration of a tensor of `rank` axes of any length.
pub fn declare(name: &str, element: ElementType, rank: usize) -> ValueInfoProto {
    declare_axes(name, element, vec![Default::default(); rank])
}

/// A declaration of a tensor whose axes are as long as others of the same symbol.
pub fn declare_symbols(name: &str, element: ElementType, symbols: Vec<String>) -> ValueInfoProto {
    let axis = |symbol| Dimension { value: Some(dimension::Value::DimParam(symbol)), ..Default::default() };
    declare_axes(name, element, symbols.into_iter().map(axis).collect())
}

/// A declaration of a tensor of this shape.
pub fn declare_shape(name: &str, element: ElementType, dims: &[usize]) -> ValueInfoProto {
    let axis = |&dim: &usize| Dimension { value: Some(dimension::Value::DimValue(dim as i64)), ..Default::default() };
    declare_axes(name, element, dims.iter().map(axis).collect())
}

/// A declaration in which no axis is said to be as long as another.
pub(crate) fn without_symbols(mut info: ValueInfoProto) -> ValueInfoProto {
    let tensor = info.r#type.as_mut().and_then(|t| t.value.as_mut());
    if let Some(type_proto::Value::TensorType(type_proto::Tensor { shape: Some(shape), .. })) = tensor {
        let is_symbol = |value: &mut dimension::Value| matches!(value, dimension::Value::DimParam(_));
        for dim in &mut shape.dim {
            dim.value.take_if(is_symbol);
        }
    }
    info
}

fn declare_axes(name: &str, element: ElementType, dim: Vec<Dimension>) -> ValueInfoProto {
    let shape = TensorShapeProto { dim };
    let tensor = type_proto::Tensor { elem_type: Some(element.code()), shape: Some(shape) };
    ValueInfoProto {
        name: Some(name.to_string()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() }),
        ..Default::default()
    }
}

/// Declares the ranks of inputs whose rank the file leaves open; `rank` gives them by name.
pub fn declare_ranks(graph: &mut Graph, rank: impl Fn(&str) -> Option<usize>) {
    for value in graph.inputs().to_vec() {
        let Some(rank) = rank(graph.name(value)) else { continue };
        let Some(mut info) = graph.info(value).cloned() else { continue };
        let tensor = info.r#type.as_mut().and_then(|t| t.value.as_mut());
        let Some(type_proto::Value::TensorType(tensor)) = tensor else { continue };
        tensor.shape.get_or_insert_with(|| TensorShapeProto { dim: vec![Default::default(); rank] });
        graph.set_info(value, Some(info));
    }
}

/// Declares the named axes of inputs that were the same in both runs, because the graph takes no other
/// length, with that length.
pub fn fix_axes(graph: &mut Graph, sizes: &crate::observe::Sizes) {
    for value in graph.inputs().to_vec() {
        let Some(mut info) = graph.info(value).cloned() else { continue };
        let tensor = info.r#type.as_mut().and_then(|t| t.value.as_mut());
        let Some(type_proto::Value::TensorType(tensor)) = tensor else { continue };
        for dim in tensor.shape.iter_mut().flat_map(|s| &mut s.dim) {
            let size = match &dim.value {
                Some(tensor_shape_proto::dimension::Value::DimParam(name)) => sizes.get(name),
                _ => None,
            };
            if let Some([first, _]) = size.filter(|[first, second]| first == second) {
                dim.value = Some(tensor_shape_proto::dimension::Value::DimValue(*first as i64));
            }
        }
        graph.set_info(value, Some(info));
    }
}

/// What a convolution demands of an input that it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolved {
    /// The length of the second axis.
    pub channels: usize,
    /// Its stride along the first spatial axis.
    pub stride: usize,
}

/// The inputs that convolutions read, directly or after arithmetic.
pub fn convolved(graph: &Graph) -> HashMap<ValueId, Convolved> {
    let mut found = HashMap::new();
    for &input in graph.inputs() {
        for (node, slot) in readers_through(graph, input, &["Cast", "Identity", "Sub", "Mul", "Div", "Add"]) {
            let operator = graph.operator(node);
            if !operator.is("Conv") || slot != 0 {
                continue;
            }
            let weight = operator.input(1).and_then(|v| graph.constant(v));
            let Some(&per_group) = weight.and_then(|t| t.dims().get(1)) else { continue };
            let channels = per_group.saturating_mul(operator.int("group", 1).max(1) as usize);
            let stride = operator.ints("strides").and_then(|s| s.first().copied()).unwrap_or(1);
            found.insert(input, Convolved { channels, stride: stride.max(1) as usize });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Operator, Tensor, attribute};

    #[test]
    fn a_convolution_tells_how_many_channels_an_image_has() {
        let mut g = Graph::new();
        let x = g.add_input(declare("x", ElementType::F32, 4));
        let ids = g.add_input(declare("ids", ElementType::I64, 2));
        let kernel = ndarray::ArrayD::zeros(ndarray::IxDyn(&[6, 3, 4, 4]));
        let w = g.add_constant("w", Tensor::from_floats(ElementType::F32, &kernel).unwrap());
        let cast = g.add(Operator::new("Cast"), &[x], "cast");
        let y = g.add(Operator::new("Conv").with(attribute::ints("strides", &[4, 4])), &[cast, w], "y");
        g.add_output(y);
        g.add_output(ids);
        let found = convolved(&g);
        assert_eq!(found.get(&x), Some(&Convolved { channels: 3, stride: 4 }));
        assert!(!found.contains_key(&ids));
    }
}
