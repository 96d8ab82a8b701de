//! Prunes the attention heads and FFN neurons of an ONNX encoder without retraining.

pub mod calibration;
pub mod error;
pub mod files;
pub mod observation;
pub mod runtime;
pub mod verify;
