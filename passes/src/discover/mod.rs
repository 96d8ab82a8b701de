//! What can be removed: units, grouped into sublayers.

pub mod blocks;
pub mod cost;
pub mod flops;
pub mod provenance;
mod residual;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

pub use residual::Residual;

use crate::ir::{Graph, NodeId, ValueId};
use crate::kv_cache::{self, Joined};
use crate::observe::Observation;
use provenance::{Channel, Contraction, Provenance};

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An attention head: its channels take part in a product of two activations.
    Head,
    /// A neuron of a feed-forward network, gated or not.
    Neuron,
}

/// Channels that can only go together.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The channel that stands for the class.
    pub class: Channel,
    /// The columns of the features, and rows of the projection, that belong to the unit.
    pub columns: Vec<usize>,
    /// How many heads it is: several where they share keys and values (grouped-query attention), else one.
    pub members: usize,
    /// Multiply-adds, counted as two operations, that its channels take part in, for one sample.
    pub flops: f64,
    /// Parameters that go with it.
    pub parameters: usize,
}

/// The matrix product that ends a sublayer.
#[derive(Clone, Debug)]
pub struct Projection {
    /// The operator, a `MatMul` or `Gemm`.
    pub node: NodeId,
    /// The input slot of the features.
    pub features_slot: usize,
    /// The features, whose last axis holds the columns.
    pub features: ValueId,
    /// The input slot of the weight.
    pub weight_slot: usize,
    /// The weight.
    pub weight: ValueId,
    /// Whether the weight is stored with its columns first.
    pub transposed: bool,
    /// Number of columns of the features.
    pub width: usize,
    /// Number of columns of the weight: the width of the stream.
    pub outputs: usize,
}

/// Units that end in the same projection.
#[derive(Clone, Debug)]
pub struct Sublayer {
    /// The projection's name in the file.
    pub name: String,
    /// What its units are.
    pub kind: Kind,
    /// Where the units end.
    pub projection: Projection,
    /// Where the projection joins the stream.
    pub residual: Residual,
    /// Where else the model applies the same weights.
    pub also: Vec<Site>,
    /// The units, in the order of their columns.
    pub units: Vec<Unit>,
    /// Whether its units are the heads of a key/value cache, which is an input and an output of the model.
    pub has_cache: bool,
}

/// A place where the weights of a sublayer are applied.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where the units end.
    pub projection: Projection,
    /// Where the projection joins the stream.
    pub residual: Residual,
}

impl Sublayer {
    /// All places where the sublayer's weights are applied, from input to output.
    pub fn sites(&self) -> impl Iterator<Item = (&Projection, &Residual)> {
        let first = std::iter::once((&self.projection, &self.residual));
        first.chain(self.also.iter().map(|s| (&s.projection, &s.residual)))
    }

    /// Whether nothing has to be left of the sublayer but its bias: wherever it is applied, it is added to
    /// the stream as it is, and nobody waits for its cache.
    pub fn can_go_whole(&self) -> bool {
        !self.has_cache && self.sites().all(|(_, residual)| residual.joint.is_some())
    }

    /// The columns of the features that belong to the units that `keep` says to stay, in ascending order.
    pub fn columns(&self, keep: &[bool]) -> Vec<usize> {
        let kept = self.units.iter().zip(keep).filter(|(_, keep)| **keep);
        let mut columns: Vec<usize> = kept.flat_map(|(unit, _)| unit.columns.iter().copied()).collect();
        columns.sort_unstable();
        columns
    }

    /// FLOPs of all units, for one sample.
    pub fn flops(&self) -> f64 {
        self.units.iter().map(|u| u.flops).sum::<f64>() + 0.0
    }
}

/// Channels that cannot be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declined {
    /// The projection at which they end.
    pub place: String,
    /// Number of channels; 0 where they were not looked at.
    pub channels: usize,
    /// Why they stay.
    pub why: String,
}

