//! Prunes the attention heads and FFN neurons of an ONNX encoder without retraining.
//!
//! [`Pruner`] is the whole program as one call; the modules are its parts.

pub mod cli;
pub mod compare;
pub mod config;
pub mod data;
pub mod error;
pub mod escape;
pub mod evaluate;
pub mod inspect;
pub mod latency;
pub mod machine;
pub mod observation;
pub mod pipeline;
pub mod prepare;
pub mod progress;
pub mod pruner;
pub mod report;
pub mod runtime;
pub mod store;
pub mod verify;
pub mod walk;

pub use pruner::Pruner;
