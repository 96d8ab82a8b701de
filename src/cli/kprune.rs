//! The options of K-prune.

use clap::Args;
use kprune_passes::methods::kprune::Settings;

use super::parse::{above_zero, positive, weight};

/// What can be chosen about K-prune.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Method kprune")]
pub struct KpruneArgs {
    /// Measure knowledge anew at the second sublayer and then at every K-th [default: a quarter of them;
    /// published: 1]
    #[arg(long, value_name = "K", value_parser = positive)]
    pub refresh: Option<usize>,

    /// Weight of the predictive knowledge
    #[arg(long, value_name = "X", default_value_t = Settings::default().lambda_pred, value_parser = weight)]
    pub lambda_pred: f64,

    /// Weight of the representational knowledge
    #[arg(long, value_name = "X", default_value_t = Settings::default().lambda_rep, value_parser = weight)]
    pub lambda_rep: f64,

    /// Weight of heads against neurons
    #[arg(long, value_name = "X", default_value_t = Settings::default().mu, value_parser = weight)]
    pub mu: f64,

    /// Temperature of the distillation loss
    #[arg(long, value_name = "X", default_value_t = Settings::default().temperature, value_parser = above_zero)]
    pub temperature: f64,
}

impl KpruneArgs {
    /// As settings of the method.
    pub fn settings(&self) -> Settings {
        let &Self { refresh, lambda_pred, lambda_rep, mu, temperature } = self;
        Settings { lambda_pred, lambda_rep, mu, temperature, refresh }
    }
}
