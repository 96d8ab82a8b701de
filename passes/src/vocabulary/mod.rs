//! The vocabulary of a model: its tables with a row for every token and its scores with a column for every token, and how
//! tokens go from all of them.
//!
//! The tokens that stay keep their order, so that what only compares ids (the largest one of a text is its end, in CLIP)
//! finds the same tokens as before.

mod ids;
mod scores;

use std::collections::{BTreeSet, HashSet};

use crate::ir::schema::{TensorShapeProto, tensor_shape_proto::dimension, type_proto};
use crate::ir::{ElementType, Graph, NodeId, Slot, Tensor, TensorError, ValueId};
use crate::kv_cache;
use crate::rules::Decline;
use crate::signature::limits;

/// Where a graph has something for every token of its vocabulary.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// Tokens, or rows of the table: there may be more than a tokenizer has tokens.
    pub size: usize,
    /// The inputs of token ids: several where there are several texts.
    pub ids: Vec<ValueId>,
    /// Ids that the graph itself names, as that of padding: they must stay.
    pub named: BTreeSet<usize>,
    places: Vec<Place>,
}

/// One place where tokens are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// The constant has an entry for every token along this axis.
    Entries { constant: ValueId, axis: usize },
    /// The operator reads ids from a constant.
    Ids { node: NodeId, slot: usize },
    /// The last number of a target shape is how many tokens there are.
    Length { node: NodeId, slot: usize },
}

/// Operators through which a table may be read.
const REARRANGE: [&str; 3] = ["Cast", "Identity", "Transpose"];

/// What is found on the way from ids to scores.
#[derive(Default)]
struct Found {
    places: Vec<Place>,
    named: BTreeSet<usize>,
    /// Operators that read what has an entry for every token, and know what to do with it.
    readers: HashSet<NodeId>,
}

impl Vocabulary {
    /// Finds everything in a graph that has to do with single tokens.
    ///
    /// # Errors
    /// What stands in the way: an operator that reads ids, or a table of tokens, in a way that is not known.
    pub fn find(graph: &Graph) -> Result<Self, String> {
        let limits = limits(graph);
        let size = kv_cache::ids(graph).and_then(|ids| limits.get(&ids).copied());
        let size = size.ok_or("no input holds ids that a table is read by")?;
        let is_named_else = |name: &str| name.contains("position") || name.contains("type");
        let is_ids = |value: &ValueId| limits.get(value) == Some(&size) && !is_named_else(graph.name(*value));
        let ids: Vec<ValueId> = graph.inputs().iter().copied().filter(is_ids).collect();
        let mut found = Found::default();
        for &ids in &ids {
            ids::follow(graph, ids, size, &mut found).map_err(|Decline(why)| why)?;
        }
        for &output in graph.outputs() {
            scores::follow(graph, output, size, &mut found).map_err(|Decline(why)| why)?;
        }
        found.readers_are_all_known(graph).map_err(|Decline(why)| why)?;
        let mut seen = HashSet::new();
        found.places.retain(|place| seen.insert(*place));
        Ok(Self { size, ids, named: found.named, places: found.places })
    }

    /// Leaves the tokens `keep`, in ascending order; the first of them has the id 0 then.
    ///
    /// # Errors
    /// Where the elements of a table cannot be taken apart, or `keep` names a token that there is not.
    pub fn cut(&self, graph: &mut Graph, keep: &[usize]) -> Result<(), TensorError> {
        for place in &self.places {
            match *place {
                Place::Entries { constant, axis } => {
                    let Some(table) = graph.constant(constant) else { continue };
                    let rest = table.select(axis, keep)?.placed_like(table).named(graph.name(constant));
                    graph.set_constant(constant, rest);
                    kv_cache::set_length(graph, constant, axis, keep.len());
                }
                Place::Ids { node, slot } => {
                    let new = |id: i64| usize::try_from(id).ok().and_then(|id| keep.binary_search(&id).ok());
                    renumber(graph, node, slot, |id| new(id).map_or(id, |new| new as i64))?;
                }
                Place::Length { node, slot } => {
                    renumber(graph, node, slot, |n| if n == self.size as i64 { keep.len() as i64 } else { n })?;
                }
            }
        }
        self.declare(graph, keep.len());
        graph.remove_dead();
        graph.checked("cutting the vocabulary");
        Ok(())
    }

