//! Calibration data from `.npz` files: one array for every input of the model.

use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::signature::Input;
use ndarray::{ArrayD, OwnedRepr};
use ndarray_npy::{NpzReader, ReadNpzError, ReadableElement};

use super::describe;
use crate::error::Error;

type Reader = NpzReader<File>;

/// The array of every input, in their order.
pub(super) fn read(path: &Path, inputs: &[Input]) -> Result<Vec<Tensor>, Error> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let unreadable = |e: ReadNpzError| {
        Error::calibration(path, format!("is no readable .npz file: {e}"), "write it with numpy.savez")
    };
    let mut reader = Reader::new(file).map_err(unreadable)?;
    let names: Vec<String> = reader.names().map_err(unreadable)?;
    let stem = |name: &str| name.strip_suffix(".npy").unwrap_or(name).to_string();
    let names: Vec<_> = names.iter().map(|n| stem(n)).collect();
    let expected: Vec<_> = inputs.iter().map(describe).collect();
    let help = format!("the model takes {}", expected.join("; "));
    if let Some(extra) = names.iter().find(|n| !inputs.iter().any(|i| i.name == **n)) {
        return Err(Error::calibration(path, format!("array {extra:?} is no input of the model"), help));
    }
    inputs
        .iter()
        .map(|input| {
            if !names.contains(&input.name) {
                let reason = format!("there is no array {:?}", input.name);
                return Err(Error::calibration(path, reason, help.clone()));
            }
            array(&mut reader, input, path)
        })
        .collect()
}

fn array(reader: &mut Reader, input: &Input, path: &Path) -> Result<Tensor, Error> {
    use ElementType as E;
    match input.element {
        Some(E::I64) => typed::<i64, 8>(reader, input, path, E::I64, i64::to_le_bytes),
        Some(E::I32) => typed::<i32, 4>(reader, input, path, E::I32, i32::to_le_bytes),
        Some(E::F32) => typed::<f32, 4>(reader, input, path, E::F32, f32::to_le_bytes),
        Some(E::F64) => typed::<f64, 8>(reader, input, path, E::F64, f64::to_le_bytes),
        Some(E::Bool) => typed::<bool, 1>(reader, input, path, E::Bool, |x| [x.into()]),
        Some(E::U8) => typed::<u8, 1>(reader, input, path, E::U8, |x| [x]),
        Some(E::F16) => {
            // numpy files of half precision are rare; single precision is taken and rounded.
            let wide = typed::<f32, 4>(reader, input, path, E::F32, f32::to_le_bytes)?;
            let values = wide.to_f64().map_err(|e| Error::internal(e.to_string()))?;
            Tensor::from_floats(E::F16, &values).map_err(|e| Error::internal(e.to_string()))
        }
        other => {
            let kind = other.map_or("unknown type".to_string(), |e| e.to_string());
            let reason = format!("input {:?} of {kind} cannot be read from .npz", input.name);
            Err(Error::calibration(path, reason, "prune the part of the model behind this input"))
        }
    }
}

fn typed<T: ReadableElement + Copy, const N: usize>(
    reader: &mut Reader,
    input: &Input,
    path: &Path,
    element: ElementType,
    bytes: impl Fn(T) -> [u8; N],
) -> Result<Tensor, Error> {
    let array: ArrayD<T> = reader
        .by_name::<OwnedRepr<T>, ndarray::IxDyn>(&format!("{}.npy", input.name))
        .or_else(|_| reader.by_name(&input.name))
        .map_err(|e| {
            let reason = format!("array {:?} is not of type {element}: {e}", input.name);
            Error::calibration(path, reason, format!("the model takes {}", describe(input)))
        })?;
    let array = array.as_standard_layout();
    let data: Vec<u8> = array.iter().flat_map(|&x| bytes(x)).collect();
    Tensor::from_raw(&input.name, element, array.shape(), Bytes::from(data)).map_err(|e| Error::internal(e.to_string()))
}
