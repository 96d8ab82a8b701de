//! Constant tensors, held as the file holds them.
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![warn(clippy::arithmetic_side_effects)]

use bytes::Bytes;
use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};
use thiserror::Error;

use super::ElementType;
use crate::ir::schema::TensorProto;

/// Value of `TensorProto.data_location` for data that lies in another file.
pub const EXTERNAL: i32 = 1;

/// What is wrong with a tensor.
#[derive(Debug, Error)]
pub enum TensorError {
    /// A code that is no element type.
    #[error("has the unknown element type {0}")]
    UnknownType(i32),
    /// A dimension below zero, or more elements than memory can address.
    #[error("has the impossible shape {0:?}")]
    Shape(Vec<i64>),
    /// Fewer or more bytes or elements than the shape says.
    #[error("holds {found} {unit} where its shape {dims:?} of {element} needs {expected}")]
    Length {
        /// The tensor's shape.
        dims: Vec<i64>,
        /// Its element type.
        element: ElementType,
        /// "bytes" or "elements".
        unit: &'static str,
        /// What the shape needs.
        expected: usize,
        /// What is there.
        found: usize,
    },
    /// The data lies in another file that was not given.
    #[error("keeps its data in another file, which has not been read")]
    Missing,
    /// An operation that this element type does not support.
    #[error("is of type {0}, which cannot be read as numbers here")]
    NotNumeric(ElementType),
}

/// A constant: the message that the file holds, and where its elements are.
///
/// The elements stay where they were read from (a slice of the file, or of an external-data file)
/// until something asks for them as numbers.
#[derive(Clone, Debug)]
pub struct Tensor {
    proto: TensorProto,
    external: Option<Bytes>,
    element: ElementType,
    dims: Vec<usize>,
    stored: Option<ElementType>,
}

impl Tensor {
    /// Notes that the file stores these numbers in a narrower element type.
    pub fn stored_as(mut self, element: Option<ElementType>) -> Self {
        self.stored = element;
        self
    }

    /// The narrower element type in which the file stores these numbers.
    pub fn stored(&self) -> Option<ElementType> {
        self.stored
    }

    /// Takes a tensor message; `external` are its bytes where the message points to another file.
    ///
    /// # Errors
    /// Where the element type is unknown, the shape impossible, or the data does not fit the shape.
    pub fn from_proto(proto: TensorProto, external: Option<Bytes>) -> Result<Self, TensorError> {
        let code = proto.data_type.unwrap_or(0);
        let element = ElementType::from_code(code).ok_or(TensorError::UnknownType(code))?;
        let impossible = || TensorError::Shape(proto.dims.clone());
        let dims =
            proto.dims.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>().map_err(|_| impossible())?;
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(impossible)?;
        let tensor = Self { element, dims, external, proto, stored: None };
        tensor.check_length(count)?;
        Ok(tensor)
    }

    /// A new constant of packed little-endian `data`.
    ///
    /// # Errors
    /// Where `data` does not fit the shape.
    pub fn from_raw(name: &str, element: ElementType, dims: &[usize], data: Bytes) -> Result<Self, TensorError> {
        Self::from_proto(
            TensorProto {
                name: Some(name.to_string()),
                dims: dims.iter().map(|&d| d as i64).collect(),
                data_type: Some(element.code()),
                raw_data: Some(data),
                ..TensorProto::default()
            },
            None,
        )
    }

    /// A new vector or scalar of integers (`dims` empty for a scalar).
    ///
    /// # Panics
    /// If there are not as many values as the shape holds.
    pub fn from_i64s(dims: &[usize], values: &[i64]) -> Self {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        #[expect(clippy::expect_used, reason = "the program's own numbers, never a file's")]
        Self::from_raw("", ElementType::I64, dims, data.into()).expect("as many values as the shape holds")
    }

    /// A new tensor of `values`, rounded to the floating-point type `element`.
    ///
    /// # Errors
    /// Where `element` is no floating-point type.
    pub fn from_floats(element: ElementType, values: &ArrayD<f64>) -> Result<Self, TensorError> {
        let elements = values.iter().copied();
        let data: Vec<u8> = match element {
            ElementType::F32 => elements.flat_map(|v| (v as f32).to_le_bytes()).collect(),
            ElementType::F64 => elements.flat_map(f64::to_le_bytes).collect(),
            ElementType::F16 => elements.flat_map(|v| f16::from_f64(v).to_le_bytes()).collect(),
            ElementType::BF16 => elements.flat_map(|v| bf16::from_f64(v).to_le_bytes()).collect(),
            other => return Err(TensorError::NotNumeric(other)),
        };
        Self::from_raw("", element, values.shape(), data.into())
    }

