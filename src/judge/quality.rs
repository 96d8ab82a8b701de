//! How good models are: on labels, and against another model.

use kprune_passes::calculus::TokenMask;
use kprune_passes::calculus::objective::{Compared, Form, Objective, OutputKind};
use kprune_passes::ir::Model;
use kprune_passes::observe::Observation;
use kprune_passes::signature;
use serde::Serialize;

use crate::data::Dataset;
use crate::error::Error;

/// What a model is worth.
#[derive(Clone, Debug, Serialize)]
pub struct Judgement {
    /// Samples that were looked at.
    pub samples: usize,
    /// Scores on the labels, the most telling first; empty where there are none.
    pub scores: Vec<Score>,
    /// By how much it is worse than the first of the models that were judged together; `None` for that one.
    pub drop: Option<Drop>,
    /// How near it is to the first of the models that were judged together; `None` for that one, and where the
    /// models give nothing that can be compared.
    pub fidelity: Option<Fidelity>,
    /// The first samples for which it prefers another class than that model; empty where samples have no classes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<Changed>,
}

/// A sample for which two models prefer another class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Changed {
    /// Its place in the data, from 0.
    pub sample: usize,
    /// What people know it by: the beginning of its text, or the name of its file; `None` where it has no name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What the first model prefers.
    pub before: i64,
    /// What this one prefers.
    pub after: i64,
    /// What is right, where that is known.
    pub right: Option<i64>,
}

/// So many changed samples are named.
pub(super) const MOST_CHANGED: usize = 10;

/// What models are judged by.
pub(crate) struct Evaluation {
    /// The samples.
    pub(crate) data: Dataset,
    /// Where they come from.
    pub(crate) origin: Origin,
}

/// Where the samples come from that models are judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Origin {
    /// The user gave them for it.
    Given,
    /// They are samples of the calibration set that nothing was measured on.
    SetAside,
    /// They are the calibration set: models do better on it than on others.
    Calibration,
}

/// A score from 0 to 1, or -1 to 1 for a correlation; a perplexity is from 1 on, and the better the smaller.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    /// What it is called.
    pub name: &'static str,
    /// The score.
    pub value: f64,
    /// Its standard error; `None` where there are too few samples to say.
    pub error: Option<f64>,
}

/// By how much a model is worse than another: in its first score where there are any, else in what is missing to full
/// agreement, to a correlation of 1 where there are no classes, or to a cosine of 1. Of a perplexity it is the share by which
/// that is larger.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Drop {
    /// The drop; below 0 where it is better.
    pub value: f64,
    /// Its standard error, over the samples that both were judged by; `None` where there are too few to say.
    pub error: Option<f64>,
}

/// A number with so many digits after the point; what rounds to nothing has no sign.
pub(crate) fn fixed(number: f64, digits: usize) -> String {
    let text = format!("{number:.digits$}");
    match text.strip_prefix('-').filter(|rest| rest.chars().all(|c| matches!(c, '0' | '.'))) {
        Some(nothing) => nothing.to_string(),
        None => text,
    }
}

impl std::fmt::Display for Drop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&fixed(self.value, 4))?;
        self.error.map_or(Ok(()), |error| write!(f, " \u{b1} {error:.4}"))
    }
}

impl Drop {
    /// How probable it is that it is really no more than `allowed`, by a normal distribution.
    pub fn sureness(&self, allowed: f64) -> f64 {
        let error = self.error.unwrap_or(f64::INFINITY).max(f64::MIN_POSITIVE);
        let apart = (allowed - self.value) / error;
        0.5 * libm::erfc(-apart / std::f64::consts::SQRT_2)
    }
}

/// What the score of models that predict the next token is called.
pub const PERPLEXITY: &str = "perplexity";

impl Score {
    /// Whether it is a share of predictions.
    pub(super) fn is_share(&self) -> bool {
        matches!(self.name, "accuracy" | "exact match")
    }

    /// By how much it is worse than another: a perplexity by its share of the other, and other scores by their difference.
    fn worse_than(&self, other: &Self) -> f64 {
        match self.name == PERPLEXITY {
            true => self.value / other.value - 1.0,
            false => other.value - self.value,
        }
    }
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
    /// Spearman's correlation of the similarities between samples, where each is one vector: whether the same samples are near
    /// each other in both; `None` where outputs are no embeddings.
    pub similarity: Option<f64>,
    /// The mean cosine between their outputs for a sample.
    pub cosine: f64,
    /// The largest difference of any number.
    pub largest_difference: f64,
    /// The standard errors of these.
    pub errors: Errors,
}

