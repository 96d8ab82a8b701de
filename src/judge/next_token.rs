//! How well models predict the next token: sums over tokens, formed inside ONNX Runtime, so that scores of a whole
//! vocabulary never leave it.

use kprune_passes::calculus::next_token::{self, Sums};
use kprune_passes::ir::ElementType;
use ort::value::DynValue;

use super::nearness::Near;
use crate::data::Batch;
use crate::error::Error;
use crate::runtime::{self, Purpose, Runtime, Session};
use crate::walk::ODD_OUTPUT;

/// Scores of so many tokens of a vocabulary are compared at once.
const NUMBERS: usize = 1 << 24;

/// Compares the scores of models with those of the first of them, and with the tokens that follow.
pub(super) struct Comparer {
    session: Session,
    sums: Sums,
    /// The input of the models that holds the tokens.
    ids: String,
    mask: Option<String>,
}

/// What a model gives for a sample, summed over its tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Likelihood {
    /// -log of the probability of the token that follows, and over how many.
    surprise: f64,
    predicted: f64,
}

impl Likelihood {
    /// exp of the mean of -log p over all tokens that follow another; `None` where there are none.
    pub(super) fn perplexity(samples: &[Self]) -> Option<f64> {
        let sum = |of: fn(&Self) -> f64| samples.iter().map(of).sum::<f64>();
        let (surprise, predicted) = (sum(|s| s.surprise), sum(|s| s.predicted));
        (predicted > 0.0).then(|| (surprise / predicted).exp())
    }
}

/// No more tokens than this are compared at once, of a vocabulary of this size.
pub(super) fn tokens_at_once(vocabulary: usize) -> usize {
    (NUMBERS / vocabulary.max(1)).max(1)
}

impl Comparer {
    /// For scores of these types, and the inputs of the models that hold the tokens and the token mask.
    ///
    /// # Errors
    /// Where ONNX Runtime refuses the graph.
    pub(super) fn new(
        runtime: &Runtime,
        elements: [ElementType; 2],
        (ids, integer): (&str, ElementType),
        mask: Option<(&str, ElementType, bool)>,
    ) -> Result<Self, Error> {
        let of_mask = mask.map(|(_, element, marks_padding)| (element, marks_padding));
        let (model, sums) = next_token::compare(elements, integer, of_mask);
        let session = runtime.session(&model, "comparing predictions", Purpose::Work)?;
        Ok(Self { session, sums, ids: ids.into(), mask: mask.map(|(name, ..)| name.to_string()) })
    }

    /// What a model gives for every sample of a batch, `own`, beside what the `first` of them gives.
    ///
    /// # Errors
    /// Where a score is not finite.
    pub(super) fn compare(
        &mut self,
        first: &DynValue,
        own: &DynValue,
        batch: &Batch,
        whose: &str,
    ) -> Result<Vec<(Likelihood, Near)>, Error> {
        let find = |name: &str| match name {
            next_token::FIRST => Some(first),
            next_token::OWN => Some(own),
            next_token::IDS => batch.find(&self.ids),
            _ => batch.find(self.mask.as_deref()?),
        };
        let values = self.session.run_with(find)?;
        let sums = |name: &str| -> Result<Vec<f64>, Error> {
            let value = values.get(name).ok_or_else(|| Error::internal(format!("no sums {name:?} came out")))?;
            let sums: Vec<f64> = runtime::scalars(value)?.into_iter().collect();
            if let Some(&odd) = sums.iter().find(|sum| !sum.is_finite()) {
                let place = batch.odd(own)?.map_or_else(|| batch.describe(), |(place, _)| place);
                let what = format!("{whose} scores of the next token");
                return Err(Error::NotFinite { place, what, value: odd, help: ODD_OUTPUT.into() });
            }
            Ok(sums)
        };
        let Sums { surprise, predicted, tokens, same, divergence, cosine, largest } = &self.sums;
        let likelihood = sums(surprise)?.into_iter().zip(sums(predicted)?);
        let likelihood = likelihood.map(|(surprise, predicted)| Likelihood { surprise, predicted });
        let (tokens, same, divergence) = (sums(tokens)?, sums(same)?, sums(divergence)?);
        let (cosine, largest) = (sums(cosine)?, sums(largest)?);
        let each = tokens.iter().zip(&same).zip(divergence.iter().zip(&cosine)).zip(&largest);
        let near = each.map(|(((tokens, &same), (&divergence, &cosine)), &largest)| {
            let count = *tokens as usize;
            Near { distributions: count, same, divergence, outputs: count, cosine, largest, ..Near::default() }
        });
        Ok(likelihood.zip(near).collect())
    }
}
