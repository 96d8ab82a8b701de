//! Tensors on the host: into sessions and out of them.

use std::borrow::Cow;

use bytes::Bytes;
use kprune_passes::finite::{Odd, first_odd};
use kprune_passes::ir::{ElementType, Tensor};
use ndarray::{ArrayD, IxDyn};
use ort::value::{DynTensorValueType, DynValue, ValueType};

use super::weights;
use crate::error::Error;

/// A tensor that a session can read, with the memory it lies in.
#[derive(Clone)]
pub struct Held {
    value: std::sync::Arc<DynValue>,
    _memory: Bytes,
}

impl From<DynValue> for Held {
    /// Holds what a session gave, where it is.
    fn from(value: DynValue) -> Self {
        Self { value: value.into(), _memory: Bytes::new() }
    }
}

impl Held {
    /// The tensor, for a session.
    pub fn value(&self) -> &DynValue {
        &self.value
    }

    /// The same in memory of its own; see [`own`].
    ///
    /// # Errors
    /// Where ONNX Runtime makes no tensor.
    pub fn owned(&self) -> Result<Self, Error> {
        copied(&self.value).map(|copy| copy.unwrap_or_else(|| self.clone()))
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

/// A value in memory of its own. What a session gave lies in memory of the session, and keeps all of it.
///
/// What lies on a device, or is no tensor of numbers, stays where it is.
///
/// # Errors
/// Where ONNX Runtime makes no tensor.
pub fn own(value: DynValue) -> Result<Held, Error> {
    let copy = copied(&value)?;
    Ok(copy.unwrap_or_else(|| value.into()))
}

fn copied(value: &DynValue) -> Result<Option<Held>, Error> {
    let is_here = value.view().downcast::<DynTensorValueType>().is_ok_and(|t| t.memory_info().is_cpu_accessible());
    let Some(element) = element(value).filter(|&e| is_here && e != ElementType::String) else { return Ok(None) };
    let (dims, bytes) = content(value)?;
    let tensor = Tensor::from_raw("", element, &dims, bytes.into_owned().into());
    host(&tensor.map_err(|e| Error::internal(e.to_string()))?).map(Some)
}

/// A copy of an f32 tensor on the host whose numbers may change between runs of a session.
///
/// # Errors
/// Where it is of another type, or ONNX Runtime makes no tensor.
pub fn changeable(tensor: &Tensor) -> Result<DynValue, Error> {
    let numbers = tensor.to_f64().map_err(|e| Error::internal(e.to_string()))?;
    let numbers: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
    let value = ort::value::Tensor::from_array((tensor.dims(), numbers)).map_err(Error::runtime("making a tensor"))?;
    Ok(value.into_dyn())
}

/// The numbers of an f32 tensor on the host.
///
/// # Errors
/// Where it is another.
pub fn numbers_of(value: &DynValue) -> Result<&[f32], Error> {
    Ok(value.try_extract_tensor::<f32>().map_err(Error::runtime("reading a tensor"))?.1)
}

/// The same, to be changed.
///
/// # Errors
/// Where it is another.
pub fn numbers_of_mut(value: &mut DynValue) -> Result<&mut [f32], Error> {
    Ok(value.try_extract_tensor_mut::<f32>().map_err(Error::runtime("changing a tensor"))?.1)
}

/// Whether each number of a tensor is another than 0.
///
/// # Errors
/// Where it holds no numbers.
pub fn is_nonzero(value: &DynValue) -> Result<Vec<bool>, Error> {
    let element = element(value).filter(|&e| e != ElementType::String && e.bits() >= 8);
    let size = element.ok_or_else(|| Error::internal("a mask that holds no numbers"))?.bits() / 8;
    let (_, bytes) = content(value)?;
    Ok(bytes.chunks_exact(size).map(|number| number.iter().any(|&b| b != 0)).collect())
}

/// Bytes that a tensor of numbers takes; 0 for anything else.
pub(super) fn size(value: &DynValue) -> u64 {
    let count: i64 = value.dtype().tensor_shape().map_or(0, |s| s.iter().product());
    element(value).map_or(0, |e| count as u64 * e.bits().div_ceil(8) as u64)
}

/// Shape and bytes of a tensor of numbers; from a device they are copied.
///
/// # Errors
/// Where it is no tensor, or the copy fails.
pub(super) fn content(value: &DynValue) -> Result<(Vec<usize>, Cow<'_, [u8]>), Error> {
    let doing = "keeping a value";
    let tensor = value.view().downcast::<DynTensorValueType>().map_err(Error::runtime(doing))?;
    let dims = value.dtype().tensor_shape().map(|s| s.iter().map(|&d| d as usize).collect()).unwrap_or_default();
    // SAFETY: `size` bytes, from the tensor's own shape and element type, on the host; no strings.
    let bytes = |data: *const u8| match data.is_null() || size(value) == 0 {
        true => &[][..],
        false => unsafe { std::slice::from_raw_parts(data, size(value) as usize) },
    };
    if tensor.memory_info().is_cpu_accessible() {
        return Ok((dims, Cow::Borrowed(bytes(tensor.data_ptr().cast()))));
    }
    let copy = tensor.to(ort::memory::AllocationDevice::CPU, 0).map_err(Error::runtime(doing))?;
    Ok((dims, Cow::Owned(bytes(copy.data_ptr().cast()).to_vec())))
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
    element_of(value.dtype())
}

/// The element type of values of a type, where those are tensors.
pub(super) fn element_of(kind: &ValueType) -> Option<ElementType> {
    use ort::value::TensorElementType as T;
    Some(match kind.tensor_type()? {
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

/// The numbers of a floating-point tensor, wherever it is.
///
/// # Errors
/// Where it is of another type.
pub fn scalars(value: &DynValue) -> Result<ArrayD<f64>, Error> {
    let element = element(value).filter(|e| e.is_float());
    let element = element.ok_or_else(|| Error::internal("a result that is no number was read as one"))?;
    let (dims, bytes) = content(value)?;
    let tensor = Tensor::from_raw("", element, &dims, bytes.into_owned().into());
    tensor.and_then(|t| t.to_f64()).map_err(|e| Error::internal(e.to_string()))
}

/// The first number of a floating-point tensor that is not finite; none of anything else.
///
/// # Errors
/// Where the numbers cannot be had from a device.
pub fn odd(value: &DynValue) -> Result<Option<Odd>, Error> {
    match element(value).filter(|e| e.is_float()) {
        Some(element) => Ok(first_odd(element, &content(value)?.1)),
        None => Ok(None),
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
