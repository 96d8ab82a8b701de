//! Gradient rules for operators that reduce or normalise over axes.

use super::{Decline, Inputs, Rule, Scene};
use crate::ir::{Slot, ValueId};
use crate::rules::Table;

pub(super) const RULES: Table<Rule> = &[
    (&["Softmax"], softmax),
    (&["LogSoftmax"], log_softmax),
    (&["LayerNormalization"], layer_norm),
    (&["RMSNormalization"], rms_norm),
    (&["LpNormalization"], lp_normalise),
    (&["ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"], reduce),
    (&["GlobalAveragePool"], global_average),
];

fn normalised_axes(scene: &Scene) -> Result<Vec<i64>, Decline> {
    let rank = scene.dims(scene.output()?)?.len() as i64;
    let axis = scene.operator.int("axis", -1);
    Ok(((if axis < 0 { axis + rank } else { axis })..rank).collect())
}

/// Only the first output may be used.
fn check_normalisation(scene: &Scene) -> Result<(), Decline> {
    let is_used = |v: ValueId| scene.emit.graph.consumers(v).iter().any(|(_, slot)| *slot != Slot::Output);
    match scene.outputs.iter().skip(1).any(Option::is_some) {
        true if scene.operator.outputs().iter().skip(1).flatten().any(|&v| is_used(v)) => {
            Err("its statistics are used".into())
        }
        _ => Ok(()),
    }
}

/// Of the scale and the bias: sums of g u and of g, where they are wanted.
fn affine(scene: &mut Scene, g: ValueId, unit: ValueId) -> Result<Inputs, Decline> {
    let mut inputs = Vec::new();
    if scene.wants(1) {
        let scaled = scene.emit.op("Mul", &[g, unit]);
        inputs.push(scene.fit(scaled, 1)?);
    }
    if scene.wants(2) {
        inputs.push(scene.fit(g, 2)?);
    }
    Ok(inputs)
}

/// With u = (x - mean) r and h = g scale: r (h - mean(h) - u mean(h u)).
fn layer_norm(scene: &mut Scene) -> Result<Inputs, Decline> {
    check_normalisation(scene)?;
    let axes = normalised_axes(scene)?;
    let (g, x, scale) = (scene.gradient()?, scene.input(0)?, scene.input(1)?);
    let mean = scene.emit.graph.require_output(scene.node, 1);
    let inverse = scene.emit.graph.require_output(scene.node, 2);
    let centred = scene.emit.op("Sub", &[x, mean]);
    let unit = scene.emit.op("Mul", &[centred, inverse]);
    let mut inputs = affine(scene, g, unit)?;
    if !scene.wants(0) {
        return Ok(inputs);
    }
    let h = scene.emit.op("Mul", &[g, scale]);
    let h_mean = scene.emit.reduce_mean(h, &axes);
    let along = scene.emit.op("Mul", &[h, unit]);
    let along = scene.emit.reduce_mean(along, &axes);
    let part = scene.emit.op("Mul", &[unit, along]);
    let rest = scene.emit.op("Sub", &[h, h_mean]);
    let rest = scene.emit.op("Sub", &[rest, part]);
    inputs.push((0, scene.emit.op("Mul", &[rest, inverse])));
    Ok(inputs)
}

/// With r = 1 / sqrt(mean(x^2) + epsilon), u = x r and h = g scale: r (h - u mean(h u)).
fn rms_norm(scene: &mut Scene) -> Result<Inputs, Decline> {
    check_normalisation(scene)?;
    let axes = normalised_axes(scene)?;
    let (g, x, scale) = (scene.gradient()?, scene.input(0)?, scene.input(1)?);
    let epsilon = scene.number(scene.operator.float("epsilon", 1e-5).into())?;
    let square = scene.emit.op("Mul", &[x, x]);
    let mean = scene.emit.reduce_mean(square, &axes);
    let mean = scene.emit.op("Add", &[mean, epsilon]);
    let root = scene.emit.op("Sqrt", &[mean]);
    let unit = scene.emit.op("Div", &[x, root]);
    let mut inputs = affine(scene, g, unit)?;
    if !scene.wants(0) {
        return Ok(inputs);
    }
    let h = scene.emit.op("Mul", &[g, scale]);
    let along = scene.emit.op("Mul", &[h, unit]);
    let along = scene.emit.reduce_mean(along, &axes);
    let part = scene.emit.op("Mul", &[unit, along]);
    let rest = scene.emit.op("Sub", &[h, part]);
    inputs.push((0, scene.emit.op("Div", &[rest, root])));
    Ok(inputs)
}

