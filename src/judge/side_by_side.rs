//! Models run side by side on the same samples.

use std::borrow::Cow;
use std::path::Path;

use kprune_passes::calculus::objective::OutputKind;
use kprune_passes::ir::{ElementType, Model};
use kprune_passes::simplify::lower;

use super::measured::Measured;
use super::metrics::argmax;
use super::nearness::Near;
use super::next_token::{Comparer, tokens_at_once};
use super::outputs::{Output, outputs};
use super::quality::{Changed, Judgement, Kind};
use crate::data::{Batch, Dataset, Labels, find};
use crate::error::Error;
use crate::runtime::{self, Purpose, Runtime, Session, Values};

/// Samples that are run together.
const BATCH: usize = 64;

/// Runs models side by side, each over its form of the same samples: what each is worth, and how near it is to the first. An
/// output without an axis of samples is compared as a whole.
///
/// `kinds` says what the outputs are.
///
/// # Errors
/// Where a model does not run on the data.
pub fn judge(runtime: &Runtime, models: &[(&Model, &Dataset)], kinds: &[Kind]) -> Result<Vec<Judgement>, Error> {
    let Some((_, data)) = models.first().copied() else { return Ok(Vec::new()) };
    let (next, others): (Vec<&Kind>, Vec<&Kind>) = kinds.iter().partition(|kind| kind.next_token().is_some());
    let next: Option<NextToken> = next.first().and_then(|kind| NextToken::of(kind, data));
    let mut judged = models.iter().map(|(model, _)| Judged::new(runtime, model)).collect::<Result<Vec<_>, _>>()?;
    let most = next.as_ref().map_or(usize::MAX, |next| tokens_at_once(next.vocabulary));
    let each = next.as_ref().map_or(1.0, |next| next.tokens as f64);
    let mut samples = 0;
    for batch in data.batches_within(BATCH, most.min(4 * runtime.tokens_at_once()), each)? {
        runtime.check_cancelled()?;
        samples += batch.samples;
        let mut first: Option<(Values, Vec<Output>)> = None;
        for (i, judged) in judged.iter_mut().enumerate() {
            let own = models.get(i).map_or(data, |(_, own)| *own);
            let other = if std::ptr::eq(own, data) { None } else { Some(own.same_samples(&batch)?) };
            let batch = other.as_ref().unwrap_or(&batch);
            let values = judged.run(batch)?;
            let outputs = outputs(&values, &others, own, batch, i)?;
            if let Some(labels) = &data.labels {
                judged.measured.predictions.add(&outputs, &labels.select(&batch.rows)).map_err(|reason| {
                    let help = "labels are counted from 0; give those that belong to the model";
                    Error::data(Path::new(&data.source), reason, help)
                })?;
            }
            if let Some(next) = &next {
                let before = first.as_ref().map_or(&values, |(values, _)| values);
                judged.predict(runtime, next, [before, &values], batch, i)?;
            }
            match &first {
                Some((_, first)) => {
                    judged.add(first, &outputs, batch.samples);
                    let labels = own.labels.as_ref().map(|labels| labels.select(&batch.rows));
                    judged.measured.changed.extend(changed(first, &outputs, (&batch.rows, data), labels.as_ref()));
                }
                None => first = Some((values, outputs)),
            }
        }
    }
    let measured: Vec<Measured> = judged.into_iter().map(|judged| judged.measured).collect();
    let first = |i: usize| measured.first().filter(|_| i > 0);
    Ok(measured.iter().enumerate().map(|(i, own)| own.judgement(samples, first(i))).collect())
}

/// The samples of a batch for which two models prefer another class.
fn changed(
    first: &[Output],
    own: &[Output],
    (rows, data): (&[usize], &Dataset),
    labels: Option<&Labels>,
) -> Vec<Changed> {
    let is_classes = |output: &&Output| output.kind == OutputKind::Logits && !output.is_whole;
    let [first, own] = [first, own].map(|outputs| outputs.iter().find(is_classes));
    let Some((first, own)) = first.zip(own) else { return Vec::new() };
    let best = |rows: &Vec<Vec<f64>>| argmax(rows.concat());
    let right = labels.and_then(Labels::classes);
    let right = |place: usize| right.as_ref().and_then(|right| right.get(place).copied()).filter(|right| *right >= 0);
    let samples = first.samples.iter().zip(&own.samples).zip(rows).enumerate();
    let changed = samples.map(|(i, ((first, own), &sample))| Changed {
        sample,
        title: data.titles.get(sample).cloned(),
        before: best(first),
        after: best(own),
        right: right(i),
    });
    changed.filter(|changed| changed.before != changed.after).collect()
}

