//! Gram matrix and cross terms: the normal equations that a projection is solved from.

use std::collections::{HashMap, HashSet};

use super::sums::{Adding, AddingGram, Gram, Sum};
use super::{Graph, Probes, add};
use crate::calculus::TokenMask;
use crate::calculus::differentiate::{DifferentiateError, differentiate};
use crate::calculus::emit::Emit;
use crate::discover::provenance::Channel;
use crate::discover::{Projection, Residual};
use crate::ir::{self, ElementType, Model, Operator, ValueId, attribute};
use crate::observe::Dim;
use crate::plan::{Plan, scale_of};
use crate::probe::suffix::{extract, finish};
use crate::remove::remove;
use crate::signature;

/// Name of the input that lists the columns of the features that stay, where not only those are there.
pub const COLUMNS: &str = "kprune_columns";

/// Name of the input that takes the teacher's residual stream after the place with this number where the
/// sublayer's weights are applied.
pub fn stream_input(site: usize) -> String {
    format!("kprune_stream_{site}")
}

/// What the graph of the normal equations gives.
pub struct EquationOutputs {
    /// Fa^T Fa for the kept columns and a column of ones: [kept + 1, kept + 1].
    pub gram: Gram,
    /// Fa^T Y: [kept + 1, outputs].
    pub cross: Sum,
    /// The squared norm of this batch's Y, for every output: `[outputs]`.
    pub energy: String,
    /// The kept columns of the features and a column of ones, for all tokens, at the first place where the
    /// weights are applied; `None` where nothing that crosses into the next sublayer depends on them.
    pub features: Option<String>,
}

