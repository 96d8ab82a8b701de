//! Operator sets 7 to 12, written as set 13: what the passes know. The function stays the same, and is compared with that
//! of the file by whoever upgrades.
//!
//! Most of what changed are attributes that became inputs. What only takes more than before is left as it is.

use ndarray::{ArrayD, IxDyn};

use crate::ir::schema::GraphProto;
use crate::ir::{ElementType, Graph, Model, NodeId, Operator, Tensor, ValueId, attribute};
use crate::observe::Observation;
use crate::rules::Decline;

/// The oldest set that is upgraded.
pub const OLDEST: i64 = 7;

/// The set that it becomes.
pub const NEW: i64 = 13;

/// The version of the format that came with it.
const FORMAT: i64 = 7;

type Rule = fn(&mut Old) -> Result<(), Decline>;

/// Operators that mean something else from a set on, and how they are written there.
const RULES: &[(&[&str], i64, Rule)] = &[
    (&["BatchNormalization"], 9, batch_normalization),
    (&["Scan"], 9, changed),
    (&["Slice"], 10, slice),
    (&["TopK"], 10, top_k),
    (&["Upsample"], 10, upsample),
    (&["Clip"], 11, clip),
    (&["Pad"], 11, pad),
    (&["Resize"], 11, resize),
    (&["Scatter"], 11, scatter),
    (&["Dropout"], 12, dropout),
    (&["Softmax", "LogSoftmax", "Hardmax"], 13, softmax),
    (&["Squeeze", "Unsqueeze", "ReduceSum"], 13, axes),
    (&["Split"], 13, split),
];

/// Writes a model of an older set as one of set 13; `seen` are ranks and types. Returns the set that it was.
///
/// # Errors
/// The operator for which there is no way, and why.
pub fn upgrade(model: &mut Model, seen: &Observation) -> Result<Option<i64>, (String, String)> {
    let Some(old) = model.opset("").filter(|&old| (OLDEST..NEW).contains(&old)) else { return Ok(None) };
    let graph = &mut model.graph;
    for node in graph.sorted() {
        let operator = graph.operator(node).clone();
        if let Some(inner) = changed_within(&operator, &|op_type| rule_for(op_type, old).is_some()) {
            return Err((graph.label(node), format!("has {inner} of operator set {old} in a subgraph")));
        }
        if let Some(rule) = rule_for(&operator.op_type, old).filter(|_| operator.is_standard()) {
            let label = graph.label(node);
            rule(&mut Old { graph, seen, node, operator }).map_err(|Decline(why)| (label, why))?;
        }
    }
    model.raise_opset(NEW, FORMAT);
    model.graph.remove_dead();
    model.graph.checked("upgrading operators");
    Ok(Some(old))
}

fn rule_for(op_type: &str, old: i64) -> Option<Rule> {
    RULES.iter().find(|(names, since, _)| names.contains(&op_type) && old < *since).map(|(_, _, rule)| *rule)
}

/// The first operator of an operator's subgraphs that means something else in another set.
pub(super) fn changed_within(operator: &Operator, is_changed: &dyn Fn(&str) -> bool) -> Option<String> {
    fn of(graph: &GraphProto, is_changed: &dyn Fn(&str) -> bool) -> Option<String> {
        graph.node.iter().find_map(|node| {
            let op_type = node.op_type.clone().unwrap_or_default();
            let mut inner = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
            if is_changed(&op_type) { Some(op_type) } else { inner.find_map(|g| of(g, is_changed)) }
        })
    }
    operator.attributes.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).find_map(|graph| of(graph, is_changed))
}

/// An operator of an older set.
struct Old<'a> {
    graph: &'a mut Graph,
    seen: &'a Observation,
    node: NodeId,
    operator: Operator,
}

