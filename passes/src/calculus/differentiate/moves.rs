//! Gradient rules for operators that move, pick and join elements.

use super::{Decline, Inputs, Rule, Scene};
use crate::ir::{Operator, Tensor, ValueId, attribute};
use crate::rules::Table;

pub(super) const RULES: Table<Rule> = &[
    (&["Reshape", "Flatten", "Squeeze", "Unsqueeze"], reshape),
    (&["Transpose"], transpose),
    (&["Expand"], expand),
    (&["Split"], split),
    (&["Concat"], concat),
    (&["Gather"], gather),
    (&["Slice"], slice),
    (&["GatherElements"], gather_elements),
    (&["GatherND"], gather_nd),
    (&["Pad"], pad),
    (&["Tile"], tile),
];

fn reshape(scene: &mut Scene) -> Result<Inputs, Decline> {
    let (g, x) = (scene.gradient()?, scene.input(0)?);
    Ok(vec![(0, scene.emit.reshape_like(g, x))])
}

fn expand(scene: &mut Scene) -> Result<Inputs, Decline> {
    let g = scene.gradient()?;
    Ok(vec![scene.fit(g, 0)?])
}

fn transpose(scene: &mut Scene) -> Result<Inputs, Decline> {
    let g = scene.gradient()?;
    let rank = scene.dims(scene.output()?)?.len();
    let order: Vec<i64> = match scene.operator.ints("perm") {
        Some(perm) => perm.to_vec(),
        None => (0..rank as i64).rev().collect(),
    };
    let mut inverse = vec![0; rank];
    for (to, &from) in order.iter().enumerate() {
        inverse[from as usize] = to as i64;
    }
    Ok(vec![(0, scene.emit.transpose(g, &inverse))])
}

fn split(scene: &mut Scene) -> Result<Inputs, Decline> {
    let axis = scene.operator.int("axis", 0);
    let mut parts = Vec::new();
    for (slot, &output) in scene.operator.outputs().iter().enumerate() {
        let output = output.ok_or("an output was left out, whose size is not known")?;
        parts.push(match scene.outputs[slot] {
            Some(gradient) => gradient,
            None => {
                let shape = scene.emit.op("Shape", &[output]);
                zeros(scene, shape)?
            }
        });
    }
    Ok(vec![(0, scene.emit.with(Operator::new("Concat").with(attribute::int("axis", axis)), &parts))])
}

fn concat(scene: &mut Scene) -> Result<Inputs, Decline> {
    let g = scene.gradient()?;
    let rank = scene.dims(scene.output()?)?.len() as i64;
    let axis = scene.operator.int("axis", 0);
    let axis = if axis < 0 { axis + rank } else { axis };
    let inputs: Vec<ValueId> = scene.operator.inputs().iter().flatten().copied().collect();
    let lengths: Vec<_> = inputs.iter().map(|&x| scene.emit.length(x, axis as usize)).collect();
    let sizes = scene.emit.with(Operator::new("Concat").with(attribute::int("axis", 0)), &lengths);
    let parts = scene.emit.many(Operator::new("Split").with(attribute::int("axis", axis)), &[g, sizes], inputs.len());
    let wanted = |(slot, part)| scene.wants(slot).then_some((slot, part));
    Ok(parts.into_iter().enumerate().filter_map(wanted).collect())
}

/// Zeros of the given shape.
fn zeros(scene: &mut Scene, shape: ValueId) -> Result<ValueId, Decline> {
    let element = scene.element()?;
    let zero = Tensor::from_floats(element, &ndarray::arr1(&[0.0]).into_dyn()).map_err(|e| e.to_string())?;
    Ok(scene.emit.with(Operator::new("ConstantOfShape").with(attribute::tensor("value", &zero)), &[shape]))
}

