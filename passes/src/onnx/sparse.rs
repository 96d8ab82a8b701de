//! Constants that a file gives by their elements that are not zero.

use crate::ir::schema::{SparseTensorProto, TensorProto};
use crate::ir::{ElementType, Tensor};

/// A constant of which no more than one in so many elements is not zero is not made whole, unless it is small: a few bytes
/// of a file should not ask for gigabytes.
const SPARSEST: usize = 1000;

/// So many elements are few.
const SMALL: usize = 1 << 20;

/// The whole constant; `None` where it is none that the passes know what to do with.
pub(super) fn dense(sparse: &SparseTensorProto) -> Option<Tensor> {
    let values = sparse.values.clone().filter(|v| v.data_location.unwrap_or(0) == 0)?;
    let name = values.name().to_string();
    let values = Tensor::from_proto(values, None).ok()?;
    let indices = Tensor::from_proto(sparse.indices.clone()?, None).ok()?;
    let dims: Vec<usize> = sparse.dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    let size = values.element().bits() / 8;
    if size == 0 || count > SMALL.max(values.count().saturating_mul(SPARSEST)) {
        return None;
    }
    let places = places(&indices, &dims, values.count())?;
    let (mut bytes, given) = (vec![0u8; count.checked_mul(size)?], values.bytes().ok()?);
    for (place, element) in places.into_iter().zip(given.chunks_exact(size)) {
        bytes.get_mut(place.checked_mul(size)?..)?.get_mut(..size)?.copy_from_slice(element);
    }
    Tensor::from_raw(&name, values.element(), &dims, bytes.into()).ok()
}

/// Where the elements lie: given as one number each, or as one for every axis.
fn places(indices: &Tensor, dims: &[usize], count: usize) -> Option<Vec<usize>> {
    let numbers: Vec<usize> = indices.to_i64().ok()?.iter().map(|&i| usize::try_from(i).ok()).collect::<Option<_>>()?;
    match *indices.dims() {
        [n] if n == count => Some(numbers),
        [n, rank] if n == count && rank == dims.len() && rank > 0 => {
            let place = |at: &[usize]| {
                at.iter()
                    .zip(dims)
                    .try_fold(0usize, |sum, (&i, &d)| sum.checked_mul(d)?.checked_add(i).filter(|_| i < d))
            };
            numbers.chunks_exact(rank).map(place).collect()
        }
        _ => None,
    }
}

/// The constant by its elements that are not zero; `None` for types of less than a byte, and strings.
pub(super) fn sparse(tensor: &Tensor) -> Option<SparseTensorProto> {
    let size = tensor.element().bits() / 8;
    if size == 0 {
        return None;
    }
    let bytes = tensor.bytes().ok()?;
    let elements = bytes.chunks_exact(size).enumerate().filter(|(_, element)| element.iter().any(|&b| b != 0));
    let (mut places, mut values): (Vec<i64>, Vec<u8>) = Default::default();
    for (place, element) in elements {
        places.push(place as i64);
        values.extend_from_slice(element);
    }
    let count = places.len();
    let values = Tensor::from_raw(tensor.proto().name(), tensor.element(), &[count], values.into()).ok()?;
    let list = |tensor: Tensor| -> TensorProto { tensor.proto().clone() };
    Some(SparseTensorProto {
        values: Some(list(values)),
        indices: Some(list(Tensor::from_i64s(&[count], &places))),
        dims: tensor.dims().iter().map(|&d| d as i64).collect(),
    })
}

/// Whether elements and their places take fewer bytes than the whole.
pub(super) fn is_smaller(tensor: &Tensor, sparse: &SparseTensorProto) -> bool {
    let count = sparse.values.as_ref().map_or(0, |v| v.dims.iter().product::<i64>()) as usize;
    let size = tensor.element().bits() / 8;
    count * (size + ElementType::I64.bits() / 8) < tensor.count() * size
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn tensor() -> Tensor {
        let numbers = array![[0.0, 1.5, 0.0], [-2.0, 0.0, 0.0]].into_dyn();
        Tensor::from_floats(ElementType::F32, &numbers).unwrap().named("w")
    }

    #[test]
    fn a_constant_is_the_same_after_there_and_back() {
        let there = sparse(&tensor()).unwrap();
        assert_eq!(there.indices.as_ref().unwrap().dims, [2]);
        let back = dense(&there).unwrap();
        assert_eq!(
            (back.dims(), back.bytes().unwrap(), back.proto().name()),
            (&[2, 3][..], tensor().bytes().unwrap(), "w")
        );
    }

    #[test]
    fn places_may_be_given_axis_by_axis() {
        let mut given = sparse(&tensor()).unwrap();
        given.indices = Some(Tensor::from_i64s(&[2, 2], &[0, 1, 1, 0]).proto().clone());
        assert_eq!(dense(&given).unwrap().bytes().unwrap(), tensor().bytes().unwrap());
    }

    #[test]
    fn what_is_wrong_or_asks_for_too_much_stays_as_it_is() {
        let mut outside = sparse(&tensor()).unwrap();
        outside.indices = Some(Tensor::from_i64s(&[2], &[1, 6]).proto().clone());
        assert!(dense(&outside).is_none());
        let mut negative = sparse(&tensor()).unwrap();
        negative.indices = Some(Tensor::from_i64s(&[2], &[1, -3]).proto().clone());
        assert!(dense(&negative).is_none());
        let mut huge = sparse(&tensor()).unwrap();
        huge.dims = vec![1 << 20, 1 << 20];
        assert!(dense(&huge).is_none());
        let mut odd = sparse(&tensor()).unwrap();
        odd.indices = Some(Tensor::from_i64s(&[1], &[1]).proto().clone());
        assert!(dense(&odd).is_none());
    }
}
