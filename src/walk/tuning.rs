//! The sums that a projection is solved from.

use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::measure::{COLUMNS, FEATURES, SO_FAR, stream_input};
use kprune_passes::tune::Sums;
use ndarray::{Array2, ArrayD, Ix2};

use super::{Region, Walk, host, vector};
use crate::error::Error;
use crate::runtime::{self, Held};

/// Sums over so many tokens are formed in f32, and added up in f64.
const IN_SINGLE: usize = 4096;

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
        let mut sums = [Growing::new(kept, outputs)?, Growing::new(kept, outputs)?];
        for (i, batch) in self.batches.iter().enumerate() {
            self.runtime.check_cancelled()?;
            let (below, student) = (self.teacher[i].load()?, self.student[i].load()?);
            let mut values = teacher.run(&below, batch, None)?;
            let stream = |name: &str| {
                let made = &graph.outputs.streams[streams.iter().position(|s| s == name)?];
                values.get(made).or_else(|| below.get(made).map(Held::value))
            };
            let growing = &mut sums[is_held_out(i, self.batches.len()) as usize];
            let so_far = |name: &str| SO_FAR.iter().position(|s| *s == name).map(|place| growing.recent[place].value());
            let mut results = session.run_keeping(
                |name| match name {
                    COLUMNS => Some(columns.value()),
                    _ => so_far(name)
                        .or_else(|| stream(name))
                        .or_else(|| student.get(name).map(Held::value))
                        .or_else(|| batch.find(name)),
                },
                |name| name != tuning.outputs.energy,
            )?;
            growing.total.energy += vector(&results, &tuning.outputs.energy)?.sum();
            for (sum, name) in growing.recent.iter_mut().zip(&tuning.outputs.sums) {
                let missing = || Error::internal(format!("a tuning graph gave no {name:?}"));
                *sum = results.remove(name).ok_or_else(missing)?.into();
            }
            growing.add_up_after(batch.padded)?;
            if let Some(features) = tuning.outputs.features.as_ref().and_then(|name| results.remove(name)) {
                self.cache.add(&mut self.student[i], FEATURES.to_string(), features)?;
            }
            teacher.keep(&mut values, &mut self.teacher[i], &self.cache)?;
            self.progress.advance(1);
        }
        let [solve, held_out] = sums;
        Ok(TuningSums { solve: solve.finish()?, held_out: held_out.finish()? })
    }
}

/// Sums that grow batch by batch.
struct Growing {
    /// In f64, on the host.
    total: Sums,
    /// Gram matrix and cross terms of the last batches, in f32, where sessions run.
    recent: [Held; 2],
    /// Tokens of those batches.
    tokens: usize,
}

impl Growing {
    fn new(kept: usize, outputs: usize) -> Result<Self, Error> {
        let total = Sums::zeros(kept, outputs);
        Ok(Self { recent: nothing(&total)?, total, tokens: 0 })
    }

    /// Takes note of a batch of so many tokens; adds the last batches to the total when there are enough.
    fn add_up_after(&mut self, tokens: usize) -> Result<(), Error> {
        self.tokens += tokens;
        if self.tokens >= IN_SINGLE { self.add_up() } else { Ok(()) }
    }

    fn add_up(&mut self) -> Result<(), Error> {
        let [gram, cross] = &self.recent;
        self.total.gram += &matrix(gram)?;
        self.total.cross += &matrix(cross)?;
        self.recent = nothing(&self.total)?;
        self.tokens = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<Sums, Error> {
        self.add_up()?;
        Ok(self.total)
    }
}

/// Sums of no batch yet, of the shapes of `like`.
fn nothing(like: &Sums) -> Result<[Held; 2], Error> {
    let zeros = |shape: &[usize]| host(ElementType::F32, &ArrayD::zeros(shape));
    Ok([zeros(like.gram.shape())?, zeros(like.cross.shape())?])
}

fn matrix(sum: &Held) -> Result<Array2<f64>, Error> {
    runtime::scalars(sum.value())?.into_dimensionality::<Ix2>().map_err(|e| Error::internal(e.to_string()))
}

/// Every tenth batch, and at least one where there are several.
fn is_held_out(batch: usize, batches: usize) -> bool {
    batches > 1 && batch % 10 == (batches / 2).min(5)
}
