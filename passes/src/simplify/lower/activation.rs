//! Activations with a bias in one operator.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::Fused;
use crate::ir::ValueId;

type Made = Result<Vec<Option<ValueId>>, String>;

/// Gelu(x + bias), exact.
pub(super) fn bias_gelu(fused: &mut Fused) -> Made {
    let x = biased(fused)?;
    Ok(vec![Some(erf_gelu(fused, x))])
}

/// Gelu(x), exact.
pub(super) fn gelu(fused: &mut Fused) -> Made {
    let x = fused.input(0)?;
    Ok(vec![Some(erf_gelu(fused, x))])
}

/// Gelu(x + bias) by the hyperbolic tangent; the bias is optional.
pub(super) fn fast_gelu(fused: &mut Fused) -> Made {
    let x = biased(fused)?;
    let square = fused.emit.op("Mul", &[x, x]);
    let bent = fused.scale(square, 0.044715);
    let one = fused.number(1.0);
    let bent = fused.emit.op("Add", &[bent, one]);
    let inner = fused.emit.op("Mul", &[x, bent]);
    let inner = fused.scale(inner, (2.0 / PI).sqrt());
    let t = fused.emit.op("Tanh", &[inner]);
    Ok(vec![Some(halved_gate(fused, x, t))])
}

/// x sigmoid(alpha x)
pub(super) fn quick_gelu(fused: &mut Fused) -> Made {
    let x = fused.input(0)?;
    let alpha = fused.operator.float("alpha", 1.702).into();
    let scaled = fused.scale(x, alpha);
    let gate = fused.emit.op("Sigmoid", &[scaled]);
    Ok(vec![Some(fused.emit.op("Mul", &[x, gate]))])
}

fn biased(fused: &mut Fused) -> Result<ValueId, String> {
    let x = fused.input(0)?;
    if !fused.has(1) {
        return Ok(x);
    }
    let bias = fused.input(1)?;
    Ok(fused.emit.op("Add", &[x, bias]))
}

fn erf_gelu(fused: &mut Fused, x: ValueId) -> ValueId {
    let scaled = fused.scale(x, FRAC_1_SQRT_2);
    let erf = fused.emit.op("Erf", &[scaled]);
    halved_gate(fused, x, erf)
}

/// x (1 + t) / 2
fn halved_gate(fused: &mut Fused, x: ValueId, t: ValueId) -> ValueId {
    let one = fused.number(1.0);
    let gate = fused.emit.op("Add", &[t, one]);
    let gated = fused.emit.op("Mul", &[x, gate]);
    fused.scale(gated, 0.5)
}
