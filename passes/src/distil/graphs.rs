//! The graphs of a distillation: the teacher, a step of the student, and what judges it.

use super::weights::not_upstream;
use super::{Student, stream};
use crate::calculus::differentiate::{DifferentiateError, Seed, differentiate};
use crate::calculus::emit::Emit;
use crate::calculus::loss::{self, Criterion};
use crate::calculus::objective::Objective;
use crate::calculus::shapes;
use crate::ir::{ElementType, Model, ValueId};
use crate::probe::suffix::finish;
use crate::signature;

/// A graph that gives the gradients of the loss with respect to weights, which are inputs of the same names.
pub struct Step {
    /// The model to run. Inputs: the student's, the weights, the teacher's outputs and streams, and numbers of samples.
    pub model: Model,
    /// The name of the loss, a scalar.
    pub loss: String,
    /// The name of the part of it that is of the streams: relative errors, whatever the outputs are. The whole where there
    /// is no stream.
    pub apart: String,
    /// The weights.
    pub weights: Vec<Weight>,
}

/// A weight that is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// The constant that it is in the student.
    pub value: ValueId,
    /// Its name.
    pub name: String,
    /// The name of its gradient, of the same shape.
    pub gradient: String,
}

/// The teacher: what the loss compares, and its streams.
pub fn teacher(model: &Model, objective: &Objective, streams: &[ValueId]) -> Model {
    let mut teacher = model.clone();
    let mut ends: Vec<ValueId> = objective.outputs.iter().map(|o| o.value).collect();
    ends.extend(streams.iter().filter(|v| !objective.outputs.iter().any(|o| o.value == **v)));
    finish(&mut teacher, &ends);
    teacher
}

/// A step of the student, forward and backward, with distributions softened by `tau`. Of `weights`, those that the loss
/// does not depend on are left out, and those upstream of operators that cannot be differentiated.
///
/// # Errors
/// Where no weight is left.
pub fn step(student: &Student, tau: f64, weights: &[ValueId]) -> Result<Step, DifferentiateError> {
    let mut weights = weights.to_vec();
    loop {
        match step_of(student, tau, &weights) {
            Err(error) => {
                let fewer = not_upstream(&student.model.graph, &weights, error.at);
                if fewer.is_empty() || fewer.len() == weights.len() {
                    return Err(error);
                }
                weights = fewer;
            }
            step => return step,
        }
    }
}

fn step_of(student: &Student, tau: f64, weights: &[ValueId]) -> Result<Step, DifferentiateError> {
    let mut model = student.model.clone();
    let opset = opset(&model);
    let ([loss, apart], seeds) = losses(student, &mut model, tau);
    let gradients = differentiate(&mut model.graph, student.seen, opset, &seeds, weights)?;
    let reached: Vec<(ValueId, ValueId)> =
        weights.iter().zip(gradients).filter_map(|(&weight, gradient)| Some((weight, gradient?))).collect();
    let ends: Vec<ValueId> = [loss, apart].into_iter().chain(reached.iter().map(|r| r.1)).collect();
    let name = |v: ValueId| model.graph.name(v).to_string();
    let named = |&(value, gradient): &(ValueId, ValueId)| Weight { value, name: name(value), gradient: name(gradient) };
    let ([loss, apart], weights): (_, Vec<Weight>) = ([loss, apart].map(name), reached.iter().map(named).collect());
    take(&mut model, &weights);
    finish(&mut model, &ends);
    shapes::declare(&mut model, student.seen);
    Ok(Step { model, loss, apart, weights })
}

/// The loss of the outputs and of the stream, that of the stream alone, and the gradients of both.
fn losses(student: &Student, model: &mut Model, tau: f64) -> ([ValueId; 2], Vec<Seed>) {
    let opset = opset(model);
    let mut emit = Emit::new(&mut model.graph, opset, "distil");
    let criterion = Criterion::Teacher { tau };
    let outputs = loss::append(&mut emit, student.seen, student.objective, criterion, student.token_mask);
    let (stream, more) = stream::append(&mut emit, student);
    let mut seeds = outputs.seeds;
    seeds.extend(more);
    let losses = match stream {
        Some(stream) => [emit.op("Add", &[outputs.value, stream]), stream],
        None => [outputs.value; 2],
    };
    (losses, seeds)
}

/// How far the student's outputs are from the teacher's, as they are: a graph with the loss as its only output, whose
/// inputs are the student's, `weights`, the teacher's outputs and the number of samples.
pub fn judge(student: &Student, weights: &[Weight]) -> Model {
    let mut model = student.model.clone();
    let opset = opset(&model);
    let mut emit = Emit::new(&mut model.graph, opset, "distil");
    let criterion = Criterion::default();
    let loss = loss::append(&mut emit, student.seen, student.objective, criterion, student.token_mask);
    take(&mut model, weights);
    finish(&mut model, &[loss.value]);
    model
}

/// Makes the weights inputs.
fn take(model: &mut Model, weights: &[Weight]) {
    for weight in weights {
        let rank = model.graph.constant(weight.value).map_or(0, |t| t.dims().len());
        model.graph.make_input(signature::declare(&weight.name, ElementType::F32, rank));
    }
}

fn opset(model: &Model) -> i64 {
    model.opset("").unwrap_or(13)
}
