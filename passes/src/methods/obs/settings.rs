//! The settings of the compensated method.

use serde::Serialize;

/// What can be set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Eta: how much of what the outputs feel is taken to be the same in all directions, from 0 to 1.
    pub shrinkage: f64,
    /// Of the neurons that are left, the share that goes before the others make up for it anew.
    pub chunk: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { shrinkage: 0.1, chunk: 0.05 }
    }
}

impl Settings {
    /// What is wrong with a setting, in words.
    ///
    /// # Errors
    /// The setting, and what was expected.
    pub fn check(&self) -> Result<(), String> {
        for (name, value) in [("shrinkage", self.shrinkage), ("chunk", self.chunk)] {
            if !(value > 0.0 && value <= 1.0) {
                return Err(format!("{name} is {value}, expected more than 0, and at most 1"));
            }
        }
        Ok(())
    }
}
