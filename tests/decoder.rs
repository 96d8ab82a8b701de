//! Decoders with key/value caches through the command line: text in segments, perplexity, and generation.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kprune_passes::ir::{ElementType, Model, Tensor};
use kprune_passes::kv_cache::{self, caches};
use onnx_kprune::runtime::{Held, Purpose, Session, Values, host, scalars};
use onnx_kprune::store::read_model;
use ort::value::DynValue;
use serde_json::Value;
use support::{cpu, fixtures, kprune, python, shared, text};

fn decoders() -> PathBuf {
    fixtures().join("decoders")
}

fn calibration() -> PathBuf {
    decoders().join("calibration.txt")
}

/// Prunes a decoder, on a few segments of text; the report.
fn prune(model: &Path, output: &Path, more: &[&str]) -> Value {
    let done = run(model, output, more);
    assert!(done.status.success(), "{}", text(&done.stderr));
    serde_json::from_str(&std::fs::read_to_string(output.with_extension("json")).unwrap()).unwrap()
}

fn run(model: &Path, output: &Path, more: &[&str]) -> std::process::Output {
    let (report, data) = (output.with_extension("json"), calibration());
    let tokenizer = decoders().join("gpt/tokenizer.json");
    let paths = [model, output, Path::new("--calibration"), &data, Path::new("--report"), &report];
    let mut arguments: Vec<&std::ffi::OsStr> = paths.iter().map(|path| path.as_os_str()).collect();
    arguments.extend(["--tokenizer".as_ref(), tokenizer.as_os_str(), "--samples".as_ref(), "48".as_ref()]);
    arguments.extend(more.iter().map(|argument| std::ffi::OsStr::new(*argument)));
    kprune(arguments)
}

/// The units that stay of sublayers of a kind.
fn kept(report: &Value, unit: &str) -> Vec<usize> {
    let own = report["sublayers"].as_array().unwrap().iter().filter(|s| s["unit"] == unit);
    own.map(|s| s["kept"].as_array().unwrap().len()).collect()
}

/// A model that is run token by token.
struct Runner {
    model: Model,
    session: Session,
}

impl Runner {
    fn new(path: &Path) -> Self {
        let model = read_model(path).unwrap();
        let session = cpu().session(&model, "testing", Purpose::Trial).unwrap_or_else(|e| panic!("{e}"));
        Self { model, session }
    }

    /// No earlier tokens.
    fn nothing(&self) -> BTreeMap<String, Held> {
        let empty = |cache: kv_cache::KvCache| {
            let length = |axis| kv_cache::length(&self.model.graph, cache.past, axis).unwrap() as usize;
            let tensor = Tensor::from_raw("", ElementType::F32, &[1, length(1), 0, length(3)], Vec::new().into());
            (self.model.graph.name(cache.past).to_string(), host(&tensor.unwrap()).unwrap())
        };
        caches(&self.model.graph).into_iter().map(empty).collect()
    }

    /// Runs `ids` behind `before` earlier tokens, of which the caches are `pasts`.
    fn run(&mut self, ids: &[i64], before: usize, pasts: &BTreeMap<String, &DynValue>) -> Values {
        let (count, total) = (ids.len(), before + ids.len());
        let row = |values: Vec<i64>| host(&Tensor::from_i64s(&[1, values.len()], &values)).unwrap();
        let (ids, mask) = (row(ids.to_vec()), row(vec![1; total]));
        let places = row((before as i64..total as i64).collect());
        assert_eq!(count + before, total);
        self.session
            .run_with(|name| match name {
                "input_ids" => Some(ids.value()),
                "attention_mask" => Some(mask.value()),
                "position_ids" => Some(places.value()),
                name => pasts.get(name).copied(),
            })
            .unwrap_or_else(|e| panic!("{e}"))
    }
}

/// The token that is most likely behind the last.
fn next(values: &Values) -> i64 {
    let logits = scalars(&values["logits"]).unwrap();
    let last = logits.index_axis(ndarray::Axis(1), logits.shape()[1] - 1).to_owned();
    onnx_kprune::judge::metrics::argmax(last.iter().copied())
}

