//! Random graphs that every runtime accepts: transformers of odd shapes, and operators put together at will.

use kprune_passes::ir::schema::{ValueInfoProto, tensor_shape_proto, type_proto};
use kprune_passes::ir::{ElementType, Graph, Model, Operator, Tensor, ValueId, attribute};
use kprune_passes::signature::declare;
use ndarray::{ArrayD, IxDyn};

use crate::Choices;

/// The length of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Len {
    Batch,
    Tokens,
    Fixed(usize),
}

use Len::{Batch, Fixed, Tokens};

/// A value, and its shape.
#[derive(Clone, Debug)]
struct Made {
    value: ValueId,
    shape: Vec<Len>,
}

/// A random model of one input `x` [batch, tokens, width], of f32 values alone.
pub fn graph(choices: &mut Choices) -> Model {
    let width = 2 + choices.below(6);
    let mut graph = Graph::new();
    let x = graph.add_input(named(declare("x", ElementType::F32, 3), &["N", "L"], width));
    let x = Made { value: x, shape: vec![Batch, Tokens, Fixed(width)] };
    let mut writer = Writer { graph, choices, width, weights: Vec::new(), made: vec![x.clone()] };
    let mut stream = x;
    for _ in 0..1 + writer.choices.below(4) {
        stream = writer.sublayer(&stream);
        for _ in 0..writer.choices.below(4) {
            writer.anything();
        }
    }
    if writer.choices.once_in(2) {
        stream = writer.norm(&stream);
    }
    if writer.choices.once_in(3) {
        let classes = 1 + writer.choices.below(4);
        stream = writer.linear(&stream, classes);
    }
    writer.graph.add_output(stream.value);
    if writer.choices.once_in(3) {
        let other = writer.any();
        if other.value != stream.value && other.value != writer.made[0].value {
            writer.graph.add_output(other.value);
        }
    }
    writer.graph.remove_dead();
    let opset = *writer.choices.one(&[13, 17, 18, 20]);
    let is_newer = writer.has("LayerNormalization") || writer.has("HardSwish");
    let opset = if is_newer { opset.max(17) } else { opset };
    Model::new(writer.graph, opset)
}

/// An input whose first axes have names and whose last has a length.
fn named(mut info: ValueInfoProto, names: &[&str], width: usize) -> ValueInfoProto {
    let tensor = info.r#type.as_mut().and_then(|t| t.value.as_mut());
    if let Some(type_proto::Value::TensorType(tensor)) = tensor {
        for (i, dim) in tensor.shape.iter_mut().flat_map(|s| &mut s.dim).enumerate() {
            dim.value = Some(match names.get(i) {
                Some(name) => tensor_shape_proto::dimension::Value::DimParam(name.to_string()),
                None => tensor_shape_proto::dimension::Value::DimValue(width as i64),
            });
        }
    }
    info
}

struct Writer<'c, 'b> {
    graph: Graph,
    choices: &'c mut Choices<'b>,
    width: usize,
    /// Weights that were made before, with their shapes.
    weights: Vec<(ValueId, Vec<usize>)>,
    made: Vec<Made>,
}

impl Writer<'_, '_> {
    fn has(&self, op_type: &str) -> bool {
        self.graph.sorted().into_iter().any(|n| self.graph.operator(n).is(op_type))
    }

    /// A weight, now and then one that others use too.
    fn weight(&mut self, dims: &[usize]) -> ValueId {
        let known: Vec<ValueId> = self.weights.iter().filter(|(_, d)| d == dims).map(|(v, _)| *v).collect();
        if !known.is_empty() && self.choices.once_in(6) {
            return *self.choices.one(&known);
        }
        let values = (0..dims.iter().product()).map(|_| self.choices.number()).collect();
        let array = ArrayD::from_shape_vec(IxDyn(dims), values).expect("as many numbers as the shape holds");
        let tensor = Tensor::from_floats(ElementType::F32, &array).expect("f32 is a type of floats");
        let value = self.graph.add_constant("w", tensor);
        self.weights.push((value, dims.to_vec()));
        value
    }

    fn integers(&mut self, values: &[i64]) -> ValueId {
        self.graph.add_constant("i", Tensor::from_i64s(&[values.len()], values))
    }

    fn op(&mut self, operator: Operator, inputs: &[ValueId], shape: &[Len]) -> Made {
        let value = self.graph.add(operator, inputs, "v");
        let made = Made { value, shape: shape.to_vec() };
        self.made.push(made.clone());
        made
    }

    fn simple(&mut self, op_type: &str, inputs: &[ValueId], shape: &[Len]) -> Made {
        self.op(Operator::new(op_type), inputs, shape)
    }

    fn any(&mut self) -> Made {
        let place = self.choices.below(self.made.len());
        self.made[place].clone()
    }

