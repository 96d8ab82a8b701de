//! Rules for operators that move, pick and join elements without computing.

use ndarray::{ArrayD, Axis, IxDyn, Order};

use super::join::join;
use super::plane::{self, Plane, Planes};
use super::{Decline, Operand, Rule, Scene};
use crate::observe::range;
use crate::rules::Table;

pub(super) const RULES: Table<Rule> = &[
    (&["Reshape", "Flatten", "Squeeze", "Unsqueeze"], reshape),
    (&["Transpose"], transpose),
    (&["Split"], split),
    (&["Slice"], slice),
    (&["Gather"], gather),
    (&["GatherElements"], gather_elements),
    (&["Concat"], concat),
    (&["Expand"], expand),
    (&["Tile"], tile),
    (&["Resize"], resize),
    (&["Pad"], pad),
    (&["Trilu"], triangle),
    (&["ConstantOfShape"], |scene| Ok(vec![elastic(scene, &[])?])),
];

fn reshape(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let operand = scene.operand(0)?;
    let shape = scene.output_shape(0)?;
    let count = |shape: &[usize]| shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if count(&shape) != count(&operand.shape) || count(&shape).is_none_or(|n| n > MOST_ELEMENTS) {
        return Err("moves more elements than can be followed".into());
    }
    let mut moved: Vec<&Plane> = operand.planes.iter().collect();
    moved.sort_by_key(|plane| plane.axes());
    let channels = &mut scene.provenance.channels;
    // Precedence of planes that collide on an axis of the new shape: 0 channels that can go, the outer first, 1 elastic ones
    // (copies without data of their own), 2 frozen ones. Of 1 and 2, those that collide with another are dropped: they say
    // nothing that the others do not say of the same elements.
    let rank = |p: &Plane| match p.0.iter() {
        mut all if all.clone().all(|&c| channels.frozen(c).is_some()) => all.next().map_or(0, |_| 2),
        mut all => all.all(|&c| channels.is_elastic(c)) as u8,
    };
    let reshaped = |p: &Plane| (rank(p), p.reshaped(&operand.shape, &shape));
    let mut ranked: Vec<(u8, Plane)> = moved.into_iter().map(reshaped).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut left = Planes::new();
    let mut repeated = Planes::new();
    for (rank, plane) in ranked.into_iter().filter(|(_, plane)| !plane.is_uniform()) {
        let collides = |p: &Plane| p.axes().iter().any(|&a| plane.varies(a));
        match (rank, left.iter().any(collides)) {
            (_, false) => left.push(plane),
            // As the values of one head, of which each query head makes another mean.
            (0, true) => repeated.push(plane),
            _ => {}
        }
    }
    repeated.iter().for_each(|plane| scene.freeze(plane, "repeats it along another axis that is cut"));
    Ok(vec![left])
}

/// Channels are written out for every element where axes are folded.
const MOST_ELEMENTS: usize = 1 << 28;

/// No axis that is made by repeating is longer than this.
const LONGEST_AXIS: usize = 1 << 24;

