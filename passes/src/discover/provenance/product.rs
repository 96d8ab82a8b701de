//! Rules for products that sum over an axis: channels end there on the rows of a weight, and new ones begin.

use super::join::join;
use super::plane::{self, Plane};
use super::{Contraction, Decline, Operand, Planes, Rule, Scene};
use crate::rules::Table;

pub(super) const RULES: Table<Rule> = &[(&["MatMul"], matmul), (&["Gemm"], gemm), (&["Conv"], conv)];

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
    let group = scene.operator().int("group", 1);
    if group != 1 {
        return depthwise(scene, group as usize);
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

/// Convolves every channel for itself: what goes in comes out, with a row of the weight and a bias.
fn depthwise(scene: &mut Scene, group: usize) -> Result<Vec<Planes>, Decline> {
    let (x, weight) = (scene.operand(0)?, scene.operand(1)?);
    let rank = scene.output_shape(0)?.len();
    if weight.shape.len() != rank || weight.shape[0] != group || weight.shape[1] != 1 {
        return Err("is a convolution in groups of several channels".into());
    }
    let spatial: Vec<usize> = (2..rank).collect();
    scene.freeze_varying(&x.planes, &spatial, "mixes neighbours on it");
    scene.freeze_varying(&weight.planes, &spatial, "mixes neighbours on it");
    let along = |planes: &Planes, axis: usize| planes.iter().find(|p| p.axes() == [axis]).cloned();
    let (features, rows) = match (along(&x.planes, 1), along(&weight.planes, 0)) {
        (Some(features), Some(rows)) => (features, rows),
        (features, rows) => {
            let reason = "reads a value or a weight that cannot be cut";
            features.iter().chain(&rows).for_each(|plane| scene.freeze(plane, reason));
            return Ok(vec![Planes::new()]);
        }
    };
    let mut made = vec![1; rank];
    made[1] = group;
    let rows = rows.reshaped(rows.0.shape(), &made);
    let joined = plane::pair(&features, &rows, &mut scene.provenance.channels);
    if scene.has_input(2) {
        for plane in &scene.operand(2)?.planes {
            plane::pair(&joined, &plane.reshaped(plane.0.shape(), &made), &mut scene.provenance.channels);
        }
    }
    Ok(vec![vec![joined]])
}
