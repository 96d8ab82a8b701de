//! Normalisations that add the residual stream, and root-mean-square normalisation.

use super::Fused;
use crate::ir::{Operator, ValueId, attribute};

type Made = Result<Vec<Option<ValueId>>, String>;

/// LayerNorm(input + skip + bias); its fourth output is that sum.
pub(super) fn skip_layer_norm(fused: &mut Fused) -> Made {
    let sum = skip_sum(fused, 4)?;
    let mut inputs = vec![sum, fused.input(2)?];
    if fused.has(3) {
        inputs.push(fused.input(3)?);
    }
    let operator = Operator::new("LayerNormalization")
        .with(attribute::int("axis", -1))
        .with(attribute::float("epsilon", fused.operator.float("epsilon", 1e-12)));
    let normal = fused.emit.with(operator, &inputs);
    Ok(vec![Some(normal), None, None, Some(sum)])
}

/// RmsNorm(input + skip + bias); its fourth output is that sum.
pub(super) fn skip_rms_norm(fused: &mut Fused) -> Made {
    let sum = skip_sum(fused, 3)?;
    let scale = fused.input(2)?;
    let epsilon = fused.operator.float("epsilon", 1e-12).into();
    let normal = root_mean_square(fused, sum, scale, epsilon);
    Ok(vec![Some(normal), None, None, Some(sum)])
}

/// RmsNorm(x) over the last axis.
pub(super) fn rms_norm(fused: &mut Fused) -> Made {
    fused.refuse(&[], &[1])?;
    if fused.operator.int("axis", -1) != -1 {
        return Err("it normalises over several axes".into());
    }
    let (x, scale) = (fused.input(0)?, fused.input(1)?);
    let epsilon = fused.operator.float("epsilon", 1e-5).into();
    Ok(vec![Some(root_mean_square(fused, x, scale, epsilon))])
}

/// The projection's output meets the stream first, as in the graphs that were fused; the bias comes last.
fn skip_sum(fused: &mut Fused, bias: usize) -> Result<ValueId, String> {
    fused.refuse(&[], &[1, 2])?;
    let (input, skip) = (fused.input(0)?, fused.input(1)?);
    let sum = fused.emit.op("Add", &[input, skip]);
    if !fused.has(bias) {
        return Ok(sum);
    }
    let bias = fused.input(bias)?;
    Ok(fused.emit.op("Add", &[sum, bias]))
}

fn root_mean_square(fused: &mut Fused, x: ValueId, scale: ValueId, epsilon: f64) -> ValueId {
    let square = fused.emit.op("Mul", &[x, x]);
    let mean = fused.emit.reduce_mean(square, &[-1]);
    let epsilon = fused.number(epsilon);
    let mean = fused.emit.op("Add", &[mean, epsilon]);
    let root = fused.emit.op("Sqrt", &[mean]);
    let unit = fused.emit.op("Div", &[x, root]);
    fused.emit.op("Mul", &[unit, scale])
}
