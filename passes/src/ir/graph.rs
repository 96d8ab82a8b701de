//! The graph: operators as nodes, values as edges.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use petgraph::Direction::{Incoming, Outgoing};
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;

use super::{Operator, Tensor};
use crate::onnx::schema::ValueInfoProto;

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
enum Vertex {
    Input,
    Initializer,
    Operator(Box<Operator>),
    Output,
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    value: ValueId,
    slot: Slot,
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
#[derive(Clone, Debug, Default)]
pub struct Graph {
    net: StableDiGraph<Vertex, Edge>,
    values: Vec<Value>,
    names: HashMap<String, ValueId>,
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
        let mut n = 1;
        while name.is_empty() || self.names.contains_key(&name) {
            name = format!("{hint}_{n}");
            n += 1;
        }
        self.declare(&name)
    }

    /// The value called `name`.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
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

    // ---- operators

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
    /// The operators on or behind a cycle.
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

    // ---- building

    pub(crate) fn set_source(&mut self, value: ValueId, kind: SourceKind) {
        let vertex = match kind {
            SourceKind::Input => Vertex::Input,
            SourceKind::Initializer => Vertex::Initializer,
        };
        self.values[value.0].source = Some(self.net.add_node(vertex));
    }

    pub(crate) fn list_input(&mut self, value: ValueId) {
        self.inputs.push(value);
    }

    /// Makes `value` the graph's next output.
    pub fn add_output(&mut self, value: ValueId) {
        let node = self.net.add_node(Vertex::Output);
        self.outputs.push(value);
        self.connect(value, node, Slot::Output);
    }

    /// A new graph input.
    ///
    /// # Panics
    /// If the name is taken.
    pub fn add_input(&mut self, info: ValueInfoProto) -> ValueId {
        let value = self.declare(info.name.as_deref().unwrap_or_default());
        assert!(!self.has_source(value), "the input's name is free");
        self.set_source(value, SourceKind::Input);
        self.values[value.0].info = Some(info);
        self.inputs.push(value);
        value
    }

    /// A new initializer with a name that starts with `hint`.
    pub fn add_constant(&mut self, hint: &str, tensor: Tensor) -> ValueId {
        let value = self.declare_fresh(hint);
        self.set_source(value, SourceKind::Initializer);
        let tensor = tensor.named(&self.values[value.0].name);
        self.values[value.0].constant = Some(tensor);
        value
    }

    /// Adds an operator whose inputs and outputs are filled in; call only once all of them are declared.
    pub(crate) fn insert(&mut self, operator: Operator) -> NodeId {
        let inputs = operator.inputs.clone();
        let captures = operator.captures.clone();
        let outputs = operator.outputs.clone();
        let node = self.net.add_node(Vertex::Operator(Box::new(operator)));
        for value in outputs.into_iter().flatten() {
            self.values[value.0].source = Some(node);
        }
        for (slot, value) in inputs.into_iter().enumerate() {
            if let Some(value) = value {
                self.connect(value, node, Slot::Input(slot));
            }
        }
        for value in captures {
            self.connect(value, node, Slot::Capture);
        }
        node
    }

    /// Adds an operator that reads `inputs` and makes one new value, whose name starts with `hint`.
    pub fn add(&mut self, operator: Operator, inputs: &[ValueId], hint: &str) -> ValueId {
        self.add_all(operator, inputs, &[hint])[0]
    }

    /// Adds an operator with as many new outputs as there are `hints`.
    pub fn add_all(&mut self, mut operator: Operator, inputs: &[ValueId], hints: &[&str]) -> Vec<ValueId> {
        let outputs: Vec<_> = hints.iter().map(|hint| self.declare_fresh(hint)).collect();
        operator.inputs = inputs.iter().copied().map(Some).collect();
        operator.outputs = outputs.iter().copied().map(Some).collect();
        if operator.name.is_empty() {
            operator.name = self.name(outputs[0]).to_string();
        }
        self.insert(operator);
        outputs
    }

    /// The value at output `slot` of an operator, made now if the operator left it out.
    pub fn require_output(&mut self, node: NodeId, slot: usize) -> ValueId {
        if let Some(value) = self.operator(node).output(slot) {
            return value;
        }
        let hint = format!("{}_{slot}", self.operator(node).name);
        let value = self.declare_fresh(&hint);
        self.values[value.0].source = Some(node);
        let outputs = &mut self.operator_mut(node).outputs;
        outputs.resize(outputs.len().max(slot + 1), None);
        outputs[slot] = Some(value);
        value
    }

    fn connect(&mut self, value: ValueId, reader: NodeId, slot: Slot) {
        if let Some(source) = self.values[value.0].source {
            self.net.add_edge(source, reader, Edge { value, slot });
        }
    }

