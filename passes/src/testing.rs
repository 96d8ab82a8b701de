//! Graphs of a few operators, built by hand together with the shapes that would have been observed.

use std::collections::{BTreeMap, HashMap};

use ndarray::{ArrayD, IxDyn};

use crate::discover::provenance::{Channel, Provenance};
use crate::discover::{Discovery, discover};
use crate::ir::{ElementType, Graph, Model, Operator, Tensor, ValueId};
use crate::observe::{Dim, Observation, Seen, Sizes};
use crate::signature::declare;

/// The batch axis: 2 samples in the first run, 3 in the second.
pub(crate) const B: Dim = Dim([2, 3]);
/// The sequence axis: 5 tokens in the first run, 7 in the second.
pub(crate) const S: Dim = Dim([5, 7]);

/// A dimension that never changes.
pub(crate) const fn n(len: usize) -> Dim {
    Dim([len, len])
}

/// A graph in the making.
#[derive(Default)]
pub(crate) struct Sketch {
    pub(crate) graph: Graph,
    runs: [HashMap<ValueId, Seen>; 2],
}

impl Sketch {
    fn see(&mut self, value: ValueId, dims: &[Dim], element: ElementType, integers: [Option<ArrayD<i64>>; 2]) {
        for (run, integers) in integers.into_iter().enumerate() {
            let shape = dims.iter().map(|d| d.0[run]).collect();
            self.runs[run].insert(value, Seen { shape, element, integers });
        }
    }

    /// Notes what would have been observed of a value that an operator makes.
    pub(crate) fn look(&mut self, value: ValueId, dims: &[Dim]) {
        self.see(value, dims, ElementType::F32, [None, None]);
    }

    pub(crate) fn input(&mut self, name: &str, dims: &[Dim]) -> ValueId {
        let value = self.graph.add_input(declare(name, ElementType::F32, dims.len()));
        self.see(value, dims, ElementType::F32, [None, None]);
        value
    }

    /// A weight whose elements count up, so that every slice of it is different.
    pub(crate) fn weight(&mut self, name: &str, dims: &[usize]) -> ValueId {
        let count = dims.iter().product::<usize>();
        let values = (0..count).map(|i| i as f64 / count as f64 - 0.4).collect();
        let array = ArrayD::from_shape_vec(IxDyn(dims), values).unwrap();
        self.graph.add_constant(name, Tensor::from_floats(ElementType::F32, &array).unwrap())
    }

    pub(crate) fn integers(&mut self, name: &str, values: &[i64]) -> ValueId {
        self.graph.add_constant(name, Tensor::from_i64s(&[values.len()], values))
    }

    /// An operator without attributes whose output's shape follows from its inputs': a matrix product, or one that
    /// computes element by element.
    pub(crate) fn on(&mut self, op_type: &str, inputs: &[ValueId]) -> ValueId {
        let shapes: Vec<Vec<Dim>> = inputs.iter().map(|&v| self.dims(v)).collect();
        let dims = match op_type {
            "MatMul" => product(&shapes[0], &shapes[1]),
            _ => shapes.iter().skip(1).fold(shapes[0].clone(), |a, b| broadcast(&a, b)),
        };
        self.op(Operator::new(op_type), inputs, &dims)
    }

    fn dims(&self, value: ValueId) -> Vec<Dim> {
        match self.graph.constant(value) {
            Some(tensor) => tensor.dims().iter().map(|&len| n(len)).collect(),
            None => {
                let [a, b] = self.runs.each_ref().map(|run| &run[&value].shape);
                a.iter().zip(b).map(|(&a, &b)| Dim([a, b])).collect()
            }
        }
    }

    pub(crate) fn op(&mut self, operator: Operator, inputs: &[ValueId], dims: &[Dim]) -> ValueId {
        self.ops(operator, inputs, &[dims])[0]
    }

