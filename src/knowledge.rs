//! Runs the measuring graphs over the calibration set and adds up what they give.

use std::collections::HashMap;

use kprune_passes::discover::{Kind, Sublayer};
use kprune_passes::ir::{ElementType, Model, Tensor};
use kprune_passes::loss::{SAMPLES, teacher_input};
use kprune_passes::measure::{BIAS, COLUMNS, Measuring, WEIGHT, stream_input};
use kprune_passes::plan::Tuned;
use kprune_passes::search::{Candidate, Weights, score};
use kprune_passes::tune::Sums;
use ndarray::{Array1, Array2, ArrayD, Ix1, Ix2, IxDyn};
use ort::value::DynValue;

use crate::calibration::Batch;
use crate::error::Error;
use crate::progress::Progress;
use crate::runtime::{self, Held, Runtime, Values};

/// What measuring costs per sublayer, against running one: about as much again backward, and the sums.
const KNOWLEDGE_WORK: usize = 3;

/// The work of a whole run over `batches`, in batches through one sublayer.
pub fn work(sublayers: usize, batches: usize) -> usize {
    let measuring: usize = (1..=sublayers).map(|above| KNOWLEDGE_WORK * above).sum();
    batches * (measuring + 2 * sublayers - 1)
}

/// Values that cross into the sublayer in hand, for one batch.
type State = HashMap<String, DynValue>;

/// Teacher and student, advanced sublayer by sublayer over the calibration set.
pub struct Walk<'a> {
    runtime: &'a Runtime,
    measuring: Measuring<'a>,
    batches: &'a [Batch],
    progress: &'a Progress,
    outputs: Vec<Values>,
    /// For every sublayer, the mean over the outputs of W_cj^2, for every column c of its features.
    mean_squares: Vec<Array1<f64>>,
    teacher: Vec<State>,
    student: Vec<State>,
}

/// What the two knowledges of a unit are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Knowledge {
    /// How much the loss would rise without the unit.
    pub predictive: f64,
    /// How much its contribution to the projection's output weighs.
    pub representational: f64,
}

/// Sums for tuning, and those of the batches that were held out.
pub struct TuningSums {
    /// Of the batches to solve for.
    pub solve: Sums,
    /// Of the batches to judge by.
    pub held_out: Sums,
}

impl<'a> Walk<'a> {
    /// Starts below the first sublayer. `outputs` are the teacher's, for every batch.
    pub fn new(
        runtime: &'a Runtime,
        measuring: Measuring<'a>,
        batches: &'a [Batch],
        outputs: Vec<Values>,
        progress: &'a Progress,
    ) -> Self {
        let states = || batches.iter().map(|_| State::new()).collect();
        let (teacher, student) = (states(), states());
        Self { runtime, measuring, batches, progress, outputs, mean_squares: Vec::new(), teacher, student }
    }

    /// Reads the weights of all projections, once.
    fn read_weights(&mut self) -> Result<(), Error> {
        for sublayer in &self.measuring.discovery.sublayers[self.mean_squares.len()..] {
            let squares = original_weight(self.measuring.model, sublayer)?.mapv(|w| w * w);
            self.mean_squares.push(squares.mean_axis(ndarray::Axis(1)).unwrap_or_default());
        }
        Ok(())
    }