/// The tokens that a model writes behind some, by its caches and without them.
fn generate(path: &Path, start: &[i64], tokens: usize) -> [Vec<i64>; 2] {
    let (mut cached, mut whole) = (Runner::new(path), Runner::new(path));
    let pairs: Vec<(String, String)> = caches(&cached.model.graph)
        .iter()
        .map(|c| (cached.model.graph.name(c.past).to_string(), cached.model.graph.name(c.present).to_string()))
        .collect();
    let nothing = cached.nothing();
    let empty = || nothing.iter().map(|(name, held)| (name.clone(), held.value())).collect::<BTreeMap<_, _>>();
    let mut all = [start.to_vec(), start.to_vec()];
    let mut values = cached.run(start, 0, &empty());
    for step in 0..tokens {
        all[0].push(next(&values));
        if step + 1 < tokens {
            let before = all[0].len() - 1;
            let pasts = pairs.iter().map(|(past, present)| (past.clone(), &values[present])).collect();
            values = cached.run(&all[0][before..], before, &pasts);
        }
        let next = next(&whole.run(&all[1], 0, &empty()));
        all[1].push(next);
    }
    all
}

const START: [i64; 6] = [0, 300, 45, 700, 12, 88];

#[test]
fn pruned_decoders_write_the_same_with_their_caches_as_without() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["gpt", "llama", "llama-genai"] {
        let source = decoders().join(name).join("model.onnx");
        let [with, without] = generate(&source, &START, 12);
        assert_eq!(with, without, "{name}");
        for method in ["obs", "kprune"] {
            let output = folder.path().join(format!("{name}-{method}.onnx"));
            let more = ["--segment", "64", "--compression", "0.4", "--method", method];
            let report = prune(&source, &output, &more);
            let heads = kept(&report, "head");
            assert!(heads.windows(2).all(|pair| pair[0] == pair[1]), "{name}: {heads:?}");
            let model = read_model(&output).unwrap();
            for cache in caches(&model.graph) {
                let declared = kv_cache::length(&model.graph, cache.past, kv_cache::HEADS);
                assert_eq!(declared, Some(heads[0] as i64), "{name}");
            }
            let [with, without] = generate(&output, &START, 12);
            assert_eq!(with, without, "{name} pruned by {method}");
        }
    }
}

#[test]
fn every_export_with_caches_goes_on_from_them() {
    let folder = tempfile::tempdir().unwrap();
    let files = std::fs::read_dir(fixtures().join("zoo")).unwrap().map(|entry| entry.unwrap().path());
    let with_caches = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().contains("-past");
    let mut count = 0;
    for source in files.filter(with_caches) {
        let output = folder.path().join(source.file_name().unwrap());
        let done = kprune([source.as_os_str(), output.as_os_str(), "--compression".as_ref(), "0.6".as_ref()]);
        assert!(done.status.success(), "{source:?}: {}", text(&done.stderr));
        let [with, without] = generate(&output, &[0, 30, 45, 7, 12], 8);
        assert_eq!(with, without, "{source:?}");
        count += 1;
    }
    assert!(count >= 10);
}

#[test]
fn a_decoder_of_fewer_tokens_is_whole_and_goes_on_from_its_caches() {
    let place = tempfile::tempdir().unwrap();
    let few = place.path().join("few.txt");
    let all = std::fs::read_to_string(calibration()).unwrap();
    std::fs::write(&few, all.split("\n\n").take(4).collect::<Vec<_>>().join("\n\n")).unwrap();
    for name in ["gpt", "llama-genai"] {
        let (source, output) = (decoders().join(name), place.path().join(name));
        let paths = [&source, &output, Path::new("--trim-vocabulary"), &few, Path::new("--calibration"), &few];
        let done = kprune(paths.into_iter().chain(["--compression", "0.3"].map(Path::new)));
        assert!(done.status.success(), "{}", text(&done.stderr));
        let parse = |file: &str| -> Value {
            serde_json::from_str(&std::fs::read_to_string(output.join(file)).unwrap()).unwrap()
        };
        let words = parse("tokenizer.json")["model"]["vocab"].as_object().unwrap().len();
        assert!((300..1000).contains(&words), "{words}");
        assert_eq!(parse("config.json")["vocab_size"], words);
        if name == "llama-genai" {
            assert_eq!(parse("genai_config.json")["model"]["vocab_size"], words);
        }
        let graph = read_model(&output.join("model.onnx")).unwrap().graph;
        let dims: Vec<Vec<usize>> =
            graph.constants().iter().map(|&v| graph.constant(v).unwrap().dims().to_vec()).collect();
        let has = |length: usize| dims.iter().any(|dims| dims.contains(&length));
        assert!(has(words) && !has(1024), "{name}: {dims:?}");
        let [with, without] = generate(&output.join("model.onnx"), &[0, 200, 45, 270, 12, 88], 12);
        assert_eq!(with, without, "{name}");
    }
}

