//! Data from files of named arrays: `.npz`, `.safetensors`, and the ONNX test-data layout.

use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::onnx::schema::TensorProto;
use kprune_passes::signature::Input;
use ndarray::{ArrayD, IxDyn, OwnedRepr};
use ndarray_npy::{NpzReader, ReadNpzError, ReadableElement};
use prost::Message;
use safetensors::{Dtype, SafeTensors};

use super::labels::{self, Labels};
use super::{Part, describe, join};
use crate::error::Error;

/// Arrays by name.
pub(super) type Named = Vec<(String, Tensor)>;

/// The arrays of the model's inputs, in their order, and the labels.
pub(super) fn fit(arrays: Named, inputs: &[Input], path: &Path) -> Result<Part, Error> {
    let expected: Vec<_> = inputs.iter().map(describe).collect();
    let help = format!("the model takes {}", expected.join("; "));
    let is_input = |name: &str| inputs.iter().any(|i| i.name == name);
    let is_label = |name: &str| labels::NAMES.contains(&name);
    if let Some((extra, _)) = arrays.iter().find(|(name, _)| !is_input(name) && !is_label(name)) {
        return Err(Error::data(path, format!("array {extra:?} is no input of the model"), help));
    }
    let find = |name: &str| arrays.iter().find(|(n, _)| n == name).map(|(_, t)| t);
    let mut fitting = Vec::new();
    for input in inputs {
        let missing = || Error::data(path, format!("there is no array {:?}", input.name), help.clone());
        let array = find(&input.name).ok_or_else(missing)?;
        let element = input.element.unwrap_or(array.element());
        let other = || {
            let reason = format!("array {:?} is not of type {element}: it is of type {}", input.name, array.element());
            Error::data(path, reason, format!("the model takes {}", describe(input)))
        };
        fitting.push(labels::converted(array, element).ok_or_else(other)?);
    }
    let labels = Labels::from_arrays(|name| find(name).filter(|_| !is_input(name)).cloned());
    let labels = labels.map_err(|reason| Error::data(path, reason, "one label for every sample"))?;
    Ok(Part { arrays: fitting, labels })
}

type Reader = NpzReader<File>;

/// All arrays of an `.npz` file.
pub(super) fn npz(path: &Path) -> Result<Named, Error> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let unreadable =
        |e: ReadNpzError| Error::data(path, format!("is no readable .npz file: {e}"), "write it with numpy.savez");
    let mut reader = Reader::new(file).map_err(unreadable)?;
    let names: Vec<String> = reader.names().map_err(unreadable)?;
    let mut arrays = Vec::new();
    for name in names {
        let array = any(&mut reader, &name);
        let unknown = || {
            let reason = format!("array {name:?} is of a type that is not read");
            Error::data(path, reason, "give integers, booleans, float32 or float64")
        };
        let stem = name.strip_suffix(".npy").unwrap_or(&name).to_string();
        arrays.push((stem, array.ok_or_else(unknown)?));
    }
    Ok(arrays)
}

/// The array of that name, whatever its type.
fn any(reader: &mut Reader, name: &str) -> Option<Tensor> {
    use ElementType as E;
    typed::<i64, 8>(reader, name, E::I64, i64::to_le_bytes)
        .or_else(|| typed::<f32, 4>(reader, name, E::F32, f32::to_le_bytes))
        .or_else(|| typed::<i32, 4>(reader, name, E::I32, i32::to_le_bytes))
        .or_else(|| typed::<f64, 8>(reader, name, E::F64, f64::to_le_bytes))
        .or_else(|| typed::<bool, 1>(reader, name, E::Bool, |x| [x.into()]))
        .or_else(|| typed::<u8, 1>(reader, name, E::U8, |x| [x]))
        .or_else(|| typed::<i8, 8>(reader, name, E::I64, |x| i64::from(x).to_le_bytes()))
        .or_else(|| typed::<i16, 8>(reader, name, E::I64, |x| i64::from(x).to_le_bytes()))
        .or_else(|| typed::<u16, 8>(reader, name, E::I64, |x| i64::from(x).to_le_bytes()))
        .or_else(|| typed::<u32, 8>(reader, name, E::I64, |x| i64::from(x).to_le_bytes()))
}

