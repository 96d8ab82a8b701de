//! Operators whose parameters name sizes or places that change: one rewrite for each.
//!
//! A parameter is never changed in place: another operator may need it as it was.

use super::{Cut, RemoveError, attention};
use crate::ir::{Graph, NodeId, Operator, Slot, Tensor, ValueId, attribute};
use crate::observe::{Dim, range};
use crate::rules::{Decline, Table, find};

/// Rewrites an operator where what it reads or makes becomes smaller.
pub(super) type Rule = fn(&mut Graph, NodeId, &Cut) -> Result<(), Decline>;

/// Rules for standard operators.
const RULES: Table<Rule> = &[
    (&["Reshape", "Expand"], |graph, node, cut| retarget(graph, node, 1, cut)),
    (&["ConstantOfShape"], |graph, node, cut| retarget(graph, node, 0, cut)),
    (&["Resize"], resize),
    (&["Tile"], tile),
    (&["Split"], split),
    (&["Slice"], slice),
    (&["Gather"], gather),
    (&["Conv"], conv),
];

/// The operators that have a rule, each with whether it is a standard one.
#[cfg(test)]
pub(crate) fn operators() -> Vec<(&'static str, bool)> {
    let of = |table, is_standard| crate::rules::names(&[table]).into_iter().map(move |name| (name, is_standard));
    of(RULES, true)
        .chain(of(attention::RULES, true))
        .chain(of(attention::RULES, false))
        .chain(of(attention::MICROSOFT, false))
        .collect()
}

/// Rewrites the operator at `node` where what it reads or makes becomes smaller; others need no rewriting.
pub(super) fn rewrite(graph: &mut Graph, node: NodeId, cut: &Cut) -> Result<(), RemoveError> {
    let operator = graph.operator(node);
    // What reads nothing that was measured, as what a mask is made into for a cache alone, has nothing to lose.
    let is_measured = |value: &ValueId| cut.seen.shape(*value).is_some();
    if !operator.inputs().iter().flatten().any(is_measured) {
        return Ok(());
    }
    let standard: &[Table<Rule>] = if operator.is_standard() { &[RULES] } else { &[] };
    let rule = find(standard, &operator.op_type)
        .or_else(|| find(&[attention::RULES, attention::MICROSOFT], &operator.op_type));
    let outcome = rule.map_or(Ok(()), |rule| rule(graph, node, cut));
    outcome.map_err(|Decline(why)| RemoveError::Rewrite { node: graph.label(node), why })
}

/// One with target sizes; target scales stay what they are.
fn resize(graph: &mut Graph, node: NodeId, cut: &Cut) -> Result<(), Decline> {
    match graph.operator(node).input(3) {
        Some(_) => retarget(graph, node, 3, cut),
        None => Ok(()),
    }
}

/// One that convolves every channel for itself has as many groups as channels are left.
fn conv(graph: &mut Graph, node: NodeId, cut: &Cut) -> Result<(), Decline> {
    let operator = graph.operator(node);
    let left = operator.output(0).filter(|_| operator.int("group", 1) > 1).and_then(|output| cut.new_len(output, 1));
    if let Some(left) = left {
        attention::set(graph, node, attribute::int("group", left as i64));
    }
    Ok(())
}

/// One element of a target shape.
#[derive(Clone, Copy, PartialEq)]
enum Element {
    /// A number, or the 0 and -1 of a `Reshape`.
    Number(i64),
    /// The length of an axis of the data.
    OfData(usize),
    /// The length of an axis of an input of the graph, times a number.
    OfInput(ValueId, usize, usize),
    /// The element of the old target at this place.
    Old(usize),
}

impl Element {
    /// A length that follows an axis of the graph's inputs, else the old element at `place`.
    fn following(graph: &Graph, cut: &Cut, dim: Dim, place: usize) -> Self {
        let mut candidates = Vec::new();
        for &input in graph.inputs() {
            for (axis, size) in cut.seen.dims(input).unwrap_or_default().into_iter().enumerate() {
                let factor = dim.0[0] / size.0[0].max(1);
                if size.fixed().is_none() && factor > 0 && dim.0 == size.0.map(|s| s * factor) {
                    candidates.push((factor, Self::OfInput(input, axis, factor)));
                }
            }
        }
        candidates.into_iter().min_by_key(|c| c.0).map_or(Self::Old(place), |c| c.1)
    }
}