#[test]
fn heads_may_be_uneven_where_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    let source = decoders().join("gpt/model.onnx");
    let report = prune(&source, &output, &["--segment", "64", "--compression", "0.6", "--uneven-heads"]);
    let heads = kept(&report, "head");
    assert!(heads.iter().all(|&n| n > 0), "every cache stays: {heads:?}");
    assert!(heads.windows(2).any(|pair| pair[0] != pair[1]), "{heads:?}");
    let model = read_model(&output).unwrap();
    let declared = |cache: &kv_cache::KvCache| kv_cache::length(&model.graph, cache.past, 1).unwrap() as usize;
    let declared: Vec<usize> = caches(&model.graph).iter().map(declared).collect();
    assert_eq!(declared, heads.iter().flat_map(|&n| [n, n]).collect::<Vec<_>>());
    let [with, without] = generate(&output, &START, 8);
    assert_eq!(with, without);
    let refused = run(&source, &folder.path().join("other.onnx"), &["--segment", "64", "--method", "kwon"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("--uneven-heads"));
}

#[test]
fn perplexity_is_that_of_the_formula_over_segments_that_follow_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let (source, words) = (decoders().join("gpt"), folder.path().join("eval.txt"));
    let eval = std::fs::read_to_string(decoders().join("eval.txt")).unwrap();
    let documents: Vec<&str> = eval.split("\n\n").take(3).collect();
    std::fs::write(&words, documents.join("\n\n")).unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(source.join("tokenizer.json")).unwrap();
    let encode = |text: &&str| tokenizer.encode(text.trim_end(), true).unwrap().get_ids().to_vec();
    let ids: Vec<i64> =
        documents.iter().flat_map(|d| std::iter::once(0).chain(encode(d).into_iter().map(i64::from))).collect();
    let mut runner = Runner::new(&source.join("model.onnx"));
    let (mut sum, mut count) = (0.0, 0);
    for segment in ids.chunks_exact(32) {
        let nothing = runner.nothing();
        let pasts = nothing.iter().map(|(name, held)| (name.clone(), held.value())).collect();
        let logits = scalars(&runner.run(segment, 0, &pasts)["logits"]).unwrap();
        for (place, &next) in segment.iter().enumerate().skip(1) {
            let row = logits.index_axis(ndarray::Axis(1), place - 1).to_owned();
            let total: f64 = row.iter().map(|z| z.exp()).sum();
            sum += total.ln() - row[[0, next as usize]];
            count += 1;
        }
    }
    let expected = (sum / f64::from(count)).exp();
    let [model, data] = [source.as_os_str(), words.as_os_str()];
    let done = kprune([
        "compare".as_ref(),
        model,
        model,
        "--data".as_ref(),
        data,
        "--segment".as_ref(),
        "32".as_ref(),
        "--json".as_ref(),
    ]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    let score = &report["b"]["quality"]["scores"][0];
    assert_eq!(score["name"], "perplexity");
    let found = score["value"].as_f64().unwrap();
    assert!((found / expected - 1.0).abs() < 1e-5, "{found} and not {expected}");
    assert_eq!(report["b"]["quality"]["samples"].as_u64().unwrap() as usize, ids.len() / 32);
}