/// The units of a model.
#[derive(Debug)]
pub struct Discovery {
    /// Where every channel comes from and goes to.
    pub provenance: Provenance,
    /// The sublayers from input to output.
    pub sublayers: Vec<Sublayer>,
    /// What was looked at and declined.
    pub declined: Vec<Declined>,
}

impl Discovery {
    /// Finds out which sublayers' heads are those of key/value caches of `graph`, the model as it is written. Returns
    /// whether every cache is of a sublayer.
    pub fn find_caches(&mut self, graph: &Graph) -> bool {
        let mut are_all = true;
        for cache in kv_cache::caches(graph) {
            let Some(Joined { fresh, axis, .. }) = cache.joined(graph) else {
                are_all = false;
                continue;
            };
            let planes = self.provenance.planes(fresh).iter().filter(|plane| plane.varies(axis));
            let channels = planes.flat_map(|plane| plane.0.iter().copied());
            let classes: HashSet<Channel> = channels.map(|c| self.provenance.channels.find(c)).collect();
            let is_own = |sublayer: &Sublayer| sublayer.units.iter().any(|unit| classes.contains(&unit.class));
            let own = self.sublayers.iter_mut().filter(|sublayer| is_own(sublayer));
            are_all &= own.map(|sublayer| sublayer.has_cache = true).count() > 0;
        }
        are_all
    }

    /// Offers no heads of caches: where one attention keeps all of its heads, all do that keep equally many.
    pub fn leave_caches(&mut self) {
        let (cached, others) = std::mem::take(&mut self.sublayers).into_iter().partition(|s| s.has_cache);
        self.sublayers = others;
        let why = "another attention keeps all of its heads, and caches are to have equally many; --uneven-heads";
        let declined = |s: Sublayer| Declined { place: s.name, channels: s.projection.width, why: why.into() };
        self.declined.extend(Vec::into_iter(cached).map(declined));
    }
}

/// Which units are offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// Heads and neurons of sublayers that are added to a residual stream.
    #[default]
    Transformer,
    /// Whatever ends in a matrix product: neurons of poolers and classifiers, channels before a flat layer.
    All,
}

/// Why the features of a product carry no channels: the operator upstream where channels end.
fn untracked(graph: &Graph, provenance: &Provenance, product: NodeId) -> String {
    let operator = graph.operator(product);
    if operator.input(1).and_then(|w| graph.constant(w)).is_some_and(|t| t.dims().len() > 2) {
        return "its weight is a stack of matrices, such as of experts, for which there is no rule".into();
    }
    let reasons = provenance.channels.reasons();
    let mut values: Vec<ValueId> = operator.input(0).into_iter().collect();
    let mut visited = HashSet::new();
    while let Some(value) = values.pop() {
        let Some((node, _)) = graph.producer(value).filter(|_| visited.insert(value)) else { continue };
        let label = graph.label(node);
        if let Some(reason) = reasons.iter().find(|r| r.place == label) {
            return format!("the channels of its features end at {label}, which {}", reason.why);
        }
        if !provenance.planes(value).is_empty() {
            return format!("channels lie on several axes of what {label} makes");
        }
        let inputs: Vec<ValueId> = graph.operator(node).inputs().iter().flatten().copied().collect();
        if inputs.iter().any(|&v| graph.constant(v).is_none() && !provenance.planes(v).is_empty()) {
            return format!("the channels of its features end at {label}");
        }
        values.extend(inputs);
    }
    "its features do not come from a weight".to_string()
}

/// Operators with products in their subgraphs, where nothing is looked for.
fn bodies(graph: &Graph) -> Vec<Declined> {
    fn products(graph: &crate::ir::schema::GraphProto) -> usize {
        let own = graph.node.iter().filter(|n| matches!(n.op_type.as_deref(), Some("MatMul" | "Gemm"))).count();
        let inner = graph.node.iter().flat_map(|n| &n.attribute).flat_map(|a| a.g.iter().chain(&a.graphs));
        own + inner.map(products).sum::<usize>()
    }
    let found = graph.sorted().into_iter().filter_map(|node| {
        let bodies = graph.operator(node).attributes.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
        let count: usize = bodies.map(products).sum();
        let why = format!(
            "the {count} matrix products in its subgraphs are not looked at; export its branches as models of their own \
             (optimum-cli: --no-post-process)"
        );
        (count > 0).then(|| Declined { place: graph.label(node), channels: 0, why })
    });
    found.collect()
}

