//! From a [`Model`] to the bytes of its files.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use prost::Message;

use super::{entry, location, new_entry, sparse};
use crate::ir::schema::{GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto};
use crate::ir::{EXTERNAL, Graph, Model, Operator, Tensor, ValueId};
use crate::signature::declare_shape;

/// Tensors of at least this many bytes are aligned in external files, so that they can be mapped.
const PAGE: usize = 4096;

/// A model as it goes to disk.
#[derive(Debug)]
pub struct Written {
    /// The model file.
    pub model: ModelProto,
    /// The external-data files that it refers to.
    pub files: Vec<ExternalFile>,
}

/// One external-data file: pieces at ascending offsets, zeros between them.
#[derive(Debug, Default)]
pub struct ExternalFile {
    /// The file's path relative to the model, as the model names it.
    pub location: String,
    /// Offset and content of every tensor.
    pub pieces: Vec<(usize, Bytes)>,
}

/// A model whose larger constants are handed over beside it.
#[derive(Debug)]
pub struct Detached {
    /// The encoded model.
    pub bytes: Vec<u8>,
    /// The constants that are not in it, by name.
    pub constants: BTreeMap<String, Tensor>,
}

/// Writes a model with its external-data layout; `rename` maps the old names of external files to new ones.
pub fn write(model: &Model, rename: &dyn Fn(&str) -> String) -> Written {
    let mut files: BTreeMap<String, Layout> = BTreeMap::new();
    for tensor in constants(&model.graph) {
        if let Some(old) = tensor.external().and_then(|_| location(tensor.proto())) {
            files.entry(old.to_string()).or_default().add(tensor);
        }
    }
    for (old, layout) in &mut files {
        layout.arrange(&rename(old));
    }
    let place = |tensor: &Tensor| match location(tensor.proto()).filter(|_| tensor.external().is_some()) {
        Some(old) => files[old].placed(tensor),
        None => tensor.proto().clone(),
    };
    let proto = assemble(model, &place, &by_nonzeros(model));
    Written { model: proto, files: files.into_values().map(|layout| layout.file).collect() }
}

/// The external-data files that a model was read from, as it names them.
pub fn external_locations(model: &Model) -> Vec<String> {
    let external = constants(&model.graph).filter(|t| t.external().is_some());
    let mut locations: Vec<_> = external.filter_map(|t| location(t.proto())).map(str::to_string).collect();
    locations.sort();
    locations.dedup();
    locations
}

/// Encodes a model for a session: constants of at least `threshold` bytes are returned beside it, and declared as external.
pub fn write_detached(model: &Model, threshold: usize) -> Detached {
    let constants = large_constants(model, threshold);
    let place = |tensor: &Tensor| match constants.contains_key(tensor.proto().name()) {
        true => TensorProto {
            name: tensor.proto().name.clone(),
            dims: tensor.proto().dims.clone(),
            data_type: Some(tensor.element().code()),
            data_location: Some(EXTERNAL),
            external_data: vec![new_entry("location", "held-in-memory".into())],
            ..Default::default()
        },
        false => inline(tensor),
    };
    let bytes = assemble(model, &place, &HashMap::new()).encode_to_vec();
    Detached { bytes, constants }
}

/// Encodes a model for a session that is given some constants in every run: those of floating-point numbers with at least
/// `threshold` bytes are returned beside it, and declared as inputs.
pub fn write_fed(model: &Model, threshold: usize) -> Detached {
    let mut constants = large_constants(model, threshold);
    let outputs: Vec<&str> = model.graph.outputs().iter().map(|&value| model.graph.name(value)).collect();
    constants.retain(|name, tensor| tensor.element().is_float() && !outputs.contains(&name.as_str()));
    let place = |tensor: &Tensor| match constants.contains_key(tensor.proto().name()) {
        true => TensorProto { name: tensor.proto().name.clone(), ..Default::default() },
        false => inline(tensor),
    };
    let mut proto = assemble(model, &place, &HashMap::new());
    if let Some(graph) = &mut proto.graph {
        graph.initializer.retain(|tensor| !constants.contains_key(tensor.name()));
        graph.value_info.retain(|info| !constants.contains_key(info.name()));
        let declared = |(name, tensor): (&String, &Tensor)| declare_shape(name, tensor.element(), tensor.dims());
        graph.input.retain(|info| !constants.contains_key(info.name()));
        graph.input.extend(constants.iter().map(declared));
    }
    Detached { bytes: proto.encode_to_vec(), constants }
}

