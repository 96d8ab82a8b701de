//! Targets of a loss on labels: what is right for the samples of a batch, or labels drawn from what the teacher says.

use std::collections::HashMap;

use kprune_passes::calculus::objective::{Compared, OutputKind};
use kprune_passes::ir::ElementType;
use ndarray::{ArrayD, Axis, Ix2};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Calibrated, host};
use crate::data::{Batch, Labels, normal};
use crate::error::Error;
use crate::runtime::{self, Held};

impl Calibrated<'_> {
    /// Whether the labels say what is right for every output that the loss compares, without a look at the teacher's: one
    /// class or one number for a sample, or the tokens that follow.
    pub(crate) fn has_targets(&self) -> bool {
        let probes = &self.probes;
        probes.objective.outputs.iter().all(|compared| {
            let suits = match (compared.kind, self.world.labels) {
                (OutputKind::Logits, Some(labels)) => labels.classes().is_some(),
                (OutputKind::Regression, Some(labels)) => matches!(labels, Labels::Classes(_) | Labels::Numbers(_)),
                _ => false,
            };
            compared.kind == OutputKind::NextToken || suits && self.classes(compared).is_some()
        })
    }

    /// The classes of an output of two axes.
    fn classes(&self, compared: &Compared) -> Option<usize> {
        match self.probes.seen.dims(compared.value)?.as_slice() {
            [_, classes] => classes.fixed(),
            _ => None,
        }
    }

    /// For every output that the loss compares, targets of its shape: of the labels, where they are of its kind, or else
    /// drawn from the teacher's output with the run's seed.
    ///
    /// # Errors
    /// Where a label is of no class of the output, or numbers cannot be had.
    pub(super) fn targets(
        &self,
        batch: &Batch,
        outputs: &HashMap<String, Held>,
    ) -> Result<HashMap<String, Held>, Error> {
        let labels = self.world.labels.map(|labels| labels.select(&batch.rows));
        let mut targets = HashMap::new();
        let needs_one = |compared: &&Compared| compared.kind != OutputKind::NextToken;
        for compared in self.probes.objective.outputs.iter().filter(needs_one) {
            let name = self.probes.model.graph.name(compared.value);
            let scores = match outputs.get(name) {
                Some(teacher) => runtime::scalars(teacher.value())?,
                None => ArrayD::zeros(vec![batch.samples, self.classes(compared).unwrap_or(1)]),
            };
            let wrong = |reason: String| {
                let help = "labels are counted from 0; give those that belong to the model";
                Error::data(std::path::Path::new("calibration set"), reason, help)
            };
            let right = match &labels {
                Some(labels) => given(labels, compared.kind, self.is_end(compared), &scores).map_err(wrong)?,
                None => None,
            };
            let target = right.unwrap_or_else(|| drawn(compared.kind, &scores, &batch.rows, self.world.seed));
            targets.insert(name.to_string(), host(ElementType::F32, &target)?);
        }
        Ok(targets)
    }

    /// Whether an output is of the ends of answers.
    fn is_end(&self, compared: &Compared) -> bool {
        self.probes.model.graph.name(compared.output).contains("end")
    }
}

/// The targets that labels give for an output of this kind; `None` where they are of another kind.
fn given(labels: &Labels, kind: OutputKind, is_end: bool, scores: &ArrayD<f64>) -> Result<Option<ArrayD<f64>>, String> {
    let mut target = ArrayD::zeros(scores.raw_dim());
    match (labels, kind) {
        (Labels::Classes(classes), OutputKind::Logits) => {
            classes.iter().enumerate().try_for_each(|(i, &class)| mark(&mut target, &[i], class))?;
        }
        (Labels::Numbers(_), OutputKind::Logits) => {
            let Some(classes) = labels.classes() else { return Ok(None) };
            return given(&Labels::Classes(classes), kind, is_end, scores);
        }
        (Labels::Numbers(numbers), OutputKind::Regression) if numbers.len() == target.len() => {
            target.iter_mut().zip(numbers).for_each(|(t, &number)| *t = number);
        }
        (Labels::Classes(classes), OutputKind::Regression) => {
            return given(&Labels::Numbers(classes.iter().map(|&c| c as f64).collect()), kind, is_end, scores);
        }
        (Labels::Spans(spans), OutputKind::SpanLogits) => {
            let place = |span: &[i64; 2]| span[usize::from(is_end)];
            spans.iter().enumerate().try_for_each(|(i, span)| mark(&mut target, &[i], place(span)))?;
        }
        (Labels::Tokens(classes), OutputKind::TokenLogits) if target.ndim() == 3 => {
            for ((i, token), &class) in classes.indexed_iter().filter(|((_, t), _)| *t < scores.shape()[1]) {
                mark(&mut target, &[i, token], class)?;
            }
        }
        (Labels::Tokens(flags), OutputKind::MultiLabel) if target.shape() == flags.shape() => {
            target.iter_mut().zip(flags).for_each(|(t, &flag)| *t = f64::from(flag > 0));
        }
        _ => return Ok(None),
    }
    Ok(Some(target))
}

