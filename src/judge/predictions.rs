//! What models predict, beside what is right.

use kprune_passes::calculus::objective::OutputKind;

use super::metrics::{accuracy, argmax, exact_match, f1, pearson, span_f1, spearman};
use super::outputs::Output;
use super::quality::Score;
use crate::data::Labels;

/// What a model predicts, beside what is right.
#[derive(Clone, Default)]
pub(super) struct Predictions {
    classes: (Vec<i64>, Vec<i64>),
    class_count: usize,
    numbers: (Vec<f64>, Vec<f64>),
    spans: (Vec<[i64; 2]>, Vec<[i64; 2]>),
    /// How many classes, numbers and spans there are up to the end of every sample.
    ends: Vec<[usize; 3]>,
}

impl Predictions {
    /// Adds a batch; the reason where a label is of no class of the output.
    pub(super) fn add(&mut self, outputs: &[Output], labels: &Labels) -> Result<(), String> {
        let of = |kind: OutputKind| outputs.iter().find(|o| o.kind == kind && !o.is_whole);
        let best = |rows: &Vec<f64>| argmax(rows.iter().copied());
        match labels {
            Labels::Classes(right) => {
                if let Some(logits) = of(OutputKind::Logits) {
                    for (rows, &right) in logits.samples.iter().zip(right) {
                        self.add_class(&rows[0], right)?;
                        self.end_sample();
                    }
                } else if let Some(labels) = of(OutputKind::MultiLabel) {
                    for (rows, &right) in labels.samples.iter().zip(right) {
                        self.add_labels(&labels.decided(rows), [right]);
                        self.end_sample();
                    }
                } else {
                    self.add(outputs, &Labels::Numbers(right.iter().map(|&c| c as f64).collect()))?;
                }
            }
            Labels::Numbers(right) => {
                if let Some(numbers) = of(OutputKind::Regression) {
                    for (rows, &right) in numbers.samples.iter().zip(right) {
                        self.numbers.0.push(rows[0][0]);
                        self.numbers.1.push(right);
                        self.end_sample();
                    }
                } else if let (Some(classes), Some(_)) = (labels.classes(), of(OutputKind::Logits)) {
                    self.add(outputs, &Labels::Classes(classes))?;
                }
            }
            Labels::Tokens(right) => {
                let of_labels =
                    of(OutputKind::MultiLabel).into_iter().flat_map(|o| o.samples.iter().map(|rows| o.decided(rows)));
                for (decided, right) in of_labels.zip(right.rows()) {
                    self.add_labels(&decided, right.iter().copied());
                    self.end_sample();
                }
                let Some(logits) = of(OutputKind::TokenLogits) else { return Ok(()) };
                for (rows, right) in logits.samples.iter().zip(right.rows()) {
                    for (row, &right) in rows.iter().zip(right) {
                        self.add_class(row, right)?;
                    }
                    self.end_sample();
                }
            }
            Labels::Spans(right) => {
                let end_of =
                    |is_end: bool| outputs.iter().find(|o| o.kind == OutputKind::SpanLogits && o.is_end == is_end);
                let (Some(start), Some(end)) = (end_of(false), end_of(true)) else { return Ok(()) };
                for ((start, end), &right) in start.samples.iter().zip(&end.samples).zip(right) {
                    self.spans.0.push([best(&start[0]), best(&end[0])]);
                    self.spans.1.push(right);
                    self.end_sample();
                }
            }
        }
        Ok(())
    }

    fn end_sample(&mut self) {
        self.ends.push([self.classes.0.len(), self.numbers.0.len(), self.spans.0.len()]);
    }

    /// Predictions that there are, each of which can be right or wrong.
    pub(super) fn count(&self) -> usize {
        self.classes.0.len() + self.spans.0.len()
    }

    /// Those of the samples `rows`, in that order.
    pub(super) fn picked(&self, rows: &[usize]) -> Self {
        let mut picked = Self { class_count: self.class_count, ..Self::default() };
        for &row in rows {
            let Some(&end) = self.ends.get(row) else { continue };
            let start = row.checked_sub(1).map_or([0; 3], |before| self.ends[before]);
            let [classes, numbers, spans] = [0, 1, 2].map(|kind| start[kind]..end[kind]);
            picked.classes.0.extend_from_slice(&self.classes.0[classes.clone()]);
            picked.classes.1.extend_from_slice(&self.classes.1[classes]);
            picked.numbers.0.extend_from_slice(&self.numbers.0[numbers.clone()]);
            picked.numbers.1.extend_from_slice(&self.numbers.1[numbers]);
            picked.spans.0.extend_from_slice(&self.spans.0[spans.clone()]);
            picked.spans.1.extend_from_slice(&self.spans.1[spans]);
            picked.end_sample();
        }
        picked
    }

    /// Adds what was decided of every label for itself, where as many are known.
    fn add_labels(&mut self, decided: &[bool], right: impl IntoIterator<Item = i64, IntoIter: ExactSizeIterator>) {
        let right = right.into_iter();
        if right.len() != decided.len() {
            return;
        }
        self.class_count = 2;
        for (&decided, right) in decided.iter().zip(right).filter(|(_, right)| (0..=1).contains(right)) {
            self.classes.0.push(decided.into());
            self.classes.1.push(right);
        }
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

    pub(super) fn scores(&self) -> Vec<Score> {
        let score = |name, value| Score { name, value, error: None };
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
