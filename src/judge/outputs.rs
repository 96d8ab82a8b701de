//! What models give for a batch, and how it is told apart.

use kprune_passes::calculus::objective::{Form, OutputKind};
use kprune_passes::ir::ElementType;
use ndarray::{ArrayD, Axis};

use super::quality::Kind;
use crate::data::{Batch, Dataset};
use crate::error::Error;
use crate::runtime::{self, Values};
use crate::walk::ODD_OUTPUT;

/// What a model gave for a batch, sample by sample, without padding.
pub(super) struct Output {
    pub(super) kind: OutputKind,
    pub(super) form: Form,
    pub(super) is_end: bool,
    /// Whether it has no axis of samples, and counts as one for the whole batch.
    pub(super) is_whole: bool,
    /// Of every sample: one row, or one for every token.
    pub(super) samples: Vec<Vec<Vec<f64>>>,
}

/// The outputs of one batch; `model` is the place of the model among those that are judged.
///
/// # Errors
/// Where an output is missing, or holds a number that is not finite.
pub(super) fn outputs(
    values: &Values,
    kinds: &[&Kind],
    data: &Dataset,
    batch: &Batch,
    model: usize,
) -> Result<Vec<Output>, Error> {
    let mut outputs = Vec::new();
    for Kind { name, kind, form, .. } in kinds {
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
            outputs.push(Output { kind: OutputKind::Hidden, form: Form::Scores, is_end, is_whole: true, samples });
            continue;
        }
        let sample = |(i, row): (usize, ArrayD<f64>)| rows(row, *kind, data.length(batch.rows[i]));
        let samples = array.axis_iter(Axis(0)).map(|row| row.to_owned()).enumerate().map(sample).collect();
        outputs.push(Output { kind: *kind, form: *form, is_end, is_whole: false, samples });
    }
    Ok(outputs)
}

/// One row for every token that is real, or one for the sample.
fn rows(row: ArrayD<f64>, kind: OutputKind, length: Option<usize>) -> Vec<Vec<f64>> {
    let flat = |array: ArrayD<f64>| array.iter().copied().collect::<Vec<f64>>();
    let over_tokens =
        row.ndim() >= 2 && (kind.is_of_tokens() || matches!(kind, OutputKind::MultiLabel | OutputKind::Hidden));
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

impl Output {
    /// Scores of classes, a row for every sample.
    #[cfg(test)]
    pub(super) fn logits(samples: Vec<Vec<Vec<f64>>>) -> Self {
        Self { kind: OutputKind::Logits, form: Form::Scores, is_end: false, is_whole: false, samples }
    }

    /// Whether each label is more likely right than not.
    pub(super) fn decided(&self, rows: &[Vec<f64>]) -> Vec<bool> {
        self.form.scores(&rows.concat()).iter().map(|&z| z > 0.0).collect()
    }
}
