//! A graph with what the file says around it.

use super::{Graph, ValueId};
use crate::ir::schema::{GraphProto, ModelProto, OperatorSetIdProto, SparseTensorProto, ValueInfoProto};
use crate::signature;

/// A model: a graph, and everything else that its file holds.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The operators and values.
    pub graph: Graph,
    /// The file's other fields: versions, operator sets, functions, metadata. Its `graph` is empty.
    pub(crate) header: ModelProto,
    /// The graph's other fields: name, doc string, metadata, annotations. Its lists are empty.
    pub(crate) graph_header: GraphProto,
    /// Constants given by their non-zero elements that could not be made whole; opaque to every pass.
    pub(crate) sparse: Vec<(ValueId, SparseTensorProto)>,
    /// Constants that the file gives so, and that are whole here.
    pub(crate) by_nonzeros: Vec<ValueId>,
    /// The order in which declared types are listed.
    pub(crate) listed: Vec<ValueId>,
    /// Types that are declared a second time, with how many are listed before them.
    pub(crate) repeated: Vec<(usize, ValueInfoProto)>,
}

impl Model {
    /// A model of `graph` alone, for version `opset` of the standard operator set.
    pub fn new(graph: Graph, opset: i64) -> Self {
        let import = OperatorSetIdProto { domain: Some(String::new()), version: Some(opset) };
        // IR version 8 belongs to operator sets up to 18, and newer runtimes read it.
        let header = ModelProto { ir_version: Some(8), opset_import: vec![import], ..ModelProto::default() };
        let graph_header = GraphProto { name: Some("graph".into()), ..GraphProto::default() };
        Self { graph, header, graph_header, ..Self::default() }
    }

    /// The version of an operator set that the model imports; `""` is the standard one.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let standard = |d: &str| if d == "ai.onnx" { String::new() } else { d.to_string() };
        self.header
            .opset_import
            .iter()
            .find(|o| standard(o.domain.as_deref().unwrap_or("")) == domain)
            .and_then(|o| o.version)
    }

    /// Writes down all declared types and shapes of inner values with the graph, each once.
    pub fn list_declared(&mut self) {
        let graph = &self.graph;
        let made = graph.sorted().into_iter().flat_map(|n| graph.operator(n).outputs()).flatten().copied();
        self.listed = made.filter(|&v| graph.info(v).is_some() && !graph.outputs().contains(&v)).collect();
        self.repeated.clear();
    }

    /// Lets the file give constants by their elements that are not zero, where that takes fewer bytes.
    pub fn store_by_nonzeros(&mut self, constants: impl IntoIterator<Item = ValueId>) {
        for value in constants {
            if !self.by_nonzeros.contains(&value) {
                self.by_nonzeros.push(value);
            }
        }
    }

    /// Whether shapes of inner values are declared.
    pub fn declares_shapes(&self) -> bool {
        !self.listed.is_empty()
    }

    /// This model with no shape of an inner value declared, and no two axes of inputs and outputs said to be alike.
    pub fn without_declared_shapes(&self) -> Self {
        let mut plain = Self { listed: Vec::new(), repeated: Vec::new(), ..self.clone() };
        let graph = &mut plain.graph;
        for value in graph.inputs().iter().chain(graph.outputs()).copied().collect::<Vec<_>>() {
            let info = graph.info(value).cloned().map(signature::without_symbols);
            graph.set_info(value, info);
        }
        plain
    }

    /// The element type in which a constant is stored in the file.
    pub fn stored(&self, value: ValueId) -> Option<super::ElementType> {
        self.graph.constant(value).map(|tensor| tensor.stored().unwrap_or(tensor.element()))
    }

    /// This model with another operator set imported.
    pub fn importing(mut self, domain: &str, version: i64) -> Self {
        let import = OperatorSetIdProto { domain: Some(domain.to_string()), version: Some(version) };
        self.header.opset_import.push(import);
        self
    }

    /// Imports at least version `opset` of the standard operator set, in at least version `format` of the format.
    pub(crate) fn raise_opset(&mut self, opset: i64, format: i64) {
        for import in &mut self.header.opset_import {
            if matches!(import.domain.as_deref().unwrap_or(""), "" | "ai.onnx") {
                import.version = import.version.map(|v| v.max(opset));
            }
        }
        self.header.ir_version = self.header.ir_version.map(|v| v.max(format));
    }

    /// Makes initializers that are listed as inputs too initializers only. Before version 4 of the format every
    /// initializer had to be listed, so the version rises where it has to.
    pub(crate) fn unlist_constants(&mut self) {
        if self.graph.unlist_constants() {
            self.header.ir_version = self.header.ir_version.map(|v| v.max(4));
        }
    }

    /// The file's fields outside the graph.
    pub fn header(&self) -> &ModelProto {
        &self.header
    }

    /// Whether an operator is defined by a function of the model.
    pub fn is_function(&self, domain: &str, op_type: &str) -> bool {
        self.header
            .functions
            .iter()
            .any(|f| f.domain.as_deref().unwrap_or("") == domain && f.name.as_deref().unwrap_or("") == op_type)
    }
}
