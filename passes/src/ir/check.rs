//! The invariants of a graph, tested after every pass in debug builds and in tests.

use std::collections::HashMap;

use petgraph::Direction::Incoming;
use petgraph::visit::EdgeRef;

use super::graph::{Edge, Graph, Slot, ValueId, Vertex};
use super::{NodeId, Operator};

impl Graph {
    /// Whether the graph is what all passes take it for:
    ///
    /// - every value has a name of its own, and is found by it;
    /// - what is read is made by an operator, given or constant, unless nobody says what it is;
    /// - an operator is the source of what it lists as outputs, and of nothing else;
    /// - there is one edge for every input, capture and output that has a source, and no other;
    /// - inputs and outputs are there as often as they are listed;
    /// - nothing waits for itself.
    ///
    /// # Errors
    /// What is broken, in words.
    pub fn check(&self) -> Result<(), String> {
        self.check_names()?;
        for value in self.values() {
            self.check_source(value)?;
        }
        for node in self.net.node_indices() {
            self.check_edges(node)?;
        }
        let listed = self.net.node_weights().filter(|v| matches!(v, Vertex::Output)).count();
        if listed != self.outputs().len() {
            return Err(format!("it lists {} outputs and holds {listed}", self.outputs().len()));
        }
        if let Some(&lost) = self.inputs().iter().find(|&&v| !self.has_source(v)) {
            return Err(format!("its input {:?} is not given by anything", self.name(lost)));
        }
        match self.order() {
            Ok(_) => Ok(()),
            Err(stuck) => Err(format!("{} waits for itself", self.label(stuck[0]))),
        }
    }

    /// [`Graph::check`] after a pass, in debug builds and in tests.
    ///
    /// # Panics
    /// If the graph is broken.
    pub(crate) fn checked(&self, pass: &str) {
        if cfg!(any(debug_assertions, test))
            && let Err(broken) = self.check()
        {
            panic!("{pass} left a broken graph: {broken}");
        }
    }

    /// Whether all values that both graphs hold are called the same in both: what one pass found in one of them can be
    /// looked up in the other only then.
    pub fn shares_ids_with(&self, other: &Graph) -> bool {
        let held = self.values().filter(|&v| self.has_source(v) && other.holds(v));
        held.into_iter().all(|v| self.name(v) == other.name(v))
    }

    fn check_names(&self) -> Result<(), String> {
        match self.values().find(|&v| self.find(self.name(v)) != Some(v)) {
            Some(lost) => Err(format!("the value {:?} is not found by its name", self.name(lost))),
            None => Ok(()),
        }
    }

    fn check_source(&self, value: ValueId) -> Result<(), String> {
        let name = self.name(value);
        let makers = |operator: &Operator| operator.outputs().iter().filter(|&&o| o == Some(value)).count();
        match self.source(value).map(|node| (node, self.net.node_weight(node))) {
            Some((_, None | Some(Vertex::Gone))) => {
                Err(format!("the value {name:?} comes from something that is gone"))
            }
            Some((_, Some(Vertex::Output))) => Err(format!("the value {name:?} comes from an output")),
            Some((node, Some(Vertex::Operator(operator)))) if makers(operator) != 1 => {
                Err(format!("{} makes {name:?} {} times", self.label(node), makers(operator)))
            }
            Some((_, Some(Vertex::Operator(operator))))
                if self.constant(value).is_some() && !operator.is("Constant") =>
            {
                Err(format!("the value {name:?} is computed, and has a constant"))
            }
            None if self.constant(value).is_some() => Err(format!("the constant {name:?} is nowhere")),
            _ => Ok(()),
        }
    }

    /// That a reader's edges are those of the slots that it lists.
    fn check_edges(&self, node: NodeId) -> Result<(), String> {
        let mut missing: HashMap<(ValueId, Slot), usize> = HashMap::new();
        if let Some(Vertex::Operator(operator)) = self.net.node_weight(node) {
            let inputs = operator.inputs().iter().enumerate().filter_map(|(s, v)| Some((Slot::Input(s), (*v)?)));
            let captures = operator.captures().iter().map(|&v| (Slot::Capture, v));
            for (slot, value) in inputs.chain(captures).filter(|&(_, v)| self.has_source(v)) {
                *missing.entry((value, slot)).or_default() += 1;
            }
            if let Some(&stray) = operator.outputs().iter().flatten().find(|&&v| self.source(v) != Some(node)) {
                return Err(format!("{} lists {:?}, which something else makes", self.label(node), self.name(stray)));
            }
        }
        for edge in self.net.edges_directed(node, Incoming) {
            let &Edge { value, slot } = edge.weight();
            let is_of_source = self.source(value) == Some(edge.source());
            let is_output = slot == Slot::Output && self.outputs().contains(&value);
            let left = missing.get_mut(&(value, slot)).filter(|left| **left > 0);
            match left {
                Some(left) if is_of_source => *left -= 1,
                None if is_of_source && is_output => {}
                _ => return Err(format!("an edge of {:?} belongs to nothing", self.name(value))),
            }
        }
        match missing.into_iter().find(|(_, left)| *left > 0) {
            Some(((value, slot), _)) => {
                Err(format!("{} reads {:?} at {slot:?} without an edge", self.label(node), self.name(value)))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::ElementType;
    use crate::signature::declare;

    fn graph() -> (Graph, ValueId, ValueId) {
        let mut graph = Graph::new();
        let x = graph.add_input(declare("x", ElementType::F32, 1));
        let y = graph.add(Operator::new("Relu"), &[x], "y");
        let z = graph.add(Operator::new("Add"), &[y, y], "z");
        graph.add_output(z);
        (graph, y, z)
    }

    #[test]
    fn a_graph_that_was_edited_by_its_own_methods_is_whole() {
        let (mut graph, y, z) = graph();
        assert_eq!(graph.check(), Ok(()));
        let new = graph.add(Operator::new("Tanh"), &[y], "new");
        graph.take_over(z, new);
        graph.remove_dead();
        assert_eq!(graph.check(), Ok(()));
        graph.make_input(declare("y", ElementType::F32, 1));
        graph.remove_unread_inputs();
        graph.remove_dead();
        assert_eq!(graph.check(), Ok(()));
    }

    #[test]
    fn what_is_broken_is_named() {
        let (mut graph, y, z) = graph();
        let add = graph.producer(z).unwrap().0;
        graph.operator_mut(add).outputs = vec![None];
        assert!(graph.check().unwrap_err().contains("makes \"z\" 0 times"));

        let (mut graph, y2, z) = self::graph();
        assert_eq!((y, add), (y2, graph.producer(z).unwrap().0), "ids are those of the order of making");
        graph.operator_mut(add).inputs[0] = None;
        assert!(graph.check().unwrap_err().contains("belongs to nothing"));

        let (mut graph, _, z) = self::graph();
        let relu = graph.producer(y).unwrap().0;
        graph.set_input(relu, 0, Some(z));
        assert!(graph.check().unwrap_err().contains("waits for itself"));
    }

    #[test]
    fn copies_share_ids_and_graphs_of_their_own_do_not() {
        let (graph, ..) = graph();
        let mut copy = graph.clone();
        copy.add(Operator::new("Relu"), &[copy.inputs()[0]], "more");
        assert!(graph.shares_ids_with(&copy) && copy.shares_ids_with(&graph));
        let mut other = Graph::new();
        other.add_input(declare("other", ElementType::F32, 1));
        assert!(!graph.shares_ids_with(&other));
    }
}
