//! Which tokens of the samples are real.

use std::path::Path;

use kprune_passes::ir::Tensor;
use kprune_passes::signature::Input;

use super::labels::converted;
use crate::error::Error;

/// Which tokens are real.
#[derive(Clone, Debug)]
pub(super) struct Mask {
    pub(super) input: usize,
    /// Whether 1 stands for padding and 0 for real tokens.
    pub(super) marks_padding: bool,
    /// Real tokens of every sample.
    pub(super) tokens: Vec<usize>,
    /// One more than the place of the last real token of every sample.
    pub(super) lengths: Vec<usize>,
}

/// What is written instead of a name where there is no token mask.
pub(super) const NONE: &str = "none";

/// What the token mask is called nearly everywhere.
const USUAL: &str = "attention_mask";

impl Mask {
    /// The token mask: the input that was named; or else one that is a mask by its shape and its numbers. Whatever else
    /// is called a mask is fed as it is.
    pub(super) fn find(
        inputs: &[Input],
        arrays: &[Tensor],
        given: Option<&str>,
        path: &Path,
    ) -> Result<Option<Self>, Error> {
        let usual = || inputs.iter().position(|i| i.name == USUAL);
        let input = match given {
            Some(NONE) => None,
            Some(name) => Some(inputs.iter().position(|i| i.name == name).ok_or_else(|| no_such_input(name, inputs))?),
            None => usual().filter(|&i| arrays.get(i).is_some_and(is_of_ones_and_zeros)).or_else(|| {
                let is_padding = |&i: &usize| arrays.get(i).is_some_and(pads_to_the_right);
                (0..inputs.len()).find(is_padding)
            }),
        };
        let found = input.and_then(|i| Some((i, inputs.get(i)?, arrays.get(i)?)));
        found.map(|(i, input, array)| Self::of(i, &input.name, array, (given.is_some(), false), path)).transpose()
    }

    /// The mask in an input. Where it was named, other numbers than 0 are real too: an input of ids can say where padding
    /// is.
    ///
    /// # Errors
    /// Where it holds other numbers, or a sample has no real token.
    pub(super) fn of(
        input: usize,
        name: &str,
        array: &Tensor,
        (is_named, marks_padding): (bool, bool),
        path: &Path,
    ) -> Result<Self, Error> {
        let help = match marks_padding {
            true => "the mask holds 0 for real tokens and 1 for padding",
            false => "the mask holds 1 for real tokens and 0 for padding",
        };
        let wrong = |reason: String| Error::data(path, reason, help);
        let &[_, width] = array.dims() else {
            return Err(wrong(format!("the mask {name:?} has the shape {:?} and not [samples, tokens]", array.dims())));
        };
        let numbers = numbers(array).ok_or_else(|| wrong(format!("the mask {name:?} holds no numbers")))?;
        let is_id = |x: f64| is_named && !array.element().is_float() && x > 0.0;
        if let Some(odd) = numbers.iter().find(|&&x| x != 0.0 && x != 1.0 && !is_id(x)) {
            return Err(wrong(format!("the mask {name:?} holds {odd}")));
        }
        let rows = || numbers.chunks(width.max(1));
        let is_real = |x: &f64| (*x > 0.0) != marks_padding;
        let tokens: Vec<_> = rows().map(|r| r.iter().filter(|x| is_real(x)).count()).collect();
        if let Some(empty) = tokens.iter().position(|&n| n == 0) {
            return Err(wrong(format!("sample {empty} has no real token in {name:?}")));
        }
        let lengths = rows().map(|r| r.iter().rposition(is_real).map_or(0, |last| last + 1)).collect();
        Ok(Self { input, marks_padding, tokens, lengths })
    }
}

fn no_such_input(name: &str, inputs: &[Input]) -> Error {
    let known: Vec<_> = inputs.iter().map(|i| i.name.as_str()).collect();
    let known = known.join(", ");
    Error::Usage(format!(
        "--mask-input {name}: the model has no such input; it has {known} (none says there is no mask)"
    ))
}

pub(super) fn numbers(array: &Tensor) -> Option<Vec<f64>> {
    match array.to_i64() {
        Ok(ints) => Some(ints.iter().map(|&x| x as f64).collect()),
        Err(_) => Some(array.to_f64().ok()?.iter().copied().collect()),
    }
}

/// Ones and zeros in the element type of `like`.
///
/// # Errors
/// Where that type has none.
pub(crate) fn integers_like(like: &Tensor, dims: &[usize], integers: &[i64]) -> Result<Tensor, Error> {
    let odd = || Error::internal(format!("no mask is made of {}", like.element()));
    converted(&Tensor::from_i64s(dims, integers), like.element()).ok_or_else(odd)
}

/// A mask of [samples, tokens] that calls the first `real` tokens real, in the element type of `like`.
///
/// # Errors
/// Where that type has no ones and zeros.
pub(super) fn marking(
    like: &Tensor,
    (samples, tokens): (usize, usize),
    real: usize,
    marks_padding: bool,
) -> Result<Tensor, Error> {
    let marks: Vec<i64> = (0..samples * tokens).map(|i| ((i % tokens < real) != marks_padding) as i64).collect();
    integers_like(like, &[samples, tokens], &marks)
}

