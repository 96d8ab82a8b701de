//! From a file to a model whose sublayers are known, with data to measure them on.

use std::collections::BTreeMap;
use std::path::Path;

use kprune_passes::discover::{Discovery, discover_units};
use kprune_passes::finite;
use kprune_passes::fold::{fold_constants, untie};
use kprune_passes::ir::{ElementType, Graph, Model, NodeId};
use kprune_passes::limits;
use kprune_passes::lower::{self, Lowered};
use kprune_passes::observe::Observation;
use kprune_passes::signature;

use crate::config::Options;
use crate::data::{Dataset, Sources};
use crate::error::Error;
use crate::observation::observe;
use crate::runtime::{self, Runtime};
use crate::store;

/// A model as it is written and as it is measured, and what is known of both.
pub struct Analysis {
    /// The model of the file.
    pub model: Model,
    /// The same in f32.
    pub single: Model,
    /// The same in f32, of primitive operators.
    pub lowered: Model,
    /// Shapes and types of the lowered model's values.
    pub seen: Observation,
    /// What of it is in the model of the file.
    pub seen_as_written: Observation,
    /// The sublayers in the lowered model.
    pub found: Discovery,
    /// The same sublayers in the model of the file.
    pub written: Discovery,
    /// The input that says which tokens are real.
    pub mask: Option<String>,
}

/// A model with data to measure it on.
pub struct Prepared {
    /// What is known of the model.
    pub analysis: Analysis,
    /// Samples to measure on.
    pub calibration: Dataset,
}

impl std::ops::Deref for Prepared {
    type Target = Analysis;

    fn deref(&self) -> &Analysis {
        &self.analysis
    }
}

impl Prepared {
    /// Tokens of a sample of mean length, as the projections see them.
    pub fn tokens_of_a_sample(&self, seq_len: Option<usize>) -> f64 {
        let lengths = self.calibration.lengths(seq_len);
        let rows = self.found.sublayers.iter().map(|sublayer| {
            let dims = self.seen.dims(sublayer.projection.features).unwrap_or_default();
            dims.iter().rev().skip(1).map(|&d| self.seen.extent(d, &lengths)).product::<f64>()
        });
        rows.fold(1.0, f64::max)
    }
}

/// A model that was read and run, but not looked at yet.
pub struct Observed {
    model: Model,
    single: Model,
    seen: Observation,
    mask: Option<String>,
}

