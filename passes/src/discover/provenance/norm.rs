//! Rules for operators that reduce or normalise over axes: all that lies on such an axis counts in the result.

use super::join::join;
use super::plane;
use super::{Decline, Planes, Rule, Scene};
use crate::rules::Table;

pub(super) const RULES: Table<Rule> = &[
    (
        &[
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
        ],
        reduce,
    ),
    (&["Softmax", "LogSoftmax", "Hardmax"], softmax),
    (&["LayerNormalization", "RMSNormalization"], normalise),
    (&["LpNormalization", "CumSum"], along_axis),
    (&["BatchNormalization"], batch_norm),
    (&["AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"], pool),
];

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
