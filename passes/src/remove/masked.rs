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
    graph.checked("masking");
    Ok(())
}

fn multiply(graph: &mut Graph, features: ValueId, mask: ValueId) -> ValueId {
    let hint = format!("{}_masked", graph.name(features));
    graph.add(Operator::new("Mul"), &[features, mask], &hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::one_feed_forward;

    #[test]
    fn features_of_removed_units_are_multiplied_by_nothing() {
        let sketch = one_feed_forward(3);
        let (found, mut graph) = (sketch.discover(), sketch.graph.clone());
        let sublayer = &found.sublayers[0];
        mask_units(&mut graph, sublayer, &[true, false, true], ElementType::F32).unwrap();
        let masked = graph.operator(sublayer.projection.node).input(sublayer.projection.features_slot).unwrap();
        let product = graph.operator(graph.producer(masked).unwrap().0);
        assert!(product.is("Mul") && product.input(0) == Some(sublayer.projection.features));
        let mask = graph.constant(product.input(1).unwrap()).unwrap().to_f64().unwrap();
        assert_eq!(mask.into_raw_vec_and_offset().0, [1.0, 0.0, 1.0]);
    }
}