    fn check_length(&self, count: usize) -> Result<(), TensorError> {
        let wrong = |unit, expected, found| {
            Err(TensorError::Length { dims: self.proto.dims.clone(), element: self.element, unit, expected, found })
        };
        if let Some(bytes) = self.packed() {
            let expected = self.element.packed_len(count).ok_or_else(|| TensorError::Shape(self.proto.dims.clone()))?;
            return if bytes.len() == expected { Ok(()) } else { wrong("bytes", expected, bytes.len()) };
        }
        if self.is_external() {
            return Err(TensorError::Missing);
        }
        let (expected, found) = self.listed_lengths(count);
        if expected == found { Ok(()) } else { wrong("elements", expected, found) }
    }

    /// How many entries the typed data fields need and have.
    fn listed_lengths(&self, count: usize) -> (usize, usize) {
        use ElementType as E;
        let p = &self.proto;
        match self.element {
            E::F32 => (count, p.float_data.len()),
            E::Complex64 => (count.saturating_mul(2), p.float_data.len()),
            E::F64 => (count, p.double_data.len()),
            E::Complex128 => (count.saturating_mul(2), p.double_data.len()),
            E::I64 => (count, p.int64_data.len()),
            E::U32 | E::U64 => (count, p.uint64_data.len()),
            E::String => (count, p.string_data.len()),
            E::U4 | E::I4 | E::F4E2M1 => (count.div_ceil(2), p.int32_data.len()),
            E::U2 | E::I2 => (count.div_ceil(4), p.int32_data.len()),
            _ => (count, p.int32_data.len()),
        }
    }

    /// The packed little-endian bytes, where the file holds them so.
    fn packed(&self) -> Option<&Bytes> {
        self.external.as_ref().or(self.proto.raw_data.as_ref())
    }

    /// The message as the file holds it, without the elements of another file.
    pub fn proto(&self) -> &TensorProto {
        &self.proto
    }

    /// Whether the elements lie in another file.
    pub fn is_external(&self) -> bool {
        self.proto.data_location == Some(EXTERNAL)
    }

    /// The elements that lie in another file.
    pub fn external(&self) -> Option<&Bytes> {
        self.external.as_ref()
    }

    /// The type of the elements.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// The shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.dims.iter().product()
    }

    /// This tensor under another name.
    pub fn named(mut self, name: &str) -> Self {
        self.proto.name = Some(name.to_string());
        self
    }

    /// The elements as packed little-endian bytes; copied only where the file lists them one by one.
    ///
    /// # Errors
    /// For strings, which have no packed form.
    pub fn bytes(&self) -> Result<Bytes, TensorError> {
        use ElementType as E;
        if let Some(bytes) = self.packed() {
            return Ok(bytes.clone());
        }
        let p = &self.proto;
        let bytes: Vec<u8> = match self.element {
            E::F32 | E::Complex64 => p.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            E::F64 | E::Complex128 => p.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            E::I64 => p.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            E::U64 => p.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            E::U32 => p.uint64_data.iter().flat_map(|&v| (v as u32).to_le_bytes()).collect(),
            E::I32 => p.int32_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            E::I16 | E::U16 | E::F16 | E::BF16 => p.int32_data.iter().flat_map(|&v| (v as u16).to_le_bytes()).collect(),
            E::String => return Err(TensorError::NotNumeric(self.element)),
            _ => p.int32_data.iter().map(|&v| v as u8).collect(),
        };
        Ok(bytes.into())
    }

    /// The elements as floating-point numbers, exactly.
    ///
    /// # Errors
    /// Where the type is not a floating-point type.
    pub fn to_f64(&self) -> Result<ArrayD<f64>, TensorError> {
        let bytes = self.bytes()?;
        let values: Vec<f64> = match self.element {
            ElementType::F32 => words(&bytes).map(|b| f32::from_le_bytes(b).into()).collect(),
            ElementType::F64 => words(&bytes).map(f64::from_le_bytes).collect(),
            ElementType::F16 => words(&bytes).map(|b| f16::from_le_bytes(b).into()).collect(),
            ElementType::BF16 => words(&bytes).map(|b| bf16::from_le_bytes(b).into()).collect(),
            other => return Err(TensorError::NotNumeric(other)),
        };
        Ok(self.shaped(values))
    }

    /// The elements as integers.
    ///
    /// # Errors
    /// Where the type is not one of the integer types that shapes and indices come in.
    pub fn to_i64(&self) -> Result<ArrayD<i64>, TensorError> {
        let bytes = self.bytes()?;
        let values: Vec<i64> = match self.element {
            ElementType::I64 => words(&bytes).map(i64::from_le_bytes).collect(),
            ElementType::I32 => words(&bytes).map(|b| i32::from_le_bytes(b).into()).collect(),
            ElementType::Bool | ElementType::U8 => bytes.iter().map(|&b| b.into()).collect(),
            other => return Err(TensorError::NotNumeric(other)),
        };
        Ok(self.shaped(values))
    }

    fn shaped<T>(&self, values: Vec<T>) -> ArrayD<T> {
        #[expect(clippy::expect_used, reason = "no tensor is made whose data do not fit its shape")]
        ArrayD::from_shape_vec(IxDyn(&self.dims), values).expect("the length was checked when the tensor was made")
    }

    /// The tensor with only the `keep` indices of `axis`, in that order, whatever the element type.
    ///
    /// # Errors
    /// Where elements are not whole bytes, or there is no such axis or index.
    pub fn select(&self, axis: usize, keep: &[usize]) -> Result<Self, TensorError> {
        let bits = self.element.bits();
        if bits == 0 || !bits.is_multiple_of(8) {
            return Err(TensorError::NotNumeric(self.element));
        }
        let impossible = || TensorError::Shape(self.proto.dims.clone());
        let mut dims = self.dims.clone();
        let length = std::mem::replace(dims.get_mut(axis).ok_or_else(impossible)?, keep.len());
        if keep.iter().any(|&k| k >= length) {
            return Err(impossible());
        }
        // All that is multiplied here is no more than the bytes that are there.
        let row = dims.iter().skip(axis).skip(1).product::<usize>().saturating_mul(bits / 8);
        let bytes = self.bytes()?;
        let mut data = Vec::new();
        data.try_reserve(bytes.len().checked_div(length).unwrap_or(0).saturating_mul(keep.len()))
            .map_err(|_| impossible())?;
        for outer in bytes.chunks_exact(row.saturating_mul(length).max(1)) {
            let rows = keep.iter().filter_map(|k| outer.chunks_exact(row.max(1)).nth(*k));
            rows.for_each(|row| data.extend_from_slice(row));
        }
        Self::from_raw(self.proto.name.as_deref().unwrap_or(""), self.element, &dims, data.into())
    }
}

