//! Two models side by side: how good, how large, how fast.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use kprune_passes::flops;
use kprune_passes::fold::fold_constants;
use kprune_passes::ir::Model;
use kprune_passes::loss::OutputKind;
use kprune_passes::lower;
use kprune_passes::observe::Observation;
use kprune_passes::signature;
use serde::Serialize;

use crate::data::Sources;
use crate::error::Error;
use crate::evaluate::{Judgement, judge, kinds};
use crate::latency::{self, Setting, Timing};
use crate::observation::observe;
use crate::pipeline::parameters;
use crate::prepare::gather;
use crate::report::table::{count, percent, plain};
use crate::runtime::Runtime;
use crate::store::{self, Source};

/// How long the models take turns.
const TIMING: Duration = Duration::from_secs(6);

/// What is compared on.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The data.
    pub sources: Sources,
    /// What outputs are, where the guess is not to be trusted.
    pub outputs: Vec<(String, OutputKind)>,
    /// Length for FLOPs and latencies; the mean true length of the samples where it is not given.
    pub seq_len: Option<usize>,
    /// Samples in a run whose latency is measured.
    pub batch: usize,
}

/// Two models side by side.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Where the samples come from.
    pub data: String,
    /// What latencies were measured at.
    pub setting: Setting,
    /// The first model.
    pub a: Side,
    /// The second.
    pub b: Side,
}

/// One of two models.
#[derive(Debug, Serialize)]
pub struct Side {
    /// The model file.
    pub path: String,
    /// Its size with external data, in bytes.
    pub bytes: u64,
    /// Numbers in constants, floating-point or quantised.
    pub parameters: usize,
    /// FLOPs of one sample: matrix products and convolutions.
    pub flops: f64,
    /// How long a run takes.
    pub latency: Timing,
    /// How good it is.
    pub quality: Judgement,
}

/// A model that was read and run.
struct Subject {
    source: Source,
    model: Model,
    /// In f32 and with the axes fixed that cannot vary: what data must fit.
    single: Model,
    seen: Observation,
}

impl Subject {
    fn read(runtime: &Runtime, path: &Path, mask: Option<&str>) -> Result<Self, Error> {
        let source = Source::find(path)?;
        let mut model = store::read_inlined(&source.model)?;
        fold_constants(&mut model.graph);
        let mut single = lower::in_single_precision(&model);
        let mut seen = observe(runtime, &single, mask).map_err(|e| e.about(&source.model))?;
        signature::fix_axes(&mut single.graph, seen.sizes());
        if lower::has_fused(&single) {
            // Operators within fused ones count too.
            single = lower::lower(single, &seen).model;
            seen = observe(runtime, &single, mask)?;
        }
        Ok(Self { source, model, single, seen })
    }

    fn side(&self, at: &BTreeMap<String, f64>, latency: Timing, quality: Judgement) -> Side {
        Side {
            path: self.source.model.display().to_string(),
            bytes: store::size_with_data(&self.source.model, &self.model),
            parameters: parameters(&self.model),
            flops: flops::total(&self.single.graph, &self.seen, at),
            latency,
            quality,
        }
    }
}

/// Compares the models at `a` and `b`.
///
/// # Errors
/// Where a file is no model, the models take different inputs, or the data do not fit them.
pub fn compare(runtime: &Runtime, a: &Path, b: &Path, terms: &Terms) -> Result<Comparison, Error> {
    let mask = terms.sources.mask_input.as_deref();
    let [a, b] = [Subject::read(runtime, a, mask)?, Subject::read(runtime, b, mask)?];
    let names = |s: &Subject| signature::inputs(&s.model).into_iter().map(|i| i.name).collect::<Vec<_>>();
    if let Some(name) = names(&b).iter().find(|name| !names(&a).contains(name)) {
        return Err(Error::Usage(format!(
            "{} takes an input {name:?} that {} does not take; compare models of one task",
            b.source.model.display(),
            a.source.model.display()
        )));
    }
    let data = gather(runtime, &a.single, &a.source.model, &terms.sources)?;
    let kinds = kinds(&a.single, &a.seen, mask, &terms.outputs)?;
    let models = [&a.model, &b.model];
    let mut judgements = judge(runtime, &models, &kinds, &data)?.into_iter();
    let lengths = data.lengths(terms.seq_len);
    let setting = Setting::new(runtime, terms.batch, &data, terms.seq_len);
    let feeds = setting.feeds(&a.single, mask)?;
    let mut timings = latency::compare(runtime, &models, &feeds, &setting, TIMING)?.into_iter();
    let mut side = |subject: &Subject| {
        let (timing, judgement) = (timings.next(), judgements.next());
        let measured = timing.zip(judgement).ok_or_else(|| Error::internal("a model was not measured"));
        measured.map(|(latency, quality)| subject.side(&lengths, latency, quality))
    };
    Ok(Comparison { data: data.source.clone(), a: side(&a)?, b: side(&b)?, setting })
}

impl Comparison {
    /// Side by side, with the difference.
    pub fn table(&self) -> String {
        let mut table = plain(&["", "A", "B", "difference"], &[0]);
        let (a, b) = (&self.a, &self.b);
        for (first, second) in a.quality.scores.iter().zip(&b.quality.scores) {
            let apart = format!("{:+.4}", second.value - first.value);
            table.add_row([first.name.into(), format!("{:.4}", first.value), format!("{:.4}", second.value), apart]);
        }
        if let Some(fidelity) = &b.quality.fidelity {
            let shown = [
                ("agreement", fidelity.agreement),
                ("KL divergence", fidelity.divergence),
                ("correlation", fidelity.correlation),
                ("cosine", Some(fidelity.cosine)),
                ("largest difference", Some(fidelity.largest_difference)),
            ];
            for (name, value) in shown {
                if let Some(value) = value {
                    table.add_row([name.into(), String::new(), String::new(), format!("{value:.4}")]);
                }
            }
        }
        if !b.quality.is_known() {
            table.add_row(["quality", "", "", "nothing could be compared"]);
        }
        let mut amount = |name: &str, a: f64, b: f64| {
            table.add_row([name.into(), count(a), count(b), percent(b, a)]);
        };
        amount("bytes", a.bytes as f64, b.bytes as f64);
        amount("parameters", a.parameters as f64, b.parameters as f64);
        amount("FLOPs", a.flops, b.flops);
        let milliseconds = |x: f64| format!("{x:.3} ms");
        let faster = format!("{:.2} times as fast", b.latency.speedup);
        table.add_row([
            "latency, median".into(),
            milliseconds(a.latency.median),
            milliseconds(b.latency.median),
            faster,
        ]);
        let spread = |t: &Timing| format!("{:.3} to {:.3} ms", t.low, t.high);
        table.add_row(["10 % to 90 %".into(), spread(&a.latency), spread(&b.latency), String::new()]);
        let rate = |t: &Timing| format!("{:.1} samples/s", t.throughput);
        table.add_row(["throughput".into(), rate(&a.latency), rate(&b.latency), String::new()]);
        format!(
            "A            {}\nB            {}\nquality      on {} samples of {}\nlatency      of {}, {} rounds in turns\n\n{table}\n",
            a.path, b.path, b.quality.samples, self.data, self.setting, b.latency.rounds
        )
    }
}