fn transpose(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let operand = scene.operand(0)?;
    let rank = operand.shape.len();
    let order: Vec<usize> = match scene.operator().ints("perm") {
        Some(perm) => perm.iter().map(|&a| Scene::axis(a, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).rev().collect(),
    };
    Ok(vec![operand.planes.iter().map(|p| p.transposed(&order)).collect()])
}

fn split(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let operand = scene.operand(0)?;
    let axis = Scene::axis(scene.operator().int("axis", 0), operand.shape.len())?;
    let mut start = 0;
    let mut parts = Vec::new();
    for slot in 0..scene.operator().outputs().len() {
        let end = start + scene.output_shape(slot)?[axis];
        let keep: Vec<_> = (start..end).collect();
        let part = operand.planes.iter().map(|p| p.selected(axis, &keep)).collect();
        parts.push(several(scene, part));
        start = end;
    }
    Ok(parts)
}

fn slice(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let Operand { shape, mut planes } = scene.operand(0)?;
    let rank = shape.len();
    let (starts, starts_fixed) = scene.integers(1)?;
    let (ends, ends_fixed) = scene.integers(2)?;
    let axes: Vec<usize> = match scene.has_input(3) {
        true => scene.integers(3)?.0.iter().map(|&a| Scene::axis(a, rank)).collect::<Result<_, _>>()?,
        false => (0..starts.len()).collect(),
    };
    let steps = if scene.has_input(4) { scene.integers(4)?.0 } else { vec![1; starts.len()] };
    for (i, &axis) in axes.iter().enumerate() {
        let whole = starts[i] == 0 && ends[i] >= shape[axis] as i64 && steps[i] == 1;
        if !whole && (!starts_fixed || !ends_fixed) {
            scene.freeze_varying(&planes, &[axis], "picks a range of it that can change");
        } else if steps[i] != 1 {
            // As in rotary embeddings: along the width of a head, which goes whole, every other one can be picked.
            scene.bind_along(&planes, &[axis], "picks from it with a stride");
        }
        let keep = range(shape[axis], starts[i], ends[i], steps[i]);
        planes = planes.iter().map(|p| p.selected(axis, &keep)).collect();
    }
    Ok(vec![several(scene, planes)])
}

/// The planes of what was picked. A channel that was picked alone has no plane, and could go unseen: it stays.
fn several(scene: &mut Scene, mut planes: Planes) -> Planes {
    for plane in planes.iter().filter(|p| p.is_uniform()) {
        scene.freeze(plane, "picks one of it alone");
    }
    planes.retain(|p| !p.is_uniform());
    planes
}

fn gather(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let rank = scene.seen.shape(scene.value(0)?).ok_or("reads a value of unknown shape")?.len();
    let axis = Scene::axis(scene.operator().int("axis", 0), rank)?;
    let index = scene.value(1)?;
    let fixed = scene.seen.fixed_integers(index).cloned().filter(|ints| ints.ndim() <= 1);
    let operand = if fixed.is_some() { scene.operand(0)? } else { scene.table(0, axis)? };
    let index_shape = scene.seen.shape(index).ok_or("reads indices of unknown shape")?.to_vec();
    let index_planes = scene.provenance.planes(index).to_vec();
    index_planes.iter().for_each(|p| scene.freeze(p, "reads it as an index"));
    let len = operand.shape[axis] as i64;
    let mut gathered = Planes::new();
    for plane in &operand.planes {
        let picked = match &fixed {
            _ if !plane.varies(axis) => Some(plane.clone()),
            Some(ints) => {
                let keep: Vec<_> = ints.iter().map(|&i| if i < 0 { i + len } else { i } as usize).collect();
                Some(Plane(plane.0.select(Axis(axis), &keep)))
            }
            None => {
                scene.freeze(plane, "looks entries up in it");
                plane::summed(plane, axis, &mut scene.provenance.channels)
            }
        };
        if let Some(plane) = picked {
            gathered.push(with_axes(plane, axis, &index_shape));
        }
    }
    let gathered = several(scene, gathered);
    Ok(vec![plane::merge(gathered, &mut scene.provenance.channels)])
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

/// The plane with `axis` replaced by axes of lengths `index`, or of length 1 where it does not vary.
fn with_axes(plane: Plane, axis: usize, index: &[usize]) -> Plane {
    let mut shape = plane.0.shape().to_vec();
    let along = shape.remove(axis);
    let inner: Vec<_> = if along == 1 { vec![1; index.len()] } else { index.to_vec() };
    shape.splice(axis..axis, inner);
    // Where an axis is picked from, the elements need not lie in the order of the axes any more.
    let picked = plane.0.to_shape((IxDyn(&shape), Order::RowMajor));
    Plane(picked.expect("the picked indices have the shape of the index").into_owned())
}

fn concat(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let shape = scene.output_shape(0)?;
    let axis = Scene::axis(scene.operator().int("axis", 0), shape.len())?;
    let operands = scene.operands()?;
    let tracked = |o: &Operand| o.planes.iter().any(|p| p.varies(axis));
    let along = operands.iter().any(tracked);
    let mut pieces = Vec::new();
    let mut others = Vec::new();
    for operand in operands {
        let (on, off): (Planes, Planes) = operand.planes.into_iter().partition(|p| p.varies(axis));
        if along {
            pieces.push((on.into_iter().next(), operand.shape.clone()));
        }
        let mut shape = operand.shape;
        shape[axis] = 1;
        others.push(Operand { shape, planes: off });
    }
    let mut flat = shape.clone();
    flat[axis] = 1;
    let mut planes = join(scene, others, &flat);
    if along {
        planes.push(stack(scene, pieces, axis));
    }
    Ok(vec![plane::merge(planes, &mut scene.provenance.channels)])
}

/// Concatenates planes that vary on `axis`; a piece without channels cannot be cut.
fn stack(scene: &mut Scene, pieces: Vec<(Option<Plane>, Vec<usize>)>, axis: usize) -> Plane {
    let rank = pieces[0].1.len();
    let wide = |a: usize| pieces.iter().filter_map(|(p, _)| p.as_ref()).any(|p| p.varies(a));
    let wide: Vec<bool> = (0..rank).map(|a| a == axis || wide(a)).collect();
    let mut parts: Vec<ArrayD<u32>> = Vec::new();
    for (piece, shape) in &pieces {
        let target: Vec<_> = (0..rank).map(|a| if wide[a] { shape[a] } else { 1 }).collect();
        let plane = piece.clone().unwrap_or_else(|| {
            let plane = Plane::along(rank, axis, scene.provenance.channels.fresh(shape[axis]));
            if shape[axis] > 0 {
                scene.freeze(&plane, "joins it with a value that cannot be cut");
            }
            plane
        });
        parts.push(plane.0.broadcast(IxDyn(&target)).expect("a plane broadcasts to its value's shape").to_owned());
    }
    let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
    Plane(ndarray::concatenate(Axis(axis), &views).expect("the pieces agree on all other axes"))
}

fn expand(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let operand = scene.operand(0)?;
    let rank = scene.output_shape(0)?.len();
    let mut shape = vec![1; rank - operand.shape.len()];
    shape.extend(&operand.shape);
    let mut planes: Planes = operand.planes.into_iter().map(|p| p.aligned(rank)).collect();
    planes.extend(elastic(scene, &shape)?);
    Ok(vec![planes])
}

/// Axes that keep their length keep their elements; the others are mixed.
fn resize(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let operand = scene.operand(0)?;
    let shape = scene.output_shape(0)?;
    let changed: Vec<usize> = (0..shape.len()).filter(|&a| shape[a] != operand.shape[a]).collect();
    scene.freeze_varying(&operand.planes, &changed, "resizes it");
    Ok(vec![operand.planes.into_iter().filter(|p| !changed.iter().any(|&a| p.varies(a))).collect()])
}

/// Axes that are not padded keep their elements; on the others there is something that belongs to no channel.
fn pad(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let operand = scene.operand(0)?;
    let rank = operand.shape.len();
    let (pads, are_fixed) = scene.integers(1)?;
    let axes: Vec<usize> = match scene.has_input(3) {
        true => scene.integers(3)?.0.iter().map(|&a| Scene::axis(a, rank)).collect::<Result<_, _>>()?,
        false => (0..rank).collect(),
    };
    let is_padded = |i: usize| !are_fixed || pads.get(i) != Some(&0) || pads.get(i + axes.len()) != Some(&0);
    let padded: Vec<usize> = (0..axes.len()).filter(|&i| is_padded(i)).map(|i| axes[i]).collect();
    scene.freeze_varying(&operand.planes, &padded, "pads it");
    Ok(vec![operand.planes.into_iter().filter(|p| !padded.iter().any(|&a| p.varies(a))).collect()])
}

/// Every copy of a channel is the same channel.
fn tile(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let operand = scene.operand(0)?;
    let shape = scene.output_shape(0)?;
    if shape.contains(&0) {
        return Err("makes an empty value".into());
    }
    let repeat = |plane: &Plane| {
        plane.axes().into_iter().fold(plane.clone(), |plane, axis| {
            let copies = vec![plane.0.view(); shape[axis] / operand.shape[axis].max(1)];
            Plane(ndarray::concatenate(Axis(axis), &copies).expect("copies have the same shape"))
        })
    };
    Ok(vec![operand.planes.iter().map(repeat).collect()])
}

/// New channels for axes that the operator makes longer than `from`: they hold no data of their own,
/// so they follow whatever they are joined with.
///
/// An axis that is a multiple of the batch is taken for batch and heads folded, heads inside.
fn elastic(scene: &mut Scene, from: &[usize]) -> Result<Planes, Decline> {
    let shape = scene.output_shape(0)?;
    let output = scene.operator().output(0).ok_or("has no output")?;
    let dims = scene.seen.dims(output).ok_or("makes a value whose rank changes")?;
    let grown = |&a: &usize| shape[a] > 1 && from.get(a).is_none_or(|&n| n == 1);
    let mut planes = Planes::new();
    for axis in (0..shape.len()).filter(grown) {
        let Some(period) = dims[axis].fixed().or_else(|| scene.seen.factor(dims[axis])) else { continue };
        if period > LONGEST_AXIS {
            return Err("makes more elements than can be followed".into());
        }
        let channels: Vec<_> = scene.provenance.channels.fresh_elastic(period).collect();
        planes.push(Plane::along(shape.len(), axis, (0..shape[axis]).map(|i| channels[i % period])));
    }
    Ok(planes)
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
