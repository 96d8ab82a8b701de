//! How good models are, and how fast.

pub mod latency;
pub mod latency_table;
pub mod metrics;
mod nearness;
mod outputs;
mod predictions;
pub mod quality;
