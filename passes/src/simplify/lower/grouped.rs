//! GroupQueryAttention and rotary positions, as decoders have them.

use super::attention::{Heads, repeat_heads};
use super::{Decline, Made, Rule, Scene};
use crate::ir::{ElementType, Operator, ValueId, attribute};
use crate::rules::Table;

/// Of com.microsoft.
pub(super) const RULES: Table<Rule> = &[(&["GroupQueryAttention"], grouped), (&["RotaryEmbedding"], rotary)];

/// Of the standard operators.
pub(super) const STANDARD: Table<Rule> = &[(&["RotaryEmbedding"], standard_rotary)];

/// The places of a GroupQueryAttention's inputs.
const PASTS: [usize; 2] = [3, 4];
const COSINES: usize = 7;
const SINES: usize = 8;
const POSITIONS: usize = 9;
const BIAS: usize = 10;
/// Sinks, scales of quantised caches, norms of queries and keys.
const WITHOUT_RULE: [usize; 5] = [11, 12, 13, 14, 15];

/// Queries of several heads for every head of keys and values, which look back only. Tokens of padding are behind the real
/// ones, so that no real one sees them.
fn grouped(scene: &mut Scene) -> Made {
    scene.refuse(&WITHOUT_RULE, &[1, 2, 3])?;
    scene.refuse_earlier(&PASTS)?;
    if scene.operator.float("softcap", 0.0) != 0.0 || scene.operator.int("smooth_softmax", 0) > 0 {
        return Err("it caps or smooths its scores".into());
    }
    let (heads, groups) = (scene.operator.int("num_heads", 1).max(1), scene.operator.int("kv_num_heads", 1).max(1));
    let (parts, width) = parts(scene, heads, groups)?;
    let [mut query, mut key, value] = parts;
    if scene.operator.int("do_rotary", 0) != 0 {
        let is_interleaved = scene.operator.int("rotary_interleaved", 0) != 0;
        let angles = Angles::of(scene, [COSINES, SINES], POSITIONS, query)?;
        query = angles.turn(scene, query, width, is_interleaved);
        key = angles.turn(scene, key, width, is_interleaved);
    }
    let (mut key, mut value) = (key, value);
    if heads != groups {
        let times = (heads / groups) as usize;
        [key, value] = [key, value].map(|part| repeat_heads(scene, part, groups as usize, times, width));
    }
    let mut biases = Vec::new();
    if scene.has(BIAS) {
        biases.push(scene.input(BIAS)?);
    }
    let window = scene.operator.int("local_window_size", -1);
    if window > 0 {
        biases.push(too_far_back(scene, query, window));
    }
    let scale = scene.given_scale(width);
    let causal = scene.operator.int("causal", 1) != 0;
    let context = scene.attend(Heads { query, key, value, biases, scale, causal });
    Ok(vec![Some(scene.join_heads(context, heads * width as i64))])
}

/// Queries, keys and values, [batch, heads, tokens, width], from three inputs or one; and their width.
fn parts(scene: &mut Scene, heads: i64, groups: i64) -> Result<([ValueId; 3], usize), Decline> {
    let all = scene.input(0)?;
    let columns = scene.fixed(0, 2)? as i64;
    let (values, width) = match scene.has(1) {
        true => (vec![all, scene.input(1)?, scene.input(2)?], columns / heads),
        false => {
            let width = columns / (heads + 2 * groups);
            let sizes = [heads, groups, groups].map(|n| n * width);
            let lengths = scene.emit.integers(&sizes);
            (scene.emit.many(Operator::new("Split").with(attribute::int("axis", -1)), &[all, lengths], 3), width)
        }
    };
    let counts = [heads, groups, groups];
    let split: Vec<ValueId> = values.iter().zip(counts).map(|(&v, n)| scene.split_heads(v, n, width)).collect();
    let split = <[ValueId; 3]>::try_from(split).map_err(|_| "it has no queries, keys and values")?;
    Ok((split, width as usize))
}

/// Minus a very large number wherever a token would look back further than `window` tokens, itself among them.
fn too_far_back(scene: &mut Scene, query: ValueId, window: i64) -> ValueId {
    let tokens = scene.emit.length(query, 2);
    let square = scene.emit.with(Operator::new("Concat").with(attribute::int("axis", 0)), &[tokens, tokens]);
    let low = scene.number(f32::MIN.into());
    let full = scene.emit.op("Expand", &[low, square]);
    let first = scene.emit.integer(-window);
    scene.emit.with(Operator::new("Trilu").with(attribute::int("upper", 0)), &[full, first])
}

/// Rotary positions alone.
fn rotary(scene: &mut Scene) -> Made {
    if scene.operator.int("is_packed_batching", 0) != 0 {
        return Err("its samples are packed".into());
    }
    turned(scene, [2, 3], 1)
}

/// The same, with the positions last, or tables that hold a row for every token of every sample.
fn standard_rotary(scene: &mut Scene) -> Made {
    turned(scene, [1, 2], 3)
}

