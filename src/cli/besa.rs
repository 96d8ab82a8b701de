//! The options of methods that choose single weights.

use clap::{Args, ValueEnum};
use kprune_passes::methods::besa::{Grain, Settings};
use kprune_passes::quantise::Bits;
use kprune_passes::sparsity::Pattern;

use super::method::Method;
use super::parse::{positive, sparsity};
use crate::options::{Sparsity, WeightMethod};

/// Which single weights go.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Single weights")]
pub struct SparsityArgs {
    /// Of the matrices that stay, make this share of the weights zero, 0 to 0.9: the file is as large and as fast as
    /// before, and smaller when it is compressed; weights go by besa unless --method is wanda or magnitude
    #[arg(long, value_name = "S", value_parser = sparsity)]
    pub sparsity: Option<f64>,

    /// Where zeros may be: unstructured, or N:M, as 2:4 and 4:8, of which N weights of M that follow each other stay
    #[arg(long, value_name = "P", default_value_t = Pattern::default(), requires = "sparsity")]
    pub pattern: Pattern,

    /// Let the file give matrices by their weights that are not zero (sparse_initializer), where that takes fewer bytes, as
    /// of float32 from two thirds of zeros on; ONNX Runtime makes them whole when it loads them
    #[arg(long, requires = "sparsity", conflicts_with = "quantise")]
    pub sparse_initializers: bool,

    /// Write the matrices that stay with few bits: int8, with a scale for every row, a quarter of the size, or int4, with one
    /// for every 32 or 16 weights; as DequantizeLinear, which runtimes fuse with the product behind it
    #[arg(long, value_name = "BITS")]
    pub quantise: Option<Bits>,
}

/// How shares of rows are learned.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Method besa")]
pub struct BesaArgs {
    /// What has a share of zeros of its own
    #[arg(long, value_name = "WHAT", value_enum, default_value = "row")]
    pub rates: Rates,

    /// Let weights that stay keep their values, as published; otherwise every 32 of a row are multiplied with a number that is
    /// learned, which makes up for a part of what zeros take away
    #[arg(long, requires = "sparsity")]
    pub keep_values: bool,

    /// From how many mini-batches every block learns
    #[arg(long, value_name = "N", default_value_t = Settings::default().steps, value_parser = positive)]
    pub steps: usize,
}

/// What has a share of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rates {
    /// Every row of every matrix
    Row,
    /// Every matrix
    Matrix,
}

impl BesaArgs {
    /// As settings of the method.
    pub fn settings(&self) -> Settings {
        let grain = match self.rates {
            Rates::Row => Grain::Row,
            Rates::Matrix => Grain::Matrix,
        };
        Settings { grain, scales: !self.keep_values, steps: self.steps }
    }
}

impl SparsityArgs {
    /// As settings, where weights are to go.
    pub fn settings(&self, method: Method, besa: &BesaArgs) -> Option<Sparsity> {
        let method = match method {
            Method::Magnitude => WeightMethod::Magnitude,
            Method::Wanda => WeightMethod::Wanda,
            _ => WeightMethod::Besa(besa.settings()),
        };
        let share = self.sparsity.filter(|&share| share > 0.0)?;
        Some(Sparsity { share, pattern: self.pattern, method, by_nonzeros: self.sparse_initializers })
    }
}
