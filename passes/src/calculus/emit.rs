//! Appending operators to a graph, with the differences between operator sets in one place.

use ndarray::{ArrayD, arr0};

use crate::calculus::TokenMask;
use crate::ir::{ElementType, Graph, Operator, Tensor, ValueId, attribute};
use crate::observe::Dim;

/// Appends operators whose names start with a common prefix.
pub struct Emit<'a> {
    /// The graph that grows.
    pub graph: &'a mut Graph,
    opset: i64,
    prefix: &'static str,
}

impl<'a> Emit<'a> {
    /// For a graph of the standard operator set `opset`, 13 or newer.
    pub fn new(graph: &'a mut Graph, opset: i64, prefix: &'static str) -> Self {
        Self { graph, opset, prefix }
    }

    /// The version of the standard operator set.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// An operator with one output and no attributes.
    pub fn op(&mut self, op_type: &str, inputs: &[ValueId]) -> ValueId {
        self.with(Operator::new(op_type), inputs)
    }

    /// An operator with one output.
    pub fn with(&mut self, operator: Operator, inputs: &[ValueId]) -> ValueId {
        let hint = format!("{}_{}", self.prefix, operator.op_type);
        self.graph.add(operator, inputs, &hint)
    }

    /// An operator with `count` outputs.
    pub fn many(&mut self, operator: Operator, inputs: &[ValueId], count: usize) -> Vec<ValueId> {
        let hint = format!("{}_{}", self.prefix, operator.op_type);
        self.graph.add_all(operator, inputs, &vec![hint.as_str(); count])
    }

    /// A floating-point scalar.
    pub fn number(&mut self, element: ElementType, value: f64) -> ValueId {
        self.array(element, &arr0(value).into_dyn())
    }

    /// A floating-point constant.
    ///
    /// # Panics
    /// If `element` is no floating-point type.
    pub fn array(&mut self, element: ElementType, values: &ArrayD<f64>) -> ValueId {
        let tensor = Tensor::from_floats(element, values).expect("gradients are of floating-point types");
        self.graph.add_constant(&format!("{}_constant", self.prefix), tensor)
    }

    /// A vector of integers.
    pub fn integers(&mut self, values: &[i64]) -> ValueId {
        self.graph.add_constant(&format!("{}_integers", self.prefix), Tensor::from_i64s(&[values.len()], values))
    }

    /// A scalar integer.
    pub fn integer(&mut self, value: i64) -> ValueId {
        self.graph.add_constant(&format!("{}_integer", self.prefix), Tensor::from_i64s(&[], &[value]))
    }

    /// A sum over axes.
    pub fn reduce_sum(&mut self, value: ValueId, axes: &[i64], keep: bool) -> ValueId {
        let axes = self.integers(axes);
        self.with(Operator::new("ReduceSum").with(attribute::int("keepdims", keep as i64)), &[value, axes])
    }

    /// A sum of squares over axes.
    pub fn sum_of_squares(&mut self, value: ValueId, axes: &[i64], keep: bool) -> ValueId {
        let operator = Operator::new("ReduceSumSquare").with(attribute::int("keepdims", keep as i64));
        self.reduced(operator, value, axes)
    }

    /// A mean over axes, which stay with length 1.
    pub fn reduce_mean(&mut self, value: ValueId, axes: &[i64]) -> ValueId {
        let operator = Operator::new("ReduceMean").with(attribute::int("keepdims", 1));
        self.reduced(operator, value, axes)
    }

    /// A reduction, whose axes became an input with version 18.
    fn reduced(&mut self, operator: Operator, value: ValueId, axes: &[i64]) -> ValueId {
        if self.opset < 18 {
            return self.with(operator.with(attribute::ints("axes", axes)), &[value]);
        }
        let axes = self.integers(axes);
        self.with(operator, &[value, axes])
    }

    /// New axes of length 1.
    pub fn unsqueeze(&mut self, value: ValueId, axes: &[i64]) -> ValueId {
        let axes = self.integers(axes);
        self.op("Unsqueeze", &[value, axes])
    }

    /// Another order of the axes.
    pub fn transpose(&mut self, value: ValueId, order: &[i64]) -> ValueId {
        self.with(Operator::new("Transpose").with(attribute::ints("perm", order)), &[value])
    }

    /// The same elements in the shape of `like`.
    pub fn reshape_like(&mut self, value: ValueId, like: ValueId) -> ValueId {
        let shape = self.op("Shape", &[like]);
        self.op("Reshape", &[value, shape])
    }

    /// Another element type.
    pub fn cast(&mut self, value: ValueId, element: ElementType) -> ValueId {
        self.with(Operator::new("Cast").with(attribute::int("to", element.code().into())), &[value])
    }

    /// The length of one axis, as a vector of one integer.
    pub fn length(&mut self, value: ValueId, axis: usize) -> ValueId {
        let shape = self.op("Shape", &[value]);
        let index = self.integers(&[axis as i64]);
        self.with(Operator::new("Gather").with(attribute::int("axis", 0)), &[shape, index])
    }

    /// 1 where a mask says that a token is real, and 0 elsewhere.
    pub fn real(&mut self, mask: TokenMask, element: ElementType) -> ValueId {
        let flags = self.cast(mask.input, ElementType::Bool);
        let real = if mask.marks_padding { self.op("Not", &[flags]) } else { flags };
        self.cast(real, element)
    }

    /// The same, or 1 for every one of the `tokens` where there is no mask.
    pub fn real_of(&mut self, mask: Option<TokenMask>, tokens: ValueId, element: ElementType) -> ValueId {
        if let Some(mask) = mask {
            return self.real(mask, element);
        }
        let (tokens, zero, one) = (self.cast(tokens, element), self.number(element, 0.0), self.number(element, 1.0));
        let nothing = self.op("Mul", &[tokens, zero]);
        self.op("Add", &[nothing, one])
    }

    /// Sums a value of dimensions `from` over the axes along which a value of dimensions `to` was
    /// repeated to give it: the reverse of broadcasting.
    pub fn unbroadcast(&mut self, value: ValueId, from: &[Dim], to: &[Dim]) -> ValueId {
        let extra = from.len() - to.len();
        let one = |d: &Dim| d.fixed() == Some(1);
        let stretched = |&i: &usize| i >= extra && one(&to[i - extra]) && !one(&from[i]);
        let repeated: Vec<i64> = (0..from.len()).filter(stretched).map(|i| i as i64).collect();
        let mut sum = value;
        if !repeated.is_empty() {
            sum = self.reduce_sum(sum, &repeated, true);
        }
        if extra > 0 {
            let leading: Vec<i64> = (0..extra as i64).collect();
            sum = self.reduce_sum(sum, &leading, false);
        }
        sum
    }
}
