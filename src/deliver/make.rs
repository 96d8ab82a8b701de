//! Models that come out: cut, written beside their targets, checked, timed and judged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kprune_passes::ir::Model;
use kprune_passes::methods::Outcome;
use kprune_passes::remove::remove;
use kprune_passes::simplify::expressions::narrow;

use super::dump;
use super::targets::targets;
use super::verify::{Verified, masked_original, verify};
use crate::analysis::{Loaded, View, parameters};
use crate::budget::Budget;
use crate::data::Batch;
use crate::distil::{Distillation, Pupil};
use crate::error::Error;
use crate::judge::latency::{self, Setting, Timing};
use crate::judge::quality::{Drop, Evaluation, Judgement, Kind};
use crate::judge::side_by_side::judge;
use crate::options::Options;
use crate::report::card::CARD;
use crate::store::{self, Ledger, Publication, Source, Staged, StagedFolder, Target};
use crate::vocabulary::Trimmed;
use crate::walk::World;
use crate::weights::{Quantisation, Sparsified};

/// How long models take turns when they are timed.
const TIMING: Duration = Duration::from_millis(2500);

/// The models that were made, and what was measured of the original beside them.
pub(crate) struct Products {
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
    /// What its distillation did.
    pub(super) distillation: Option<Distillation>,
    /// Which of its weights went.
    pub(super) sparsified: Option<Sparsified>,
    /// How many bits they have.
    pub(super) quantised: Option<Quantisation>,
    /// Why there was none, though it was wanted.
    pub(super) warning: Option<String>,
    /// The files; `None` where nothing is to be written.
    pub(super) made: Option<Made>,
}

impl Product {
    /// By how much it is worse than the original, where that was judged.
    pub(super) fn drop(&self) -> Option<Drop> {
        self.judgement.as_ref()?.drop
    }
}

/// A model that was written beside its target.
pub(super) struct Made {
    pub(super) target: Target,
    pub(super) parameters: usize,
    pub(super) verified: Verified,
    pub(super) staged: Staged,
    folder: Option<StagedFolder>,
    /// The model, read back.
    pub(super) model: Model,
    /// The same as it was trained, where it was.
    pub(super) pupil: Option<Pupil>,
}

/// What is needed to make models.
pub(crate) struct Maker<'a> {
    pub(crate) world: World<'a>,
    pub(crate) loaded: &'a Loaded,
    pub(crate) options: &'a Options,
    pub(crate) source: &'a Source,
    /// The model that the source was made of, where it has fewer tokens.
    pub(crate) trimmed: Option<&'a Trimmed>,
    pub(crate) target: Option<Target>,
    pub(crate) ledger: Ledger,
    pub(crate) evaluation: Option<Evaluation>,
    /// Batches that a distillation is judged by.
    pub(crate) judges: Vec<Batch>,
    pub(crate) setting: Setting,
    pub(crate) kinds: Vec<Kind>,
}

impl Products {
    /// Lets go of the tuned projections, which lie in the files: nothing is made of them any more.
    pub(crate) fn forget_projections(&mut self) {
        let decisions = self.models.iter_mut().flat_map(|p| &mut p.outcome.plan.decisions);
        decisions.for_each(|decision| decision.tuned = None);
    }

    /// How long the first of the models takes, where that was measured.
    pub(crate) fn timing(&self) -> Option<&Timing> {
        self.models.first().and_then(|p| p.timing.as_ref())
    }
}

