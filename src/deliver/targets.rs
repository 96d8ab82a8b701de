//! What a run reads and what it will write.

use std::path::{Path, PathBuf};

use kprune_passes::onnx::external_locations;

use crate::analysis::Analysis;
use crate::data::Sources;
use crate::options::{Amount, Options};
use crate::store::{Ledger, Source, Target, external_files};

/// Files beside a model that are read where they are there.
const BESIDE: [&str; 3] = ["tokenizer.json", "preprocessor_config.json", "config.json"];

/// The models that are to be made: the compression of each, and where it goes, if anywhere.
pub(super) fn targets(options: &Options, target: Option<&Target>) -> Vec<(Option<f64>, Option<Target>)> {
    let shares = match &options.aim.amount {
        Amount::Compression(shares) if options.files.plan.is_none() => shares.as_slice(),
        _ => return vec![(None, target.cloned())],
    };
    let is_one_of_several = shares.len() > 1 && options.aim.max_drop.is_none();
    let place = |share: f64| target.map(|t| if is_one_of_several { t.named_after(share) } else { t.clone() });
    shares.iter().map(|share| (Some(*share), place(*share))).collect()
}

/// What is known before the model is read.
pub(crate) fn ledger(source: &Source, target: Option<&Target>, options: &Options) -> Ledger {
    let mut ledger = note_targets(source_ledger(source), source, target, options, &[]);
    ledger = match (&source.folder, target) {
        (Some(folder), Some(Target::Folder(_))) => ledger.reading("IN", folder),
        _ => ledger,
    };
    let (data, files) = (&options.data, &options.files);
    ledger = with_samples(ledger, &data.calibration)
        .reading_all("--eval", &data.evaluation)
        .reading_all("--trim-vocabulary", &options.vocabulary)
        .reading_all("--plan", &files.plan)
        .writing_all("--report", &files.reports)
        .writing_all("--save-plan", &files.save_plan);
    ledger = ledger.writing_all("--dump-graph", files.dumps.iter().map(|(_, path)| path));
    match &files.latency_table {
        Some(table) if table.is_file() => ledger.reading("--latency-table", table),
        table => ledger.writing_all("--latency-table", table),
    }
}

/// The same with the files of samples, and with what they are read by.
pub(crate) fn with_samples(ledger: Ledger, sources: &Sources) -> Ledger {
    ledger
        .reading_all("--calibration", &sources.files)
        .reading_all("--tokenizer", &sources.tokenizer)
        .reading_all("--preprocessor", &sources.preprocessor)
}

/// The model, and what lies beside it.
pub(crate) fn source_ledger(source: &Source) -> Ledger {
    let beside = BESIDE.iter().map(|name| source.model.with_file_name(name)).filter(|path| path.is_file());
    Ledger::default().reading("IN", &source.model).reading_all("a file beside IN", beside)
}

/// The same once it is known which other files the model keeps its data in.
pub(crate) fn with_external(
    ledger: Ledger,
    source: &Source,
    target: Option<&Target>,
    options: &Options,
    analysis: &Analysis,
) -> Ledger {
    let files: Vec<PathBuf> = external_files(&source.model, &analysis.written.model);
    let locations = external_locations(&analysis.written.model);
    let written = note_targets(Ledger::default(), source, target, options, &locations);
    ledger.reading_all::<&Path>("external data of IN", files.iter().map(PathBuf::as_path)).and(written)
}

fn note_targets(
    ledger: Ledger,
    source: &Source,
    target: Option<&Target>,
    options: &Options,
    external: &[String],
) -> Ledger {
    let mut noted: Vec<Target> = Vec::new();
    for target in targets(options, target).into_iter().filter_map(|(_, target)| target) {
        // Of several candidates for one place, one is written.
        if !noted.contains(&target) {
            noted.push(target);
        }
    }
    noted.iter().fold(ledger, |ledger, target| target.note_in(ledger, source, external))
}
