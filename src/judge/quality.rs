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
    /// How near it is to the first of the models that were judged together; `None` for that one, and where the
    /// models give nothing that can be compared.
    pub fidelity: Option<Fidelity>,
}

/// A score from 0 to 1, or -1 to 1 for a correlation; a perplexity is from 1 on, and the better the smaller.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    /// What it is called.
    pub name: &'static str,
    /// The score.
    pub value: f64,
}

/// What the score of models that predict the next token is called.
pub const PERPLEXITY: &str = "perplexity";

impl Score {
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
    /// The mean cosine between their outputs for a sample.
    pub cosine: f64,
    /// The largest difference of any number.
    pub largest_difference: f64,
}

impl Judgement {
    /// By how much this model is worse than `first`: in the first score where there are any, else in what is
    /// missing to full agreement, to a correlation of 1 where there are no classes, or to a cosine of 1.
    pub fn drop_from(&self, first: &Judgement) -> f64 {
        match (self.scores.first(), first.scores.first(), &self.fidelity) {
            (Some(own), Some(first), _) => own.worse_than(first),
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
        Error::Usage(format!("--output {name}: the model has no such output; it has {}", known.join(", ")))
    })
}
