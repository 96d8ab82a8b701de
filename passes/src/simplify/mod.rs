//! The same function in plainer operators, for measuring: what is written stays as it came.

pub mod einsum;
pub mod expressions;
pub mod fold;
pub mod low_rank;
pub mod lower;
pub mod newer;
pub mod upgrade;
