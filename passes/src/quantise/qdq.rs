//! Quantised matrices in a model.

use ndarray::{Array2, ArrayView2};

use super::grid::{Bits, Quantised};
use crate::ir::{ElementType, Model, Operator, Tensor, TensorError, ValueId, attribute};

/// The operator set from which on scales may be of half precision.
const HALF_SCALES: i64 = 19;

/// Lets a model make the constant `weight` of what was quantised, wherever it is read; its axis `inputs_axis` is the one
/// along which products are summed up.
///
/// # Errors
/// Where it is no constant.
pub fn write(model: &mut Model, weight: ValueId, inputs_axis: usize, quantised: &Quantised) -> Result<(), TensorError> {
    let opset = model.opset("").unwrap_or(0);
    let graph = &mut model.graph;
    let element = graph.constant(weight).ok_or(TensorError::Missing)?.element();
    let name = graph.name(weight).to_string();
    let of_scales = if opset >= HALF_SCALES && element != ElementType::F64 { element } else { ElementType::F32 };
    let (codes, scales, operator) = match quantised.bits {
        Bits::Int8 => {
            let scales = Tensor::from_floats(of_scales, &quantised.scales.column(0).mapv(f64::from).into_dyn())?;
            let operator = Operator::new("DequantizeLinear").with(attribute::int("axis", 1 - inputs_axis as i64));
            (integers(&stored(quantised.codes.view(), inputs_axis), Bits::Int8)?, scales, operator)
        }
        Bits::Int4 => {
            let scales = stored(quantised.scales.view(), inputs_axis).mapv(f64::from).into_dyn();
            let group = quantised.bits.group(quantised.codes.ncols());
            let operator = Operator::new("DequantizeLinear").with(attribute::int("axis", inputs_axis as i64));
            let operator = operator.with(attribute::int("block_size", group as i64));
            let codes = integers(&stored(quantised.codes.view(), inputs_axis), Bits::Int4)?;
            (codes, Tensor::from_floats(of_scales, &scales)?, operator)
        }
    };
    let codes = graph.add_constant(&format!("{name}_quantized"), codes);
    let scales = graph.add_constant(&format!("{name}_scale"), scales);
    let mut made = graph.add(operator, &[codes, scales], &format!("{name}_dequantized"));
    if of_scales != element {
        let cast = Operator::new("Cast").with(attribute::int("to", element.code().into()));
        made = graph.add(cast, &[made], &format!("{name}_cast"));
    }
    graph.replace_reads(weight, made);
    graph.remove_dead();
    Ok(())
}

/// [outputs, inputs] as the constant is stored.
fn stored<T: Copy>(by_rows: ArrayView2<T>, inputs_axis: usize) -> Array2<T> {
    let stored = if inputs_axis == 0 { by_rows.reversed_axes() } else { by_rows };
    stored.as_standard_layout().into_owned()
}

/// Whole numbers, two to a byte where they have four bits, the first in the lower half.
fn integers(codes: &Array2<i8>, bits: Bits) -> Result<Tensor, TensorError> {
    let codes_of: Vec<u8> = codes.iter().map(|&code| code as u8).collect();
    let (element, bytes) = match bits {
        Bits::Int8 => (ElementType::I8, codes_of),
        Bits::Int4 => {
            let pair = |pair: &[u8]| (pair[0] & 0xf) | (pair.get(1).copied().unwrap_or(0) << 4);
            (ElementType::I4, codes_of.chunks(2).map(pair).collect())
        }
    };
    Tensor::from_raw("", element, codes.shape(), bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{B, Sketch, n};
    use ndarray::array;

    #[test]
    fn a_matrix_becomes_whole_numbers_with_a_scale_behind_the_same_product() {
        let mut g = Sketch::default();
        let (x, w) = (g.input("x", &[B, n(3)]), g.weight("w", &[3, 2]));
        let y = g.on("MatMul", &[x, w]);
        g.graph.add_output(y);
        let rows = array![[1.0f32, -0.5, 0.0], [0.25, 0.0, 2.0]];
        for (bits, opset, axis) in [(Bits::Int8, 17, 1), (Bits::Int4, 21, 0)] {
            let mut model = Model::new(g.graph.clone(), opset);
            write(&mut model, w, 0, &Quantised::of(rows.view(), bits, None)).unwrap();
            let graph = &model.graph;
            let product = graph.producer(y).unwrap().0;
            let made = graph.producer(graph.operator(product).input(1).unwrap()).unwrap().0;
            let operator = graph.operator(made);
            assert!(operator.is("DequantizeLinear") && operator.int("axis", -1) == axis);
            let codes = graph.constant(operator.input(0).unwrap()).unwrap();
            assert_eq!(codes.dims(), [3, 2], "as it was stored");
            assert_eq!(graph.name(operator.input(0).unwrap()), "w_quantized");
            assert!(!graph.holds(w) || graph.consumers(w).is_empty());
        }
    }

    #[test]
    fn four_bits_are_packed_two_to_a_byte() {
        let tensor = integers(&array![[1, -1, 7], [-7, 0, 2]], Bits::Int4).unwrap();
        assert_eq!(tensor.bytes().unwrap().as_ref(), [0xf1, 0x97, 0x20]);
    }
}
