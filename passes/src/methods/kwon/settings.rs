//! What can be switched off.

use serde::Serialize;

/// The parts of the method; all of them by default, as published.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Whether units are exchanged within sublayers, by how they work together.
    pub rearrange: bool,
    /// Whether units that stay are scaled.
    pub tune: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { rearrange: true, tune: true }
    }
}
