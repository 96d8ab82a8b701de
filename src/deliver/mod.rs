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
use crate::judge::quality::Drop;
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
        let chosen = self.chosen(&models)?;
        let mut publication = Publication::default();
        if let Some(path) = &self.options.files.save_plan {
            let found = &self.loaded.analysis.measured.found;
            let Product { outcome, sparsified, .. } = &models[chosen];
            publication.add_content(path, &store::plan::content(found, &outcome.plan, sparsified.as_ref())?)?;
        }
        let mut described = self.report(budget, probes, original, &models, chosen);
        let writes_all = self.options.aim.max_drop.is_none();
        let cards = described.cards();
        for (i, (product, card)) in models.iter_mut().zip(cards).enumerate() {
            if let Some(made) = product.made.take().filter(|_| writes_all || i == chosen) {
                made.publish_with(&card, &mut publication)?;
            }
        }
        described.cost = cost();
        for path in &self.options.files.reports {
            publication.add_content(path, &described.content(path)?)?;
        }
        publication.commit(&self.ledger)?;
        Ok(described)
    }

    /// Which of several models it is: the smallest that is surely good enough, or else the last.
    fn chosen(&self, products: &[Product]) -> Result<usize, Error> {
        let Some(allowed) = self.options.aim.max_drop else { return Ok(products.len() - 1) };
        if products.iter().any(|p| p.judgement.as_ref().is_some_and(|j| !j.is_known())) {
            let help = "give labels that fit an output (--eval FILE), or say what it is with --output-kind NAME:KIND";
            return Err(Error::Usage(format!(
                "--max-drop: the models give nothing that could be compared, so nobody knows how much they drop; {help}"
            )));
        }
        let is_good = |p: &Product| p.drop().is_none_or(|drop| drop.sureness(allowed) >= SURE);
        let size = |p: &Product| p.made.as_ref().map_or(0, |m| m.bytes());
        let good = (0..products.len()).filter(|&i| is_good(&products[i]));
        good.min_by_key(|&i| size(&products[i])).ok_or_else(|| nothing_good(products, allowed))
    }
}

/// A model is good enough where that is as probable as this.
pub(crate) const SURE: f64 = 0.9;

/// How far a normal distribution reaches with the probability [`SURE`], in standard deviations.
const REACH: f64 = 1.2816;

/// That no model is surely good enough: what each drops, and how many samples would tell.
fn nothing_good(products: &[Product], allowed: f64) -> Error {
    let judged = products.iter().filter_map(|p| Some((p.compression.unwrap_or(0.0), p.drop()?)));
    let judged: Vec<_> = judged.collect();
    let each: Vec<String> = judged.iter().map(|(share, drop)| format!("{share} by {drop}")).collect();
    let (name, samples) = products[0].judgement.as_ref().map_or(("fidelity", 0), |j| (j.main().0, j.samples));
    // The error of so many samples would leave room for what is lost.
    let enough = |drop: &Drop| {
        let room = Some(allowed - drop.value).filter(|room| *room > 0.0)?;
        Some(samples as f64 * (REACH * drop.error? / room).powi(2))
    };
    let enough = judged.iter().filter_map(|(_, drop)| enough(drop)).fold(f64::INFINITY, f64::min);
    let help = match enough.is_finite() {
        true => format!("{} samples would tell (--eval FILE); or allow more", rounded_up(enough)),
        false => "allow more, or try smaller compressions with --sweep".into(),
    };
    Error::Usage(format!(
        "no model is good enough: {name} must fall by no more than {allowed}, with a probability of {:.0} %, and falls, judged by {samples} \
         samples (compression {}); {help}",
        100.0 * SURE,
        each.join(", ")
    ))
}

/// A number of samples with two digits that count.
fn rounded_up(samples: f64) -> u64 {
    let unit = 10f64.powf(samples.max(1.0).log10().floor() - 1.0).max(1.0);
    ((samples / unit).ceil() * unit) as u64
}
