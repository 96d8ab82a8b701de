//! The settings of BESA.

use serde::Serialize;

/// What has a rate of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grain {
    /// Every row of every matrix: what one output is made of.
    #[default]
    Row,
    /// Every matrix.
    Matrix,
}

/// How rates are learned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// What has a rate of its own.
    pub grain: Grain,
    /// Whether what stays is multiplied with scales that are learned too; as published, it is not.
    pub scales: bool,
    /// How many mini-batches every block learns from, one after another.
    pub steps: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { grain: Grain::default(), scales: true, steps: 64 }
    }
}
