//! Key/value caches: what the attention of a decoder keeps of earlier tokens, as inputs and outputs of the model.
//!
//! Exporters call them alike but for one word, as `past_key_values.0.key` and `present.0.key`; both are
//! [samples, heads, tokens, width], or [samples, heads, width, tokens], and their tokens alone differ in number.

use crate::ir::schema::tensor_shape_proto::{Dimension, dimension};
use crate::ir::schema::type_proto;
use crate::ir::{ElementType, Graph, NodeId, ValueId};
use crate::signature::{limits, tensor_type};

/// The key or the value cache of one attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCache {
    /// The input: of earlier tokens.
    pub past: ValueId,
    /// The output: of earlier tokens and those of this run.
    pub present: ValueId,
}

/// The axis of a cache that runs over heads.
pub const HEADS: usize = 1;

/// Words that names of inputs begin with, the longer ones first, and of outputs.
const PAST: [&str; 2] = ["past_key_values", "past"];
const PRESENT: [&str; 3] = ["present_key_values", "present", "new_key_values"];

/// All caches, in the order of the inputs.
pub fn caches(graph: &Graph) -> Vec<KvCache> {
    let is_cache = |value: ValueId| {
        let tensor = graph.info(value).and_then(tensor_type);
        let is_float = tensor.and_then(|t| ElementType::from_code(t.elem_type())).is_some_and(ElementType::is_float);
        is_float && tensor.and_then(|t| t.shape.as_ref()).is_none_or(|shape| shape.dim.len() == 4)
    };
    let presents = graph.outputs().iter().copied().filter(|&v| is_cache(v));
    let named: Vec<(&str, ValueId)> = presents.filter_map(|v| Some((which(graph.name(v), &PRESENT)?, v))).collect();
    let pasts = graph.inputs().iter().copied().filter(|&v| is_cache(v));
    let pair = |past: ValueId| {
        let own = which(graph.name(past), &PAST)?;
        let (_, present) = named.iter().find(|(name, _)| *name == own)?;
        Some(KvCache { past, present: *present })
    };
    pasts.filter_map(pair).collect()
}

/// Where the tokens of a run are put behind the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The operator.
    pub node: NodeId,
    /// What it is given of this run.
    pub fresh: ValueId,
    /// The axis of that which runs over heads, or over the columns of all heads.
    pub axis: usize,
    /// The attribute of an attention, which does more than that, that holds the number of heads.
    pub attribute: Option<&'static str>,
}

/// Attentions that keep caches themselves: where they read the past and what of this run, key and value, and the attribute
/// that holds the number of heads.
type Attention = (&'static str, [usize; 2], [usize; 2], &'static str);
const ATTENTIONS: [Attention; 3] = [
    ("GroupQueryAttention", [3, 4], [1, 2], "kv_num_heads"),
    ("MultiHeadAttention", [6, 7], [1, 2], "num_heads"),
    ("Attention", [4, 5], [1, 2], "kv_num_heads"),
];

impl KvCache {
    /// Where the tokens of a run are put behind the earlier ones; `None` where that is not known.
    pub fn joined(&self, graph: &Graph) -> Option<Joined> {
        let (node, _) = graph.producer(source(graph, self.present))?;
        let operator = graph.operator(node);
        if let Some(&(_, pasts, fresh, attribute)) = ATTENTIONS.iter().find(|a| a.0 == operator.op_type) {
            let part = (0..2).find(|&part| operator.input(pasts[part]) == Some(self.past))?;
            // Queries, keys and values may be packed into the first input.
            let fresh = operator.input(fresh[part]).or(operator.input(0))?;
            let has_columns = operator.attribute(attribute).is_some();
            let (axis, attribute) = if has_columns { (2, Some(attribute)) } else { (HEADS, None) };
            return Some(Joined { node, fresh, axis, attribute });
        }
        let &[Some(earlier), Some(fresh)] = operator.inputs() else { return None };
        let is_joined = operator.is("Concat") && self.is_earlier(graph, earlier);
        is_joined.then_some(Joined { node, fresh, axis: HEADS, attribute: None })
    }

    /// Whether a value is the past, as it is or joined with nothing.
    fn is_earlier(&self, graph: &Graph, value: ValueId) -> bool {
        let value = source(graph, value);
        let Some((node, _)) = graph.producer(value) else { return value == self.past };
        let operator = graph.operator(node);
        operator.is("Concat") && operator.inputs().iter().flatten().any(|&input| self.is_earlier(graph, input))
    }
}