/// The initializers of at least `threshold` bytes that something reads, by name.
fn large_constants(model: &Model, threshold: usize) -> BTreeMap<String, Tensor> {
    let graph = &model.graph;
    // A runtime drops constants that nothing reads, and then misses those it is given.
    let read = graph.initializers().into_iter().filter(|&value| !graph.consumers(value).is_empty());
    let is_large = |tensor: &Tensor| tensor.element().packed_len(tensor.count()).is_some_and(|len| len >= threshold);
    let large = read.filter_map(|value| Some((value, graph.constant(value).filter(|tensor| is_large(tensor))?)));
    large.map(|(value, tensor)| (graph.name(value).to_string(), tensor.clone())).collect()
}

/// The tensor message with its elements inside.
fn inline(tensor: &Tensor) -> TensorProto {
    let mut proto = tensor.proto().clone();
    if let Some(bytes) = tensor.external() {
        proto.data_location = None;
        proto.external_data.clear();
        proto.raw_data = Some(bytes.clone());
    }
    proto
}

fn constants(graph: &Graph) -> impl Iterator<Item = &Tensor> {
    graph.constants().into_iter().filter_map(|v| graph.constant(v))
}

/// The places of tensors in one external file.
#[derive(Default)]
struct Layout {
    tensors: Vec<(Option<usize>, Bytes, String)>,
    offsets: HashMap<String, usize>,
    kept: bool,
    file: ExternalFile,
}

impl Layout {
    fn add(&mut self, tensor: &Tensor) {
        let offset = entry(&tensor.proto().external_data, "offset");
        let is_new = entry(&tensor.proto().external_data, NEW).is_some();
        let offset = if is_new { None } else { Some(offset.and_then(|o| o.parse().ok()).unwrap_or(0)) };
        let bytes = tensor.external().cloned().unwrap_or_default();
        self.tensors.push((offset, bytes, tensor.proto().name().to_string()));
    }

    /// Keeps the old offsets where every tensor has one; otherwise packs the tensors anew in their order.
    fn arrange(&mut self, location: &str) {
        self.file.location = location.to_string();
        self.tensors.sort_by_key(|(offset, ..)| offset.unwrap_or(usize::MAX));
        self.kept = self.tensors.iter().all(|(offset, ..)| offset.is_some());
        let mut end = 0;
        for (offset, bytes, name) in &self.tensors {
            let start = match offset {
                Some(offset) if self.kept => *offset,
                _ if bytes.len() >= PAGE => usize::next_multiple_of(end, PAGE),
                _ => end,
            };
            self.offsets.insert(name.clone(), start);
            let repeated = self.file.pieces.last().is_some_and(|(last, _)| *last == start) && self.kept;
            if !repeated {
                self.file.pieces.push((start, bytes.clone()));
            }
            end = end.max(start + bytes.len());
        }
    }

    fn placed(&self, tensor: &Tensor) -> TensorProto {
        let mut proto = tensor.proto().clone();
        let set = |entries: &mut Vec<_>, key: &str, value: String| match entries
            .iter_mut()
            .find(|e: &&mut crate::ir::schema::StringStringEntryProto| e.key() == key)
        {
            Some(entry) => entry.value = Some(value),
            None => entries.push(new_entry(key, value)),
        };
        proto.external_data.retain(|e| e.key() != NEW);
        set(&mut proto.external_data, "location", self.file.location.clone());
        if !self.kept {
            proto.external_data.retain(|e| e.key() != "checksum");
            let offset = self.offsets[proto.name()];
            set(&mut proto.external_data, "offset", offset.to_string());
            set(&mut proto.external_data, "length", tensor.external().map_or(0, Bytes::len).to_string());
        }
        proto
    }
}

/// Marks a tensor that a pass made and that has no place in its file yet; never written.
const NEW: &str = "kprune.new";

