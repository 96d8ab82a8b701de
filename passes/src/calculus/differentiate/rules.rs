//! One gradient rule for an operator that computes element by element or multiplies; operators that move
//! elements are in [`super::moves`], those that reduce in [`super::norms`].

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::{Decline, Inputs, Step, moves, norms};
use crate::ir::{Operator, ValueId, attribute};

/// Gradients of the inputs that are on the path.
pub(super) fn backward(step: &mut Step) -> Result<Inputs, Decline> {
    if !step.operator.is_standard() {
        return Err(format!("there is no rule for operators of {}", step.operator.domain).into());
    }
    let op_type = step.operator.op_type.clone();
    match op_type.as_str() {
        "Identity" | "Dropout" => Ok(vec![(0, step.gradient()?)]),
        "Cast" => cast(step),
        "Add" | "Sum" => each(step, |step, _| step.gradient()),
        "Sub" => each(step, |step, slot| {
            let g = step.gradient()?;
            Ok(if slot == 0 { g } else { step.emit.op("Neg", &[g]) })
        }),
        "Mul" => each(step, |step, slot| {
            let (g, other) = (step.gradient()?, step.input(1 - slot)?);
            Ok(step.emit.op("Mul", &[g, other]))
        }),
        "Div" => each(step, div),
        "Pow" => pow(step),
        "Max" | "Min" | "Clip" => select_equal(step),
        "Where" => choose(step),
        "MatMul" => matmul(step),
        "Gemm" => gemm(step),
        "Softmax" => softmax(step),
        "LogSoftmax" => log_softmax(step),
        "LayerNormalization" => norms::layer_norm(step),
        "RMSNormalization" => norms::rms_norm(step),
        "ReduceSum" | "ReduceMean" | "ReduceL1" | "ReduceL2" | "ReduceSumSquare" => norms::reduce(step),
        "ReduceMax" | "ReduceMin" => norms::reduce(step),
        "LpNormalization" => norms::lp_normalise(step),
        "GlobalAveragePool" => norms::global_average(step),
        _ => match unary(step, &op_type)? {
            Some(slope) => {
                let g = step.gradient()?;
                Ok(vec![(0, step.emit.op("Mul", &[g, slope]))])
            }
            None => moves::backward(step, &op_type),
        },
    }
}

/// A rule that gives a gradient of the output's shape for each wanted input.
fn each(step: &mut Step, rule: impl Fn(&mut Step, usize) -> Result<ValueId, Decline>) -> Result<Inputs, Decline> {
    let slots: Vec<_> = (0..step.operator.inputs().len()).filter(|&s| step.wants(s)).collect();
    slots
        .into_iter()
        .map(|slot| {
            let gradient = rule(step, slot)?;
            step.fit(gradient, slot)
        })
        .collect()
}

/// The derivative of a function of one variable, or `None` for another operator.
fn unary(step: &mut Step, op_type: &str) -> Result<Option<ValueId>, Decline> {
    let (x, y) = (step.input(0)?, step.output()?);
    let slope = match op_type {
        "Neg" => step.number(-1.0)?,
        "Exp" => y,
        "Log" => step.emit.op("Reciprocal", &[x]),
        "Sqrt" => {
            let half = step.number(0.5)?;
            step.emit.op("Div", &[half, y])
        }
        "Reciprocal" => {
            let square = step.emit.op("Mul", &[y, y]);
            step.emit.op("Neg", &[square])
        }
        "Abs" => step.emit.op("Sign", &[x]),
        "Sin" => step.emit.op("Cos", &[x]),
        "Cos" => {
            let sin = step.emit.op("Sin", &[x]);
            step.emit.op("Neg", &[sin])
        }
        "Tanh" => one_minus_square(step, y)?,
        "Sigmoid" => sigmoid_slope(step, y)?,
        "Softplus" => step.emit.op("Sigmoid", &[x]),
        "Relu" => {
            let sign = step.emit.op("Sign", &[x]);
            step.emit.op("Relu", &[sign])
        }
        "Erf" => gaussian(step, x, 2.0 / PI.sqrt(), 1.0)?,
        "Gelu" if step.operator.text("approximate", "none") == "none" => erf_gelu_slope(step, x)?,
        "Gelu" => tanh_gelu_slope(step, x)?,
        "HardSigmoid" | "HardSwish" | "LeakyRelu" | "Elu" => piecewise_slope(step, op_type, x, y)?,
        "Swish" => swish_slope(step, x, y)?,
        _ => return Ok(None),
    };
    Ok(Some(slope))
}

