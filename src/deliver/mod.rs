//! What a run makes: models, their check, and the report, put in place together.

mod describe;
pub(crate) mod dump;
mod make;
pub(crate) mod targets;
pub mod verify;

pub(crate) use make::Maker;
