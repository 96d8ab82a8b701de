//! What a run makes: models, their check, and the report, put in place together.

mod anew;
mod describe;
mod distilled;
pub(crate) mod dump;
mod later;
mod make;
pub(crate) mod targets;
pub mod verify;
mod weights;

use kprune_passes::probe::Probes;

pub(crate) use make::Maker;
use make::{Product, Products};

use crate::budget::Budget;
use crate::error::Error;
use crate::judge::quality::Judgement;
use crate::report::{Cost, Report};
use crate::store::{self, Publication};

impl Maker<'_> {
    /// Puts the models, the plan and the reports in place, all or none, and says what was done. `cost` is asked for
    /// what the run cost when all else is done.
    ///
    /// # Errors
    /// Where none of several is good enough, or a file cannot be written.
    pub(crate) fn deliver(
        &self,
        budget: &Budget,
        probes: &Probes,
        products: Products,
        cost: impl FnOnce() -> Cost,
    ) -> Result<Report, Error> {
        let Products { original, mut models } = products;
        let chosen = self.chosen(&models, original.judgement.as_ref())?;
        let mut publication = Publication::default();
        if let Some(path) = &self.options.files.save_plan {
            let found = &self.loaded.analysis.measured.found;
            let Product { outcome, sparsified, .. } = &models[chosen];
            publication.add_content(path, &store::plan::content(found, &outcome.plan, sparsified.as_ref())?)?;
        }
        let mut described = self.report(budget, probes, original, &models, chosen);
        let writes_all = self.options.aim.max_drop.is_none();
        for (i, product) in models.iter_mut().enumerate() {
            if let Some(made) = product.made.take().filter(|_| writes_all || i == chosen) {
                made.publish_with(&mut publication)?;
            }
        }
        described.cost = cost();
        for path in &self.options.files.reports {
            publication.add_content(path, &described.content(path)?)?;
        }
        publication.commit(&self.ledger)?;
        Ok(described)
    }

    /// Which of several models it is: the smallest that is good enough, or else the last.
    fn chosen(&self, products: &[Product], original: Option<&Judgement>) -> Result<usize, Error> {
        let (Some(allowed), Some(original)) = (self.options.aim.max_drop, original) else {
            return Ok(products.len() - 1);
        };
        if products.iter().any(|p| p.judgement.as_ref().is_some_and(|j| !j.is_known())) {
            let help = "give labels that fit an output (--eval FILE), or say what it is with --output NAME:KIND";
            return Err(Error::Usage(format!(
                "--max-drop: the models give nothing that could be compared, so nobody knows how much they drop; {help}"
            )));
        }
        let drop = |p: &Product| p.judgement.as_ref().map_or(0.0, |j| j.drop_from(original));
        let size = |p: &Product| p.made.as_ref().map_or(0, |m| m.bytes());
        let good = (0..products.len()).filter(|&i| drop(&products[i]) <= allowed);
        good.min_by_key(|&i| size(&products[i])).ok_or_else(|| {
            let least = products.iter().map(|p| format!("{} by {:.4}", p.compression.unwrap_or(0.0), drop(p)));
            let (name, _) = products[0].judgement.as_ref().map_or(("fidelity", 0.0), Judgement::main);
            Error::Usage(format!(
                "no model is good enough: {name} falls by more than {allowed} (compression {}); \
                 allow more, or try smaller compressions with --sweep",
                least.collect::<Vec<_>>().join(", ")
            ))
        })
    }
}