/// Zeros like `like`, of as many axes as the first input, with `gradient` added at the places `index`
/// (a vector) of `axis`.
fn scatter(
    scene: &mut Scene,
    like: ValueId,
    gradient: ValueId,
    index: ValueId,
    axis: usize,
    repeats: bool,
) -> Result<ValueId, Decline> {
    let rank = scene.dims(scene.input(0)?)?.len();
    let shape = scene.emit.op("Shape", &[like]);
    let base = zeros(scene, shape)?;
    let others: Vec<i64> = (0..rank as i64).filter(|&a| a != axis as i64).collect();
    let places = if others.is_empty() { index } else { scene.emit.unsqueeze(index, &others) };
    let shape = scene.emit.op("Shape", &[gradient]);
    let places = scene.emit.op("Expand", &[places, shape]);
    let mut operator = Operator::new("ScatterElements").with(attribute::int("axis", axis as i64));
    if repeats {
        if scene.emit.opset() < 16 {
            return Err("picking several entries needs operator set 16 to be differentiated".into());
        }
        operator = operator.with(attribute::text("reduction", "add"));
    }
    Ok(scene.emit.with(operator, &[base, places, gradient]))
}

fn gather(scene: &mut Scene) -> Result<Inputs, Decline> {
    let (mut g, x, index) = (scene.gradient()?, scene.input(0)?, scene.input(1)?);
    let (rank, index_rank) = (scene.dims(x)?.len() as i64, scene.dims(index)?.len());
    let axis = scene.operator.int("axis", 0);
    let axis = if axis < 0 { axis + rank } else { axis };
    let mut places = index;
    match index_rank {
        0 => {
            g = scene.emit.unsqueeze(g, &[axis]);
            places = scene.emit.unsqueeze(index, &[0]);
        }
        1 => {}
        _ => {
            g = fold_axes(scene, g, x, axis)?;
            let flat = scene.emit.integers(&[-1]);
            places = scene.emit.op("Reshape", &[index, flat]);
        }
    }
    Ok(vec![(0, scatter(scene, x, g, places, axis as usize, index_rank > 0)?)])
}

/// The axes that a table of indices gave, folded into the one that it replaced.
fn fold_axes(scene: &mut Scene, g: ValueId, x: ValueId, axis: i64) -> Result<ValueId, Decline> {
    let rank = scene.dims(x)?.len() as i64;
    let shape = scene.emit.op("Shape", &[x]);
    let mut part = |from: i64, to: i64| {
        let (from, to) = (scene.emit.integers(&[from]), scene.emit.integers(&[to]));
        scene.emit.op("Slice", &[shape, from, to])
    };
    let (before, after) = (part(0, axis), part(axis + 1, rank));
    let pieces = [before, scene.emit.integers(&[-1]), after];
    let target = scene.emit.with(Operator::new("Concat").with(attribute::int("axis", 0)), &pieces);
    Ok(scene.emit.op("Reshape", &[g, target]))
}

/// Zeros with the gradient added at the places that the indices name.
fn gather_nd(scene: &mut Scene) -> Result<Inputs, Decline> {
    if scene.operator.int("batch_dims", 0) != 0 {
        return Err("its indices are different for every sample".into());
    }
    if scene.emit.opset() < 16 {
        return Err("picking entries needs operator set 16 to be differentiated".into());
    }
    let (g, x, index) = (scene.gradient()?, scene.input(0)?, scene.input(1)?);
    let shape = scene.emit.op("Shape", &[x]);
    let base = zeros(scene, shape)?;
    let operator = Operator::new("ScatterND").with(attribute::text("reduction", "add"));
    Ok(vec![(0, scene.emit.with(operator, &[base, index, g]))])
}

fn gather_elements(scene: &mut Scene) -> Result<Inputs, Decline> {
    let (g, x, index) = (scene.gradient()?, scene.input(0)?, scene.input(1)?);
    if scene.emit.opset() < 16 {
        return Err("picking entries needs operator set 16 to be differentiated".into());
    }
    let shape = scene.emit.op("Shape", &[x]);
    let base = zeros(scene, shape)?;
    let operator = Operator::new("ScatterElements")
        .with(attribute::int("axis", scene.operator.int("axis", 0)))
        .with(attribute::text("reduction", "add"));
    Ok(vec![(0, scene.emit.with(operator, &[base, index, g]))])
}