/// Standard errors of what says how near two models are; `None` where there are too few samples to say.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Errors {
    pub agreement: Option<f64>,
    pub divergence: Option<f64>,
    pub correlation: Option<f64>,
    pub similarity: Option<f64>,
    pub cosine: Option<f64>,
}

impl Judgement {
    /// By how much this model is worse than one with the scores `first`.
    pub(super) fn drop_from(&self, first: &[Score]) -> f64 {
        match (self.scores.first(), first.first(), &self.fidelity) {
            (Some(own), Some(first), _) => own.worse_than(first),
            (_, _, Some(fidelity)) => 1.0 - fidelity.main().1,
            _ => 0.0,
        }
    }

    /// Whether what [`Judgement::main`] names is a share of predictions.
    pub(super) fn is_share(&self) -> bool {
        match (self.scores.first(), &self.fidelity) {
            (Some(score), _) => score.is_share(),
            (None, Some(fidelity)) => fidelity.agreement.is_some(),
            (None, None) => false,
        }
    }

    /// Whether anything could be judged.
    pub fn is_known(&self) -> bool {
        !self.scores.is_empty() || self.fidelity.is_some()
    }

    /// The name and value of what [`Judgement::drop`] is about.
    pub fn main(&self) -> (&'static str, f64) {
        match (self.scores.first(), &self.fidelity) {
            (Some(score), _) => (score.name, score.value),
            (None, Some(fidelity)) => fidelity.main(),
            (None, None) => ("fidelity", 1.0),
        }
    }
}

impl Fidelity {
    /// Everything, with errors.
    pub(crate) fn all(&self) -> Vec<(&'static str, f64, Option<f64>)> {
        let Errors { agreement, divergence, correlation, similarity, cosine } = &self.errors;
        let all = [
            ("agreement", self.agreement, *agreement),
            ("KL divergence", self.divergence, *divergence),
            ("correlation", self.correlation, *correlation),
            ("similarity", self.similarity, *similarity),
            ("cosine", Some(self.cosine), *cosine),
            ("largest difference", Some(self.largest_difference), None),
        ];
        all.into_iter().filter_map(|(name, value, error)| Some((name, value?, error))).collect()
    }

    /// What a line has room for: how many samples agree, and how far apart distributions or vectors are.
    pub(crate) fn shown(&self) -> Vec<(&'static str, f64, Option<f64>)> {
        let without = if self.agreement.is_some() { "cosine" } else { "" };
        self.all().into_iter().filter(|(name, ..)| ![without, "largest difference"].contains(name)).collect()
    }

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
    /// The share of answers that are those of the first model.
    pub(crate) fn main_agreement(&self) -> f64 {
        self.fidelity.as_ref().and_then(|fidelity| fidelity.agreement).unwrap_or(1.0)
    }

    /// The standard error of what [`Judgement::main`] names.
    pub(crate) fn main_error(&self) -> Option<f64> {
        let of_fidelity = |fidelity: &Fidelity| fidelity.shown().into_iter().find(|s| s.0 == fidelity.main().0)?.2;
        self.scores.first().map_or_else(|| self.fidelity.as_ref().and_then(of_fidelity), |score| score.error)
    }

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
    /// Where it is scores of the next token, the input that holds the tokens, and how many there are to choose from.
    pub ids: Option<(String, usize)>,
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
    let graph = &model.graph;
    let ids = |c: &Compared| {
        let vocabulary = seen.dims(c.value)?.last()?.fixed()?;
        let ids = signature::ids(graph, Some(vocabulary)).filter(|_| c.kind == OutputKind::NextToken)?;
        let tokens = |value| seen.dims(value).and_then(|dims| dims.get(1).copied());
        if tokens(ids) != tokens(c.value) {
            return None;
        }
        Some((graph.name(ids).to_string(), vocabulary))
    };
    let kind = |c: &Compared| Kind { name: graph.name(c.output).into(), kind: c.kind, form: c.form, ids: ids(c) };
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
        Error::Usage(format!("--output-kind {name}: the model has no such output; it has {}", known.join(", ")))
    })
}
