//! Attention in one operator: queries, keys and values to contexts.

use super::{Decline, Made, Rule, Scene};
use crate::ir::{ElementType, Operator, ValueId, attribute};
use crate::rules::Table;

/// Of com.microsoft.
pub(super) const RULES: Table<Rule> = &[(&["Attention"], merged), (&["MultiHeadAttention"], multi_head)];
/// Of the standard operators.
pub(super) const STANDARD: Table<Rule> = &[(&["Attention"], standard)];

/// What an attention is computed from, all of shape [batch, heads, tokens, width].
pub(super) struct Heads {
    pub(super) query: ValueId,
    pub(super) key: ValueId,
    pub(super) value: ValueId,
    /// What is added to the scores, broadcast to [batch, heads, tokens, tokens].
    pub(super) biases: Vec<ValueId>,
    pub(super) scale: f64,
    pub(super) causal: bool,
}

impl Scene<'_, '_> {
    /// [batch, tokens, heads * width] to [batch, heads, tokens, width].
    pub(super) fn split_heads(&mut self, value: ValueId, heads: i64, width: i64) -> ValueId {
        let shape = self.emit.integers(&[0, 0, heads, width]);
        let split = self.emit.op("Reshape", &[value, shape]);
        self.emit.transpose(split, &[0, 2, 1, 3])
    }

    /// [batch, heads, tokens, width] to [batch, tokens, heads * width].
    pub(super) fn join_heads(&mut self, value: ValueId, width: i64) -> ValueId {
        let turned = self.emit.transpose(value, &[0, 2, 1, 3]);
        let shape = self.emit.integers(&[0, 0, width]);
        self.emit.op("Reshape", &[turned, shape])
    }

    /// softmax(scale Q K^T + biases) V
    pub(super) fn attend(&mut self, heads: Heads) -> ValueId {
        let key = self.emit.transpose(heads.key, &[0, 1, 3, 2]);
        let scores = self.emit.op("MatMul", &[heads.query, key]);
        let mut scores = self.scale(scores, heads.scale);
        for bias in heads.biases {
            scores = self.emit.op("Add", &[scores, bias]);
        }
        if heads.causal {
            let mask = self.causal_mask(scores);
            scores = self.emit.op("Add", &[scores, mask]);
        }
        let weights = self.emit.with(Operator::new("Softmax").with(attribute::int("axis", -1)), &[scores]);
        self.emit.op("MatMul", &[weights, heads.value])
    }

    /// Minus a very large number wherever a token would look ahead, of shape [tokens, tokens].
    fn causal_mask(&mut self, scores: ValueId) -> ValueId {
        let shape = self.emit.op("Shape", &[scores]);
        let (from, to) = (self.emit.integers(&[2]), self.emit.integers(&[4]));
        let square = self.emit.op("Slice", &[shape, from, to]);
        let low = self.number(f32::MIN.into());
        let full = self.emit.op("Expand", &[low, square]);
        let ahead = self.emit.integer(1);
        self.emit.with(Operator::new("Trilu").with(attribute::int("upper", 1)), &[full, ahead])
    }

    /// A mask of real tokens, [batch, tokens] or [batch, tokens, tokens] or the number of tokens [batch],
    /// as what is added to the scores; `like` is a value [batch, heads, tokens, width] of keys.
    fn padding_bias(&mut self, slot: usize, like: ValueId) -> Result<ValueId, Decline> {
        let (mask, rank) = (self.input(slot)?, self.dims(slot)?.len());
        let real = match rank {
            1 if self.dims(slot)? == self.dims(0)?[..1] => {
                let tokens = self.emit.length(like, 2);
                let scalar = self.emit.integers(&[]);
                let tokens = self.emit.op("Reshape", &[tokens, scalar]);
                let (zero, one) = (self.emit.integer(0), self.emit.integer(1));
                let places = self.emit.op("Range", &[zero, tokens, one]);
                let counts = self.emit.cast(mask, ElementType::I64);
                let counts = self.emit.unsqueeze(counts, &[1]);
                let real = self.emit.op("Less", &[places, counts]);
                self.emit.unsqueeze(real, &[1, 2])
            }
            2 => {
                let real = self.emit.cast(mask, ElementType::Bool);
                self.emit.unsqueeze(real, &[1, 2])
            }
            3 => {
                let real = self.emit.cast(mask, ElementType::Bool);
                self.emit.unsqueeze(real, &[1])
            }
            _ => return Err("its mask is of a form without a rule".into()),
        };
        let (none, low) = (self.number(0.0), self.number(self.operator.float("mask_filter_value", -10000.0).into()));
        Ok(self.emit.op("Where", &[real, none, low]))
    }