/// Finds the units of the transformer sublayers of `graph`; `at` gives the lengths of the inputs' named
/// axes that FLOPs are counted for.
pub fn discover(graph: &Graph, seen: &Observation, at: &BTreeMap<String, f64>) -> Discovery {
    discover_units(graph, seen, at, Scope::Transformer)
}

/// Finds the units of `graph` that `scope` offers.
pub fn discover_units(graph: &Graph, seen: &Observation, at: &BTreeMap<String, f64>, scope: Scope) -> Discovery {
    let provenance = Provenance::trace(graph, seen);
    let mut ends: BTreeMap<Channel, BTreeSet<usize>> = BTreeMap::new();
    for (i, contraction) in provenance.contractions.iter().enumerate() {
        for &row in &contraction.rows {
            ends.entry(provenance.channels.find(row)).or_default().insert(i);
        }
    }
    let position = graph.sorted().into_iter().enumerate().map(|(i, n)| (n, i)).collect();
    let heads = heads(graph, seen, &provenance);
    let finder = Finder { graph, seen, provenance: &provenance, ends: &ends, heads, position, scope };
    let mut sublayers = Vec::new();
    let mut declined = Vec::new();
    for &(node, channels) in &provenance.untracked {
        let why = untracked(graph, &provenance, node);
        declined.push(Declined { place: graph.label(node), channels, why });
    }
    declined.extend(bodies(graph));
    let mut reported = HashSet::new();
    for i in 0..provenance.contractions.len() {
        let classes = finder.classes(i);
        match finder.sublayer(i, &classes) {
            Ok(found) => sublayers.extend(found),
            Err(why) if reported.insert(classes) => declined.push(finder.declined(i, why)),
            Err(_) => {}
        }
    }
    let place = |s: &Sublayer| graph.producer(s.residual.output).map(|(node, _)| finder.position[&node]);
    sublayers.sort_by_key(place);
    let costs = Costs::count(graph, seen, &provenance, at);
    for unit in sublayers.iter_mut().flat_map(|s| &mut s.units) {
        unit.flops = costs.flops.get(&unit.class).copied().unwrap_or(0.0);
        unit.parameters = costs.parameters.get(&unit.class).copied().unwrap_or(0.0).round() as usize;
    }
    Discovery { provenance, sublayers, declined }
}

/// Classes whose channels take part in a product of two activations, and how many heads each is: so many places it has
/// among the matrices that are multiplied, where nothing within them tells it apart, as in the attention's shares.
fn heads(graph: &Graph, seen: &Observation, provenance: &Provenance) -> HashMap<Channel, usize> {
    let slots = provenance.products.iter().flat_map(|&node| [(node, 0), (node, 1)]);
    let planes = slots.flat_map(|(node, slot)| {
        let dims = graph.operator(node).input(slot).and_then(|v| seen.dims(v)).unwrap_or_default();
        provenance.planes_at(graph, node, slot).iter().map(move |plane| (plane, dims.clone()))
    });
    let mut heads: HashMap<Channel, usize> = HashMap::new();
    for (plane, dims) in planes {
        // Where samples lie on the same axis, a head has a place for each.
        let is_fixed = |axis: usize| dims.get(axis).is_some_and(|d| d.fixed().is_some());
        let is_of_matrices = plane.axes().iter().all(|&axis| axis + 2 < plane.0.ndim() && is_fixed(axis));
        let mut places: HashMap<Channel, usize> = HashMap::new();
        plane.0.iter().for_each(|&c| *places.entry(provenance.channels.find(c)).or_default() += 1);
        for (class, count) in places {
            let most = heads.entry(class).or_insert(1);
            *most = if is_of_matrices { count.max(*most) } else { *most };
        }
    }
    heads
}

