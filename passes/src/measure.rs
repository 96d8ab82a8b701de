//! Graphs that compute, inside ONNX Runtime, nothing but sums.

use crate::differentiate::{DifferentiateError, differentiate};
use crate::discover::{Discovery, Sublayer};
use crate::emit::Emit;
use crate::ir::{self, ElementType, Model, Operator, ValueId, attribute};
use crate::loss::{self, Objective};
use crate::observe::{Dim, Observation};
use crate::plan::scale_of;
use crate::signature;
use crate::suffix::{Crossings, extract, finish};

/// Name of the input that takes the teacher's residual stream.
pub const STREAM: &str = "kprune_stream";
/// Name of the input that lists the columns of the features that stay.
pub const COLUMNS: &str = "kprune_columns";
/// Name of the input that takes the weight of a region's projection, as the model stores it.
pub const WEIGHT: &str = "kprune_weight";
/// Name of the input that takes what is added to the bias of a region's projection.
pub const BIAS: &str = "kprune_bias";

/// What all measuring graphs of a model have in common.
pub struct Measuring<'a> {
    /// The model, nothing removed.
    pub model: &'a Model,
    /// Shapes and types of its values.
    pub seen: &'a Observation,
    /// Its sublayers.
    pub discovery: &'a Discovery,
    /// What crosses into every sublayer.
    pub crossings: Crossings,
    /// What the loss compares.
    pub objective: Objective,
    /// The temperature tau.
    pub temperature: f64,
    /// The input that says which tokens are real.
    pub mask: Option<ValueId>,
}

/// A graph with its outputs' names.
pub struct Graph<T> {
    /// The model to run.
    pub model: Model,
    /// The names of its outputs.
    pub outputs: T,
}

/// Sums over a batch for the units of one sublayer, one number for every column of its features.
pub struct UnitSums {
    /// Which sublayer.
    pub sublayer: usize,
    /// dL/dm: sum over samples and tokens of feature times gradient; `None` where the loss does not
    /// depend on the sublayer.
    pub gradient: Option<String>,
    /// Sum over real tokens of the squared features.
    pub energy: String,
}

/// Sums over a batch for the projection of one sublayer.
pub struct GramSums {
    /// Fa^T Fa for the kept columns and a column of ones: [kept + 1, kept + 1].
    pub gram: String,
    /// Fa^T Y: [kept + 1, outputs].
    pub cross: String,
    /// The squared norm of Y: a scalar.
    pub energy: String,
}

/// What a region gives.
pub struct RegionOutputs {
    /// The residual stream after the sublayer.
    pub stream: String,
    /// The values that cross into the next sublayer and are made in this one.
    pub crossing: Vec<String>,
}

impl<'a> Measuring<'a> {
    /// What measuring `model` needs; `mask` says which tokens are real, `temperature` is tau.
    pub fn new(
        model: &'a Model,
        seen: &'a Observation,
        discovery: &'a Discovery,
        mask: Option<ValueId>,
        temperature: f64,
    ) -> Self {
        let crossings = Crossings::find(&model.graph, discovery);
        let objective = Objective::guess(model, seen, mask);
        Self { model, seen, discovery, crossings, objective, temperature, mask }
    }

    fn opset(&self) -> i64 {
        self.model.opset("").unwrap_or(13)
    }

    fn name(&self, value: ValueId) -> String {
        self.model.graph.name(value).to_string()
    }

