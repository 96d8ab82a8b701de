//! What expressions of constants give, computed by ONNX Runtime.

use kprune_passes::ir::Model;
use kprune_passes::simplify::expressions::{expressions, replace};

use crate::error::Error;
use crate::runtime::{self, Purpose, Runtime};

/// Computes the expressions of constants in a model, and puts what they give in their place.
///
/// # Errors
/// Where ONNX Runtime cannot run them.
pub(super) fn compute(runtime: &Runtime, model: &mut Model) -> Result<(), Error> {
    let found = expressions(&model.graph);
    if found.is_empty() {
        return Ok(());
    }
    let mut part = model.clone();
    part.graph.set_outputs(&found.iter().map(|e| e.value).collect::<Vec<_>>());
    part.graph.remove_dead();
    part.graph.remove_unread_inputs();
    let mut session = runtime.session(&part, "computing expressions of constants", Purpose::Trial)?;
    let values = session.run([])?;
    let mut computed = Vec::new();
    for expression in found {
        let Some(value) = values.get(model.graph.name(expression.value)) else { continue };
        if let Some(element) = runtime::element(value).filter(|e| e.is_float()) {
            computed.push((expression, element, runtime::scalars(value)?));
        }
    }
    replace(model, computed).map_err(|e| Error::internal(e.to_string()))
}
