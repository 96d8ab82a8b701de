//! Constants handed to sessions by reference.

use std::collections::HashMap;
use std::ptr;
use std::sync::Arc;

use bytes::Bytes;
use kprune_passes::ir::{ElementType, Tensor};
use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::value::DynValue;

use crate::error::Error;

/// The constants that sessions share, each made once.
#[derive(Default)]
pub(super) struct Weights {
    made: HashMap<(usize, usize), Held>,
}

/// A constant as sessions see it, with the memory that it lies in.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) value: Arc<DynValue>,
    /// The bytes that identify the constant.
    bytes: Bytes,
    /// What sessions read instead, where those do not lie at a place fit for their type.
    _copy: Option<Bytes>,
}

impl Weights {
    /// The value of a constant, without a copy where its bytes lie at a place fit for its type.
    ///
    /// Constants that share their bytes share the value too, across sessions. Who uses the value keeps
    /// all of what is returned.
    pub(super) fn value(&mut self, tensor: &Tensor) -> Result<Held, Error> {
        let bytes = tensor.bytes().map_err(|e| Error::internal(e.to_string()))?;
        let key = (bytes.as_ptr() as usize, bytes.len());
        if let Some(held) = self.made.get(&key).filter(|h| shape_is(&h.value, tensor.dims())) {
            return Ok(held.clone());
        }
        // Of weights that were cut for one session, nobody else knows when it is gone.
        self.made.retain(|_, held| !held.bytes.is_unique());
        let aligned = aligned(&bytes, tensor.element());
        let value = Arc::new(borrow(&aligned, tensor.element(), tensor.dims())?);
        let copy = (aligned.as_ptr() != bytes.as_ptr()).then_some(aligned);
        let held = Held { value, bytes, _copy: copy };
        self.made.insert(key, held.clone());
        Ok(held)
    }
}

fn shape_is(value: &DynValue, dims: &[usize]) -> bool {
    value.dtype().tensor_shape().is_some_and(|s| s.iter().map(|&d| d as usize).eq(dims.iter().copied()))
}

/// The bytes themselves where they are aligned, otherwise a copy that is.
pub(super) fn aligned(bytes: &Bytes, element: ElementType) -> Bytes {
    let size = element.bits().div_ceil(8).max(1);
    if (bytes.as_ptr() as usize).is_multiple_of(size) {
        return bytes.clone();
    }
    let mut words = vec![0u128; bytes.len().div_ceil(16)];
    // SAFETY: `u128`s without padding, read as as many bytes as they take.
    let target = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), words.len() * 16) };
    target[..bytes.len()].copy_from_slice(bytes);
    Bytes::from_owner(Words(words)).slice(..bytes.len())
}

struct Words(Vec<u128>);

impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }
}

/// Whether ONNX Runtime has tensors of this type.
pub fn knows(element: ElementType) -> bool {
    element == ElementType::String || kind(element).is_some()
}

/// The name of an element type in ONNX Runtime, whose numbers are those of ONNX for the older types only.
fn kind(element: ElementType) -> Option<ort::sys::ONNXTensorElementDataType> {
    use ElementType as E;
    use ort::sys::ONNXTensorElementDataType as T;
    Some(match element {
        E::F32 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        E::U8 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        E::I8 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        E::U16 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        E::I16 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        E::I32 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        E::I64 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        E::Bool => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        E::F16 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        E::F64 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        E::U32 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        E::U64 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        E::Complex64 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX64,
        E::Complex128 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX128,
        E::BF16 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        E::F8E4M3FN => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN,
        E::F8E4M3FNUZ => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FNUZ,
        E::F8E5M2 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2,
        E::F8E5M2FNUZ => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2FNUZ,
        E::U4 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4,
        E::I4 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4,
        E::String | E::F4E2M1 | E::F8E8M0 | E::U2 | E::I2 | E::F6E2M3 | E::F6E3M2 => return None,
    })
}

/// A tensor over memory that the caller keeps.
pub(super) fn borrow(bytes: &Bytes, element: ElementType, dims: &[usize]) -> Result<DynValue, Error> {
    let unknown = || Error::internal(format!("ONNX Runtime has no tensors of type {element}"));
    let kind = kind(element).ok_or_else(unknown)?;
    let place = MemoryInfo::default();
    let shape: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
    let mut value = ptr::null_mut();
    // SAFETY: the pointers live through the call, in which the runtime checks the length against the shape; the
    // caller keeps the bytes as long as the value.
    unsafe {
        let status = (ort::api().CreateTensorWithDataAsOrtValue)(
            place.ptr(),
            bytes.as_ptr().cast_mut().cast(),
            bytes.len(),
            shape.as_ptr(),
            shape.len(),
            kind,
            &mut value,
        );
        ort::Error::result_from_status(status).map_err(|e| Error::internal(e.to_string()))?;
        let value = ptr::NonNull::new(value).ok_or_else(|| Error::internal("a tensor was not made".to_string()))?;
        Ok(DynValue::from_ptr(value, Some(&Allocator::default())))
    }
}