impl Observed {
    /// Reads the model at `path` and observes its shapes.
    ///
    /// # Errors
    /// Where the file is no model, or one that cannot be pruned.
    pub fn read(
        runtime: &Runtime,
        path: &Path,
        options: &Options,
        stage: &mut dyn FnMut(&'static str),
    ) -> Result<Self, Error> {
        let mut model = store::read_inlined(path)?;
        fold_constants(&mut model.graph);
        if options.untie {
            untie(&mut model.graph);
        }
        check_supported(&model, path)?;
        let mut single = lower::in_single_precision(&model);
        stage("import");
        let mask = options.sources.mask_input.clone();
        let seen = observe(runtime, &single, mask.as_deref()).map_err(|e| e.about(path))?;
        signature::fix_axes(&mut single.graph, seen.sizes());
        Ok(Self { model, single, seen, mask })
    }

    /// The model in f32, with the axes fixed that cannot vary.
    pub fn single(&self) -> &Model {
        &self.single
    }

    /// Finds the sublayers; `lengths` are those of the inputs' named axes that FLOPs are counted for.
    ///
    /// # Errors
    /// Where the model does not run once its fused operators are taken apart.
    pub fn analyse(
        self,
        runtime: &Runtime,
        lengths: &BTreeMap<String, f64>,
        options: &Options,
        stage: &mut dyn FnMut(&'static str),
    ) -> Result<Analysis, Error> {
        let Self { model, single, seen, mask } = self;
        let (lowered, seen) = match lower::has_fused(&single) {
            true => {
                let lowered = lower::lower(single.clone(), &seen);
                let seen = observe(runtime, &lowered.model, mask.as_deref())?;
                (lowered, seen)
            }
            false => (Lowered::unchanged(single.clone()), seen),
        };
        stage("observe");
        let found = discover_units(&lowered.model.graph, &seen, lengths, options.scope);
        let written = lowered.bring_back(&found, &model.graph);
        let seen_as_written = seen.of(&model.graph);
        stage("discover");
        Ok(Analysis { model, single, lowered: lowered.model, seen, seen_as_written, found, written, mask })
    }
}

/// Reads the model at `path` and finds its sublayers; `stage` is called after each step with its name.
///
/// # Errors
/// Where the file is no model, or one that cannot be pruned, or the calibration data do not fit it.
pub fn prepare(
    runtime: &Runtime,
    path: &Path,
    options: &Options,
    stage: &mut dyn FnMut(&'static str),
) -> Result<Prepared, Error> {
    let observed = Observed::read(runtime, path, options, stage)?;
    let calibration = gather(runtime, &observed.single, path, &options.sources)?;
    let analysis = observed.analyse(runtime, &calibration.lengths(options.seq_len), options, stage)?;
    if analysis.found.sublayers.is_empty() {
        return Err(nothing_to_prune(path, &analysis.found));
    }
    Ok(Prepared { analysis, calibration })
}

/// Samples for the model at `path`; made-up sequences are made shorter until the model takes them.
///
/// # Errors
/// Where the data do not fit the model.
pub fn gather(runtime: &Runtime, model: &Model, path: &Path, sources: &Sources) -> Result<Dataset, Error> {
    let mut data = Dataset::gather(model, path, sources)?;
    if !data.is_made_up || sources.seq_len.is_some() {
        return Ok(data);
    }
    let mut session = runtime.session(model, "trying the model", false)?;
    for length in SHORTER {
        let runs = data.batches(2)?;
        if runs.first().is_some_and(|batch| session.run(batch.feeds()).is_ok()) {
            break;
        }
        data = Dataset::gather(model, path, &Sources { seq_len: Some(*length), ..sources.clone() })?;
    }
    Ok(data)
}

/// Lengths of made-up sequences for models that do not take the usual one.
const SHORTER: &[usize] = &[32, 16, 8];

/// Refuses what cannot be pruned, before any work.
fn check_supported(model: &Model, path: &Path) -> Result<(), Error> {
    let refuse = |reason: String, help: &str| {
        Err(Error::Unsupported { path: path.to_path_buf(), reason, help: help.to_string() })
    };
    let opset = model.opset("").unwrap_or(0);
    if opset < OLDEST_OPSET {
        let reason = format!(
            "the model uses version {opset} of the standard operators, and {OLDEST_OPSET} is the oldest supported"
        );
        return refuse(reason, "convert it with onnx.version_converter, or export it with opset_version=17");
    }
    let graph = &model.graph;
    if let Some((name, odd)) = finite::odd_weight(graph) {
        return Err(Error::NotFinite {
            place: path.display().to_string(),
            what: format!("element {} of the weight {name:?}", odd.place),
            value: odd.value,
            help: "export the model again: this one computes nothing that could be measured".into(),
        });
    }
    if let Some((node, why)) = limits::excessive(graph) {
        return refuse(format!("{} cannot be run: {why}", graph.label(node)), "repair the model, or export it again");
    }
    if let Some(name) = reserved(graph) {
        let help = "rename it, for example with onnx.helper; names that begin so are those of this program";
        return refuse(format!("the model has a value called {name:?}"), help);
    }
    if let Some((name, element)) = unknown_type(graph) {
        return refuse(
            format!("the constant {name:?} is of type {element}, which runtimes do not know"),
            "store it as float32 or float16",
        );
    }
    let is_quantised = |n: &NodeId| QUANTISED.contains(&graph.operator(*n).op_type.as_str());
    if let Some(node) = graph.sorted().into_iter().find(is_quantised) {
        let reason = format!("the model is quantised ({})", graph.label(node));
        return refuse(reason, "prune the model before it is quantised");
    }
    Ok(())
}

/// A value whose name is one of those that measuring gives to its own.
fn reserved(graph: &Graph) -> Option<String> {
    graph.names().find(|name| name.starts_with(RESERVED)).map(str::to_string)
}

/// What the names of measuring's own inputs begin with.
const RESERVED: &str = "kprune_";

/// A constant of a type that ONNX Runtime has no number for.
fn unknown_type(graph: &Graph) -> Option<(String, ElementType)> {
    let constants = graph.constants().into_iter().filter_map(|v| Some((v, graph.constant(v)?.element())));
    let unknown = constants.into_iter().find(|(_, element)| !runtime::knows(*element));
    unknown.map(|(value, element)| (graph.name(value).to_string(), element))
}

/// The oldest version of the standard operators whose meaning for inference is that of later ones.
const OLDEST_OPSET: i64 = 13;

/// Operators of quantised graphs.
const QUANTISED: &[&str] = &[
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "GatherBlockQuantized",
    "MatMulBnb4",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QAttention",
    "QGemm",
    "QLinearAdd",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
];

fn nothing_to_prune(path: &Path, discovery: &Discovery) -> Error {
    let looked: Vec<_> =
        discovery.declined.iter().map(|d| format!("{} channels of {}: {}", d.channels, d.place, d.why)).collect();
    let help = if looked.is_empty() {
        "no matrix product with a constant weight was found; is this a transformer?".to_string()
    } else {
        format!("what was looked at and stays:\n  {}", looked.join("\n  "))
    };
    Error::Unsupported { path: path.to_path_buf(), reason: "there is nothing to prune".into(), help }
}