    /// Declares outputs with a score for every token anew, and forgets what the file says of values between.
    fn declare(&self, graph: &mut Graph, size: usize) {
        let old = dimension::Value::DimValue(self.size as i64);
        for value in graph.values().collect::<Vec<_>>() {
            let Some(mut info) = graph.info(value).cloned().filter(|_| !graph.inputs().contains(&value)) else {
                continue;
            };
            let tensor = info.r#type.as_mut().and_then(|t| t.value.as_mut());
            let Some(type_proto::Value::TensorType(type_proto::Tensor { shape: Some(shape), .. })) = tensor else {
                continue;
            };
            let TensorShapeProto { dim } = shape;
            if !dim.iter().any(|d| d.value.as_ref() == Some(&old)) {
                continue;
            }
            if let Some(last) = dim.last_mut() {
                last.value = Some(dimension::Value::DimValue(size as i64));
            }
            graph.set_info(value, graph.outputs().contains(&value).then_some(info));
        }
    }
}

/// Makes an operator read other whole numbers at `slot`, of the same type.
fn renumber(graph: &mut Graph, node: NodeId, slot: usize, new: impl Fn(i64) -> i64) -> Result<(), TensorError> {
    let Some(value) = graph.operator(node).input(slot) else { return Ok(()) };
    let Some(old) = graph.constant(value) else { return Ok(()) };
    let numbers = old.to_i64()?.mapv(new);
    let bytes: Vec<u8> = match old.element() {
        ElementType::I32 => numbers.iter().flat_map(|&n| (n as i32).to_le_bytes()).collect(),
        _ => numbers.iter().flat_map(|n| n.to_le_bytes()).collect(),
    };
    let (element, hint) = (old.element(), format!("{}_cut", graph.name(value)));
    let constant = Tensor::from_raw("", element, numbers.shape(), bytes.into())?;
    let constant = graph.add_constant(&hint, constant);
    graph.set_input(node, slot, Some(constant));
    Ok(())
}

impl Found {
    /// Notes what has an entry for every token along an axis of `value`: a constant, as it is or rearranged.
    ///
    /// `None` where it is no such thing.
    fn add_entries(&mut self, graph: &Graph, mut value: ValueId, mut axis: usize, size: usize) -> Option<()> {
        loop {
            if let Some(constant) = graph.constant(value) {
                let is_vocabulary = constant.dims().get(axis) == Some(&size);
                return is_vocabulary.then(|| self.places.push(Place::Entries { constant: value, axis }));
            }
            let (node, _) = graph.producer(value)?;
            let operator = graph.operator(node);
            self.readers.insert(node);
            match operator.op_type.as_str() {
                "Transpose" => {
                    let order = operator.ints("perm").map_or(vec![1, 0], <[i64]>::to_vec);
                    axis = usize::try_from(*order.get(axis)?).ok()?;
                }
                name if REARRANGE.contains(&name) => {}
                _ => return None,
            }
            value = operator.input(0)?;
        }
    }