impl Old<'_> {
    fn input(&self) -> Result<ValueId, Decline> {
        self.operator.input(0).ok_or_else(|| "has no input".into())
    }

    fn integers(&mut self, numbers: &[i64]) -> ValueId {
        self.graph.add_constant("upgraded", Tensor::from_i64s(&[numbers.len()], numbers))
    }

    /// A single number of the type of the operator's input.
    fn number(&mut self, number: f32) -> Result<ValueId, Decline> {
        let element = self.seen.element(self.input()?).unwrap_or(ElementType::F32);
        let array = ArrayD::from_elem(IxDyn(&[]), number.into());
        let tensor = Tensor::from_floats(element, &array).map_err(|e| format!("of type {element} {e}"))?;
        Ok(self.graph.add_constant("upgraded", tensor))
    }

    /// The attribute `name` becomes input `slot`.
    fn as_input(&mut self, name: &str, slot: usize) {
        if let Some(numbers) = self.operator.ints(name).map(<[i64]>::to_vec) {
            let value = self.integers(&numbers);
            self.graph.set_input(self.node, slot, Some(value));
        }
        self.drop(&[name]);
    }

    /// Leaves attributes out.
    fn drop(&mut self, names: &[&str]) {
        let attributes = &mut self.graph.operator_mut(self.node).attributes;
        attributes.retain(|a| !names.contains(&a.name.as_deref().unwrap_or("")));
    }

    /// Makes it another operator.
    fn become_(&mut self, op_type: &str) {
        self.graph.operator_mut(self.node).op_type = op_type.to_string();
    }

    fn set(&mut self, new: crate::ir::schema::AttributeProto) {
        let name = new.name.clone().unwrap_or_default();
        self.drop(&[&name]);
        self.graph.operator_mut(self.node).attributes.push(new);
    }
}

fn changed(_: &mut Old) -> Result<(), Decline> {
    Err("means something else in newer operator sets".into())
}

fn batch_normalization(old: &mut Old) -> Result<(), Decline> {
    if old.operator.int("spatial", 1) == 0 {
        return Err("normalises every position for itself (spatial = 0), which newer operator sets cannot".into());
    }
    old.drop(&["spatial"]);
    Ok(())
}

fn slice(old: &mut Old) -> Result<(), Decline> {
    ["starts", "ends", "axes"].iter().enumerate().for_each(|(i, name)| old.as_input(name, i + 1));
    Ok(())
}

fn top_k(old: &mut Old) -> Result<(), Decline> {
    let count = old.integers(&[old.operator.int("k", 1)]);
    old.graph.set_input(old.node, 1, Some(count));
    old.drop(&["k"]);
    Ok(())
}

fn upsample(old: &mut Old) -> Result<(), Decline> {
    let scales = match (old.operator.input(1), old.operator.attribute("scales")) {
        (Some(scales), _) => scales,
        (None, Some(scales)) => {
            let numbers: Vec<f64> = scales.floats.iter().map(|&x| x.into()).collect();
            let array = ArrayD::from_shape_vec(IxDyn(&[numbers.len()]), numbers).map_err(|e| e.to_string())?;
            let tensor = Tensor::from_floats(ElementType::F32, &array).map_err(|e| e.to_string())?;
            old.graph.add_constant("upgraded", tensor)
        }
        (None, None) => return Err("has no scales".into()),
    };
    old.drop(&["scales"]);
    if old.operator.text("mode", "nearest") == "bilinear" {
        old.set(attribute::text("mode", "linear"));
    }
    old.become_("Resize");
    as_before(old, scales);
    Ok(())
}

fn resize(old: &mut Old) -> Result<(), Decline> {
    let scales = old.operator.input(1).ok_or("has no scales")?;
    as_before(old, scales);
    Ok(())
}

/// Resizes as before set 11: coordinates are multiplied, and the nearest is the one below.
fn as_before(old: &mut Old, scales: ValueId) {
    old.graph.set_input(old.node, 1, None);
    old.graph.set_input(old.node, 2, Some(scales));
    old.set(attribute::text("coordinate_transformation_mode", "asymmetric"));
    old.set(attribute::text("nearest_mode", "floor"));
}

fn clip(old: &mut Old) -> Result<(), Decline> {
    for (slot, name) in [(1, "min"), (2, "max")] {
        if old.operator.attribute(name).is_some() {
            let bound = old.number(old.operator.float(name, 0.0))?;
            old.graph.set_input(old.node, slot, Some(bound));
        }
    }
    old.drop(&["min", "max"]);
    Ok(())
}

fn pad(old: &mut Old) -> Result<(), Decline> {
    old.as_input("pads", 1);
    if old.operator.attribute("value").is_some() {
        let value = old.number(old.operator.float("value", 0.0))?;
        old.graph.set_input(old.node, 2, Some(value));
    }
    old.drop(&["value"]);
    Ok(())
}

fn scatter(old: &mut Old) -> Result<(), Decline> {
    old.become_("ScatterElements");
    Ok(())
}

fn dropout(old: &mut Old) -> Result<(), Decline> {
    old.drop(&["ratio"]);
    Ok(())
}

