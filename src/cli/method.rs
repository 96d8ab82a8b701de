//! Which method chooses units, and the options that each method has.

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, ValueEnum};
use kprune_passes::methods::Settings;

use super::besa::BesaArgs;
use super::kprune::KpruneArgs;
use super::kwon::KwonArgs;
use super::obs::ObsArgs;

/// The methods, as the command line calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Knowledge-preserving pruning (Park, Choi, Kang, ICLR 2024)
    Kprune,
    /// What is lost after the others have made up for it, in the directions that the outputs feel
    Obs,
    /// Fisher information of masks, rearranged and scaled (Kwon et al., NeurIPS 2022); uses labels where there are any
    Kwon,
    /// Learned shares (BESA, ICLR 2024): of units, or with --sparsity of zeros, block by block
    Besa,
    /// A baseline with --sparsity: weights go that are small times what they are multiplied with (Sun et al. 2024)
    Wanda,
    /// A baseline: the units with the smallest weights go, or with --sparsity the smallest weights
    Magnitude,
    /// A baseline: units are drawn with the seed
    Random,
}

/// The method, with the options of all of them.
#[derive(Clone, Debug, Args)]
pub struct MethodArgs {
    /// How units are chosen, and how what stays makes up for what goes
    #[arg(long, value_enum, default_value = "obs", help_heading = "Method")]
    pub method: Method,

    #[command(flatten)]
    #[allow(missing_docs)] // A line here would become the help of the command.
    pub kprune: KpruneArgs,

    #[command(flatten)]
    #[allow(missing_docs)] // A line here would become the help of the command.
    pub kwon: KwonArgs,

    #[command(flatten)]
    #[allow(missing_docs)] // A line here would become the help of the command.
    pub obs: ObsArgs,

    #[command(flatten)]
    #[allow(missing_docs)] // A line here would become the help of the command.
    pub besa: BesaArgs,
}

impl MethodArgs {
    /// The method with its settings.
    pub fn settings(&self) -> Settings {
        match self.method {
            Method::Kprune => Settings::Kprune(self.kprune.settings()),
            Method::Kwon => Settings::Kwon(self.kwon.settings()),
            Method::Besa => Settings::Besa(self.besa.settings()),
            // It chooses single weights, and leaves units to the default.
            Method::Obs | Method::Wanda => Settings::Obs(self.obs.settings()),
            Method::Magnitude => Settings::Magnitude,
            Method::Random => Settings::Random,
        }
    }

    /// An option that was given and belongs to another method, with that method.
    /// With --sparsity, weights go by besa unless --method says otherwise.
    pub(super) fn stray(&self, given: &ArgMatches, is_sparse: bool) -> Option<(String, Method)> {
        let is_besa = is_sparse && !matches!(self.method, Method::Wanda | Method::Magnitude);
        let of = [
            (Method::Kprune, KpruneArgs::augment_args(Command::new(""))),
            (Method::Kwon, KwonArgs::augment_args(Command::new(""))),
            (Method::Obs, ObsArgs::augment_args(Command::new(""))),
            (Method::Besa, BesaArgs::augment_args(Command::new(""))),
        ];
        let others = of.iter().filter(|(method, _)| *method != self.method && !(is_besa && *method == Method::Besa));
        let mut options = others.flat_map(|(method, command)| command.get_arguments().map(move |a| (method, a)));
        let stray = options.find(|(_, a)| given.value_source(a.get_id().as_str()) == Some(ValueSource::CommandLine));
        stray.map(|(method, option)| (format!("--{}", option.get_long().unwrap_or_default()), *method))
    }
}
