//! Every gradient rule against finite differences, computed by ONNX Runtime.
#![allow(missing_docs)]

mod support;

use kprune_passes::calculus::differentiate::differentiate;
use kprune_passes::ir::{ElementType, Graph, Operator, Tensor, ValueId, attribute};
use kprune_passes::signature::declare;
use ndarray::{ArrayD, IxDyn};
use onnx_kprune::runtime::{Runtime, scalars};
use support::{cpu, model, observe, run};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Numbers that look random and keep away from the kinks of piecewise functions.
fn numbers(shape: &[usize], seed: usize) -> ArrayD<f64> {
    let count = shape.iter().product::<usize>();
    let number = |i: usize| {
        let x = ((i * 7919 + seed * 104_729 + 13) % 1009) as f64 / 1009.0 * 2.0 - 1.0;
        x + 0.15 * x.signum()
    };
    ArrayD::from_shape_vec(IxDyn(shape), (0..count).map(number).collect()).unwrap()
}

/// A case: an operator set, the shapes of the inputs, those to differentiate by, and the graph.
struct Case<'a> {
    opset: i64,
    shapes: &'a [&'a [usize]],
    by: &'a [usize],
    positive: bool,
}

impl Case<'_> {
    fn build(&self, make: &dyn Fn(&mut Graph, &[ValueId]) -> ValueId) -> (Graph, Vec<ValueId>, ValueId) {
        let mut graph = Graph::new();
        let declared = |g: &mut Graph, i: usize| g.add_input(declare(NAMES[i], ElementType::F32, self.shapes[i].len()));
        let inputs: Vec<_> = (0..self.shapes.len()).map(|i| declared(&mut graph, i)).collect();
        let output = make(&mut graph, &inputs);
        graph.add_output(output);
        (graph, inputs, output)
    }

    fn data(&self) -> Vec<ArrayD<f64>> {
        let array = |(i, shape): (usize, &&[usize])| {
            let x = numbers(shape, i + 1);
            if self.positive { x.mapv(|v| v.abs() + 0.2) } else { x }
        };
        self.shapes.iter().enumerate().map(array).collect()
    }

    /// Compares sum(weights * y) differentiated with the same sum at inputs moved a little.
    fn check(&self, name: &str, make: &dyn Fn(&mut Graph, &[ValueId]) -> ValueId) {
        let runtime = cpu();
        let (graph, inputs, output) = self.build(make);
        let plain = model(graph, self.opset);
        let data = self.data();
        let feeds =
            |data: &[ArrayD<f64>]| -> Vec<(&str, ArrayD<f64>)> { NAMES.into_iter().zip(data.to_vec()).collect() };
        let borrowed = feeds(&data);
        let borrowed: Vec<_> = borrowed.iter().map(|(n, a)| (*n, a)).collect();
        let seen = observe(&runtime, &plain, &borrowed);
        let weights = numbers(seen.shape(output).unwrap(), 9);

        let mut derived = plain.clone();
        let wanted: Vec<_> = self.by.iter().map(|&i| inputs[i]).collect();
        let seed = Tensor::from_floats(ElementType::F32, &weights).unwrap();
        let seed = derived.graph.add_constant("weights", seed);
        let gradients = differentiate(&mut derived.graph, &seen, self.opset, &[(output, seed)], &wanted);
        let gradients = gradients.unwrap_or_else(|e| panic!("{name}: {e}"));
        let gradients: Vec<_> = gradients.into_iter().map(|g| g.expect("the output depends on it")).collect();
        derived.graph.set_outputs(&gradients);
        derived.graph.remove_dead();
        derived.graph.remove_unread_inputs();
        let used: Vec<_> = borrowed
            .iter()
            .filter(|(n, _)| derived.graph.inputs().iter().any(|&v| derived.graph.name(v) == *n))
            .copied()
            .collect();
        let found = run(&runtime, &derived, &used);
        for (&i, &gradient) in self.by.iter().zip(&gradients) {
            let found = scalars(&found[derived.graph.name(gradient)]).unwrap();
            assert_eq!(found.shape(), self.shapes[i], "{name}: shape of the gradient by input {i}");
            let expected = finite_differences(&runtime, &plain, output, &weights, &data, i);
            let scale = expected.iter().fold(0.1f64, |m, x| m.max(x.abs()));
            for (index, (f, e)) in found.iter().zip(&expected).enumerate() {
                assert!((f - e).abs() < 0.01 * scale, "{name}, input {i}, element {index}: {f} and not {e}");
            }
        }
    }
}

