//! The intermediate representation: a model as a graph of operators and values.

mod check;
mod element;
mod graph;
mod model;
mod operator;
pub mod schema;
mod tensor;

pub use element::ElementType;
pub(crate) use graph::SourceKind;
pub use graph::{Graph, NodeId, Slot, ValueId};
pub use model::Model;
pub use operator::{Operator, attribute};
pub use tensor::{EXTERNAL, Tensor, TensorError};