    /// What is measured, and how.
    pub fn measuring(&self) -> &Measuring<'a> {
        &self.measuring
    }

    fn sublayer(&self, t: usize) -> &Sublayer {
        &self.measuring.discovery.sublayers[t]
    }

    /// Knowledge of the units of sublayer `t` and of all above, by sublayer and unit.
    ///
    /// K_pred = 1/N * sum over mini-batches of 1/2 * mean over the unit's columns of (dL/dm)^2;
    /// K_rep = 1/T * mean over the unit's columns c of ||F_c||^2 * mean_j W_cj^2 (Park et al. 2024).
    ///
    /// # Errors
    /// Where an operator cannot be differentiated, or ONNX Runtime fails.
    pub fn knowledge(&mut self, t: usize) -> Result<Vec<Vec<Knowledge>>, Error> {
        self.read_weights()?;
        let graph = self
            .measuring
            .knowledge(t)
            .map_err(|e| Error::Runtime { doing: "measuring knowledge".into(), reason: e.to_string() })?;
        let mut session = self.runtime.session(&graph.model, "measuring knowledge", true)?;
        let widths: Vec<usize> = graph.outputs.iter().map(|s| self.sublayer(s.sublayer).projection.width).collect();
        let zeros = || -> Vec<Array1<f64>> { widths.iter().map(|&w| Array1::zeros(w)).collect() };
        let (mut gradients, mut squares, mut energies) = (zeros(), zeros(), zeros());
        for (i, batch) in self.batches.iter().enumerate() {
            self.runtime.check_cancelled()?;
            let samples = scalar(batch.mini_batch_samples as f64)?;
            let state = &self.student[i];
            let outputs = &self.outputs[i];
            let teacher: HashMap<String, &DynValue> = outputs.iter().map(|(n, v)| (teacher_input(n), v)).collect();
            let sums = session.run_with(|name| match name {
                SAMPLES => Some(samples.value()),
                _ => teacher.get(name).copied().or_else(|| state.get(name)).or_else(|| batch.find(name)),
            })?;
            for (j, unit) in graph.outputs.iter().enumerate() {
                if let Some(gradient) = &unit.gradient {
                    gradients[j] += &vector(&sums, gradient)?;
                }
                energies[j] += &vector(&sums, &unit.energy)?;
            }
            // A mini-batch is squared as a whole, in however many parts it was run.
            if self.batches.get(i + 1).is_none_or(|next| next.mini_batch != batch.mini_batch) {
                for (gradient, square) in gradients.iter_mut().zip(&mut squares) {
                    *square += &gradient.mapv(|g| g * g);
                    gradient.fill(0.0);
                }
            }
            self.progress.advance(KNOWLEDGE_WORK * graph.outputs.len());
        }
        let samples: usize = self.batches.iter().map(|b| b.samples).sum();
        let tokens: usize = self.batches.iter().map(|b| b.tokens).sum();
        let mut knowledge = Vec::new();
        for ((unit, gradients), energies) in graph.outputs.iter().zip(&squares).zip(&energies) {
            let sublayer = self.sublayer(unit.sublayer);
            let mean_squares = &self.mean_squares[unit.sublayer];
            let mean = |columns: &[usize], of: &dyn Fn(usize) -> f64| {
                columns.iter().map(|&c| of(c)).sum::<f64>() / columns.len() as f64
            };
            let units = sublayer.units.iter().map(|u| Knowledge {
                predictive: 0.5 * mean(&u.columns, &|c| gradients[c]) / samples as f64,
                representational: mean(&u.columns, &|c| energies[c] * mean_squares[c]) / tokens as f64,
            });
            knowledge.push(units.collect());
        }
        Ok(knowledge)
    }

    /// Advances the teacher through sublayer `t` and sums up what tuning the student's projection on the
    /// kept `columns` needs.
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    pub fn gram(&mut self, t: usize, columns: &[usize]) -> Result<TuningSums, Error> {
        let sublayer = self.sublayer(t);
        let (kept, outputs) = (columns.len(), sublayer.projection.outputs);
        let gram =
            self.measuring.gram(t).map_err(|e| Error::Runtime { doing: "tuning".into(), reason: e.to_string() })?;
        let mut session = self.runtime.session(&gram.model, "summing up features", true)?;
        let mut region = self.region(t, None)?;
        let indices: Vec<i64> = columns.iter().map(|&c| c as i64).collect();
        let indices = runtime::host(&Tensor::from_i64s(&[kept], &indices))?;
        let mut sums = TuningSums { solve: Sums::zeros(kept, outputs), held_out: Sums::zeros(kept, outputs) };
        for (i, batch) in self.batches.iter().enumerate() {
            self.runtime.check_cancelled()?;
            let rest = region.advance(&mut self.teacher[i], batch)?;
            let (teacher, student) = (&self.teacher[i], &self.student[i]);
            let stream = |name: &str| rest.get(name).or_else(|| teacher.get(name));
            let streams: HashMap<String, &DynValue> = (region.streams.iter().enumerate())
                .filter_map(|(site, name)| Some((stream_input(site), stream(name)?)))
                .collect();
            let values = session.run_with(|name| match name {
                COLUMNS => Some(indices.value()),
                _ => streams.get(name).copied().or_else(|| student.get(name)).or_else(|| batch.find(name)),
            })?;
            let part = if is_held_out(i, self.batches.len()) { &mut sums.held_out } else { &mut sums.solve };
            part.gram += &matrix(&values, &gram.outputs.gram)?;
            part.cross += &matrix(&values, &gram.outputs.cross)?;
            part.energy += value(&values, &gram.outputs.energy)?.sum();
            self.progress.advance(1);
        }
        Ok(sums)
    }

    /// Advances the student through sublayer `t` with its pruned, tuned projection.
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    pub fn advance(&mut self, t: usize, tuned: &Tuned) -> Result<(), Error> {
        let mut region = self.region(t, Some(tuned))?;
        self.measuring.settle(t, tuned).map_err(|e| Error::internal(e.to_string()))?;
        for (i, batch) in self.batches.iter().enumerate() {
            self.runtime.check_cancelled()?;
            region.advance(&mut self.student[i], batch)?;
            self.progress.advance(1);
        }
        Ok(())
    }

    /// The sublayer `t` alone, with its original projection or a tuned one.
    fn region(&self, t: usize, tuned: Option<&Tuned>) -> Result<Region, Error> {
        let sublayer = self.sublayer(t);
        let graph = self.measuring.region(t, tuned.is_none());
        let session = self.runtime.session(&graph.model, "running a sublayer", true)?;
        let original = original_weight(self.measuring.model, sublayer)?;
        let weight = tuned.map_or(&original, |t| &t.weight);
        let stored = if sublayer.projection.transposed { weight.t().to_owned() } else { weight.clone() };
        let element = self.measuring.seen.element(sublayer.projection.weight).unwrap_or(ElementType::F32);
        let bias = tuned.map_or(Array1::zeros(sublayer.projection.outputs), |t| t.bias.clone());
        Ok(Region {
            session,
            weight: host(element, &stored.into_dyn())?,
            bias: host(element, &bias.into_dyn())?,
            streams: graph.outputs.streams,
            crossing: graph.outputs.crossing,
            next: self
                .measuring
                .crossings
                .at(t + 1)
                .iter()
                .map(|&v| self.measuring.model.graph.name(v).to_string())
                .collect(),
        })
    }
}

