//! Shapes as they are seen in two runs of the model with different sizes.
//!
//! Nothing is inferred: a dimension that is the same in both runs is static, one that changes follows
//! the sizes of the inputs. Every shape computation that an exporter writes is thereby understood
//! without a rule for it.

use std::collections::{BTreeMap, HashMap};

use ndarray::ArrayD;

use crate::ir::{ElementType, Graph, Model, Operator, ValueId};

/// Values of at most this many integers are kept: shapes, axes, indices.
const MOST_INTEGERS: usize = 1 << 16;

/// Lengths of the named axes of the inputs in the two runs.
pub type Sizes = BTreeMap<String, [usize; 2]>;

/// What one run showed of one value.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its element type.
    pub element: ElementType,
    /// Its elements, where they are integers and not too many.
    pub integers: Option<ArrayD<i64>>,
}

impl Seen {
    /// Whether the elements of a value of this type and size should be handed over.
    pub fn wants_integers(element: ElementType, count: usize) -> bool {
        matches!(element, ElementType::I64 | ElementType::I32) && count <= MOST_INTEGERS
    }
}

/// The model with every value as an output. A session of it knows their types without being run.
pub fn with_every_value(model: &Model) -> (Model, Vec<ValueId>) {
    let mut every = model.clone();
    let values = made(&every.graph);
    for &value in &values {
        if !every.graph.outputs().contains(&value) {
            every.graph.add_output(value);
        }
    }
    (every, values)
}

fn made(graph: &Graph) -> Vec<ValueId> {
    let operators = graph.sorted().into_iter().map(|node| graph.operator(node));
    operators.filter(|operator| !operator.is("Constant")).flat_map(|o| o.outputs().iter().flatten().copied()).collect()
}

/// How a value is seen in a run of an observed model.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The value.
    pub value: ValueId,
    /// Its element type.
    pub element: ElementType,
    /// The output that shows it.
    pub output: String,
    /// Whether the output is the value itself, or else its shape.
    pub is_whole: bool,
}

/// The graph to run twice, whose outputs are integers as they are, and of all other tensors only their shapes, so that no
/// more is held at a time than in any other run. `element` gives the types of values by name.
pub fn observed_model(model: &Model, element: impl Fn(&str) -> Option<ElementType>) -> (Model, Vec<Watched>) {
    let mut seen = model.clone();
    if seen.opset("").is_none() {
        seen = seen.importing("", OLDEST);
    }
    let graph = &mut seen.graph;
    let mut watched = Vec::new();
    let mut outputs = Vec::new();
    // ONNX Runtime begins with the last operator that nothing reads: so each shape is taken as soon as its value is there.
    for value in made(graph).into_iter().rev() {
        let Some(element) = element(graph.name(value)) else { continue };
        let is_whole = Seen::wants_integers(element, 0);
        let output = if is_whole { value } else { graph.add(Operator::new("Shape"), &[value], "shape") };
        outputs.push(output);
        watched.push(Watched { value, element, output: graph.name(output).to_string(), is_whole });
    }
    graph.set_outputs(&outputs);
    (seen, watched)
}

/// The oldest operator set that models have once they are imported.
const OLDEST: i64 = 13;

/// One dimension, as long as it was in each of the two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dim(pub [usize; 2]);

impl Dim {
    /// The length, where it is the same whatever the inputs' sizes.
    pub fn fixed(self) -> Option<usize> {
        (self.0[0] == self.0[1]).then_some(self.0[0])
    }
}

/// Shapes and integers of a model's values in two runs.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    sizes: Sizes,
    seen: HashMap<ValueId, [Seen; 2]>,
    counted: HashMap<ValueId, Vec<usize>>,
    /// The only number of samples that the model takes at once, where there is but one.
    batch: Option<usize>,
    /// Whether what the model says of a token depends on no later one.
    is_causal: bool,
}

impl Observation {
    /// Puts two runs together; constants and inputs need not be among the values seen.
    pub fn new(graph: &Graph, sizes: Sizes, runs: [HashMap<ValueId, Seen>; 2]) -> Self {
        let [first, mut second] = runs;
        let mut seen: HashMap<_, _> =
            first.into_iter().filter_map(|(value, a)| Some((value, [a, second.remove(&value)?]))).collect();
        for value in graph.constants() {
            if let Some(tensor) = graph.constant(value) {
                let element = tensor.element();
                let wanted = Seen::wants_integers(element, tensor.count());
                let integers = wanted.then(|| tensor.to_i64().ok()).flatten();
                let one = Seen { shape: tensor.dims().to_vec(), element, integers };
                seen.insert(value, [one.clone(), one]);
            }
        }
        Self { sizes, seen, ..Self::default() }
    }

    /// Adds the shapes of a run of the sizes for which operations are counted.
    pub fn count_at(&mut self, run: HashMap<ValueId, Seen>) {
        self.counted = run.into_iter().map(|(value, seen)| (value, seen.shape)).collect();
    }