fn finite_differences(
    runtime: &Runtime,
    plain: &kprune_passes::ir::Model,
    output: ValueId,
    weights: &ArrayD<f64>,
    data: &[ArrayD<f64>],
    by: usize,
) -> ArrayD<f64> {
    let step = 4e-3;
    let value = |data: &[ArrayD<f64>]| {
        let feeds: Vec<_> = NAMES.into_iter().zip(data).collect();
        let result = run(runtime, plain, &feeds);
        (scalars(&result[plain.graph.name(output)]).unwrap() * weights).sum()
    };
    let mut slope = ArrayD::zeros(data[by].raw_dim());
    let flat = |array: &mut ArrayD<f64>, i: usize, by: f64| array.as_slice_mut().unwrap()[i] += by;
    for i in 0..slope.len() {
        let mut moved = data.to_vec();
        flat(&mut moved[by], i, step);
        let up = value(&moved);
        flat(&mut moved[by], i, -2.0 * step);
        slope.as_slice_mut().unwrap()[i] = (up - value(&moved)) / (2.0 * step);
    }
    slope
}

fn unary(opset: i64, operator: Operator, positive: bool) {
    let name = operator.op_type.clone();
    Case { opset, shapes: &[&[2, 3]], by: &[0], positive }.check(&name, &|g, v| g.add(operator.clone(), v, "y"));
}

fn op(op_type: &str) -> Operator {
    Operator::new(op_type)
}

fn integers(g: &mut Graph, values: &[i64]) -> ValueId {
    g.add_constant("integers", Tensor::from_i64s(&[values.len()], values))
}

#[test]
fn functions_of_one_variable() {
    for name in
        ["Neg", "Exp", "Abs", "Sin", "Cos", "Tanh", "Sigmoid", "Softplus", "Relu", "Erf", "Identity", "Reciprocal"]
    {
        unary(17, op(name), false);
    }
    for name in ["Log", "Sqrt"] {
        unary(17, op(name), true);
    }
    for name in ["HardSigmoid", "HardSwish", "LeakyRelu", "Elu"] {
        unary(17, op(name), false);
    }
    unary(18, op("Mish"), false);
    unary(20, op("Gelu"), false);
    unary(20, op("Gelu").with(attribute::text("approximate", "tanh")), false);
}

#[test]
fn arithmetic_with_broadcasting() {
    for name in ["Add", "Sub", "Mul", "Div"] {
        let case = Case { opset: 17, shapes: &[&[2, 3], &[3]], by: &[0, 1], positive: true };
        case.check(name, &|g, v| g.add(op(name), v, "y"));
        let case = Case { opset: 13, shapes: &[&[2, 1, 3], &[4, 1]], by: &[0, 1], positive: true };
        case.check(name, &|g, v| g.add(op(name), v, "y"));
    }
    let case = Case { opset: 17, shapes: &[&[2, 3]], by: &[0], positive: true };
    for exponent in [2.0, 3.0, 0.5] {
        case.check("Pow", &|g, v| {
            let e = Tensor::from_floats(ElementType::F32, &ArrayD::from_elem(IxDyn(&[]), exponent)).unwrap();
            let e = g.add_constant("exponent", e);
            g.add(op("Pow"), &[v[0], e], "y")
        });
    }
    // A value that is used twice gets the sum of two gradients.
    case.check("square", &|g, v| {
        let twice = g.add(op("Mul"), &[v[0], v[0]], "twice");
        g.add(op("Add"), &[twice, v[0]], "y")
    });
}

#[test]
fn choices() {
    let case = Case { opset: 17, shapes: &[&[2, 3], &[2, 3]], by: &[0, 1], positive: false };
    for name in ["Max", "Min"] {
        case.check(name, &|g, v| g.add(op(name), v, "y"));
    }
    case.check("Where", &|g, v| {
        let condition = g.add(op("Greater"), v, "condition");
        g.add(op("Where"), &[condition, v[0], v[1]], "y")
    });
}

#[test]
fn products() {
    for shapes in
        [[&[2, 3][..], &[3, 4][..]], [&[5, 2, 3], &[3, 4]], [&[5, 2, 3], &[5, 3, 4]], [&[1, 2, 3], &[5, 3, 4]]]
    {
        let case = Case { opset: 17, shapes: &shapes, by: &[0, 1], positive: false };
        case.check("MatMul", &|g, v| g.add(op("MatMul"), v, "y"));
    }
    for (trans_a, trans_b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let a: &[usize] = if trans_a == 0 { &[2, 3] } else { &[3, 2] };
        let b: &[usize] = if trans_b == 0 { &[3, 4] } else { &[4, 3] };
        let case = Case { opset: 17, shapes: &[a, b, &[4]], by: &[0, 1, 2], positive: false };
        let gemm = op("Gemm")
            .with(attribute::int("transA", trans_a))
            .with(attribute::int("transB", trans_b))
            .with(attribute::float("alpha", 0.5))
            .with(attribute::float("beta", 2.0));
        case.check("Gemm", &|g, v| g.add(gemm.clone(), v, "y"));
    }
}

