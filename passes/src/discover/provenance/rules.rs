//! One rule for an operator: how channels pass through it.
//!
//! Operators that compute are here; those that only move elements are in [`super::structural`].

use super::plane::{self, Plane, Planes};
use super::{Contraction, Decline, Operand, Scene, structural};

/// Outputs computed element by element from inputs that broadcast.
const ELEMENTWISE: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Div",
    "Dropout",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
    "ThresholdedRelu",
    "Where",
    "Xor",
];

/// Outputs that say something of shapes, not of elements.
const SHAPES: &[&str] = &["Shape", "Size", "Range"];

/// Reductions: all that lies on a reduced axis counts in the result.
const REDUCTIONS: &[&str] = &[
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
];

/// The planes of every output of the scene's operator.
pub(super) fn apply(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let operator = scene.operator();
    if !operator.is_standard() {
        let why = format!("is an operator of {}, for which there is no rule", operator.domain);
        return Err(why.into());
    }
    let op_type = operator.op_type.clone();
    match op_type.as_str() {
        op if ELEMENTWISE.contains(&op) => elementwise(scene),
        op if SHAPES.contains(&op) => Ok(vec![Planes::new()]),
        op if REDUCTIONS.contains(&op) => reduce(scene),
        "MatMul" => matmul(scene),
        "Gemm" => gemm(scene),
        "Conv" => conv(scene),
        "BatchNormalization" => batch_norm(scene),
        "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" | "MaxPool" => pool(scene),
        "Softmax" | "LogSoftmax" | "Hardmax" => softmax(scene),
        "LayerNormalization" | "RMSNormalization" => normalise(scene),
        "LpNormalization" | "CumSum" => along_axis(scene),
        "Trilu" => triangle(scene),
        "GatherElements" => gather_elements(scene),
        _ => structural::apply(scene, &op_type),
    }
}

fn elementwise(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let shape = scene.output_shape(0)?;
    let operands = scene.operands()?;
    let planes = join(scene, operands, &shape);
    Ok(vec![planes; scene.operator().outputs().len()])
}

/// Pairs the channels of operands that broadcast to `shape`. Where one operand has channels on an axis
/// and another has an extent of its own there without channels, it could not follow a removal on that axis:
/// what lies on it goes whole, as along the width of a head, or not at all.
pub(super) fn join(scene: &mut Scene, operands: Vec<Operand>, shape: &[usize]) -> Planes {
    let rank = shape.len();
    let aligned: Vec<Operand> = operands
        .into_iter()
        .map(|mut o| {
            let mut padded = vec![1; rank.saturating_sub(o.shape.len())];
            padded.append(&mut o.shape);
            Operand { shape: padded, planes: o.planes.into_iter().map(|p| p.aligned(rank)).collect() }
        })
        .collect();
    for axis in 0..rank {
        let tracked = |o: &Operand| o.planes.iter().any(|p| p.varies(axis));
        let untracked = aligned.iter().any(|o| o.shape[axis] > 1 && !tracked(o));
        if untracked {
            for operand in &aligned {
                scene.bind_along(&operand.planes, &[axis], "joins it with a value that cannot be cut");
            }
        }
    }
    let planes = aligned.into_iter().flat_map(|o| o.planes).collect();
    let (merged, apart) = plane::merge_apart(planes, &mut scene.provenance.channels);
    scene.provenance.broadcasts.extend(apart.into_iter().map(|(wide, narrow)| (scene.node, wide, narrow)));
    merged
}

fn reduce(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let operand = scene.operand(0)?;
    let rank = operand.shape.len();
    let listed = match scene.operator().ints("axes") {
        Some(axes) => axes.to_vec(),
        None if scene.has_input(1) => scene.integers(1)?.0,
        None => Vec::new(),
    };
    let everything = listed.is_empty() && scene.operator().int("noop_with_empty_axes", 0) == 0;
    let axes: Vec<usize> = match everything {
        true => (0..rank).collect(),
        false => listed.iter().map(|&a| Scene::axis(a, rank)).collect::<Result<_, _>>()?,
    };
    let planes = operand.planes;
    scene.bind_along(&planes, &axes, "reduces over it");
    let keep = scene.operator().int("keepdims", 1) != 0;
    let mut left = planes;
    for &axis in &axes {
        left = left.iter().filter_map(|p| plane::summed(p, axis, &mut scene.provenance.channels)).collect();
    }
    if !keep {
        let mut descending = axes;
        descending.sort_unstable();
        for axis in descending.into_iter().rev() {
            left = left.into_iter().map(|p| p.without(axis)).collect();
        }
    }
    Ok(vec![left])
}

