//! Gradient rules for operators that move, pick and join elements.

use super::{Decline, Inputs, Step};
use crate::ir::{Operator, Tensor, ValueId, attribute};

/// Gradients of the inputs of an operator that only rearranges.
pub(super) fn backward(step: &mut Step, op_type: &str) -> Result<Inputs, Decline> {
    match op_type {
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
            let (g, x) = (step.gradient()?, step.input(0)?);
            Ok(vec![(0, step.emit.reshape_like(g, x))])
        }
        "Transpose" => transpose(step),
        "Expand" => {
            let g = step.gradient()?;
            Ok(vec![step.fit(g, 0)?])
        }
        "Split" => split(step),
        "Concat" => concat(step),
        "Gather" => gather(step),
        "Slice" => slice(step),
        "GatherElements" => gather_elements(step),
        "GatherND" => gather_nd(step),
        "Pad" => pad(step),
        "Tile" => tile(step),
        _ => Err("there is no rule for this operator".into()),
    }
}

fn transpose(step: &mut Step) -> Result<Inputs, Decline> {
    let g = step.gradient()?;
    let rank = step.dims(step.output()?)?.len();
    let order: Vec<i64> = match step.operator.ints("perm") {
        Some(perm) => perm.to_vec(),
        None => (0..rank as i64).rev().collect(),
    };
    let mut inverse = vec![0; rank];
    for (to, &from) in order.iter().enumerate() {
        inverse[from as usize] = to as i64;
    }
    Ok(vec![(0, step.emit.transpose(g, &inverse))])
}

fn split(step: &mut Step) -> Result<Inputs, Decline> {
    let axis = step.operator.int("axis", 0);
    let mut parts = Vec::new();
    for (slot, &output) in step.operator.outputs().iter().enumerate() {
        let output = output.ok_or("an output was left out, whose size is not known")?;
        parts.push(match step.outputs[slot] {
            Some(gradient) => gradient,
            None => {
                let shape = step.emit.op("Shape", &[output]);
                zeros(step, shape)?
            }
        });
    }
    Ok(vec![(0, step.emit.with(Operator::new("Concat").with(attribute::int("axis", axis)), &parts))])
}

fn concat(step: &mut Step) -> Result<Inputs, Decline> {
    let g = step.gradient()?;
    let rank = step.dims(step.output()?)?.len() as i64;
    let axis = step.operator.int("axis", 0);
    let axis = if axis < 0 { axis + rank } else { axis };
    let inputs: Vec<ValueId> = step.operator.inputs().iter().flatten().copied().collect();
    let lengths: Vec<_> = inputs.iter().map(|&x| step.emit.length(x, axis as usize)).collect();
    let sizes = step.emit.with(Operator::new("Concat").with(attribute::int("axis", 0)), &lengths);
    let parts = step.emit.many(Operator::new("Split").with(attribute::int("axis", axis)), &[g, sizes], inputs.len());
    let wanted = |(slot, part)| step.wants(slot).then_some((slot, part));
    Ok(parts.into_iter().enumerate().filter_map(wanted).collect())
}

/// Zeros of the given shape.
fn zeros(step: &mut Step, shape: ValueId) -> Result<ValueId, Decline> {
    let element = step.element()?;
    let zero = Tensor::from_floats(element, &ndarray::arr1(&[0.0]).into_dyn()).map_err(|e| e.to_string())?;
    Ok(step.emit.with(Operator::new("ConstantOfShape").with(attribute::tensor("value", &zero)), &[shape]))
}

