//! Gradient rules for operators that compute element by element from inputs that broadcast.

use super::{Decline, Inputs, Rule, Scene};
use crate::ir::ValueId;
use crate::rules::Table;

pub(super) const RULES: Table<Rule> = &[
    (&["Identity", "Dropout"], |scene| Ok(vec![(0, scene.gradient()?)])),
    (&["Cast"], cast),
    (&["Add", "Sum"], |scene| each(scene, |scene, _| scene.gradient())),
    (&["Sub"], |scene| each(scene, sub)),
    (&["Mul"], |scene| each(scene, mul)),
    (&["Div"], |scene| each(scene, div)),
    (&["Pow"], pow),
    (&["Max", "Min", "Clip"], select_equal),
    (&["Where"], choose),
];

/// A rule that gives a gradient of the output's shape for each wanted input.
fn each(scene: &mut Scene, rule: impl Fn(&mut Scene, usize) -> Result<ValueId, Decline>) -> Result<Inputs, Decline> {
    let slots: Vec<_> = (0..scene.operator.inputs().len()).filter(|&s| scene.wants(s)).collect();
    slots
        .into_iter()
        .map(|slot| {
            let gradient = rule(scene, slot)?;
            scene.fit(gradient, slot)
        })
        .collect()
}

fn cast(scene: &mut Scene) -> Result<Inputs, Decline> {
    let (g, x) = (scene.gradient()?, scene.input(0)?);
    let element = scene.seen.element(x).ok_or("it reads a value of unknown type")?;
    Ok(vec![(0, scene.emit.cast(g, element))])
}

fn sub(scene: &mut Scene, slot: usize) -> Result<ValueId, Decline> {
    let g = scene.gradient()?;
    Ok(if slot == 0 { g } else { scene.emit.op("Neg", &[g]) })
}

fn mul(scene: &mut Scene, slot: usize) -> Result<ValueId, Decline> {
    let (g, other) = (scene.gradient()?, scene.input(1 - slot)?);
    Ok(scene.emit.op("Mul", &[g, other]))
}

fn div(scene: &mut Scene, slot: usize) -> Result<ValueId, Decline> {
    let (g, b) = (scene.gradient()?, scene.input(1)?);
    let quotient = scene.emit.op("Div", &[g, b]);
    if slot == 0 {
        return Ok(quotient);
    }
    let product = scene.emit.op("Mul", &[quotient, scene.output()?]);
    Ok(scene.emit.op("Neg", &[product]))
}

fn pow(scene: &mut Scene) -> Result<Inputs, Decline> {
    if scene.wants(1) {
        return Err("its exponent depends on what is pruned".into());
    }
    let (g, x, exponent) = (scene.gradient()?, scene.input(0)?, scene.input(1)?);
    let constant = scene.emit.graph.constant(exponent).and_then(|t| t.to_f64().ok());
    let exponent = constant.filter(|c| c.len() == 1).and_then(|c| c.iter().next().copied());
    let exponent = exponent.ok_or("its exponent is no constant number")?;
    let factor = scene.number(exponent)?;
    let power = if exponent == 2.0 {
        x
    } else {
        let less = scene.number(exponent - 1.0)?;
        scene.emit.op("Pow", &[x, less])
    };
    let slope = scene.emit.op("Mul", &[power, factor]);
    let gradient = scene.emit.op("Mul", &[g, slope]);
    Ok(vec![scene.fit(gradient, 0)?])
}

/// The gradient goes to the inputs that the output equals.
fn select_equal(scene: &mut Scene) -> Result<Inputs, Decline> {
    each(scene, |scene, slot| {
        let (g, x, y) = (scene.gradient()?, scene.input(slot)?, scene.output()?);
        let zero = scene.number(0.0)?;
        let equal = scene.emit.op("Equal", &[x, y]);
        Ok(scene.emit.op("Where", &[equal, g, zero]))
    })
}

fn choose(scene: &mut Scene) -> Result<Inputs, Decline> {
    each(scene, |scene, slot| {
        let (g, condition, zero) = (scene.gradient()?, scene.input(0)?, scene.number(0.0)?);
        let branches = if slot == 1 { [condition, g, zero] } else { [condition, zero, g] };
        Ok(scene.emit.op("Where", &branches))
    })
}
