//! Gradient rules for functions of one variable.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::{Decline, Inputs, Rule, Scene};
use crate::ir::ValueId;
use crate::rules::Table;

pub(super) const RULES: Table<Rule> = &[(
    &[
        "Abs",
        "Cos",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Reciprocal",
        "Relu",
        "Sigmoid",
        "Sin",
        "Softplus",
        "Sqrt",
        "Swish",
        "Tanh",
    ],
    unary,
)];

/// The gradient times the derivative of a function of one variable.
fn unary(scene: &mut Scene) -> Result<Inputs, Decline> {
    let slope = slope(scene)?;
    let g = scene.gradient()?;
    Ok(vec![(0, scene.emit.op("Mul", &[g, slope]))])
}

/// The derivative of a function of one variable.
fn slope(scene: &mut Scene) -> Result<ValueId, Decline> {
    let (x, y) = (scene.input(0)?, scene.output()?);
    Ok(match scene.operator.op_type.as_str() {
        "Neg" => scene.number(-1.0)?,
        "Exp" => y,
        "Log" => scene.emit.op("Reciprocal", &[x]),
        "Sqrt" => {
            let half = scene.number(0.5)?;
            scene.emit.op("Div", &[half, y])
        }
        "Reciprocal" => {
            let square = scene.emit.op("Mul", &[y, y]);
            scene.emit.op("Neg", &[square])
        }
        "Abs" => scene.emit.op("Sign", &[x]),
        "Sin" => scene.emit.op("Cos", &[x]),
        "Cos" => {
            let sin = scene.emit.op("Sin", &[x]);
            scene.emit.op("Neg", &[sin])
        }
        "Tanh" => one_minus_square(scene, y)?,
        "Sigmoid" => sigmoid_slope(scene, y)?,
        "Softplus" => scene.emit.op("Sigmoid", &[x]),
        "Relu" => {
            let sign = scene.emit.op("Sign", &[x]);
            scene.emit.op("Relu", &[sign])
        }
        "Erf" => gaussian(scene, x, 2.0 / PI.sqrt(), 1.0)?,
        "Gelu" if scene.operator.text("approximate", "none") == "none" => erf_gelu_slope(scene, x)?,
        "Gelu" => tanh_gelu_slope(scene, x)?,
        "Swish" => swish_slope(scene, x, y)?,
        "Mish" => mish_slope(scene, x)?,
        _ => piecewise_slope(scene, x, y)?,
    })
}

fn one_minus_square(scene: &mut Scene, y: ValueId) -> Result<ValueId, Decline> {
    let (one, square) = (scene.number(1.0)?, scene.emit.op("Mul", &[y, y]));
    Ok(scene.emit.op("Sub", &[one, square]))
}

fn sigmoid_slope(scene: &mut Scene, y: ValueId) -> Result<ValueId, Decline> {
    let one = scene.number(1.0)?;
    let rest = scene.emit.op("Sub", &[one, y]);
    Ok(scene.emit.op("Mul", &[y, rest]))
}

/// factor * exp(-rate * x^2)
fn gaussian(scene: &mut Scene, x: ValueId, factor: f64, rate: f64) -> Result<ValueId, Decline> {
    let (factor, rate) = (scene.number(factor)?, scene.number(-rate)?);
    let square = scene.emit.op("Mul", &[x, x]);
    let scaled = scene.emit.op("Mul", &[square, rate]);
    let bell = scene.emit.op("Exp", &[scaled]);
    Ok(scene.emit.op("Mul", &[bell, factor]))
}

/// Phi(x) + x phi(x), with the normal distribution's Phi and phi.
fn erf_gelu_slope(scene: &mut Scene, x: ValueId) -> Result<ValueId, Decline> {
    let (root, half) = (scene.number(FRAC_1_SQRT_2)?, scene.number(0.5)?);
    let scaled = scene.emit.op("Mul", &[x, root]);
    let erf = scene.emit.op("Erf", &[scaled]);
    let part = scene.emit.op("Mul", &[erf, half]);
    let phi = scene.emit.op("Add", &[part, half]);
    let bell = gaussian(scene, x, 1.0 / (2.0 * PI).sqrt(), 0.5)?;
    let moved = scene.emit.op("Mul", &[x, bell]);
    Ok(scene.emit.op("Add", &[phi, moved]))
}