/// Zeros like `like`, of as many axes as the first input, with `gradient` added at the places `index`
/// (a vector) of `axis`.
fn scatter(
    step: &mut Step,
    like: ValueId,
    gradient: ValueId,
    index: ValueId,
    axis: usize,
    repeats: bool,
) -> Result<ValueId, Decline> {
    let rank = step.dims(step.input(0)?)?.len();
    let shape = step.emit.op("Shape", &[like]);
    let base = zeros(step, shape)?;
    let others: Vec<i64> = (0..rank as i64).filter(|&a| a != axis as i64).collect();
    let places = if others.is_empty() { index } else { step.emit.unsqueeze(index, &others) };
    let shape = step.emit.op("Shape", &[gradient]);
    let places = step.emit.op("Expand", &[places, shape]);
    let mut operator = Operator::new("ScatterElements").with(attribute::int("axis", axis as i64));
    if repeats {
        if step.emit.opset() < 16 {
            return Err("picking several entries needs operator set 16 to be differentiated".into());
        }
        operator = operator.with(attribute::text("reduction", "add"));
    }
    Ok(step.emit.with(operator, &[base, places, gradient]))
}

fn gather(step: &mut Step) -> Result<Inputs, Decline> {
    let (mut g, x, index) = (step.gradient()?, step.input(0)?, step.input(1)?);
    let (rank, index_rank) = (step.dims(x)?.len() as i64, step.dims(index)?.len());
    let axis = step.operator.int("axis", 0);
    let axis = if axis < 0 { axis + rank } else { axis };
    let mut places = index;
    match index_rank {
        0 => {
            g = step.emit.unsqueeze(g, &[axis]);
            places = step.emit.unsqueeze(index, &[0]);
        }
        1 => {}
        _ => {
            g = fold_axes(step, g, x, axis)?;
            let flat = step.emit.integers(&[-1]);
            places = step.emit.op("Reshape", &[index, flat]);
        }
    }
    Ok(vec![(0, scatter(step, x, g, places, axis as usize, index_rank > 0)?)])
}

/// The axes that a table of indices gave, folded into the one that it replaced.
fn fold_axes(step: &mut Step, g: ValueId, x: ValueId, axis: i64) -> Result<ValueId, Decline> {
    let rank = step.dims(x)?.len() as i64;
    let shape = step.emit.op("Shape", &[x]);
    let mut part = |from: i64, to: i64| {
        let (from, to) = (step.emit.integers(&[from]), step.emit.integers(&[to]));
        step.emit.op("Slice", &[shape, from, to])
    };
    let (before, behind) = (part(0, axis), part(axis + 1, rank));
    let pieces = [before, step.emit.integers(&[-1]), behind];
    let target = step.emit.with(Operator::new("Concat").with(attribute::int("axis", 0)), &pieces);
    Ok(step.emit.op("Reshape", &[g, target]))
}

/// Zeros with the gradient added at the places that the indices name.
fn gather_nd(step: &mut Step) -> Result<Inputs, Decline> {
    if step.operator.int("batch_dims", 0) != 0 {
        return Err("its indices are different for every sample".into());
    }
    if step.emit.opset() < 16 {
        return Err("picking entries needs operator set 16 to be differentiated".into());
    }
    let (g, x, index) = (step.gradient()?, step.input(0)?, step.input(1)?);
    let shape = step.emit.op("Shape", &[x]);
    let base = zeros(step, shape)?;
    let operator = Operator::new("ScatterND").with(attribute::text("reduction", "add"));
    Ok(vec![(0, step.emit.with(operator, &[base, index, g]))])
}

fn gather_elements(step: &mut Step) -> Result<Inputs, Decline> {
    let (g, x, index) = (step.gradient()?, step.input(0)?, step.input(1)?);
    if step.emit.opset() < 16 {
        return Err("picking entries needs operator set 16 to be differentiated".into());
    }
    let shape = step.emit.op("Shape", &[x]);
    let base = zeros(step, shape)?;
    let operator = Operator::new("ScatterElements")
        .with(attribute::int("axis", step.operator.int("axis", 0)))
        .with(attribute::text("reduction", "add"));
    Ok(vec![(0, step.emit.with(operator, &[base, index, g]))])
}

