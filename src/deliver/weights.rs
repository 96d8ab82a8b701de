//! Models that were made, with other weights in the matrices of their blocks: some zero, or all of few bits.

use kprune_passes::ir::Model;
use kprune_passes::probe::Probes;
use kprune_passes::quantise::{Bits, write};
use kprune_passes::simplify::newer;

use super::anew::trained;
use super::make::{Maker, Products};
use crate::budget::Budget;
use crate::error::Error;
use crate::runtime::Cache;
use crate::weights::{SettledMatrix, Wanted, settle};

impl Maker<'_> {
    /// Settles single weights of the models that were made, where that is wanted.
    ///
    /// # Errors
    /// Where a model has no blocks, one cannot be run or learned, or the new file does not agree with what was measured.
    pub(crate) fn settle(
        &self,
        products: &mut Products,
        probes: &Probes,
        cache: &Cache,
        budget: &Budget,
    ) -> Result<(), Error> {
        let wanted = Wanted { sparsity: self.options.sparsity.as_ref(), bits: self.options.quantise };
        if wanted.sparsity.is_none() && wanted.bits.is_none() {
            return Ok(());
        }
        for product in &mut products.models {
            let Some(made) = &mut product.made else { continue };
            let mut pupil = match made.pupil.take() {
                Some(pupil) => pupil,
                None => self.pupil(&product.outcome, probes, &made.model)?,
            };
            let mut settled = settle(self.world, &pupil, probes.token_mask, wanted, cache.clone())?;
            // Of large models every copy counts.
            let numbers = settled.matrices.iter_mut().map(|m| (m.matrix.weight, std::mem::take(&mut m.numbers)));
            let values = numbers.collect();
            let mut model = trained(&mut pupil.model, &made.model, values)?;
            quantise(&mut model, &pupil.model, &settled.matrices)?;
            if wanted.sparsity.is_some_and(|sparsity| sparsity.by_nonzeros) {
                let names = settled.matrices.iter().map(|m| pupil.model.graph.name(m.matrix.weight));
                let places: Vec<_> = names.filter_map(|name| model.graph.find(name)).collect();
                model.store_by_nonzeros(places);
            }
            let difference = self.write_anew(made, &model, &pupil.model)?;
            (product.sparsified, product.quantised) = (settled.sparsified, settled.quantisation);
            product.sparsified.iter_mut().for_each(|done| done.difference = difference);
            let progress = self.world.progress;
            product.sparsified.iter().for_each(|done| progress.done(&format!("sparsified: {done}")));
            product.quantised.iter().for_each(|done| progress.done(&format!("quantised: {done}")));
        }
        match wanted.bits {
            // Few bits are faster, or slower: what was timed before is no longer so.
            Some(_) => self.time(products, budget),
            None => Ok(()),
        }
    }
}

/// Writes matrices that are on a grid as whole numbers with their scales.
fn quantise(model: &mut Model, student: &Model, matrices: &[SettledMatrix]) -> Result<(), Error> {
    let on_grid = || matrices.iter().filter_map(|m| m.quantised.as_ref().map(|quantised| (&m.matrix, quantised)));
    if on_grid().any(|(_, quantised)| quantised.bits == Bits::Int4) {
        newer::raise(model).map_err(|(node, why)| {
            let reason = format!("--quantise int4 needs operator set {}, and {node}: {why}", newer::NEWEST);
            Error::Usage(format!("{reason}; int8 does not need it"))
        })?;
    }
    for (matrix, quantised) in on_grid() {
        let name = student.graph.name(matrix.weight);
        let place = model.graph.find(name).ok_or_else(|| Error::internal(format!("{name} is in no file")))?;
        write(model, place, matrix.inputs_axis, quantised).map_err(|e| Error::internal(e.to_string()))?;
    }
    Ok(())
}
