//! Gradient rules for operators that reduce or normalise over axes.

use super::{Decline, Inputs, Step};
use crate::ir::{Slot, ValueId};

fn normalised_axes(step: &Step) -> Result<Vec<i64>, Decline> {
    let rank = step.dims(step.output()?)?.len() as i64;
    let axis = step.operator.int("axis", -1);
    Ok(((if axis < 0 { axis + rank } else { axis })..rank).collect())
}

/// Only the normalised input may depend on what is pruned, and only the first output may be used.
fn check_normalisation(step: &Step) -> Result<(), Decline> {
    if step.wants(1) || step.wants(2) {
        return Err("its scale or bias depends on what is pruned".into());
    }
    let is_used = |v: ValueId| step.emit.graph.consumers(v).iter().any(|(_, slot)| *slot != Slot::Output);
    match step.outputs.iter().skip(1).any(Option::is_some) {
        true if step.operator.outputs().iter().skip(1).flatten().any(|&v| is_used(v)) => {
            Err("its statistics are used".into())
        }
        _ => Ok(()),
    }
}

/// With u = (x - mean) r and h = g scale: r (h - mean(h) - u mean(h u)).
pub(super) fn layer_norm(step: &mut Step) -> Result<Inputs, Decline> {
    check_normalisation(step)?;
    let axes = normalised_axes(step)?;
    let (g, x, scale) = (step.gradient()?, step.input(0)?, step.input(1)?);
    let mean = step.emit.graph.require_output(step.node, 1);
    let inverse = step.emit.graph.require_output(step.node, 2);
    let centred = step.emit.op("Sub", &[x, mean]);
    let unit = step.emit.op("Mul", &[centred, inverse]);
    let h = step.emit.op("Mul", &[g, scale]);
    let h_mean = step.emit.reduce_mean(h, &axes);
    let along = step.emit.op("Mul", &[h, unit]);
    let along = step.emit.reduce_mean(along, &axes);
    let part = step.emit.op("Mul", &[unit, along]);
    let rest = step.emit.op("Sub", &[h, h_mean]);
    let rest = step.emit.op("Sub", &[rest, part]);
    Ok(vec![(0, step.emit.op("Mul", &[rest, inverse]))])
}

/// With r = 1 / sqrt(mean(x^2) + epsilon), u = x r and h = g scale: r (h - u mean(h u)).
pub(super) fn rms_norm(step: &mut Step) -> Result<Inputs, Decline> {
    check_normalisation(step)?;
    let axes = normalised_axes(step)?;
    let (g, x, scale) = (step.gradient()?, step.input(0)?, step.input(1)?);
    let epsilon = step.number(step.operator.float("epsilon", 1e-5).into())?;
    let square = step.emit.op("Mul", &[x, x]);
    let mean = step.emit.reduce_mean(square, &axes);
    let mean = step.emit.op("Add", &[mean, epsilon]);
    let root = step.emit.op("Sqrt", &[mean]);
    let unit = step.emit.op("Div", &[x, root]);
    let h = step.emit.op("Mul", &[g, scale]);
    let along = step.emit.op("Mul", &[h, unit]);
    let along = step.emit.reduce_mean(along, &axes);
    let part = step.emit.op("Mul", &[unit, along]);
    let rest = step.emit.op("Sub", &[h, part]);
    Ok(vec![(0, step.emit.op("Div", &[rest, root]))])
}

