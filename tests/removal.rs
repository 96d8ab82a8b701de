//! Random small transformers, random units removed: the result must equal the masked original.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;

use kprune_passes::discover::discover;
use kprune_passes::ir::{ElementType, Graph, Model, Operator, Tensor, ValueId, attribute};
use kprune_passes::observe::Observation;
use kprune_passes::plan::{Plan, Tuned};
use kprune_passes::remove::remove;
use kprune_passes::signature::declare;
use ndarray::{Array1, Array2, ArrayD, IxDyn};
use onnx_kprune::deliver::verify::{difference, masked_original};
use onnx_kprune::runtime::scalars;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use support::{cpu, observe, run};

#[derive(Clone, Debug)]
struct Shape {
    width: usize,
    heads: usize,
    head_width: usize,
    inner: usize,
    merged: bool,
    folded: bool,
    gated: bool,
    biased: bool,
    post_norm: bool,
    function: &'static str,
    layers: usize,
    keep: Vec<bool>,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let sizes = (2usize..4, 2usize..5, 2usize..4, 3usize..9, 1usize..3);
    let choices = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let functions = prop::sample::select(vec!["Relu", "Tanh", "Sigmoid", "Erf", "Softplus", "HardSwish"]);
    (sizes, choices, functions, prop::collection::vec(any::<bool>(), 40)).prop_map(
        |(sizes, choices, function, keep)| Shape {
            width: 2 * sizes.0 + 1,
            heads: sizes.1,
            head_width: sizes.2,
            inner: sizes.3,
            layers: sizes.4,
            merged: choices.0,
            folded: choices.1,
            gated: choices.2,
            biased: choices.3,
            post_norm: choices.4,
            function,
            keep,
        },
    )
}

/// Writes the operators of a model one after the other.
struct Writer {
    graph: Graph,
    count: usize,
}

impl Writer {
    fn weight(&mut self, dims: &[usize]) -> ValueId {
        self.count += 1;
        let number = |i: usize| ((i * 37 + self.count * 101) % 97) as f64 / 48.5 - 1.0;
        let values = (0..dims.iter().product()).map(number).collect();
        let array = ArrayD::from_shape_vec(IxDyn(dims), values).unwrap();
        self.graph.add_constant("w", Tensor::from_floats(ElementType::F32, &array).unwrap())
    }

    fn op(&mut self, operator: Operator, inputs: &[ValueId]) -> ValueId {
        self.graph.add(operator, inputs, "v")
    }

    fn simple(&mut self, op_type: &str, inputs: &[ValueId]) -> ValueId {
        self.op(Operator::new(op_type), inputs)
    }

    fn integers(&mut self, values: &[i64]) -> ValueId {
        self.graph.add_constant("i", Tensor::from_i64s(&[values.len()], values))
    }

    fn linear(&mut self, x: ValueId, from: usize, to: usize, biased: bool) -> ValueId {
        let w = self.weight(&[from, to]);
        let y = self.simple("MatMul", &[x, w]);
        if !biased {
            return y;
        }
        let b = self.weight(&[to]);
        self.simple("Add", &[b, y])
    }

    fn norm(&mut self, x: ValueId, width: usize) -> ValueId {
        let (scale, bias) = (self.weight(&[width]), self.weight(&[width]));
        self.simple("LayerNormalization", &[x, scale, bias])
    }

    fn transpose(&mut self, x: ValueId, order: &[i64]) -> ValueId {
        self.op(Operator::new("Transpose").with(attribute::ints("perm", order)), &[x])
    }

    fn reshape(&mut self, x: ValueId, target: &[i64]) -> ValueId {
        let target = self.integers(target);
        self.simple("Reshape", &[x, target])
    }

    /// One head after the other in the last axis, to [batch, heads, tokens, width] or the first two folded.
    fn heads(&mut self, x: ValueId, s: &Shape) -> ValueId {
        let (n, k) = (s.heads as i64, s.head_width as i64);
        let split = self.reshape(x, &[0, 0, n, k]);
        let turned = self.transpose(split, &[0, 2, 1, 3]);
        if s.folded { self.reshape(turned, &[-1, TOKENS as i64, k]) } else { turned }
    }

    fn attention(&mut self, x: ValueId, s: &Shape) -> ValueId {
        let all = s.heads * s.head_width;
        let parts = if s.merged {
            let merged = self.linear(x, s.width, 3 * all, s.biased);
            let split = Operator::new("Split").with(attribute::int("axis", -1));
            let sizes = self.integers(&[all as i64; 3]);
            self.graph.add_all(split, &[merged, sizes], &["q", "k", "v"])
        } else {
            (0..3).map(|_| self.linear(x, s.width, all, s.biased)).collect()
        };
        let parts: Vec<_> = parts.into_iter().map(|p| self.heads(p, s)).collect();
        let order: &[i64] = if s.folded { &[0, 2, 1] } else { &[0, 1, 3, 2] };
        let keys = self.transpose(parts[1], order);
        let scores = self.simple("MatMul", &[parts[0], keys]);
        let weights = self.op(Operator::new("Softmax").with(attribute::int("axis", -1)), &[scores]);
        let mut context = self.simple("MatMul", &[weights, parts[2]]);
        if s.folded {
            context = self.reshape(context, &[-1, s.heads as i64, TOKENS as i64, s.head_width as i64]);
        }
        let context = self.transpose(context, &[0, 2, 1, 3]);
        let joined = self.reshape(context, &[0, 0, all as i64]);
        self.linear(joined, all, s.width, s.biased)
    }

