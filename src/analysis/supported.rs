//! What is refused before any work.

use std::path::Path;

use kprune_passes::finite;
use kprune_passes::ir::{ElementType, Graph, Model, NodeId, ValueId};
use kprune_passes::kv_cache;
use kprune_passes::limits;
use kprune_passes::simplify::upgrade;

use crate::error::Error;
use crate::runtime;

/// Refuses what cannot be pruned, before any work.
pub(super) fn check(model: &Model, path: &Path) -> Result<(), Error> {
    let refuse = |reason: String, help: &str| {
        Err(Error::Unsupported { path: path.to_path_buf(), reason, help: help.to_string() })
    };
    let opset = model.opset("").unwrap_or(0);
    if opset < upgrade::OLDEST {
        let reason = format!(
            "the model uses version {opset} of the standard operators, and {} is the oldest supported",
            upgrade::OLDEST
        );
        return refuse(reason, "convert it with onnx.version_converter, or export it with opset_version=17");
    }
    let graph = &model.graph;
    if let Some((name, odd)) = finite::odd_weight(graph) {
        return Err(Error::NotFinite {
            place: path.display().to_string(),
            what: format!("element {} of the weight {name:?}", odd.place),
            value: odd.value,
            help: "export the model again: this one computes nothing that could be measured".into(),
        });
    }
    if let Some((node, why)) = limits::excessive(graph) {
        return refuse(format!("{} cannot be run: {why}", graph.label(node)), "repair the model, or export it again");
    }
    if let Some(name) = reserved(graph) {
        let help = "rename it, for example with onnx.helper; names that begin so are those of this program";
        return refuse(format!("the model has a value called {name:?}"), help);
    }
    if let Some((name, element)) = unknown_type(graph) {
        return refuse(
            format!("the constant {name:?} is of type {element}, which runtimes do not know"),
            "store it as float32 or float16",
        );
    }
    if let Some(node) = merged(graph) {
        let reason =
            format!("{node} chooses between a graph of the first run and one of later runs, with all weights in both");
        let help = "export decoder and decoder_with_past apart (optimum-cli export onnx --no-post-process), and prune the latter";
        return refuse(reason, help);
    }
    if let Some(what) = quantised(graph) {
        return refuse(format!("the model is quantised ({what})"), "prune the model before it is quantised");
    }
    Ok(())
}

/// Refuses a model of operators that ONNX Runtime has no kernels for unless somebody registers some.
pub(super) fn check_domains(model: &Model, path: &Path) -> Result<(), Error> {
    let graph = &model.graph;
    let nodes = graph.sorted();
    if let Some(&node) = nodes.iter().find(|&&n| graph.operator(n).is("ATen")) {
        return Err(Error::Unsupported {
            path: path.to_path_buf(),
            reason: format!("{} stands for what PyTorch could not export, and no runtime knows it", graph.label(node)),
            help: "export the model for a later operator set (opset_version), or with a later PyTorch".into(),
        });
    }
    let custom = nodes.iter().map(|&n| graph.operator(n)).filter(|o| !DOMAINS.iter().any(|d| is_of(&o.domain, d)));
    let mut types: Vec<String> = custom.map(|o| format!("{}:{}", o.domain, o.op_type)).collect();
    types.sort_unstable();
    types.dedup();
    if types.is_empty() {
        return Ok(());
    }
    Err(Error::Unsupported {
        path: path.to_path_buf(),
        reason: format!(
            "the model has operators that ONNX Runtime knows only with an extension that registers them: {}",
            types.join(", ")
        ),
        help: "export the model without them: tokenizers and other processing of inputs and outputs stay outside"
            .into(),
    })
}

/// Domains of operators that ONNX Runtime has kernels for, with all that begin so.
const DOMAINS: [&str; 4] = ["ai.onnx", "com.microsoft", "com.ms.internal", "org.pytorch.aten"];

/// Domains that begin as one of ONNX Runtime's own, and are not.
const EXTENSIONS: [&str; 2] = ["ai.onnx.contrib", "com.microsoft.extensions"];

fn is_of(domain: &str, known: &str) -> bool {
    let is_within = |d: &str| domain == d || domain.strip_prefix(d).is_some_and(|rest| rest.starts_with('.'));
    domain.is_empty() || is_within(known) && !EXTENSIONS.iter().any(|d| is_within(d))
}

/// The operator that runs one of two decoders, where a model is both: its caches come out of it.
fn merged(graph: &Graph) -> Option<String> {
    let presents = kv_cache::caches(graph).into_iter().map(|cache| cache.present);
    let makers = presents.filter_map(|value| graph.producer(value)).map(|(node, _)| node);
    makers.into_iter().find(|&node| graph.operator(node).is("If")).map(|node| graph.label(node))
}

/// What shows that a model is quantised, in words: an operator, or a weight of few bits that is made larger at run time.
fn quantised(graph: &Graph) -> Option<String> {
    let nodes = graph.sorted();
    let is_quantised = |n: &&NodeId| QUANTISED.contains(&graph.operator(**n).op_type.as_str());
    if let Some(&node) = nodes.iter().find(is_quantised) {
        return Some(graph.label(node));
    }
    let products = nodes.iter().filter(|&&n| graph.operator(n).contracts());
    let weights = products.filter_map(|&n| few_bits(graph, graph.operator(n).input(1)?, MOST_STEPS));
    weights.map(|(name, element)| format!("the weight {name:?} is of type {element}")).next()
}

