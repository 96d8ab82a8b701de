//! Fused attentions, which name their number of heads in attributes.

use super::Cut;
use super::rewrite::Rule;
use crate::ir::{Graph, NodeId, Operator, attribute};
use crate::rules::{Decline, Table};

pub(super) const RULES: Table<Rule> =
    &[(&["Attention", "MultiHeadAttention"], attention), (&["RotaryEmbedding"], rotary)];
/// Of com.microsoft alone.
pub(super) const MICROSOFT: Table<Rule> = &[(&["GroupQueryAttention"], grouped)];

/// Writes the numbers of heads and columns that are left.
fn attention(graph: &mut Graph, node: NodeId, cut: &Cut) -> Result<(), Decline> {
    let operator = graph.operator(node).clone();
    let merged = operator.op_type == "Attention" && !operator.is_standard();
    if merged {
        return merged_attention(graph, node, &operator, cut);
    }
    let names: &[(&str, usize)] = match operator.is_standard() {
        true => &[("q_num_heads", 0), ("kv_num_heads", 1)],
        false => &[("num_heads", 0)],
    };
    for &(name, slot) in names {
        let Some(value) = operator.input(slot).filter(|_| operator.attribute(name).is_some()) else { continue };
        let dims = cut.seen.shape(value).ok_or("its input was not seen")?;
        // Columns of all heads in the last axis, or the heads in an axis of their own.
        let axis = if dims.len() == 5 { 2 } else { dims.len() - 1 };
        let kept = cut.kept(cut.provenance.planes_at(graph, node, slot), axis).map_or(dims[axis], |k| k.len());
        let heads = scaled(operator.int(name, 1), kept, dims[axis])?;
        set(graph, node, attribute::int(name, heads));
    }
    Ok(())
}

/// One weight for queries, keys and values, side by side.
fn merged_attention(graph: &mut Graph, node: NodeId, operator: &Operator, cut: &Cut) -> Result<(), Decline> {
    let planes = cut.provenance.planes_at(graph, node, 1);
    let columns = planes.iter().map(|p| p.0.shape()[1]).max().unwrap_or(0);
    let Some(kept) = cut.kept(planes, 1) else { return Ok(()) };
    let old: Vec<usize> = match operator.ints("qkv_hidden_sizes") {
        Some(sizes) if sizes.len() == 3 => sizes.iter().map(|&n| n as usize).collect(),
        _ => vec![columns / 3; 3],
    };
    let mut sizes = Vec::new();
    let mut start = 0;
    for size in &old {
        sizes.push(kept.iter().filter(|k| (start..start + size).contains(*k)).count());
        start += size;
    }
    let heads = operator.int("num_heads", 1);
    let left = scaled(heads, sizes[0], old[0])?;
    if scaled(heads, sizes[2], old[2])? != left {
        return Err("its queries and its values would have different numbers of heads".into());
    }
    let sizes: Vec<i64> = sizes.into_iter().map(|n| n as i64).collect();
    set(graph, node, attribute::int("num_heads", left));
    set(graph, node, attribute::ints("qkv_hidden_sizes", &sizes));
    // The width of a head is what it was, and so is the scale that follows from it.
    Ok(())
}

/// Queries, keys and values apart, or packed into one.
fn grouped(graph: &mut Graph, node: NodeId, cut: &Cut) -> Result<(), Decline> {
    let operator = graph.operator(node).clone();
    let (heads, groups) = (operator.int("num_heads", 1), operator.int("kv_num_heads", 1));
    let columns = |slot: usize| -> Result<(usize, Option<Vec<usize>>), Decline> {
        let value = operator.input(slot).ok_or("it has no queries or keys")?;
        let shape = cut.seen.shape(value).ok_or("its input was not seen")?;
        let last = shape.len().checked_sub(1).ok_or("its input is a single number")?;
        Ok((shape[last], cut.kept(cut.provenance.planes_at(graph, node, slot), last)))
    };
    let (all, kept) = columns(0)?;
    let (of_queries, of_keys, queries, keys) = match operator.input(1) {
        Some(_) => {
            let (all_keys, kept_keys) = columns(1)?;
            (all, all_keys, kept.map_or(all, |k| k.len()), kept_keys.map_or(all_keys, |k| k.len()))
        }
        None => {
            let Some(kept) = kept else { return Ok(()) };
            let width = all / (heads + 2 * groups).max(1) as usize;
            let (first, second) = (heads as usize * width, (heads + groups) as usize * width);
            let within = |from: usize, to: usize| kept.iter().filter(|k| (from..to).contains(*k)).count();
            (first, second - first, within(0, first), within(first, second))
        }
    };
    let (queries, keys) = (scaled(heads, queries, of_queries)?, scaled(groups, keys, of_keys)?);
    set(graph, node, attribute::int("num_heads", queries));
    set(graph, node, attribute::int("kv_num_heads", keys));
    Ok(())
}

/// Rotary positions, which may name the number of heads.
fn rotary(graph: &mut Graph, node: NodeId, cut: &Cut) -> Result<(), Decline> {
    let operator = graph.operator(node);
    let heads = operator.int("num_heads", 0);
    let Some(value) = operator.input(0).filter(|_| heads > 0) else { return Ok(()) };
    let dims = cut.seen.shape(value).ok_or("its input was not seen")?;
    let axis = if dims.len() == 4 { 1 } else { dims.len() - 1 };
    let all = dims[axis];
    let Some(kept) = cut.kept(cut.provenance.planes_at(graph, node, 0), axis) else { return Ok(()) };
    let left = scaled(heads, kept.len(), all)?;
    set(graph, node, attribute::int("num_heads", left));
    Ok(())
}

/// The heads that are left when `kept` of `all` columns are.
fn scaled(heads: i64, kept: usize, all: usize) -> Result<i64, Decline> {
    let product = heads as usize * kept;
    match product.is_multiple_of(all) {
        true => Ok((product / all) as i64),
        false => Err("parts of heads would be left, which it cannot express".into()),
    }
}

pub(super) fn set(graph: &mut Graph, node: NodeId, new: crate::ir::schema::AttributeProto) {
    let attributes = &mut graph.operator_mut(node).attributes;
    attributes.retain(|a| a.name != new.name);
    attributes.push(new);
}