/// Sets the probability of a class to 1; what is negative does not count.
fn mark(target: &mut ArrayD<f64>, place: &[usize], class: i64) -> Result<(), String> {
    let classes = target.shape().last().copied().unwrap_or(0);
    if class < 0 {
        return Ok(());
    }
    if class as usize >= classes {
        return Err(format!("holds the label {class}, and the output has {classes} classes"));
    }
    let mut place = place.to_vec();
    place.push(class as usize);
    target[place.as_slice()] = 1.0;
    Ok(())
}

/// Labels drawn from what the teacher says, sample by sample, so that they do not depend on how samples are batched: a
/// class of each distribution, each label for itself, and numbers with a standard normal error, of hidden states one that
/// is as large as they are.
fn drawn(kind: OutputKind, scores: &ArrayD<f64>, rows: &[usize], seed: u64) -> ArrayD<f64> {
    let mut target = ArrayD::zeros(scores.raw_dim());
    for ((own, scores), &row) in target.axis_iter_mut(Axis(0)).zip(scores.axis_iter(Axis(0))).zip(rows) {
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ (row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let width = scores.shape().last().copied().unwrap_or(1).max(1);
        let count = scores.len() / width;
        let (Ok(scores), Ok(mut own)) = (
            scores.to_shape((count, width)).map(|s| s.into_owned()),
            own.into_shape_with_order((count, width)).map(|o| o.into_dimensionality::<Ix2>().expect("two axes")),
        ) else {
            continue;
        };
        for (mut own, scores) in own.rows_mut().into_iter().zip(scores.rows()) {
            match kind {
                OutputKind::Logits | OutputKind::SpanLogits | OutputKind::TokenLogits | OutputKind::NextToken => {
                    own[class(&scores.to_vec(), random.random())] = 1.0;
                }
                OutputKind::MultiLabel => own.iter_mut().zip(&scores).for_each(|(t, z)| {
                    *t = f64::from(random.random::<f64>() < 1.0 / (1.0 + (-z).exp()));
                }),
                OutputKind::Regression => own.iter_mut().zip(&scores).for_each(|(t, z)| *t = z + normal(&mut random)),
                _ => {
                    let size = (scores.dot(&scores) / width as f64).sqrt();
                    own.iter_mut().zip(&scores).for_each(|(t, z)| *t = z + size * normal(&mut random));
                }
            }
        }
    }
    target
}

/// The class of softmax(z) at `point`, from 0 to 1.
fn class(scores: &[f64], point: f64) -> usize {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|z| (z - largest).exp()).collect();
    let mut left = point * weights.iter().sum::<f64>();
    let found = weights.iter().position(|w| {
        left -= w;
        left < 0.0
    });
    found.unwrap_or(weights.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{arr2, array};

    #[test]
    fn labels_become_targets_of_the_shape_of_the_output() {
        let scores = ArrayD::zeros(vec![2, 3]);
        let of = |labels: Labels, kind| given(&labels, kind, false, &scores);
        let right = array![[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]].into_dyn();
        assert_eq!(of(Labels::Classes(vec![2, 0]), OutputKind::Logits), Ok(Some(right.clone())));
        assert_eq!(of(Labels::Numbers(vec![2.0, 0.0]), OutputKind::Logits), Ok(Some(right)));
        let ignored = of(Labels::Classes(vec![-100, 1]), OutputKind::Logits).unwrap().unwrap();
        assert_eq!(ignored, array![[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]].into_dyn());
        assert!(of(Labels::Classes(vec![3, 0]), OutputKind::Logits).unwrap_err().contains("has 3 classes"));
        assert_eq!(of(Labels::Numbers(vec![0.5, 0.0]), OutputKind::Logits), Ok(None));
        let spans = of(Labels::Spans(vec![[1, 2], [0, 0]]), OutputKind::SpanLogits).unwrap().unwrap();
        assert_eq!(spans, array![[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]].into_dyn());
        let flags = of(Labels::Tokens(arr2(&[[1, 0, 1], [0, 0, 1]])), OutputKind::MultiLabel).unwrap().unwrap();
        assert_eq!(flags.sum(), 3.0);
    }

    #[test]
    fn labels_are_drawn_as_often_as_the_teacher_says_and_the_same_for_a_sample() {
        let scores = ArrayD::from_shape_fn(vec![4000, 2], |i| if i[1] == 1 { 3f64.ln() } else { 0.0 });
        let rows: Vec<usize> = (0..4000).collect();
        let target = drawn(OutputKind::Logits, &scores, &rows, 1);
        let share = target.index_axis(Axis(1), 1).sum() / 4000.0;
        assert!((share - 0.75).abs() < 0.03, "{share}");
        let few = drawn(OutputKind::Logits, &scores.select(Axis(0), &[7, 1234]), &[7, 1234], 1);
        assert_eq!(few, target.select(Axis(0), &[7, 1234]));
        assert_ne!(target, drawn(OutputKind::Logits, &scores, &rows, 2));
    }
}