    /// Joins readers to sources that were declared after them; for the importer.
    pub(crate) fn connect_all(&mut self) {
        self.net.clear_edges();
        let nodes: Vec<_> = self.net.node_indices().collect();
        let outputs = self.outputs.clone();
        let mut outputs = outputs.into_iter();
        for node in nodes {
            match &self.net[node] {
                Vertex::Operator(operator) => {
                    let inputs = operator.inputs.clone();
                    let captures = operator.captures.clone();
                    for (slot, value) in inputs.into_iter().enumerate() {
                        if let Some(value) = value {
                            self.connect(value, node, Slot::Input(slot));
                        }
                    }
                    for value in captures {
                        self.connect(value, node, Slot::Capture);
                    }
                }
                Vertex::Output => {
                    if let Some(value) = outputs.next() {
                        self.connect(value, node, Slot::Output);
                    }
                }
                Vertex::Input | Vertex::Initializer => {}
            }
        }
    }

    // ---- editing

    /// Makes an operator read `value` at input `slot`.
    pub fn set_input(&mut self, node: NodeId, slot: usize, value: Option<ValueId>) {
        let edge = self.net.edges_directed(node, Incoming).find(|e| e.weight().slot == Slot::Input(slot));
        if let Some(edge) = edge.map(|e| e.id()) {
            self.net.remove_edge(edge);
        }
        let inputs = &mut self.operator_mut(node).inputs;
        inputs.resize(inputs.len().max(slot + 1), None);
        inputs[slot] = value;
        if let Some(value) = value {
            self.connect(value, node, Slot::Input(slot));
        }
    }

    /// Makes every operator that reads `old` read `new` instead; outputs and subgraphs keep `old`.
    pub fn replace_reads(&mut self, old: ValueId, new: ValueId) {
        for (node, slot) in self.consumers(old) {
            if let Slot::Input(slot) = slot {
                self.set_input(node, slot, Some(new));
            }
        }
    }

    /// Makes an inner value an input of the graph: what made it no longer does.
    pub fn make_input(&mut self, info: ValueInfoProto) -> ValueId {
        let value = self.declare(info.name.as_deref().unwrap_or_default());
        let readers = self.consumers(value);
        if let Some((node, slot)) = self.producer(value) {
            let edges: Vec<_> =
                self.net.edges_directed(node, Outgoing).filter(|e| e.weight().value == value).map(|e| e.id()).collect();
            for edge in edges {
                self.net.remove_edge(edge);
            }
            self.operator_mut(node).outputs[slot] = None;
        }
        self.values[value.0].source = Some(self.net.add_node(Vertex::Input));
        self.values[value.0].info = Some(info);
        self.inputs.push(value);
        for (node, slot) in readers {
            self.connect(value, node, slot);
        }
        value
    }

    /// Makes `outputs` the only outputs.
    pub fn set_outputs(&mut self, outputs: &[ValueId]) {
        self.net.retain_nodes(|net, node| !matches!(net[node], Vertex::Output));
        self.outputs.clear();
        outputs.iter().for_each(|&value| self.add_output(value));
    }

    /// Drops the inputs that nothing reads.
    pub fn remove_unread_inputs(&mut self) {
        let inputs = std::mem::take(&mut self.inputs);
        self.inputs = inputs.into_iter().filter(|&v| !self.consumers(v).is_empty()).collect();
    }

    /// Removes operators and initializers that no output depends on. Inputs stay.
    pub fn remove_dead(&mut self) {
        let mut alive: HashSet<NodeId> = HashSet::new();
        let is_end = |v: &Vertex| matches!(v, Vertex::Output | Vertex::Input);
        let mut stack: Vec<_> = self.net.node_indices().filter(|&n| is_end(&self.net[n])).collect();
        stack.extend(self.inputs.iter().filter_map(|v| self.values[v.0].source));
        while let Some(node) = stack.pop() {
            if alive.insert(node) {
                stack.extend(self.net.neighbors_directed(node, Incoming));
            }
        }
        self.net.retain_nodes(|_, node| alive.contains(&node));
        for value in &mut self.values {
            if value.source.is_some_and(|n| !alive.contains(&n)) {
                value.source = None;
                value.constant = None;
            }
        }
    }

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
    fn the_order_follows_reads_and_reports_cycles() {
        let (mut g, _, a, b) = chain();
        let (relu, add) = (g.producer(a).unwrap().0, g.producer(b).unwrap().0);
        assert_eq!(g.sorted(), [relu, add]);
        g.set_input(relu, 0, Some(b));
        assert_eq!(g.order(), Err(vec![relu, add]));
    }
}
