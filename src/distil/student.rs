//! A student whose weights move.

use std::collections::HashMap;

use kprune_passes::calculus::loss::{SAMPLES, teacher_input};
use kprune_passes::calculus::objective::Objective;
use kprune_passes::distil::Adam;
use kprune_passes::distil::{self, SHARE, Step, Weight, stream_input};
use kprune_passes::ir::{Graph, ValueId};
use ndarray::{ArrayD, IxDyn, arr0};
use ort::value::DynValue;

use super::{TAU, Values};
use crate::data::Batch;
use crate::error::{Error, not_finite};
use crate::runtime::{self, Held, Purpose, Runtime, Session};

/// A student in sessions, with weights of its own.
pub(super) struct Learner {
    learning: Session,
    judging: Session,
    loss: String,
    apart: String,
    weights: Vec<Weight>,
    values: HashMap<String, DynValue>,
    adam: Adam,
}

/// What a batch is fed with besides its samples.
pub(super) struct Lesson<'a> {
    pub(super) batch: &'a Batch,
    /// Inputs of the batch that are replaced.
    pub(super) instead: Option<(String, Held)>,
    /// What the teacher gives, by the names of the inputs that take it.
    pub(super) teacher: HashMap<String, Held>,
}

impl Lesson<'_> {
    /// The same in memory of its own, with the outputs alone, which are all that a judge wants.
    ///
    /// # Errors
    /// Where ONNX Runtime makes no tensor.
    pub(super) fn without_streams(mut self, graph: &Graph, objective: &Objective) -> Result<Self, Error> {
        let mut kept = HashMap::new();
        for compared in &objective.outputs {
            let name = teacher_input(graph.name(compared.value));
            if let Some(held) = self.teacher.get(&name) {
                kept.insert(name, held.owned()?);
            }
        }
        self.teacher = kept;
        Ok(self)
    }

    fn find(&self, name: &str) -> Option<&DynValue> {
        let instead = self.instead.as_ref().filter(|(input, _)| input == name).map(|(_, held)| held.value());
        instead.or_else(|| self.teacher.get(name).map(Held::value)).or_else(|| self.batch.find(name))
    }
}

impl Learner {
    /// A student with those of `weights` that its loss depends on.
    pub(super) fn new(runtime: &Runtime, student: &distil::Student, weights: &[ValueId]) -> Result<Self, Error> {
        let impossible = |why: String| Error::Usage(format!("--distil: {why}"));
        let step = distil::step(student, TAU, weights).map_err(|e| impossible(e.to_string()))?;
        let Step { model, loss, apart, weights } = step;
        if weights.is_empty() {
            return Err(impossible("the outputs depend on no weight that the file has as a constant".into()));
        }
        let learning = runtime.session(&model, "distilling", Purpose::Work)?;
        let judging =
            runtime.session(&distil::judge(student, &weights), "judging the distilled model", Purpose::Work)?;
        let mut values = HashMap::new();
        for weight in &weights {
            let tensor = student.model.graph.constant(weight.value);
            let tensor = tensor.ok_or_else(|| Error::internal(format!("{} is no constant", weight.name)))?;
            values.insert(weight.name.clone(), runtime::changeable(tensor)?);
        }
        let sizes = weights.iter().map(|w| student.model.graph.constant(w.value).map_or(0, |t| t.count()));
        let adam = Adam::new(sizes);
        Ok(Self { learning, judging, loss, apart, weights, values, adam })
    }

    /// Moves the weights by the lessons of one mini-batch, at this rate.
    pub(super) fn learn(&mut self, lessons: &[Lesson], rate: f32) -> Result<(), Error> {
        let mut gradients = Vec::new();
        for lesson in lessons {
            let found = self.run(lesson, lessons)?;
            gradients = self.sum(gradients, found)?;
        }
        let mut squares = 0.0;
        for gradient in &gradients {
            squares += runtime::numbers_of(gradient)?.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
        }
        if !squares.is_finite() {
            let place = lessons.iter().map(|l| l.batch.describe()).collect::<Vec<_>>().join(", ");
            return Err(not_finite(place, "the gradient of the student that is distilled", squares));
        }
        let scale = self.adam.start(squares.sqrt());
        for (i, (weight, gradient)) in self.weights.iter().zip(&gradients).enumerate() {
            if let Some(value) = self.values.get_mut(&weight.name) {
                self.adam.step(i, runtime::numbers_of_mut(value)?, runtime::numbers_of(gradient)?, scale, rate);
            }
        }
        Ok(())
    }

