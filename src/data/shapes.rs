//! Samples of different shapes in one array: each in the corner of a place that is large enough for all.

use kprune_passes::ir::Tensor;

/// The shapes of samples that are not all alike.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shapes {
    /// Shapes that occur: for every input, the axes behind that of the samples.
    pub(super) distinct: Vec<Vec<Vec<usize>>>,
    /// Which of them every sample has.
    pub(super) of: Vec<usize>,
}

impl Shapes {
    /// Those of pieces that are joined: for every piece its own, or else those of its arrays; `None` where all are alike.
    pub(super) fn joined(pieces: &[(Option<&Self>, &[Tensor])]) -> Option<Self> {
        let mut all = Self { distinct: Vec::new(), of: Vec::new() };
        for (own, arrays) in pieces {
            let whole: Vec<Vec<usize>> =
                arrays.iter().map(|a| a.dims().get(1..).unwrap_or_default().to_vec()).collect();
            let samples = arrays.iter().find_map(|a| a.dims().first().copied()).unwrap_or(0);
            match own {
                Some(own) => own.of.iter().filter_map(|&k| own.distinct.get(k)).for_each(|shape| all.push(shape)),
                None => (0..samples).for_each(|_| all.push(&whole)),
            }
        }
        (all.distinct.len() > 1).then_some(all)
    }

    fn push(&mut self, shape: &Vec<Vec<usize>>) {
        let known = self.distinct.iter().position(|s| s == shape);
        self.of.push(known.unwrap_or(self.distinct.len()));
        if known.is_none() {
            self.distinct.push(shape.clone());
        }
    }

    /// The shapes of some of the samples.
    pub(super) fn select(&self, rows: &[usize]) -> Self {
        Self { of: rows.iter().filter_map(|&r| self.of.get(r).copied()).collect(), distinct: self.distinct.clone() }
    }

    /// The shapes of some of the inputs.
    pub(super) fn of_inputs(self, places: &[usize]) -> Self {
        let of = |shape: &Vec<Vec<usize>>| places.iter().filter_map(|&p| shape.get(p).cloned()).collect();
        Self { distinct: self.distinct.iter().map(of).collect(), of: self.of }
    }

    /// The shapes where there are more inputs, of which those that are not `given` have no shape of their own.
    pub(super) fn with_more_inputs(self, given: impl Iterator<Item = bool> + Clone) -> Self {
        let of = |shape: Vec<Vec<usize>>| {
            let mut shape = shape.into_iter();
            given.clone().map(|is_given| if is_given { shape.next().unwrap_or_default() } else { Vec::new() }).collect()
        };
        Self { distinct: self.distinct.into_iter().map(of).collect(), of: self.of }
    }

    /// How long an axis of an input is for a sample; the first axis behind that of the samples is 1.
    pub(super) fn length(&self, row: usize, input: usize, axis: usize) -> Option<usize> {
        self.distinct.get(*self.of.get(row)?)?.get(input)?.get(axis.checked_sub(1)?).copied()
    }
}

/// Copies the elements of an array into a larger one, of `size` bytes each, axis by axis.
pub(super) fn place(target: &mut [u8], larger: &[usize], source: &[u8], dims: &[usize], size: usize) {
    match (larger, dims) {
        ([_, larger @ ..], [_, dims @ ..]) if larger != dims => {
            let stride = |dims: &[usize]| dims.iter().product::<usize>().saturating_mul(size).max(1);
            let rows = target.chunks_exact_mut(stride(larger)).zip(source.chunks_exact(stride(dims)));
            rows.for_each(|(target, source)| place(target, larger, source, dims, size));
        }
        _ => target.iter_mut().zip(source).for_each(|(target, source)| *target = *source),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_axis_is_filled_for_itself() {
        let mut target = [0; 12];
        place(&mut target, &[3, 4], &[1, 2, 3, 4], &[2, 2], 1);
        assert_eq!(target, [1, 2, 0, 0, 3, 4, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn samples_know_their_own_shapes() {
        let array = |dims: &[usize]| {
            let bytes = vec![0; 4 * dims.iter().product::<usize>()];
            vec![Tensor::from_raw("x", kprune_passes::ir::ElementType::F32, dims, bytes.into()).unwrap()]
        };
        let (small, large) = (array(&[2, 3]), array(&[1, 5]));
        let shapes = Shapes::joined(&[(None, &small), (None, &large)]).unwrap();
        assert_eq!((0..3).map(|row| shapes.length(row, 0, 1).unwrap()).collect::<Vec<_>>(), [3, 3, 5]);
        assert_eq!(shapes.select(&[2]).of, [1]);
        assert_eq!(Shapes::joined(&[(None, &small), (None, &small)]), None);
    }
}