/// What a value is a copy of.
fn source(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Some((node, _)) = graph.producer(value) {
        let operator = graph.operator(node);
        match operator.input(0).filter(|_| operator.is("Identity") || operator.is("Cast")) {
            Some(input) => value = input,
            None => break,
        }
    }
    value
}

/// Whether an input of this name is a cache of earlier tokens.
pub fn is_past(name: &str) -> bool {
    which(name, &PAST).is_some()
}

/// Which cache of a model it is, as `.0.key`, where its name begins with one of the words.
fn which<'n>(name: &'n str, words: &[&str]) -> Option<&'n str> {
    words.iter().find_map(|word| name.strip_prefix(word))
}

/// Makes a model one of the first run, when there are no earlier tokens: caches are empty, nothing is put behind them, and
/// masks and positions are as long as the ids. The inputs stay; what is kept for later runs is no output any more.
///
/// # Errors
/// What is wrong with a cache: the number of its heads or their width is not declared, or no output goes with it.
pub fn start_empty(graph: &mut Graph) -> Result<(), String> {
    let caches = caches(graph);
    let is_paired = |value: &ValueId| caches.iter().any(|cache| cache.past == *value);
    let is_cache = |value: &&ValueId| graph.name(**value).starts_with(PAST[0]);
    if let Some(&alone) = graph.inputs().iter().filter(is_cache).find(|value| !is_paired(value)) {
        let name = graph.name(alone);
        return Err(format!("the input {name:?} is a cache of which no output of four axes gives the next state"));
    }
    if caches.is_empty() {
        return Ok(());
    }
    declare_empty(graph, &caches)?;
    let presents: Vec<ValueId> = caches.iter().map(|cache| cache.present).collect();
    let joined: Vec<_> = caches.iter().filter_map(|cache| cache.joined(graph)).collect();
    let outputs: Vec<ValueId> = graph.outputs().iter().copied().filter(|v| !presents.contains(v)).collect();
    if !outputs.is_empty() {
        graph.set_outputs(&outputs);
    }
    for Joined { node, fresh, .. } in joined {
        if let Some(both) = graph.operator(node).output(0).filter(|_| graph.operator(node).is("Concat")) {
            graph.replace_reads(both, fresh);
        }
    }
    graph.remove_dead();
    Ok(())
}

fn declare_empty(graph: &mut Graph, caches: &[KvCache]) -> Result<(), String> {
    for cache in caches {
        let is_free = |axis: &usize| length(graph, cache.past, *axis).is_none();
        let free: Vec<usize> = (1..4).filter(is_free).collect();
        let &[tokens @ (2..)] = free.as_slice() else {
            let name = graph.name(cache.past);
            return Err(format!("the input {name:?} is a cache of which the heads or their width are not declared"));
        };
        set_dimension(graph, cache.past, tokens, dimension::Value::DimValue(0));
    }
    let ids = ids(graph);
    let Some(tokens) = ids.and_then(|ids| axis(graph, ids, 1).cloned()) else { return Ok(()) };
    for input in graph.inputs().to_vec() {
        if rank(graph, input) == Some(2) && Some(input) != ids {
            set_dimension(graph, input, 1, tokens.clone());
        }
    }
    Ok(())
}

/// The input of a decoder's token ids: the one whose table is largest.
pub fn ids(graph: &Graph) -> Option<ValueId> {
    let limits = limits(graph);
    graph.inputs().iter().copied().max_by_key(|v| limits.get(v).copied().unwrap_or(0))
}

fn rank(graph: &Graph, value: ValueId) -> Option<usize> {
    Some(tensor_type(graph.info(value)?)?.shape.as_ref()?.dim.len())
}

fn axis(graph: &Graph, value: ValueId, axis: usize) -> Option<&dimension::Value> {
    tensor_type(graph.info(value)?)?.shape.as_ref()?.dim.get(axis)?.value.as_ref()
}

/// The length of an axis, where it is declared.
pub fn length(graph: &Graph, value: ValueId, of: usize) -> Option<i64> {
    match axis(graph, value, of)? {
        dimension::Value::DimValue(n) if *n > 0 => Some(*n),
        _ => None,
    }
}

/// Declares the length of an axis.
pub fn set_length(graph: &mut Graph, value: ValueId, axis: usize, length: usize) {
    set_dimension(graph, value, axis, dimension::Value::DimValue(length as i64));
}