    /// How far the streams are from the teacher's, relative to their size, in the lessons of one mini-batch.
    pub(super) fn apart(&mut self, lessons: &[Lesson]) -> Result<f64, Error> {
        let of = |lesson| {
            let found = self.run(lesson, lessons)?;
            let apart = found.get(&self.apart).ok_or_else(|| Error::internal("a step gave no loss of the streams"))?;
            Ok(runtime::scalars(apart)?.sum())
        };
        lessons.iter().map(of).sum()
    }

    /// What a step gives for one of the lessons of a mini-batch.
    fn run(&mut self, lesson: &Lesson, all: &[Lesson]) -> Result<runtime::Values, Error> {
        let samples = all.iter().map(|l| l.batch.samples).sum();
        let found = run(&mut self.learning, &self.values, lesson, samples)?;
        found.get(&self.loss).map_or(Ok(()), |loss| check(loss, lesson))?;
        Ok(found)
    }

    /// Moves the weights half of the way to where they started.
    pub(super) fn go_half_way_to(&mut self, start: &Values) -> Result<(), Error> {
        for (weight, (_, start)) in self.weights.iter().zip(start) {
            let value = self.values.get_mut(&weight.name).ok_or_else(|| Error::internal("a weight has no value"))?;
            runtime::numbers_of_mut(value)?.iter_mut().zip(start).for_each(|(w, s)| *w = (*w + s) / 2.0);
        }
        Ok(())
    }

    /// The gradients so far and those that a run gave, in the order of the weights.
    fn sum(&self, mut gradients: Vec<DynValue>, mut found: runtime::Values) -> Result<Vec<DynValue>, Error> {
        let is_first = gradients.is_empty();
        for (i, weight) in self.weights.iter().enumerate() {
            let missing = || Error::internal(format!("a step gave no gradient of {}", weight.name));
            let gradient = found.remove(&weight.gradient).ok_or_else(missing)?;
            match is_first {
                true => gradients.push(gradient),
                false => {
                    let sums = runtime::numbers_of_mut(&mut gradients[i])?;
                    sums.iter_mut().zip(runtime::numbers_of(&gradient)?).for_each(|(sum, g)| *sum += g);
                }
            }
        }
        Ok(gradients)
    }

    /// The loss of a lesson's outputs, a mean over its samples.
    pub(super) fn judged(&mut self, lesson: &Lesson) -> Result<f64, Error> {
        let found = run(&mut self.judging, &self.values, lesson, lesson.batch.samples)?;
        let loss = found.values().next().ok_or_else(|| Error::internal("a judge gave nothing"))?;
        check(loss, lesson)?;
        Ok(runtime::scalars(loss)?.sum())
    }

    /// The weights as they are now.
    pub(super) fn weights(&self) -> Result<Values, Error> {
        let of = |weight: &Weight| {
            let value = self.values.get(&weight.name).ok_or_else(|| Error::internal("a weight has no value"))?;
            let shape = value.dtype().tensor_shape().map(|s| s.iter().map(|&d| d as usize).collect::<Vec<_>>());
            let numbers = runtime::numbers_of(value)?.to_vec();
            let array = ArrayD::from_shape_vec(IxDyn(&shape.unwrap_or_default()), numbers)
                .map_err(|e| Error::internal(e.to_string()))?;
            Ok((weight.value, array))
        };
        self.weights.iter().map(of).collect()
    }
}

/// Runs a student with these weights on a lesson, which is a part of `samples`.
fn run(
    session: &mut Session,
    weights: &HashMap<String, DynValue>,
    lesson: &Lesson,
    samples: usize,
) -> Result<runtime::Values, Error> {
    let scalar = |x: f64| runtime::numbers(&arr0(x).into_dyn());
    let (count, share) = (scalar(samples as f64)?, scalar(lesson.batch.samples as f64 / samples as f64)?);
    session.run_with(|name| match name {
        SAMPLES => Some(count.value()),
        SHARE => Some(share.value()),
        _ => weights.get(name).or_else(|| lesson.find(name)),
    })
}

/// A loss that is not finite is an error.
fn check(loss: &DynValue, lesson: &Lesson) -> Result<(), Error> {
    let refuse = |value| not_finite(lesson.batch.describe(), "the loss of the student that is distilled", value);
    runtime::odd(loss)?.map_or(Ok(()), |odd| Err(refuse(odd.value)))
}

/// What the teacher gives, by the names of the inputs of the student's graphs.
pub(super) fn as_inputs(values: HashMap<String, Held>) -> HashMap<String, Held> {
    let of = |(name, held): (String, Held)| [(teacher_input(&name), held.clone()), (stream_input(&name), held)];
    values.into_iter().flat_map(of).collect()
}
