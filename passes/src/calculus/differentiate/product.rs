//! Gradient rules for matrix products.

use super::{Decline, Inputs, Rule, Scene};
use crate::ir::{Operator, ValueId, attribute};
use crate::rules::Table;

pub(super) const RULES: Table<Rule> = &[(&["MatMul"], matmul), (&["Gemm"], gemm), (&["Conv"], conv)];

fn swapped(rank: usize) -> Vec<i64> {
    let mut order: Vec<i64> = (0..rank as i64).collect();
    order.swap(rank - 1, rank - 2);
    order
}

fn matmul(scene: &mut Scene) -> Result<Inputs, Decline> {
    let (g, a, b) = (scene.gradient()?, scene.input(0)?, scene.input(1)?);
    let (a_dims, b_dims, dims) = (scene.dims(a)?, scene.dims(b)?, scene.dims(scene.output()?)?);
    if a_dims.len() < 2 || b_dims.len() < 2 {
        return Err("it multiplies a vector".into());
    }
    let batch = &dims[..dims.len() - 2];
    let product = |last: [crate::observe::Dim; 2]| [batch, &last].concat();
    let mut inputs = Vec::new();
    if scene.wants(0) {
        let turned = scene.emit.transpose(b, &swapped(b_dims.len()));
        let gradient = scene.emit.op("MatMul", &[g, turned]);
        let from = product([a_dims[a_dims.len() - 2], a_dims[a_dims.len() - 1]]);
        inputs.push((0, scene.emit.unbroadcast(gradient, &from, &a_dims)));
    }
    if let (true, &[width, outputs]) = (scene.wants(1) && a_dims.len() > 2, b_dims.as_slice())
        && let (Some(width), Some(outputs)) = (width.fixed(), outputs.fixed())
    {
        inputs.push((1, of_rows(scene, (a, width), (g, outputs))));
    } else if scene.wants(1) {
        let turned = scene.emit.transpose(a, &swapped(a_dims.len()));
        let gradient = scene.emit.op("MatMul", &[turned, g]);
        let from = product([b_dims[b_dims.len() - 2], b_dims[b_dims.len() - 1]]);
        inputs.push((1, scene.emit.unbroadcast(gradient, &from, &b_dims)));
    }
    Ok(inputs)
}

/// A^T G over the rows of all samples: the gradient of a weight that all of them share.
fn of_rows(scene: &mut Scene, a: (ValueId, usize), g: (ValueId, usize)) -> ValueId {
    let [a, g] = [a, g].map(|(value, width)| {
        let shape = scene.emit.integers(&[-1, width as i64]);
        scene.emit.op("Reshape", &[value, shape])
    });
    scene.emit.with(Operator::new("Gemm").with(attribute::int("transA", 1)), &[a, g])
}

fn gemm(scene: &mut Scene) -> Result<Inputs, Decline> {
    let (g, a, b) = (scene.gradient()?, scene.input(0)?, scene.input(1)?);
    let (alpha, beta) = (scene.operator.float("alpha", 1.0), scene.operator.float("beta", 1.0));
    let (trans_a, trans_b) = (scene.operator.int("transA", 0) != 0, scene.operator.int("transB", 0) != 0);
    let product = |scene: &mut Scene, left: (ValueId, bool), right: (ValueId, bool)| {
        let operator = Operator::new("Gemm")
            .with(attribute::float("alpha", alpha))
            .with(attribute::int("transA", left.1 as i64))
            .with(attribute::int("transB", right.1 as i64));
        scene.emit.with(operator, &[left.0, right.0])
    };
    let mut inputs = Vec::new();
    if scene.wants(0) {
        let gradient = match trans_a {
            false => product(scene, (g, false), (b, !trans_b)),
            true => product(scene, (b, trans_b), (g, true)),
        };
        inputs.push((0, gradient));
    }
    if scene.wants(1) {
        let gradient = match trans_b {
            false => product(scene, (a, !trans_a), (g, false)),
            true => product(scene, (g, true), (a, trans_a)),
        };
        inputs.push((1, gradient));
    }
    if scene.wants(2) {
        let factor = scene.number(beta.into())?;
        let scaled = scene.emit.op("Mul", &[g, factor]);
        inputs.push(scene.fit(scaled, 2)?);
    }
    Ok(inputs)
}

/// With respect to what it reads: the transposed convolution with the same weight.
fn conv(scene: &mut Scene) -> Result<Inputs, Decline> {
    let operator = scene.operator.clone();
    let is_given = |name: &str| matches!(operator.text(name, "NOTSET"), "NOTSET" | "VALID");
    if operator.ints("strides").is_some_and(|s| s.iter().any(|&s| s != 1)) || !is_given("auto_pad") {
        return Err("it convolves with strides, or with padding that it works out itself".into());
    }
    if scene.wants(1) || (operator.input(2).is_some() && scene.wants(2)) {
        return Err("its weight is computed".into());
    }
    let mut transposed = Operator::new("ConvTranspose").with(attribute::int("group", operator.int("group", 1)));
    for name in ["pads", "dilations"] {
        transposed.attributes.extend(operator.attribute(name).cloned());
    }
    let (g, weight) = (scene.gradient()?, scene.input(1)?);
    Ok(vec![(0, scene.emit.with(transposed, &[g, weight]))])
}