    fn feed_forward(&mut self, x: ValueId, s: &Shape) -> ValueId {
        let up = self.linear(x, s.width, s.inner, s.biased);
        let mut h = self.simple(s.function, &[up]);
        if s.gated {
            let gate = self.linear(x, s.width, s.inner, false);
            h = self.simple("Mul", &[h, gate]);
        }
        self.linear(h, s.inner, s.width, s.biased)
    }

    fn residual(&mut self, x: ValueId, s: &Shape, inner: fn(&mut Self, ValueId, &Shape) -> ValueId) -> ValueId {
        if s.post_norm {
            let y = inner(self, x, s);
            let sum = self.simple("Add", &[y, x]);
            return self.norm(sum, s.width);
        }
        let normed = self.norm(x, s.width);
        let y = inner(self, normed, s);
        self.simple("Add", &[x, y])
    }
}

const TOKENS: usize = 5;

fn build(s: &Shape) -> Model {
    let mut w = Writer { graph: Graph::new(), count: 0 };
    let input = w.graph.add_input(declare("x", ElementType::F32, 3));
    let mut x = input;
    for _ in 0..s.layers {
        x = w.residual(x, s, Writer::attention);
        x = w.residual(x, s, Writer::feed_forward);
    }
    let y = w.norm(x, s.width);
    w.graph.add_output(y);
    Model::new(w.graph, 17)
}

fn check(s: &Shape) -> Result<(), TestCaseError> {
    let runtime = cpu();
    let model = build(s);
    let numbers = (0..2 * TOKENS * s.width).map(|i| ((i * 29) % 83) as f64 / 41.5 - 1.0).collect();
    let x = ArrayD::from_shape_vec(IxDyn(&[2, TOKENS, s.width]), numbers).unwrap();
    let seen: Observation = observe(&runtime, &model, &[("x", &x)]);
    let discovery = discover(&model.graph, &seen, &BTreeMap::new());
    prop_assert_eq!(discovery.sublayers.len(), 2 * s.layers, "{:?}", discovery.declined);
    let mut plan = Plan::untouched(&discovery.sublayers);
    let mut choices = s.keep.iter().cycle();
    for (sublayer, decision) in discovery.sublayers.iter().zip(&mut plan.decisions) {
        let units = if sublayer.units.len() == s.heads { s.heads } else { s.inner };
        prop_assert_eq!(sublayer.units.len(), units);
        decision.keep.iter_mut().for_each(|k| *k = *choices.next().unwrap());
        if *choices.next().unwrap() || decision.kept() == 0 {
            let p = &sublayer.projection;
            let mut weight = Array2::from_shape_fn((p.width, p.outputs), |(i, j)| ((i * 5 + j * 3) % 7) as f64 / 7.0);
            for column in 0..p.width {
                if !decision.columns(sublayer).contains(&column) {
                    weight.row_mut(column).fill(0.0);
                }
            }
            decision.tuned = Some(Tuned { weight, bias: Array1::from_elem(p.outputs, 0.25) });
        }
    }
    let pruned = remove(&model, &discovery, &seen, &plan).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let masked = masked_original(&model, &discovery, &plan).unwrap();
    let output = |model: &Model| {
        let values = run(&runtime, model, &[("x", &x)]);
        scalars(&values[model.graph.name(model.graph.outputs()[0])]).unwrap()
    };
    let apart = difference(&output(&masked), &output(&pruned));
    prop_assert!(apart < 1e-5, "outputs differ by {}", apart);
    let count = |m: &Model| {
        let constants = m.graph.initializers().into_iter().filter_map(|v| m.graph.constant(v).map(|t| t.count()));
        constants.sum::<usize>()
    };
    let all_kept = plan.decisions.iter().all(|d| d.keep.iter().all(|&k| k));
    // A tuned projection brings a bias where the model had none.
    let tuned = plan.decisions.iter().filter(|d| d.tuned.is_some()).count();
    let new_biases = if s.biased { 0 } else { tuned * s.width };
    prop_assert!(all_kept || count(&pruned) < count(&model) + new_biases);
    Ok(())
}

proptest! {
    // The seed is fixed so that CI answers the same twice; another seed explores further.
    #![proptest_config(ProptestConfig {
        cases: 96,
        rng_seed: RngSeed::Fixed(2024),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_removed_equals_what_is_masked(shape in shapes()) {
        check(&shape)?;
    }
}
