//! The masked original: nothing removed, the features of removed units set to zero.

use ndarray::Array1;

use crate::discover::Sublayer;
use crate::ir::{ElementType, Graph, Operator, Tensor, TensorError, ValueId};

/// Multiplies the features of a sublayer's projection by a constant of zeros and ones.
///
/// `keep` says which units stay.
///
/// # Errors
/// Where the features are of no floating-point type.
pub fn mask_units(
    graph: &mut Graph,
    sublayer: &Sublayer,
    keep: &[bool],
    element: ElementType,
) -> Result<(), TensorError> {
    let mut mask = Array1::ones(sublayer.projection.width);
    for (unit, _) in sublayer.units.iter().zip(keep).filter(|(_, keep)| !**keep) {
        unit.columns.iter().for_each(|&c| mask[c] = 0.0);
    }
    let constant = Tensor::from_floats(element, &mask.into_dyn())?;
    let mask = graph.add_constant(&format!("{}_mask", sublayer.name), constant);
    for (projection, _) in sublayer.sites() {
        let masked = multiply(graph, projection.features, mask);
        graph.set_input(projection.node, projection.features_slot, Some(masked));
    }
    Ok(())
}

fn multiply(graph: &mut Graph, features: ValueId, mask: ValueId) -> ValueId {
    let hint = format!("{}_masked", graph.name(features));
    graph.add(Operator::new("Mul"), &[features, mask], &hint)
}
