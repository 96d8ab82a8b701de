//! How a graph grows and changes.

use std::collections::HashSet;

use petgraph::Direction::{Incoming, Outgoing};
use petgraph::visit::EdgeRef;

use super::{Edge, Graph, NodeId, Slot, SourceKind, ValueId, Vertex};
use crate::ir::schema::ValueInfoProto;
use crate::ir::{Operator, Tensor};

impl Graph {
    // ---- growing

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

    /// Adds a copy of an operator that reads what `instead` gives for its inputs; returns the new values, one
    /// for every output that the operator has.
    pub fn add_copy(&mut self, node: NodeId, instead: impl Fn(ValueId) -> ValueId) -> Vec<ValueId> {
        let mut operator = self.operator(node).clone();
        let made = operator.outputs.iter().flatten().map(|&old| format!("{}_again", self.name(old)));
        let made: Vec<_> = made.collect::<Vec<_>>().iter().map(|hint| self.declare_fresh(hint)).collect();
        let mut fresh = made.iter().copied();
        operator.outputs.iter_mut().flatten().for_each(|old| *old = fresh.next().unwrap_or(*old));
        operator.inputs.iter_mut().flatten().for_each(|v| *v = instead(*v));
        operator.name.clear();
        self.insert(operator);
        made
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
                Vertex::Input | Vertex::Initializer | Vertex::Gone => {}
            }
        }
    }

    // ---- changing

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
        self.redirect(self.consumers(old), new);
    }

    /// Inserts an operator downstream of a value: it reads the value and `other`, and whoever else read the value
    /// reads its result. Outputs and subgraphs keep the value.
    pub fn add_behind(&mut self, value: ValueId, operator: Operator, other: ValueId, hint: &str) -> ValueId {
        let readers = self.consumers(value);
        let result = self.add(operator, &[value, other], hint);
        self.redirect(readers, result);
        result
    }

    /// Makes the operator that makes `new` make `old` instead: the value that others know stays, and
    /// another operator makes it.
    pub fn take_over(&mut self, old: ValueId, new: ValueId) {
        let Some((maker, slot)) = self.producer(new) else { return };
        let (old_readers, new_readers) = (self.consumers(old), self.consumers(new));
        if let Some((node, slot)) = self.producer(old) {
            self.net.retain_edges(|net, edge| net[edge].value != old);
            self.operator_mut(node).outputs[slot] = None;
        }
        self.values[old.0].source = Some(maker);
        self.operator_mut(maker).outputs[slot] = Some(old);
        self.redirect(new_readers, old);
        old_readers.into_iter().for_each(|(reader, slot)| self.connect(old, reader, slot));
        self.values[new.0].source = None;
    }

    fn redirect(&mut self, readers: Vec<(NodeId, Slot)>, value: ValueId) {
        for (node, slot) in readers {
            if let Slot::Input(slot) = slot {
                self.set_input(node, slot, Some(value));
            }
        }
    }

    /// Makes an inner value or a constant an input of the graph: what made it no longer does.
    pub fn make_input(&mut self, info: ValueInfoProto) -> ValueId {
        let value = self.declare(info.name.as_deref().unwrap_or_default());
        let readers = self.consumers(value);
        if self.values[value.0].constant.take().is_some() && self.producer(value).is_none() {
            let held = self.source(value);
            self.bury(|node, _| Some(node) == held);
        }
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
        self.bury(|_, vertex| matches!(vertex, Vertex::Output));
        self.outputs.clear();
        outputs.iter().for_each(|&value| self.add_output(value));
    }

    /// Takes nodes out of the graph. Their places stay empty, so that no id is ever another node's.
    fn bury(&mut self, goes: impl Fn(NodeId, &Vertex) -> bool) {
        let gone: HashSet<NodeId> = self.net.node_indices().filter(|&n| goes(n, &self.net[n])).collect();
        self.net.retain_edges(|net, edge| {
            let ends = net.edge_endpoints(edge);
            ends.is_none_or(|(from, to)| !gone.contains(&from) && !gone.contains(&to))
        });
        gone.into_iter().for_each(|node| self.net[node] = Vertex::Gone);
    }

    /// Drops the inputs that nothing reads.
    pub fn remove_unread_inputs(&mut self) {
        let inputs = std::mem::take(&mut self.inputs);
        self.inputs = inputs.into_iter().filter(|&v| !self.consumers(v).is_empty()).collect();
    }

    /// Makes initializers that are listed as inputs too initializers only; returns whether there were any.
    pub fn unlist_constants(&mut self) -> bool {
        let inputs = std::mem::take(&mut self.inputs);
        let listed = inputs.len();
        self.inputs = inputs.into_iter().filter(|&v| self.constant(v).is_none()).collect();
        self.inputs.len() < listed
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
        self.bury(|node, _| !alive.contains(&node));
        for value in &mut self.values {
            if value.source.is_some_and(|n| !alive.contains(&n)) {
                value.source = None;
                value.constant = None;
            }
        }
    }
}
