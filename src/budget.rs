//! How much is to be removed, as budgets of FLOPs or of time.

use std::time::Duration;

use kprune_passes::discover::cost::Costs;
use kprune_passes::discover::{Discovery, Sublayer};
use kprune_passes::plan::Plan;
use kprune_passes::remove::remove;

use crate::analysis::{Analysis, View, parameters};
use crate::error::Error;
use crate::judge::latency::{self, Setting, Timing};
use crate::judge::latency_table::LatencyTable;
use crate::options::{Amount, Of, Options};
use crate::runtime::Runtime;
use crate::store;

/// A measured speed-up may be off by this share before the budget is corrected.
const OFF: f64 = 0.03;

/// The correction of what is to be saved is no larger than this factor, nor smaller than one by it: what was measured was
/// wrong then, and not the table.
const LARGEST: f64 = 2.0;

/// What is to be kept.
#[derive(Clone)]
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
    /// The speed-up wanted; `None` where it is not measured here.
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
            return Self::of_shares(analysis, shares, options.aim.of);
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
        let least = least(&costs, found);
        if budget < least {
            // The table may be wrong: what nothing is left of tells.
            let emptied = match table.is_of(setting) {
                true => Some(emptied_timing(runtime, analysis, setting)?),
                false => None,
            };
            let by_table = table.whole / (table.whole - all + least);
            // Within what the times leave open nothing is refused.
            if wanted > emptied.as_ref().map_or(by_table, |timing| timing.interval[1]) {
                let most = emptied.map_or(format!("{by_table:.2} times as fast"), |timing| timing.faster());
                return Err(Error::Usage(format!(
                    "{wanted:.2} times as fast cannot be reached: without any of the heads and neurons that can go the \
                     model is {most}"
                )));
            }
        }
        let wanted = table.is_of(setting).then_some(wanted);
        Ok(Self { costs, budgets: vec![budget.max(least)], all, plan: None, table: Some(table), wanted })
    }

    /// What stays without these shares.
    fn of_shares(analysis: &Analysis, shares: &[f64], of: Of) -> Result<Self, Error> {
        let Reach { costs, all, whole, most } = Reach::of(analysis, of);
        if let Some(share) = shares.iter().find(|&&share| share > most + ROUNDING) {
            let most = (most * 1e3).floor() / 1e3;
            return Err(Error::Usage(format!(
                "compression {share} cannot be reached: {most:.3} is the most that can go. Some sublayers must keep a \
                 unit, since their output is normalised or a cache is made of it{}",
                if of == Of::Params { ", and embeddings stay" } else { "" }
            )));
        }
        let budgets = shares.iter().map(|share| all - whole * share).collect();
        Ok(Self { costs, budgets, all, plan: None, table: None, wanted: None })
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

    /// The budget that is better where the speed-up that was measured is off.
    pub(crate) fn corrected(&self, timing: Option<&Timing>) -> Option<Self> {
        let (wanted, timing, table) = (self.wanted?, timing?, self.table.as_ref()?);
        let [low, high] = timing.interval;
        if off(timing, wanted) <= OFF || (low..=high).contains(&wanted) {
            return None;
        }
        // What was to be saved, and what was: the table is wrong by that factor.
        let saving = |speedup: f64| table.whole * (1.0 - 1.0 / speedup);
        let factor = saving(wanted) / saving(timing.speedup).max(f64::MIN_POSITIVE);
        let factor = factor.clamp(1.0 / LARGEST, LARGEST);
        let corrected = self.all - (self.all - self.budgets[0]) * factor;
        Some(Self { budgets: vec![corrected.clamp(0.0, self.all)], ..self.clone() })
    }

    /// Whether the first of two measured speed-ups is nearer to the one wanted.
    pub(crate) fn is_nearer(&self, first: Option<&Timing>, second: Option<&Timing>) -> bool {
        let apart = |timing: &Timing| self.wanted.map_or(0.0, |wanted| off(timing, wanted));
        first.map(apart).zip(second.map(apart)).is_none_or(|(first, second)| first <= second)
    }
}

/// The same options without compressions that the model does not allow, where the largest of several is looked for that
/// drops little enough.
pub(crate) fn within_reach(options: &Options, analysis: &Analysis) -> Options {
    let mut options = options.clone();
    if let (Amount::Compression(shares), Some(_)) = (&mut options.aim.amount, options.aim.max_drop) {
        let most = Reach::of(analysis, options.aim.of).most;
        let least = shares.first().copied();
        shares.retain(|&share| share <= most + ROUNDING || Some(share) == least);
    }
    options
}

/// How much of a model can go.
struct Reach {
    costs: Costs,
    /// What all units cost.
    all: f64,
    /// What shares are of.
    whole: f64,
    /// The largest share.
    most: f64,
}

impl Reach {
    fn of(analysis: &Analysis, of: Of) -> Self {
        let found = &analysis.measured.found;
        let costs = if of == Of::Flops { Costs::Flops } else { Costs::Parameters };
        let all = costs.all(&found.sublayers);
        let whole = if of == Of::Params { parameters(&analysis.written.model) as f64 } else { all };
        let most = (all - least(&costs, found)) / whole.max(f64::MIN_POSITIVE);
        Self { costs, all, whole, most }
    }
}

/// By what share a measured speed-up is off.
fn off(timing: &Timing, wanted: f64) -> f64 {
    (timing.speedup / wanted - 1.0).abs()
}

/// Costs of many units are off by a few units in the last place, and compressions are written with few digits.
const ROUNDING: f64 = 1e-6;

/// What is left where all units go that can: the cheapest of every sublayer of which something must stay.
fn least(costs: &Costs, found: &Discovery) -> f64 {
    let must_stay = found.sublayers.iter().enumerate().filter(|(_, s)| !s.can_go_whole());
    let cheapest = |(t, s): (usize, &Sublayer)| {
        (0..s.units.len()).map(|unit| costs.nth(t, s, unit, 1)).min_by(f64::total_cmp).unwrap_or(0.0)
    };
    must_stay.map(cheapest).sum()
}

/// How fast the model is without the units that can go.
fn emptied_timing(runtime: &Runtime, analysis: &Analysis, setting: &Setting) -> Result<Timing, Error> {
    let View { model, seen, found } = &analysis.written;
    let mut plan = Plan::untouched(&found.sublayers);
    for (decision, sublayer) in plan.decisions.iter_mut().zip(&found.sublayers) {
        let left = usize::from(!sublayer.can_go_whole());
        decision.keep.iter_mut().skip(left).for_each(|keep| *keep = false);
    }
    let emptied = remove(model, found, seen, &plan).map_err(|e| Error::internal(e.to_string()))?;
    let timings = latency::compare(runtime, &[(model, setting), (&emptied, setting)], EMPTIED)?;
    timings.into_iter().last().ok_or_else(|| Error::internal("nothing was timed"))
}

/// How long the emptied model is timed.
const EMPTIED: Duration = Duration::from_secs(2);

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