/// The constant of few bits that a value is computed from, if it is computed from constants alone.
fn few_bits(graph: &Graph, value: ValueId, steps: usize) -> Option<(String, ElementType)> {
    if let Some(tensor) = graph.constant(value) {
        let is_small = !tensor.element().is_float() && (1..=8).contains(&tensor.element().bits());
        let is_weight = tensor.dims().len() > 1 && tensor.element() != ElementType::Bool;
        return (is_small && is_weight).then(|| (graph.name(value).to_string(), tensor.element()));
    }
    let operator = graph.operator(graph.producer(value)?.0);
    let enlarges = matches!(operator.op_type.as_str(), "Cast" | "Mul" | "Sub" | "Transpose" | "Reshape");
    let inputs = operator.inputs().iter().flatten().filter(|_| enlarges && steps > 0);
    inputs.filter_map(|&input| few_bits(graph, input, steps - 1)).next()
}

/// No more operators than these enlarge a weight.
const MOST_STEPS: usize = 6;

/// A value whose name is one of those that measuring gives to its own.
fn reserved(graph: &Graph) -> Option<String> {
    graph.names().find(|name| name.starts_with(RESERVED)).map(str::to_string)
}

/// What the names of measuring's own inputs begin with.
const RESERVED: &str = "kprune_";

/// A constant of a type that ONNX Runtime has no number for.
fn unknown_type(graph: &Graph) -> Option<(String, ElementType)> {
    let constants = graph.constants().into_iter().filter_map(|v| Some((v, graph.constant(v)?.element())));
    let unknown = constants.into_iter().find(|(_, element)| !runtime::knows(*element));
    unknown.map(|(value, element)| (graph.name(value).to_string(), element))
}

/// Operators of quantised graphs.
const QUANTISED: &[&str] = &[
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "GatherBlockQuantized",
    "MatMulBnb4",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QAttention",
    "QGemm",
    "QLinearAdd",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
];

#[cfg(test)]
mod tests {
    use kprune_passes::ir::{Operator, Tensor};
    use kprune_passes::signature::declare;
    use ndarray::{ArrayD, IxDyn};

    use super::*;

    #[test]
    fn two_decoders_in_one_are_told_apart_from_one() {
        let decoder = |maker: &str| {
            let mut graph = Graph::new();
            let past = graph.add_input(declare("past_key_values.0.key", ElementType::F32, 4));
            let present = graph.add(Operator::new(maker), &[past], "present.0.key");
            graph.set_info(present, Some(declare("present.0.key", ElementType::F32, 4)));
            graph.add_output(present);
            merged(&graph)
        };
        assert!(decoder("If").is_some_and(|label| label.contains("If")));
        assert_eq!(decoder("Identity"), None);
    }

    fn of_domain(domain: &str) -> Result<(), Error> {
        let mut graph = Graph::new();
        let x = graph.add_input(declare("x", ElementType::F32, 2));
        let y = graph.add(Operator::new("Made").of(domain), &[x], "y");
        graph.add_output(y);
        check_domains(&Model::new(graph, 17), Path::new("a.onnx"))
    }

    #[test]
    fn operators_of_extensions_are_refused_in_plain_words() {
        for known in ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"] {
            assert!(of_domain(known).is_ok(), "{known}");
        }
        for custom in ["ai.onnx.contrib", "ai.onnxother", "com.microsoft.extensions", "mine"] {
            let refused = of_domain(custom).unwrap_err().to_string();
            assert!(refused.contains(&format!("{custom}:Made")), "{refused}");
        }
    }

    /// A product with a weight that is computed from a constant.
    fn product(weight: Tensor, steps: &[&str]) -> Graph {
        let mut graph = Graph::new();
        let x = graph.add_input(declare("x", ElementType::F32, 2));
        let mut value = graph.add_constant("w", weight);
        for step in steps {
            value = graph.add(Operator::new(step), &[value], "made");
        }
        let y = graph.add(Operator::new("MatMul"), &[x, value], "y");
        graph.add_output(y);
        graph
    }

    #[test]
    fn weights_of_few_bits_behind_casts_are_quantised_and_others_are_not() {
        let eight = || Tensor::from_raw("", ElementType::I8, &[2, 2], vec![1, 2, 3, 4].into()).unwrap();
        let single = || Tensor::from_floats(ElementType::F32, &ArrayD::ones(IxDyn(&[2, 2]))).unwrap();
        let found = quantised(&product(eight(), &["Cast", "Mul"])).unwrap();
        assert!(found.contains("\"w\"") && found.contains("int8"), "{found}");
        assert_eq!(quantised(&product(single(), &["Cast", "Mul"])), None);
        assert_eq!(quantised(&product(eight(), &["Gather"])), None, "indices are no weights");
    }
}
