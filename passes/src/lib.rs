//! The IR, the passes and the methods of onnx-kprune.
//!
//! A pass is a function from a graph, and measurements, to a graph, a plan or a solution. Nothing in this package opens
//! a file, starts a session or prints: where a method needs numbers from a run, it asks a [`methods::Walk`] for them,
//! which runs the graphs of [`probe`] and gives their results as plain arrays.

pub mod calculus;
pub mod discover;
pub mod distil;
pub mod finite;
pub mod ir;
pub mod kv_cache;
pub mod limits;
pub mod linalg;
pub mod methods;
pub mod observe;
pub mod onnx;
pub mod plan;
pub mod probe;
pub mod quantise;
pub mod remove;
pub mod rules;
pub mod signature;
pub mod simplify;
pub mod sparsity;
pub mod vocabulary;

#[cfg(test)]
mod testing;