/// Rotary positions of [batch, tokens, heads * width], or of [batch, heads, tokens, width].
fn turned(scene: &mut Scene, tables: [usize; 2], positions: usize) -> Made {
    let is_interleaved = scene.operator.int("interleaved", 0) != 0;
    let x = scene.input(0)?;
    if scene.dims(0)?.len() == 4 {
        let width = scene.fixed(0, 3)?;
        let angles = Angles::of(scene, tables, positions, x)?;
        return Ok(vec![Some(angles.turn(scene, x, width, is_interleaved))]);
    }
    let columns = scene.fixed(0, 2)?;
    let width = match scene.operator.int("num_heads", 0) {
        0 => 2 * scene.fixed(tables[0], scene.dims(tables[0])?.len().saturating_sub(1))?,
        heads => columns / heads as usize,
    };
    let split = scene.split_heads(x, (columns / width) as i64, width as i64);
    let angles = Angles::of(scene, tables, positions, split)?;
    let turned = angles.turn(scene, split, width, is_interleaved);
    Ok(vec![Some(scene.join_heads(turned, columns as i64))])
}

/// Cosines and sines of the angles by which pairs of numbers are turned, [batch or 1, 1, tokens, pairs].
struct Angles {
    cosines: ValueId,
    sines: ValueId,
    pairs: usize,
}

impl Angles {
    /// From tables, [positions, pairs], at the positions of the tokens: those of an input, or one after the other; or from
    /// tables of [batch, tokens, pairs] as they are. `like` is a value [batch, heads, tokens, width].
    fn of(scene: &mut Scene, tables: [usize; 2], positions: usize, like: ValueId) -> Result<Self, Decline> {
        let rank = scene.dims(tables[0])?.len();
        let pairs = scene.fixed(tables[0], rank.saturating_sub(1))?;
        if rank == 3 {
            let [cosines, sines] = [scene.input(tables[0])?, scene.input(tables[1])?];
            let [cosines, sines] = [cosines, sines].map(|table| scene.emit.unsqueeze(table, &[1]));
            return Ok(Self { cosines, sines, pairs });
        }
        let places = match scene.has(positions) {
            true => Some((scene.input(positions)?, scene.dims(positions)?.len())),
            false => None,
        };
        let at = match places {
            Some((given, 2)) => given,
            others => {
                let (tokens, scalar) = (scene.emit.length(like, 2), scene.emit.integers(&[]));
                let tokens = scene.emit.op("Reshape", &[tokens, scalar]);
                let (zero, one) = (scene.emit.integer(0), scene.emit.integer(1));
                let mut range = scene.emit.op("Range", &[zero, tokens, one]);
                if let Some((first, _)) = others {
                    let first = scene.emit.cast(first, ElementType::I64);
                    range = scene.emit.op("Add", &[range, first]);
                }
                scene.emit.unsqueeze(range, &[0])
            }
        };
        let gather = Operator::new("Gather").with(attribute::int("axis", 0));
        let mut picked = [at; 2];
        for (picked, table) in picked.iter_mut().zip(tables) {
            let table = scene.input(table)?;
            let rows = scene.emit.with(gather.clone(), &[table, at]);
            *picked = scene.emit.unsqueeze(rows, &[1]);
        }
        let [cosines, sines] = picked;
        Ok(Self { cosines, sines, pairs })
    }

    /// Turns the pairs of every head of a value [batch, heads, tokens, width]: of the first half and the second, or of
    /// neighbours; what is wider than all pairs stays.
    fn turn(&self, scene: &mut Scene, value: ValueId, width: usize, is_interleaved: bool) -> ValueId {
        let (emit, turned) = (&mut scene.emit, 2 * self.pairs);
        let last = |op: &str| Operator::new(op).with(attribute::int("axis", -1));
        let (front, rest) = match turned < width {
            true => {
                let lengths = emit.integers(&[turned as i64, (width - turned) as i64]);
                let parts = emit.many(last("Split"), &[value, lengths], 2);
                (parts[0], Some(parts[1]))
            }
            false => (value, None),
        };
        let [a, b] = match is_interleaved {
            true => [0, 1].map(|first| {
                let numbers = [first, turned as i64, 3, 2].map(|n| emit.integers(&[n]));
                emit.op("Slice", &[front, numbers[0], numbers[1], numbers[2], numbers[3]])
            }),
            false => {
                let lengths = emit.integers(&[self.pairs as i64; 2]);
                let halves = emit.many(last("Split"), &[front, lengths], 2);
                [halves[0], halves[1]]
            }
        };
        let mut product = |x: ValueId, y: ValueId| emit.op("Mul", &[x, y]);
        let (ac, bs, bc, sa) =
            (product(a, self.cosines), product(b, self.sines), product(b, self.cosines), product(a, self.sines));
        let (a, b) = (emit.op("Sub", &[ac, bs]), emit.op("Add", &[bc, sa]));
        let front = match is_interleaved {
            true => {
                let [a, b] = [a, b].map(|part| emit.unsqueeze(part, &[4]));
                let pairs = emit.with(last("Concat"), &[a, b]);
                let shape = emit.integers(&[0, 0, 0, turned as i64]);
                emit.op("Reshape", &[pairs, shape])
            }
            false => emit.with(last("Concat"), &[a, b]),
        };
        rest.map_or(front, |rest| emit.with(last("Concat"), &[front, rest]))
    }
}