/// Undoes one axis after the other, so each is a pick of known places.
fn slice(step: &mut Step) -> Result<Inputs, Decline> {
    let (g, x) = (step.gradient()?, step.input(0)?);
    let (starts, ends) = (step.input(1)?, step.input(2)?);
    let rank = step.dims(x)?.len() as i64;
    let count = step.dims(starts)?.first().and_then(|d| d.fixed()).ok_or("the number of axes is not known")?;
    let axes: Vec<i64> = match step.operator.input(3) {
        Some(axes) => {
            let ints = step.seen.fixed_integers(axes).ok_or("its axes are only known at run time")?;
            ints.iter().map(|&a| if a < 0 { a + rank } else { a }).collect()
        }
        None => (0..count as i64).collect(),
    };
    let mut stages = vec![x];
    let mut places = Vec::new();
    for (i, &axis) in axes.iter().enumerate() {
        let before = stages[i];
        let mut range = Vec::new();
        for vector in [Some(starts), Some(ends), step.operator.input(4)].into_iter().flatten() {
            let at = step.emit.integers(&[i as i64]);
            range.push(step.emit.op("Gather", &[vector, at]));
        }
        let (along, first) = (step.emit.integers(&[axis]), step.emit.integers(&[0]));
        let with_axis = |data, axis| {
            let mut inputs = vec![data, range[0], range[1], axis];
            inputs.extend(range.get(2));
            inputs
        };
        stages.push(step.emit.op("Slice", &with_axis(before, along)));
        let length = step.emit.length(before, axis as usize);
        let (scalar, zero, one) = (step.emit.integers(&[]), step.emit.integer(0), step.emit.integer(1));
        let length = step.emit.op("Reshape", &[length, scalar]);
        let all = step.emit.op("Range", &[zero, length, one]);
        places.push(step.emit.op("Slice", &with_axis(all, first)));
    }
    let mut gradient = g;
    for (i, &axis) in axes.iter().enumerate().rev() {
        gradient = scatter(step, stages[i], gradient, places[i], axis as usize, false)?;
    }
    Ok(vec![(0, gradient)])
}

/// Cuts off what was added at both ends of every axis.
fn pad(step: &mut Step) -> Result<Inputs, Decline> {
    if step.operator.text("mode", "constant") != "constant" {
        return Err("it repeats elements at the border".into());
    }
    if step.operator.input(3).is_some() {
        return Err("it pads only some axes".into());
    }
    let (g, x, pads) = (step.gradient()?, step.input(0)?, step.input(1)?);
    let rank = step.dims(x)?.len() as i64;
    let (zero, middle) = (step.emit.integers(&[0]), step.emit.integers(&[rank]));
    let starts = step.emit.op("Slice", &[pads, zero, middle]);
    let shape = step.emit.op("Shape", &[x]);
    let ends = step.emit.op("Add", &[starts, shape]);
    Ok(vec![(0, step.emit.op("Slice", &[g, starts, ends]))])
}

/// Adds up the copies: every axis is taken apart into copies and elements, and summed over the copies.
fn tile(step: &mut Step) -> Result<Inputs, Decline> {
    let (g, x, repeats) = (step.gradient()?, step.input(0)?, step.input(1)?);
    let rank = step.dims(x)?.len() as i64;
    let (shape, second) = (step.emit.op("Shape", &[x]), step.emit.integers(&[1]));
    let pairs = [step.emit.op("Unsqueeze", &[repeats, second]), step.emit.op("Unsqueeze", &[shape, second])];
    let pairs = step.emit.with(Operator::new("Concat").with(attribute::int("axis", 1)), &pairs);
    let flat = step.emit.integers(&[-1]);
    let apart = step.emit.op("Reshape", &[pairs, flat]);
    let apart = step.emit.op("Reshape", &[g, apart]);
    let copies: Vec<i64> = (0..rank).map(|a| 2 * a).collect();
    Ok(vec![(0, step.emit.reduce_sum(apart, &copies, false))])
}
