//! The options of the compensated method.

use clap::Args;
use kprune_passes::methods::obs::Settings;

use super::parse::above_zero;

/// What can be chosen about it.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Method obs")]
pub struct ObsArgs {
    /// How much of what the outputs feel is taken to be the same in all directions, up to 1
    #[arg(long, value_name = "X", default_value_t = Settings::default().shrinkage, value_parser = above_zero)]
    pub shrinkage: f64,

    /// Of the neurons that are left, the share that goes before the others make up for it anew, up to 1
    #[arg(long, value_name = "X", default_value_t = Settings::default().chunk, value_parser = above_zero)]
    pub chunk: f64,
}

impl ObsArgs {
    /// As settings of the method.
    pub fn settings(&self) -> Settings {
        Settings { shrinkage: self.shrinkage, chunk: self.chunk }
    }
}