    /// Refuses caches of earlier tokens, but for empty ones.
    pub(super) fn refuse_earlier(&self, slots: &[usize]) -> Result<(), Decline> {
        for &slot in slots.iter().filter(|&&slot| self.has(slot)) {
            if self.dims(slot)?.get(2).and_then(|d| d.fixed()) != Some(0) {
                return Err("it goes on from earlier tokens, which are no empty cache".into());
            }
        }
        Ok(())
    }

    pub(super) fn given_scale(&self, width: usize) -> f64 {
        match self.operator.float("scale", 0.0) {
            0.0 => 1.0 / (width as f64).sqrt(),
            scale => scale.into(),
        }
    }
}

/// com.microsoft Attention: one weight for queries, keys and values.
fn merged(scene: &mut Scene) -> Made {
    scene.refuse(&[4, 6], &[1, 2])?;
    if scene.operator.int("do_rotary", 0) != 0 {
        return Err("it rotates its queries and keys".into());
    }
    let heads = scene.operator.int("num_heads", 0).max(1);
    let columns = scene.fixed(1, 1)? as i64;
    let sizes = match scene.operator.ints("qkv_hidden_sizes") {
        Some(sizes) if sizes.len() == 3 => sizes.to_vec(),
        _ => vec![columns / 3; 3],
    };
    let (x, weight) = (scene.input(0)?, scene.input(1)?);
    let mut all = scene.emit.op("MatMul", &[x, weight]);
    if scene.has(2) {
        let bias = scene.input(2)?;
        all = scene.emit.op("Add", &[all, bias]);
    }
    let lengths = scene.emit.integers(&sizes);
    let parts = scene.emit.many(Operator::new("Split").with(attribute::int("axis", -1)), &[all, lengths], 3);
    let split: Vec<_> = parts.iter().zip(&sizes).map(|(&p, n)| scene.split_heads(p, heads, n / heads)).collect();
    let mut biases = Vec::new();
    if scene.has(3) {
        biases.push(scene.padding_bias(3, split[1])?);
    }
    if scene.has(5) {
        biases.push(scene.input(5)?);
    }
    let scale = scene.given_scale((sizes[0] / heads) as usize);
    let causal = scene.operator.int("unidirectional", 0) != 0;
    let context = scene.attend(Heads { query: split[0], key: split[1], value: split[2], biases, scale, causal });
    Ok(vec![Some(scene.join_heads(context, sizes[2]))])
}

/// com.microsoft MultiHeadAttention: queries, keys and values apart. Packed ones run on no CPU.
fn multi_head(scene: &mut Scene) -> Made {
    scene.refuse(&[8, 9], &[1, 2, 3])?;
    scene.refuse_earlier(&[6, 7])?;
    let heads = scene.operator.int("num_heads", 0).max(1);
    let (q, k, v, width) = apart(scene, heads)?;
    let mut biases = Vec::new();
    if scene.has(4) {
        biases.push(scene.padding_bias(4, k)?);
    }
    if scene.has(5) {
        biases.push(scene.input(5)?);
    }
    let scale = scene.given_scale(width);
    let causal = scene.operator.int("unidirectional", 0) != 0;
    let context = scene.attend(Heads { query: q, key: k, value: v, biases, scale, causal });
    let size = match scene.dims(2) {
        Ok(dims) if dims.len() == 3 => scene.fixed(2, 2)? as i64,
        _ => heads * width as i64,
    };
    Ok(vec![Some(scene.join_heads(context, size))])
}

type Parts = (ValueId, ValueId, ValueId, usize);