impl Tensor {
    /// This tensor, to be kept in the same external file as `other`, if that is in one.
    pub fn placed_like(self, other: &Tensor) -> Tensor {
        let (Some(place), Ok(bytes)) = (location(other.proto()).filter(|_| other.is_external()), self.bytes()) else {
            return self.stored_as(other.stored());
        };
        let mut proto = self.proto().clone();
        proto.raw_data = None;
        proto.data_location = Some(EXTERNAL);
        proto.external_data = vec![new_entry("location", place.to_string()), new_entry(NEW, String::new())];
        let placed = Tensor::from_proto(proto, Some(bytes)).expect("only the place of the data has changed");
        placed.stored_as(other.stored())
    }
}

/// Constants that are written by their elements that are not zero.
fn by_nonzeros(model: &Model) -> HashMap<ValueId, SparseTensorProto> {
    let sparse = |&value: &ValueId| {
        let tensor = model.graph.constant(value).filter(|t| !t.is_external())?;
        Some((value, sparse::sparse(tensor).filter(|sparse| sparse::is_smaller(tensor, sparse))?))
    };
    model.by_nonzeros.iter().filter_map(sparse).collect()
}

fn assemble(
    model: &Model,
    place: &dyn Fn(&Tensor) -> TensorProto,
    by_nonzeros: &HashMap<ValueId, SparseTensorProto>,
) -> ModelProto {
    let graph = &model.graph;
    let info = |&value: &ValueId| {
        let named = || ValueInfoProto { name: Some(graph.name(value).to_string()), ..Default::default() };
        graph.info(value).cloned().unwrap_or_else(named)
    };
    let alive = |value: ValueId| graph.has_source(value);
    let whole = graph.initializers().into_iter().filter(|v| !by_nonzeros.contains_key(v));
    let opaque = model.sparse.iter().filter(|(v, _)| alive(*v)).map(|(_, s)| s.clone());
    let mut proto = GraphProto {
        node: graph.sorted().into_iter().map(|n| node(graph, graph.operator(n), place)).collect(),
        initializer: whole.filter_map(|v| graph.constant(v)).map(place).collect(),
        sparse_initializer: opaque
            .chain(graph.initializers().iter().filter_map(|v| by_nonzeros.get(v).cloned()))
            .collect(),
        input: graph.inputs().iter().map(info).collect(),
        output: graph.outputs().iter().map(info).collect(),
        value_info: listed(model),
        ..model.graph_header.clone()
    };
    let is_alive = |name: &str| graph.find(name).is_some_and(alive);
    proto.quantization_annotation.retain(|a| is_alive(a.tensor_name()));
    ModelProto { graph: Some(proto), ..model.header.clone() }
}

/// Declared types of inner values, in the order of the file, and those that are declared again.
fn listed(model: &Model) -> Vec<ValueInfoProto> {
    let graph = &model.graph;
    let mut infos = Vec::with_capacity(model.listed.len());
    let mut repeated = model.repeated.iter().filter(|(_, i)| graph.find(i.name()).is_some_and(|v| graph.holds(v)));
    let mut next = repeated.next();
    for place in 0..=model.listed.len() {
        while let Some((_, info)) = next.filter(|(before, _)| *before <= place) {
            infos.push(info.clone());
            next = repeated.next();
        }
        let value = model.listed.get(place).filter(|&&v| graph.holds(v));
        infos.extend(value.and_then(|&v| graph.info(v)).cloned());
    }
    infos
}

fn node(graph: &Graph, operator: &Operator, place: &dyn Fn(&Tensor) -> TensorProto) -> NodeProto {
    let name = |value: &Option<ValueId>| value.map_or(String::new(), |v| graph.name(v).to_string());
    let text = |s: &str, explicit: &Option<String>| (!s.is_empty()).then(|| s.to_string()).or_else(|| explicit.clone());
    let rest = &operator.rest;
    let mut attributes = operator.attributes.clone();
    if let Some(tensor) = operator.output(0).and_then(|v| graph.constant(v)).filter(|t| t.external().is_some()) {
        attributes[0].t = Some(place(tensor));
    }
    NodeProto {
        input: operator.inputs().iter().map(name).collect(),
        output: operator.outputs().iter().map(name).collect(),
        name: text(&operator.name, &rest.name),
        op_type: text(&operator.op_type, &rest.op_type),
        domain: text(&operator.domain, &rest.domain),
        attribute: attributes,
        ..rest.clone()
    }
}
