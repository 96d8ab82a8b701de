//! Numbers on a grid.

use std::fmt;
use std::str::FromStr;

use ndarray::{Array2, ArrayView2, Axis};
use serde::Serialize;

/// How many bits a weight has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bits {
    /// -127 to 127, a scale for every row.
    Int8,
    /// -7 to 7, a scale for every 32 or 16 weights of a row.
    Int4,
}

impl Bits {
    /// The largest whole number.
    pub fn most(self) -> i8 {
        match self {
            Self::Int8 => 127,
            Self::Int4 => 7,
        }
    }

    /// Weights that share a scale, of a row of `inputs`.
    pub fn group(self, inputs: usize) -> usize {
        match self {
            Self::Int8 => inputs.max(1),
            Self::Int4 => BLOCKS.into_iter().find(|&block| inputs.is_multiple_of(block)).unwrap_or(BLOCKS[0]),
        }
    }

    /// Shares of the largest weight that a scale may reach to: with many steps there is nothing to gain from cutting
    /// large weights off.
    fn reaches(self) -> &'static [f32] {
        match self {
            Self::Int8 => &[1.0],
            Self::Int4 => &[1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6],
        }
    }
}

/// Weights of a group of int4, as runtimes have kernels for: the first that rows are a multiple of, since OpenVINO takes no
/// other (ONNX Runtime does).
const BLOCKS: [usize; 2] = [32, 16];

impl FromStr for Bits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            _ => Err("expected int8 or int4".into()),
        }
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

/// A matrix on a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantised {
    /// Whole numbers: [outputs, inputs].
    pub codes: Array2<i8>,
    /// What each group of them is multiplied with: [outputs, groups].
    pub scales: Array2<f32>,
    /// How many bits they have.
    pub bits: Bits,
}

impl Quantised {
    /// The nearest that there is to `weight`, [outputs, inputs]: of every group, the scale with the least error, where that
    /// of a weight counts as often as `squares`, the squares of what it is multiplied with, summed up over tokens.
    pub fn of(weight: ArrayView2<f32>, bits: Bits, squares: Option<&[f64]>) -> Self {
        let group = bits.group(weight.ncols());
        let mut scales = Array2::ones((weight.nrows(), weight.ncols().div_ceil(group)));
        for (row, mut scales) in weight.rows().into_iter().zip(scales.rows_mut()) {
            for (place, (own, scale)) in row.axis_chunks_iter(Axis(0), group).zip(&mut scales).enumerate() {
                let start = place * group;
                *scale = best_scale(&own.to_vec(), bits, squares.map(|squares| &squares[start..start + own.len()]));
            }
        }
        let code = |(i, j)| rounded(weight[[i, j]], scales[[i, j / group]], bits);
        Self { codes: Array2::from_shape_fn(weight.raw_dim(), code), scales, bits }
    }

    /// The numbers that runtimes make of it: [outputs, inputs].
    pub fn numbers(&self) -> Array2<f32> {
        let group = self.bits.group(self.codes.ncols());
        Array2::from_shape_fn(self.codes.raw_dim(), |(i, j)| {
            f32::from(self.codes[[i, j]]) * self.scales[[i, j / group]]
        })
    }
}

/// The scale of a group.
fn best_scale(own: &[f32], bits: Bits, counts: Option<&[f64]>) -> f32 {
    let largest = own.iter().fold(0.0f32, |a, w| a.max(w.abs()));
    let whole = largest / f32::from(bits.most());
    // Nothing is divided by a scale that is as good as zero.
    if whole < f32::MIN_POSITIVE {
        return 1.0;
    }
    let error = |scale: f32| -> f64 {
        let each = own.iter().enumerate().map(|(j, &w)| {
            let apart = f64::from(f32::from(rounded(w, scale, bits)) * scale - w);
            apart * apart * counts.map_or(1.0, |counts| counts[j])
        });
        each.sum()
    };
    if bits.reaches().len() == 1 {
        return whole;
    }
    let scales = bits.reaches().iter().map(|reach| reach * whole);
    scales.map(|s| (s, error(s))).min_by(|a, b| a.1.total_cmp(&b.1)).map_or(whole, |(scale, _)| scale)
}

fn rounded(weight: f32, scale: f32, bits: Bits) -> i8 {
    let most = f32::from(bits.most());
    (weight / scale).round_ties_even().clamp(-most, most) as i8
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn numbers_are_within_half_a_step_and_zeros_stay_zero() {
        let weight =
            Array2::from_shape_fn((3, 70), |(i, j)| if j % 3 == 0 { 0.0 } else { ((i * 70 + j) as f32).sin() });
        let quantised = Quantised::of(weight.view(), Bits::Int8, None);
        assert_eq!(quantised.scales.dim(), (3, 1));
        for ((i, j), &number) in quantised.numbers().indexed_iter() {
            assert!((number - weight[[i, j]]).abs() <= 0.51 * quantised.scales[[i, 0]]);
            assert!(weight[[i, j]] != 0.0 || number == 0.0);
        }
        let quantised = Quantised::of(weight.view(), Bits::Int4, None);
        assert_eq!(quantised.scales.dim(), (3, 3), "32, 32 and 6");
        assert_eq!([64, 48, 70, 8].map(|inputs| Bits::Int4.group(inputs)), [32, 16, 32, 32]);
        assert!(quantised.codes.iter().all(|code| (-7..=7).contains(code)));
    }

    #[test]
    fn large_weights_that_are_multiplied_with_little_are_cut_off() {
        let mut weight = Array2::from_shape_fn((1, 32), |(_, j)| 0.1 + 0.01 * j as f32);
        weight[[0, 5]] = 0.7;
        let mut squares = vec![1.0; 32];
        let scale = |squares: &[f64]| Quantised::of(weight.view(), Bits::Int4, Some(squares)).scales[[0, 0]];
        squares[5] = 1e6;
        let whole = scale(&squares);
        squares[5] = 1e-6;
        assert!(scale(&squares) < whole && (whole - 0.1).abs() < 0.01);
    }

    #[test]
    fn a_row_of_zeros_is_a_row_of_zeros() {
        for bits in [Bits::Int8, Bits::Int4] {
            let quantised = Quantised::of(array![[0.0f32, 0.0], [1e-42, 0.0]].view(), bits, None);
            assert!(quantised.numbers().iter().all(|&x| x == 0.0));
            assert!(quantised.scales.iter().all(|&s| s == 1.0));
        }
    }
}