impl Probes<'_> {
    /// The graph of sublayer `t` alone: the kept features, and their Gram matrix and cross terms. To have those of all
    /// columns before anything is chosen, keep all.
    ///
    /// The target is Y = R_T - R_S - b, R_S the student's stream before the sublayer. What is subtracted
    /// from R_T is the stream after a projection that gives nothing: the same, without a need to know how
    /// the sublayer's output reaches the stream.
    ///
    /// Units that do not stay are cut out of the graph first, where that can be done; else their columns are
    /// left out of the features.
    ///
    /// Inputs: what crosses into `t`, the teacher's stream after it, the sums so far; where nothing could be cut
    /// out, the kept columns.
    ///
    /// # Errors
    /// Where the way of the sublayer's output to the stream cannot be gone back.
    pub fn equations(&self, t: usize, keep: &[bool]) -> Result<Graph<EquationOutputs>, DifferentiateError> {
        let sublayer = &self.discovery.sublayers[t];
        let wanted: Vec<ValueId> = sublayer.sites().flat_map(|(p, r)| [p.features, r.output]).collect();
        let part = extract(&self.student, &self.seen, self.crossings.at(t), &wanted);
        let cut = self.cut(&part, t, keep);
        let is_cut = cut.is_some();
        let mut part = cut.unwrap_or(part);
        let token_mask = self.restore_token_mask(&mut part);
        let columns = (!is_cut).then(|| part.graph.add_input(signature::declare(COLUMNS, ElementType::I64, 1)));
        let kept = sublayer.columns(keep).len() + 1;
        let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let mut gram = AddingGram::new(&mut emit, "kprune_gram", kept);
        let mut cross = Adding::new(&mut emit, "kprune_cross", [kept, sublayer.projection.outputs]);
        let (mut energy, mut features) = (None, None);
        for (site, (projection, residual)) in sublayer.sites().enumerate() {
            let [kept, rows] = self.kept_features(&mut part.graph, projection, columns, token_mask);
            let target = self.target(&mut part.graph, site, projection, residual, token_mask)?;
            let mut emit = Emit::new(&mut part.graph, self.opset(), "measure");
            gram.add(&mut emit, rows);
            cross.add(&mut emit, rows, target);
            let square = emit.op("Mul", &[target, target]);
            let norm = emit.reduce_sum(square, &[0], false);
            energy = add(&mut emit, energy, Some(norm));
            features = features.or(Some(kept));
        }
        let features = features.filter(|_| self.feeds_next(t));
        let emit = Emit::new(&mut part.graph, self.opset(), "measure");
        let ((gram, mut ends), (cross, last)) = (gram.finish(&emit), cross.finish(&emit));
        ends.extend([Some(last), energy, features].into_iter().flatten());
        let name = |v: ValueId| part.graph.name(v).to_string();
        let (energy, features) = (energy.map(name).unwrap_or_default(), features.map(name));
        let outputs = EquationOutputs { gram, cross, energy, features };
        finish(&mut part, &ends);
        Ok(Graph { model: part, outputs })
    }

    /// A part of the graph without the units of sublayer `t` that do not stay; `None` where none does, or where
    /// they cannot be cut out of this part alone, because they come into it from upstream.
    fn cut(&self, part: &Model, t: usize, keep: &[bool]) -> Option<Model> {
        let provenance = &self.discovery.provenance;
        let units = self.discovery.sublayers[t].units.iter().zip(keep);
        let gone: HashSet<Channel> = units.filter(|(_, keep)| !**keep).map(|(unit, _)| unit.class).collect();
        let planes = self.crossings.at(t).iter().flat_map(|&value| provenance.planes(value));
        let comes_from_upstream = planes.flat_map(|p| p.0.iter()).any(|&c| gone.contains(&provenance.channels.find(c)));
        if comes_from_upstream || !keep.contains(&true) {
            return None;
        }
        let mut plan = Plan::untouched(&self.discovery.sublayers);
        plan.decisions[t].keep = keep.to_vec();
        remove(part, self.discovery, &self.seen, &plan).ok()
    }

    /// The kept columns of a projection's features with a column of ones; and the same, one row for every
    /// token, where rows of padding are zero.
    pub(super) fn kept_features(
        &self,
        graph: &mut ir::Graph,
        projection: &Projection,
        columns: Option<ValueId>,
        token_mask: Option<TokenMask>,
    ) -> [ValueId; 2] {
        let features = graph.operator(projection.node).input(projection.features_slot).unwrap_or(projection.features);
        let mut emit = Emit::new(graph, self.opset(), "measure");
        let dims = self.seen.dims(projection.features).unwrap_or_default();
        let last = dims.len() as i64 - 1;
        let gathered = Operator::new("Gather").with(attribute::int("axis", last));
        let kept = columns.map_or(features, |columns| emit.with(gathered, &[features, columns]));
        let one = self.filled(&mut emit, features, dims.len(), 1, 1.0);
        let joined = emit.with(Operator::new("Concat").with(attribute::int("axis", last)), &[kept, one]);
        let real = self.only_real(&mut emit, joined, &dims, token_mask);
        let width = emit.length(real, dims.len() - 1);
        let all = emit.integers(&[-1]);
        let shape = emit.with(Operator::new("Concat").with(attribute::int("axis", 0)), &[all, width]);
        [joined, emit.op("Reshape", &[real, shape])]
    }

    /// A value of leading dimensions like those of `like`, of rank `rank`, the last axis `width` long.
    fn filled(&self, emit: &mut Emit, like: ValueId, rank: usize, width: usize, value: f64) -> ValueId {
        let shape = emit.op("Shape", &[like]);
        let places: Vec<i64> = (0..rank as i64 - 1).collect();
        let places = emit.integers(&places);
        let leading = emit.with(Operator::new("Gather").with(attribute::int("axis", 0)), &[shape, places]);
        let width = emit.integers(&[width as i64]);
        let shape = emit.with(Operator::new("Concat").with(attribute::int("axis", 0)), &[leading, width]);
        let value = emit.number(ElementType::F32, value);
        emit.op("Expand", &[value, shape])
    }

    /// What the tuned projection should give, one row for every token; rows of padding are zero.
    fn target(
        &self,
        graph: &mut ir::Graph,
        site: usize,
        projection: &Projection,
        residual: &Residual,
        token_mask: Option<TokenMask>,
    ) -> Result<ValueId, DifferentiateError> {
        let without = self.stream_without(graph, projection, residual);
        let mut emit = Emit::new(graph, self.opset(), "measure");
        let dims = self.seen.dims(projection.features).unwrap_or_default();
        let rank = self.seen.dims(residual.output).map_or(0, |d| d.len());
        let teacher = emit.graph.add_input(signature::declare(&stream_input(site), ElementType::F32, rank));
        let missing = emit.op("Sub", &[teacher, without]);
        let missing = self.before_path(graph, projection, residual, missing)?;
        let mut emit = Emit::new(graph, self.opset(), "measure");
        Ok(self.rows(&mut emit, missing, &dims, projection.outputs, token_mask))
    }

    /// The stream after a sublayer whose projection gives nothing: its path gone along once more.
    fn stream_without(&self, graph: &mut ir::Graph, projection: &Projection, residual: &Residual) -> ValueId {
        let Some(output) = graph.operator(projection.node).output(0) else { return residual.output };
        let rank = self.seen.dims(output).map_or(0, |d| d.len());
        let mut emit = Emit::new(graph, self.opset(), "measure");
        let mut nothing = self.filled(&mut emit, projection.features, rank, projection.outputs, 0.0);
        if let Some(bias) = emit.graph.operator(projection.node).input(2) {
            nothing = emit.op("Add", &[nothing, bias]);
        }
        let mut instead = HashMap::from([(output, nothing)]);
        for &node in &residual.path {
            let made = emit.graph.add_copy(node, |v| instead.get(&v).copied().unwrap_or(v));
            let old = emit.graph.operator(node).outputs().iter().flatten();
            instead.extend(old.copied().zip(made));
        }
        instead.get(&residual.output).copied().unwrap_or(nothing)
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

    /// A value with leading dimensions like `dims` as a matrix, one row for every token.
    pub(super) fn rows(
        &self,
        emit: &mut Emit,
        value: ValueId,
        dims: &[Dim],
        width: usize,
        token_mask: Option<TokenMask>,
    ) -> ValueId {
        let real = self.only_real(emit, value, dims, token_mask);
        let shape = emit.integers(&[-1, width as i64]);
        emit.op("Reshape", &[real, shape])
    }
}
