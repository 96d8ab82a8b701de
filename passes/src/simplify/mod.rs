//! The same function in plainer operators, for measuring: what is written stays as it came.

pub mod fold;
pub mod lower;
