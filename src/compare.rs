//! Two models side by side: how good, how large, how fast.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use kprune_passes::calculus::objective::OutputKind;
use kprune_passes::discover::flops;
use kprune_passes::ir::Model;
use kprune_passes::signature;
use serde::Serialize;

use crate::analysis::{Observed, Opened, Simplified, parameters, zeros};
use crate::clock::Clock;
use crate::data::{Dataset, Sources};
use crate::error::Error;
use crate::judge::latency::{self, Setting, Timing};
use crate::judge::quality::{Judgement, Score, fixed, kinds};
use crate::judge::side_by_side::judge;
use crate::options::Options;
use crate::report::table::{change_of, count, in_words, percent, plain};
use crate::runtime::Runtime;
use crate::store::{self, Source};

/// How long the models take turns.
const TIMING: Duration = Duration::from_secs(6);

/// Two models side by side.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// Where the samples come from.
    pub data: String,
    /// What should be known about the samples.
    pub notes: Vec<String>,
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
    /// The same, compressed by Zstandard.
    pub compressed: u64,
    /// The share of its parameters that is zero.
    pub zeros: f64,
    /// Numbers in constants, floating-point or quantised.
    pub parameters: usize,
    /// FLOPs of one sample: matrix products and convolutions.
    pub flops: f64,
    /// How long a run takes.
    pub latency: Timing,
    /// How good it is.
    pub quality: Judgement,
}

/// A model that was read and run, and the samples that it is judged by.
struct Subject {
    source: Source,
    simplified: Simplified,
    data: Dataset,
}

impl Subject {
    /// A model with samples of its own.
    fn alone(runtime: &Runtime, source: Source, sources: &Sources) -> Result<Self, Error> {
        let clock = Clock::start();
        let mut observed = Opened::read(&source.model)?.observe(runtime, sources, &clock)?;
        let samples = observed.samples(runtime, sources)?;
        Self::of(runtime, source, observed, samples, sources, &clock)
    }

    /// A model on the samples of the one that it is compared with; on its own form of them, where it comes with another
    /// tokenizer.
    fn beside(&self, runtime: &Runtime, source: Source, sources: &Sources) -> Result<Self, Error> {
        if have_own_tokenizers([&self.source, &source], sources) {
            return Self::alone(runtime, source, sources);
        }
        let clock = Clock::start();
        let given = sources.are_given().then(|| self.data.clone());
        let observed = Opened::read(&source.model)?.observe_on(runtime, given, sources, &clock)?;
        Self::of(runtime, source, observed, self.data.clone(), sources, &clock)
    }

    fn of(
        runtime: &Runtime,
        source: Source,
        observed: Observed,
        data: Dataset,
        sources: &Sources,
        clock: &Clock,
    ) -> Result<Self, Error> {
        Ok(Self { source, simplified: observed.simplify(runtime, &data, sources.seq_len, clock)?, data })
    }

    fn model(&self) -> &Model {
        self.simplified.model()
    }

    fn side(&self, at: &BTreeMap<String, f64>, latency: Timing, quality: Judgement) -> Result<Side, Error> {
        Ok(Side {
            path: self.source.model.display().to_string(),
            bytes: store::size_with_data(&self.source.model, self.model()),
            compressed: store::compressed_size(&self.source.model, self.model())?,
            zeros: zeros(self.model()),
            parameters: parameters(self.model()),
            // Operators within fused ones count too.
            flops: flops::total(&self.simplified.lowered().graph, self.simplified.seen(), at),
            latency,
            quality,
        })
    }
}

/// Compares the models at `a` and `b` on the calibration set that `options` name.
///
/// # Errors
/// Where ONNX Runtime is not found, a file is no model, the models take different inputs, or the data do not fit them.
pub fn compare(a: impl AsRef<Path>, b: impl AsRef<Path>, options: &Options) -> Result<Comparison, Error> {
    compare_with(&options.runtime.load(Arc::default())?, a.as_ref(), b.as_ref(), options)
}

/// The same with a runtime that is there.
///
/// # Errors
/// Where a file is no model, the models take different inputs, or the data do not fit them.
pub fn compare_with(runtime: &Runtime, a: &Path, b: &Path, options: &Options) -> Result<Comparison, Error> {
    let sources = &options.data.calibration;
    let a = Subject::alone(runtime, Source::find(a)?, sources)?;
    let b = a.beside(runtime, Source::find(b)?, sources)?;
    let names = |s: &Subject| signature::inputs(s.model()).into_iter().map(|i| i.name).collect::<Vec<_>>();
    if let Some(name) = names(&b).iter().find(|name| !names(&a).contains(name)) {
        return Err(Error::Usage(format!(
            "{} takes an input {name:?} that {} does not take; compare models of one task",
            b.source.model.display(),
            a.source.model.display()
        )));
    }
    let data = &a.data;
    let own = have_own_tokenizers([&a.source, &b.source], sources).then_some(&b.data);
    let mut judgements = judgements([&a, &b], own, runtime, options)?.into_iter();
    let lengths = data.lengths(sources.seq_len);
    let setting = |data| Setting::new(runtime, options.aim.latency_batch, data, sources.seq_len);
    let (setting, other) = (setting(data)?, own.map(setting).transpose()?);
    let models = [(a.model(), &setting), (b.model(), other.as_ref().unwrap_or(&setting))];
    let mut timings = latency::compare(runtime, &models, TIMING)?.into_iter();
    let mut side = |subject: &Subject| {
        let (timing, judgement) = (timings.next(), judgements.next());
        let measured = timing.zip(judgement).ok_or_else(|| Error::internal("a model was not measured"));
        measured.and_then(|(latency, quality)| subject.side(&lengths, latency, quality))
    };
    let (a, b) = (side(&a)?, side(&b)?);
    let mut notes: Vec<String> = data.notes.iter().cloned().chain(a.quality.unused_labels(data)).collect();
    notes.extend(own.map(|_| "each model has the tokens of its own tokenizer.json".to_string()));
    Ok(Comparison { data: data.source.clone(), notes, a, b, setting })
}