fn reduce(scene: &mut Scene) -> Result<Inputs, Decline> {
    let (mut g, x) = (scene.gradient()?, scene.input(0)?);
    let rank = scene.dims(x)?.len();
    let listed: Vec<i64> = match (scene.operator.ints("axes"), scene.operator.input(1)) {
        (Some(axes), _) => axes.to_vec(),
        (None, Some(axes)) => {
            let ints = scene.seen.fixed_integers(axes).ok_or("its axes are only known at run time")?;
            ints.iter().copied().collect()
        }
        (None, None) => Vec::new(),
    };
    if listed.is_empty() && scene.operator.int("noop_with_empty_axes", 0) != 0 {
        return Ok(vec![(0, g)]);
    }
    if scene.operator.int("keepdims", 1) == 0 {
        g = scene.emit.unsqueeze(g, &reduced_axes(&listed, rank));
    }
    g = match scene.operator.op_type.as_str() {
        "ReduceMean" => mean_share(scene, g)?,
        // x / |x|
        "ReduceL2" => {
            let whole = kept_dims(scene, &listed)?;
            scene.emit.op("Div", &[g, whole])
        }
        _ => g,
    };
    let slope = match scene.operator.op_type.as_str() {
        "ReduceL2" => Some(x),
        "ReduceL1" => Some(scene.emit.op("Sign", &[x])),
        "ReduceSumSquare" => {
            let two = scene.number(2.0)?;
            Some(scene.emit.op("Mul", &[x, two]))
        }
        "ReduceMax" | "ReduceMin" => {
            let whole = kept_dims(scene, &listed)?;
            let is_extreme = scene.emit.op("Equal", &[x, whole]);
            Some(scene.emit.cast(is_extreme, scene.element()?))
        }
        _ => None,
    };
    if let Some(slope) = slope {
        return Ok(vec![(0, scene.emit.op("Mul", &[g, slope]))]);
    }
    let shape = scene.emit.op("Shape", &[x]);
    Ok(vec![(0, scene.emit.op("Expand", &[g, shape]))])
}

/// The reduction's result with its reduced axes as axes of length 1.
fn kept_dims(scene: &mut Scene, listed: &[i64]) -> Result<ValueId, Decline> {
    let y = scene.output()?;
    if scene.operator.int("keepdims", 1) != 0 {
        return Ok(y);
    }
    let rank = scene.dims(scene.input(0)?)?.len();
    Ok(scene.emit.unsqueeze(y, &reduced_axes(listed, rank)))
}

/// The listed axes of a value of `rank` axes, counted from the first, in order; all where none is listed.
fn reduced_axes(listed: &[i64], rank: usize) -> Vec<i64> {
    let rank = rank as i64;
    let mut axes: Vec<i64> = listed.iter().map(|&a| if a < 0 { a + rank } else { a }).collect();
    axes.sort_unstable();
    if axes.is_empty() { (0..rank).collect() } else { axes }
}

/// The gradient over the number of elements that one mean is taken of.
fn mean_share(scene: &mut Scene, g: ValueId) -> Result<ValueId, Decline> {
    let (x, element) = (scene.input(0)?, scene.element()?);
    let (whole, part) = (scene.emit.op("Size", &[x]), scene.emit.op("Size", &[scene.output()?]));
    let (whole, part) = (scene.emit.cast(whole, element), scene.emit.cast(part, element));
    let share = scene.emit.op("Div", &[part, whole]);
    Ok(scene.emit.op("Mul", &[g, share]))
}

/// The mean over all axes but the first two, which stay with length 1.
fn global_average(scene: &mut Scene) -> Result<Inputs, Decline> {
    let (g, x) = (scene.gradient()?, scene.input(0)?);
    let g = mean_share(scene, g)?;
    let shape = scene.emit.op("Shape", &[x]);
    Ok(vec![(0, scene.emit.op("Expand", &[g, shape]))])
}

/// For y = x / |x|: (g - y <g, y>) / |x|.
fn lp_normalise(scene: &mut Scene) -> Result<Inputs, Decline> {
    if scene.operator.int("p", 2) != 2 {
        return Err("it normalises by another norm than the second".into());
    }
    let (g, x, y) = (scene.gradient()?, scene.input(0)?, scene.output()?);
    let axis = [scene.operator.int("axis", -1)];
    let along = scene.emit.op("Mul", &[g, y]);
    let along = scene.emit.reduce_sum(along, &axis, true);
    let part = scene.emit.op("Mul", &[y, along]);
    let rest = scene.emit.op("Sub", &[g, part]);
    let square = scene.emit.op("Mul", &[x, x]);
    let square = scene.emit.reduce_sum(square, &axis, true);
    let norm = scene.emit.op("Sqrt", &[square]);
    Ok(vec![(0, scene.emit.op("Div", &[rest, norm]))])
}

/// For y = softmax(x): y (g - sum(g y)).
fn softmax(scene: &mut Scene) -> Result<Inputs, Decline> {
    let (g, y, axis) = (scene.gradient()?, scene.output()?, scene.operator.int("axis", -1));
    let weighted = scene.emit.op("Mul", &[g, y]);
    let total = scene.emit.reduce_sum(weighted, &[axis], true);
    let share = scene.emit.op("Mul", &[y, total]);
    Ok(vec![(0, scene.emit.op("Sub", &[weighted, share]))])
}

/// For y = log softmax(x): g - exp(y) sum(g).
fn log_softmax(scene: &mut Scene) -> Result<Inputs, Decline> {
    let (g, y, axis) = (scene.gradient()?, scene.output()?, scene.operator.int("axis", -1));
    let total = scene.emit.reduce_sum(g, &[axis], true);
    let weights = scene.emit.op("Exp", &[y]);
    let share = scene.emit.op("Mul", &[weights, total]);
    Ok(vec![(0, scene.emit.op("Sub", &[g, share]))])
}