#[test]
fn compression_is_a_share_of_what_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let source = decoders().join("gpt/model.onnx");
    let share = |of: &str, part: &dyn Fn(&Value) -> [f64; 2]| {
        let report = prune(
            &source,
            &folder.path().join("out.onnx"),
            &["--segment", "64", "--compression", "0.2", "--of", of, "--method", "magnitude"],
        );
        let [before, after] = part(&report);
        1.0 - after / before
    };
    let number = |value: &Value| value.as_f64().unwrap();
    let all = share("params", &|r| [number(&r["input"]["parameters"]), number(&r["output"]["parameters"])]);
    let blocks = share("block-params", &|r| {
        [number(&r["block_parameters"]["prunable"]), number(&r["block_parameters"]["kept"])]
    });
    let flops = share("flops", &|r| [number(&r["flops"]["prunable"]), number(&r["flops"]["kept"])]);
    for (of, share) in [("params", all), ("block-params", blocks), ("flops", flops)] {
        assert!((0.2..0.24).contains(&share), "{of}: {share}");
    }
    let too_much = run(&source, &folder.path().join("other.onnx"), &["--compression", "0.95", "--of", "params"]);
    assert!(!too_much.status.success() && text(&too_much.stderr).contains("embeddings stay"));
}

#[test]
fn a_decoder_is_timed_with_fewer_heads_and_their_caches() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("times.json");
    let model = fixtures().join("zoo/llama-past.genai.onnx");
    let table_of = ["--latency-table".as_ref(), table.as_os_str(), "--seq-len".as_ref(), "16".as_ref()];
    let done = kprune([["inspect".as_ref(), model.as_os_str()].as_slice(), &table_of].concat());
    assert!(done.status.success() && table.is_file(), "{}", text(&done.stderr));
}

/// A folder of a decoder, pruned.
fn pruned_folder(name: &str, output: &Path) {
    let done = kprune([
        decoders().join(name).as_os_str(),
        output.as_os_str(),
        "--calibration".as_ref(),
        calibration().as_os_str(),
        "--samples".as_ref(),
        "32".as_ref(),
        "--compression".as_ref(),
        "0.4".as_ref(),
    ]);
    assert!(done.status.success(), "{}", text(&done.stderr));
}

fn json(path: PathBuf) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// optimum makes caches of `hidden_size / num_attention_heads` columns, and so do others.
#[test]
fn caches_made_by_the_configuration_fit_the_pruned_model() {
    let folder = tempfile::tempdir().unwrap();
    for (name, [hidden, heads, cached]) in [
        ("gpt", ["n_embd", "n_head", "n_head"]),
        ("llama", ["hidden_size", "num_attention_heads", "num_key_value_heads"]),
    ] {
        let output = folder.path().join(name);
        pruned_folder(name, &output);
        let model = read_model(&output.join("model.onnx")).unwrap();
        let caches = caches(&model.graph);
        let config = json(output.join("config.json"));
        let number = |field: &str| config[field].as_i64().unwrap_or_else(|| panic!("{name}: no {field}"));
        for cache in caches {
            let is_long = |axis| kv_cache::length(&model.graph, cache.past, axis);
            assert_eq!(is_long(1), Some(number(cached)), "{name}");
            assert_eq!(is_long(3), Some(number(hidden) / number(heads)), "{name}");
        }
        assert!(number(cached) < json(decoders().join(name).join("config.json"))[cached].as_i64().unwrap(), "{name}");
    }
}

#[test]
fn folders_say_how_many_heads_are_left() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    pruned_folder("llama-genai", &output);
    let model = read_model(&output.join("model.onnx")).unwrap();
    let heads = kv_cache::length(&model.graph, caches(&model.graph)[0].past, 1).unwrap();
    let read = |name: &str| json(output.join(name));
    let (config, genai) = (read("config.json"), read("genai_config.json"));
    assert_eq!((config["num_key_value_heads"].as_i64(), config["head_dim"].as_i64()), (Some(heads), Some(16)));
    assert_eq!(config["onnx_kprune"]["attention_heads"][0].as_i64(), Some(2 * heads));
    assert_eq!(genai["model"]["decoder"]["num_key_value_heads"].as_i64(), Some(heads));
    assert_eq!(genai["model"]["decoder"]["num_attention_heads"].as_i64(), Some(2 * heads));
    // Both ways: caches of either have another number of heads.
    let original = decoders().join("llama-genai");
    for [a, b] in [[original.clone(), output.clone()], [output, original]] {
        let data = calibration();
        let all = [
            Path::new("compare"),
            &a,
            &b,
            Path::new("--data"),
            &data,
            Path::new("--samples"),
            Path::new("8"),
            Path::new("--json"),
        ];
        let done = kprune(all);
        assert!(done.status.success(), "{}", text(&done.stderr));
        let report: Value = serde_json::from_slice(&done.stdout).unwrap();
        let flops = |side: &str| report[side]["flops"].as_f64().unwrap();
        assert_ne!(flops("a"), flops("b"));
        assert!(report["b"]["quality"]["scores"][0]["value"].as_f64().unwrap() > 1.0);
    }
}