/// Whether two models lie beside different `tokenizer.json`, where text is tokenized by what lies beside models.
fn have_own_tokenizers(models: [&Source; 2], sources: &Sources) -> bool {
    let [first, second] = models.map(|source| store::read(&source.model.with_file_name("tokenizer.json")).ok());
    let is_asked = sources.tokenizer.is_none() && sources.hold_text();
    is_asked && first.zip(second).is_some_and(|(first, second)| first != second)
}

/// What two models are worth; side by side, but where each predicts tokens of its `own`.
fn judgements(
    [a, b]: [&Subject; 2],
    own: Option<&Dataset>,
    runtime: &Runtime,
    options: &Options,
) -> Result<Vec<Judgement>, Error> {
    let kinds = |s: &Subject| {
        let lowered = s.simplified.lowered();
        kinds(lowered, s.simplified.seen(), s.data.token_mask(&lowered.graph), &options.data.outputs)
    };
    let (pair, first) = ([(a.model(), &a.data), (b.model(), own.unwrap_or(&a.data))], kinds(a)?);
    if own.is_some() && first.iter().any(|kind| kind.kind == OutputKind::NextToken) {
        let alone = [judge(runtime, &pair[..1], &first)?, judge(runtime, &pair[1..], &kinds(b)?)?];
        return Ok(alone.into_iter().flatten().collect());
    }
    judge(runtime, &pair, &first)
}

impl Comparison {
    /// Side by side, with the difference.
    pub fn table(&self) -> String {
        let mut table = plain(&["", "A", "B", "difference"], &[0]);
        let (a, b) = (&self.a, &self.b);
        for (i, (first, second)) in a.quality.scores.iter().zip(&b.quality.scores).enumerate() {
            let apart = b.quality.drop.filter(|_| i == 0);
            let apart = apart.map_or_else(|| fixed(second.value - first.value, 4), |drop| change_of(first.name, &drop));
            let shown = |score: &Score| in_words(score.name, score.value, score.error);
            table.add_row([first.name.into(), shown(first), shown(second), apart]);
        }
        if let Some(fidelity) = &b.quality.fidelity {
            for (name, value, error) in fidelity.all() {
                table.add_row([name.into(), String::new(), String::new(), in_words(name, value, error)]);
            }
        }
        if !b.quality.is_known() {
            table.add_row(["quality", "", "", "nothing could be compared"]);
        }
        let mut size = |name: &str, a: u64, b: u64| {
            table.add_row([name.into(), ByteSize(a).to_string(), ByteSize(b).to_string(), percent(b as f64, a as f64)]);
        };
        size("size", a.bytes, b.bytes);
        size("compressed (zstd)", a.compressed, b.compressed);
        let mut amount = |name: &str, a: f64, b: f64| {
            table.add_row([name.into(), count(a), count(b), percent(b, a)]);
        };
        amount("parameters", a.parameters as f64, b.parameters as f64);
        amount("FLOPs", a.flops, b.flops);
        let share = |side: &Side| format!("{:.1} %", 100.0 * side.zeros);
        table.add_row([
            "zeros".into(),
            share(a),
            share(b),
            format!("{} points", fixed(100.0 * (b.zeros - a.zeros), 1)),
        ]);
        let milliseconds = |x: f64| format!("{x:.3} ms");
        table.add_row([
            "latency, median".into(),
            milliseconds(a.latency.median),
            milliseconds(b.latency.median),
            percent(b.latency.median, a.latency.median),
        ]);
        let [low, high] = b.latency.interval;
        let speedup = format!("{:.2} ({low:.2} to {high:.2})", b.latency.speedup);
        table.add_row(["speed-up", "", "", &speedup]);
        let spread = |t: &Timing| format!("{:.3} to {:.3} ms", t.low, t.high);
        table.add_row(["10 % to 90 %".into(), spread(&a.latency), spread(&b.latency), String::new()]);
        if let (Some(a), Some(b)) = (a.latency.processor, b.latency.processor) {
            table.add_row(["processor time".into(), milliseconds(a), milliseconds(b), percent(b, a)]);
        }
        let rate = |t: &Timing| format!("{:.1} samples/s", t.throughput);
        table.add_row(["throughput".into(), rate(&a.latency), rate(&b.latency), String::new()]);
        let notes = self.notes.iter().cloned().chain(self.b.latency.doubt());
        let notes: String = notes.map(|note| format!("note         {note}\n")).collect();
        format!(
            "A            {}\nB            {}\nquality      on {} samples of {}\n{notes}latency      of {}, {} rounds in turns\n\n{table}\n",
            a.path, b.path, b.quality.samples, self.data, self.setting, b.latency.rounds
        )
    }
}
