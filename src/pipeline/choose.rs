//! Which units stay: for every sublayer from input to output, measure, search, tune, and go on with what is left.

use std::collections::BTreeMap;

use kprune_passes::cost::Costs;
use kprune_passes::discover::{Discovery, Sublayer};
use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::plan::{Decision, Plan, Tuned, bias_of};
use kprune_passes::search::{Candidate, align, search};
use ndarray::{Array1, Array2, Axis, s};

use super::Clock;
use crate::config::Options;
use crate::error::Error;
use crate::prepare::Prepared;
use crate::progress::Progress;
use crate::report;
use crate::walk::{Measured, TuningSums, Walk, candidates, not_finite, original_weight};

/// What was decided, and how well each projection could be repaired.
#[derive(Clone)]
pub(super) struct Outcome {
    pub(super) plan: Plan,
    pub(super) repairs: Vec<Repair>,
    /// For every sublayer, the scores that its units had when they were chosen; empty where they were not.
    pub(super) scores: Vec<Vec<f64>>,
}

/// Relative reconstruction errors of one sublayer on held-out batches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Repair {
    pub(super) untuned: Option<f64>,
    pub(super) tuned: Option<f64>,
}

impl Outcome {
    /// Nothing is decided yet.
    pub(super) fn untouched(found: &Discovery) -> Self {
        let sublayers = found.sublayers.len();
        Self {
            plan: Plan::untouched(found),
            repairs: vec![Repair::default(); sublayers],
            scores: vec![Vec::new(); sublayers],
        }
    }
}

/// How units are chosen.
pub(super) enum Choice<'a> {
    /// By their knowledge, one model for every budget.
    Search { costs: &'a Costs, budgets: &'a [f64] },
    /// They are given.
    Given(&'a Plan),
}

/// What choosing needs to know.
pub(super) struct Chooser<'a> {
    pub(super) prepared: &'a Prepared,
    pub(super) options: &'a Options,
    pub(super) progress: &'a dyn Progress,
    /// What was measured at which sublayers; it is not measured again.
    pub(super) known: BTreeMap<usize, Measured>,
}

impl Chooser<'_> {
    /// Leads the students through all sublayers; returns what was decided for each.
    pub(super) fn choose(
        &mut self,
        walk: &mut Walk,
        choice: &Choice,
        clock: &mut Clock,
    ) -> Result<Vec<Outcome>, Error> {
        let sublayers = &self.prepared.found.sublayers;
        let mut left = match choice {
            Choice::Search { budgets, .. } => budgets.to_vec(),
            Choice::Given(_) => vec![0.0],
        };
        let mut outcomes = vec![Outcome::untouched(&self.prepared.found); left.len()];
        let mut knowledge: Measured = Vec::new();
        for (t, sublayer) in sublayers.iter().enumerate() {
            let place = format!("sublayer {} of {}", t + 1, sublayers.len());
            match choice {
                Choice::Given(plan) => outcomes[0].plan.decisions[t].keep.clone_from(&plan.decisions[t].keep),
                Choice::Search { costs, .. } => {
                    self.measure(walk, t, &place, &mut knowledge)?;
                    let ranked = candidates(sublayers, t, &knowledge[t..], self.options.weights, costs);
                    if let Some(odd) = ranked.iter().find(|c| !c.score.is_finite()) {
                        let place = format!("unit {} of {}", odd.unit, sublayers[odd.sublayer].name);
                        return Err(not_finite(place, "its score", odd.score));
                    }
                    for (outcome, left) in outcomes.iter_mut().zip(&mut left) {
                        outcome.scores[t] = scores(sublayer, t, &ranked);
                        let decision = &mut outcome.plan.decisions[t];
                        self.search(t, sublayer, decision, &ranked, *left);
                        *left -= costs.kept(t, sublayer, decision);
                    }
                }
            }
            clock.stage("measure");
            self.tune(walk, t, &place, &mut outcomes, clock)?;
            let kept: Vec<_> = outcomes.iter().map(|o| o.plan.decisions[t].kept().to_string()).collect();
            let unit = report::unit_name(sublayer.kind);
            self.progress.done(&format!("{place}: {} of {} {unit}s kept", kept.join(", "), sublayer.units.len()));
        }
        Ok(outcomes)
    }

    /// Brings `knowledge`, by sublayer, up to date at sublayer `t`, where it is time.
    fn measure(&mut self, walk: &Walk, t: usize, place: &str, knowledge: &mut Measured) -> Result<(), Error> {
        if !self.options.measures_at(t, self.prepared.found.sublayers.len()) {
            return Ok(());
        }
        if !self.known.contains_key(&t) {
            self.progress.stage(&format!("{place}: measuring"));
            self.known.insert(t, walk.knowledge(t)?);
        }
        knowledge.truncate(t);
        knowledge.extend(self.known[&t].iter().cloned());
        Ok(())
    }

    fn search(&self, t: usize, sublayer: &Sublayer, decision: &mut Decision, ranked: &[Candidate], left: f64) {
        decision.keep = vec![false; sublayer.units.len()];
        let kept = align(ranked, t, search(ranked, t, left), self.options.step(sublayer), left);
        kept.into_iter().for_each(|unit| decision.keep[unit] = true);
        keep_one(sublayer, decision, ranked);
    }

    /// Solves the projections of all students, and advances them.
    fn tune(
        &self,
        walk: &mut Walk,
        t: usize,
        place: &str,
        outcomes: &mut [Outcome],
        clock: &mut Clock,
    ) -> Result<(), Error> {
        let sublayers = &self.prepared.found.sublayers;
        self.progress.stage(&format!("{place}: tuning"));
        let decisions: Vec<&Decision> = outcomes.iter().map(|o| &o.plan.decisions[t]).collect();
        let sums = walk.tuning_sums(t, &decisions)?;
        for (s, (outcome, sums)) in outcomes.iter_mut().zip(sums).enumerate() {
            self.progress.stage(&format!("{place}: tuning"));
            let columns = outcome.plan.decisions[t].columns(&sublayers[t]);
            let (tuned, repair) = repair(self.prepared, t, &columns, &sums)?;
            clock.stage("tune");
            self.progress.stage(&format!("{place}: advancing"));
            if t + 1 < sublayers.len() {
                walk.advance(s, t, &columns, &tuned)?;
            }
            clock.stage("advance");
            outcome.plan.decisions[t].tuned = Some(tuned);
            outcome.repairs[t] = repair;
        }
        Ok(())
    }
}