#[test]
fn convolutions() {
    for (kernel, group, pads) in [(&[4, 1, 3, 3][..], 4, 1), (&[6, 2, 3, 2], 2, 0), (&[5, 4, 1, 1], 1, 0)] {
        let case = Case { opset: 17, shapes: &[&[2, 4, 5, 6], kernel], by: &[0], positive: false };
        let conv = op("Conv").with(attribute::int("group", group)).with(attribute::ints("pads", &[pads; 4]));
        case.check("Conv", &|g, v| g.add(conv.clone(), v, "y"));
    }
}

#[test]
fn normalisations() {
    let case = Case { opset: 17, shapes: &[&[2, 4, 3]], by: &[0], positive: false };
    for axis in [-1, 1] {
        for name in ["Softmax", "LogSoftmax"] {
            case.check(name, &|g, v| g.add(op(name).with(attribute::int("axis", axis)), v, "y"));
        }
    }
    for axis in [-1, 1] {
        let scale: &[usize] = if axis == 1 { &[4, 3] } else { &[3] };
        case.check("LayerNormalization", &|g, v| {
            let constant = |g: &mut Graph, seed| {
                g.add_constant("scale", Tensor::from_floats(ElementType::F32, &numbers(scale, seed)).unwrap())
            };
            let (scale, bias) = (constant(g, 5), constant(g, 6));
            g.add(op("LayerNormalization").with(attribute::int("axis", axis)), &[v[0], scale, bias], "y")
        });
        for by in [&[0, 1, 2][..], &[1], &[2]] {
            let case = Case { opset: 17, shapes: &[&[2, 4, 3], scale, scale], by, positive: false };
            case.check("LayerNormalization", &|g, v| {
                g.add(op("LayerNormalization").with(attribute::int("axis", axis)), v, "y")
            });
        }
        let case = Case { opset: 23, shapes: &[&[2, 4, 3], scale], by: &[0, 1], positive: false };
        case.check("RMSNormalization", &|g, v| {
            g.add(op("RMSNormalization").with(attribute::int("axis", axis)), v, "y")
        });
    }
}

#[test]
fn reductions() {
    for name in ["ReduceMean", "ReduceSum"] {
        for keep in [0, 1] {
            let case = Case { opset: 18, shapes: &[&[2, 4, 3]], by: &[0], positive: false };
            case.check(name, &|g, v| {
                let axes = integers(g, &[1, -1]);
                g.add(op(name).with(attribute::int("keepdims", keep)), &[v[0], axes], "y")
            });
            case.check(name, &|g, v| g.add(op(name).with(attribute::int("keepdims", keep)), &[v[0]], "y"));
        }
    }
    let case = Case { opset: 13, shapes: &[&[2, 4, 3]], by: &[0], positive: false };
    case.check("ReduceMean", &|g, v| g.add(op("ReduceMean").with(attribute::ints("axes", &[2])), v, "y"));
}

#[test]
fn moves() {
    let case = Case { opset: 17, shapes: &[&[2, 4, 3]], by: &[0], positive: false };
    case.check("Transpose", &|g, v| g.add(op("Transpose").with(attribute::ints("perm", &[2, 0, 1])), v, "y"));
    case.check("Transpose", &|g, v| g.add(op("Transpose"), v, "y"));
    case.check("Reshape", &|g, v| {
        let target = integers(g, &[0, -1]);
        g.add(op("Reshape"), &[v[0], target], "y")
    });
    case.check("Unsqueeze", &|g, v| {
        let axes = integers(g, &[1]);
        g.add(op("Unsqueeze"), &[v[0], axes], "y")
    });
    case.check("Flatten", &|g, v| g.add(op("Flatten"), v, "y"));
    case.check("Split", &|g, v| {
        let sizes = integers(g, &[1, 3]);
        let parts = g.add_all(op("Split").with(attribute::int("axis", 1)), &[v[0], sizes], &["p", "q"]);
        g.add(op("Mul"), &parts, "y")
    });
    case.check("Split, one part used", &|g, v| {
        let sizes = integers(g, &[1, 3]);
        g.add_all(op("Split").with(attribute::int("axis", 1)), &[v[0], sizes], &["p", "q"])[1]
    });
    let joined = Case { opset: 17, shapes: &[&[2, 4, 3], &[2, 1, 3]], by: &[0, 1], positive: false };
    joined.check("Concat", &|g, v| g.add(op("Concat").with(attribute::int("axis", -2)), v, "y"));
    let small = Case { opset: 17, shapes: &[&[4, 1]], by: &[0], positive: false };
    small.check("Expand", &|g, v| {
        let target = integers(g, &[2, 4, 3]);
        g.add(op("Expand"), &[v[0], target], "y")
    });
}