pub(super) fn reduce(step: &mut Step) -> Result<Inputs, Decline> {
    let (mut g, x) = (step.gradient()?, step.input(0)?);
    let rank = step.dims(x)?.len();
    let listed: Vec<i64> = match (step.operator.ints("axes"), step.operator.input(1)) {
        (Some(axes), _) => axes.to_vec(),
        (None, Some(axes)) => {
            let ints = step.seen.fixed_integers(axes).ok_or("its axes are only known at run time")?;
            ints.iter().copied().collect()
        }
        (None, None) => Vec::new(),
    };
    if listed.is_empty() && step.operator.int("noop_with_empty_axes", 0) != 0 {
        return Ok(vec![(0, g)]);
    }
    if step.operator.int("keepdims", 1) == 0 {
        g = step.emit.unsqueeze(g, &reduced_axes(&listed, rank));
    }
    g = match step.operator.op_type.as_str() {
        "ReduceMean" => mean_share(step, g)?,
        // x / |x|
        "ReduceL2" => {
            let whole = kept_dims(step, &listed)?;
            step.emit.op("Div", &[g, whole])
        }
        _ => g,
    };
    let slope = match step.operator.op_type.as_str() {
        "ReduceL2" => Some(x),
        "ReduceL1" => Some(step.emit.op("Sign", &[x])),
        "ReduceSumSquare" => {
            let two = step.number(2.0)?;
            Some(step.emit.op("Mul", &[x, two]))
        }
        "ReduceMax" | "ReduceMin" => {
            let whole = kept_dims(step, &listed)?;
            let is_extreme = step.emit.op("Equal", &[x, whole]);
            Some(step.emit.cast(is_extreme, step.element()?))
        }
        _ => None,
    };
    if let Some(slope) = slope {
        return Ok(vec![(0, step.emit.op("Mul", &[g, slope]))]);
    }
    let shape = step.emit.op("Shape", &[x]);
    Ok(vec![(0, step.emit.op("Expand", &[g, shape]))])
}

/// The reduction's result with its reduced axes as axes of length 1.
fn kept_dims(step: &mut Step, listed: &[i64]) -> Result<ValueId, Decline> {
    let y = step.output()?;
    if step.operator.int("keepdims", 1) != 0 {
        return Ok(y);
    }
    let rank = step.dims(step.input(0)?)?.len();
    Ok(step.emit.unsqueeze(y, &reduced_axes(listed, rank)))
}

/// The listed axes of a value of `rank` axes, counted from the first, in order; all where none is listed.
fn reduced_axes(listed: &[i64], rank: usize) -> Vec<i64> {
    let rank = rank as i64;
    let mut axes: Vec<i64> = listed.iter().map(|&a| if a < 0 { a + rank } else { a }).collect();
    axes.sort_unstable();
    if axes.is_empty() { (0..rank).collect() } else { axes }
}

/// The gradient over the number of elements that one mean is taken of.
fn mean_share(step: &mut Step, g: ValueId) -> Result<ValueId, Decline> {
    let (x, element) = (step.input(0)?, step.element()?);
    let (whole, part) = (step.emit.op("Size", &[x]), step.emit.op("Size", &[step.output()?]));
    let (whole, part) = (step.emit.cast(whole, element), step.emit.cast(part, element));
    let share = step.emit.op("Div", &[part, whole]);
    Ok(step.emit.op("Mul", &[g, share]))
}

/// The mean over all axes but the first two, which stay with length 1.
pub(super) fn global_average(step: &mut Step) -> Result<Inputs, Decline> {
    let (g, x) = (step.gradient()?, step.input(0)?);
    let g = mean_share(step, g)?;
    let shape = step.emit.op("Shape", &[x]);
    Ok(vec![(0, step.emit.op("Expand", &[g, shape]))])
}

/// For y = x / |x|: (g - y <g, y>) / |x|.
pub(super) fn lp_normalise(step: &mut Step) -> Result<Inputs, Decline> {
    if step.operator.int("p", 2) != 2 {
        return Err("it normalises by another norm than the second".into());
    }
    let (g, x, y) = (step.gradient()?, step.input(0)?, step.output()?);
    let axis = [step.operator.int("axis", -1)];
    let along = step.emit.op("Mul", &[g, y]);
    let along = step.emit.reduce_sum(along, &axis, true);
    let part = step.emit.op("Mul", &[y, along]);
    let rest = step.emit.op("Sub", &[g, part]);
    let square = step.emit.op("Mul", &[x, x]);
    let square = step.emit.reduce_sum(square, &axis, true);
    let norm = step.emit.op("Sqrt", &[square]);
    Ok(vec![(0, step.emit.op("Div", &[rest, norm]))])
}
