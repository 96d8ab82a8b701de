//! The graph: operators as nodes, values as edges.

mod edit;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use petgraph::Direction::{Incoming, Outgoing};
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;

use super::{Operator, Tensor};
use crate::ir::schema::ValueInfoProto;

/// An operator of a [`Graph`].
pub type NodeId = NodeIndex;

/// A value of a [`Graph`]: what one operator output, graph input or constant is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(usize);

/// Where a value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// The input of an operator with this index.
    Input(usize),
    /// A subgraph of an operator.
    Capture,
    /// An output of the graph.
    Output,
}

#[derive(Clone, Debug)]
pub(super) enum Vertex {
    Input,
    Initializer,
    Operator(Box<Operator>),
    Output,
    /// What was here is no more.
    Gone,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    pub(super) value: ValueId,
    pub(super) slot: Slot,
}

#[derive(Clone, Debug)]
struct Value {
    name: String,
    info: Option<ValueInfoProto>,
    constant: Option<Tensor>,
    source: Option<NodeId>,
}

/// Operators joined by named values.
///
/// Nodes are operators, constants, inputs and outputs; an edge leads from what makes a value to what
/// reads it. Every value keeps the name and the declared type it has in the file.
///
/// **Ids.** An operator or value keeps its id for as long as it is there, and no id is used twice: in a clone, in a part
/// that [`extract`](crate::probe::suffix::extract) cuts out, and in a lowered copy, the same id is the same thing, and
/// what was added to one of them is not in the others. Observations, discoveries and plans rely on that where they are
/// used with another copy than the one that they were made of; [`Graph::shares_ids_with`] checks it there.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub(super) net: StableDiGraph<Vertex, Edge>,
    values: Vec<Value>,
    names: HashMap<String, ValueId>,
    /// How often a fresh name was asked for, by its beginning.
    asked: HashMap<String, usize>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    // ---- values

    /// A value called `name`, made now if there is none; it has no source yet.
    pub(crate) fn declare(&mut self, name: &str) -> ValueId {
        if let Some(&id) = self.names.get(name) {
            return id;
        }
        let id = ValueId(self.values.len());
        self.values.push(Value { name: name.to_string(), info: None, constant: None, source: None });
        self.names.insert(name.to_string(), id);
        id
    }

    /// A new value whose name starts with `hint` and is not taken.
    fn declare_fresh(&mut self, hint: &str) -> ValueId {
        let mut name = hint.to_string();
        let mut n = self.asked.get(hint).copied().unwrap_or(1);
        while name.is_empty() || self.names.contains_key(&name) {
            name = format!("{hint}_{n}");
            n += 1;
        }
        self.asked.insert(hint.to_string(), n);
        self.declare(&name)
    }

    /// The value called `name`.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// The names of all values.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(|v| v.name.as_str())
    }

    /// The name of a value.
    pub fn name(&self, value: ValueId) -> &str {
        &self.values[value.0].name
    }

    /// The type and shape that the file declares for a value.
    pub fn info(&self, value: ValueId) -> Option<&ValueInfoProto> {
        self.values[value.0].info.as_ref()
    }

    /// Sets or removes the declared type and shape of a value.
    pub fn set_info(&mut self, value: ValueId, info: Option<ValueInfoProto>) {
        self.values[value.0].info = info;
    }

    /// The constant that a value is: an initializer, or the output of a `Constant` operator.
    pub fn constant(&self, value: ValueId) -> Option<&Tensor> {
        self.values[value.0].constant.as_ref()
    }

    pub(crate) fn set_constant(&mut self, value: ValueId, tensor: Tensor) {
        self.values[value.0].constant = Some(tensor);
    }

    /// The operator and output that make a value; `None` for inputs and initializers.
    pub fn producer(&self, value: ValueId) -> Option<(NodeId, usize)> {
        let node = self.values[value.0].source?;
        let slot = self.operator_at(node)?.outputs.iter().position(|&o| o == Some(value))?;
        Some((node, slot))
    }

    /// Whether `value`, which may be another graph's, is made or given in this one.
    pub fn holds(&self, value: ValueId) -> bool {
        value.0 < self.values.len() && self.has_source(value)
    }

    /// What makes a value, gives it or holds it.
    pub(super) fn source(&self, value: ValueId) -> Option<NodeId> {
        self.values[value.0].source
    }

    /// Whether anything makes this value.
    pub(crate) fn has_source(&self, value: ValueId) -> bool {
        self.values[value.0].source.is_some()
    }

    /// Where a value is read, in the order of the graph's nodes.
    pub fn consumers(&self, value: ValueId) -> Vec<(NodeId, Slot)> {
        let Some(source) = self.values[value.0].source else { return Vec::new() };
        let mut uses: Vec<_> = self
            .net
            .edges_directed(source, Outgoing)
            .filter(|e| e.weight().value == value)
            .map(|e| (e.target(), e.weight().slot))
            .collect();
        uses.sort_unstable();
        uses
    }

    /// The graph's inputs in order, initializers that are also listed as inputs among them.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// The graph's outputs in order.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The initializers in the order of the file.
    pub fn initializers(&self) -> Vec<ValueId> {
        let is_initializer =
            |v: &Value| v.source.is_some_and(|n| matches!(self.net.node_weight(n), Some(Vertex::Initializer)));
        (0..self.values.len()).filter(|&i| is_initializer(&self.values[i])).map(ValueId).collect()
    }

    /// All constants: initializers, then the outputs of `Constant` operators.
    pub fn constants(&self) -> Vec<ValueId> {
        let made = self.sorted().into_iter().filter(|&n| self.operator(n).is("Constant"));
        let made = made.filter_map(|n| self.operator(n).output(0));
        self.initializers().into_iter().chain(made).collect()
    }

    /// All values that were ever declared.
    pub(crate) fn values(&self) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.values.len()).map(ValueId)
    }

    // ---- operators

    /// Whether `node` is an operator of this graph.
    pub fn contains(&self, node: NodeId) -> bool {
        self.operator_at(node).is_some()
    }

    fn operator_at(&self, node: NodeId) -> Option<&Operator> {
        match self.net.node_weight(node)? {
            Vertex::Operator(operator) => Some(operator),
            _ => None,
        }
    }

    /// The operator at `node`.
    ///
    /// # Panics
    /// If `node` is no operator of this graph.
    pub fn operator(&self, node: NodeId) -> &Operator {
        self.operator_at(node).expect("the node is an operator of this graph")
    }

    /// The operator at `node`, to change its attributes or name.
    ///
    /// # Panics
    /// If `node` is no operator of this graph.
    pub fn operator_mut(&mut self, node: NodeId) -> &mut Operator {
        match self.net.node_weight_mut(node) {
            Some(Vertex::Operator(operator)) => operator,
            _ => panic!("the node is an operator of this graph"),
        }
    }

    /// How messages name the operator at `node`.
    pub fn label(&self, node: NodeId) -> String {
        let operator = self.operator(node);
        let first = operator.outputs.iter().flatten().next();
        operator.label(first.map_or("", |&v| self.name(v)))
    }

    /// Operators so that each comes after what it reads, otherwise in the order of the file;
    /// or, where there is none, the operators that wait for each other.
    ///
    /// # Errors
    /// The operators on a cycle or downstream of one.
    pub fn order(&self) -> Result<Vec<NodeId>, Vec<NodeId>> {
        let is_operator = |n: NodeId| self.operator_at(n).is_some();
        let mut waiting: HashMap<NodeId, usize> = HashMap::new();
        let mut ready = BinaryHeap::new();
        for node in self.net.node_indices().filter(|&n| is_operator(n)) {
            let missing = self.net.edges_directed(node, Incoming).filter(|e| is_operator(e.source())).count();
            if missing == 0 {
                ready.push(Reverse(node));
            }
            waiting.insert(node, missing);
        }
        let mut order = Vec::with_capacity(waiting.len());
        while let Some(Reverse(node)) = ready.pop() {
            waiting.remove(&node);
            order.push(node);
            for edge in self.net.edges_directed(node, Outgoing) {
                if let Some(missing) = waiting.get_mut(&edge.target()) {
                    *missing -= 1;
                    if *missing == 0 {
                        ready.push(Reverse(edge.target()));
                    }
                }
            }
        }
        if waiting.is_empty() {
            return Ok(order);
        }
        let mut stuck: Vec<_> = waiting.into_keys().collect();
        stuck.sort_unstable();
        Err(stuck)
    }

    /// [`Graph::order`] of a graph that is known to have no cycle, as every imported one.
    ///
    /// # Panics
    /// If there is a cycle.
    pub fn sorted(&self) -> Vec<NodeId> {
        self.order().expect("an imported graph has no cycle, and no pass makes one")
    }

    // ---- reachability

    /// Every operator that `values` depend on, directly or not, those that make them included.
    pub fn ancestors(&self, values: impl IntoIterator<Item = ValueId>) -> HashSet<NodeId> {
        self.reach(values.into_iter().filter_map(|v| self.values[v.0].source).collect(), Incoming)
    }

    /// Every operator that depends on `values`, directly or not.
    pub fn descendants(&self, values: impl IntoIterator<Item = ValueId>) -> HashSet<NodeId> {
        self.reach(values.into_iter().flat_map(|v| self.consumers(v)).map(|(n, _)| n).collect(), Outgoing)
    }

    fn reach(&self, mut stack: Vec<NodeId>, direction: petgraph::Direction) -> HashSet<NodeId> {
        let mut seen = HashSet::new();
        while let Some(node) = stack.pop() {
            if self.operator_at(node).is_some() && seen.insert(node) {
                stack.extend(self.net.neighbors_directed(node, direction));
            }
        }
        seen
    }
}

