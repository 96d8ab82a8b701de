//! How long sublayers take by the number of units that they keep, on a machine.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use kprune_passes::discover::cost::{Alignment, Costs, Curve};
use kprune_passes::discover::{Kind, Sublayer};
use kprune_passes::ir::ValueId;
use kprune_passes::plan::Plan;
use kprune_passes::probe::suffix::{Crossings, extract};
use kprune_passes::remove::remove;
use serde::{Deserialize, Serialize};

use super::latency::{Contender, Setting, in_turns, quantile};
use crate::analysis::{Analysis, View};
use crate::data::{as_declared, find};
use crate::error::Error;
use crate::machine;
use crate::runtime::{Held, Purpose, Runtime};
use crate::store;

/// Shares of a sublayer's units at which it is timed.
const SHARES: [f64; 6] = [1.0, 0.75, 0.5, 0.25, 0.1, 0.0];

/// Time spent on one kind of sublayer, and on the whole.
const BUDGET: Duration = Duration::from_millis(1500);

/// The version of the layout that this program writes and reads.
const SCHEMA: u32 = 1;

/// Times of a model's sublayers. Times are milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LatencyTable {
    /// Version of this layout.
    pub schema: u32,
    /// The machine.
    pub device: String,
    /// The execution provider.
    pub provider: String,
    /// Threads.
    pub threads: usize,
    /// Samples in a run.
    pub batch: usize,
    /// The length of every other free axis of the inputs.
    pub lengths: std::collections::BTreeMap<String, usize>,
    /// The whole model, nothing removed.
    pub whole: f64,
    /// The sublayers from input to output.
    pub sublayers: Vec<SublayerTimes>,
}

/// Times of one sublayer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SublayerTimes {
    /// Its projection's name in the file.
    pub name: String,
    /// Number of units.
    pub units: usize,
    /// Pairs of kept units and time.
    pub times: Vec<(usize, f64)>,
}

impl LatencyTable {
    /// Times every sublayer at several widths, each alone and in turns; sublayers that are alike are timed once.
    /// Then the sum is put right: a model pruned evenly by half shows how much faster that makes the whole.
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    pub fn measure(
        runtime: &Runtime,
        analysis: &Analysis,
        alignment: Alignment,
        setting: &Setting,
    ) -> Result<Self, Error> {
        let sublayers = &analysis.measured.found.sublayers;
        let crossings = Crossings::find(&analysis.measured.model.graph, &analysis.measured.found);
        let mut known: HashMap<Likeness, Vec<(usize, f64)>> = HashMap::new();
        let mut curves = Vec::new();
        for (t, sublayer) in sublayers.iter().enumerate() {
            let likeness = Likeness::of(sublayer);
            let times = match known.get(&likeness) {
                Some(times) => times.clone(),
                None => sublayer_times(runtime, analysis, alignment, setting, t, crossings.at(t))?,
            };
            known.insert(likeness, times.clone());
            curves.push(Curve::new(times));
        }
        let (whole, factor) = whole_times(runtime, analysis, alignment, setting, &curves)?;
        let row = |(sublayer, curve): (&Sublayer, &Curve)| {
            let stretched = curve.stretched(factor);
            let points = widths(sublayer, alignment).into_iter().map(|n| (n, stretched.at(n)));
            SublayerTimes { name: sublayer.name.clone(), units: sublayer.units.len(), times: points.collect() }
        };
        Ok(Self {
            schema: SCHEMA,
            device: machine::name(),
            provider: setting.provider.clone(),
            threads: setting.threads,
            batch: setting.batch,
            lengths: setting.lengths.clone(),
            whole,
            sublayers: sublayers.iter().zip(&curves).map(row).collect(),
        })
    }

