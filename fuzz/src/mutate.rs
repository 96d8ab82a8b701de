//! Models that are wrong in one place or a few.

use kprune_passes::ir::schema::{GraphProto, ModelProto, tensor_shape_proto, type_proto};
use prost::Message;

use crate::Choices;

/// Changes bytes of a file: flips, cuts, repeats.
pub fn bytes(content: &[u8], choices: &mut Choices) -> Vec<u8> {
    let mut content = content.to_vec();
    for _ in 0..1 + choices.below(4) {
        if content.is_empty() {
            break;
        }
        let place = choices.below(content.len());
        match choices.below(5) {
            0 => content[place] ^= 1 << choices.below(8),
            1 => content[place] = choices.below(256) as u8,
            2 => content.truncate(place),
            3 => {
                let end = (place + 1 + choices.below(16)).min(content.len());
                let part = content[place..end].to_vec();
                content.splice(place..place, part);
            }
            _ => {
                let end = (place + 1 + choices.below(16)).min(content.len());
                content.drain(place..end);
            }
        }
    }
    content
}

/// Changes fields of a model, so that it is still a message.
pub fn model(content: &[u8], choices: &mut Choices) -> Vec<u8> {
    let Ok(mut model) = ModelProto::decode(content) else { return bytes(content, choices) };
    for _ in 0..1 + choices.below(3) {
        if let Some(graph) = &mut model.graph {
            field(graph, choices);
        }
    }
    model.encode_to_vec()
}

fn field(graph: &mut GraphProto, choices: &mut Choices) {
    let names: Vec<String> = graph.node.iter().flat_map(|n| n.input.iter().chain(&n.output)).cloned().collect();
    let name = |choices: &mut Choices| match names.is_empty() || choices.once_in(8) {
        true => (*choices.one(&["", "kprune_samples", "x", "nowhere", "\u{1b}[2J"])).to_string(),
        false => choices.one(&names).clone(),
    };
    let nodes = graph.node.len();
    match choices.below(10) {
        0 if nodes > 0 => {
            let node = &mut graph.node[choices.below(nodes)];
            let inputs = node.input.len();
            if inputs > 0 {
                node.input[choices.below(inputs)] = name(choices);
            }
        }
        1 if nodes > 0 => {
            let ops = [
                "Relu",
                "Transpose",
                "Reshape",
                "MatMul",
                "Gemm",
                "Softmax",
                "Tile",
                "Expand",
                "Split",
                "Slice",
                "Gather",
                "Concat",
                "LayerNormalization",
                "Conv",
                "Einsum",
                "Loop",
                "If",
                "Identity",
                "Attention",
            ];
            graph.node[choices.below(nodes)].op_type = Some((*choices.one(&ops)).into());
        }
        2 if nodes > 0 => {
            let node = &mut graph.node[choices.below(nodes)];
            for attribute in &mut node.attribute {
                attribute.i = attribute.i.map(|_| choices.integer());
                attribute.ints.iter_mut().for_each(|i| *i = choices.integer());
            }
        }
        3 if nodes > 0 => {
            graph.node.swap_remove(choices.below(nodes));
        }
        4 if nodes > 0 => {
            let copy = graph.node[choices.below(nodes)].clone();
            graph.node.push(copy);
        }
        5 => graph.output.extend(graph.output.first().cloned()),
        6 if !graph.initializer.is_empty() => {
            let place = choices.below(graph.initializer.len());
            let tensor = &mut graph.initializer[place];
            match choices.below(3) {
                0 => tensor.data_type = Some(choices.below(32) as i32),
                1 => tensor.dims = (0..choices.below(4)).map(|_| choices.integer()).collect(),
                _ => tensor.raw_data = tensor.raw_data.as_ref().map(|data| bytes(data, choices).into()),
            }
        }
        7 => {
            for input in &mut graph.input {
                let tensor = input.r#type.as_mut().and_then(|t| t.value.as_mut());
                let Some(type_proto::Value::TensorType(tensor)) = tensor else { continue };
                for dim in tensor.shape.iter_mut().flat_map(|s| &mut s.dim) {
                    if choices.once_in(3) {
                        dim.value = Some(tensor_shape_proto::dimension::Value::DimValue(choices.integer()));
                    }
                }
            }
        }
        8 if !graph.input.is_empty() => {
            let place = choices.below(graph.input.len());
            graph.input[place].name = Some(name(choices));
        }
        _ => {
            if let Some(output) = graph.output.first_mut() {
                output.name = Some(name(choices));
            }
        }
    }
}
