//! Rules for operators that compute element by element from inputs that broadcast.

use super::join::join;
use super::{Decline, Planes, Rule, Scene};
use crate::rules::Table;

pub(super) const RULES: Table<Rule> = &[
    (
        &[
            "Abs",
            "Add",
            "And",
            "Cast",
            "CastLike",
            "Ceil",
            "Celu",
            "Clip",
            "Cos",
            "Div",
            "Dropout",
            "Elu",
            "Equal",
            "Erf",
            "Exp",
            "Floor",
            "Gelu",
            "Greater",
            "GreaterOrEqual",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "IsInf",
            "IsNaN",
            "LeakyRelu",
            "Less",
            "LessOrEqual",
            "Log",
            "Max",
            "Mean",
            "Min",
            "Mish",
            "Mod",
            "Mul",
            "Neg",
            "Not",
            "Or",
            "PRelu",
            "Pow",
            "Reciprocal",
            "Relu",
            "Round",
            "Selu",
            "Sigmoid",
            "Sign",
            "Sin",
            "Softplus",
            "Softsign",
            "Sqrt",
            "Sub",
            "Sum",
            "Swish",
            "Tanh",
            "ThresholdedRelu",
            "Where",
            "Xor",
        ],
        elementwise,
    ),
    // What they give says something of shapes, not of elements.
    (&["Shape", "Size", "Range"], |_| Ok(vec![Planes::new()])),
];

fn elementwise(scene: &mut Scene) -> Result<Vec<Planes>, Decline> {
    let shape = scene.output_shape(0)?;
    let operands = scene.operands()?;
    let planes = join(scene, operands, &shape);
    Ok(vec![planes; scene.operator().outputs().len()])
}
