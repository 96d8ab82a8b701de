//! From the bytes of a file to a [`Model`].
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![warn(clippy::arithmetic_side_effects)]

use std::collections::HashSet;

use bytes::{Buf, Bytes};
use prost::Message;
use thiserror::Error;

use super::{entry, location};
use crate::ir::schema::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::ir::{EXTERNAL, Graph, Model, Operator, Tensor, TensorError, ValueId};

/// Why a file is no model that can be worked on.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The bytes are no ONNX message.
    #[error("this is no ONNX model, or only a part of one: {0}")]
    Decode(#[from] prost::DecodeError),
    /// A part that every model has is not there.
    #[error("this is no complete ONNX model: it has no {0}; it may have been cut off")]
    Incomplete(&'static str),
    /// Two things make a value of the same name.
    #[error("value {0:?} is made twice; names of values must be unique")]
    Duplicate(String),
    /// An operator reads what nothing makes.
    #[error("{node} reads value {value:?}, which nothing in the graph makes")]
    Dangling {
        /// The operator.
        node: String,
        /// The missing value.
        value: String,
    },
    /// The graph's output is made by nothing.
    #[error("the graph's output {0:?} is made by no operator, input or initializer")]
    MissingOutput(String),
    /// Operators that read each other's outputs.
    #[error("the graph has a cycle through {0}")]
    Cycle(String),
    /// A function of the model that calls itself.
    #[error("the model's function {0:?} calls itself, which ONNX does not allow")]
    Recursive(String),
    /// Functions whose calls within calls would make a graph that nobody could run.
    #[error("the calls of the model's functions become more than {most} operators ({function:?} was the last)")]
    TooManyCalls {
        /// The function whose call was one too many.
        function: String,
        /// How many operators are allowed.
        most: usize,
    },
    /// A constant whose data and shape disagree.
    #[error("tensor {name:?} {source}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// What is wrong.
        source: TensorError,
    },
    /// External data that cannot be had.
    #[error("tensor {name:?} keeps its data in the file {location:?}: {reason}")]
    External {
        /// The tensor's name.
        name: String,
        /// The file, as the model names it.
        location: String,
        /// What is wrong.
        reason: String,
    },
}

/// Reads a model. `files` gives the bytes of an external-data file by the name that the model uses.
///
/// Each tensor holds what `source` gives for it in one piece (of [`Bytes`] a part, without a copy), or a part of an external
/// file.
///
/// # Errors
/// Where the bytes are no whole, consistent model; see [`ReadError`].
pub fn read(source: impl Buf, files: Files) -> Result<Model, ReadError> {
    from_proto(ModelProto::decode(source)?, files)
}

/// As [`read`], with the operators of the model's own functions in the place of their calls.
///
/// # Errors
/// As [`read`].
pub fn read_inlined(source: impl Buf, files: Files) -> Result<Model, ReadError> {
    let mut proto = ModelProto::decode(source)?;
    super::inline::inline_functions(&mut proto)?;
    from_proto(proto, files)
}

fn from_proto(mut header: ModelProto, files: Files) -> Result<Model, ReadError> {
    let mut proto = header.graph.take().ok_or(ReadError::Incomplete("graph"))?;
    if header.opset_import.is_empty() {
        return Err(ReadError::Incomplete("operator set"));
    }
    if proto.output.is_empty() {
        return Err(ReadError::Incomplete("graph output"));
    }
    let mut model = Model { header, ..Model::default() };
    read_values(&mut model, &mut proto, files)?;
    let outputs = std::mem::take(&mut proto.output);
    for node in std::mem::take(&mut proto.node) {
        read_node(&mut model.graph, node, files)?;
    }
    read_outputs(&mut model.graph, outputs)?;
    for info in std::mem::take(&mut proto.value_info) {
        let value = model.graph.declare(info.name());
        // What an input or output says of itself counts.
        if model.graph.info(value).is_some() {
            model.repeated.push((model.listed.len(), info));
            continue;
        }
        model.listed.push(value);
        model.graph.set_info(value, Some(info));
    }
    model.graph.connect_all();
    model.graph_header = proto;
    check(&model.graph)?;
    Ok(model)
}

type Files<'a> = &'a mut dyn FnMut(&str) -> Result<Bytes, String>;

/// Declares constants first, so that they stay in the order of the file, then inputs.
fn read_values(model: &mut Model, proto: &mut GraphProto, files: Files) -> Result<(), ReadError> {
    let graph = &mut model.graph;
    for tensor in std::mem::take(&mut proto.initializer) {
        let value = claim(graph, tensor.name())?;
        graph.set_source(value, crate::ir::SourceKind::Initializer);
        graph.set_constant(value, read_tensor(tensor, files)?);
    }
    for sparse in std::mem::take(&mut proto.sparse_initializer) {
        let value = claim(graph, sparse.values.as_ref().map_or("", |v| v.name()))?;
        graph.set_source(value, crate::ir::SourceKind::Initializer);
        match super::sparse::dense(&sparse) {
            Some(tensor) => {
                graph.set_constant(value, tensor);
                model.by_nonzeros.push(value);
            }
            None => model.sparse.push((value, sparse)),
        }
    }
    let mut seen = HashSet::new();
    for info in std::mem::take(&mut proto.input) {
        let value = graph.declare(info.name());
        if !seen.insert(value) {
            return Err(ReadError::Duplicate(info.name().to_string()));
        }
        if !graph.has_source(value) {
            graph.set_source(value, crate::ir::SourceKind::Input);
        }
        graph.set_info(value, Some(info));
        graph.list_input(value);
    }
    Ok(())
}