fn softmax(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let operand = scene.operand(0)?;
    let axis = Scene::axis(scene.operator().int("axis", -1), operand.shape.len())?;
    scene.bind_along(&operand.planes, &[axis], "normalises over it");
    Ok(vec![operand.planes])
}

fn along_axis(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let operand = scene.operand(0)?;
    let axis = if scene.has_input(1) { scene.integers(1)?.0[0] } else { scene.operator().int("axis", -1) };
    let axis = Scene::axis(axis, operand.shape.len())?;
    scene.bind_along(&operand.planes, &[axis], "reduces over it");
    Ok(vec![operand.planes])
}

fn triangle(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let operand = scene.operand(0)?;
    let rank = operand.shape.len();
    if rank < 2 {
        return Err("needs two axes".into());
    }
    scene.freeze_varying(&operand.planes, &[rank - 2, rank - 1], "looks at positions on it");
    Ok(vec![operand.planes])
}

/// Picks along one axis, for every index of the others; data and indices go together on those.
fn gather_elements(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let shape = scene.output_shape(0)?;
    let mut operands = scene.operands()?;
    let axis = Scene::axis(scene.operator().int("axis", 0), shape.len())?;
    for operand in &mut operands {
        scene.freeze_varying(&operand.planes, &[axis], "picks from it by indices");
        operand.planes.retain(|p| !p.varies(axis));
        operand.shape[axis] = 1;
    }
    let other = |a: usize| a != axis && operands.iter().any(|o| o.shape[a] != shape[a]);
    if (0..shape.len()).any(other) {
        return Err("picks from a part of its data".into());
    }
    let mut flat = shape;
    flat[axis] = 1;
    Ok(vec![join(scene, operands, &flat)])
}

fn normalise(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let shape = scene.output_shape(0)?;
    let rank = shape.len();
    let from = Scene::axis(scene.operator().int("axis", -1), rank)?;
    let axes: Vec<_> = (from..rank).collect();
    let operands = scene.operands()?;
    for operand in &operands {
        let aligned: Planes = operand.planes.iter().map(|p| p.clone().aligned(rank)).collect();
        scene.bind_along(&aligned, &axes, "normalises over it");
    }
    let planes = join(scene, operands, &shape);
    let channels = &mut scene.provenance.channels;
    let statistics = axes
        .iter()
        .fold(planes.clone(), |left, &axis| left.iter().filter_map(|p| plane::summed(p, axis, channels)).collect());
    let mut outputs = vec![statistics; scene.operator().outputs().len()];
    outputs[0] = planes;
    Ok(outputs)
}

/// A product summed over one axis: pairing over the axes of both, then a sum.
fn contract(scene: &mut Scene, a: Operand, b: Operand) -> Planes {
    let rank = a.shape.len().max(b.shape.len());
    let with_axis = |o: Operand, axis: usize| {
        let mut shape = vec![1; rank - o.shape.len()];
        shape.extend(&o.shape);
        shape.insert(axis, 1);
        let planes = o.planes.into_iter().map(|p| p.aligned(rank));
        let insert = |p: Plane| Plane(p.0.insert_axis(ndarray::Axis(axis)));
        Operand { planes: planes.map(insert).collect(), shape }
    };
    let (a, b) = (with_axis(a, rank), with_axis(b, rank - 2));
    let shape: Vec<_> = a.shape.iter().zip(&b.shape).map(|(&x, &y)| x.max(y)).collect();
    let product = join(scene, vec![a, b], &shape);
    if is_of_activations(scene) {
        // What is summed over in scores cannot go without changing what the others weigh.
        for plane in product.iter().filter(|p| p.axes() == [rank - 1]) {
            scene.freeze(plane, "sums over it in a product of two activations");
        }
    }
    let channels = &mut scene.provenance.channels;
    let sums = product.iter().filter_map(|p| plane::summed(p, rank - 1, channels));
    sums.map(|p| p.without(rank - 1)).filter(|p| !p.is_uniform()).collect()
}

/// Whether neither factor of the scene's product is a constant.
fn is_of_activations(scene: &Scene) -> bool {
    let is_constant = |slot| scene.operator().input(slot).is_none_or(|v| scene.graph.constant(v).is_some());
    !is_constant(0) && !is_constant(1)
}

/// Notes a product with a constant weight, or of two activations.
fn note(scene: &mut Scene, features: &Operand, weight: &Operand, rows: usize) -> Result<(), Decline> {
    if scene.graph.constant(scene.value(1)?).is_none() {
        scene.provenance.products.push(scene.node);
        return Ok(());
    }
    let last = features.shape.len() - 1;
    let alone = features.planes.iter().find(|p| p.axes() == [last]);
    match (alone, weight.shape.len()) {
        (Some(plane), 2) => {
            let channels = plane.0.iter().copied().collect();
            let contraction = Contraction { node: scene.node, features: 0, weight: 1, rows: channels };
            scene.provenance.contractions.push(contraction);
        }
        _ => scene.provenance.untracked.push((scene.node, rows)),
    }
    Ok(())
}