    /// Says that the model takes so many samples at once and no other number: operations are counted for one of them.
    pub fn of_batches(&mut self, samples: usize) {
        self.batch = Some(samples);
    }

    /// Says whether what the model says of a token depends on no later one.
    pub fn of_causal(&mut self, is_causal: bool) {
        self.is_causal = is_causal;
    }

    /// Whether what the model says of a token depends on no later one, as far as that was tried.
    pub fn is_causal(&self) -> bool {
        self.is_causal
    }

    /// How many samples there are where operations are counted.
    pub(crate) fn samples(&self) -> f64 {
        self.batch.unwrap_or(1).max(1) as f64
    }

    /// Adds what follows for values of `graph` that were not seen: constants, and biases added.
    pub(crate) fn complete(&mut self, graph: &Graph) {
        for value in graph.initializers() {
            if let Some(tensor) = graph.constant(value).filter(|_| !self.seen.contains_key(&value)) {
                let one = Seen { shape: tensor.dims().to_vec(), element: tensor.element(), integers: None };
                self.seen.insert(value, [one.clone(), one]);
            }
        }
        for node in graph.sorted().into_iter().filter(|&n| graph.operator(n).is("Add")) {
            let operator = graph.operator(node);
            let like = operator.input(0).and_then(|v| self.seen.get(&v).cloned());
            if let (Some(output), Some(like)) = (operator.output(0), like) {
                self.seen.entry(output).or_insert(like);
            }
        }
    }

    /// Says that a value is shaped as another is.
    pub(crate) fn see_like(&mut self, value: ValueId, like: ValueId) {
        if let Some(like) = self.seen.get(&like).cloned() {
            self.seen.insert(value, like);
        }
    }

    /// What was seen of the values of another graph that has some of the same.
    pub fn of(&self, graph: &Graph) -> Self {
        let seen = self.seen.iter().filter(|(v, _)| graph.holds(**v)).map(|(&v, s)| (v, s.clone()));
        let counted = self.counted.iter().filter(|(v, _)| graph.holds(**v)).map(|(&v, shape)| (v, shape.clone()));
        let (seen, counted) = (seen.collect(), counted.collect());
        Self { sizes: self.sizes.clone(), seen, counted, batch: self.batch, is_causal: self.is_causal }
    }

    /// The value's shape in the first run.
    pub fn shape(&self, value: ValueId) -> Option<&[usize]> {
        self.seen.get(&value).map(|[first, _]| first.shape.as_slice())
    }

    /// The value's dimensions; `None` where the value was not seen or its rank changed.
    pub fn dims(&self, value: ValueId) -> Option<Vec<Dim>> {
        let [a, b] = self.seen.get(&value)?;
        let pairs = a.shape.iter().zip(&b.shape).map(|(&x, &y)| Dim([x, y])).collect();
        (a.shape.len() == b.shape.len()).then_some(pairs)
    }

    /// What the value's axes are called: as a named axis of the inputs, or by the two lengths that they were seen to have.
    pub(crate) fn symbols(&self, value: ValueId) -> Option<Vec<String>> {
        let named = |dim: Dim| self.sizes.iter().find(|(_, size)| **size == dim.0).map(|(name, _)| name.clone());
        let symbol = |dim: Dim| named(dim).unwrap_or_else(|| format!("kprune_{}_{}", dim.0[0], dim.0[1]));
        Some(self.dims(value)?.into_iter().map(symbol).collect())
    }

    /// The value's element type.
    pub fn element(&self, value: ValueId) -> Option<ElementType> {
        self.seen.get(&value).map(|[first, _]| first.element)
    }

    /// The value's integers in the first run.
    pub fn integers(&self, value: ValueId) -> Option<&ArrayD<i64>> {
        self.seen.get(&value)?[0].integers.as_ref()
    }

    /// The value's integers, where they are the same in both runs.
    pub fn fixed_integers(&self, value: ValueId) -> Option<&ArrayD<i64>> {
        let [a, b] = self.seen.get(&value)?;
        a.integers.as_ref().filter(|ints| Some(*ints) == b.integers.as_ref())
    }

    /// Lengths of the inputs' named axes in the two runs.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The whole number, above 1, by which a dimension is a multiple of a named axis.
    pub fn factor(&self, dim: Dim) -> Option<usize> {
        let times = |size: &[usize; 2]| {
            let factor = dim.0[0] / size[0].max(1);
            (factor > 1 && dim.0 == size.map(|s| s * factor)).then_some(factor)
        };
        self.sizes.values().find_map(times)
    }

    /// How long a value's axes are where operations are counted: as they were seen in a run of those sizes, or else as
    /// they follow from the lengths `at` of the named axes.
    pub fn extents(&self, value: ValueId, at: &BTreeMap<String, f64>) -> Option<Vec<f64>> {
        let dims = self.dims(value)?;
        let counted = self.counted.get(&value).filter(|shape| shape.len() == dims.len());
        Some(match counted {
            Some(shape) => shape.iter().map(|&length| length as f64).collect(),
            None => dims.into_iter().map(|dim| self.extent(dim, at)).collect(),
        })
    }

