//! Which units stay: the method, led over the calibration set.

use kprune_passes::discover::Discovery;
use kprune_passes::ir::Model;
use kprune_passes::methods::tune::tune_all;
use kprune_passes::methods::{Method, Outcome, Task};
use kprune_passes::probe::Probes;

use crate::budget::Budget;
use crate::error::Error;
use crate::options::Options;
use crate::runtime::Cache;
use crate::walk::{Calibrated, World, leading_work, measuring_work};

/// A method with its walk.
pub(crate) struct Chooser<'a> {
    world: World<'a>,
    walk: Calibrated<'a>,
    method: Box<dyn Method>,
    options: &'a Options,
    found: &'a Discovery,
    /// The model as it is run.
    original: &'a Model,
    /// The work that is known to be done or to come.
    expected: usize,
    /// One pass of the original, in seconds, once the teacher was met.
    forward: Option<f64>,
}

impl<'a> Chooser<'a> {
    /// The method that `options` name; `original` is the yardstick of what its work costs.
    pub(crate) fn new(
        world: World<'a>,
        probes: Probes<'a>,
        original: &'a Model,
        options: &'a Options,
        cache: Cache,
    ) -> Self {
        let (method, found) = (options.method.method(), probes.discovery);
        let walk = Calibrated::new(world, probes, cache);
        Self { world, walk, method, options, found, original, expected: 0, forward: None }
    }

    /// Chooses units for every budget, and tunes what stays.
    ///
    /// # Errors
    /// Where the model cannot be measured, or a number is not finite.
    pub(crate) fn choose(&mut self, budget: &Budget) -> Result<Vec<Outcome>, Error> {
        let sublayers = &self.found.sublayers;
        let touched: Vec<usize> = (0..budget.budgets.len()).filter(|&i| budget.removes(i)).collect();
        let mut outcomes = vec![Outcome::untouched(sublayers); budget.budgets.len()];
        if touched.is_empty() {
            return Ok(outcomes);
        }
        self.meet_teacher(budget)?;
        self.expect(leading_work(sublayers.len(), touched.len(), self.world.batches.len()));
        let budgets: Vec<f64> = touched.iter().map(|&i| budget.budgets[i]).collect();
        // What the most pruned one has to make up for serves the others too (docs/speed.md).
        let leader = (0..budgets.len()).min_by(|&a, &b| budgets[a].total_cmp(&budgets[b])).unwrap_or(0);
        self.walk.start(budgets.len(), leader);
        let chosen = match &budget.plan {
            Some(plan) => {
                let mut given = vec![Outcome { plan: plan.clone(), ..Outcome::untouched(sublayers) }];
                tune_all(&mut self.walk, sublayers, &mut given).map(|()| given)
            }
            None => {
                let Options { aim, data, .. } = self.options;
                let (costs, alignment, seed) = (&budget.costs, aim.alignment, data.calibration.seed);
                let runtime = self.world.runtime;
                let check = || Ok(runtime.check_cancelled()?);
                let even_heads = !aim.uneven_heads;
                let task = Task { sublayers, costs, budgets: &budgets, alignment, even_heads, seed, check: &check };
                self.check_even(&task)?;
                self.method.choose(&mut self.walk, &task)
            }
        };
        touched.into_iter().zip(chosen?).for_each(|(i, outcome)| outcomes[i] = outcome);
        Ok(outcomes)
    }

    /// Runs the original over the calibration set, once.
    fn meet_teacher(&mut self, budget: &Budget) -> Result<(), Error> {
        if self.forward.is_some() {
            return Ok(());
        }
        let sublayers = self.found.sublayers.len();
        let measured = match budget.plan {
            Some(_) => Vec::new(),
            None => self.method.differentiates_at(sublayers),
        };
        if !measured.is_empty() {
            self.walk.reach_outputs()?;
        }
        self.expect(measuring_work(sublayers, &measured, self.world.batches.len()));
        self.world.progress.stage("running the original");
        self.forward = Some(match budget.plan.is_some() || self.method.needs_outputs(self.walk.has_targets()) {
            true => self.walk.meet_teacher(self.original)?,
            false => self.walk.time(self.original)?,
        });
        self.world.clock.stage("teacher");
        Ok(())
    }

    /// Times the original, where it was not yet.
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    pub(crate) fn time_original(&mut self) -> Result<(), Error> {
        if self.forward.is_none() {
            self.world.progress.stage("running the original");
            self.forward = Some(self.walk.time(self.original)?);
            self.world.clock.stage("teacher");
        }
        Ok(())
    }

    /// Refuses a method that would leave caches with different numbers of heads, where they are to be even.
    fn check_even(&self, task: &Task) -> Result<(), Error> {
        let is_bound = (0..task.sublayers.len()).any(|t| task.even_with(t).len() > 1);
        if !is_bound || self.method.keeps_heads_even() {
            return Ok(());
        }
        let reason = "this method chooses how many heads an attention keeps for each by itself, and runners of models with \
                      key/value caches may know of one number only";
        Err(Error::Usage(format!("{reason}; give --uneven-heads where yours does not mind, or take --method obs")))
    }

    fn expect(&mut self, work: usize) {
        self.expected += work;
        self.world.progress.expect(self.expected);
    }

    /// Lets go of all values: the probes, and the seconds of one pass of the original, where there was one.
    pub(crate) fn finish(self) -> (Probes<'a>, Option<f64>) {
        (self.walk.finish(), self.forward)
    }
}
