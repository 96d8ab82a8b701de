//! The driver, from a file to a smaller file: load, choose, make, judge, deliver.

use std::path::Path;

use kprune_passes::probe::Probes;

use crate::analysis::Loaded;
use crate::budget::{Budget, within_reach};
use crate::choose::Chooser;
use crate::clock::Clock;
use crate::data::{Dataset, Sources};
use crate::deliver::{Maker, dump, targets};
use crate::error::Error;
use crate::judge::latency::Setting;
use crate::judge::quality::{Evaluation, Kind, Origin, kinds, overrule};
use crate::options::{Distil, Options};
use crate::progress::Progress;
use crate::report::Report;
use crate::runtime::{Cache, Runtime};
use crate::store::{Source, Target};
use crate::vocabulary::{self, Trimmed};
use crate::walk::World;

/// Prunes the model at `input`, a file or a folder, and writes the result to `output`; without one, units are
/// chosen and nothing is written.
///
/// # Errors
/// Whatever goes wrong; nothing has been written then.
pub(crate) fn prune(
    runtime: &Runtime,
    input: &Path,
    output: Option<&Path>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report, Error> {
    let clock = Clock::start();
    progress.stage("reading the model");
    let given = Source::find(input)?;
    if output.is_none() && options.aim.max_drop.is_some() {
        let reason = "a dry run makes no models, so nobody knows how much they drop";
        return Err(Error::Usage(format!("--max-drop: {reason}; leave one of the two out")));
    }
    let target = output.map(|output| Target::of(output, &given)).transpose()?;
    let ledger = targets::ledger(&given, target.as_ref(), options);
    ledger.check()?;

    // Trim and load.
    let trimmed = trimmed(runtime, &given, target.as_ref(), options, progress)?;
    let source = trimmed.as_ref().map_or(&given, |trimmed| &trimmed.source);
    clock.stage("trim");
    let mut loaded = Loaded::read(runtime, &source.model, &options.aim, &options.data.calibration, &clock)
        .map_err(|error| error.about_original(&source.model, &given.model))?;
    let options = &within_reach(options, &loaded.analysis);
    let ledger = targets::with_external(ledger, source, target.as_ref(), options, &loaded.analysis);
    ledger.check()?;
    let evaluation = evaluation(&mut loaded, &source.model, options, runtime)?;
    let judges = judges(&mut loaded, options)?;
    let (loaded, seq_len) = (loaded, options.data.calibration.seq_len);
    let kinds = kinds_of(&loaded, options)?;
    let size = options.data.mini_batch(&kinds);
    let each = loaded.tokens_of_a_sample(seq_len);
    let batches = loaded.calibration.batches_within(size, runtime.tokens_at_once(), each)?;
    let judges = match judges {
        Some(judges) => judges.batches_within(judged(judges.samples()), runtime.tokens_at_once(), each)?,
        None => Vec::new(),
    };
    let lengths = loaded.calibration.lengths(None);
    let setting = Setting::new(runtime, options.aim.latency_batch, &loaded.calibration, seq_len)?;
    if options.aim.amount.is_timed() {
        progress.stage("timing sublayers");
    }
    let mut budget = Budget::of(runtime, &loaded.analysis, options, &setting)?;
    clock.stage("time");

    // Choose and make; once more where the time that was aimed at is missed.
    let written = &loaded.analysis.written;
    let (labels, seed) = (loaded.calibration.labels.as_ref(), options.data.calibration.seed);
    let lengths = &lengths;
    let world = World { runtime, written, batches: &batches, labels, seed, lengths, progress, clock: &clock };
    let cache = Cache::new(options.runtime.memory);
    let probes = probes(&loaded, options)?;
    dump::analysed(options, &source.model, &loaded.analysis, &probes)?;
    let mut chooser = Chooser::new(world, probes, &loaded.analysis.single, options, cache.clone());
    let (loaded, trimmed) = (&loaded, trimmed.as_ref());
    let maker = Maker { world, loaded, options, source, trimmed, target, ledger, evaluation, judges, setting, kinds };
    let mut choose = |budget: &Budget| maker.make(chooser.choose(budget)?, budget);
    let mut products = choose(&budget)?;
    if let Some(corrected) = budget.corrected(products.timing()) {
        progress.done("the time was missed: choosing once more");
        let again = choose(&corrected)?;
        if corrected.is_nearer(again.timing(), products.timing()) {
            (budget, products) = (corrected, again);
        }
    }
    if options.sparsity.is_some() || options.quantise.is_some() {
        chooser.time_original()?;
    }
    let (mut probes, forward) = chooser.finish();
    maker.distil(&mut products, &mut probes, &cache)?;
    clock.stage("distil");
    maker.settle(&mut products, &probes, &cache, &budget)?;
    products.forget_projections();
    clock.stage("settle");

    // Judge and deliver.
    maker.judge(&mut products)?;
    clock.stage("judge");
    maker.deliver(&budget, &probes, products, || {
        clock.stage("export");
        let mut cost = clock.cost(forward);
        cost.sessions = runtime.set_up().as_secs_f64();
        cost.spilled = cache.spilled();
        cost
    })
}

/// The model with fewer tokens, where that is wanted.
fn trimmed(
    runtime: &Runtime,
    source: &Source,
    target: Option<&Target>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Option<Trimmed>, Error> {
    if options.vocabulary.is_empty() {
        return Ok(None);
    }
    if let Some(Target::File(file)) = target {
        let reason = "the tokenizer changes, and goes with the model";
        return Err(Error::Usage(format!("--trim-vocabulary: {reason}; name a folder instead of {}", file.display())));
    }
    progress.stage("trimming the vocabulary");
    let beside = target.map_or_else(|| std::env::temp_dir().join("trimmed"), |target| target.path().to_path_buf());
    vocabulary::trim(runtime, source, options, &beside).map(Some)
}

/// What results are judged by: the data that are given for it, or else samples of the calibration set that are set aside;
/// where these are few, all of them. Made-up numbers say nothing, but where something is to be decided.
fn evaluation(
    loaded: &mut Loaded,
    model: &Path,
    options: &Options,
    runtime: &Runtime,
) -> Result<Option<Evaluation>, Error> {
    let calibration = &options.data.calibration;
    if !options.data.evaluation.is_empty() {
        let files = options.data.evaluation.clone();
        let segment = loaded.calibration.segment();
        let sources = Sources { files, batches: Vec::new(), samples: None, segment, ..calibration.clone() };
        let data = Dataset::gather(&loaded.analysis.single, model, &sources, runtime.threads())?;
        let data = data.with_mask_of(&loaded.calibration)?;
        return Ok(Some(Evaluation { data, origin: Origin::Given }));
    }
    if loaded.calibration.is_made_up && !options.decides() {
        return Ok(None);
    }
    let samples = loaded.calibration.samples();
    if samples < MANY && !options.decides() {
        return Ok(Some(Evaluation { data: loaded.calibration.clone(), origin: Origin::Calibration }));
    }
    let most = if options.decides() { MOST_SET_ASIDE } else { MOST_TO_JUDGE };
    let aside = (samples / SET_ASIDE).clamp(1, most);
    let data = set_aside(loaded, aside, calibration.seed)?;
    Ok(Some(Evaluation { data, origin: Origin::SetAside }))
}

/// One of so many samples is set aside to judge by, where no other data are given.
const SET_ASIDE: usize = 8;

/// No more samples than this are set aside: to decide by, and to judge by.
const MOST_SET_ASIDE: usize = 512;
const MOST_TO_JUDGE: usize = 256;

/// Of fewer samples none is set aside.
const MANY: usize = 128;

/// Samples that a distillation is judged by, and nothing else is measured on, where there is to be one.
fn judges(loaded: &mut Loaded, options: &Options) -> Result<Option<Dataset>, Error> {
    if options.distil == Distil::Off {
        return Ok(None);
    }
    let samples = loaded.calibration.samples();
    if samples < 2 {
        let reason = "--distil: samples are set aside to judge by, and there is only one";
        return Err(Error::Usage(format!("{reason}; give more with --calibration, or leave the option away")));
    }
    let few = (samples / JUDGES).clamp(FEWEST, MOST_SET_ASIDE).min(samples / 2);
    let aside = few.next_multiple_of(loaded.calibration.fixed_batch().unwrap_or(1)).min(samples - 1);
    set_aside(loaded, aside, options.data.calibration.seed).map(Some)
}

/// Takes so many samples out of the calibration set.
fn set_aside(loaded: &mut Loaded, samples: usize, seed: u64) -> Result<Dataset, Error> {
    let [stay, aside] = loaded.calibration.split(samples, seed)?;
    loaded.calibration = stay;
    Ok(aside)
}

/// One of so many samples judges a distillation: what is set aside costs more than they tell, for all that is to be seen is
/// whether it went astray.
const JUDGES: usize = 32;

/// No fewer do, unless that is half of them.
const FEWEST: usize = 4;

/// So many of them are judged together, few where there are few: the spread between batches tells how sure a judgement is.
fn judged(samples: usize) -> usize {
    (samples / 8).clamp(1, 8)
}

/// What the outputs are taken for.
fn kinds_of(loaded: &Loaded, options: &Options) -> Result<Vec<Kind>, Error> {
    let view = &loaded.analysis.measured;
    kinds(&view.model, &view.seen, loaded.calibration.token_mask(&view.model.graph), &options.data.outputs)
}

/// What may be asked of runs of the model; outputs are what the user says.
fn probes<'a>(loaded: &'a Loaded, options: &Options) -> Result<Probes<'a>, Error> {
    let view = &loaded.analysis.measured;
    let token_mask = loaded.calibration.token_mask(&view.model.graph);
    let mut probes = Probes::new(&view.model, &view.seen, &view.found, token_mask);
    overrule(&mut probes.objective, &view.model, &options.data.outputs)?;
    Ok(probes)
}
