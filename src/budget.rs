//! How much is to be removed, as budgets of FLOPs or of time.

use kprune_passes::discover::Discovery;
use kprune_passes::discover::cost::Costs;
use kprune_passes::plan::Plan;

use crate::analysis::Analysis;
use crate::error::Error;
use crate::judge::latency::{Setting, Timing};
use crate::judge::latency_table::LatencyTable;
use crate::options::{Amount, Options};
use crate::runtime::Runtime;
use crate::store;

/// A measured speed-up may be off by this share before the budget is corrected.
const OFF: f64 = 0.03;

/// What is to be kept.
pub(crate) struct Budget {
    /// What budgets are counted in.
    pub(crate) costs: Costs,
    /// What the units that stay may cost, for every model.
    pub(crate) budgets: Vec<f64>,
    /// What all units cost.
    pub(crate) all: f64,
    /// The units that stay, where they are given.
    pub(crate) plan: Option<Plan>,
    /// The times that the budget was made from.
    pub(crate) table: Option<LatencyTable>,
    /// The speed-up wanted; `None` where it is not measured here or was corrected before.
    wanted: Option<f64>,
}

impl Budget {
    /// What `options` ask for.
    pub(crate) fn of(
        runtime: &Runtime,
        analysis: &Analysis,
        options: &Options,
        setting: &Setting,
    ) -> Result<Self, Error> {
        let found = &analysis.measured.found;
        let plan = options.files.plan.as_ref().map(|path| store::plan::load(path, found)).transpose()?;
        let all = Costs::Flops.all(&found.sublayers);
        let in_flops = |budgets, plan| Self { costs: Costs::Flops, budgets, all, plan, table: None, wanted: None };
        if let Some(plan) = plan {
            return Ok(in_flops(vec![plan.each(found).map(|(s, d)| d.flops(s)).sum()], Some(plan)));
        }
        if let Amount::Compression(shares) = &options.aim.amount {
            return Ok(in_flops(shares.iter().map(|share| all * (1.0 - share)).collect(), None));
        }
        let table = table(runtime, analysis, options, setting)?;
        let wanted = match options.aim.amount {
            Amount::Speedup(times) => times,
            Amount::Latency(seconds) => table.whole / (seconds * 1e3),
            Amount::Compression(_) => 1.0,
        };
        let costs = table.costs();
        let all = costs.all(&found.sublayers);
        let budget = all - table.whole * (1.0 - 1.0 / wanted);
        if wanted <= 1.0 {
            return Err(Error::Usage(format!("the model takes {:.3} ms as it is; ask for less", table.whole)));
        }
        if budget <= 0.0 {
            let most = table.whole / (table.whole - all);
            return Err(Error::Usage(format!(
                "{wanted:.2} times as fast cannot be reached: without any of its heads and neurons the model would be \
                 {most:.2} times as fast"
            )));
        }
        let wanted = table.is_of(setting).then_some(wanted);
        Ok(Self { costs, budgets: vec![budget], all, plan: None, table: Some(table), wanted })
    }

    /// Whether anything is to be removed for model `i`.
    pub(crate) fn removes(&self, i: usize) -> bool {
        self.plan.is_some() || self.budgets[i] < self.all
    }

    /// What the table says of a model, in words, where it is a table of another machine.
    pub(crate) fn forecast(&self, found: &Discovery, plan: &Plan, setting: &Setting) -> Option<String> {
        let table = self.table.as_ref().filter(|table| !table.is_of(setting))?;
        let kept: f64 = plan.each(found).enumerate().map(|(t, (s, d))| self.costs.kept(t, s, d)).sum();
        let time = table.whole - (self.all - kept);
        Some(format!(
            "the latency table is of another machine or setting ({}), so the result was not timed; by the table it \
             takes {time:.3} ms instead of {:.3}",
            table.device, table.whole
        ))
    }

    /// Corrects the budget where the speed-up that was measured is off; returns whether it did. Once only.
    pub(crate) fn correct(&mut self, timing: Option<&Timing>) -> bool {
        let (Some(wanted), Some(timing), Some(table)) = (self.wanted.take(), timing, &self.table) else { return false };
        if (timing.speedup / wanted - 1.0).abs() <= OFF {
            return false;
        }
        // What was to be saved, and what was: the table is wrong by that factor.
        let saving = |speedup: f64| table.whole * (1.0 - 1.0 / speedup);
        let factor = saving(wanted) / saving(timing.speedup).max(f64::MIN_POSITIVE);
        let corrected = self.all - (self.all - self.budgets[0]) * factor;
        self.budgets[0] = corrected.clamp(0.0, self.all);
        true
    }
}

/// Reads the table of times, or measures and saves it.
fn table(runtime: &Runtime, analysis: &Analysis, options: &Options, setting: &Setting) -> Result<LatencyTable, Error> {
    match &options.files.latency_table {
        Some(path) if path.is_file() => LatencyTable::load(path, analysis),
        path => {
            let table = LatencyTable::measure(runtime, analysis, options.aim.alignment, setting)?;
            path.as_ref().map_or(Ok(()), |path| table.save(path))?;
            Ok(table)
        }
    }
}
