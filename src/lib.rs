//! Prunes the attention heads and FFN neurons of transformers in ONNX without retraining.
//!
//! [`Pruner`] is the whole program as one call; [`inspect()`] says what can be pruned, and [`compare()`] how good and how
//! fast the result is. Everything else that is public here is for the tests, benchmarks and fuzz targets of this
//! repository, and may change at any time.

mod budget;
mod choose;
mod prune;
mod pruner;

#[doc(hidden)]
pub mod analysis;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod clock;
pub mod compare;
#[doc(hidden)]
pub mod data;
#[doc(hidden)]
pub mod deliver;
mod distil;
mod error;
#[doc(hidden)]
pub mod escape;
pub mod inspect;
#[doc(hidden)]
pub mod judge;
pub mod machine;
pub mod options;
pub mod progress;
pub mod report;
#[doc(hidden)]
pub mod runtime;
#[doc(hidden)]
pub mod store;
mod vocabulary;
#[doc(hidden)]
pub mod walk;
mod weights;

pub use compare::compare;
pub use error::Error;
pub use inspect::inspect;
pub use kprune_passes::calculus::objective::OutputKind;
pub use kprune_passes::discover::Scope;
pub use kprune_passes::ir::Tensor;
pub use kprune_passes::methods;
pub use options::Options;
pub use progress::Progress;
pub use pruner::Pruner;
pub use report::Report;
