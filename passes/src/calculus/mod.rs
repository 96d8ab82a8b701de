//! Graphs that grow: operators appended, gradients, and what student and teacher are compared by.

pub mod differentiate;
pub mod emit;
pub mod loss;
pub mod metric;
pub mod next_token;
pub mod objective;
pub(crate) mod shapes;

use crate::ir::ValueId;

/// The token mask of a model: which tokens are real.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenMask {
    /// The input, [samples, tokens].
    pub input: ValueId,
    /// Whether it is 0 at real tokens and 1 at padding; else it is another number than 0 at real tokens and 0 at padding.
    pub marks_padding: bool,
}

impl From<ValueId> for TokenMask {
    /// The usual kind: 1 at real tokens.
    fn from(input: ValueId) -> Self {
        Self { input, marks_padding: false }
    }
}