/// The scores of the units of sublayer `t`, in their order.
fn scores(sublayer: &Sublayer, t: usize, ranked: &[Candidate]) -> Vec<f64> {
    let mut scores = vec![0.0; sublayer.units.len()];
    ranked.iter().filter(|c| c.sublayer == t).for_each(|c| scores[c.unit] = c.score);
    scores
}

/// Keeps the best unit of a sublayer that cannot go whole, because its output is normalised.
fn keep_one(sublayer: &Sublayer, decision: &mut Decision, ranked: &[Candidate]) {
    if sublayer.can_go_whole() || decision.kept() > 0 {
        return;
    }
    let own = ranked.iter().filter(|c| c.sublayer == ranked[0].sublayer);
    if let Some(best) = own.max_by(|a, b| a.score.total_cmp(&b.score)) {
        decision.keep[best.unit] = true;
    }
}

/// The better of the tuned and the untuned projection on the batches that were held out, both as the
/// model's element type rounds them.
fn repair(prepared: &Prepared, t: usize, columns: &[usize], sums: &TuningSums) -> Result<(Tuned, Repair), Error> {
    let sublayer = &prepared.found.sublayers[t];
    let original = original_weight(&prepared.lowered, sublayer)?;
    let weight = prepared.model.graph.constant(prepared.written.sublayers[t].projection.weight);
    let element = weight.map_or(ElementType::F32, |t| t.element());
    let (kept, outputs) = (columns.len(), sublayer.projection.outputs);
    let mut untuned = Array2::zeros((kept + 1, outputs));
    untuned.slice_mut(s![..kept, ..]).assign(&original.select(Axis(0), columns));
    let with_bias = kept == 0 || bias_of(&prepared.model.graph, &prepared.written.sublayers[t]).is_some();
    let solved = sums.solve.solve(with_bias);
    if let Some(value) = solved.iter().find(|x| !x.is_finite()) {
        let place = format!("sublayer {} ({})", t + 1, sublayer.name);
        return Err(not_finite(place, "a weight of its tuned projection", *value));
    }
    let solved = rounded(solved, element)?;
    let judge = if sums.held_out.energy > 0.0 { &sums.held_out } else { &sums.solve };
    let (before, after) = (judge.error(&untuned), judge.error(&solved));
    let better = if after < before { &solved } else { &untuned };
    let mut weight = Array2::zeros((sublayer.projection.width, outputs));
    for (row, &column) in columns.iter().enumerate() {
        weight.row_mut(column).assign(&better.row(row));
    }
    let bias: Array1<f64> = better.row(kept).to_owned();
    let repair = Repair { untuned: Some(before), tuned: (after < before).then_some(after) };
    Ok((Tuned { weight, bias }, repair))
}

/// The numbers that are left once they are stored as `element`.
fn rounded(matrix: Array2<f64>, element: ElementType) -> Result<Array2<f64>, Error> {
    let stored = Tensor::from_floats(element, &matrix.into_dyn()).and_then(|t| t.to_f64());
    let stored = stored.map_err(|e| Error::internal(e.to_string()))?;
    stored.into_dimensionality().map_err(|e| Error::internal(e.to_string()))
}