/// Gives an operator with a target shape a new one where lengths change.
fn retarget(graph: &mut Graph, node: NodeId, slot: usize, cut: &Cut) -> Result<(), Decline> {
    let operator = graph.operator(node);
    let (output, target) =
        (operator.output(0).ok_or("it has no output")?, operator.input(slot).ok_or("it has no target shape")?);
    let dims = cut.seen.dims(output).ok_or("its output was not seen")?;
    let new: Vec<Option<usize>> = (0..dims.len()).map(|axis| cut.new_len(output, axis)).collect();
    if new.iter().all(Option::is_none) && !cut.tainted.contains(&target) {
        return Ok(());
    }
    let offset =
        dims.len() - cut.seen.shape(target).map_or(dims.len(), |s| s.first().copied().unwrap_or(0)).min(dims.len());
    if let Some(tensor) = graph.constant(target) {
        let old = tensor.to_i64().map_err(|e| e.to_string())?;
        let replace = |(i, &n): (usize, &i64)| match new[i + offset] {
            Some(new) if n > 0 && n as usize == dims[i + offset].0[0] => new as i64,
            _ => n,
        };
        let numbers: Vec<i64> = old.iter().enumerate().map(replace).collect();
        let value = constant(graph, target, &numbers);
        graph.set_input(node, slot, Some(value));
        return Ok(());
    }
    let is_reshape = operator.is("Reshape");
    let data = operator.input(0).filter(|_| slot > 0);
    let data_dims = data.and_then(|d| cut.seen.dims(d)).unwrap_or_default();
    let zero_copies = is_reshape && operator.int("allowzero", 0) == 0;
    let mut elements = Vec::new();
    for (axis, dim) in dims.iter().enumerate().skip(offset) {
        elements.push(match dim.fixed() {
            Some(fixed) => Element::Number(new[axis].unwrap_or(fixed) as i64),
            None if zero_copies && data_dims.get(axis) == Some(dim) => Element::Number(0),
            None if is_reshape && !elements.contains(&Element::Number(-1)) => Element::Number(-1),
            None => match data_dims.iter().position(|d| d == dim) {
                Some(place) => Element::OfData(place),
                None => {
                    let scale = |len: usize| len * new[axis].unwrap_or(dim.0[0]) / dim.0[0];
                    Element::following(graph, cut, Dim(dim.0.map(scale)), axis - offset)
                }
            },
        });
    }
    let value = assemble(graph, target, data, &elements);
    graph.set_input(node, slot, Some(value));
    Ok(())
}

/// A vector of the given elements, computed where it has to be.
fn assemble(graph: &mut Graph, target: ValueId, data: Option<ValueId>, elements: &[Element]) -> ValueId {
    let numbers: Vec<i64> =
        elements.iter().map_while(|e| if let Element::Number(n) = e { Some(*n) } else { None }).collect();
    if numbers.len() == elements.len() {
        return constant(graph, target, &numbers);
    }
    let hint = format!("{}_pruned", graph.name(target));
    let mut pieces = Vec::new();
    for element in elements {
        let (vector, place, factor) = match (*element, data) {
            (Element::Number(n), _) => {
                pieces.push(constant(graph, target, &[n]));
                continue;
            }
            (Element::OfData(place), Some(data)) => (graph.add(Operator::new("Shape"), &[data], &hint), place, 1),
            (Element::OfInput(input, place, factor), _) => {
                (graph.add(Operator::new("Shape"), &[input], &hint), place, factor)
            }
            (Element::OfData(place) | Element::Old(place), _) => (target, place, 1),
        };
        let index = constant(graph, target, &[place as i64]);
        let mut piece = graph.add(Operator::new("Gather").with(attribute::int("axis", 0)), &[vector, index], &hint);
        if factor > 1 {
            let factor = constant(graph, target, &[factor as i64]);
            piece = graph.add(Operator::new("Mul"), &[piece, factor], &hint);
        }
        pieces.push(piece);
    }
    graph.add(Operator::new("Concat").with(attribute::int("axis", 0)), &pieces, &hint)
}

/// A new vector of integers, named after the one it replaces.
fn constant(graph: &mut Graph, old: ValueId, numbers: &[i64]) -> ValueId {
    let hint = format!("{}_pruned", graph.name(old));
    graph.add_constant(&hint, Tensor::from_i64s(&[numbers.len()], numbers))
}

/// Gives a `Tile` that copies what becomes smaller repeats that do not depend on lengths that change.
fn tile(graph: &mut Graph, node: NodeId, cut: &Cut) -> Result<(), Decline> {
    let operator = graph.operator(node);
    let (data, repeats) = (operator.input(0).ok_or("it reads nothing")?, operator.input(1).ok_or("it has no repeats")?);
    let output = operator.output(0).ok_or("it has no output")?;
    let (from, to) = (cut.seen.dims(data), cut.seen.dims(output));
    let (from, to) = (from.ok_or("its input was not seen")?, to.ok_or("its output was not seen")?);
    let changes = (0..to.len()).any(|axis| cut.new_len(output, axis).is_some());
    if graph.constant(repeats).is_some() || !(changes || cut.tainted.contains(&repeats)) {
        return Ok(());
    }
    let count = |(place, (from, to)): (usize, (&Dim, &Dim))| {
        let times = Dim([to.0[0] / from.0[0].max(1), to.0[1] / from.0[1].max(1)]);
        times.fixed().map_or_else(|| Element::following(graph, cut, times, place), |n| Element::Number(n as i64))
    };
    let elements: Vec<Element> = from.iter().zip(&to).enumerate().map(count).collect();
    let value = assemble(graph, repeats, None, &elements);
    graph.set_input(node, 1, Some(value));
    Ok(())
}