impl Maker<'_> {
    /// Makes one model for every outcome.
    pub(crate) fn make(&self, outcomes: Vec<Outcome>, budget: &Budget) -> Result<Products, Error> {
        let targets = targets(self.options, self.target.as_ref());
        let mut models = Vec::new();
        for (outcome, (compression, target)) in outcomes.into_iter().zip(targets) {
            let made = target.map(|target| self.made(&outcome, target)).transpose()?;
            models.push(Product {
                outcome,
                compression,
                timing: None,
                judgement: None,
                distillation: None,
                sparsified: None,
                quantised: None,
                warning: None,
                made,
            });
        }
        let mut products = Products { original: Original::default(), models };
        self.time(&mut products, budget)?;
        self.world.clock.stage("time");
        Ok(products)
    }

    fn made(&self, outcome: &Outcome, target: Target) -> Result<Made, Error> {
        let View { model, seen, found } = &self.loaded.analysis.written;
        let World { runtime, progress, clock, batches, .. } = self.world;
        progress.stage("removing");
        let pruned = remove(model, found, seen, &outcome.plan);
        let mut pruned = pruned.map_err(|e| Error::internal(e.to_string()))?;
        narrow(&mut pruned).map_err(|e| Error::internal(e.to_string()))?;
        clock.stage("remove");
        progress.stage("verifying");
        let folder = match &target {
            Target::Folder(to) => Some(StagedFolder::new(self.source, model, to, found, &outcome.plan)?),
            Target::File(_) => None,
        };
        let file = match &target {
            Target::Folder(to) => to.with_file_name(self.source.model.file_name().unwrap_or_default()),
            Target::File(to) => to.clone(),
        };
        let staged = store::stage(&pruned, &self.source.model, &file)?;
        let parameters = parameters(&pruned);
        // Of large models every copy counts.
        drop(pruned);
        let masked = masked_original(model, found, &outcome.plan)?;
        dump::masked(self.options, &self.source.model, &masked)?;
        let reread = staged.reread()?;
        let verified = runtime.in_full_precision(|| verify(runtime, &reread, &staged, &masked, found, batches))?;
        clock.stage("verify");
        Ok(Made { target, parameters, verified, staged, folder, model: reread, pupil: None })
    }

    /// The original, and every model that was made.
    fn models<'m>(&'m self, products: &'m [Product]) -> Vec<&'m Model> {
        let made = products.iter().filter_map(|p| p.made.as_ref().map(|m| &m.model));
        std::iter::once(&self.loaded.analysis.written.model).chain(made).collect()
    }

    /// Whether times are wanted.
    fn times(&self, budget: &Budget) -> bool {
        let is_here = budget.table.as_ref().is_none_or(|table| table.is_of(&self.setting));
        is_here && (self.options.files.draw_a_page() || self.options.aim.amount.is_timed() || budget.budgets.len() > 1)
    }

    /// Times the models against the original.
    pub(super) fn time(&self, products: &mut Products, budget: &Budget) -> Result<(), Error> {
        if self.target.is_none() || !self.times(budget) {
            return Ok(());
        }
        let World { runtime, progress, .. } = self.world;
        progress.stage("timing");
        let models = self.models(&products.models);
        let models: Vec<_> = models.into_iter().map(|model| (model, &self.setting)).collect();
        let timings = match latency::compare(runtime, &models, TIMING) {
            // What this runtime has no kernels for can be pruned all the same.
            Err(Error::Runtime { .. }) if !self.options.aim.amount.is_timed() => return Ok(()),
            timings => timings?,
        };
        let mut timings = timings.into_iter();
        products.original.timing = timings.next();
        products.models.iter_mut().zip(timings).for_each(|(p, timing)| p.timing = Some(timing));
        Ok(())
    }

    /// Judges the models beside the original.
    pub(crate) fn judge(&self, products: &mut Products) -> Result<(), Error> {
        let Some(Evaluation { data, .. }) = self.evaluation.as_ref().filter(|_| self.target.is_some()) else {
            return Ok(());
        };
        self.world.progress.stage("judging");
        let models = self.models(&products.models);
        let models: Vec<_> = models.into_iter().map(|model| (model, data)).collect();
        let mut judgements = judge(self.world.runtime, &models, &self.kinds)?.into_iter();
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

    /// Adds the files to what is put in place together; a folder with a `card` that says what was done.
    pub(super) fn publish_with(self, card: &str, publication: &mut Publication) -> Result<(), Error> {
        match self.folder {
            Some(folder) => folder.publish_with(self.staged, (CARD, card), publication),
            None => {
                self.staged.publish_with(publication);
                Ok(())
            }
        }
    }
}
