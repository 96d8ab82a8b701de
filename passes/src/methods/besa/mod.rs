//! Blockwise parameter-efficient sparsity allocation (Xu et al., BESA, ICLR 2024): which share of every row's weights goes
//! is learned, block by block, so that the block gives what it gave before.
//!
//! The *order* in which a row's weights go is that of their importance ([`sparsity`](crate::sparsity)). A *rate* is the
//! mean of candidates whose probabilities are learned ([`Rates`]); every weight has a probability to stay by them, and
//! gradients pass through the hard mask as if it were that ([`Rates::gradient`]). A block is *learned* ([`learn`]) against
//! what its dense weights give, with a penalty that keeps the share of the whole block where it was asked to be; with it,
//! what the weights that stay are multiplied with.

mod allocation;
mod learn;
mod prodigy;
mod rates;
mod scales;
mod settings;
mod steps;
mod structured;

pub use allocation::{Counts, Shape, Share};
pub use learn::{Choice, Learnt, Reconstruction, Step, learn};
pub use rates::{Rates, candidate_counts};
pub use settings::{Grain, Settings};
pub use structured::Besa;
