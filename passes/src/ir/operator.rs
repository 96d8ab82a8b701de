//! Operators and their attributes.

use bytes::Bytes;

use super::{Tensor, ValueId};
use crate::ir::schema::{AttributeProto, NodeProto};

/// One operator of a graph.
#[derive(Clone, Debug, Default)]
pub struct Operator {
    /// The operator's type, such as `MatMul`.
    pub op_type: String,
    /// Its operator set; empty for the standard one.
    pub domain: String,
    /// The node's name in the file; may be empty.
    pub name: String,
    /// What it reads; `None` is an optional input that was left out.
    pub(crate) inputs: Vec<Option<ValueId>>,
    /// What it writes; `None` is an optional output that was left out.
    pub(crate) outputs: Vec<Option<ValueId>>,
    /// What its subgraphs read from outside themselves.
    pub(crate) captures: Vec<ValueId>,
    /// Its attributes.
    pub attributes: Vec<AttributeProto>,
    /// Whatever else the file says of the node (the fields above are empty here).
    pub(crate) rest: NodeProto,
}

impl Operator {
    /// A new operator of the standard operator set, without inputs or outputs yet.
    pub fn new(op_type: &str) -> Self {
        Self { op_type: op_type.to_string(), ..Self::default() }
    }

    /// This operator of another operator set.
    pub fn of(mut self, domain: &str) -> Self {
        self.domain = domain.to_string();
        self
    }

    /// This operator with one more attribute.
    pub fn with(mut self, attribute: AttributeProto) -> Self {
        self.attributes.push(attribute);
        self
    }

    /// Whether this is the operator `op_type` of the standard operator set.
    pub fn is(&self, op_type: &str) -> bool {
        self.is_standard() && self.op_type == op_type
    }

    /// Whether the operator belongs to the standard operator set.
    pub fn is_standard(&self) -> bool {
        matches!(self.domain.as_str(), "" | "ai.onnx")
    }

    /// Whether it is a matrix product.
    pub fn is_product(&self) -> bool {
        self.is("MatMul") || self.is("Gemm")
    }

    /// Whether it multiplies and sums: a matrix product, a convolution, or any product that Einstein's notation has.
    pub fn contracts(&self) -> bool {
        self.is_product() || self.is("Conv") || self.is("Einsum")
    }

    /// The inputs; `None` is an optional input that was left out.
    pub fn inputs(&self) -> &[Option<ValueId>] {
        &self.inputs
    }

    /// The outputs; `None` is an optional output that was left out.
    pub fn outputs(&self) -> &[Option<ValueId>] {
        &self.outputs
    }

    /// Values that subgraphs of this operator read from the graph around them.
    pub fn captures(&self) -> &[ValueId] {
        &self.captures
    }

    /// The value at input `slot`, if there is one.
    pub fn input(&self, slot: usize) -> Option<ValueId> {
        self.inputs.get(slot).copied().flatten()
    }

    /// The value at output `slot`, if there is one.
    pub fn output(&self, slot: usize) -> Option<ValueId> {
        self.outputs.get(slot).copied().flatten()
    }

    /// The attribute called `name`.
    pub fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attributes.iter().find(|a| a.name.as_deref() == Some(name))
    }

    /// The integer attribute `name`, or `default` where it is not given.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).and_then(|a| a.i).unwrap_or(default)
    }

    /// The float attribute `name`, or `default` where it is not given.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).and_then(|a| a.f).unwrap_or(default)
    }

    /// The list attribute `name`, if it is given.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(|a| a.ints.as_slice())
    }

    /// The string attribute `name`, or `default` where it is not given.
    pub fn text<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        let given = self.attribute(name).and_then(|a| a.s.as_ref());
        given.and_then(|s| std::str::from_utf8(s).ok()).unwrap_or(default)
    }

    /// How messages name this operator: its name where it has one, else its first output's.
    pub fn label<'a>(&'a self, first_output: &'a str) -> String {
        let name = if self.name.is_empty() { first_output } else { &self.name };
        format!("{} {name:?}", self.op_type)
    }
}

/// Constructors of attributes.
pub mod attribute {
    use super::*;

    const FLOAT: i32 = 1;
    const INT: i32 = 2;
    const STRING: i32 = 3;
    const TENSOR: i32 = 4;
    const INTS: i32 = 7;

    fn typed(name: &str, code: i32) -> AttributeProto {
        AttributeProto { name: Some(name.to_string()), r#type: Some(code), ..AttributeProto::default() }
    }

    /// An integer attribute.
    pub fn int(name: &str, value: i64) -> AttributeProto {
        AttributeProto { i: Some(value), ..typed(name, INT) }
    }

    /// A float attribute.
    pub fn float(name: &str, value: f32) -> AttributeProto {
        AttributeProto { f: Some(value), ..typed(name, FLOAT) }
    }

    /// A list of integers.
    pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
        AttributeProto { ints: values.to_vec(), ..typed(name, INTS) }
    }

    /// A string attribute.
    pub fn text(name: &str, value: &str) -> AttributeProto {
        AttributeProto { s: Some(Bytes::copy_from_slice(value.as_bytes())), ..typed(name, STRING) }
    }

    /// A tensor attribute.
    pub fn tensor(name: &str, value: &Tensor) -> AttributeProto {
        AttributeProto { t: Some(value.proto().clone()), ..typed(name, TENSOR) }
    }
}
