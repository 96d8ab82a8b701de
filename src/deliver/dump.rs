//! Graphs on the way, written for looking at (`--dump-graph`).

use std::path::Path;

use kprune_passes::calculus::loss::Criterion;
use kprune_passes::ir::Model;
use kprune_passes::probe::Probes;

use crate::analysis::Analysis;
use crate::error::Error;
use crate::options::{Options, Stage};
use crate::store;

/// Writes the graphs that are known once the model is analysed and its probes are there.
///
/// # Errors
/// Where a file cannot be written, or a probe cannot be made of this model.
pub(crate) fn analysed(options: &Options, source: &Path, analysis: &Analysis, probes: &Probes) -> Result<(), Error> {
    let differentiated = |e: kprune_passes::calculus::differentiate::DifferentiateError| {
        Error::Usage(format!("--dump-graph: there is no such graph of this model: {e}"))
    };
    for (stage, path) in &options.files.dumps {
        let probe;
        let model = match stage {
            Stage::Read => &analysis.written.model,
            Stage::Single => &analysis.single,
            Stage::Lowered => &analysis.measured.model,
            Stage::Columns => {
                probe = probes.columns(0, Criterion::default()).map_err(differentiated)?.model;
                &probe
            }
            Stage::Equations => {
                let units = probes.discovery.sublayers[0].units.len();
                probe = probes.equations(0, &vec![true; units]).map_err(differentiated)?.model;
                &probe
            }
            Stage::Masked => continue,
        };
        write(model, source, path)?;
    }
    Ok(())
}

/// Writes the masked original; of several models, the last one's is left.
///
/// # Errors
/// Where a file cannot be written.
pub(super) fn masked(options: &Options, source: &Path, masked: &Model) -> Result<(), Error> {
    let mut wanted = options.files.dumps.iter().filter(|(stage, _)| *stage == Stage::Masked);
    wanted.try_for_each(|(_, path)| write(masked, source, path))
}

fn write(model: &Model, source: &Path, path: &Path) -> Result<(), Error> {
    store::stage(model, source, path)?.publish()
}
