//! What is refused before any work.

use std::path::Path;

use kprune_passes::finite;
use kprune_passes::ir::{ElementType, Graph, Model, NodeId};
use kprune_passes::limits;

use crate::error::Error;
use crate::runtime;

/// Refuses what cannot be pruned, before any work.
pub(super) fn check(model: &Model, path: &Path) -> Result<(), Error> {
    let refuse = |reason: String, help: &str| {
        Err(Error::Unsupported { path: path.to_path_buf(), reason, help: help.to_string() })
    };
    let opset = model.opset("").unwrap_or(0);
    if opset < OLDEST_OPSET {
        let reason = format!(
            "the model uses version {opset} of the standard operators, and {OLDEST_OPSET} is the oldest supported"
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
    let is_quantised = |n: &NodeId| QUANTISED.contains(&graph.operator(*n).op_type.as_str());
    if let Some(node) = graph.sorted().into_iter().find(is_quantised) {
        let reason = format!("the model is quantised ({})", graph.label(node));
        return refuse(reason, "prune the model before it is quantised");
    }
    Ok(())
}

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

/// The oldest version of the standard operators whose meaning for inference is that of later ones.
const OLDEST_OPSET: i64 = 13;

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
