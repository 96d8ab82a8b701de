//! Functions that a model defines, put in the place of their calls.
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![warn(clippy::arithmetic_side_effects)]

use std::collections::{HashMap, HashSet};

use super::ReadError;
use crate::ir::schema::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};

/// Operators that calls may become, all together: functions that call each other twice would be as many as there
/// are atoms otherwise.
const MOST: usize = 500_000;

type Key = (String, String, String);

/// Replaces every call of a function of the model by the function's operators.
///
/// # Errors
/// Where a function calls itself, by way of others or not, or the calls become too many operators.
pub(super) fn inline_functions(model: &mut ModelProto) -> Result<(), ReadError> {
    let Some(graph) = model.graph.as_mut().filter(|_| !model.functions.is_empty()) else { return Ok(()) };
    let functions = std::mem::take(&mut model.functions);
    let mut imports: Vec<OperatorSetIdProto> = functions.iter().flat_map(|f| f.opset_import.clone()).collect();
    let key = |f: &FunctionProto| key(f.domain.as_deref(), f.name.as_deref(), f.overload.as_deref());
    let functions: HashMap<Key, FunctionProto> = functions.into_iter().map(|f| (key(&f), f)).collect();
    let mut inliner = Inliner { functions: &functions, taken: names(graph), calls: Vec::new(), made: 0, count: 0 };
    inliner.graph(graph)?;
    let known = |import: &OperatorSetIdProto, of: &[OperatorSetIdProto]| {
        of.iter().any(|o| o.domain.as_deref().unwrap_or("") == import.domain.as_deref().unwrap_or(""))
    };
    imports.retain(|import| !known(import, &model.opset_import));
    for import in imports {
        if !known(&import, &model.opset_import) {
            model.opset_import.push(import);
        }
    }
    Ok(())
}

fn key(domain: Option<&str>, name: Option<&str>, overload: Option<&str>) -> Key {
    let text = |t: Option<&str>| t.unwrap_or("").to_string();
    (text(domain), text(name), text(overload))
}

fn names(graph: &GraphProto) -> HashSet<String> {
    let mut names: HashSet<String> = graph.node.iter().flat_map(|n| n.output.iter().cloned()).collect();
    names.extend(graph.input.iter().map(|i| i.name().to_string()));
    names.extend(graph.initializer.iter().map(|t| t.name().to_string()));
    names
}

struct Inliner<'a> {
    functions: &'a HashMap<Key, FunctionProto>,
    taken: HashSet<String>,
    /// The functions whose bodies are being put in place, the outermost first.
    calls: Vec<Key>,
    /// Operators that calls have become.
    made: usize,
    count: usize,
}

impl Inliner<'_> {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), ReadError> {
        graph.node = self.nodes(std::mem::take(&mut graph.node))?;
        Ok(())
    }

    fn nodes(&mut self, nodes: Vec<NodeProto>) -> Result<Vec<NodeProto>, ReadError> {
        let mut out = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            for attribute in &mut node.attribute {
                attribute.g.iter_mut().chain(&mut attribute.graphs).try_for_each(|g| self.graph(g))?;
            }
            let called = key(node.domain.as_deref(), node.op_type.as_deref(), node.overload.as_deref());
            let Some(function) = self.functions.get(&called) else {
                out.push(node);
                continue;
            };
            if self.calls.contains(&called) {
                return Err(ReadError::Recursive(called.1));
            }
            self.made = self.made.saturating_add(function.node.len().max(1));
            if self.made > MOST {
                return Err(ReadError::TooManyCalls { function: called.1, most: MOST });
            }
            let body = self.body(&node, function);
            self.calls.push(called);
            out.extend(self.nodes(body)?);
            self.calls.pop();
        }
        Ok(out)
    }

    /// The operators of a function with the names and attributes of one call.
    fn body(&mut self, call: &NodeProto, function: &FunctionProto) -> Vec<NodeProto> {
        let mut renamed: HashMap<String, String> = HashMap::new();
        for (i, formal) in function.input.iter().enumerate() {
            renamed.insert(formal.clone(), call.input.get(i).cloned().unwrap_or_default());
        }
        for (formal, actual) in function.output.iter().zip(&call.output).filter(|(_, actual)| !actual.is_empty()) {
            renamed.insert(formal.clone(), actual.clone());
        }
        for name in function.node.iter().flat_map(|n| &n.output).filter(|n| !n.is_empty()) {
            if !renamed.contains_key(name) {
                let fresh = self.fresh(call, name);
                renamed.insert(name.clone(), fresh);
            }
        }
        let mut nodes = function.node.clone();
        // An output that is an input passed through needs an operator of its own.
        for (formal, actual) in function.output.iter().zip(&call.output) {
            if function.input.contains(formal) && !actual.is_empty() {
                nodes.push(NodeProto {
                    op_type: Some("Identity".into()),
                    input: vec![formal.clone()],
                    output: vec![actual.clone()],
                    ..NodeProto::default()
                });
            }
        }
        for node in &mut nodes {
            if let Some(name) = node.name.as_mut().filter(|n| !n.is_empty()) {
                *name = format!("{}/{name}", call.name.as_deref().unwrap_or_default());
            }
            rename_node(node, &renamed);
            fill_attributes(node, call, function);
        }
        nodes
    }

    fn fresh(&mut self, call: &NodeProto, name: &str) -> String {
        let base = call.output.first().map_or("", String::as_str);
        loop {
            self.count = self.count.wrapping_add(1);
            let fresh = format!("{base}/{name}_{}", self.count);
            if self.taken.insert(fresh.clone()) {
                return fresh;
            }
        }
    }
}