#[test]
fn picks() {
    let case = Case { opset: 17, shapes: &[&[2, 4, 3]], by: &[0], positive: false };
    case.check("Gather of one", &|g, v| {
        let index = g.add_constant("index", Tensor::from_i64s(&[], &[-2]));
        g.add(op("Gather").with(attribute::int("axis", 1)), &[v[0], index], "y")
    });
    case.check("Gather of several", &|g, v| {
        let index = integers(g, &[2, 0, 2]);
        g.add(op("Gather").with(attribute::int("axis", 1)), &[v[0], index], "y")
    });
    case.check("GatherElements", &|g, v| {
        let index = g.add_constant("index", Tensor::from_i64s(&[2, 2, 3], &[0, 1, 2, 3, 0, 1, 2, 2, 2, 0, 0, 3]));
        g.add(op("GatherElements").with(attribute::int("axis", 1)), &[v[0], index], "y")
    });
    case.check("Slice", &|g, v| {
        let (starts, ends, axes) = (integers(g, &[1, 0]), integers(g, &[-1, 2]), integers(g, &[1, 2]));
        g.add(op("Slice"), &[v[0], starts, ends, axes], "y")
    });
    case.check("Slice with steps", &|g, v| {
        let (starts, ends, axes, steps) =
            (integers(g, &[-1]), integers(g, &[-9]), integers(g, &[1]), integers(g, &[-2]));
        g.add(op("Slice"), &[v[0], starts, ends, axes, steps], "y")
    });
}

#[test]
fn an_operator_without_a_rule_is_named() {
    let runtime = cpu();
    let case = Case { opset: 17, shapes: &[&[2, 3]], by: &[0], positive: false };
    let (graph, inputs, output) = case.build(&|g, v| g.add(op("Acosh"), v, "y"));
    let plain = model(graph, 17);
    let data = case.data();
    let seen = observe(&runtime, &plain, &[("a", &data[0])]);
    let mut graph = plain.graph.clone();
    let error = differentiate(&mut graph, &seen, 17, &[(output, inputs[0])], &inputs).unwrap_err();
    assert!(error.node.contains("Acosh"), "{error}");
}

#[test]
fn further_reductions() {
    for name in ["ReduceL2", "ReduceL1", "ReduceSumSquare", "ReduceMax", "ReduceMin"] {
        for keep in [0, 1] {
            let operator = op(name).with(attribute::int("keepdims", keep)).with(attribute::ints("axes", &[-1]));
            unary(17, operator, false);
        }
    }
    unary(17, op("LpNormalization").with(attribute::int("axis", 1)), false);
    let case = Case { opset: 17, shapes: &[&[2, 3, 4, 2]], by: &[0], positive: false };
    case.check("GlobalAveragePool", &|g, v| g.add(op("GlobalAveragePool"), v, "y"));
}

#[test]
fn padding_and_copies() {
    let case = Case { opset: 17, shapes: &[&[2, 3]], by: &[0], positive: false };
    case.check("Pad", &|g, v| {
        let pads = integers(g, &[1, 0, 0, 2]);
        g.add(op("Pad"), &[v[0], pads], "y")
    });
    case.check("Tile", &|g, v| {
        let repeats = integers(g, &[2, 3]);
        g.add(op("Tile"), &[v[0], repeats], "y")
    });
}

#[test]
fn tables_of_indices() {
    let case = Case { opset: 17, shapes: &[&[2, 4, 3]], by: &[0], positive: false };
    case.check("Gather by a table", &|g, v| {
        let table = g.add_constant("table", Tensor::from_i64s(&[2, 2], &[3, 0, 0, 1]));
        g.add(op("Gather").with(attribute::int("axis", 1)), &[v[0], table], "y")
    });
    case.check("GatherND", &|g, v| {
        let places = g.add_constant("places", Tensor::from_i64s(&[3, 2], &[0, 1, 1, 3, 0, 1]));
        g.add(op("GatherND"), &[v[0], places], "y")
    });
}

#[test]
fn what_repeats_the_border_or_picks_by_sample_is_declined() {
    let mut graph = Graph::new();
    let x = graph.add_input(declare("a", ElementType::F32, 2));
    let pads = integers(&mut graph, &[0, 1, 0, 1]);
    let y = graph.add(op("Pad").with(attribute::text("mode", "reflect")), &[x, pads], "y");
    graph.add_output(y);
    let plain = model(graph, 17);
    let seen = observe(&cpu(), &plain, &[("a", &numbers(&[2, 3], 1))]);
    let mut derived = plain.clone();
    let error = differentiate(&mut derived.graph, &seen, 17, &[(y, y)], &[x]).unwrap_err();
    assert!(error.why.contains("border"), "{error}");
}
