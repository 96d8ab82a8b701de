//! Operands that broadcast: their channels are paired index by index.

use super::plane::{self, Planes};
use super::{Operand, Scene};

/// Pairs the channels of operands that broadcast to `shape`. Where one operand has channels on an axis
/// and another has an extent of its own there without channels, it could not follow a removal on that axis:
/// what lies on it goes whole, as along the width of a head, or not at all.
pub(super) fn join(scene: &mut Scene, operands: Vec<Operand>, shape: &[usize]) -> Planes {
    let rank = shape.len();
    let aligned: Vec<Operand> = operands
        .into_iter()
        .map(|mut o| {
            let mut padded = vec![1; rank.saturating_sub(o.shape.len())];
            padded.append(&mut o.shape);
            Operand { shape: padded, planes: o.planes.into_iter().map(|p| p.aligned(rank)).collect() }
        })
        .collect();
    for axis in 0..rank {
        let tracked = |o: &Operand| o.planes.iter().any(|p| p.varies(axis));
        let untracked = aligned.iter().any(|o| o.shape[axis] > 1 && !tracked(o));
        if untracked {
            for operand in &aligned {
                scene.bind_along(&operand.planes, &[axis], "joins it with a value that cannot be cut");
            }
        }
    }
    let planes = aligned.into_iter().flat_map(|o| o.planes).collect();
    let (merged, apart) = plane::merge_apart(planes, &mut scene.provenance.channels);
    scene.provenance.broadcasts.extend(apart.into_iter().map(|(wide, narrow)| (scene.node, wide, narrow)));
    merged
}