    pub(crate) fn ops(&mut self, operator: Operator, inputs: &[ValueId], dims: &[&[Dim]]) -> Vec<ValueId> {
        let hint = operator.op_type.to_lowercase();
        let outputs = self.graph.add_all(operator, inputs, &vec![hint.as_str(); dims.len()]);
        for (&value, dims) in outputs.iter().zip(dims) {
            self.see(value, dims, ElementType::F32, [None, None]);
        }
        outputs
    }

    /// A vector of integers that an operator computes, one element for each dimension.
    pub(crate) fn shape(&mut self, operator: Operator, inputs: &[ValueId], elements: &[Dim]) -> ValueId {
        let value = self.op(operator, inputs, &[n(elements.len())]);
        let ints = |run: usize| {
            let ints: Vec<i64> = elements.iter().map(|d| d.0[run] as i64).collect();
            Some(ArrayD::from_shape_vec(IxDyn(&[ints.len()]), ints).unwrap())
        };
        let integers = [ints(0), ints(1)];
        self.see(value, &[n(elements.len())], ElementType::I64, integers);
        value
    }

    pub(crate) fn seen(&self) -> Observation {
        let sizes = Sizes::from([("batch".into(), B.0), ("sequence".into(), S.0)]);
        Observation::new(&self.graph, sizes, self.runs.clone())
    }

    pub(crate) fn trace(&self) -> Provenance {
        Provenance::trace(&self.graph, &self.seen())
    }

    pub(crate) fn discover(&self) -> Discovery {
        discover(&self.graph, &self.seen(), &BTreeMap::from([("sequence".into(), 4.0)]))
    }

    pub(crate) fn model(&self) -> Model {
        Model::new(self.graph.clone(), 17)
    }
}

/// Dimensions of two values that broadcast.
fn broadcast(a: &[Dim], b: &[Dim]) -> Vec<Dim> {
    let rank = a.len().max(b.len());
    let at = |dims: &[Dim], axis: usize| (axis + dims.len()).checked_sub(rank).map_or(n(1), |i| dims[i]);
    (0..rank).map(|axis| if at(a, axis) == n(1) { at(b, axis) } else { at(a, axis) }).collect()
}

/// Dimensions of a matrix product.
fn product(a: &[Dim], b: &[Dim]) -> Vec<Dim> {
    let mut dims = broadcast(&a[..a.len() - 2], &b[..b.len() - 2]);
    dims.extend([a[a.len() - 2], b[b.len() - 1]]);
    dims
}

/// The class of every channel of a value that varies on one axis alone.
pub(crate) fn classes(provenance: &Provenance, value: ValueId) -> Vec<Channel> {
    let plane = provenance.planes(value).last().expect("the value has channels");
    plane.0.iter().map(|&c| provenance.channels.find(c)).collect()
}

/// Whether every channel of a value must stay.
pub(crate) fn is_frozen(provenance: &Provenance, value: ValueId) -> bool {
    let mut channels = provenance.planes(value).iter().flat_map(|p| p.0.iter());
    channels.all(|&c| provenance.channels.frozen(c).is_some())
}

/// A model of one feed-forward sublayer of so many neurons on a stream of width 4.
pub(crate) fn one_feed_forward(neurons: usize) -> Sketch {
    let mut sketch = Sketch::default();
    let x = sketch.input("x", &[B, S, n(4)]);
    let y = feed_forward(&mut sketch, x, 4, neurons);
    sketch.graph.add_output(y);
    sketch
}

/// A feed-forward sublayer on the stream `x` of the given width: up, Relu, down, bias, residual.
pub(crate) fn feed_forward(sketch: &mut Sketch, x: ValueId, width: usize, inner: usize) -> ValueId {
    let (up, down) = (sketch.weight("up", &[width, inner]), sketch.weight("down", &[inner, width]));
    let (up_bias, down_bias) = (sketch.weight("up_bias", &[inner]), sketch.weight("down_bias", &[width]));
    let h = sketch.on("MatMul", &[x, up]);
    let h = sketch.on("Add", &[h, up_bias]);
    let h = sketch.on("Relu", &[h]);
    let y = sketch.on("MatMul", &[h, down]);
    let y = sketch.on("Add", &[y, down_bias]);
    sketch.on("Add", &[y, x])
}
