//! Matrix products with transpositions and a factor.

use super::Fused;
use crate::ir::ValueId;

/// alpha op(A) op(B), where op turns the last two axes.
pub(super) fn fused_matmul(fused: &mut Fused) -> Result<Vec<Option<ValueId>>, String> {
    if fused.operator.int("transBatchA", 0) != 0 || fused.operator.int("transBatchB", 0) != 0 {
        return Err("it turns its batch axes".into());
    }
    let mut operands = [fused.input(0)?, fused.input(1)?];
    for (slot, name) in ["transA", "transB"].into_iter().enumerate() {
        let rank = fused.dims(slot)?.len() as i64;
        if fused.operator.int(name, 0) != 0 && rank > 1 {
            let order: Vec<i64> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
            operands[slot] = fused.emit.transpose(operands[slot], &order);
        }
    }
    let product = fused.emit.op("MatMul", &operands);
    let alpha = fused.operator.float("alpha", 1.0).into();
    Ok(vec![Some(fused.scale(product, alpha))])
}
