//! What may be asked of a run: graphs that compute, inside ONNX Runtime, nothing but sums.
//!
//! | probe | asks | gives |
//! |---|---|---|
//! | [`Probes::teacher`] | the untouched model | its outputs, and squared features summed by column |
//! | [`Probes::columns`] | the student downstream of a sublayer, forward and backward | mask gradients of every mini-batch and squared features, by column |
//! | [`Probes::masks`] | the untouched model with factors on all features, forward and backward | mask gradients of every mini-batch, by column |
//! | [`Probes::features`], [`Probes::reconstruction`] | a block, forward; and backward without some of its weights | squared features; sums of gradient times weight |
//! | [`Probes::equations`] | one sublayer of the student beside the teacher's | Gram matrix and cross terms of the columns that stay, which may be all |
//! | [`Probes::sensitivity`] | the untouched model, forward and backward from random probes of its outputs | what they feel of errors of every projection, and Gram matrices of features |
//! | [`Probes::moments`] | some of its sublayers, forward | Gram matrices of their features |
//! | [`Probes::region`], [`Probes::step`] | one sublayer | what crosses into the next |
//!
//! A probe for another method has its place here, as a file beside these: a weight for every token in the Gram matrix,
//! values that the host feeds anew in every pass. [`Criterion`] is where a loss on labels joins.
//!
//! What the graphs give is compared with sums formed on the host in tests/measure.rs, mask gradients with finite
//! differences of the loss in tests/mask_gradient.rs.
//!
//! [`Criterion`]: crate::calculus::loss::Criterion

mod block;
mod columns;
mod equations;
mod moments;
mod step;
mod student;
pub mod suffix;
mod sums;

pub use block::{FeatureOutputs, REFERENCE, ReconstructionOutputs, TOKENS};
pub use columns::{ColumnSums, MaskOutputs, mask_input};
pub use equations::{COLUMNS, EquationOutputs, stream_input};
pub use moments::MomentOutputs;
pub use step::{FEATURES, RegionOutputs, WEIGHT};
pub use sums::{Gram, Sum};

use std::collections::BTreeMap;

use crate::calculus::TokenMask;
use crate::calculus::differentiate::DifferentiateError;
use crate::calculus::emit::Emit;
use crate::calculus::loss::Criterion;
use crate::calculus::objective::{Objective, OutputKind};
use crate::discover::{Discovery, flops};
use crate::ir::{ElementType, Model, TensorError, ValueId};
use crate::observe::{Dim, Observation};
use crate::plan::{Tuned, write_projection};
use crate::probe::suffix::Crossings;
use crate::signature;

/// How many operators that cannot be differentiated the loss is moved before.
const MOST_OPAQUE: usize = 64;

/// The probes of a model, and what all of them have in common.
#[derive(Clone)]
pub struct Probes<'a> {
    /// The model, nothing removed.
    pub model: &'a Model,
    /// The model with the projections that are settled, where they are applied again.
    student: Model,
    /// Shapes and types of its values.
    pub seen: Observation,
    /// Its sublayers.
    pub discovery: &'a Discovery,
    /// What crosses into every sublayer.
    pub crossings: Crossings,
    /// What the loss compares.
    pub objective: Objective,
    /// The token mask: the input that says which tokens are real.
    pub token_mask: Option<TokenMask>,
}

/// A graph with its outputs' names.
pub struct Graph<T> {
    /// The model to run.
    pub model: Model,
    /// The names of its outputs.
    pub outputs: T,
}

impl<'a> Probes<'a> {
    /// The probes of `model`, of which nothing is pruned yet; `token_mask` says which tokens are real.
    pub fn new(
        model: &'a Model,
        seen: &'a Observation,
        discovery: &'a Discovery,
        token_mask: Option<TokenMask>,
    ) -> Self {
        let crossings = Crossings::find(&model.graph, discovery);
        let mut objective = Objective::guess(model, seen, token_mask);
        let projections = discovery.sublayers.iter().flat_map(|s| s.sites()).map(|(p, _)| p.node).collect();
        objective.find_heads(&model.graph, &projections);
        Self { model, student: model.clone(), seen: seen.clone(), discovery, crossings, objective, token_mask }
    }

    /// Moves the loss to what goes into operators that cannot be differentiated, where outputs depend on sublayers
    /// through such: a choice, a branch, an operator of another domain. Returns those operators, and why.
    ///
    /// # Errors
    /// Where there is no such value either.
    pub fn reach_outputs(&mut self) -> Result<Vec<(String, String)>, DifferentiateError> {
        let graph = &self.model.graph;
        let features = self.discovery.sublayers.iter().flat_map(|s| s.sites()).map(|(p, _)| p.features);
        let downstream = graph.descendants(features);
        let mut opaque = Vec::new();
        for &output in graph.outputs() {
            let is_float = self.seen.element(output).is_some_and(ElementType::is_float);
            if let Some((node, _)) = graph.producer(output).filter(|(n, _)| !is_float && downstream.contains(n)) {
                self.objective.look_before(graph, &self.seen, node, &downstream);
                opaque.push((graph.label(node), "what it makes is no tensor of floating-point numbers".to_string()));
            }
        }
        for _ in 0..MOST_OPAQUE {
            match self.columns(0, Criterion::default()) {
                Ok(_) => return Ok(opaque),
                Err(error) if self.objective.look_before(graph, &self.seen, error.at, &downstream) => {
                    opaque.push((error.node, error.why));
                }
                Err(error) => return Err(error),
            }
        }
        self.columns(0, Criterion::default()).map(|_| opaque)
    }

