//! Prunes the attention heads and FFN neurons of an ONNX encoder without retraining.

pub mod calibration;
pub mod cli;
pub mod config;
pub mod error;
pub mod files;
pub mod machine;
pub mod observation;
pub mod pipeline;
pub mod prepare;
pub mod progress;
pub mod report;
pub mod runtime;
pub mod verify;
pub mod walk;