struct Finder<'a> {
    graph: &'a Graph,
    seen: &'a Observation,
    provenance: &'a Provenance,
    ends: &'a BTreeMap<Channel, BTreeSet<usize>>,
    heads: HashMap<Channel, usize>,
    /// The place of every operator in the order of execution.
    position: HashMap<NodeId, usize>,
    scope: Scope,
}

impl Finder<'_> {
    fn contraction(&self, i: usize) -> &Contraction {
        &self.provenance.contractions[i]
    }

    fn classes(&self, i: usize) -> BTreeSet<Channel> {
        self.contraction(i).rows.iter().map(|&c| self.provenance.channels.find(c)).collect()
    }

    fn declined(&self, i: usize, why: String) -> Declined {
        let contraction = self.contraction(i);
        Declined { place: self.graph.label(contraction.node), channels: contraction.rows.len(), why }
    }

    /// The contractions that the channels of contraction `i` end in: one, or all that apply the same weight.
    fn ends(&self, i: usize, classes: &BTreeSet<Channel>) -> Result<Vec<usize>, String> {
        let ends = &self.ends[&self.provenance.channels.find(self.contraction(i).rows[0])];
        let weight = |i: usize| self.graph.operator(self.contraction(i).node).input(self.contraction(i).weight);
        let rows = |i: usize| self.contraction(i).rows.iter().map(|&c| self.provenance.channels.find(c));
        let same = |&end: &usize| weight(end) == weight(i) && rows(end).eq(rows(i));
        match classes.iter().all(|class| self.ends[class] == *ends) && ends.iter().all(same) {
            true => Ok(ends.iter().copied().collect()),
            false => Err(self.why_forked(classes)),
        }
    }

    /// Why channels end in several projections: layers may share a weight upstream.
    fn why_forked(&self, classes: &BTreeSet<Channel>) -> String {
        let mut readers: BTreeMap<ValueId, usize> = BTreeMap::new();
        for (node, slot, planes) in self.provenance.cut_uses() {
            let weight = self.graph.operator(node).input(slot).filter(|&v| self.graph.constant(v).is_some());
            let mut channels = planes.iter().flat_map(|p| p.0.iter()).map(|&c| self.provenance.channels.find(c));
            if let Some(weight) = weight.filter(|_| self.graph.operator(node).is_product())
                && channels.any(|class| classes.contains(&class))
            {
                *readers.entry(weight).or_default() += 1;
            }
        }
        match readers.into_iter().find(|(_, count)| *count > 1) {
            Some((weight, _)) => format!(
                "its channels end in several projections, because layers share the weight {:?}; --untie gives each its own",
                self.graph.name(weight)
            ),
            None => "its channels end in several projections".into(),
        }
    }

    /// The sublayer that ends in contraction `i` first, or why there is none; nothing where the same
    /// weight was applied before.
    fn sublayer(&self, i: usize, classes: &BTreeSet<Channel>) -> Result<Option<Sublayer>, String> {
        let contraction = self.contraction(i);
        if let Some(frozen) = classes.iter().find_map(|&c| self.provenance.channels.frozen(c)) {
            return Err(format!("{} {}", frozen.place, frozen.why));
        }
        let ends = self.ends(i, classes)?;
        if ends[0] != i {
            return Ok(None);
        }
        let Site { projection, residual } = self.site(contraction)?;
        let also = ends[1..].iter().map(|&end| self.site(self.contraction(end))).collect::<Result<_, _>>()?;
        let mut units: Vec<Unit> = Vec::new();
        let mut place: HashMap<Channel, usize> = HashMap::new();
        for (column, &row) in contraction.rows.iter().enumerate() {
            let class = self.provenance.channels.find(row);
            let unit = *place.entry(class).or_insert_with(|| {
                let members = self.heads.get(&class).copied().unwrap_or(1);
                units.push(Unit { class, columns: Vec::new(), members, flops: 0.0, parameters: 0 });
                units.len() - 1
            });
            units[unit].columns.push(column);
        }
        let is_head = units.iter().any(|u| self.heads.contains_key(&u.class));
        let kind = if is_head { Kind::Head } else { Kind::Neuron };
        let name = self.graph.operator(contraction.node).name.clone();
        let name = if name.is_empty() { self.graph.name(projection.weight).to_string() } else { name };
        Ok(Some(Sublayer { name, kind, projection, residual, also, units, has_cache: false }))
    }

    fn site(&self, contraction: &Contraction) -> Result<Site, String> {
        let projection = self.projection(contraction)?;
        let residual = residual::follow(self.graph, self.seen, &self.position, &projection);
        let residual = match (residual, self.scope) {
            (Err(why), Scope::All) => residual::alone(self.graph, &projection).ok_or(why)?,
            (residual, _) => residual?,
        };
        Ok(Site { projection, residual })
    }

    fn projection(&self, contraction: &Contraction) -> Result<Projection, String> {
        let operator = self.graph.operator(contraction.node);
        if operator.is("Conv") {
            return Err("it is a convolution, which cannot be repaired by least squares here".into());
        }
        let (features, weight) = match (operator.input(contraction.features), operator.input(contraction.weight)) {
            (Some(features), Some(weight)) => (features, weight),
            _ => return Err("an input is missing".into()),
        };
        let tensor = self.graph.constant(weight).ok_or("its weight is no constant")?;
        if !tensor.element().is_float() {
            return Err(format!("its weight is of type {}", tensor.element()));
        }
        if operator.float("alpha", 1.0) != 1.0 || operator.float("beta", 1.0) != 1.0 {
            return Err("it scales its product, for which there is no rule".into());
        }
        let transposed = operator.int("transB", 0) != 0;
        let (rows, columns) = (tensor.dims()[transposed as usize], tensor.dims()[!transposed as usize]);
        Ok(Projection {
            node: contraction.node,
            features_slot: contraction.features,
            features,
            weight_slot: contraction.weight,
            weight,
            transposed,
            width: rows,
            outputs: columns,
        })
    }
}

