//! How good models are, and how fast.

pub mod latency;
pub mod latency_table;
pub mod metrics;
pub mod quality;