    /// The graph above sublayer `t`, forward and backward: mask gradients and energies of the units of
    /// `t` and of all sublayers above.
    ///
    /// Inputs: what crosses into `t`, the teacher's outputs, the number of samples.
    ///
    /// # Errors
    /// Where an operator above cannot be differentiated.
    pub fn knowledge(&self, t: usize) -> Result<Graph<Vec<UnitSums>>, DifferentiateError> {
        let above = &self.discovery.sublayers[t..];
        let outputs: Vec<ValueId> = self.objective.outputs.iter().map(|o| o.0).collect();
        let features: Vec<ValueId> = above.iter().map(|s| s.projection.features).collect();
        let wanted: Vec<ValueId> = outputs.iter().chain(&features).copied().collect();
        let mut part = extract(self.model, self.seen, self.crossings.at(t), &wanted);
        let mask = self.restore_mask(&mut part);
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let loss = loss::append(&mut emit, self.seen, &self.objective, self.temperature, mask);
        let gradients = differentiate(&mut part.graph, self.seen, self.opset(), &loss.seeds, &features)?;
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let mut sums = Vec::new();
        let mut ends = Vec::new();
        for (i, (sublayer, gradient)) in above.iter().zip(gradients).enumerate() {
            let features = sublayer.projection.features;
            let dims = self.seen.dims(features).unwrap_or_default();
            let leading: Vec<i64> = (0..dims.len() as i64 - 1).collect();
            let gradient = gradient.map(|gradient| {
                let product = emit.op("Mul", &[features, gradient]);
                emit.reduce_sum(product, &leading, false)
            });
            let real = self.only_real(&mut emit, features, &dims, mask);
            let square = emit.op("Mul", &[real, real]);
            let energy = emit.reduce_sum(square, &leading, false);
            ends.extend(gradient.into_iter().chain([energy]));
            let name = |v: ValueId| emit.graph.name(v).to_string();
            sums.push(UnitSums { sublayer: t + i, gradient: gradient.map(name), energy: name(energy) });
        }
        finish(&mut part, &ends);
        Ok(Graph { model: part, outputs: sums })
    }

    /// The graph of sublayer `t` alone: Gram matrix and cross terms that tuning needs.
    ///
    /// With the features F and the projection W of the unpruned sublayer on the student's values below,
    /// the target is Y = R_T - R_S - b, R_S the student's stream before the sublayer. What is computed is
    /// R_T minus the student's stream *after* the unpruned sublayer, plus F W: the same, without a need to
    /// know how the sublayer's output reaches the stream.
    ///
    /// Inputs: what crosses into `t`, the teacher's stream after it, the kept columns.
    ///
    /// # Errors
    /// Where the way of the sublayer's output to the stream cannot be gone back.
    pub fn gram(&self, t: usize) -> Result<Graph<GramSums>, DifferentiateError> {
        let sublayer = &self.discovery.sublayers[t];
        let projection = &sublayer.projection;
        let stream = sublayer.residual.output;
        let mut part = extract(self.model, self.seen, self.crossings.at(t), &[projection.features, stream]);
        let mask = self.restore_mask(&mut part);
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let dims = self.seen.dims(projection.features).unwrap_or_default();
        let rank = self.seen.dims(stream).map_or(0, |d| d.len());
        let teacher = emit.graph.add_input(signature::declare(STREAM, ElementType::F32, rank));
        let columns = emit.graph.add_input(signature::declare(COLUMNS, ElementType::I64, 1));

        let flat = |emit: &mut Emit, value: ValueId, width: i64| {
            let shape = emit.integers(&[-1, width]);
            emit.op("Reshape", &[value, shape])
        };
        let (width, outputs) = (projection.width as i64, projection.outputs as i64);
        let features = self.only_real(&mut emit, projection.features, &dims, mask);
        let features = flat(&mut emit, features, width);
        let gathered = Operator::new("Gather").with(attribute::int("axis", 1));
        let kept = emit.with(gathered, &[features, columns]);
        let ones = emit.number(ElementType::F32, 1.0);
        let count = emit.reduce_sum(projection.features, &[dims.len() as i64 - 1], true);
        let zeros = emit.op("Sub", &[count, count]);
        let ones = emit.op("Add", &[zeros, ones]);
        let ones = self.only_real(&mut emit, ones, &dims, mask);
        let ones = flat(&mut emit, ones, 1);
        let kept = emit.with(Operator::new("Concat").with(attribute::int("axis", 1)), &[kept, ones]);

        let weight = match projection.transposed {
            true => emit.transpose(projection.weight, &[1, 0]),
            false => projection.weight,
        };
        let output = emit.op("MatMul", &[features, weight]);
        let missing = emit.op("Sub", &[teacher, stream]);
        let missing = self.before_path(&mut part.graph, sublayer, missing)?;
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let missing = self.only_real(&mut emit, missing, &dims, mask);
        let missing = flat(&mut emit, missing, outputs);
        let target = emit.op("Add", &[missing, output]);

        let turned = emit.transpose(kept, &[1, 0]);
        let gram = emit.op("MatMul", &[turned, kept]);
        let cross = emit.op("MatMul", &[turned, target]);
        let square = emit.op("Mul", &[target, target]);
        let energy = emit.reduce_sum(square, &[0, 1], false);
        let name = |v: ValueId| emit.graph.name(v).to_string();
        let outputs = GramSums { gram: name(gram), cross: name(cross), energy: name(energy) };
        finish(&mut part, &[gram, cross, energy]);
        Ok(Graph { model: part, outputs })
    }