fn rename_node(node: &mut NodeProto, renamed: &HashMap<String, String>) {
    for name in node.input.iter_mut().chain(&mut node.output) {
        if let Some(new) = renamed.get(name) {
            *name = new.clone();
        }
    }
    let graphs = node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs));
    graphs.flat_map(|g| &mut g.node).for_each(|inner| rename_node(inner, renamed));
}

/// Puts the call's attributes, or the function's own defaults, where the function refers to them.
fn fill_attributes(node: &mut NodeProto, call: &NodeProto, function: &FunctionProto) {
    let given = |name: &str| {
        let named = |a: &&AttributeProto| a.name.as_deref() == Some(name);
        call.attribute.iter().find(named).or_else(|| function.attribute_proto.iter().find(named))
    };
    let mut filled = Vec::new();
    for mut attribute in std::mem::take(&mut node.attribute) {
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            graph.node.iter_mut().for_each(|inner| fill_attributes(inner, call, function));
        }
        match attribute.ref_attr_name.as_deref().filter(|n| !n.is_empty()) {
            None => filled.push(attribute),
            Some(reference) => filled
                .extend(given(reference).map(|value| AttributeProto { name: attribute.name.clone(), ..value.clone() })),
        }
    }
    node.attribute = filled;
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn node(op: &str, domain: &str, input: &[&str], output: &[&str]) -> NodeProto {
        let list = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        NodeProto {
            op_type: Some(op.into()),
            domain: Some(domain.into()),
            input: list(input),
            output: list(output),
            ..NodeProto::default()
        }
    }

    fn function(name: &str, input: &[&str], output: &[&str], nodes: Vec<NodeProto>) -> FunctionProto {
        let list = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        FunctionProto {
            name: Some(name.into()),
            domain: Some("own".into()),
            input: list(input),
            output: list(output),
            node: nodes,
            ..FunctionProto::default()
        }
    }

    fn inlined(functions: Vec<FunctionProto>, nodes: Vec<NodeProto>) -> Vec<NodeProto> {
        let graph = GraphProto { node: nodes, ..GraphProto::default() };
        let mut model = ModelProto { graph: Some(graph), functions, ..ModelProto::default() };
        inline_functions(&mut model).unwrap();
        assert!(model.functions.is_empty());
        model.graph.unwrap().node
    }

    #[test]
    fn calls_within_calls_become_operators_with_names_of_their_own() {
        let inner = function("Twice", &["a"], &["b"], vec![node("Add", "", &["a", "a"], &["b"])]);
        let body = vec![node("Twice", "own", &["p"], &["t"]), node("Relu", "", &["t"], &["q"])];
        let outer = function("Outer", &["p"], &["q"], body);
        let calls = vec![node("Outer", "own", &["x"], &["y"]), node("Outer", "own", &["y"], &["z"])];
        let nodes = inlined(vec![inner, outer], calls);
        let types: Vec<_> = nodes.iter().map(|n| n.op_type.as_deref().unwrap()).collect();
        assert_eq!(types, ["Add", "Relu", "Add", "Relu"]);
        assert_eq!(nodes[0].input, ["x", "x"]);
        assert_eq!(nodes[1].output, ["y"]);
        assert_eq!(nodes[3].output, ["z"]);
        assert_ne!(nodes[0].output, nodes[2].output);
    }

    #[test]
    fn attributes_come_from_the_call_or_are_left_out() {
        let mut soft = node("Softmax", "", &["a"], &["b"]);
        soft.attribute = vec![AttributeProto {
            name: Some("axis".into()),
            ref_attr_name: Some("along".into()),
            ..AttributeProto::default()
        }];
        let own = function("Soft", &["a"], &["b"], vec![soft]);
        let mut call = node("Soft", "own", &["x"], &["y"]);
        assert!(inlined(vec![own.clone()], vec![call.clone()])[0].attribute.is_empty());
        call.attribute = vec![crate::ir::attribute::int("along", 2)];
        let nodes = inlined(vec![own], vec![call]);
        assert_eq!((nodes[0].attribute[0].name(), nodes[0].attribute[0].i), ("axis", Some(2)));
    }

    #[test]
    fn functions_that_call_themselves_or_explode_are_refused() {
        let refused = |functions: Vec<FunctionProto>| {
            let graph = GraphProto { node: vec![node("F0", "own", &["x"], &["y"])], ..GraphProto::default() };
            let mut model = ModelProto { graph: Some(graph), functions, ..ModelProto::default() };
            inline_functions(&mut model).unwrap_err()
        };
        let calls = |name: &str, called: &str| {
            let twice = vec![node(called, "own", &["a"], &["t"]), node(called, "own", &["t"], &["b"])];
            function(name, &["a"], &["b"], twice)
        };
        let circle = refused(vec![calls("F0", "F1"), calls("F1", "F0")]);
        assert!(matches!(circle, ReadError::Recursive(_)), "{circle}");
        let mut tower: Vec<_> = (0..40).map(|i| calls(&format!("F{i}"), &format!("F{}", i + 1))).collect();
        tower.push(function("F40", &["a"], &["b"], vec![node("Relu", "", &["a"], &["b"])]));
        assert!(matches!(refused(tower), ReadError::TooManyCalls { .. }));
    }

    #[test]
    fn operators_that_no_function_defines_stay() {
        let other = function("Soft", &["a"], &["b"], Vec::new());
        let nodes = inlined(vec![other], vec![node("Soft", "another", &["x"], &["y"])]);
        assert_eq!(nodes[0].domain.as_deref(), Some("another"));
    }
}