/// Where models give their scores of the next token.
struct NextToken<'a> {
    output: &'a str,
    /// The input that holds the tokens, and how many there are in a sample.
    ids: &'a str,
    tokens: usize,
    vocabulary: usize,
    /// The token mask, and whether it marks padding.
    mask: Option<(&'a str, bool)>,
}

impl<'a> NextToken<'a> {
    fn of(kind: &'a Kind, data: &'a Dataset) -> Option<Self> {
        let (ids, vocabulary) = kind.next_token()?;
        let tokens = data.extent(ids, 1)?;
        // Of an encoder with a decoder, the mask may be of the encoder's tokens.
        let is_own = |(mask, _): &(&str, bool)| data.follows_mask_of(ids, mask);
        let mask = data.mask_input().zip(data.mask_marks_padding()).filter(is_own);
        Some(Self { output: &kind.name, ids, tokens, vocabulary, mask })
    }
}

impl Kind {
    /// The input that holds the tokens, and how many there are to choose from, where it is scores of the next one.
    fn next_token(&self) -> Option<(&str, usize)> {
        let (ids, vocabulary) = self.ids.as_ref().filter(|_| self.kind == OutputKind::NextToken)?;
        Some((ids, *vocabulary))
    }
}

/// A model that is judged.
struct Judged<'a> {
    model: Cow<'a, Model>,
    /// Samples of which it is known how near it is.
    samples: usize,
    session: Session,
    measured: Measured,
    comparer: Option<Comparer>,
}

impl<'a> Judged<'a> {
    fn new(runtime: &Runtime, model: &'a Model) -> Result<Self, Error> {
        let doing = "evaluating a model";
        let (model, session) = match runtime.session(model, doing, Purpose::Work) {
            // Not every runtime has kernels for half or double precision.
            Err(Error::Runtime { .. }) if lower::changes_precision(model) => {
                let single = lower::in_single_precision(model);
                let session = runtime.session(&single, doing, Purpose::Work)?;
                (Cow::Owned(single), session)
            }
            session => (Cow::Borrowed(model), session?),
        };
        Ok(Self { model, samples: 0, session, measured: Measured::default(), comparer: None })
    }

    fn run(&mut self, batch: &Batch) -> Result<Values, Error> {
        let feeds = batch.feeds_for(&self.model)?;
        self.session.run_with(|name| find(&feeds, name))
    }

    /// Adds what it says of the tokens of a batch, beside the first model.
    fn predict(
        &mut self,
        runtime: &Runtime,
        next: &NextToken,
        values: [&Values; 2],
        batch: &Batch,
        place: usize,
    ) -> Result<(), Error> {
        let missing = || {
            let name = next.output;
            Error::Usage(format!("one of the models has no output {name:?}; compare models of one task"))
        };
        let scores = values.map(|values| values.get(next.output).ok_or_else(missing));
        let [first, own] = scores;
        let (first, own) = (first?, own?);
        let of = |name: &str| batch.find(name).and_then(runtime::element).unwrap_or(ElementType::I64);
        let elements = [first, own].map(|value| runtime::element(value).unwrap_or(ElementType::F32));
        let comparer = match &mut self.comparer {
            Some(comparer) => comparer,
            none => {
                let mask = next.mask.map(|(name, marks_padding)| (name, of(name), marks_padding));
                none.insert(Comparer::new(runtime, elements, (next.ids, of(next.ids)), mask)?)
            }
        };
        let whose = if place == 0 { "the original's".to_string() } else { format!("model {}'s", place + 1) };
        let (likelihood, near): (Vec<_>, Vec<_>) = comparer.compare(first, own, batch, &whose)?.into_iter().unzip();
        self.measured.likelihood.extend(likelihood);
        self.measured.nearness.extend(near);
        Ok(())
    }

    /// Adds how near its outputs are to those of the first model, for every sample of a batch.
    fn add(&mut self, first: &[Output], own: &[Output], samples: usize) {
        let nearness = &mut self.measured.nearness;
        // Where it predicts tokens, these samples are there already.
        let start = self.samples;
        self.samples += samples;
        nearness.resize_with(self.samples.max(nearness.len()), Near::default);
        for (first, own) in first.iter().zip(own) {
            for (near, (a, b)) in nearness.iter_mut().skip(start).zip(first.samples.iter().zip(&own.samples)) {
                near.add([first, own], [a, b]);
            }
        }
    }
}