    /// How long a dimension is when the named axes have the lengths `at`.
    ///
    /// A dimension is a number, or follows one axis with a factor or an offset, or two axes with a
    /// factor; what follows none of these is taken to grow in proportion to the first axis that grew.
    fn extent(&self, dim: Dim, at: &BTreeMap<String, f64>) -> f64 {
        let [x, y] = dim.0;
        if let Some(fixed) = dim.fixed() {
            return fixed as f64;
        }
        let follows = |a: [usize; 2]| x * a[1] == y * a[0];
        let point = |name: &str| at.get(name).copied().unwrap_or(1.0);
        for (name, &size) in &self.sizes {
            if follows(size) {
                return x as f64 / size[0] as f64 * point(name);
            }
        }
        for (name, &size) in &self.sizes {
            if x as isize - size[0] as isize == y as isize - size[1] as isize {
                return point(name) + x as f64 - size[0] as f64;
            }
        }
        for (i, (first, &a)) in self.sizes.iter().enumerate() {
            for (second, &b) in self.sizes.iter().skip(i) {
                if follows([a[0] * b[0], a[1] * b[1]]) {
                    return x as f64 / (a[0] * b[0]) as f64 * point(first) * point(second);
                }
            }
        }
        let grew = self.sizes.iter().find(|(_, s)| s[0] != s[1]);
        grew.map_or(x as f64, |(name, s)| x as f64 * point(name) / s[0] as f64)
    }
}

/// The indices that `Slice` takes of an axis of length `len`.
pub(crate) fn range(len: usize, start: i64, end: i64, step: i64) -> Vec<usize> {
    let len = len as i64;
    let place = |i: i64| if i < 0 { i.saturating_add(len) } else { i };
    let mut picked = Vec::new();
    if step > 0 {
        let (mut i, end) = (place(start).clamp(0, len), place(end).clamp(0, len));
        while i < end {
            picked.push(i as usize);
            i = i.saturating_add(step);
        }
    } else if step < 0 {
        let (mut i, end) = (place(start).clamp(-1, len - 1), place(end).clamp(-1, len - 1));
        while i > end {
            picked.push(i as usize);
            i = i.saturating_add(step);
        }
    }
    picked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{B, S, Sketch};

    #[test]
    fn what_was_seen_at_the_sizes_that_are_counted_goes_before_what_would_follow() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S]);
        let mut seen = g.seen();
        let at = BTreeMap::from([("sequence".to_string(), 11.0)]);
        assert_eq!(seen.extents(x, &at), Some(vec![1.0, 11.0]));
        seen.count_at(HashMap::from([(x, Seen { shape: vec![1, 12], element: ElementType::F32, integers: None })]));
        assert_eq!(seen.extents(x, &at), Some(vec![1.0, 12.0]));
    }

    #[test]
    fn of_numbers_only_the_shapes_leave_a_run_the_last_first() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S]);
        let [a, b] = ["Relu", "Exp"].map(|op| g.graph.add(Operator::new(op), &[x], op));
        let count = g.graph.add(Operator::new("Shape"), &[a], "count");
        g.graph.set_outputs(&[a, b, count]);
        let element = |name: &str| Some(if name == "count" { ElementType::I64 } else { ElementType::F32 });
        let (observed, watched) = observed_model(&Model::new(g.graph.clone(), 17), element);
        let seen: Vec<_> = watched.iter().map(|w| (w.value, w.is_whole)).collect();
        assert_eq!(seen, [(count, true), (b, false), (a, false)]);
        let name = |&output: &ValueId| observed.graph.name(output).to_string();
        assert_eq!(observed.graph.outputs().iter().map(name).collect::<Vec<_>>(), ["count", "shape", "shape_1"]);
    }

    #[test]
    fn dimensions_follow_the_axes_they_were_seen_to_follow() {
        let sizes = Sizes::from([("batch".into(), [2, 3]), ("seq".into(), [5, 7])]);
        let seen = Observation { sizes, ..Observation::default() };
        let at = BTreeMap::from([("batch".to_string(), 1.0), ("seq".to_string(), 12.5)]);
        let extent = |x, y| seen.extent(Dim([x, y]), &at);
        assert_eq!(extent(12, 12), 12.0);
        assert_eq!(extent(24, 36), 12.0);
        assert_eq!(extent(5, 7), 12.5);
        assert_eq!(extent(6, 8), 13.5);
        assert_eq!(extent(10, 21), 12.5);
        assert_eq!(extent(25, 49), 156.25);
        assert_eq!(
            (seen.factor(Dim([24, 36])), seen.factor(Dim([2, 3])), seen.factor(Dim([6, 8]))),
            (Some(12), None, None)
        );
    }
}
