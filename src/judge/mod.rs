//! How good models are, and how fast.

pub mod latency;
pub mod latency_table;
mod measured;
pub mod metrics;
mod nearness;
mod next_token;
mod outputs;
mod predictions;
pub mod quality;
pub mod side_by_side;