    /// Reads a table for the model of `analysis`.
    ///
    /// # Errors
    /// Where the file is none, or belongs to another model.
    pub fn load(path: &Path, analysis: &Analysis) -> Result<Self, Error> {
        let content = store::read(path).map_err(Error::io("read", path))?;
        let help = "delete it, or name another file, to have one measured";
        let wrong = |reason: String| Error::data(path, reason, help);
        let table: Self = serde_json::from_slice(&content).map_err(|e| wrong(format!("is no latency table: {e}")))?;
        if table.schema != SCHEMA {
            return Err(wrong(format!("is of version {}, and version {SCHEMA} is read", table.schema)));
        }
        let sublayers = &analysis.measured.found.sublayers;
        let is_same = |(row, s): (&SublayerTimes, &Sublayer)| row.name == s.name && row.units == s.units.len();
        if table.sublayers.len() != sublayers.len() || !table.sublayers.iter().zip(sublayers).all(is_same) {
            return Err(wrong("belongs to another model: its sublayers are not those of this one".into()));
        }
        let sound = |&(_, time): &(usize, f64)| time.is_finite() && time >= 0.0;
        let all_sound = table.sublayers.iter().all(|s| !s.times.is_empty() && s.times.iter().all(sound));
        if !(all_sound && table.whole.is_finite() && table.whole > 0.0) {
            return Err(wrong("holds times that are no times".into()));
        }
        Ok(table)
    }

    /// Writes the table; the file appears whole or not at all.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        store::write_json(path, self)
    }

    /// Whether the times are of this machine and this setting.
    pub fn is_of(&self, setting: &Setting) -> bool {
        self.device == machine::name()
            && (self.threads, self.batch) == (setting.threads, setting.batch)
            && self.provider == setting.provider
            && self.lengths == setting.lengths
    }

    /// Times as costs.
    pub fn costs(&self) -> Costs {
        Costs::Time(self.sublayers.iter().map(|s| Curve::new(s.times.clone())).collect())
    }
}

/// What makes two sublayers take the same time.
#[derive(PartialEq, Eq, Hash)]
struct Likeness {
    is_head: bool,
    units: usize,
    width: usize,
    outputs: usize,
    sites: usize,
    flops: u64,
}

impl Likeness {
    fn of(sublayer: &Sublayer) -> Self {
        Self {
            is_head: sublayer.kind == Kind::Head,
            units: sublayer.units.len(),
            width: sublayer.projection.width,
            outputs: sublayer.projection.outputs,
            sites: sublayer.also.len(),
            flops: sublayer.flops() as u64,
        }
    }
}

/// The numbers of units at which a sublayer is timed, each once.
fn widths(sublayer: &Sublayer, alignment: Alignment) -> Vec<usize> {
    let (units, step) = (sublayer.units.len(), alignment.step(sublayer));
    let mut widths: Vec<usize> = SHARES.iter().map(|&share| near(units, step, share)).collect();
    widths.retain(|&n| n > 0 || sublayer.can_go_whole());
    widths.sort_unstable();
    widths.dedup();
    widths
}

/// That share of `units`, as a multiple of `step`; something unless the share is nothing.
fn near(units: usize, step: usize, share: f64) -> usize {
    let wanted = (units as f64 * share / step as f64).round() as usize * step;
    if share > 0.0 { wanted.max(step.min(units)).min(units) } else { 0 }
}

/// Keeps the first units of sublayers, as many as `kept` says.
fn first_units(analysis: &Analysis, kept: impl Fn(usize, &Sublayer) -> usize) -> Plan {
    let mut plan = Plan::untouched(&analysis.measured.found.sublayers);
    for (t, (decision, sublayer)) in plan.decisions.iter_mut().zip(&analysis.measured.found.sublayers).enumerate() {
        let kept = kept(t, sublayer);
        decision.keep.iter_mut().enumerate().for_each(|(u, keep)| *keep = u < kept);
    }
    plan
}

