//! Graphs that grow: operators appended, gradients, and what student and teacher are compared by.

pub mod differentiate;
pub mod emit;
pub mod loss;
