//! Files: what is read and what is written, and that nothing else is touched.
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod config;
mod folder;
mod input;
mod ledger;
pub mod litter;
mod model;
pub mod plan;
mod publish;
mod scratch;
mod stream;
mod temporary;

pub use folder::{Source, Target};
pub(crate) use folder::{StagedFolder, copy, folder_of, rest_of_folder};
pub use input::{open, read, read_text};
pub use ledger::Ledger;
pub use model::{Staged, compressed_size, read_inlined, read_model, size_with_data, stage};
pub(crate) use model::{external_files, sha256};
pub(crate) use publish::json;
pub use publish::{Publication, write_json, write_whole};
pub(crate) use scratch::Scratch;