fn matmul(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let (a, b) = (scene.operand(0)?, scene.operand(1)?);
    if a.shape.len() < 2 || b.shape.len() < 2 {
        return Err("multiplies a vector, for which there is no rule".into());
    }
    let rows = b.shape[b.shape.len() - 2];
    note(scene, &a, &b, rows)?;
    Ok(vec![contract(scene, a, b)])
}

fn gemm(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let transpose = |o: Operand, yes: bool| match yes {
        true => Operand {
            shape: o.shape.iter().rev().copied().collect(),
            planes: o.planes.iter().map(|p| p.transposed(&[1, 0])).collect(),
        },
        false => o,
    };
    let (trans_a, trans_b) = (scene.operator().int("transA", 0) != 0, scene.operator().int("transB", 0) != 0);
    let a = transpose(scene.operand(0)?, trans_a);
    let b = transpose(scene.operand(1)?, trans_b);
    if !trans_a {
        note(scene, &a, &b, b.shape[0])?;
    }
    let shape = scene.output_shape(0)?;
    let product = contract(scene, a, b);
    let mut terms = vec![Operand { shape: shape.clone(), planes: product }];
    if scene.has_input(2) {
        terms.push(scene.operand(2)?);
    }
    Ok(vec![join(scene, terms, &shape)])
}

/// Ends the channels of its input on the second axis of its weight; the first one makes new ones.
fn conv(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    if scene.operator().int("group", 1) != 1 {
        return Err("is a convolution in groups".into());
    }
    let (x, weight) = (scene.operand(0)?, scene.operand(1)?);
    let shape = scene.output_shape(0)?;
    let rank = shape.len();
    let spatial: Vec<usize> = (2..rank).collect();
    scene.freeze_varying(&x.planes, &spatial, "mixes neighbours on it");
    scene.freeze_varying(&weight.planes, &spatial, "mixes neighbours on it");
    let along = |plane: &Plane, axis: usize| plane.axes() == [axis];
    let rows = weight.planes.iter().find(|p| along(p, 1)).cloned();
    let columns = weight.planes.iter().find(|p| along(p, 0)).cloned();
    match (x.planes.iter().find(|p| along(p, 1)), rows) {
        (Some(features), Some(rows)) => {
            let joined = plane::pair(
                features,
                &rows.reshaped(rows.0.shape(), features.0.shape()),
                &mut scene.provenance.channels,
            );
            let contraction =
                Contraction { node: scene.node, features: 0, weight: 1, rows: joined.0.iter().copied().collect() };
            scene.provenance.contractions.push(contraction);
        }
        (None, Some(rows)) => scene.freeze(&rows, "reads a value that cannot be cut"),
        (Some(features), None) => scene.freeze(&features.clone(), "reads it as one channel"),
        (None, None) => {}
    }
    let Some(columns) = columns else { return Ok(vec![Planes::new()]) };
    let mut made = vec![1; rank];
    made[1] = columns.0.len();
    let made = columns.reshaped(columns.0.shape(), &made);
    if scene.has_input(2) {
        let bias = scene.operand(2)?;
        for plane in &bias.planes {
            plane::pair(&made, &plane.reshaped(plane.0.shape(), made.0.shape()), &mut scene.provenance.channels);
        }
    }
    Ok(vec![vec![made]])
}

/// A scale, a shift and two statistics for every index of the second axis.
fn batch_norm(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let x = scene.operand(0)?;
    let Some(features) = x.planes.iter().find(|p| p.axes() == [1]).cloned() else {
        return Err("normalises every channel by itself".into());
    };
    for slot in 1..5 {
        for plane in scene.operand(slot)?.planes {
            let turned = plane.reshaped(plane.0.shape(), features.0.shape());
            plane::pair(&features, &turned, &mut scene.provenance.channels);
        }
    }
    Ok(vec![x.planes])
}

/// Pools over all axes but the first two.
fn pool(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let x = scene.operand(0)?;
    let spatial: Vec<usize> = (2..x.shape.len()).collect();
    scene.freeze_varying(&x.planes, &spatial, "pools over it");
    let kept = x.planes.into_iter().filter(|p| !spatial.iter().any(|&a| p.varies(a))).collect();
    Ok(vec![kept; scene.operator().outputs().len()])
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "layout_tests.rs"]
mod layout_tests;