#[test]
fn padding_may_stand_before_the_text() {
    let Some(python) = python() else { return eprintln!("skipped: no Python environment") };
    let folder = tempfile::tempdir().unwrap();
    let script = "
import numpy as np, sys
ids = np.random.default_rng(0).integers(1, 1024, (12, 24))
np.savez(sys.argv[1] + '/whole.npz', input_ids=ids)
np.savez(sys.argv[1] + '/right.npz', input_ids=np.pad(ids, ((0, 0), (0, 8))),
         attention_mask=np.pad(np.ones_like(ids), ((0, 0), (0, 8))))
np.savez(sys.argv[1] + '/left.npz', input_ids=np.pad(ids, ((0, 0), (8, 0))),
         attention_mask=np.pad(np.ones_like(ids), ((0, 0), (8, 0))))
";
    let written = std::process::Command::new(python).args(["-c", script]).arg(folder.path()).status().unwrap();
    assert!(written.success());
    for name in ["gpt", "llama"] {
        let source = decoders().join(name).join("model.onnx");
        let output = folder.path().join(format!("{name}.onnx"));
        let left = folder.path().join("left.npz");
        let paths = [&source, &output, Path::new("--calibration"), &left, Path::new("--compression"), Path::new("0.3")];
        let done = kprune(paths);
        assert!(done.status.success(), "{}", text(&done.stderr));
        let scores = ["whole", "right", "left"].map(|kind| {
            let data = folder.path().join(format!("{kind}.npz"));
            let paths = [Path::new("compare"), &source, &output, Path::new("--data"), &data, Path::new("--json")];
            let done = kprune(paths);
            assert!(done.status.success(), "{}", text(&done.stderr));
            let report: Value = serde_json::from_slice(&done.stdout).unwrap();
            ["a", "b"].map(|side| report[side]["quality"]["scores"][0]["value"].as_f64().unwrap())
        });
        for (whole, padded) in [(scores[0], scores[1]), (scores[0], scores[2])] {
            assert!(whole.iter().zip(padded).all(|(a, b)| (a / b - 1.0).abs() < 1e-4), "{name}: {scores:?}");
        }
    }
}

#[test]
fn a_decoder_without_caches_loses_little() {
    let Some(shared) = shared() else { return };
    let (folder, source) = (tempfile::tempdir().unwrap(), shared.join("decoder/model.onnx"));
    let (output, eval) = (folder.path().join("out.onnx"), folder.path().join("eval.txt"));
    let reviews = std::fs::read_to_string(shared.join("decoder/eval.txt")).unwrap();
    let first: Vec<&str> = reviews.split("\n\n").take(60).collect();
    std::fs::write(&eval, first.join("\n\n")).unwrap();
    let done = kprune([
        source.as_os_str(),
        output.as_os_str(),
        "--calibration".as_ref(),
        shared.join("decoder/calibration.txt").as_os_str(),
        "--samples".as_ref(),
        "32".as_ref(),
        "--compression".as_ref(),
        "0.3".as_ref(),
        "--eval".as_ref(),
        eval.as_os_str(),
        "--report".as_ref(),
        folder.path().join("report.json").as_os_str(),
    ]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("report.json")).unwrap()).unwrap();
    let perplexity = |model: &Value| model["quality"]["scores"][0]["value"].as_f64().unwrap();
    let [before, after] = [perplexity(&report["original"]), perplexity(&report)];
    assert!(after / before < 1.02, "{before} -> {after}");
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    assert!(size(&output) < size(&source), "tied weights stay one");
}
