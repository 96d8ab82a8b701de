//! Activations with a bias in one operator.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::{Decline, Made, Rule, Scene};
use crate::ir::ValueId;
use crate::rules::Table;

/// Of com.microsoft.
pub(super) const RULES: Table<Rule> =
    &[(&["BiasGelu"], bias_gelu), (&["FastGelu"], fast_gelu), (&["Gelu"], gelu), (&["QuickGelu"], quick_gelu)];

/// Gelu(x + bias), exact.
fn bias_gelu(scene: &mut Scene) -> Made {
    let x = biased(scene)?;
    Ok(vec![Some(erf_gelu(scene, x))])
}

/// Gelu(x), exact.
fn gelu(scene: &mut Scene) -> Made {
    let x = scene.input(0)?;
    Ok(vec![Some(erf_gelu(scene, x))])
}

/// Gelu(x + bias) by the hyperbolic tangent; the bias is optional.
fn fast_gelu(scene: &mut Scene) -> Made {
    let x = biased(scene)?;
    let square = scene.emit.op("Mul", &[x, x]);
    let bent = scene.scale(square, 0.044715);
    let one = scene.number(1.0);
    let bent = scene.emit.op("Add", &[bent, one]);
    let inner = scene.emit.op("Mul", &[x, bent]);
    let inner = scene.scale(inner, (2.0 / PI).sqrt());
    let t = scene.emit.op("Tanh", &[inner]);
    Ok(vec![Some(halved_gate(scene, x, t))])
}

/// x sigmoid(alpha x)
fn quick_gelu(scene: &mut Scene) -> Made {
    let x = scene.input(0)?;
    let alpha = scene.operator.float("alpha", 1.702).into();
    let scaled = scene.scale(x, alpha);
    let gate = scene.emit.op("Sigmoid", &[scaled]);
    Ok(vec![Some(scene.emit.op("Mul", &[x, gate]))])
}

fn biased(scene: &mut Scene) -> Result<ValueId, Decline> {
    let x = scene.input(0)?;
    if !scene.has(1) {
        return Ok(x);
    }
    let bias = scene.input(1)?;
    Ok(scene.emit.op("Add", &[x, bias]))
}

fn erf_gelu(scene: &mut Scene, x: ValueId) -> ValueId {
    let scaled = scene.scale(x, FRAC_1_SQRT_2);
    let erf = scene.emit.op("Erf", &[scaled]);
    halved_gate(scene, x, erf)
}

/// x (1 + t) / 2
fn halved_gate(scene: &mut Scene, x: ValueId, t: ValueId) -> ValueId {
    let one = scene.number(1.0);
    let gate = scene.emit.op("Add", &[t, one]);
    let gated = scene.emit.op("Mul", &[x, gate]);
    scene.scale(gated, 0.5)
}
