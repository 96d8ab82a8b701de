//! Sparsity: which single weights of a matrix go, and in which order.
//!
//! Every method that removes weights has an importance for each of them ([`importance`]); within a row, which is all that
//! one output is made of, they go in its [`Order`], as far as a [`Pattern`] lets them. How many go of every row is the
//! allocation: the same of all, or what [`besa`](crate::methods::besa) learns.

mod order;
mod pattern;

pub use order::{Order, importance};
pub use pattern::Pattern;