fn data_axis(graph: &Graph, node: NodeId, cut: &Cut, axis: i64) -> Result<(ValueId, usize), Decline> {
    let data = graph.operator(node).input(0).ok_or("it reads nothing")?;
    let rank = cut.seen.shape(data).map(<[usize]>::len).ok_or("its input was not seen")?;
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    Ok((data, usize::try_from(axis).map_err(|_| "it names an impossible axis")?))
}

/// The indices of an input's axis that stay, where some go.
fn kept_at(graph: &Graph, node: NodeId, slot: usize, axis: usize, cut: &Cut) -> Option<Vec<usize>> {
    cut.kept(cut.provenance.planes_at(graph, node, slot), axis)
}

fn split(graph: &mut Graph, node: NodeId, cut: &Cut) -> Result<(), Decline> {
    let operator = graph.operator(node);
    let (data, axis) = data_axis(graph, node, cut, operator.int("axis", 0))?;
    if kept_at(graph, node, 0, axis, cut).is_none() {
        return Ok(());
    }
    let mut sizes = Vec::new();
    for &output in operator.outputs() {
        let output = output.ok_or("an output was left out, whose size is not known")?;
        let old = cut.seen.shape(output).ok_or("an output was not seen")?[axis];
        sizes.push(cut.new_len(output, axis).unwrap_or(old) as i64);
    }
    let value = constant(graph, data, &sizes);
    graph.set_input(node, 1, Some(value));
    graph.operator_mut(node).attributes.retain(|a| a.name() != "num_outputs");
    Ok(())
}

fn slice(graph: &mut Graph, node: NodeId, cut: &Cut) -> Result<(), Decline> {
    let operator = graph.operator(node);
    let integers = |slot: usize| -> Option<Vec<i64>> {
        cut.seen.fixed_integers(operator.input(slot)?).map(|ints| ints.iter().copied().collect())
    };
    let count = operator.input(1).and_then(|v| cut.seen.shape(v)).and_then(|s| s.first().copied()).unwrap_or(0);
    let axes = integers(3).unwrap_or_else(|| (0..count as i64).collect());
    let data = operator.input(0).ok_or("it reads nothing")?;
    let shape = cut.seen.shape(data).ok_or("its input was not seen")?.to_vec();
    let mut moved = Vec::new();
    for (i, &axis) in axes.iter().enumerate() {
        let (_, axis) = data_axis(graph, node, cut, axis)?;
        if let Some(kept) = kept_at(graph, node, 0, axis, cut) {
            moved.push((i, axis, kept));
        }
    }
    if moved.is_empty() {
        return Ok(());
    }
    let (Some(mut starts), Some(mut ends)) = (integers(1), integers(2)) else {
        return Err("the range it picks is only known at run time".into());
    };
    let steps = integers(4).unwrap_or_else(|| vec![1; starts.len()]);
    if moved.iter().any(|(i, ..)| steps.get(*i) != Some(&1)) {
        return Err("it picks with a stride from what becomes smaller".into());
    }
    let (old_starts, old_ends) = (operator.input(1), operator.input(2));
    for (i, axis, kept) in moved {
        let picked = range(shape[axis], starts[i], ends[i], 1);
        let (first, last) = (picked.first().copied().unwrap_or(0), picked.last().map_or(0, |l| l + 1));
        starts[i] = kept.partition_point(|&k| k < first) as i64;
        ends[i] = kept.partition_point(|&k| k < last) as i64;
    }
    for (slot, old, numbers) in [(1, old_starts, starts), (2, old_ends, ends)] {
        let value = constant(graph, old.ok_or("it has no range")?, &numbers);
        graph.set_input(node, slot, Some(value));
    }
    Ok(())
}

fn gather(graph: &mut Graph, node: NodeId, cut: &Cut) -> Result<(), Decline> {
    let operator = graph.operator(node);
    let (_, axis) = data_axis(graph, node, cut, operator.int("axis", 0))?;
    let Some(kept) = kept_at(graph, node, 0, axis, cut) else { return Ok(()) };
    let index = operator.input(1).ok_or("it has no index")?;
    let old = cut.seen.fixed_integers(index).ok_or("its index is only known at run time")?;
    let len = operator.input(0).and_then(|d| cut.seen.shape(d)).map_or(0, |s| s[axis]) as i64;
    let place = |&i: &i64| kept.binary_search(&((if i < 0 { i + len } else { i }) as usize)).ok().map(|p| p as i64);
    let numbers: Vec<i64> = old.iter().filter_map(place).collect();
    let dims: Vec<usize> = if old.ndim() == 0 { Vec::new() } else { vec![numbers.len()] };
    if dims.iter().product::<usize>() != numbers.len() {
        return Err("the entry that it picks goes".into());
    }
    let hint = format!("{}_pruned", graph.name(index));
    let value = graph.add_constant(&hint, Tensor::from_i64s(&dims, &numbers));
    graph.set_input(node, 1, Some(value));
    debug_assert!(graph.consumers(value).contains(&(node, Slot::Input(1))));
    Ok(())
}