    fn linear(&mut self, x: &Made, to: usize) -> Made {
        let Some(Fixed(from)) = x.shape.last().copied() else { return x.clone() };
        let mut shape = x.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = Fixed(to);
        }
        let weight = self.weight(&[from, to]);
        let mut y = self.simple("MatMul", &[x.value, weight], &shape);
        if self.choices.once_in(2) {
            let bias = self.weight(&[to]);
            let order = if self.choices.once_in(2) { [y.value, bias] } else { [bias, y.value] };
            y = self.simple("Add", &order, &shape);
        }
        y
    }

    fn norm(&mut self, x: &Made) -> Made {
        let Some(Fixed(width)) = x.shape.last().copied() else { return x.clone() };
        let (scale, bias) = (self.weight(&[width]), self.weight(&[width]));
        self.simple("LayerNormalization", &[x.value, scale, bias], &x.shape.clone())
    }

    fn activation(&mut self, x: &Made) -> Made {
        let op =
            *self.choices.one(&["Relu", "Tanh", "Sigmoid", "Erf", "Softplus", "HardSwish", "Identity", "Abs", "Neg"]);
        self.simple(op, &[x.value], &x.shape.clone())
    }

    /// Something that is added to the stream, with a norm before, behind, or none.
    fn sublayer(&mut self, x: &Made) -> Made {
        let kind = self.choices.below(5);
        let inner = if kind < 2 { self.norm(x) } else { x.clone() };
        let y = match self.choices.below(3) {
            0 => self.attention(&inner),
            1 => self.feed_forward(&inner),
            _ => self.odd_branch(&inner),
        };
        let order = if self.choices.once_in(2) { [x.value, y.value] } else { [y.value, x.value] };
        let sum = self.simple("Add", &order, &x.shape.clone());
        if kind == 2 { self.norm(&sum) } else { sum }
    }

    fn feed_forward(&mut self, x: &Made) -> Made {
        let inner = 2 + self.choices.below(8);
        let mut h = self.linear(x, inner);
        if self.choices.once_in(2) {
            h = self.activation(&h);
        }
        if self.choices.once_in(3) {
            let gate = self.linear(x, inner);
            let gate = self.activation(&gate);
            h = self.simple("Mul", &[h.value, gate.value], &h.shape.clone());
        }
        self.linear(&h, self.width)
    }

    /// Attention with heads or without, queries, keys and values from one projection or from three.
    fn attention(&mut self, x: &Made) -> Made {
        let (heads, each) = (1 + self.choices.below(4), 1 + self.choices.below(4));
        let all = heads * each;
        let first = self.linear(x, all);
        let parts = match self.choices.below(4) {
            0 => [first.clone(), first.clone(), first],
            1 => {
                let values = self.linear(x, all);
                [first.clone(), first, values]
            }
            _ => {
                let (keys, values) = (self.linear(x, all), self.linear(x, all));
                [first, keys, values]
            }
        };
        let has_heads = heads > 1 || self.choices.once_in(2);
        let split = |w: &mut Self, part: &Made| {
            if !has_heads {
                return part.clone();
            }
            let target = w.integers(&[0, 0, heads as i64, each as i64]);
            let apart = w.simple("Reshape", &[part.value, target], &[Batch, Tokens, Fixed(heads), Fixed(each)]);
            w.transpose(&apart, &[0, 2, 1, 3])
        };
        let [q, k, v] = parts.each_ref().map(|part| split(self, part));
        let order: &[usize] = if has_heads { &[0, 1, 3, 2] } else { &[0, 2, 1] };
        let keys = self.transpose(&k, order);
        let mut square = q.shape.clone();
        if let Some(last) = square.last_mut() {
            *last = Tokens;
        }
        let mut scores = self.simple("MatMul", &[q.value, keys.value], &square);
        if self.choices.once_in(4) {
            let bias = if has_heads { self.weight(&[heads, 1, 1]) } else { self.weight(&[1]) };
            scores = self.simple("Add", &[scores.value, bias], &square);
        }
        if !self.choices.once_in(4) {
            scores = self.op(Operator::new("Softmax").with(attribute::int("axis", -1)), &[scores.value], &square);
        }
        let mut context = self.simple("MatMul", &[scores.value, v.value], &v.shape.clone());
        if has_heads {
            let turned = self.transpose(&context, &[0, 2, 1, 3]);
            let target = self.integers(&[0, 0, all as i64]);
            context = self.simple("Reshape", &[turned.value, target], &[Batch, Tokens, Fixed(all)]);
        }
        self.linear(&context, self.width)
    }

    fn transpose(&mut self, x: &Made, order: &[usize]) -> Made {
        let shape: Vec<Len> = order.iter().map(|&a| x.shape[a]).collect();
        let perm: Vec<i64> = order.iter().map(|&a| a as i64).collect();
        self.op(Operator::new("Transpose").with(attribute::ints("perm", &perm)), &[x.value], &shape)
    }

    /// A projection of something that was put together at will.
    fn odd_branch(&mut self, x: &Made) -> Made {
        let width = 2 + self.choices.below(6);
        let mut y = self.linear(x, width);
        for _ in 0..self.choices.below(4) {
            y = self.step(&y);
        }
        match y.shape.as_slice() {
            [Batch, Tokens, Fixed(_)] => self.linear(&y, self.width),
            _ => self.linear(x, self.width),
        }
    }

    /// One more operator behind any value.
    fn anything(&mut self) {
        let x = self.any();
        self.step(&x);
    }

    fn step(&mut self, x: &Made) -> Made {
        let shape = x.shape.clone();
        let last = shape.len() - 1;
        let Some(Fixed(width)) = shape.last().copied() else { return self.activation(x) };
        match self.choices.below(13) {
            0 => self.norm(x),
            1 => self.op(Operator::new("Softmax").with(attribute::int("axis", -1)), &[x.value], &shape),
            2 => {
                let to = 1 + self.choices.below(8);
                self.linear(x, to)
            }
            3 => {
                let alike: Vec<Made> = self.made.iter().filter(|m| m.shape == shape).cloned().collect();
                let other = if alike.is_empty() { x.clone() } else { self.choices.one(&alike).clone() };
                let op = *self.choices.one(&["Add", "Mul", "Sub", "Max"]);
                self.simple(op, &[x.value, other.value], &shape)
            }
            4 => {
                let dims = if self.choices.once_in(2) { vec![width] } else { vec![1] };
                let constant = self.weight(&dims);
                let op = *self.choices.one(&["Add", "Mul", "Sub"]);
                self.simple(op, &[x.value, constant], &shape)
            }
            5 => {
                let from = self.choices.below(width);
                let to = from + 1 + self.choices.below(width - from);
                let parts = [from as i64, to as i64, last as i64].map(|n| self.integers(&[n]));
                let mut cut = shape;
                cut[last] = Fixed(to - from);
                self.simple("Slice", &[x.value, parts[0], parts[1], parts[2]], &cut)
            }
            6 => {
                let same = |m: &&Made| m.shape.len() == shape.len() && m.shape[..last] == shape[..last];
                let fitting: Vec<Made> = self.made.iter().filter(same).cloned().collect();
                let other = if fitting.is_empty() { x.clone() } else { self.choices.one(&fitting).clone() };
                let Some(Fixed(more)) = other.shape.last().copied() else { return x.clone() };
                let mut joined = shape;
                joined[last] = Fixed(width + more);
                let concat = Operator::new("Concat").with(attribute::int("axis", last as i64));
                self.op(concat, &[x.value, other.value], &joined)
            }
            7 => {
                let count = 1 + self.choices.below(width + 1);
                let picked: Vec<i64> = (0..count).map(|_| self.choices.below(width) as i64).collect();
                let indices = self.integers(&picked);
                let mut cut = shape;
                cut[last] = Fixed(count);
                let gather = Operator::new("Gather").with(attribute::int("axis", last as i64));
                self.op(gather, &[x.value, indices], &cut)
            }
            8 if width.is_multiple_of(2) => {
                let mut apart = shape.clone();
                apart.splice(last.., [Fixed(2), Fixed(width / 2)]);
                let mut target = vec![0; last];
                target.extend([2, width as i64 / 2]);
                let target = self.integers(&target);
                let apart = self.simple("Reshape", &[x.value, target], &apart);
                let mut target = vec![0; last];
                target.push(width as i64);
                let target = self.integers(&target);
                if self.choices.once_in(2) {
                    return apart;
                }
                let turned = self.activation(&apart);
                self.simple("Reshape", &[turned.value, target], &shape)
            }
            9 => {
                let mut left = shape.clone();
                left[last] = Fixed(1);
                // In version 18 axes became an input, and before it they are an attribute.
                let axes = self.integers(&[last as i64]);
                let mean = self.simple("ReduceSum", &[x.value, axes], &left);
                self.simple("Sub", &[x.value, mean.value], &shape)
            }
            10 => {
                let mut order: Vec<usize> = (0..shape.len()).collect();
                let (a, b) = (self.choices.below(order.len()), self.choices.below(order.len()));
                order.swap(a, b);
                let turned = self.transpose(x, &order);
                if self.choices.once_in(3) { turned } else { self.transpose(&turned, &order) }
            }
            11 => {
                let times = 1 + self.choices.below(2);
                let mut repeats = vec![1; last];
                repeats.push(times as i64);
                let repeats = self.integers(&repeats);
                let mut longer = shape;
                longer[last] = Fixed(width * times);
                self.simple("Tile", &[x.value, repeats], &longer)
            }
            _ => self.activation(x),
        }
    }
}