fn one_minus_square(step: &mut Step, y: ValueId) -> Result<ValueId, Decline> {
    let (one, square) = (step.number(1.0)?, step.emit.op("Mul", &[y, y]));
    Ok(step.emit.op("Sub", &[one, square]))
}

fn sigmoid_slope(step: &mut Step, y: ValueId) -> Result<ValueId, Decline> {
    let one = step.number(1.0)?;
    let rest = step.emit.op("Sub", &[one, y]);
    Ok(step.emit.op("Mul", &[y, rest]))
}

/// factor * exp(-rate * x^2)
fn gaussian(step: &mut Step, x: ValueId, factor: f64, rate: f64) -> Result<ValueId, Decline> {
    let (factor, rate) = (step.number(factor)?, step.number(-rate)?);
    let square = step.emit.op("Mul", &[x, x]);
    let scaled = step.emit.op("Mul", &[square, rate]);
    let bell = step.emit.op("Exp", &[scaled]);
    Ok(step.emit.op("Mul", &[bell, factor]))
}

/// Phi(x) + x phi(x), with the normal distribution's Phi and phi.
fn erf_gelu_slope(step: &mut Step, x: ValueId) -> Result<ValueId, Decline> {
    let (root, half) = (step.number(FRAC_1_SQRT_2)?, step.number(0.5)?);
    let scaled = step.emit.op("Mul", &[x, root]);
    let erf = step.emit.op("Erf", &[scaled]);
    let part = step.emit.op("Mul", &[erf, half]);
    let below = step.emit.op("Add", &[part, half]);
    let bell = gaussian(step, x, 1.0 / (2.0 * PI).sqrt(), 0.5)?;
    let moved = step.emit.op("Mul", &[x, bell]);
    Ok(step.emit.op("Add", &[below, moved]))
}

/// For y = x/2 (1 + t), t = tanh(c (x + 0.044715 x^3)): (1 + t)/2 + x/2 (1 - t^2) c (1 + 0.134145 x^2).
fn tanh_gelu_slope(step: &mut Step, x: ValueId) -> Result<ValueId, Decline> {
    let root = step.number((2.0 / PI).sqrt())?;
    let (cubic, one, half) = (step.number(0.044715)?, step.number(1.0)?, step.number(0.5)?);
    let square = step.emit.op("Mul", &[x, x]);
    let bent = step.emit.op("Mul", &[square, cubic]);
    let factor = step.emit.op("Add", &[bent, one]);
    let grown = step.emit.op("Mul", &[x, factor]);
    let inner = step.emit.op("Mul", &[grown, root]);
    let t = step.emit.op("Tanh", &[inner]);
    let (three, rest) = (step.number(3.0)?, one_minus_square(step, t)?);
    let bent3 = step.emit.op("Mul", &[bent, three]);
    let slope = step.emit.op("Add", &[bent3, one]);
    let slope = step.emit.op("Mul", &[slope, root]);
    let slope = step.emit.op("Mul", &[slope, rest]);
    let slope = step.emit.op("Mul", &[slope, x]);
    let left = step.emit.op("Add", &[t, one]);
    let sum = step.emit.op("Add", &[left, slope]);
    Ok(step.emit.op("Mul", &[sum, half]))
}

/// For y = x s, s = sigmoid(alpha x): s + alpha y (1 - s).
fn swish_slope(step: &mut Step, x: ValueId, y: ValueId) -> Result<ValueId, Decline> {
    let (alpha, one) = (step.number(step.operator.float("alpha", 1.0).into())?, step.number(1.0)?);
    let scaled = step.emit.op("Mul", &[x, alpha]);
    let s = step.emit.op("Sigmoid", &[scaled]);
    let rest = step.emit.op("Sub", &[one, s]);
    let bent = step.emit.op("Mul", &[y, rest]);
    let bent = step.emit.op("Mul", &[bent, alpha]);
    Ok(step.emit.op("Add", &[s, bent]))
}