fn typed<T: ReadableElement + Copy, const N: usize>(
    reader: &mut Reader,
    name: &str,
    element: ElementType,
    bytes: impl Fn(T) -> [u8; N],
) -> Option<Tensor> {
    let array: ArrayD<T> = reader.by_name::<OwnedRepr<T>, IxDyn>(name).ok()?;
    let data: Vec<u8> = array.iter().flat_map(|&x| bytes(x)).collect();
    Tensor::from_raw(name, element, array.shape(), data.into()).ok()
}

/// All arrays of a `.safetensors` file.
pub(super) fn safetensors(path: &Path) -> Result<Named, Error> {
    let content = std::fs::read(path).map_err(Error::io("read", path))?;
    let unreadable = |reason: String| Error::data(path, reason, "write it with safetensors.numpy.save_file");
    let file =
        SafeTensors::deserialize(&content).map_err(|e| unreadable(format!("is no readable .safetensors file: {e}")))?;
    let array = |(name, view): (String, safetensors::tensor::TensorView)| {
        let element = match view.dtype() {
            Dtype::F32 => Some(ElementType::F32),
            Dtype::F64 => Some(ElementType::F64),
            Dtype::F16 => Some(ElementType::F16),
            Dtype::BF16 => Some(ElementType::BF16),
            Dtype::I64 => Some(ElementType::I64),
            Dtype::I32 => Some(ElementType::I32),
            Dtype::U8 => Some(ElementType::U8),
            Dtype::BOOL => Some(ElementType::Bool),
            _ => None,
        };
        let element = element.ok_or_else(|| unreadable(format!("array {name:?} is of type {:?}", view.dtype())))?;
        let tensor = Tensor::from_raw(&name, element, view.shape(), Bytes::copy_from_slice(view.data()));
        let tensor = tensor.map_err(|e| unreadable(format!("array {name:?} {e}")))?;
        Ok((name, tensor))
    };
    file.tensors().into_iter().map(array).collect()
}

/// The samples of a folder in the ONNX test-data layout: `test_data_set_*/input_*.pb`, each set a batch.
pub(super) fn test_data(folder: &Path, inputs: &[Input]) -> Result<Part, Error> {
    let mut parts = Vec::new();
    for set in test_data_sets(folder) {
        parts.push(test_data_set(&set, inputs)?);
    }
    join(parts, inputs)
}

/// The sets of a folder, in order; the folder itself where it is one.
pub(super) fn test_data_sets(folder: &Path) -> Vec<PathBuf> {
    let holds_inputs = |f: &Path| f.join("input_0.pb").is_file();
    if holds_inputs(folder) {
        return vec![folder.to_path_buf()];
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut sets: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| holds_inputs(p)).collect();
    sets.sort_by_key(|p| {
        let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let digits: String = name.chars().filter(char::is_ascii_digit).collect();
        (digits.parse::<u64>().unwrap_or(u64::MAX), name)
    });
    sets
}

fn test_data_set(folder: &Path, inputs: &[Input]) -> Result<Part, Error> {
    let mut arrays = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        let path = folder.join(format!("input_{i}.pb"));
        let content = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let wrong = |reason: String| {
            Error::data(&path, reason, "each input_N.pb holds a TensorProto, in the order of the model's inputs")
        };
        let proto = TensorProto::decode(content.as_slice()).map_err(|e| wrong(format!("is no tensor: {e}")))?;
        let name = proto.name.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| input.name.clone());
        arrays.push((name, Tensor::from_proto(proto, None).map_err(|e| wrong(e.to_string()))?));
    }
    // Some writers name tensors otherwise, and rely on their order.
    if !arrays.iter().all(|(name, _)| inputs.iter().any(|i| i.name == *name)) {
        arrays.iter_mut().zip(inputs).for_each(|((name, _), input)| name.clone_from(&input.name));
    }
    fit(arrays, inputs, folder)
}
