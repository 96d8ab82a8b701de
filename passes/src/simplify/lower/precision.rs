//! Another floating-point type for a whole model.

use crate::ir::schema::{AttributeProto, GraphProto, TensorProto, TypeProto, ValueInfoProto, type_proto};
use crate::ir::{ElementType, Model, Operator, Tensor, ValueId};

/// Makes everything f32 that is f16 or bf16; f64 too where weights of matrix products are.
pub(super) fn to_single(model: &mut Model) {
    if let Some(precision) = Precision::of(model) {
        precision.convert(model);
    }
}

/// Whether there is anything in a model that is to become f32.
pub fn changes_precision(model: &Model) -> bool {
    Precision::of(model).is_some()
}

#[derive(Clone, Copy)]
struct Precision {
    double: bool,
}

impl Precision {
    /// What is to be converted in a model; `None` where nothing is.
    fn of(model: &Model) -> Option<Self> {
        let graph = &model.graph;
        let is_double = |v: &ValueId| {
            graph
                .constant(*v)
                .is_some_and(|t| t.element() == ElementType::F64 && t.dims().iter().filter(|&&d| d > 1).count() > 1)
        };
        let double = graph.initializers().iter().any(is_double);
        let constants = graph.initializers().into_iter().filter_map(|v| graph.constant(v)).map(Tensor::element);
        let declared = graph.inputs().iter().filter_map(|&v| crate::signature::tensor_type(graph.info(v)?)?.elem_type);
        let casts =
            graph.sorted().into_iter().map(|n| graph.operator(n)).filter(|o| o.is("Cast")).map(|o| o.int("to", 0));
        let mut types: Vec<i32> = constants.map(ElementType::code).chain(declared).collect();
        types.extend(casts.map(|code| code as i32));
        let precision = Precision { double };
        types.iter().any(|&code| precision.changes(code)).then_some(precision)
    }

    fn changes(self, code: i32) -> bool {
        match ElementType::from_code(code) {
            Some(ElementType::F16 | ElementType::BF16) => true,
            Some(ElementType::F64) => self.double,
            _ => false,
        }
    }

    fn convert(self, model: &mut Model) {
        let graph = &mut model.graph;
        for value in graph.values() {
            if let Some(single) = graph.constant(value).and_then(|t| self.tensor(t)) {
                graph.set_constant(value, single.named(graph.name(value)));
            }
            if let Some(mut info) = graph.info(value).cloned() {
                self.info(&mut info);
                graph.set_info(value, Some(info));
            }
        }
        for node in graph.sorted() {
            self.operator(graph.operator_mut(node));
        }
    }

    fn operator(self, operator: &mut Operator) {
        operator.attributes.iter_mut().for_each(|a| self.attribute(a));
    }

    fn attribute(self, attribute: &mut AttributeProto) {
        if let (Some("to" | "dtype"), Some(code)) = (attribute.name.as_deref(), attribute.i)
            && self.changes(code as i32)
        {
            attribute.i = Some(ElementType::F32.code().into());
        }
        attribute.t.iter_mut().chain(&mut attribute.tensors).for_each(|t| self.proto(t));
        attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|g| self.graph(g));
        attribute.tp.iter_mut().chain(&mut attribute.type_protos).for_each(|t| self.type_of(t));
    }

    fn graph(self, graph: &mut GraphProto) {
        graph.initializer.iter_mut().for_each(|t| self.proto(t));
        let infos = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info);
        infos.for_each(|info| self.info(info));
        graph.node.iter_mut().flat_map(|n| &mut n.attribute).for_each(|a| self.attribute(a));
    }

    fn proto(self, proto: &mut TensorProto) {
        let tensor = Tensor::from_proto(proto.clone(), None).ok();
        if let Some(single) = tensor.and_then(|t| self.tensor(&t)) {
            *proto = single.named(proto.name()).proto().clone();
        }
    }

    fn tensor(self, tensor: &Tensor) -> Option<Tensor> {
        let changes = self.changes(tensor.element().code());
        changes.then(|| tensor.to_f64().and_then(|a| Tensor::from_floats(ElementType::F32, &a)).ok()).flatten()
    }

    fn info(self, info: &mut ValueInfoProto) {
        info.r#type.iter_mut().for_each(|t| self.type_of(t));
    }

    fn type_of(self, kind: &mut TypeProto) {
        if let Some(type_proto::Value::TensorType(tensor)) = &mut kind.value
            && tensor.elem_type.is_some_and(|code| self.changes(code))
        {
            tensor.elem_type = Some(ElementType::F32.code());
        }
    }
}
