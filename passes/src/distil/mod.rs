//! Distillation: all weights of a pruned student move, so that its outputs and its stream come near to the teacher's.
//!
//! The loss of a mini-batch is that of [`calculus::loss`](crate::calculus::loss) with softened distributions, and the
//! mean over the places where the stream is looked at of ||R_S - R_T||^2 / ||R_T - mean R_T||^2 over real tokens. Students'
//! weights are inputs of its graph, and their gradients are outputs: who runs it moves them.

mod adam;
mod graphs;
mod stream;
mod weights;

pub use adam::Adam;
pub use graphs::{Step, Weight, judge, step, teacher};
pub use stream::{SHARE, stream_input, streams};
pub use weights::{copy, trainable, write};

use crate::calculus::TokenMask;
use crate::calculus::objective::Objective;
use crate::ir::{Model, ValueId};
use crate::observe::Observation;

/// A student, as it is trained: in f32, of primitive operators.
pub struct Student<'a> {
    /// The model. Its values have the teacher's ids.
    pub model: &'a Model,
    /// Shapes and types of its values.
    pub seen: &'a Observation,
    /// What the loss compares.
    pub objective: &'a Objective,
    /// Where the stream is compared.
    pub streams: &'a [ValueId],
    /// Which tokens are real.
    pub token_mask: Option<TokenMask>,
}