impl Tensor {
    /// The tensor with its axes in another order, whatever the element type.
    ///
    /// # Errors
    /// Where elements are not whole bytes, or `order` names an axis not once.
    pub fn transposed(&self, order: &[usize]) -> Result<Self, TensorError> {
        let size = self.element.bits() / 8;
        let mut axes = order.to_vec();
        axes.sort_unstable();
        if size == 0 || !axes.iter().copied().eq(0..self.dims.len()) {
            return Err(TensorError::NotNumeric(self.element));
        }
        let bytes = self.bytes()?;
        let places = ArrayD::from_shape_vec(IxDyn(&self.dims), (0..self.count()).collect::<Vec<_>>());
        let places = places.map_err(|_| TensorError::NotNumeric(self.element))?.permuted_axes(IxDyn(order));
        let element = |&i: &usize| bytes.get(i.saturating_mul(size)..).and_then(|rest| rest.get(..size));
        let data: Vec<u8> = places.iter().filter_map(element).flatten().copied().collect();
        Self::from_raw(self.proto.name.as_deref().unwrap_or(""), self.element, places.shape(), data.into())
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn floats_survive_a_round_trip_in_every_type() {
        let values = array![[1.0, -2.5], [0.0, 96.0]].into_dyn();
        for element in [ElementType::F32, ElementType::F64, ElementType::F16, ElementType::BF16] {
            assert_eq!(Tensor::from_floats(element, &values).unwrap().to_f64().unwrap(), values);
        }
    }

    #[test]
    fn select_keeps_rows_and_columns() {
        let tensor = Tensor::from_floats(ElementType::F16, &array![[1., 2., 3.], [4., 5., 6.]].into_dyn()).unwrap();
        let columns = tensor.select(1, &[2, 0]).unwrap();
        assert_eq!(columns.to_f64().unwrap(), array![[3., 1.], [6., 4.]].into_dyn());
        assert_eq!(tensor.select(0, &[1]).unwrap().to_f64().unwrap(), array![[4., 5., 6.]].into_dyn());
        assert_eq!(tensor.select(0, &[]).unwrap().dims(), [0, 3]);
    }

    #[test]
    fn a_tensor_shorter_than_its_shape_is_refused() {
        let short = Tensor::from_raw("w", ElementType::F32, &[2, 2], Bytes::from_static(&[0; 15]));
        assert!(matches!(short, Err(TensorError::Length { expected: 16, found: 15, .. })));
        let listed = TensorProto {
            dims: vec![3],
            data_type: Some(ElementType::F32.code()),
            float_data: vec![1.0; 2],
            ..TensorProto::default()
        };
        assert!(matches!(Tensor::from_proto(listed, None), Err(TensorError::Length { expected: 3, found: 2, .. })));
    }

    #[test]
    fn impossible_shapes_are_refused() {
        for dims in [vec![-1], vec![i64::MAX, i64::MAX]] {
            let proto = TensorProto { dims, data_type: Some(1), ..TensorProto::default() };
            assert!(matches!(Tensor::from_proto(proto, None), Err(TensorError::Shape(_))));
        }
    }
}