/// What makes a value that no operator makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceKind {
    Input,
    Initializer,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> (Graph, ValueId, ValueId, ValueId) {
        let mut g = Graph::new();
        let x = g.add_input(ValueInfoProto { name: Some("x".into()), ..Default::default() });
        let a = g.add(Operator::new("Relu"), &[x], "a");
        let b = g.add(Operator::new("Add"), &[a, a], "b");
        g.add_output(b);
        (g, x, a, b)
    }

    #[test]
    fn a_value_read_twice_by_one_operator_has_two_uses() {
        let (g, _, a, b) = chain();
        let add = g.producer(b).unwrap().0;
        assert_eq!(g.consumers(a), [(add, Slot::Input(0)), (add, Slot::Input(1))]);
    }

    #[test]
    fn replacing_reads_leaves_the_graph_output_alone() {
        let (mut g, x, a, b) = chain();
        g.add_output(a);
        g.replace_reads(a, x);
        assert_eq!(g.operator(g.producer(b).unwrap().0).inputs(), [Some(x), Some(x)]);
        assert_eq!(g.consumers(a).len(), 1);
    }

    #[test]
    fn dead_operators_and_constants_go_and_inputs_stay() {
        let (mut g, x, a, b) = chain();
        let c = g.add_constant("c", Tensor::from_i64s(&[1], &[1]));
        g.add(Operator::new("Add"), &[a, c], "unused");
        g.replace_reads(a, x);
        g.remove_dead();
        assert_eq!(g.sorted(), [g.producer(b).unwrap().0]);
        assert!(g.initializers().is_empty());
        assert_eq!(g.inputs(), [x]);
    }

    #[test]
    fn another_operator_takes_over_a_value_and_its_readers() {
        let (mut g, x, a, b) = chain();
        let relu = g.producer(a).unwrap().0;
        let new = g.add(Operator::new("Tanh"), &[x], "new");
        let tanh = g.producer(new).unwrap().0;
        g.take_over(a, new);
        assert_eq!(g.producer(a), Some((tanh, 0)));
        assert_eq!(g.consumers(a).len(), 2);
        g.remove_dead();
        assert!(!g.contains(relu) && !g.holds(new) && g.holds(b));
    }

    #[test]
    fn constants_that_are_inputs_too_become_constants_only() {
        let (mut g, x, ..) = chain();
        let c = g.add_constant("c", Tensor::from_i64s(&[1], &[1]));
        g.list_input(c);
        assert!(g.unlist_constants());
        assert_eq!(g.inputs(), [x]);
        assert!(g.constant(c).is_some());
    }

    #[test]
    fn the_order_follows_reads_and_reports_cycles() {
        let (mut g, _, a, b) = chain();
        let (relu, add) = (g.producer(a).unwrap().0, g.producer(b).unwrap().0);
        assert_eq!(g.sorted(), [relu, add]);
        g.set_input(relu, 0, Some(b));
        assert_eq!(g.order(), Err(vec![relu, add]));
    }
}