/// A session of one sublayer with its projection.
struct Region {
    session: runtime::Session,
    weight: Held,
    bias: Held,
    streams: Vec<String>,
    crossing: Vec<String>,
    next: Vec<String>,
}

impl Region {
    /// Moves a state into the next sublayer. Returns what else was computed.
    fn advance(&mut self, state: &mut State, batch: &Batch) -> Result<Values, Error> {
        let mut values = self.session.run_with(|name| match name {
            WEIGHT => Some(self.weight.value()),
            BIAS => Some(self.bias.value()),
            _ => state.get(name).or_else(|| batch.find(name)),
        })?;
        state.retain(|name, _| self.next.contains(name));
        for name in &self.crossing {
            if let Some(value) = values.remove(name) {
                state.insert(name.clone(), value);
            }
        }
        Ok(values)
    }
}

/// The candidates of the search: units of the sublayers from `first` on, with their scores.
pub fn candidates(
    sublayers: &[Sublayer],
    first: usize,
    knowledge: &[Vec<Knowledge>],
    weights: Weights,
) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (i, (sublayer, knowledge)) in sublayers[first..].iter().zip(knowledge).enumerate() {
        for (unit, (u, k)) in sublayer.units.iter().zip(knowledge).enumerate() {
            let is_head = sublayer.kind == Kind::Head;
            let score = score(weights, k.predictive, k.representational, u.flops, is_head);
            candidates.push(Candidate { sublayer: first + i, unit, score, flops: u.flops });
        }
    }
    candidates
}

/// The weight of a sublayer's projection, features by outputs.
///
/// # Errors
/// Where it is no matrix of floating-point numbers.
pub fn original_weight(model: &Model, sublayer: &Sublayer) -> Result<Array2<f64>, Error> {
    let tensor = model.graph.constant(sublayer.projection.weight);
    let array = tensor.and_then(|t| t.to_f64().ok()).and_then(|a| a.into_dimensionality::<Ix2>().ok());
    let array = array.ok_or_else(|| Error::internal(format!("the weight of {} is no matrix", sublayer.name)))?;
    Ok(if sublayer.projection.transposed { array.reversed_axes() } else { array })
}

/// Every tenth batch, and at least one where there are several.
fn is_held_out(batch: usize, batches: usize) -> bool {
    batches > 1 && batch % 10 == (batches / 2).min(5)
}

fn host(element: ElementType, array: &ArrayD<f64>) -> Result<Held, Error> {
    runtime::host(&Tensor::from_floats(element, array).map_err(|e| Error::internal(e.to_string()))?)
}

fn scalar(value: f64) -> Result<Held, Error> {
    host(ElementType::F32, &ArrayD::from_elem(IxDyn(&[]), value))
}

fn value(values: &Values, name: &str) -> Result<ArrayD<f64>, Error> {
    let value = values.get(name).ok_or_else(|| Error::internal(format!("a measuring graph gave no {name:?}")))?;
    runtime::scalars(value)
}

fn vector(values: &Values, name: &str) -> Result<Array1<f64>, Error> {
    value(values, name)?.into_dimensionality::<Ix1>().map_err(|e| Error::internal(e.to_string()))
}

fn matrix(values: &Values, name: &str) -> Result<Array2<f64>, Error> {
    value(values, name)?.into_dimensionality::<Ix2>().map_err(|e| Error::internal(e.to_string()))
}