    /// What the sublayer's projection would have to give for `missing` to reach the stream.
    ///
    /// The way between the two scales every output by a factor and rearranges: a linear map whose inverse
    /// is its transpose, and so its gradient, over the square of the factors.
    fn before_path(
        &self,
        graph: &mut ir::Graph,
        sublayer: &Sublayer,
        missing: ValueId,
    ) -> Result<ValueId, DifferentiateError> {
        let wanted = graph.operator(sublayer.projection.node).output(0).into_iter().collect::<Vec<_>>();
        let seeds = [(sublayer.residual.output, missing)];
        let back = differentiate(graph, self.seen, self.opset(), &seeds, &wanted)?;
        let back = back.into_iter().flatten().next().unwrap_or(missing);
        let Some(scale) = scale_of(&self.model.graph, sublayer) else { return Ok(back) };
        // An output that is scaled to nothing cannot repair anything.
        let inverse = scale.mapv(|s| if s == 0.0 { 0.0 } else { 1.0 / (s * s) });
        let mut emit = Emit::new(graph, self.opset(), "measure");
        let inverse = emit.array(ElementType::F32, &inverse.into_dyn());
        Ok(emit.op("Mul", &[back, inverse]))
    }

    /// The graph of sublayer `t` alone, with its projection as an input: from what crosses into `t` to
    /// what crosses into the next, for the teacher as for the student.
    pub fn region(&self, t: usize) -> Graph<RegionOutputs> {
        let sublayer = &self.discovery.sublayers[t];
        let projection = &sublayer.projection;
        let stream = sublayer.residual.output;
        let into: Vec<ValueId> = self.crossings.at(t).to_vec();
        let is_new = |v: &&ValueId| !into.contains(v) && self.model.graph.producer(**v).is_some();
        let next: Vec<ValueId> = self.crossings.at(t + 1).iter().filter(is_new).copied().collect();
        let mut ends = next.clone();
        if !ends.contains(&stream) {
            ends.push(stream);
        }
        let mut part = extract(self.model, self.seen, &into, &ends);
        let element = self.seen.element(projection.weight).unwrap_or(ElementType::F32);
        let weight = part.graph.add_input(signature::declare(WEIGHT, element, 2));
        let bias = part.graph.add_input(signature::declare(BIAS, element, 1));
        part.graph.set_input(projection.node, projection.weight_slot, Some(weight));
        if let Some(output) = part.graph.operator(projection.node).output(0) {
            part.graph.add_behind(output, Operator::new("Add"), bias, "measure_biased");
        }
        finish(&mut part, &ends);
        let crossing = next.into_iter().map(|v| self.name(v)).collect();
        Graph { model: part, outputs: RegionOutputs { stream: self.name(stream), crossing } }
    }

    /// The mask is an input of the model, also where the part of the graph above does not read it.
    fn restore_mask(&self, part: &mut Model) -> Option<ValueId> {
        let mask = self.mask?;
        if !part.graph.inputs().contains(&mask) {
            let info = self.model.graph.info(mask)?.clone();
            part.graph.make_input(info);
        }
        Some(mask)
    }

    /// The value with the positions of padding tokens set to zero, where its axes show which those are.
    fn only_real(&self, emit: &mut Emit, value: ValueId, dims: &[Dim], mask: Option<ValueId>) -> ValueId {
        let Some((mask, tokens)) = mask.and_then(|m| Some((m, self.seen.dims(m)?))) else { return value };
        let Some(layout) = Layout::of(dims, &tokens) else { return value };
        let real = emit.cast(mask, ElementType::F32);
        let real = layout.arrange(emit, real, dims.len());
        emit.op("Mul", &[value, real])
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