fn piecewise_slope(step: &mut Step, op_type: &str, x: ValueId, y: ValueId) -> Result<ValueId, Decline> {
    let zero = step.number(0.0)?;
    let (alpha, one) = match op_type {
        "HardSigmoid" => (step.operator.float("alpha", 0.2), 0.0),
        "LeakyRelu" => (step.operator.float("alpha", 0.01), 1.0),
        _ => (step.operator.float("alpha", 1.0), 1.0),
    };
    let (alpha, one) = (step.number(alpha.into())?, step.number(one)?);
    let positive = step.emit.op("Greater", &[x, zero]);
    match op_type {
        "LeakyRelu" => Ok(step.emit.op("Where", &[positive, one, alpha])),
        // alpha exp(x) below zero, which is y + alpha.
        "Elu" => {
            let below = step.emit.op("Add", &[y, alpha]);
            Ok(step.emit.op("Where", &[positive, one, below]))
        }
        "HardSigmoid" => {
            let upper = step.number(1.0)?;
            let inside = [step.emit.op("Greater", &[y, zero]), step.emit.op("Less", &[y, upper])];
            let inside = step.emit.op("And", &inside);
            Ok(step.emit.op("Where", &[inside, alpha, zero]))
        }
        // x (x + 3) / 6 between -3 and 3.
        _ => {
            let (low, high, third, half) =
                (step.number(-3.0)?, step.number(3.0)?, step.number(1.0 / 3.0)?, step.number(0.5)?);
            let scaled = step.emit.op("Mul", &[x, third]);
            let slope = step.emit.op("Add", &[scaled, half]);
            let above_low = step.emit.op("Greater", &[x, low]);
            let slope = step.emit.op("Where", &[above_low, slope, zero]);
            let above_high = step.emit.op("Greater", &[x, high]);
            Ok(step.emit.op("Where", &[above_high, one, slope]))
        }
    }
}

fn cast(step: &mut Step) -> Result<Inputs, Decline> {
    let (g, x) = (step.gradient()?, step.input(0)?);
    let element = step.seen.element(x).ok_or("it reads a value of unknown type")?;
    Ok(vec![(0, step.emit.cast(g, element))])
}

fn div(step: &mut Step, slot: usize) -> Result<ValueId, Decline> {
    let (g, b) = (step.gradient()?, step.input(1)?);
    let quotient = step.emit.op("Div", &[g, b]);
    if slot == 0 {
        return Ok(quotient);
    }
    let product = step.emit.op("Mul", &[quotient, step.output()?]);
    Ok(step.emit.op("Neg", &[product]))
}

fn pow(step: &mut Step) -> Result<Inputs, Decline> {
    if step.wants(1) {
        return Err("its exponent depends on what is pruned".into());
    }
    let (g, x, exponent) = (step.gradient()?, step.input(0)?, step.input(1)?);
    let constant = step.emit.graph.constant(exponent).and_then(|t| t.to_f64().ok());
    let exponent = constant.filter(|c| c.len() == 1).and_then(|c| c.iter().next().copied());
    let exponent = exponent.ok_or("its exponent is no constant number")?;
    let factor = step.number(exponent)?;
    let power = if exponent == 2.0 {
        x
    } else {
        let less = step.number(exponent - 1.0)?;
        step.emit.op("Pow", &[x, less])
    };
    let slope = step.emit.op("Mul", &[power, factor]);
    let gradient = step.emit.op("Mul", &[g, slope]);
    Ok(vec![step.fit(gradient, 0)?])
}

/// The gradient goes to the inputs that the output equals.
fn select_equal(step: &mut Step) -> Result<Inputs, Decline> {
    each(step, |step, slot| {
        let (g, x, y) = (step.gradient()?, step.input(slot)?, step.output()?);
        let zero = step.number(0.0)?;
        let equal = step.emit.op("Equal", &[x, y]);
        Ok(step.emit.op("Where", &[equal, g, zero]))
    })
}

fn choose(step: &mut Step) -> Result<Inputs, Decline> {
    each(step, |step, slot| {
        let (g, condition, zero) = (step.gradient()?, step.input(0)?, step.number(0.0)?);
        let branches = if slot == 1 { [condition, g, zero] } else { [condition, zero, g] };
        Ok(step.emit.op("Where", &branches))
    })
}