/// Before set 13, all axes from `axis` on were normalised together.
fn softmax(old: &mut Old) -> Result<(), Decline> {
    let (input, axis) = (old.input()?, old.operator.int("axis", 1));
    let rank = old.seen.shape(input).ok_or("reads a value of unknown rank")?.len() as i64;
    if axis == rank - 1 || axis == -1 {
        old.set(attribute::int("axis", -1));
        return Ok(());
    }
    let flat = Operator::new("Flatten").with(attribute::int("axis", axis));
    let flat = old.graph.add(flat, &[input], "upgraded");
    let normalised = Operator::new(&old.operator.op_type).with(attribute::int("axis", -1));
    let normalised = old.graph.add(normalised, &[flat], "upgraded");
    let shape = old.graph.add(Operator::new("Shape"), &[input], "upgraded");
    let back = old.graph.add(Operator::new("Reshape"), &[normalised, shape], "upgraded");
    let output = old.operator.output(0).ok_or("has no output")?;
    old.graph.take_over(output, back);
    Ok(())
}

fn axes(old: &mut Old) -> Result<(), Decline> {
    old.as_input("axes", 1);
    Ok(())
}

fn split(old: &mut Old) -> Result<(), Decline> {
    old.as_input("split", 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{B, S, Sketch, n};

    /// The operators of a model of one operator, of set `opset`, after it was upgraded.
    fn upgraded(operator: Operator, rank: usize, opset: i64) -> Result<Vec<Operator>, (String, String)> {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S, n(4)][..rank]);
        let y = g.op(operator, &[x], &[B, S, n(4)][..rank]);
        g.graph.add_output(y);
        let mut model = Model::new(g.graph.clone(), opset);
        assert_eq!(upgrade(&mut model, &g.seen())?, Some(opset));
        assert_eq!(model.opset(""), Some(13));
        Ok(model.graph.sorted().into_iter().map(|node| model.graph.operator(node).clone()).collect())
    }

    #[test]
    fn attributes_that_became_inputs_are_inputs() {
        for name in ["Squeeze", "Unsqueeze", "ReduceSum"] {
            let operators = upgraded(Operator::new(name).with(attribute::ints("axes", &[1])), 3, 11).unwrap();
            assert_eq!((operators.len(), operators[0].inputs().len(), operators[0].ints("axes")), (1, 2, None));
        }
        let clip = Operator::new("Clip").with(attribute::float("max", 6.0));
        let operators = upgraded(clip, 3, 10).unwrap();
        assert_eq!(operators[0].inputs().len(), 3);
        assert!(operators[0].input(1).is_none(), "there is no lower bound");
        let slice = Operator::new("Slice").with(attribute::ints("starts", &[0])).with(attribute::ints("ends", &[2]));
        assert_eq!(upgraded(slice, 3, 9).unwrap()[0].inputs().len(), 3);
    }

    #[test]
    fn a_softmax_over_the_last_axis_stays_one_and_over_several_is_made_flat() {
        let of = |axis, rank| upgraded(Operator::new("Softmax").with(attribute::int("axis", axis)), rank, 12).unwrap();
        assert_eq!((of(2, 3).len(), of(2, 3)[0].int("axis", 0)), (1, -1));
        assert_eq!(of(-1, 3).len(), 1);
        let types: Vec<String> = of(1, 3).into_iter().map(|o| o.op_type).collect();
        assert_eq!(types.len(), 4);
        assert!(types.contains(&"Flatten".to_string()) && types.contains(&"Reshape".to_string()));
        let default = upgraded(Operator::new("Softmax"), 2, 12).unwrap();
        assert_eq!(default[0].int("axis", 0), -1, "axis 1 is the last of two");
    }

    #[test]
    fn what_newer_sets_cannot_say_is_declined() {
        let operator = Operator::new("BatchNormalization").with(attribute::int("spatial", 0));
        assert!(upgraded(operator, 3, 8).unwrap_err().1.contains("spatial"));
        assert!(upgraded(Operator::new("Scan"), 3, 8).is_err());
        assert!(upgraded(Operator::new("Scan"), 3, 9).is_ok(), "it means the same since");
    }

    #[test]
    fn new_sets_are_left_alone() {
        let mut g = Sketch::default();
        let x = g.input("x", &[B, S]);
        let y = g.on("Softmax", &[x]);
        g.graph.add_output(y);
        let mut model = g.model();
        assert_eq!(upgrade(&mut model, &g.seen()), Ok(None));
        assert_eq!(model.graph.operator(model.graph.sorted()[0]).int("axis", 7), 7);
    }
}