/// Whether an array is [samples, tokens] of ones and zeros.
pub(super) fn is_of_ones_and_zeros(array: &Tensor) -> bool {
    let is_flag = |x: &f64| *x == 0.0 || *x == 1.0;
    array.dims().len() == 2 && numbers(array).is_some_and(|all| all.iter().all(is_flag))
}

/// Whether an array is [samples, tokens], every sample ones and then zeros, and some zeros. Token types, which are ones
/// and zeros too, begin with zeros.
fn pads_to_the_right(array: &Tensor) -> bool {
    let &[_, width] = array.dims() else { return false };
    if width < 2 || !is_of_ones_and_zeros(array) {
        return false;
    }
    let numbers = numbers(array).unwrap_or_default();
    let falls = |row: &[f64]| row.first() == Some(&1.0) && row.is_sorted_by(|a, b| a >= b);
    numbers.contains(&0.0) && numbers.chunks(width).all(falls)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kprune_passes::ir::ElementType;
    use kprune_passes::ir::Graph;
    use kprune_passes::ir::Model;
    use kprune_passes::signature::{self, declare};
    use ndarray::{ArrayD, IxDyn};

    use super::*;

    /// What is found among inputs of these names, shapes and numbers.
    fn find(arrays: &[(&str, &[usize], &[f64])], given: Option<&str>) -> Result<Option<Mask>, Error> {
        let mut graph = Graph::new();
        for (name, shape, _) in arrays {
            graph.add_input(declare(name, ElementType::F32, shape.len()));
        }
        let inputs = signature::inputs(&Model::new(graph, 17));
        let array = |(_, shape, numbers): &(&str, &[usize], &[f64])| {
            let array = ArrayD::from_shape_vec(IxDyn(shape), numbers.to_vec()).unwrap();
            Tensor::from_floats(ElementType::F32, &array).unwrap()
        };
        let arrays: Vec<Tensor> = arrays.iter().map(array).collect();
        Mask::find(&inputs, &arrays, given, Path::new("data.npz"))
    }

    const PADDED: (&str, &[usize], &[f64]) = ("valid", &[2, 3], &[1.0, 1.0, 0.0, 1.0, 1.0, 1.0]);
    const TYPES: (&str, &[usize], &[f64]) = ("types", &[2, 3], &[0.0, 1.0, 1.0, 0.0, 0.0, 1.0]);

    #[test]
    fn a_mask_is_one_by_its_numbers_whatever_it_is_called() {
        let mask = find(&[TYPES, PADDED], None).unwrap().unwrap();
        assert_eq!((mask.input, mask.tokens, mask.lengths), (1, vec![2, 3], vec![2, 3]));
        assert!(find(&[TYPES], None).unwrap().is_none());
        assert!(find(&[("full", &[2, 2], &[1.0; 4])], None).unwrap().is_none(), "it pads nothing");
    }

    #[test]
    fn the_usual_name_may_pad_to_the_left() {
        let left: (&str, &[usize], &[f64]) = (USUAL, &[2, 3], &[0.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(find(&[left], None).unwrap().unwrap().tokens, [2, 3]);
    }

    #[test]
    fn what_is_called_a_mask_and_is_none_is_fed_as_it_is() {
        let additive: (&str, &[usize], &[f64]) = (USUAL, &[2, 2], &[0.0, -1e4, 0.0, 0.0]);
        let four_axes: (&str, &[usize], &[f64]) = (USUAL, &[2, 1, 1, 2], &[1.0, 0.0, 1.0, 1.0]);
        for mask in [additive, four_axes] {
            assert!(find(&[mask], None).unwrap().is_none());
            assert!(matches!(find(&[mask], Some(USUAL)), Err(Error::Data { .. })), "it was named");
        }
        assert!(find(&[PADDED], Some("none")).unwrap().is_none());
        let refused = find(&[PADDED], Some("mask")).unwrap_err().to_string();
        assert!(refused.contains("it has valid"), "{refused}");
    }

    #[test]
    fn an_input_of_ids_says_where_padding_is_if_it_is_named() {
        let mut graph = Graph::new();
        graph.add_input(declare("atoms", ElementType::I64, 2));
        let inputs = signature::inputs(&Model::new(graph, 17));
        let atoms = [Tensor::from_i64s(&[2, 3], &[7, 8, 0, 4, 5, 9])];
        let found = |given| Mask::find(&inputs, &atoms, given, Path::new("data.npz")).unwrap();
        assert_eq!(found(Some("atoms")).unwrap().lengths, [2, 3]);
        assert!(found(None).is_none());
    }

    #[test]
    fn a_sample_without_real_tokens_is_named() {
        let empty: (&str, &[usize], &[f64]) = (USUAL, &[2, 2], &[1.0, 0.0, 0.0, 0.0]);
        assert!(find(&[empty], None).unwrap_err().to_string().contains("sample 1 has no real token"));
    }
}