/// Declares a value that must be new.
fn claim(graph: &mut Graph, name: &str) -> Result<ValueId, ReadError> {
    let value = graph.declare(name);
    if graph.has_source(value) {
        return Err(ReadError::Duplicate(name.to_string()));
    }
    Ok(value)
}

fn read_tensor(proto: TensorProto, files: Files) -> Result<Tensor, ReadError> {
    let name = proto.name().to_string();
    let external = match proto.data_location {
        Some(EXTERNAL) => Some(read_external(&proto, files)?),
        _ => None,
    };
    Tensor::from_proto(proto, external).map_err(|source| ReadError::Tensor { name, source })
}

fn read_external(proto: &TensorProto, files: Files) -> Result<Bytes, ReadError> {
    let location = location(proto).unwrap_or_default().to_string();
    let wrong = |reason: String| ReadError::External { name: proto.name().into(), location: location.clone(), reason };
    let number = |key| match entry(&proto.external_data, key) {
        None => Ok(None),
        Some(text) => text.parse::<usize>().map(Some).map_err(|_| wrong(format!("its {key} {text:?} is no number"))),
    };
    let file = files(&location).map_err(&wrong)?;
    let start = number("offset")?.unwrap_or(0);
    let end = match number("length")? {
        Some(length) => start.checked_add(length).ok_or_else(|| wrong("its length is impossible".into()))?,
        None => file.len(),
    };
    if start > end || end > file.len() {
        let size = file.len();
        return Err(wrong(format!("bytes {start} to {end} are asked for, and the file has {size}")));
    }
    Ok(file.slice(start..end))
}

fn read_node(graph: &mut Graph, mut node: NodeProto, files: Files) -> Result<(), ReadError> {
    let mut optional = |names: &[String]| -> Vec<Option<ValueId>> {
        names.iter().map(|name| (!name.is_empty()).then(|| graph.declare(name))).collect()
    };
    let inputs = optional(&std::mem::take(&mut node.input));
    let outputs = optional(&std::mem::take(&mut node.output));
    let mut made = HashSet::new();
    for &value in outputs.iter().flatten() {
        if graph.has_source(value) || !made.insert(value) {
            return Err(ReadError::Duplicate(graph.name(value).to_string()));
        }
    }
    let attributes = std::mem::take(&mut node.attribute);
    let subgraphs = attributes.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
    let mut captures: Vec<_> = subgraphs.flat_map(free_names).map(|name| graph.declare(&name)).collect();
    captures.sort_unstable();
    captures.dedup();
    let operator = Operator {
        op_type: take_text(&mut node.op_type),
        domain: take_text(&mut node.domain),
        name: take_text(&mut node.name),
        inputs,
        outputs,
        captures,
        attributes,
        rest: node,
    };
    let constant = if operator.is("Constant") { constant_of(&operator, files)? } else { None };
    let id = graph.insert(operator);
    if let (Some(tensor), Some(value)) = (constant, graph.operator(id).output(0)) {
        graph.set_constant(value, tensor);
    }
    Ok(())
}

/// Takes a text out; one that is explicitly empty stays, so that it is written again.
fn take_text(field: &mut Option<String>) -> String {
    field.take_if(|text| !text.is_empty()).unwrap_or_default()
}

/// The tensor that a `Constant` operator makes; `None` for strings and sparse tensors.
fn constant_of(operator: &Operator, files: Files) -> Result<Option<Tensor>, ReadError> {
    let floats = |dims: &[usize], values: &[f32]| {
        let values: Vec<f64> = values.iter().map(|&v| v.into()).collect();
        let array = ndarray::ArrayD::from_shape_vec(dims, values).ok()?;
        Tensor::from_floats(crate::ir::ElementType::F32, &array).ok()
    };
    let Some(attribute) = operator.attributes.first() else { return Ok(None) };
    Ok(match attribute.name() {
        "value" => attribute.t.clone().map(|tensor| read_tensor(tensor, files)).transpose()?,
        "value_int" => attribute.i.map(|i| Tensor::from_i64s(&[], &[i])),
        "value_ints" => Some(Tensor::from_i64s(&[attribute.ints.len()], &attribute.ints)),
        "value_float" => attribute.f.and_then(|f| floats(&[], &[f])),
        "value_floats" => floats(&[attribute.floats.len()], &attribute.floats),
        _ => None,
    })
}

