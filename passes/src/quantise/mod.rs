//! Quantisation: matrices as whole numbers of few bits, times a scale for every row or for every group of its weights.
//!
//! Scales are symmetric, so that zero stays exactly zero. [`Quantised`] is the arithmetic, [`write()`] puts it into a model as
//! `DequantizeLinear`, which runtimes fuse with the product behind it.

mod grid;
mod qdq;

pub use grid::{Bits, Quantised};
pub use qdq::write;