fn set_dimension(graph: &mut Graph, value: ValueId, axis: usize, to: dimension::Value) {
    let Some(mut info) = graph.info(value).cloned() else { return };
    let tensor = info.r#type.as_mut().and_then(|t| t.value.as_mut());
    if let Some(type_proto::Value::TensorType(tensor)) = tensor
        && let Some(dim) = tensor.shape.as_mut().and_then(|shape| shape.dim.get_mut(axis))
    {
        *dim = Dimension { value: Some(to), ..Default::default() };
        graph.set_info(value, Some(info));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Operator, Tensor, attribute};
    use crate::signature::{Axis, declare, declare_symbols, inputs};

    /// ids, a mask over earlier tokens and these, and a cache of two heads, three wide.
    fn decoder(past: &str, present: &str) -> Graph {
        let mut g = Graph::new();
        let symbols = |names: &[&str]| names.iter().map(|s| s.to_string()).collect();
        let ids = g.add_input(declare_symbols("input_ids", ElementType::I64, symbols(&["batch", "tokens"])));
        g.add_input(declare_symbols("attention_mask", ElementType::I64, symbols(&["batch", "past + tokens"])));
        let table = g
            .add_constant("table", Tensor::from_floats(ElementType::F32, &ndarray::ArrayD::zeros(vec![9, 6])).unwrap());
        let rows = g.add(Operator::new("Gather"), &[table, ids], "rows");
        let old = g.add_input(declare(past, ElementType::F32, 4));
        set_length(&mut g, old, 1, 2);
        set_length(&mut g, old, 3, 3);
        let both = g.add(Operator::new("Concat").with(attribute::int("axis", 2)), &[old, rows], present);
        g.set_info(both, Some(declare(present, ElementType::F32, 4)));
        g.add_output(both);
        g
    }

    #[test]
    fn what_goes_in_and_what_comes_out_are_paired_by_name() {
        let g = decoder("past_key_values.0.key", "present.0.key");
        let found = caches(&g);
        assert_eq!(found.len(), 1);
        assert_eq!((g.name(found[0].past), g.name(found[0].present)), ("past_key_values.0.key", "present.0.key"));
        assert_eq!(caches(&decoder("past_0", "present_0")).len(), 1);
        assert_eq!(caches(&decoder("past_0", "present_1")), []);
        assert_eq!(caches(&decoder("state_0", "present_0")), []);
    }

    #[test]
    fn there_are_no_earlier_tokens_and_masks_are_as_long_as_ids() {
        let mut g = decoder("past_key_values.0.key", "present.0.key");
        start_empty(&mut g).unwrap();
        let model = crate::ir::Model::new(g, 17);
        let inputs = inputs(&model);
        let tokens = Axis::Named("tokens".into());
        assert_eq!(inputs[1].axes.as_ref().unwrap()[1], tokens);
        assert_eq!(inputs[2].axes.as_ref().unwrap()[1..], [Axis::Fixed(2), Axis::Fixed(0), Axis::Fixed(3)]);
    }

    #[test]
    fn a_cache_of_an_unknown_number_of_heads_is_named() {
        let mut g = decoder("past_key_values.0.key", "present.0.key");
        let past = g.find("past_key_values.0.key").unwrap();
        g.set_info(past, Some(declare("past_key_values.0.key", ElementType::F32, 4)));
        let why = start_empty(&mut g).unwrap_err();
        assert!(why.contains("\"past_key_values.0.key\"") && why.contains("not declared"), "{why}");
    }

    #[test]
    fn a_cache_that_nothing_goes_with_is_refused_and_other_inputs_are_not() {
        let mut g = decoder("past_key_values.0.encoder.key", "present.0.key");
        assert!(start_empty(&mut g).unwrap_err().contains("no output"));
        assert_eq!(start_empty(&mut decoder("past_values", "present_mean")), Ok(()));
    }

    #[test]
    fn keys_may_lie_with_their_tokens_last() {
        let mut g = decoder("past_key_values.0.key", "present.0.key");
        let past = g.find("past_key_values.0.key").unwrap();
        g.set_info(past, Some(declare("past_key_values.0.key", ElementType::F32, 4)));
        [(1, 2), (2, 3)].into_iter().for_each(|(axis, n)| set_length(&mut g, past, axis, n));
        start_empty(&mut g).unwrap();
        let inputs = inputs(&crate::ir::Model::new(g, 17));
        assert_eq!(inputs[2].axes.as_ref().unwrap()[1..], [Axis::Fixed(2), Axis::Fixed(3), Axis::Fixed(0)]);
    }
}