fn swapped(rank: usize) -> Vec<i64> {
    let mut order: Vec<i64> = (0..rank as i64).collect();
    order.swap(rank - 1, rank - 2);
    order
}

fn matmul(step: &mut Step) -> Result<Inputs, Decline> {
    let (g, a, b) = (step.gradient()?, step.input(0)?, step.input(1)?);
    let (a_dims, b_dims, dims) = (step.dims(a)?, step.dims(b)?, step.dims(step.output()?)?);
    if a_dims.len() < 2 || b_dims.len() < 2 {
        return Err("it multiplies a vector".into());
    }
    let batch = &dims[..dims.len() - 2];
    let product = |last: [crate::observe::Dim; 2]| [batch, &last].concat();
    let mut inputs = Vec::new();
    if step.wants(0) {
        let turned = step.emit.transpose(b, &swapped(b_dims.len()));
        let gradient = step.emit.op("MatMul", &[g, turned]);
        let from = product([a_dims[a_dims.len() - 2], a_dims[a_dims.len() - 1]]);
        inputs.push((0, step.emit.unbroadcast(gradient, &from, &a_dims)));
    }
    if step.wants(1) {
        let turned = step.emit.transpose(a, &swapped(a_dims.len()));
        let gradient = step.emit.op("MatMul", &[turned, g]);
        let from = product([b_dims[b_dims.len() - 2], b_dims[b_dims.len() - 1]]);
        inputs.push((1, step.emit.unbroadcast(gradient, &from, &b_dims)));
    }
    Ok(inputs)
}

fn gemm(step: &mut Step) -> Result<Inputs, Decline> {
    let (g, a, b) = (step.gradient()?, step.input(0)?, step.input(1)?);
    let (alpha, beta) = (step.operator.float("alpha", 1.0), step.operator.float("beta", 1.0));
    let (trans_a, trans_b) = (step.operator.int("transA", 0) != 0, step.operator.int("transB", 0) != 0);
    let product = |step: &mut Step, left: (ValueId, bool), right: (ValueId, bool)| {
        let operator = Operator::new("Gemm")
            .with(attribute::float("alpha", alpha))
            .with(attribute::int("transA", left.1 as i64))
            .with(attribute::int("transB", right.1 as i64));
        step.emit.with(operator, &[left.0, right.0])
    };
    let mut inputs = Vec::new();
    if step.wants(0) {
        let gradient = match trans_a {
            false => product(step, (g, false), (b, !trans_b)),
            true => product(step, (b, trans_b), (g, true)),
        };
        inputs.push((0, gradient));
    }
    if step.wants(1) {
        let gradient = match trans_b {
            false => product(step, (a, !trans_a), (g, false)),
            true => product(step, (g, true), (a, trans_a)),
        };
        inputs.push((1, gradient));
    }
    if step.wants(2) {
        let factor = step.number(beta.into())?;
        let scaled = step.emit.op("Mul", &[g, factor]);
        inputs.push(step.fit(scaled, 2)?);
    }
    Ok(inputs)
}

/// For y = softmax(x): y (g - sum(g y)).
fn softmax(step: &mut Step) -> Result<Inputs, Decline> {
    let (g, y, axis) = (step.gradient()?, step.output()?, step.operator.int("axis", -1));
    let weighted = step.emit.op("Mul", &[g, y]);
    let total = step.emit.reduce_sum(weighted, &[axis], true);
    let share = step.emit.op("Mul", &[y, total]);
    Ok(vec![(0, step.emit.op("Sub", &[weighted, share]))])
}

/// For y = log softmax(x): g - exp(y) sum(g).
fn log_softmax(step: &mut Step) -> Result<Inputs, Decline> {
    let (g, y, axis) = (step.gradient()?, step.output()?, step.operator.int("axis", -1));
    let total = step.emit.reduce_sum(g, &[axis], true);
    let weights = step.emit.op("Exp", &[y]);
    let share = step.emit.op("Mul", &[weights, total]);
    Ok(vec![(0, step.emit.op("Sub", &[g, share]))])
}
