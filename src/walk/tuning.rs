//! The sums that a projection is solved from.

use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::measure::{COLUMNS, FEATURES, SO_FAR, stream_input};
use kprune_passes::tune::Sums;
use ndarray::{ArrayD, Dimension};

use super::{Region, Walk, host};
use crate::error::Error;
use crate::runtime::{self, Held};

/// Sums for tuning, and those of the batches that were held out.
pub struct TuningSums {
    /// Of the batches to solve for.
    pub solve: Sums,
    /// Of the batches to judge by.
    pub held_out: Sums,
}

impl Walk<'_> {
    /// Advances the teacher through sublayer `t` and sums up what tuning the student's projection on the
    /// kept `columns` needs. Those columns of the student's features are kept for [`Walk::advance`].
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    pub fn tuning_sums(&mut self, t: usize, columns: &[usize]) -> Result<TuningSums, Error> {
        let graph = self.measuring.region(t);
        let streams: Vec<String> = (0..graph.outputs.streams.len()).map(stream_input).collect();
        let mut teacher = Region::new(self, t, graph.model, graph.outputs.crossing)?;
        let tuning =
            self.measuring.tuning(t).map_err(|e| Error::Runtime { doing: "tuning".into(), reason: e.to_string() })?;
        let mut session = self.runtime.session(&tuning.model, "summing up features", true)?;
        let (kept, outputs) = (columns.len(), self.sublayer(t).projection.outputs);
        let columns: Vec<i64> = columns.iter().map(|&c| c as i64).collect();
        let columns = runtime::host(&Tensor::from_i64s(&[kept], &columns))?;
        let mut sums = [nothing(kept, outputs)?, nothing(kept, outputs)?];
        for (i, batch) in self.batches.iter().enumerate() {
            self.runtime.check_cancelled()?;
            let (below, student) = (self.teacher[i].load()?, self.student[i].load()?);
            let mut values = teacher.run(&below, batch, None)?;
            let stream = |name: &str| {
                let made = &graph.outputs.streams[streams.iter().position(|s| s == name)?];
                values.get(made).or_else(|| below.get(made).map(Held::value))
            };
            let so_far = &mut sums[is_held_out(i, self.batches.len()) as usize];
            let sum = |name: &str| SO_FAR.iter().position(|s| *s == name).map(|place| so_far[place].value());
            let mut results = session.run_keeping(
                |name| match name {
                    COLUMNS => Some(columns.value()),
                    _ => sum(name)
                        .or_else(|| stream(name))
                        .or_else(|| student.get(name).map(Held::value))
                        .or_else(|| batch.find(name)),
                },
                |_| true,
            )?;
            for (sum, name) in so_far.iter_mut().zip(&tuning.outputs.sums) {
                let missing = || Error::internal(format!("a tuning graph gave no {name:?}"));
                *sum = results.remove(name).ok_or_else(missing)?.into();
            }
            if let Some(features) = tuning.outputs.features.as_ref().and_then(|name| results.remove(name)) {
                self.cache.add(&mut self.student[i], FEATURES.to_string(), features)?;
            }
            teacher.keep(&mut values, &mut self.teacher[i], &self.cache)?;
            self.progress.advance(1);
        }
        let [solve, held_out] = sums;
        Ok(TuningSums { solve: read(&solve)?, held_out: read(&held_out)? })
    }
}

/// Sums of no batch yet.
fn nothing(kept: usize, outputs: usize) -> Result<[Held; 3], Error> {
    let zeros = |dims: &[usize]| host(ElementType::F64, &ArrayD::zeros(dims));
    Ok([zeros(&[kept + 1, kept + 1])?, zeros(&[kept + 1, outputs])?, zeros(&[])?])
}

fn read([gram, cross, energy]: &[Held; 3]) -> Result<Sums, Error> {
    fn array<D: Dimension>(sum: &Held) -> Result<ndarray::Array<f64, D>, Error> {
        runtime::scalars(sum.value())?.into_dimensionality().map_err(|e| Error::internal(e.to_string()))
    }
    Ok(Sums { gram: array(gram)?, cross: array(cross)?, energy: runtime::scalars(energy.value())?.sum() })
}

/// Every tenth batch, and at least one where there are several.
fn is_held_out(batch: usize, batches: usize) -> bool {
    batches > 1 && batch % 10 == (batches / 2).min(5)
}
