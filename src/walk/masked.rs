//! The untouched model without some of its units, forward and backward.

use std::collections::HashMap;

use kprune_passes::calculus::loss::{Criterion, SAMPLES, teacher_input};
use kprune_passes::ir::ElementType;
use kprune_passes::methods::Masked;
use kprune_passes::probe::{MaskOutputs, mask_input};
use ndarray::{Array1, ArrayD, IxDyn};

use super::{Calibrated, MEASURING, host, vector};
use crate::error::{Error, not_finite};
use crate::runtime::{self, Held, Purpose, Session};

/// A session of it.
pub(super) struct MaskedModel {
    session: Session,
    names: MaskOutputs,
}

impl Calibrated<'_> {
    /// See [`Walk::masked`](kprune_passes::methods::Walk::masked).
    pub(super) fn run_masked(&mut self, mini_batch: usize, keep: &[Vec<bool>], tau: f64) -> Result<Masked, Error> {
        let mut model = match self.masked.take() {
            Some(model) => model,
            None => self.masked_model(tau)?,
        };
        let sublayers = &self.probes.discovery.sublayers;
        let mut masks: HashMap<String, Held> = HashMap::new();
        for (t, (sublayer, keep)) in sublayers.iter().zip(keep).enumerate() {
            let mut mask = ArrayD::zeros(IxDyn(&[sublayer.projection.width]));
            sublayer.columns(keep).into_iter().for_each(|c| mask[c] = 1.0);
            masks.insert(mask_input(t), host(ElementType::F32, &mask)?);
        }
        let zeros = sublayers.iter().map(|s| Array1::zeros(s.projection.width)).collect();
        let mut masked = Masked { loss: 0.0, gradients: zeros };
        let own = self.world.batches.iter().enumerate().filter(|(_, batch)| batch.mini_batch == mini_batch);
        for (i, batch) in own {
            self.world.runtime.check_cancelled()?;
            let samples = host(ElementType::F32, &ArrayD::from_elem(IxDyn(&[]), batch.mini_batch_samples as f64))?;
            let outputs = self.outputs[i].load()?;
            let teacher = |name: &str| outputs.iter().find(|(output, _)| teacher_input(output) == name);
            let values = model.session.run_with(|name| match name {
                SAMPLES => Some(samples.value()),
                _ => teacher(name).map(|t| t.1).or(masks.get(name)).map(Held::value).or_else(|| batch.find(name)),
            })?;
            let loss = values.get(&model.names.loss).ok_or_else(|| Error::internal("a masked model gave no loss"))?;
            let loss = runtime::scalars(loss)?.sum();
            if !loss.is_finite() {
                return Err(not_finite(batch.describe(), "the loss of the masked model", loss));
            }
            masked.loss += loss;
            for (t, (sum, name)) in masked.gradients.iter_mut().zip(&model.names.gradients).enumerate() {
                if let Some(name) = name {
                    *sum += &vector(&values, name, &|| self.place(t, batch))?;
                }
            }
        }
        self.masked = Some(model);
        Ok(masked)
    }

    fn masked_model(&self, tau: f64) -> Result<MaskedModel, Error> {
        let graph = self.probes.masks(Criterion::Teacher { tau });
        let graph = graph.map_err(|e| Error::Runtime { doing: MEASURING.into(), reason: e.to_string() })?;
        Ok(MaskedModel {
            session: self.world.runtime.session(&graph.model, MEASURING, Purpose::Work)?,
            names: graph.outputs,
        })
    }
}