/// Undoes one axis after the other, so each is a pick of known places.
fn slice(scene: &mut Scene) -> Result<Inputs, Decline> {
    let (g, x) = (scene.gradient()?, scene.input(0)?);
    let (starts, ends) = (scene.input(1)?, scene.input(2)?);
    let rank = scene.dims(x)?.len() as i64;
    let count = scene.dims(starts)?.first().and_then(|d| d.fixed()).ok_or("the number of axes is not known")?;
    let axes: Vec<i64> = match scene.operator.input(3) {
        Some(axes) => {
            let ints = scene.seen.fixed_integers(axes).ok_or("its axes are only known at run time")?;
            ints.iter().map(|&a| if a < 0 { a + rank } else { a }).collect()
        }
        None => (0..count as i64).collect(),
    };
    let mut stages = vec![x];
    let mut places = Vec::new();
    for (i, &axis) in axes.iter().enumerate() {
        let before = stages[i];
        let mut range = Vec::new();
        for vector in [Some(starts), Some(ends), scene.operator.input(4)].into_iter().flatten() {
            let at = scene.emit.integers(&[i as i64]);
            range.push(scene.emit.op("Gather", &[vector, at]));
        }
        let (along, first) = (scene.emit.integers(&[axis]), scene.emit.integers(&[0]));
        let with_axis = |data, axis| {
            let mut inputs = vec![data, range[0], range[1], axis];
            inputs.extend(range.get(2));
            inputs
        };
        stages.push(scene.emit.op("Slice", &with_axis(before, along)));
        let length = scene.emit.length(before, axis as usize);
        let (scalar, zero, one) = (scene.emit.integers(&[]), scene.emit.integer(0), scene.emit.integer(1));
        let length = scene.emit.op("Reshape", &[length, scalar]);
        let all = scene.emit.op("Range", &[zero, length, one]);
        places.push(scene.emit.op("Slice", &with_axis(all, first)));
    }
    let mut gradient = g;
    for (i, &axis) in axes.iter().enumerate().rev() {
        gradient = scatter(scene, stages[i], gradient, places[i], axis as usize, false)?;
    }
    Ok(vec![(0, gradient)])
}

/// Cuts off what was added at both ends of every axis.
fn pad(scene: &mut Scene) -> Result<Inputs, Decline> {
    if scene.operator.text("mode", "constant") != "constant" {
        return Err("it repeats elements at the border".into());
    }
    if scene.operator.input(3).is_some() {
        return Err("it pads only some axes".into());
    }
    let (g, x, pads) = (scene.gradient()?, scene.input(0)?, scene.input(1)?);
    let rank = scene.dims(x)?.len() as i64;
    let (zero, middle) = (scene.emit.integers(&[0]), scene.emit.integers(&[rank]));
    let starts = scene.emit.op("Slice", &[pads, zero, middle]);
    let shape = scene.emit.op("Shape", &[x]);
    let ends = scene.emit.op("Add", &[starts, shape]);
    Ok(vec![(0, scene.emit.op("Slice", &[g, starts, ends]))])
}

/// Adds up the copies: every axis is taken apart into copies and elements, and summed over the copies.
fn tile(scene: &mut Scene) -> Result<Inputs, Decline> {
    let (g, x, repeats) = (scene.gradient()?, scene.input(0)?, scene.input(1)?);
    let rank = scene.dims(x)?.len() as i64;
    let (shape, second) = (scene.emit.op("Shape", &[x]), scene.emit.integers(&[1]));
    let pairs = [scene.emit.op("Unsqueeze", &[repeats, second]), scene.emit.op("Unsqueeze", &[shape, second])];
    let pairs = scene.emit.with(Operator::new("Concat").with(attribute::int("axis", 1)), &pairs);
    let flat = scene.emit.integers(&[-1]);
    let apart = scene.emit.op("Reshape", &[pairs, flat]);
    let apart = scene.emit.op("Reshape", &[g, apart]);
    let copies: Vec<i64> = (0..rank).map(|a| 2 * a).collect();
    Ok(vec![(0, scene.emit.reduce_sum(apart, &copies, false))])
}
