//! How well models predict the next token: sums over tokens, formed inside ONNX Runtime, so that scores of a whole
//! vocabulary never leave it.

use kprune_passes::calculus::next_token::{self, Sums};
use kprune_passes::ir::ElementType;
use ort::value::DynValue;

use crate::data::Batch;
use crate::error::Error;
use crate::runtime::{self, Runtime, Session};
use crate::walk::ODD_OUTPUT;

/// Scores of so many tokens of a vocabulary are compared at once.
const NUMBERS: usize = 1 << 26;

/// Compares the scores of models with those of the first of them, and with the tokens that follow.
pub(super) struct Comparer {
    session: Session,
    sums: Sums,
    /// The input of the models that holds the tokens.
    ids: String,
    mask: Option<String>,
}

/// What models give, summed over tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Likelihood {
    /// -log of the probability of the token that follows, and over how many.
    surprise: f64,
    predicted: f64,
    /// Of the tokens that are compared with the first model: how many, for how many both prefer the same, KL, cosine, and
    /// the largest difference of a score.
    pub(super) tokens: f64,
    pub(super) same: f64,
    pub(super) divergence: f64,
    pub(super) cosine: f64,
    pub(super) largest: f64,
}

impl Likelihood {
    pub(super) fn add(&mut self, other: &Self) {
        self.surprise += other.surprise;
        self.predicted += other.predicted;
        self.tokens += other.tokens;
        self.same += other.same;
        self.divergence += other.divergence;
        self.cosine += other.cosine;
        self.largest = self.largest.max(other.largest);
    }

    /// exp of the mean of -log p over all tokens that follow another; `None` where there are none.
    pub(super) fn perplexity(&self) -> Option<f64> {
        (self.predicted > 0.0).then(|| (self.surprise / self.predicted).exp())
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
        let session = runtime.session(&model, "comparing predictions", true)?;
        Ok(Self { session, sums, ids: ids.into(), mask: mask.map(|(name, ..)| name.to_string()) })
    }

    /// What a model gives for a batch, `own`, beside what the `first` of them gives.
    ///
    /// # Errors
    /// Where a score is not finite.
    pub(super) fn likelihood(
        &mut self,
        first: &DynValue,
        own: &DynValue,
        batch: &Batch,
        whose: &str,
    ) -> Result<Likelihood, Error> {
        let find = |name: &str| match name {
            next_token::FIRST => Some(first),
            next_token::OWN => Some(own),
            next_token::IDS => batch.find(&self.ids),
            _ => batch.find(self.mask.as_deref()?),
        };
        let values = self.session.run_with(find)?;
        let sum = |name: &str| {
            let value = values.get(name).ok_or_else(|| Error::internal(format!("no sum {name:?} came out")))?;
            let sum = runtime::scalars(value)?.sum();
            if !sum.is_finite() {
                let place = batch.odd(own)?.map_or_else(|| batch.describe(), |(place, _)| place);
                let what = format!("{whose} scores of the next token");
                return Err(Error::NotFinite { place, what, value: sum, help: ODD_OUTPUT.into() });
            }
            Ok(sum)
        };
        let Sums { surprise, predicted, tokens, same, divergence, cosine, largest } = &self.sums;
        Ok(Likelihood {
            surprise: sum(surprise)?,
            predicted: sum(predicted)?,
            tokens: sum(tokens)?,
            same: sum(same)?,
            divergence: sum(divergence)?,
            cosine: sum(cosine)?,
            largest: sum(largest)?,
        })
    }
}