    /// Puts the projection that was decided on where the same weights are applied again downstream, or where
    /// the next sublayer runs beside this one.
    ///
    /// # Errors
    /// Where its weight is of no floating-point type.
    pub fn settle(&mut self, t: usize, tuned: &Tuned) -> Result<(), TensorError> {
        let sublayers = &self.discovery.sublayers;
        let sublayer = &sublayers[t];
        let is_beside = sublayers.get(t + 1).is_some_and(|next| next.residual.output == sublayer.residual.output);
        if sublayer.also.is_empty() && !is_beside {
            return Ok(());
        }
        write_projection(&mut self.student.graph, sublayer, tuned)?;
        self.seen.complete(&self.student.graph);
        Ok(())
    }

    fn opset(&self) -> i64 {
        self.model.opset("").unwrap_or(13)
    }

    fn name(&self, value: ValueId) -> String {
        self.model.graph.name(value).to_string()
    }

    /// The token mask is an input of the model, also where a part of the graph does not read it.
    fn restore_token_mask(&self, part: &mut Model) -> Option<TokenMask> {
        let mask = self.token_mask?;
        if !part.graph.inputs().contains(&mask.input) {
            let info = self.model.graph.info(mask.input)?.clone();
            part.graph.make_input(info);
        }
        Some(mask)
    }

    /// The tokens are an input of the model, also where a part of the graph does not read them: the one that follows is
    /// what scores of the next are right about.
    fn restore_ids(&self, part: &mut Model) {
        for compared in self.objective.outputs.iter().filter(|c| c.kind == OutputKind::NextToken) {
            let vocabulary = self.seen.dims(compared.value).and_then(|d| d.last()?.fixed());
            let ids = signature::ids(&self.model.graph, vocabulary);
            if let Some(ids) = ids.filter(|ids| !part.graph.inputs().contains(ids))
                && let Some(info) = self.model.graph.info(ids).cloned()
            {
                part.graph.make_input(info);
            }
        }
    }

    /// Whether the rows of sublayer `t`'s features follow the token mask.
    pub fn follows_token_mask(&self, t: usize) -> bool {
        let dims = self.seen.dims(self.discovery.sublayers[t].projection.features).unwrap_or_default();
        let mask = self.token_mask.and_then(|m| self.seen.dims(m.input));
        mask.is_some_and(|mask| Layout::of(&dims, &mask).is_some())
    }

    /// Rows of the features of sublayer `t` for one sample, whose named axes are as long as `at` says.
    pub fn rows_of_a_sample(&self, t: usize, at: &BTreeMap<String, f64>) -> f64 {
        flops::rows(&self.discovery.sublayers[t], &self.seen, at)
    }

    /// [`only_real`] of a value of this model.
    fn only_real(&self, emit: &mut Emit, value: ValueId, dims: &[Dim], token_mask: Option<TokenMask>) -> ValueId {
        only_real(emit, &self.seen, value, dims, token_mask)
    }
}

/// The value with the positions of padding tokens set to zero, where its axes show which those are.
pub(crate) fn only_real(
    emit: &mut Emit,
    seen: &Observation,
    value: ValueId,
    dims: &[Dim],
    token_mask: Option<TokenMask>,
) -> ValueId {
    let Some((mask, tokens)) = token_mask.and_then(|m| Some((m, seen.dims(m.input)?))) else { return value };
    let Some(layout) = Layout::of(dims, &tokens) else { return value };
    let real = emit.real(mask, ElementType::F32);
    let real = layout.arrange(emit, real, dims.len());
    emit.op("Mul", &[value, real])
}

fn add(emit: &mut Emit, sum: Option<ValueId>, term: Option<ValueId>) -> Option<ValueId> {
    match (sum, term) {
        (Some(sum), Some(term)) => Some(emit.op("Add", &[sum, term])),
        (sum, term) => sum.or(term),
    }
}

/// How the axes of a value run over samples and tokens.
enum Layout {
    /// Samples and tokens are the axes with these indices.
    Axes { samples: usize, tokens: usize },
    /// Both are folded into the first axis, samples first.
    Folded,
}

impl Layout {
    fn of(dims: &[Dim], mask: &[Dim]) -> Option<Self> {
        let &[samples, tokens] = mask else { return None };
        let leading = &dims[..dims.len().checked_sub(1)?];
        let place = |dim: Dim| leading.iter().position(|&d| d == dim);
        if let (Some(samples), Some(tokens)) = (place(samples), place(tokens)) {
            return (samples != tokens).then_some(Self::Axes { samples, tokens });
        }
        let folded = Dim([samples.0[0] * tokens.0[0], samples.0[1] * tokens.0[1]]);
        (leading == [folded]).then_some(Self::Folded)
    }

    fn arrange(&self, emit: &mut Emit, real: ValueId, rank: usize) -> ValueId {
        match self {
            Self::Axes { samples, tokens } => {
                let turned = if samples < tokens { real } else { emit.transpose(real, &[1, 0]) };
                let others: Vec<i64> = (0..rank).filter(|a| a != samples && a != tokens).map(|a| a as i64).collect();
                emit.unsqueeze(turned, &others)
            }
            Self::Folded => {
                let shape = emit.integers(&[-1, 1]);
                emit.op("Reshape", &[real, shape])
            }
        }
    }
}
