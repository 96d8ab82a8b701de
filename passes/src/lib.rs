//! The IR and the passes of onnx-kprune.
//!
//! A pass is a function from a graph, and measurements, to a graph, a plan or a solution. Nothing in
//! this package opens a file, starts a session or prints: where a pass needs numbers from a run, it
//! returns a graph for the driver to run and takes the results as plain arrays.

pub mod cost;
pub mod differentiate;
pub mod discover;
pub mod emit;
pub mod finite;
pub mod flops;
pub mod fold;
pub mod ir;
pub mod limits;
pub mod linalg;
pub mod loss;
pub mod lower;
pub mod mask;
pub mod measure;
pub mod observe;
pub mod onnx;
pub mod plan;
pub mod provenance;
pub mod remove;
pub mod search;
pub mod signature;
pub mod suffix;
pub mod tune;

#[cfg(test)]
mod testing;
