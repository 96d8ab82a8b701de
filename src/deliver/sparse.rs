//! Models that were made, without some of the weights that stayed.

use kprune_passes::probe::Probes;

use super::make::{Maker, Products};
use crate::error::Error;
use crate::runtime::Cache;
use crate::sparsify::sparsify;

impl Maker<'_> {
    /// Takes weights out of the models that were made, where that is wanted.
    ///
    /// # Errors
    /// Where a model has no blocks, one cannot be run or learned, or the new file does not agree with what was measured.
    pub(crate) fn sparsify(&self, products: &mut Products, probes: &Probes, cache: &Cache) -> Result<(), Error> {
        let Some(settings) = &self.options.sparsity else { return Ok(()) };
        for product in &mut products.models {
            let Some(made) = &mut product.made else { continue };
            let mut pupil = match made.pupil.take() {
                Some(pupil) => pupil,
                None => self.pupil(&product.outcome, probes, &made.model)?,
            };
            let (mut done, values) = sparsify(self.world, &pupil, probes.token_mask, settings, cache.clone())?;
            self.world.progress.done(&format!("sparsified: {done}"));
            done.difference = self.write_anew(made, &mut pupil.model, values)?;
            made.pupil = Some(pupil);
            product.sparsified = Some(done);
        }
        Ok(())
    }
}
