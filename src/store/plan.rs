//! Plans as files: which units stay, to be looked at, edited and applied again.

use std::path::Path;

use kprune_passes::discover::Discovery;
use kprune_passes::plan::Plan;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::report::{SparseMatrix, Sparsified, unit_name};

use super::{input, publish};

/// The units that stay.
#[derive(Debug, Serialize, Deserialize)]
struct PlanFile {
    /// Version of this layout.
    schema: u32,
    /// The sublayers from input to output.
    sublayers: Vec<Row>,
    /// How many weights of every matrix are zero, to be looked at: nothing is made of it when the plan is applied.
    #[serde(default, skip_deserializing, skip_serializing_if = "Vec::is_empty")]
    matrices: Vec<SparseMatrix>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    name: String,
    unit: String,
    units: usize,
    /// The units that stay, as "0-3, 7".
    keep: String,
}

/// Which units stay, as the content of a file; with the shares of zeros where weights went.
///
/// # Errors
/// Never, but for want of memory.
pub fn content(found: &Discovery, plan: &Plan, zeros: Option<&Sparsified>) -> Result<Vec<u8>, Error> {
    let row = |(sublayer, decision): (&kprune_passes::discover::Sublayer, &kprune_passes::plan::Decision)| Row {
        name: sublayer.name.clone(),
        unit: unit_name(sublayer.kind).into(),
        units: sublayer.units.len(),
        keep: written(&decision.keep),
    };
    let matrices = zeros.iter().flat_map(|zeros| &zeros.blocks).flat_map(|block| block.matrices.clone()).collect();
    publish::json(&PlanFile { schema: SCHEMA, sublayers: plan.each(found).map(row).collect(), matrices })
}

/// The version of the layout that this program writes and reads.
const SCHEMA: u32 = 1;

/// Reads which units stay.
///
/// # Errors
/// Where the file is no plan, or does not fit the model.
pub fn load(path: &Path, found: &Discovery) -> Result<Plan, Error> {
    let content = input::read(path).map_err(Error::io("read", path))?;
    let wrong = |reason: String, help: &str| Error::data(path, reason, help);
    let file: PlanFile = serde_json::from_slice(&content)
        .map_err(|e| wrong(format!("is no plan: {e}"), "write one with --save-plan, and edit that"))?;
    if file.schema != SCHEMA {
        let reason = format!("is of version {}, and version {SCHEMA} is read", file.schema);
        return Err(wrong(reason, "write one with --save-plan of this program"));
    }
    let mut plan = Plan::untouched(&found.sublayers);
    let sublayers = &found.sublayers;
    if file.sublayers.len() != sublayers.len() {
        let reason = format!("has {} sublayers, and the model {}", file.sublayers.len(), sublayers.len());
        return Err(wrong(reason, "use a plan that was saved for this model"));
    }
    for ((row, sublayer), decision) in file.sublayers.iter().zip(sublayers).zip(&mut plan.decisions) {
        let units = sublayer.units.len();
        if row.name != sublayer.name || row.units != units || row.unit != unit_name(sublayer.kind) {
            let reason = format!(
                "has the sublayer {:?} of {} {}s where the model has {:?} of {units} {}s",
                row.name,
                row.units,
                row.unit,
                sublayer.name,
                unit_name(sublayer.kind)
            );
            return Err(wrong(reason, "use a plan that was saved for this model"));
        }
        decision.keep = parsed(&row.keep, units).map_err(|reason| {
            wrong(format!("sublayer {:?}: {reason}", row.name), "list the units that stay as \"0-3, 7\"")
        })?;
        if decision.kept() == 0 && !sublayer.can_go_whole() {
            let reason = format!("sublayer {:?} cannot go whole, because its output is normalised", row.name);
            return Err(wrong(reason, "keep at least one of its units"));
        }
    }
    Ok(plan)
}

/// The places of what is true, runs of them as "first-last".
fn written(keep: &[bool]) -> String {
    let mut parts = Vec::new();
    let mut start = 0;
    for run in keep.chunk_by(|a, b| a == b) {
        let last = start + run.len() - 1;
        if run.first() == Some(&true) {
            parts.push(if run.len() == 1 { start.to_string() } else { format!("{start}-{last}") });
        }
        start = last + 1;
    }
    parts.join(", ")
}

fn parsed(text: &str, units: usize) -> Result<Vec<bool>, String> {
    let mut keep = vec![false; units];
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| format!("{part:?} is no unit"));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("{part:?} ends before it begins"));
        }
        let run = keep.get_mut(first..=last).ok_or_else(|| format!("{part:?} is not among its {units} units"))?;
        run.fill(true);
    }
    Ok(keep)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn units_are_written_in_runs_and_read_back() {
        let keep = [true, true, true, false, true, false, true, true];
        assert_eq!(written(&keep), "0-2, 4, 6-7");
        assert_eq!(parsed("0-2, 4, 6-7", 8).unwrap(), keep);
        assert_eq!(parsed("", 2).unwrap(), [false, false]);
        assert_eq!(written(&[false]), "");
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        for wrong in ["8", "3-9", "x", "5-3", "3-2", "-"] {
            assert!(parsed(wrong, 8).is_err(), "{wrong}");
        }
    }
}