/// For y = x/2 (1 + t), t = tanh(c (x + 0.044715 x^3)): (1 + t)/2 + x/2 (1 - t^2) c (1 + 0.134145 x^2).
fn tanh_gelu_slope(scene: &mut Scene, x: ValueId) -> Result<ValueId, Decline> {
    let root = scene.number((2.0 / PI).sqrt())?;
    let (cubic, one, half) = (scene.number(0.044715)?, scene.number(1.0)?, scene.number(0.5)?);
    let square = scene.emit.op("Mul", &[x, x]);
    let bent = scene.emit.op("Mul", &[square, cubic]);
    let factor = scene.emit.op("Add", &[bent, one]);
    let grown = scene.emit.op("Mul", &[x, factor]);
    let inner = scene.emit.op("Mul", &[grown, root]);
    let t = scene.emit.op("Tanh", &[inner]);
    let (three, rest) = (scene.number(3.0)?, one_minus_square(scene, t)?);
    let bent3 = scene.emit.op("Mul", &[bent, three]);
    let slope = scene.emit.op("Add", &[bent3, one]);
    let slope = scene.emit.op("Mul", &[slope, root]);
    let slope = scene.emit.op("Mul", &[slope, rest]);
    let slope = scene.emit.op("Mul", &[slope, x]);
    let left = scene.emit.op("Add", &[t, one]);
    let sum = scene.emit.op("Add", &[left, slope]);
    Ok(scene.emit.op("Mul", &[sum, half]))
}

/// For y = x s, s = sigmoid(alpha x): s + alpha y (1 - s).
fn swish_slope(scene: &mut Scene, x: ValueId, y: ValueId) -> Result<ValueId, Decline> {
    let (alpha, one) = (scene.number(scene.operator.float("alpha", 1.0).into())?, scene.number(1.0)?);
    let scaled = scene.emit.op("Mul", &[x, alpha]);
    let s = scene.emit.op("Sigmoid", &[scaled]);
    let rest = scene.emit.op("Sub", &[one, s]);
    let bent = scene.emit.op("Mul", &[y, rest]);
    let bent = scene.emit.op("Mul", &[bent, alpha]);
    Ok(scene.emit.op("Add", &[s, bent]))
}

/// For y = x t, t = tanh(softplus(x)): t + x (1 - t^2) sigmoid(x).
fn mish_slope(scene: &mut Scene, x: ValueId) -> Result<ValueId, Decline> {
    let softplus = scene.emit.op("Softplus", &[x]);
    let t = scene.emit.op("Tanh", &[softplus]);
    let (rest, s) = (one_minus_square(scene, t)?, scene.emit.op("Sigmoid", &[x]));
    let bent = scene.emit.op("Mul", &[x, rest]);
    let bent = scene.emit.op("Mul", &[bent, s]);
    Ok(scene.emit.op("Add", &[t, bent]))
}

fn piecewise_slope(scene: &mut Scene, x: ValueId, y: ValueId) -> Result<ValueId, Decline> {
    let zero = scene.number(0.0)?;
    let op_type = scene.operator.op_type.as_str();
    let (alpha, one) = match op_type {
        "HardSigmoid" => (scene.operator.float("alpha", 0.2), 0.0),
        "LeakyRelu" => (scene.operator.float("alpha", 0.01), 1.0),
        _ => (scene.operator.float("alpha", 1.0), 1.0),
    };
    let (alpha, one) = (scene.number(alpha.into())?, scene.number(one)?);
    let positive = scene.emit.op("Greater", &[x, zero]);
    match op_type {
        "LeakyRelu" => Ok(scene.emit.op("Where", &[positive, one, alpha])),
        // alpha exp(x) below zero, which is y + alpha.
        "Elu" => {
            let negative = scene.emit.op("Add", &[y, alpha]);
            Ok(scene.emit.op("Where", &[positive, one, negative]))
        }
        "HardSigmoid" => {
            let upper = scene.number(1.0)?;
            let inside = [scene.emit.op("Greater", &[y, zero]), scene.emit.op("Less", &[y, upper])];
            let inside = scene.emit.op("And", &inside);
            Ok(scene.emit.op("Where", &[inside, alpha, zero]))
        }
        // x (x + 3) / 6 between -3 and 3.
        _ => {
            let (low, high, third, half) =
                (scene.number(-3.0)?, scene.number(3.0)?, scene.number(1.0 / 3.0)?, scene.number(0.5)?);
            let scaled = scene.emit.op("Mul", &[x, third]);
            let slope = scene.emit.op("Add", &[scaled, half]);
            let above_low = scene.emit.op("Greater", &[x, low]);
            let slope = scene.emit.op("Where", &[above_low, slope, zero]);
            let above_high = scene.emit.op("Greater", &[x, high]);
            Ok(scene.emit.op("Where", &[above_high, one, slope]))
        }
    }
}
