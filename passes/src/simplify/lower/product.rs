//! Matrix products with transpositions and a factor.

use super::{Made, Rule, Scene};
use crate::rules::Table;

/// Of com.microsoft.
pub(super) const RULES: Table<Rule> = &[(&["FusedMatMul"], fused_matmul)];

/// alpha op(A) op(B), where op turns the last two axes.
fn fused_matmul(scene: &mut Scene) -> Made {
    if scene.operator.int("transBatchA", 0) != 0 || scene.operator.int("transBatchB", 0) != 0 {
        return Err("it turns its batch axes".into());
    }
    let mut operands = [scene.input(0)?, scene.input(1)?];
    for (slot, name) in ["transA", "transB"].into_iter().enumerate() {
        let rank = scene.dims(slot)?.len() as i64;
        if scene.operator.int(name, 0) != 0 && rank > 1 {
            let order: Vec<i64> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
            operands[slot] = scene.emit.transpose(operands[slot], &order);
        }
    }
    let product = scene.emit.op("MatMul", &operands);
    let alpha = scene.operator.float("alpha", 1.0).into();
    Ok(vec![Some(scene.scale(product, alpha))])
}
