//! The bytes of a model file, written tensor by tensor: a model of gigabytes is never in memory twice.

use std::io::{Result, Write};

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::ir::schema::ModelProto;

/// The numbers of the fields `ModelProto.graph` and `GraphProto.initializer`.
const GRAPH: u32 = 7;
const INITIALIZER: u32 = 5;

/// Encodes a model as protobuf does, but for the order of fields, which means nothing.
///
/// # Errors
/// Those of `out`.
pub fn encode(mut model: ModelProto, out: &mut impl Write) -> Result<()> {
    let graph = model.graph.take();
    out.write_all(&model.encode_to_vec())?;
    let Some(mut graph) = graph else { return Ok(()) };
    let initializers = std::mem::take(&mut graph.initializer);
    let field = |length: usize| key_len(INITIALIZER) + encoded_len_varint(length as u64) + length;
    let length = graph.encoded_len() + initializers.iter().map(|t| field(t.encoded_len())).sum::<usize>();
    out.write_all(&header(GRAPH, length))?;
    out.write_all(&graph.encode_to_vec())?;
    for tensor in initializers {
        out.write_all(&header(INITIALIZER, tensor.encoded_len()))?;
        out.write_all(&tensor.encode_to_vec())?;
    }
    Ok(())
}

/// What goes before a message of `length` bytes in the field with the number `tag`.
fn header(tag: u32, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(tag, WireType::LengthDelimited, &mut bytes);
    encode_varint(length as u64, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::schema::{GraphProto, TensorProto};

    #[test]
    fn what_is_written_in_parts_is_read_as_a_whole() {
        let tensor = |name: &str, n: usize| TensorProto {
            name: Some(name.to_string()),
            raw_data: Some(vec![7; n].into()),
            ..TensorProto::default()
        };
        let graph = GraphProto {
            name: Some("graph".into()),
            doc_string: Some("words".into()),
            initializer: vec![tensor("a", 3), tensor("b", 300), tensor("c", 0)],
            ..GraphProto::default()
        };
        let mut model = ModelProto { ir_version: Some(9), graph: Some(graph), ..ModelProto::default() };
        for _ in 0..2 {
            let mut bytes = Vec::new();
            encode(model.clone(), &mut bytes).unwrap();
            assert_eq!(bytes.len(), model.encoded_len());
            assert_eq!(ModelProto::decode(bytes.as_slice()).unwrap(), model);
            model.graph = None;
        }
    }
}
