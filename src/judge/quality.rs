//! How good models are: on labels, and against another model.

use std::path::Path;

use kprune_passes::calculus::TokenMask;
use kprune_passes::calculus::objective::{Compared, Form, Objective, OutputKind};
use kprune_passes::ir::Model;
use kprune_passes::observe::Observation;
use serde::Serialize;

use super::nearness::Nearness;
use super::outputs::{Output, outputs};
use super::predictions::Predictions;
use crate::data::{Dataset, find};
use crate::error::Error;
use crate::runtime::Runtime;

/// Samples that are run together.
const BATCH: usize = 64;

/// What a model is worth.
#[derive(Clone, Debug, Serialize)]
pub struct Judgement {
    /// Samples that were looked at.
    pub samples: usize,
    /// Scores on the labels, the most telling first; empty where there are none.
    pub scores: Vec<Score>,
    /// How near it is to the first of the models that were judged together; `None` for that one, and where the
    /// models give nothing that can be compared.
    pub fidelity: Option<Fidelity>,
}

/// A score from 0 to 1, or -1 to 1 for a correlation.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    /// What it is called.
    pub name: &'static str,
    /// The score.
    pub value: f64,
}

/// How near two models' outputs are.
#[derive(Clone, Debug, Serialize)]
pub struct Fidelity {
    /// The share of samples, or tokens, for which both prefer the same class; `None` where outputs are no scores.
    pub agreement: Option<f64>,
    /// The mean Kullback-Leibler divergence of their distributions over classes, in nats.
    pub divergence: Option<f64>,
    /// Spearman's correlation of the numbers that they predict; `None` where outputs are no single numbers.
    pub correlation: Option<f64>,
    /// The mean cosine between their outputs for a sample.
    pub cosine: f64,
    /// The largest difference of any number.
    pub largest_difference: f64,
}

impl Judgement {
    /// By how much this model is worse than `first`: in the first score where there are labels, else in what is
    /// missing to full agreement, to a correlation of 1 where there are no classes, or to a cosine of 1.
    pub fn drop_from(&self, first: &Judgement) -> f64 {
        match (self.scores.first(), first.scores.first(), &self.fidelity) {
            (Some(own), Some(first), _) => first.value - own.value,
            (_, _, Some(fidelity)) => 1.0 - fidelity.main().1,
            _ => 0.0,
        }
    }

    /// Whether anything could be judged.
    pub fn is_known(&self) -> bool {
        !self.scores.is_empty() || self.fidelity.is_some()
    }

    /// The name and value of what [`Judgement::drop_from`] looks at.
    pub fn main(&self) -> (&'static str, f64) {
        match (self.scores.first(), &self.fidelity) {
            (Some(score), _) => (score.name, score.value),
            (None, Some(fidelity)) => fidelity.main(),
            (None, None) => ("fidelity", 1.0),
        }
    }
}

impl Fidelity {
    /// The name and value of what tells most.
    pub fn main(&self) -> (&'static str, f64) {
        match (self.agreement, self.correlation) {
            (Some(agreement), _) => ("agreement", agreement),
            (None, Some(correlation)) => ("correlation", correlation),
            (None, None) => ("cosine", self.cosine),
        }
    }
}

impl Judgement {
    /// That there are labels which say nothing about the outputs, in words.
    pub fn unused_labels(&self, data: &Dataset) -> Option<String> {
        let is_unused = data.labels.is_some() && self.scores.is_empty();
        is_unused.then(|| format!("the labels of {} suit no output of the model and were not used", data.source))
    }
}

/// What an output of a model is taken for.
#[derive(Clone, Debug)]
pub struct Kind {
    /// The name of the output.
    pub name: String,
    /// What it is.
    pub kind: OutputKind,
    /// How it gives its scores.
    pub form: Form,
}

/// What the outputs of a model are: guessed, but for what is `given`.
///
/// # Errors
/// [`Error::Usage`] where `given` names no output of the model.
pub fn kinds(
    model: &Model,
    seen: &Observation,
    token_mask: Option<TokenMask>,
    given: &[(String, OutputKind)],
) -> Result<Vec<Kind>, Error> {
    let objective = objective(model, seen, token_mask, given)?;
    let kind = |c: &Compared| Kind { name: model.graph.name(c.output).to_string(), kind: c.kind, form: c.form };
    Ok(objective.outputs.iter().map(kind).collect())
}

/// What of a model is compared: guessed, but for what is `given`.
///
/// # Errors
/// [`Error::Usage`] where `given` names no output of the model.
pub fn objective(
    model: &Model,
    seen: &Observation,
    token_mask: Option<TokenMask>,
    given: &[(String, OutputKind)],
) -> Result<Objective, Error> {
    let mut objective = Objective::guess(model, seen, token_mask);
    overrule(&mut objective, model, given)?;
    Ok(objective)
}

/// Takes the named outputs for what is given instead of what was guessed.
///
/// # Errors
/// [`Error::Usage`] where `given` names no output of the model.
pub fn overrule(objective: &mut Objective, model: &Model, given: &[(String, OutputKind)]) -> Result<(), Error> {
    objective.overrule(model, given).map_err(|name| {
        let known: Vec<_> = model.graph.outputs().iter().map(|&v| model.graph.name(v)).collect();
        Error::Usage(format!("--output {name}: the model has no such output; it has {}", known.join(", ")))
    })
}

/// Runs models side by side over `data`: what each is worth, and how near it is to the first. An output without an
/// axis of samples is compared as a whole.
///
/// `kinds` says what the outputs are.
///
/// # Errors
/// Where a model does not run on the data.
pub fn judge(runtime: &Runtime, models: &[&Model], kinds: &[Kind], data: &Dataset) -> Result<Vec<Judgement>, Error> {
    let session = |model: &&Model| runtime.session(model, "evaluating a model", true);
    let mut sessions = models.iter().map(session).collect::<Result<Vec<_>, _>>()?;
    let mut predictions: Vec<Predictions> = models.iter().map(|_| Predictions::default()).collect();
    let mut nearness: Vec<Nearness> = models.iter().map(|_| Nearness::default()).collect();
    let mut samples = 0;
    for batch in data.batches_within(BATCH, 4 * runtime.tokens_at_once(), 1.0)? {
        runtime.check_cancelled()?;
        samples += batch.samples;
        let mut first: Option<Vec<Output>> = None;
        for (i, ((session, model), (predictions, nearness))) in
            sessions.iter_mut().zip(models).zip(predictions.iter_mut().zip(&mut nearness)).enumerate()
        {
            let feeds = batch.feeds_for(model)?;
            let values = session.run_with(|name| find(&feeds, name))?;
            let outputs = outputs(&values, kinds, data, &batch, i)?;
            if let Some(labels) = &data.labels {
                predictions.add(&outputs, &labels.select(&batch.rows)).map_err(|reason| {
                    let help = "labels are counted from 0; give those that belong to the model";
                    Error::data(Path::new(&data.source), reason, help)
                })?;
            }
            match &first {
                Some(first) => nearness.add(first, &outputs),
                None => first = Some(outputs),
            }
        }
    }
    let judgement = |(i, (predictions, nearness)): (usize, (Predictions, Nearness))| Judgement {
        samples,
        scores: predictions.scores(),
        fidelity: (i > 0 && nearness.samples > 0).then(|| nearness.fidelity()),
    };
    Ok(predictions.into_iter().zip(nearness).enumerate().map(judgement).collect())
}
