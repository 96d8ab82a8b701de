//! The options of the method of Kwon et al.

use clap::Args;
use kprune_passes::methods::kwon::Settings;

/// What can be switched off.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Method kwon")]
pub struct KwonArgs {
    /// Leave out rearrangement: units go by their own information alone
    #[arg(long)]
    pub no_rearrange: bool,

    /// Leave out tuning: what stays is left as it is
    #[arg(long)]
    pub no_tune: bool,
}

impl KwonArgs {
    /// As settings of the method.
    pub fn settings(&self) -> Settings {
        Settings { rearrange: !self.no_rearrange, tune: !self.no_tune }
    }
}
