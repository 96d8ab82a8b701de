//! How good models are: on labels, and against another model.

use std::path::Path;

use kprune_passes::calculus::TokenMask;
use kprune_passes::calculus::loss::{Objective, OutputKind};
use kprune_passes::ir::{ElementType, Model};
use kprune_passes::observe::Observation;
use ndarray::{ArrayD, Axis};
use serde::Serialize;

use super::metrics::{accuracy, argmax, cosine, divergence, exact_match, f1, pearson, span_f1, spearman};
use crate::data::{Batch, Dataset, Labels, find};
use crate::error::Error;
use crate::runtime::{self, Runtime, Values};
use crate::walk::ODD_OUTPUT;

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

/// What the outputs of a model are, by name: guessed, but for what is `given`.
///
/// # Errors
/// [`Error::Usage`] where `given` names no output of the model.
pub fn kinds(
    model: &Model,
    seen: &Observation,
    token_mask: Option<TokenMask>,
    given: &[(String, OutputKind)],
) -> Result<Vec<(String, OutputKind)>, Error> {
    let mut objective = Objective::guess(model, seen, token_mask);
    overrule(&mut objective, model, given)?;
    Ok(objective.outputs.iter().map(|&(v, kind)| (model.graph.name(v).to_string(), kind)).collect())
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
pub fn judge(
    runtime: &Runtime,
    models: &[&Model],
    kinds: &[(String, OutputKind)],
    data: &Dataset,
) -> Result<Vec<Judgement>, Error> {
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

/// What a model gave for a batch, sample by sample, without padding.
struct Output {
    kind: OutputKind,
    is_end: bool,
    /// Whether it has no axis of samples, and counts as one for the whole batch.
    is_whole: bool,
    /// Of every sample: one row, or one for every token.
    samples: Vec<Vec<Vec<f64>>>,
}

fn outputs(
    values: &Values,
    kinds: &[(String, OutputKind)],
    data: &Dataset,
    batch: &Batch,
    model: usize,
) -> Result<Vec<Output>, Error> {
    let mut outputs = Vec::new();
    for (name, kind) in kinds.iter().filter(|(_, kind)| *kind != OutputKind::Ignored) {
        let Some(value) = values.get(name) else {
            return Err(Error::Usage(format!("one of the models has no output {name:?}; compare models of one task")));
        };
        if !runtime::element(value).is_some_and(ElementType::is_float) {
            continue;
        }
        if let Some((place, odd)) = batch.odd(value)? {
            let whose = if model == 0 { "the original's".to_string() } else { format!("model {}'s", model + 1) };
            let what = format!("{whose} output {name:?}");
            return Err(Error::NotFinite { place, what, value: odd.value, help: ODD_OUTPUT.into() });
        }
        let array = runtime::scalars(value)?;
        let is_end = name.contains("end");
        if array.shape().first() != Some(&batch.samples) {
            let samples = vec![vec![array.iter().copied().collect()]];
            outputs.push(Output { kind: OutputKind::Hidden, is_end, is_whole: true, samples });
            continue;
        }
        let sample = |(i, row): (usize, ArrayD<f64>)| rows(row, *kind, data.length(batch.rows[i]));
        let samples = array.axis_iter(Axis(0)).map(|row| row.to_owned()).enumerate().map(sample).collect();
        outputs.push(Output { kind: *kind, is_end, is_whole: false, samples });
    }
    Ok(outputs)
}

/// One row for every token that is real, or one for the sample.
fn rows(row: ArrayD<f64>, kind: OutputKind, length: Option<usize>) -> Vec<Vec<f64>> {
    let flat = |array: ArrayD<f64>| array.iter().copied().collect::<Vec<f64>>();
    let over_tokens = row.ndim() >= 2 && matches!(kind, OutputKind::TokenLogits | OutputKind::Hidden);
    if over_tokens {
        let real = length.unwrap_or(usize::MAX).min(row.shape()[0]);
        return row.axis_iter(Axis(0)).take(real).map(|token| flat(token.to_owned())).collect();
    }
    let mut numbers = flat(row);
    if kind == OutputKind::SpanLogits {
        numbers.truncate(length.unwrap_or(usize::MAX));
    }
    vec![numbers]
}

/// What a model predicts, beside what is right.
#[derive(Default)]
struct Predictions {
    classes: (Vec<i64>, Vec<i64>),
    class_count: usize,
    numbers: (Vec<f64>, Vec<f64>),
    spans: (Vec<[i64; 2]>, Vec<[i64; 2]>),
}

impl Predictions {
    /// Adds a batch; the reason where a label is of no class of the output.
    fn add(&mut self, outputs: &[Output], labels: &Labels) -> Result<(), String> {
        let of = |kind: OutputKind| outputs.iter().find(|o| o.kind == kind && !o.is_whole);
        let best = |rows: &Vec<f64>| argmax(rows.iter().copied());
        match labels {
            Labels::Classes(right) => {
                if let Some(logits) = of(OutputKind::Logits) {
                    for (rows, &right) in logits.samples.iter().zip(right) {
                        self.add_class(&rows[0], right)?;
                    }
                } else {
                    self.add(outputs, &Labels::Numbers(right.iter().map(|&c| c as f64).collect()))?;
                }
            }
            Labels::Numbers(right) => {
                let classes: Option<Vec<i64>> = right.iter().map(|&x| (x.fract() == 0.0).then_some(x as i64)).collect();
                if let Some(numbers) = of(OutputKind::Regression) {
                    self.numbers.0.extend(numbers.samples.iter().map(|rows| rows[0][0]));
                    self.numbers.1.extend(right);
                } else if let (Some(classes), Some(_)) = (classes, of(OutputKind::Logits)) {
                    self.add(outputs, &Labels::Classes(classes))?;
                }
            }
            Labels::Tokens(right) => {
                let Some(logits) = of(OutputKind::TokenLogits) else { return Ok(()) };
                for (rows, right) in logits.samples.iter().zip(right.rows()) {
                    for (row, &right) in rows.iter().zip(right) {
                        self.add_class(row, right)?;
                    }
                }
            }
            Labels::Spans(right) => {
                let end_of =
                    |is_end: bool| outputs.iter().find(|o| o.kind == OutputKind::SpanLogits && o.is_end == is_end);
                let (Some(start), Some(end)) = (end_of(false), end_of(true)) else { return Ok(()) };
                let spans = start.samples.iter().zip(&end.samples).map(|(s, e)| [best(&s[0]), best(&e[0])]);
                self.spans.0.extend(spans);
                self.spans.1.extend(right);
            }
        }
        Ok(())
    }

    /// Adds a prediction; what is right is unknown where it is negative.
    fn add_class(&mut self, scores: &[f64], right: i64) -> Result<(), String> {
        if right < 0 {
            return Ok(());
        }
        if right as usize >= scores.len() {
            return Err(format!("holds the label {right}, and the model has {} classes", scores.len()));
        }
        self.class_count = scores.len();
        self.classes.0.push(argmax(scores.iter().copied()));
        self.classes.1.push(right);
        Ok(())
    }

    fn scores(&self) -> Vec<Score> {
        let score = |name, value| Score { name, value };
        let mut scores = Vec::new();
        let (predicted, right) = &self.classes;
        if !predicted.is_empty() {
            let name = if self.class_count == 2 { "F1" } else { "macro F1" };
            scores.push(score("accuracy", accuracy(predicted, right)));
            scores.push(score(name, f1(predicted, right, self.class_count)));
        }
        let (predicted, right) = &self.numbers;
        if !predicted.is_empty() {
            scores.push(score("Spearman", spearman(predicted, right)));
            scores.push(score("Pearson", pearson(predicted, right)));
        }
        let (predicted, right) = &self.spans;
        if !predicted.is_empty() {
            scores.push(score("exact match", exact_match(predicted, right)));
            scores.push(score("F1", span_f1(predicted, right)));
        }
        scores
    }
}

/// Sums over samples of how near a model is to another.
#[derive(Default)]
struct Nearness {
    same: usize,
    distributions: usize,
    divergence: f64,
    cosine: f64,
    samples: usize,
    largest: f64,
    numbers: [Vec<f64>; 2],
}

impl Nearness {
    fn add(&mut self, first: &[Output], own: &[Output]) {
        for (first, own) in first.iter().zip(own) {
            let is_scores = first.kind.is_logits();
            for (a, b) in first.samples.iter().zip(&own.samples) {
                for (a, b) in a.iter().zip(b).filter(|_| is_scores) {
                    self.same += (argmax(a.iter().copied()) == argmax(b.iter().copied())) as usize;
                    self.divergence += divergence(a, b);
                    self.distributions += 1;
                }
                let (a, b): (Vec<f64>, Vec<f64>) = (a.concat(), b.concat());
                if first.kind == OutputKind::Regression {
                    self.numbers[0].extend(&a);
                    self.numbers[1].extend(&b);
                }
                self.cosine += cosine(&a, &b);
                self.samples += 1;
                let differences = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
                self.largest = differences.fold(self.largest, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
            }
        }
    }

    fn fidelity(&self) -> Fidelity {
        let has_scores = self.distributions > 0;
        let each = self.distributions as f64;
        Fidelity {
            agreement: has_scores.then(|| self.same as f64 / each),
            divergence: has_scores.then(|| self.divergence / each),
            correlation: (!self.numbers[0].is_empty()).then(|| spearman(&self.numbers[0], &self.numbers[1])),
            cosine: self.cosine / self.samples.max(1) as f64,
            largest_difference: self.largest,
        }
    }
}
