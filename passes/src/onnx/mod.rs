//! ONNX files: reading and writing a [`Model`](crate::ir::Model).

mod encode;
mod inline;
mod read;
mod sparse;
mod write;

pub use encode::encode;
pub use read::{ReadError, read, read_inlined};
pub use write::{Detached, ExternalFile, Written, external_locations, write, write_detached, write_fed};

use crate::ir::schema::{StringStringEntryProto, TensorProto};

/// The value of `key` in a list of keys and values.
pub(crate) fn entry<'a>(entries: &'a [StringStringEntryProto], key: &str) -> Option<&'a str> {
    entries.iter().find(|e| e.key.as_deref() == Some(key)).and_then(|e| e.value.as_deref())
}

pub(crate) fn new_entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.to_string()), value: Some(value) }
}

/// The file that holds the elements of an external tensor, as the model names it.
pub(crate) fn location(tensor: &TensorProto) -> Option<&str> {
    entry(&tensor.external_data, "location")
}