/// FLOPs and parameters by class.
#[derive(Default)]
struct Costs {
    flops: HashMap<Channel, f64>,
    parameters: HashMap<Channel, f64>,
}

impl Costs {
    fn count(graph: &Graph, seen: &Observation, provenance: &Provenance, at: &BTreeMap<String, f64>) -> Self {
        let mut costs = Self::default();
        for node in graph.sorted() {
            let operator = graph.operator(node);
            if !operator.is_product() {
                continue;
            }
            if let Some(flops) = flops::product(graph, seen, node, at) {
                let mut share: HashMap<Channel, f64> = HashMap::new();
                let inputs = (0..2).flat_map(|slot| provenance.planes_at(graph, node, slot));
                for plane in inputs {
                    let mut count: HashMap<Channel, usize> = HashMap::new();
                    plane.0.iter().for_each(|&c| *count.entry(provenance.channels.find(c)).or_default() += 1);
                    for (class, n) in count {
                        let part = n as f64 / plane.0.len() as f64;
                        share.entry(class).and_modify(|s| *s = s.max(part)).or_insert(part);
                    }
                }
                share.into_iter().for_each(|(class, part)| *costs.flops.entry(class).or_default() += part * flops);
            }
        }
        costs.count_parameters(graph, provenance);
        costs
    }

    fn count_parameters(&mut self, graph: &Graph, provenance: &Provenance) {
        let mut counted = HashSet::new();
        for (node, slot, planes) in provenance.cut_uses() {
            let Some(value) = graph.operator(node).input(slot) else { continue };
            let Some(tensor) = graph.constant(value).filter(|_| counted.insert(value)) else { continue };
            for plane in planes {
                let each = tensor.count() as f64 / plane.0.len() as f64;
                for &channel in &plane.0 {
                    *self.parameters.entry(provenance.channels.find(channel)).or_default() += each;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
