//! Tensors on the host: into sessions and out of them.

use bytes::Bytes;
use half::{bf16, f16};
use kprune_passes::ir::{ElementType, Tensor};
use ndarray::{ArrayD, IxDyn};
use ort::value::DynValue;

use super::weights;
use crate::error::Error;

/// A tensor that a session can read, with the memory it lies in.
#[derive(Clone)]
pub struct Held {
    value: std::sync::Arc<DynValue>,
    _memory: Bytes,
}

impl Held {
    /// The tensor, for a session.
    pub fn value(&self) -> &DynValue {
        &self.value
    }
}

/// Makes a tensor readable by sessions.
///
/// # Errors
/// Where the element type has no packed form.
pub fn host(tensor: &Tensor) -> Result<Held, Error> {
    let bytes = tensor.bytes().map_err(|e| Error::internal(e.to_string()))?;
    let memory = weights::aligned(&bytes, tensor.element());
    let value = weights::borrow(&memory, tensor.element(), tensor.dims())?;
    Ok(Held { value: value.into(), _memory: memory })
}

/// An f32 tensor of any shape, for a session.
///
/// # Errors
/// Where ONNX Runtime makes no tensor.
pub fn numbers(array: &ArrayD<f64>) -> Result<Held, Error> {
    let tensor = Tensor::from_floats(ElementType::F32, array).map_err(|e| Error::internal(e.to_string()))?;
    host(&tensor)
}

/// The element type of a tensor.
pub fn element(value: &DynValue) -> Option<ElementType> {
    use ort::value::TensorElementType as T;
    Some(match value.dtype().tensor_type()? {
        T::Float32 => ElementType::F32,
        T::Float16 => ElementType::F16,
        T::Bfloat16 => ElementType::BF16,
        T::Float64 => ElementType::F64,
        T::Int64 => ElementType::I64,
        T::Int32 => ElementType::I32,
        T::Int16 => ElementType::I16,
        T::Int8 => ElementType::I8,
        T::Uint64 => ElementType::U64,
        T::Uint32 => ElementType::U32,
        T::Uint16 => ElementType::U16,
        T::Uint8 => ElementType::U8,
        T::Bool => ElementType::Bool,
        T::String => ElementType::String,
        _ => return None,
    })
}

/// The numbers of a floating-point tensor.
///
/// # Errors
/// Where it is of another type.
pub fn scalars(value: &DynValue) -> Result<ArrayD<f64>, Error> {
    fn read<T: ort::value::PrimitiveTensorElementType + Copy>(
        value: &DynValue,
        convert: impl Fn(T) -> f64,
    ) -> Result<ArrayD<f64>, Error> {
        let (shape, data) = value.try_extract_tensor::<T>().map_err(Error::runtime("reading a result"))?;
        let shape: Vec<_> = shape.iter().map(|&d| d as usize).collect();
        let data = data.iter().map(|&x| convert(x)).collect();
        ArrayD::from_shape_vec(IxDyn(&shape), data).map_err(|e| Error::internal(e.to_string()))
    }
    match element(value) {
        Some(ElementType::F32) => read::<f32>(value, f64::from),
        Some(ElementType::F64) => read::<f64>(value, |x| x),
        Some(ElementType::F16) => read::<f16>(value, f64::from),
        Some(ElementType::BF16) => read::<bf16>(value, f64::from),
        other => Err(Error::internal(format!("a result of type {other:?} was read as numbers"))),
    }
}

/// The integers of a tensor of an index type.
///
/// # Errors
/// Where it is of another type.
pub fn integers(value: &DynValue) -> Result<ArrayD<i64>, Error> {
    let doing = "reading a result";
    let wide = |shape: &[i64], data: Vec<i64>| {
        let shape: Vec<_> = shape.iter().map(|&d| d as usize).collect();
        ArrayD::from_shape_vec(IxDyn(&shape), data).map_err(|e| Error::internal(e.to_string()))
    };
    match element(value) {
        Some(ElementType::I64) => {
            let (shape, data) = value.try_extract_tensor::<i64>().map_err(Error::runtime(doing))?;
            wide(shape, data.to_vec())
        }
        Some(ElementType::I32) => {
            let (shape, data) = value.try_extract_tensor::<i32>().map_err(Error::runtime(doing))?;
            wide(shape, data.iter().map(|&x| x.into()).collect())
        }
        other => Err(Error::internal(format!("a result of type {other:?} was read as integers"))),
    }
}