fn read_outputs(graph: &mut Graph, outputs: Vec<ValueInfoProto>) -> Result<(), ReadError> {
    for info in outputs {
        let value = graph.declare(info.name());
        if !graph.has_source(value) {
            return Err(ReadError::MissingOutput(info.name().to_string()));
        }
        graph.set_info(value, Some(info));
        graph.add_output(value);
    }
    Ok(())
}

/// Names that a subgraph reads and does not make.
fn free_names(graph: &GraphProto) -> Vec<String> {
    let mut made: HashSet<&str> = graph.input.iter().map(|i| i.name()).collect();
    made.extend(graph.initializer.iter().map(|t| t.name()));
    made.extend(graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str)));
    let mut free = Vec::new();
    for node in &graph.node {
        free.extend(node.input.iter().filter(|n| !n.is_empty() && !made.contains(n.as_str())).cloned());
        for inner in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            free.extend(free_names(inner).into_iter().filter(|n| !made.contains(n.as_str())));
        }
    }
    let passed = graph.output.iter().map(|o| o.name());
    free.extend(passed.filter(|n| !made.contains(n)).map(str::to_string));
    free
}

fn check(graph: &Graph) -> Result<(), ReadError> {
    let order = graph.order().map_err(|stuck| {
        let labels: Vec<_> = stuck.iter().take(4).map(|&n| graph.label(n)).collect();
        ReadError::Cycle(labels.join(", "))
    })?;
    for node in order {
        let operator = graph.operator(node);
        for &value in operator.inputs().iter().flatten().chain(operator.captures()) {
            if !graph.has_source(value) {
                return Err(ReadError::Dangling { node: graph.label(node), value: graph.name(value).to_string() });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn node(op: &str, input: &[&str], output: &[&str]) -> NodeProto {
        NodeProto {
            op_type: Some(op.into()),
            input: input.iter().map(|s| s.to_string()).collect(),
            output: output.iter().map(|s| s.to_string()).collect(),
            ..Default::default()
        }
    }

    fn named(name: &str) -> ValueInfoProto {
        ValueInfoProto { name: Some(name.into()), ..Default::default() }
    }

    fn load(nodes: Vec<NodeProto>) -> Result<Model, ReadError> {
        let graph = GraphProto { node: nodes, input: vec![named("x")], output: vec![named("y")], ..Default::default() };
        let model = ModelProto { graph: Some(graph), opset_import: vec![Default::default()], ..Default::default() };
        read(Bytes::from(model.encode_to_vec()), &mut |_| Err("no files".into()))
    }

    #[test]
    fn a_sound_graph_is_read() {
        let model = load(vec![node("Relu", &["x"], &["h"]), node("Clip", &["h", "", "h"], &["y"])]).unwrap();
        assert_eq!(model.graph.sorted().len(), 2);
        assert_eq!(model.graph.consumers(model.graph.find("h").unwrap()).len(), 2);
    }

    #[test]
    fn broken_graphs_are_refused_by_name() {
        let dangling = load(vec![node("Relu", &["q"], &["y"])]);
        assert!(matches!(dangling, Err(ReadError::Dangling { value, .. }) if value == "q"));
        let duplicate = load(vec![node("Relu", &["x"], &["y"]), node("Relu", &["x"], &["y"])]);
        assert!(matches!(duplicate, Err(ReadError::Duplicate(name)) if name == "y"));
        let cycle = load(vec![node("Add", &["x", "y"], &["a"]), node("Relu", &["a"], &["y"])]);
        assert!(matches!(cycle, Err(ReadError::Cycle(_))));
        let missing = load(vec![node("Relu", &["x"], &["a"])]);
        assert!(matches!(missing, Err(ReadError::MissingOutput(name)) if name == "y"));
    }

    #[test]
    fn what_a_subgraph_reads_from_outside_is_a_use() {
        let inner =
            GraphProto { node: vec![node("Relu", &["h"], &["z"])], output: vec![named("z")], ..Default::default() };
        let mut branch = node("If", &["x"], &["y"]);
        branch.attribute = vec![crate::ir::schema::AttributeProto {
            name: Some("then_branch".into()),
            g: Some(inner),
            ..Default::default()
        }];
        let model = load(vec![node("Relu", &["x"], &["h"]), branch]).unwrap();
        let h = model.graph.find("h").unwrap();
        assert_eq!(model.graph.consumers(h)[0].1, crate::ir::Slot::Capture);
    }

    #[test]
    fn external_data_outside_its_file_is_refused() {
        let tensor = TensorProto {
            name: Some("w".into()),
            dims: vec![2],
            data_type: Some(1),
            data_location: Some(EXTERNAL),
            external_data: vec![
                super::super::new_entry("location", "w.bin".into()),
                super::super::new_entry("offset", "4".into()),
            ],
            ..Default::default()
        };
        let twelve = |_: &str| Ok(Bytes::from_static(&[0; 12]));
        assert_eq!(read_tensor(tensor.clone(), &mut { twelve }).unwrap().dims(), [2]);
        let mut long = tensor;
        long.external_data.push(super::super::new_entry("length", "9".into()));
        assert!(matches!(read_tensor(long, &mut { twelve }), Err(ReadError::External { .. })));
    }
}
