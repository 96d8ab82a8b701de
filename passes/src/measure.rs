//! Graphs that compute, inside ONNX Runtime, nothing but sums.

use crate::differentiate::{DifferentiateError, differentiate};
use crate::discover::{Discovery, Projection, Residual};
use crate::emit::Emit;
use crate::ir::{self, ElementType, Model, Operator, TensorError, ValueId, attribute};
use crate::loss::{self, Objective};
use crate::observe::{Dim, Observation};
use crate::plan::{Tuned, scale_of, write_projection};
use crate::signature;
use crate::suffix::{Crossings, extract, finish};

/// How many operators that cannot be differentiated the loss is moved before.
const MOST_OPAQUE: usize = 64;

/// Name of the input that lists the columns of the features that stay.
pub const COLUMNS: &str = "kprune_columns";
/// Name of the input that takes the weight of a region's projection, as the model stores it.
pub const WEIGHT: &str = "kprune_weight";
/// Name of the input that takes what is added to the bias of a region's projection.
pub const BIAS: &str = "kprune_bias";

/// Name of the input that takes the teacher's residual stream after the place with this number where the
/// sublayer's weights are applied.
pub fn stream_input(site: usize) -> String {
    format!("kprune_stream_{site}")
}

/// What all measuring graphs of a model have in common.
pub struct Measuring<'a> {
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
    /// The residual stream after the sublayer, and after every other place where its weights are applied.
    pub streams: Vec<String>,
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
        Self { model, student: model.clone(), seen: seen.clone(), discovery, crossings, objective, temperature, mask }
    }

    /// Moves the loss to what goes into operators that cannot be differentiated, where outputs depend on
    /// sublayers through such: a choice, a branch, an operator of another domain.
    ///
    /// # Errors
    /// Where there is no such value either.
    pub fn reach_outputs(&mut self) -> Result<(), DifferentiateError> {
        let graph = &self.model.graph;
        let features = self.discovery.sublayers.iter().flat_map(|s| s.sites()).map(|(p, _)| p.features);
        let below = graph.descendants(features);
        for &output in graph.outputs() {
            let is_float = self.seen.element(output).is_some_and(ElementType::is_float);
            if let Some((node, _)) = graph.producer(output).filter(|(n, _)| !is_float && below.contains(n)) {
                self.objective.look_before(graph, &self.seen, node, &below);
            }
        }
        for _ in 0..MOST_OPAQUE {
            match self.knowledge(0) {
                Ok(_) => return Ok(()),
                Err(error) if self.objective.look_before(graph, &self.seen, error.at, &below) => {}
                Err(error) => return Err(error),
            }
        }
        self.knowledge(0).map(|_| ())
    }

    /// Puts the projection that was decided on where the same weights are applied again further up, or where
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
        let features: Vec<ValueId> = above.iter().flat_map(|s| s.sites()).map(|(p, _)| p.features).collect();
        let wanted: Vec<ValueId> = outputs.iter().chain(&features).copied().collect();
        let mut part = extract(&self.student, &self.seen, self.crossings.at(t), &wanted);
        let mask = self.restore_mask(&mut part);
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let loss = loss::append(&mut emit, &self.seen, &self.objective, self.temperature, mask);
        let gradients = differentiate(&mut part.graph, &self.seen, self.opset(), &loss.seeds, &features)?;
        let mut gradients = gradients.into_iter();
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let mut sums = Vec::new();
        let mut ends = Vec::new();
        for (i, sublayer) in above.iter().enumerate() {
            // One mask for every place where the weights are applied: the gradients add up.
            let (mut gradient, mut energy) = (None, None);
            for ((projection, _), g) in sublayer.sites().zip(gradients.by_ref()) {
                let [g, e] = self.unit_sums(&mut emit, projection.features, g, mask);
                gradient = add(&mut emit, gradient, g);
                energy = add(&mut emit, energy, e);
            }
            ends.extend(gradient.into_iter().chain(energy));
            let name = |v: ValueId| emit.graph.name(v).to_string();
            sums.push(UnitSums {
                sublayer: t + i,
                gradient: gradient.map(name),
                energy: energy.map(name).unwrap_or_default(),
            });
        }
        finish(&mut part, &ends);
        Ok(Graph { model: part, outputs: sums })
    }

    /// Feature times gradient and squared features, one sum for every column.
    fn unit_sums(
        &self,
        emit: &mut Emit,
        features: ValueId,
        gradient: Option<ValueId>,
        mask: Option<ValueId>,
    ) -> [Option<ValueId>; 2] {
        let dims = self.seen.dims(features).unwrap_or_default();
        let leading: Vec<i64> = (0..dims.len() as i64 - 1).collect();
        let gradient = gradient.map(|gradient| {
            let product = emit.op("Mul", &[features, gradient]);
            emit.reduce_sum(product, &leading, false)
        });
        let real = self.only_real(emit, features, &dims, mask);
        let square = emit.op("Mul", &[real, real]);
        [gradient, Some(emit.reduce_sum(square, &leading, false))]
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
        let wanted: Vec<ValueId> = sublayer.sites().flat_map(|(p, r)| [p.features, r.output]).collect();
        let mut part = extract(&self.student, &self.seen, self.crossings.at(t), &wanted);
        let mask = self.restore_mask(&mut part);
        let columns = part.graph.add_input(signature::declare(COLUMNS, ElementType::I64, 1));
        let (mut gram, mut cross, mut energy) = (None, None, None);
        for (site, (projection, residual)) in sublayer.sites().enumerate() {
            let kept = self.kept_features(&mut part.graph, projection, columns, mask);
            let target = self.target(&mut part.graph, site, projection, residual, mask)?;
            let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
            let turned = emit.transpose(kept, &[1, 0]);
            let (g, c) = (emit.op("MatMul", &[turned, kept]), emit.op("MatMul", &[turned, target]));
            let square = emit.op("Mul", &[target, target]);
            let e = emit.reduce_sum(square, &[0, 1], false);
            gram = add(&mut emit, gram, Some(g));
            cross = add(&mut emit, cross, Some(c));
            energy = add(&mut emit, energy, Some(e));
        }
        let ends: Vec<ValueId> = [gram, cross, energy].into_iter().flatten().collect();
        let name = |v: Option<ValueId>| v.map(|v| part.graph.name(v).to_string()).unwrap_or_default();
        let outputs = GramSums { gram: name(gram), cross: name(cross), energy: name(energy) };
        finish(&mut part, &ends);
        Ok(Graph { model: part, outputs })
    }

    /// The kept columns of a projection's features and a column of ones, one row for every token; rows of
    /// padding are zero.
    fn kept_features(
        &self,
        graph: &mut ir::Graph,
        projection: &Projection,
        columns: ValueId,
        mask: Option<ValueId>,
    ) -> ValueId {
        let mut emit = Emit::new(graph, self.opset(), "measure");
        let dims = self.seen.dims(projection.features).unwrap_or_default();
        let features = self.rows(&mut emit, projection.features, &dims, projection.width, mask);
        let gathered = Operator::new("Gather").with(attribute::int("axis", 1));
        let kept = emit.with(gathered, &[features, columns]);
        let one = emit.number(ElementType::F32, 1.0);
        let count = emit.reduce_sum(projection.features, &[dims.len() as i64 - 1], true);
        let zeros = emit.op("Sub", &[count, count]);
        let ones = emit.op("Add", &[zeros, one]);
        let ones = self.rows(&mut emit, ones, &dims, 1, mask);
        emit.with(Operator::new("Concat").with(attribute::int("axis", 1)), &[kept, ones])
    }

    /// What the tuned projection should give, one row for every token; rows of padding are zero.
    fn target(
        &self,
        graph: &mut ir::Graph,
        site: usize,
        projection: &Projection,
        residual: &Residual,
        mask: Option<ValueId>,
    ) -> Result<ValueId, DifferentiateError> {
        let mut emit = Emit::new(graph, self.opset(), "measure");
        let dims = self.seen.dims(projection.features).unwrap_or_default();
        let rank = self.seen.dims(residual.output).map_or(0, |d| d.len());
        let teacher = emit.graph.add_input(signature::declare(&stream_input(site), ElementType::F32, rank));
        let missing = emit.op("Sub", &[teacher, residual.output]);
        let missing = self.before_path(graph, projection, residual, missing)?;
        let mut emit = Emit::new(graph, self.opset(), "measure");
        let missing = self.rows(&mut emit, missing, &dims, projection.outputs, mask);
        let features = self.rows(&mut emit, projection.features, &dims, projection.width, mask);
        let weight = match projection.transposed {
            true => emit.transpose(projection.weight, &[1, 0]),
            false => projection.weight,
        };
        let output = emit.op("MatMul", &[features, weight]);
        Ok(emit.op("Add", &[missing, output]))
    }

    /// A value with leading dimensions like `dims` as a matrix, one row for every token.
    fn rows(&self, emit: &mut Emit, value: ValueId, dims: &[Dim], width: usize, mask: Option<ValueId>) -> ValueId {
        let real = self.only_real(emit, value, dims, mask);
        let shape = emit.integers(&[-1, width as i64]);
        emit.op("Reshape", &[real, shape])
    }

    /// What the sublayer's projection would have to give for `missing` to reach the stream.
    ///
    /// The way between the two scales every output by a factor and rearranges: a linear map whose inverse
    /// is its transpose, and so its gradient, over the square of the factors.
    fn before_path(
        &self,
        graph: &mut ir::Graph,
        projection: &Projection,
        residual: &Residual,
        missing: ValueId,
    ) -> Result<ValueId, DifferentiateError> {
        let wanted = graph.operator(projection.node).output(0).into_iter().collect::<Vec<_>>();
        let seeds = [(residual.output, missing)];
        let back = differentiate(graph, &self.seen, self.opset(), &seeds, &wanted)?;
        let back = back.into_iter().flatten().next().unwrap_or(missing);
        let Some(scale) = scale_of(&self.model.graph, projection, residual) else { return Ok(back) };
        // An output that is scaled to nothing cannot repair anything.
        let inverse = scale.mapv(|s| if s == 0.0 { 0.0 } else { 1.0 / (s * s) });
        let mut emit = Emit::new(graph, self.opset(), "measure");
        let inverse = emit.array(ElementType::F32, &inverse.into_dyn());
        Ok(emit.op("Mul", &[back, inverse]))
    }

    /// The graph of sublayer `t` alone, with its projection as an input: from what crosses into `t` to
    /// what crosses into the next, for the teacher as for the student.
    ///
    /// For the teacher it also gives the streams after every other place where the weights are applied.
    pub fn region(&self, t: usize, is_teacher: bool) -> Graph<RegionOutputs> {
        let sublayer = &self.discovery.sublayers[t];
        let projection = &sublayer.projection;
        let into: Vec<ValueId> = self.crossings.at(t).to_vec();
        let is_new = |v: &&ValueId| !into.contains(v) && self.model.graph.producer(**v).is_some();
        let next: Vec<ValueId> = self.crossings.at(t + 1).iter().filter(is_new).copied().collect();
        let sites = if is_teacher { sublayer.also.len() + 1 } else { 1 };
        let streams: Vec<ValueId> = sublayer.sites().map(|(_, r)| r.output).take(sites).collect();
        let mut ends = next.clone();
        ends.extend(streams.iter().filter(|v| !next.contains(v)));
        let whole = if is_teacher { self.model } else { &self.student };
        let mut part = extract(whole, &self.seen, &into, &ends);
        let element = self.seen.element(projection.weight).unwrap_or(ElementType::F32);
        let weight = part.graph.add_input(signature::declare(WEIGHT, element, 2));
        let bias = part.graph.add_input(signature::declare(BIAS, element, 1));
        part.graph.set_input(projection.node, projection.weight_slot, Some(weight));
        if let Some(output) = part.graph.operator(projection.node).output(0) {
            part.graph.add_behind(output, Operator::new("Add"), bias, "measure_biased");
        }
        finish(&mut part, &ends);
        let crossing = next.into_iter().map(|v| self.name(v)).collect();
        let streams = streams.into_iter().map(|v| self.name(v)).collect();
        Graph { model: part, outputs: RegionOutputs { streams, crossing } }
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
