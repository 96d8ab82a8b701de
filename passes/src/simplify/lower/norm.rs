//! Normalisations that add the residual stream, and root-mean-square normalisation.

use super::{Decline, Made, Rule, Scene};
use crate::ir::{Operator, ValueId, attribute};
use crate::rules::Table;

/// Of com.microsoft.
pub(super) const RULES: Table<Rule> =
    &[(&["SkipLayerNormalization"], skip_layer_norm), (&["SkipSimplifiedLayerNormalization"], skip_rms_norm)];
/// Of ONNX Runtime, but listed as any domain's.
pub(super) const ANY: Table<Rule> = &[(&["SimplifiedLayerNormalization"], rms_norm)];

/// LayerNorm(input + skip + bias); its fourth output is that sum.
fn skip_layer_norm(scene: &mut Scene) -> Made {
    let sum = skip_sum(scene, 4)?;
    let mut inputs = vec![sum, scene.input(2)?];
    if scene.has(3) {
        inputs.push(scene.input(3)?);
    }
    let operator = Operator::new("LayerNormalization")
        .with(attribute::int("axis", -1))
        .with(attribute::float("epsilon", scene.operator.float("epsilon", 1e-12)));
    let normal = scene.emit.with(operator, &inputs);
    Ok(vec![Some(normal), None, None, Some(sum)])
}

/// RmsNorm(input + skip + bias); its fourth output is that sum.
fn skip_rms_norm(scene: &mut Scene) -> Made {
    let sum = skip_sum(scene, 3)?;
    let scale = scene.input(2)?;
    let epsilon = scene.operator.float("epsilon", 1e-12).into();
    let normal = root_mean_square(scene, sum, scale, epsilon);
    Ok(vec![Some(normal), None, None, Some(sum)])
}

/// RmsNorm(x) over the last axis.
fn rms_norm(scene: &mut Scene) -> Made {
    scene.refuse(&[], &[1])?;
    if scene.operator.int("axis", -1) != -1 {
        return Err("it normalises over several axes".into());
    }
    let (x, scale) = (scene.input(0)?, scene.input(1)?);
    let epsilon = scene.operator.float("epsilon", 1e-5).into();
    Ok(vec![Some(root_mean_square(scene, x, scale, epsilon))])
}

/// The projection's output meets the stream first, as in the graphs that were fused; the bias comes last.
fn skip_sum(scene: &mut Scene, bias: usize) -> Result<ValueId, Decline> {
    scene.refuse(&[], &[1, 2])?;
    let (input, skip) = (scene.input(0)?, scene.input(1)?);
    let sum = scene.emit.op("Add", &[input, skip]);
    if !scene.has(bias) {
        return Ok(sum);
    }
    let bias = scene.input(bias)?;
    Ok(scene.emit.op("Add", &[sum, bias]))
}

fn root_mean_square(scene: &mut Scene, x: ValueId, scale: ValueId, epsilon: f64) -> ValueId {
    let square = scene.emit.op("Mul", &[x, x]);
    let mean = scene.emit.reduce_mean(square, &[-1]);
    let epsilon = scene.number(epsilon);
    let mean = scene.emit.op("Add", &[mean, epsilon]);
    let root = scene.emit.op("Sqrt", &[mean]);
    let unit = scene.emit.op("Div", &[x, root]);
    scene.emit.op("Mul", &[unit, scale])
}
