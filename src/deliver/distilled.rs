//! Models that were made, distilled.

use kprune_passes::methods::Outcome;
use kprune_passes::probe::Probes;

use super::anew::trained;
use super::make::{Maker, Products};
use crate::distil::Distiller;
use crate::error::Error;
use crate::options::Distil;
use crate::runtime::Cache;

impl Maker<'_> {
    /// Distils the models that were made, where that is wanted and something was removed.
    ///
    /// # Errors
    /// Where a model cannot be differentiated, a number is not finite, or the new file does not agree with what was
    /// trained.
    pub(crate) fn distil(&self, products: &mut Products, probes: &mut Probes, cache: &Cache) -> Result<(), Error> {
        let is_wanted = |outcome: &Outcome| outcome.plan.decisions.iter().any(|d| d.keep.iter().any(|keep| !keep));
        if self.options.distil == Distil::Off || !products.models.iter().any(|p| is_wanted(&p.outcome)) {
            return Ok(());
        }
        // Where it fails, so does every student's step.
        let _ = probes.reach_outputs();
        let mut distiller = Distiller::new(self.world, probes, self.options.distil, &self.judges, cache.clone())?;
        for product in products.models.iter_mut().filter(|p| is_wanted(&p.outcome)) {
            let Some(made) = &mut product.made else { continue };
            let mut pupil = self.pupil(&product.outcome, probes, &made.model)?;
            let (mut done, values) = match distiller.distil(&pupil) {
                Err(Error::Usage(why)) if self.options.distil.is_guarded() => {
                    product.warning = Some(format!("nothing was distilled: {why}"));
                    continue;
                }
                learnt => learnt?,
            };
            self.world.progress.done(&format!("distilled: {done}"));
            if let Some(values) = values {
                let model = trained(&mut pupil.model, &made.model, values)?;
                done.difference = self.write_anew(made, &model, &pupil.model)?;
                made.pupil = Some(pupil);
            }
            product.distillation = Some(done);
        }
        Ok(())
    }
}
