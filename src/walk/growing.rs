//! Sums of products that grow batch by batch.

use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::probe::Sum;
use ndarray::{Array2, Ix2};
use ort::value::DynValue;

use crate::error::{Error, not_finite};
use crate::runtime::{self, Held, Values};

/// Sums over so many tokens are formed in f32, and added up in f64.
const IN_SINGLE: usize = 4096;

/// Matrices of sums, each fed to a session as it is so far, and taken from it with a batch added.
pub(super) struct Growing {
    /// In f64, on the host; empty until something was added up.
    totals: Vec<Array2<f64>>,
    /// Of the last batches, in f32, where sessions run.
    recent: Vec<Held>,
    /// What they are called in the graph.
    sums: Vec<Sum>,
    /// Tokens of those batches.
    tokens: usize,
}

impl Growing {
    /// Sums of nothing yet.
    pub(super) fn new<'a>(sums: impl IntoIterator<Item = &'a Sum>) -> Result<Self, Error> {
        let sums: Vec<Sum> = sums.into_iter().cloned().collect();
        let totals: Vec<_> = sums.iter().map(|sum| Array2::zeros(sum.shape)).collect();
        Ok(Self { recent: nothing(&totals)?, totals, sums, tokens: 0 })
    }

    /// What to feed for the input of this name.
    pub(super) fn find(&self, name: &str) -> Option<&DynValue> {
        self.sums.iter().position(|sum| sum.input == name).map(|place| self.recent[place].value())
    }

    /// Takes the sums with a batch of so many tokens added.
    pub(super) fn take(&mut self, values: &mut Values, tokens: usize) -> Result<(), Error> {
        for (recent, Sum { output, .. }) in self.recent.iter_mut().zip(&self.sums) {
            let missing = || Error::internal(format!("a probe gave no {output:?}"));
            *recent = values.remove(output).ok_or_else(missing)?.into();
        }
        self.tokens += tokens;
        if self.tokens >= IN_SINGLE { self.add_up() } else { Ok(()) }
    }

    fn add_up(&mut self) -> Result<(), Error> {
        for (total, sum) in self.totals.iter_mut().zip(&self.recent) {
            let sum = runtime::scalars(sum.value())?.into_dimensionality::<Ix2>();
            *total += &sum.map_err(|e| Error::internal(e.to_string()))?;
        }
        self.recent = nothing(&self.totals)?;
        self.tokens = 0;
        Ok(())
    }

    /// The sums, in their order; `place` says in words where each was formed.
    ///
    /// # Errors
    /// Where one is not finite.
    pub(super) fn finish(mut self, place: &dyn Fn(usize) -> String) -> Result<Vec<Array2<f64>>, Error> {
        self.add_up()?;
        for (i, total) in self.totals.iter().enumerate() {
            if let Some(&value) = total.iter().find(|x| !x.is_finite()) {
                return Err(not_finite(place(i), "a sum over its features", value));
            }
        }
        Ok(self.totals)
    }
}

/// Sums of no batch yet, of the shapes of `like`.
fn nothing(like: &[Array2<f64>]) -> Result<Vec<Held>, Error> {
    let zeros = |like: &Array2<f64>| {
        let tensor = Tensor::from_raw("", ElementType::F32, like.shape(), vec![0; 4 * like.len()].into());
        runtime::host(&tensor.map_err(|e| Error::internal(e.to_string()))?)
    };
    like.iter().map(zeros).collect()
}
