//! Models that come out: cut, written beside their targets, checked, timed and judged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kprune_passes::ir::{ElementType, Model, Tensor, ValueId};
use kprune_passes::loss::OutputKind;
use kprune_passes::remove::remove;

use super::Clock;
use super::choose::Outcome;
use super::goal::Goal;
use super::paths::targets;
use crate::config::Options;
use crate::data::{Batch, Dataset};
use crate::error::Error;
use crate::evaluate::{Judgement, judge};
use crate::latency::{self, Setting, Timing};
use crate::prepare::{Analysis, Prepared};
use crate::progress::Progress;
use crate::runtime::Runtime;
use crate::store::{self, Ledger, Publication, Source, Staged, StagedFolder, Target};
use crate::verify::{Verified, masked_original, verify};

/// How long models take turns when they are timed.
const TIMING: Duration = Duration::from_millis(2500);

/// The models that were made, and what was measured of the original beside them.
pub(super) struct Products {
    pub(super) original: Original,
    pub(super) models: Vec<Product>,
}

/// What was measured of the original.
#[derive(Default)]
pub(super) struct Original {
    pub(super) timing: Option<Timing>,
    pub(super) judgement: Option<Judgement>,
}

/// A model that was made.
pub(super) struct Product {
    pub(super) outcome: Outcome,
    /// The compression that was asked for, where that was asked for.
    pub(super) compression: Option<f64>,
    pub(super) timing: Option<Timing>,
    pub(super) judgement: Option<Judgement>,
    /// The files; `None` where nothing is to be written.
    pub(super) made: Option<Made>,
}

/// A model that was written beside its target.
pub(super) struct Made {
    pub(super) target: Target,
    pub(super) parameters: usize,
    pub(super) verified: Verified,
    staged: Staged,
    folder: Option<StagedFolder>,
    /// The model, read back.
    model: Model,
}

/// What is needed to make models.
pub(super) struct Factory<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) prepared: &'a Prepared,
    pub(super) options: &'a Options,
    pub(super) source: &'a Source,
    pub(super) target: Option<Target>,
    pub(super) ledger: Ledger,
    pub(super) batches: &'a [Batch],
    pub(super) evaluation: Option<&'a Dataset>,
    pub(super) setting: Setting,
    pub(super) kinds: Vec<(String, OutputKind)>,
    pub(super) progress: &'a dyn Progress,
}

/// Numbers in the constants of a model: of floating-point types, or quantised to eight bits or fewer.
pub fn parameters(model: &Model) -> usize {
    let constants = model.graph.initializers().into_iter().filter_map(|v: ValueId| model.graph.constant(v));
    let is_weight = |t: &&Tensor| {
        let element = t.element();
        element.is_float() || (1..=8).contains(&element.bits()) && element != ElementType::Bool
    };
    constants.filter(is_weight).map(|t| t.count()).sum()
}

impl Factory<'_> {
    /// Makes one model for every outcome.
    pub(super) fn make(&self, outcomes: Vec<Outcome>, goal: &Goal, clock: &mut Clock) -> Result<Products, Error> {
        let targets = targets(self.options, self.target.as_ref());
        let mut models = Vec::new();
        for (outcome, (compression, target)) in outcomes.into_iter().zip(targets) {
            let made = target.map(|target| self.made(&outcome, target, clock)).transpose()?;
            models.push(Product { outcome, compression, timing: None, judgement: None, made });
        }
        let mut products = Products { original: Original::default(), models };
        self.time(&mut products, goal)?;
        clock.stage("time");
        Ok(products)
    }

    fn made(&self, outcome: &Outcome, target: Target, clock: &mut Clock) -> Result<Made, Error> {
        let Prepared { analysis: Analysis { model, written, seen_as_written, found, .. }, .. } = self.prepared;
        self.progress.stage("removing");
        let pruned = remove(model, written, seen_as_written, &outcome.plan);
        let pruned = pruned.map_err(|e| Error::internal(e.to_string()))?;
        clock.stage("remove");
        self.progress.stage("verifying");
        let folder = match &target {
            Target::Folder(to) => Some(StagedFolder::new(self.source, model, to, found, &outcome.plan)?),
            Target::File(_) => None,
        };
        let file = match &target {
            Target::Folder(to) => to.with_file_name(self.source.model.file_name().unwrap_or_default()),
            Target::File(to) => to.clone(),
        };
        let staged = store::stage(&pruned, &self.source.model, &file)?;
        let masked = masked_original(model, written, &outcome.plan)?;
        let reread = staged.reread()?;
        let verified = verify(self.runtime, &reread, &staged, &masked, written, self.batches)?;
        clock.stage("verify");
        Ok(Made { target, parameters: parameters(&pruned), verified, staged, folder, model: reread })
    }

    /// The original, and every model that was made.
    fn models<'m>(&'m self, products: &'m [Product]) -> Vec<&'m Model> {
        let made = products.iter().filter_map(|p| p.made.as_ref().map(|m| &m.model));
        std::iter::once(&self.prepared.model).chain(made).collect()
    }

    /// Whether times are wanted.
    fn times(&self, goal: &Goal) -> bool {
        let is_here = goal.table.as_ref().is_none_or(|table| table.is_of(&self.setting));
        is_here && (self.options.time || self.options.aim.is_timed() || goal.budgets.len() > 1)
    }

    /// Times the models against the original.
    fn time(&self, products: &mut Products, goal: &Goal) -> Result<(), Error> {
        if self.target.is_none() || !self.times(goal) {
            return Ok(());
        }
        self.progress.stage("timing");
        let feeds = self.setting.feeds(&self.prepared.single, self.prepared.mask.as_deref())?;
        let timings = latency::compare(self.runtime, &self.models(&products.models), &feeds, &self.setting, TIMING)?;
        let mut timings = timings.into_iter();
        products.original.timing = timings.next();
        products.models.iter_mut().zip(timings).for_each(|(p, timing)| p.timing = Some(timing));
        Ok(())
    }

    /// Judges the models beside the original.
    pub(super) fn judge(&self, products: &mut Products) -> Result<(), Error> {
        let Some(data) = self.evaluation.filter(|_| self.target.is_some()) else { return Ok(()) };
        self.progress.stage("judging");
        let mut judgements = judge(self.runtime, &self.models(&products.models), &self.kinds, data)?.into_iter();
        products.original.judgement = judgements.next();
        products.models.iter_mut().zip(judgements).for_each(|(p, judgement)| p.judgement = Some(judgement));
        Ok(())
    }
}

impl Made {
    /// Size of its files, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.staged.bytes()
    }

    /// Where the model will be.
    pub(super) fn path(&self) -> PathBuf {
        match &self.target {
            Target::File(path) => path.clone(),
            Target::Folder(path) => path.join(self.name()),
        }
    }

    fn name(&self) -> &Path {
        self.staged.target().file_name().map_or(Path::new("model.onnx"), Path::new)
    }

    /// Adds the files to what is put in place together.
    pub(super) fn publish_with(self, publication: &mut Publication) -> Result<(), Error> {
        match self.folder {
            Some(folder) => folder.publish_with(self.staged, publication),
            None => {
                self.staged.publish_with(publication);
                Ok(())
            }
        }
    }
}