    /// That nothing else reads what has an entry for every token.
    fn readers_are_all_known(&self, graph: &Graph) -> Result<(), Decline> {
        let table = |place: &Place| if let Place::Entries { constant, .. } = *place { Some(constant) } else { None };
        let mut open: Vec<ValueId> = self.places.iter().filter_map(table).collect();
        while let Some(value) = open.pop() {
            for (node, slot) in graph.consumers(value) {
                match slot {
                    Slot::Input(_) if self.readers.contains(&node) => {
                        let operator = graph.operator(node);
                        open.extend(operator.output(0).filter(|_| REARRANGE.contains(&operator.op_type.as_str())));
                    }
                    Slot::Input(_) | Slot::Capture => {
                        let (name, reader) = (graph.name(value), graph.label(node));
                        return Err(format!("{reader} reads {name:?}, which has an entry for every token, too").into());
                    }
                    Slot::Output => return Err("a table of tokens is an output of the model".into()),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, ArrayD, arr2};

    use super::*;
    use crate::ir::{Model, Operator, attribute};
    use crate::signature::{declare, declare_symbols};

    const TOKENS: usize = 5;

    /// ids -> table -> rows x table^T + bias, and which tokens are padding.
    fn tied() -> Graph {
        let mut g = Graph::new();
        let symbols = ["batch", "tokens"].map(str::to_string).to_vec();
        let ids = g.add_input(declare_symbols("input_ids", ElementType::I64, symbols));
        let numbers = Array2::from_shape_fn((TOKENS, 2), |(token, column)| (10 * token + column) as f64);
        let table = g.add_constant("table", Tensor::from_floats(ElementType::F32, &numbers.into_dyn()).unwrap());
        let rows = g.add(Operator::new("Gather"), &[table, ids], "rows");
        let columns = g.add(Operator::new("Transpose").with(attribute::ints("perm", &[1, 0])), &[table], "columns");
        let scores = g.add(Operator::new("MatMul"), &[rows, columns], "scores");
        let bias = ArrayD::from_shape_fn(vec![TOKENS], |at| at[0] as f64);
        let bias = g.add_constant("bias", Tensor::from_floats(ElementType::F32, &bias).unwrap());
        let logits = g.add(Operator::new("Add"), &[scores, bias], "logits");
        g.set_info(logits, Some(declare("logits", ElementType::F32, 3)));
        kv_cache::set_length(&mut g, logits, 2, TOKENS);
        let padding = g.add_constant("padding", Tensor::from_i64s(&[], &[3]));
        let is_padding = g.add(Operator::new("Equal"), &[ids, padding], "is_padding");
        g.add_output(logits);
        g.add_output(is_padding);
        g
    }

    fn numbers(g: &Graph, name: &str) -> Vec<f64> {
        g.constant(g.find(name).unwrap()).unwrap().to_f64().unwrap().into_iter().collect()
    }

    #[test]
    fn a_tied_table_is_cut_once_and_padding_has_its_new_id() {
        let mut g = tied();
        let found = Vocabulary::find(&g).unwrap();
        assert_eq!((found.size, found.named.iter().copied().collect::<Vec<_>>()), (TOKENS, vec![3]));
        found.cut(&mut g, &[1, 3]).unwrap();
        assert_eq!(numbers(&g, "table"), [10.0, 11.0, 30.0, 31.0]);
        assert_eq!(numbers(&g, "bias"), [1.0, 3.0]);
        let (equal, _) = g.producer(g.find("is_padding").unwrap()).unwrap();
        let padding = g.constant(g.operator(equal).input(1).unwrap()).unwrap();
        assert_eq!(padding.to_i64().unwrap().iter().copied().collect::<Vec<_>>(), [1]);
        assert_eq!(kv_cache::length(&g, g.find("logits").unwrap(), 2), Some(2));
        Model::new(g, 17);
    }

    #[test]
    fn columns_of_a_head_of_its_own_go_too() {
        let mut g = tied();
        let rows = g.find("rows").unwrap();
        let weight =
            Tensor::from_floats(ElementType::F32, &arr2(&[[0., 1., 2., 3., 4.], [5., 6., 7., 8., 9.]]).into_dyn());
        let weight = g.add_constant("head", weight.unwrap());
        let other = g.add(Operator::new("MatMul"), &[rows, weight], "other");
        let other = g.add(Operator::new("Tanh"), &[other], "bounded");
        g.add_output(other);
        let found = Vocabulary::find(&g).unwrap();
        found.cut(&mut g, &[1, 3]).unwrap();
        assert_eq!(numbers(&g, "head"), [1.0, 3.0, 6.0, 8.0]);
    }

    #[test]
    fn whoever_reads_ids_or_tables_otherwise_is_named() {
        let mut g = tied();
        let ids = g.find("input_ids").unwrap();
        let doubled = g.add(Operator::new("Add"), &[ids, ids], "doubled");
        g.add_output(doubled);
        assert!(Vocabulary::find(&g).unwrap_err().contains("\"doubled\" reads token ids"), "arithmetic on ids");

        let mut g = tied();
        let table = g.find("table").unwrap();
        let mean = g.add(Operator::new("ReduceMean"), &[table], "mean");
        g.add_output(mean);
        let why = Vocabulary::find(&g).unwrap_err();
        assert!(why.contains("mean") && why.contains("\"table\""), "{why}");

        let mut g = Graph::new();
        let x = g.add_input(declare("x", ElementType::F32, 3));
        g.add_output(x);
        assert!(Vocabulary::find(&g).unwrap_err().contains("no input holds ids"));
    }
}