/// Queries [batch, tokens, heads * width]; keys and values as well, or already split.
fn apart(scene: &mut Scene, heads: i64) -> Result<Parts, Decline> {
    let size = scene.fixed(0, 2)? as i64;
    if !scene.has(2) {
        return Err("its keys and values are packed".into());
    }
    let biases = match scene.has(3) {
        true => Some(split_bias(scene)?),
        false => None,
    };
    let mut split = Vec::new();
    for slot in 0..3 {
        let rank = scene.dims(slot)?.len();
        let mut value = scene.input(slot)?;
        if let Some(biases) = &biases {
            value = scene.emit.op("Add", &[value, biases[slot]]);
        }
        split.push(match rank {
            3 => {
                let width = scene.fixed(slot, 2)? as i64 / heads;
                scene.split_heads(value, heads, width)
            }
            _ => value,
        });
    }
    Ok((split[0], split[1], split[2], (size / heads) as usize))
}

/// The parts of one bias for queries, keys and values.
fn split_bias(scene: &mut Scene) -> Result<Vec<ValueId>, Decline> {
    let mut lengths = Vec::new();
    for slot in 0..3 {
        if scene.dims(slot)?.len() != 3 {
            return Err("it adds a bias to keys that are already split".into());
        }
        lengths.push(scene.fixed(slot, 2)? as i64);
    }
    let (bias, lengths) = (scene.input(3)?, scene.emit.integers(&lengths));
    Ok(scene.emit.many(Operator::new("Split").with(attribute::int("axis", 0)), &[bias, lengths], 3))
}

/// The standard Attention: 4 axes, or 3 with the numbers of heads as attributes.
fn standard(scene: &mut Scene) -> Made {
    scene.refuse(&[6], &[1, 2, 3])?;
    scene.refuse_earlier(&[4, 5])?;
    if scene.operator.float("softcap", 0.0) != 0.0 {
        return Err("it caps its scores".into());
    }
    let rank = scene.dims(0)?.len();
    let numbers = [("q_num_heads", 0), ("kv_num_heads", 1), ("kv_num_heads", 2)];
    let mut split = Vec::new();
    for (name, slot) in numbers {
        let value = scene.input(slot)?;
        let heads = scene.operator.int(name, 1).max(1);
        split.push(match rank {
            3 => {
                let width = scene.fixed(slot, 2)? as i64 / heads;
                scene.split_heads(value, heads, width)
            }
            _ => value,
        });
    }
    let (query_heads, width) = match rank {
        3 => (
            scene.operator.int("q_num_heads", 1).max(1) as usize,
            scene.fixed(0, 2)? / scene.operator.int("q_num_heads", 1).max(1) as usize,
        ),
        _ => (scene.fixed(0, 1)?, scene.fixed(0, 3)?),
    };
    let groups = if rank == 3 { scene.operator.int("kv_num_heads", 1).max(1) as usize } else { scene.fixed(1, 1)? };
    let value_width = if rank == 3 { scene.fixed(2, 2)? / groups } else { scene.fixed(2, 3)? };
    if query_heads != groups {
        for (part, width) in [(1, width), (2, value_width)] {
            split[part] = repeat_heads(scene, split[part], groups, query_heads / groups, width);
        }
    }
    let mut biases = Vec::new();
    if scene.has(3) {
        biases.push(standard_mask(scene)?);
    }
    let scale = scene.given_scale(width);
    let causal = scene.operator.int("is_causal", 0) != 0;
    let context = scene.attend(Heads { query: split[0], key: split[1], value: split[2], biases, scale, causal });
    Ok(vec![Some(if rank == 3 { scene.join_heads(context, (query_heads * value_width) as i64) } else { context })])
}

/// Every head of keys or values once for each of the `times` query heads that share it.
pub(super) fn repeat_heads(scene: &mut Scene, value: ValueId, groups: usize, times: usize, width: usize) -> ValueId {
    let apart = scene.emit.unsqueeze(value, &[2]);
    let target = scene.emit.integers(&[1, 1, times as i64, 1, 1]);
    let repeated = scene.emit.op("Expand", &[apart, target]);
    let joined = scene.emit.integers(&[0, (groups * times) as i64, -1, width as i64]);
    scene.emit.op("Reshape", &[repeated, joined])
}

/// A mask of true and false, or of numbers, for the last axes of the scores.
fn standard_mask(scene: &mut Scene) -> Result<ValueId, Decline> {
    let mask = scene.input(3)?;
    let element = scene.operator.input(3).and_then(|v| scene.seen.element(v));
    if element != Some(ElementType::Bool) {
        return Ok(mask);
    }
    let (none, low) = (scene.number(0.0), scene.number(f32::MIN.into()));
    Ok(scene.emit.op("Where", &[mask, none, low]))
}