/// Times sublayer `t` alone, in milliseconds, at several widths.
fn sublayer_times(
    runtime: &Runtime,
    analysis: &Analysis,
    alignment: Alignment,
    setting: &Setting,
    t: usize,
    crossing: &[ValueId],
) -> Result<Vec<(usize, f64)>, Error> {
    let View { model: lowered, seen, found } = &analysis.measured;
    let streams: Vec<ValueId> = found.sublayers[t].sites().map(|(_, r)| r.output).collect();
    let feeds = crossing_values(runtime, analysis, setting, crossing)?;
    let whole = extract(lowered, seen, crossing, &streams);
    let widths = widths(&found.sublayers[t], alignment);
    let mut contenders = Vec::new();
    for &width in &widths {
        let plan = first_units(analysis, |i, s| if i == t { width } else { s.units.len() });
        let part = remove(&whole, found, seen, &plan).map_err(|e| Error::internal(e.to_string()))?;
        contenders
            .push(Contender { session: runtime.session(&part, "timing a sublayer", Purpose::Timing)?, feeds: &feeds });
    }
    let rounds = in_turns(runtime, &mut contenders, BUDGET)?;
    Ok(widths.into_iter().zip(rounds).map(|(n, own)| (n, quantile(&own.seconds, 0.5) * 1e3)).collect())
}

/// The values that cross into a sublayer, from a run of what is upstream of it.
fn crossing_values(
    runtime: &Runtime,
    analysis: &Analysis,
    setting: &Setting,
    crossing: &[ValueId],
) -> Result<Vec<(String, Held)>, Error> {
    let View { model: lowered, seen, .. } = &analysis.measured;
    let graph = &lowered.graph;
    let mut feeds = setting.feeds(lowered)?;
    let made: Vec<ValueId> = crossing.iter().copied().filter(|&v| graph.producer(v).is_some()).collect();
    if !made.is_empty() {
        let upstream = extract(lowered, seen, &[], &made);
        let mut session = runtime.session(&upstream, "running what is upstream of a sublayer", Purpose::Trial)?;
        let values = session.run_with(|name| find(&feeds, name))?;
        feeds.extend(values.into_iter().map(|(name, value)| (name, value.into())));
    }
    Ok(feeds)
}

/// How long the whole model takes, in milliseconds, and by what the times that units add must be multiplied for
/// their sum to tell how much faster an evenly pruned model is.
fn whole_times(
    runtime: &Runtime,
    analysis: &Analysis,
    alignment: Alignment,
    setting: &Setting,
    curves: &[Curve],
) -> Result<(f64, f64), Error> {
    let half_of = |s: &Sublayer| near(s.units.len(), alignment.step(s), 0.5);
    let plan = first_units(analysis, |_, s| half_of(s));
    let View { model, seen, found } = &analysis.written;
    let pruned = remove(model, found, seen, &plan);
    let pruned = pruned.map_err(|e| Error::internal(e.to_string()))?;
    let feeds = setting.feeds(&analysis.single)?;
    let models = [model, &pruned];
    let feeds = models.iter().map(|model| as_declared(&feeds, model)).collect::<Result<Vec<_>, _>>()?;
    let contender =
        |(model, feeds)| Ok(Contender { session: runtime.session(model, "timing the model", Purpose::Timing)?, feeds });
    let contenders = models.into_iter().zip(feeds.iter().map(Vec::as_slice)).map(contender);
    let mut contenders = contenders.collect::<Result<Vec<_>, Error>>()?;
    let rounds = in_turns(runtime, &mut contenders, 2 * BUDGET)?;
    let [whole, half] = [0, 1].map(|place| &rounds[place].seconds);
    let shares: Vec<f64> = whole.iter().zip(half).map(|(a, b)| 1.0 - b / a).collect();
    let whole = quantile(whole, 0.5) * 1e3;
    let saved = whole * quantile(&shares, 0.5);
    let sublayers = analysis.measured.found.sublayers.iter().zip(curves);
    let expected: f64 = sublayers.map(|(s, curve)| curve.at(s.units.len()) - curve.at(half_of(s))).sum();
    let factor = if expected > 0.0 && saved > 0.0 { saved / expected } else { 1.0 };
    Ok((whole, factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_to_steps_but_not_to_nothing() {
        assert_eq!([1.0, 0.5, 0.1, 0.0].map(|share| near(12, 1, share)), [12, 6, 1, 0]);
        assert_eq!([1.0, 0.25, 0.01].map(|share| near(1536, 16, share)), [1536, 384, 16]);
        assert_eq!(near(10, 16, 0.5), 10);
    }
}
