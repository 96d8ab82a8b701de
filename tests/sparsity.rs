//! Sparsity of single weights, through the command line.
#![allow(missing_docs)]

mod support;

use std::path::Path;

use kprune_passes::ir::{Model, ValueId};
use onnx_kprune::store::read_model;
use serde_json::Value;
use support::{fixtures, kprune, prune_reviews, reviews, text};

/// The reviews model with this share of zeros; the report, and the model.
fn sparse(folder: &Path, name: &str, more: &[&str]) -> (Value, Model) {
    let output = folder.join(name);
    let report = prune_reviews(&output, &[&["-q"], more].concat());
    (report, read_model(&output).unwrap())
}

/// The report of the same, judged on other samples.
fn judged(folder: &Path, more: &[&str]) -> Value {
    let eval = reviews().join("eval.npz");
    sparse(folder, "judged.onnx", &[&["--eval", eval.to_str().unwrap()], more].concat()).0
}

fn divergence(report: &Value) -> f64 {
    report["quality"]["fidelity"]["divergence"].as_f64().unwrap()
}

/// The matrices that the report lists: their numbers in the file, inputs first.
fn matrices(report: &Value, model: &Model) -> Vec<ndarray::Array2<f64>> {
    let blocks = report["sparsification"]["blocks"].as_array().unwrap();
    let listed = blocks.iter().flat_map(|block| block["matrices"].as_array().unwrap());
    let matrix = |row: &Value| {
        let value: ValueId = model.graph.find(row["name"].as_str().unwrap()).unwrap();
        let numbers = model.graph.constant(value).unwrap().to_f64().unwrap();
        let numbers = numbers.into_dimensionality::<ndarray::Ix2>().unwrap();
        let inputs = row["inputs"].as_u64().unwrap() as usize;
        if numbers.nrows() == inputs { numbers } else { numbers.reversed_axes() }
    };
    listed.map(matrix).collect()
}

fn zeros(matrices: &[ndarray::Array2<f64>]) -> f64 {
    let all: usize = matrices.iter().map(|m| m.len()).sum();
    matrices.iter().flatten().filter(|x| **x == 0.0).count() as f64 / all as f64
}

#[test]
fn as_many_weights_are_zero_as_were_asked_for_and_the_others_stay_as_they_were_or_have_a_scale() {
    let folder = tempfile::tempdir().unwrap();
    let original = read_model(&fixtures().join("reviews/model.onnx")).unwrap();
    let learned = ["--method", "besa", "--steps", "8"];
    let published = [&learned[..], &["--keep-values"]].concat();
    for share in ["0.5", "0.7", "0.8"] {
        for method in [&learned[..], &published, &["--method", "wanda"], &["--method", "magnitude"]] {
            let more = [&["--samples", "96", "--sparsity", share], method].concat();
            let (report, model) = sparse(folder.path(), "out.onnx", &more);
            let found = matrices(&report, &model);
            let reported = report["sparsification"]["sparsity"].as_f64().unwrap();
            let wanted: f64 = share.parse().unwrap();
            assert!((zeros(&found) - wanted).abs() < 0.005, "{method:?} {share}: {}", zeros(&found));
            assert!((zeros(&found) - reported).abs() < 1e-9);
            let scales = scales(&found, &matrices(&report, &original));
            let is_one = |scales: &Vec<f64>| scales.iter().all(|&scale| scale == 1.0);
            assert_eq!(scales.iter().all(is_one), method != learned, "{method:?}");
            for of_group in scales {
                let [least, most] = [f64::min, f64::max].map(|of| of_group.iter().copied().reduce(of).unwrap_or(1.0));
                assert!(most - least < 1e-4 * most && least > 0.1, "32 weights of a row share a scale: {of_group:?}");
            }
        }
    }
}

/// What the weights that stay were multiplied with, by the 32 of a row that share a scale.
fn scales(found: &[ndarray::Array2<f64>], dense: &[ndarray::Array2<f64>]) -> Vec<Vec<f64>> {
    let of_row = |(sparse, dense): (ndarray::ArrayView1<f64>, ndarray::ArrayView1<f64>)| {
        let pairs: Vec<(f64, f64)> = sparse.iter().copied().zip(dense.iter().copied()).collect();
        let of_group = |group: &[(f64, f64)]| group.iter().filter(|(s, _)| *s != 0.0).map(|(s, d)| s / d).collect();
        pairs.chunks(32).map(of_group).collect::<Vec<Vec<f64>>>()
    };
    let rows = found.iter().zip(dense).flat_map(|(sparse, dense)| sparse.columns().into_iter().zip(dense.columns()));
    rows.flat_map(of_row).collect()
}

#[test]
fn what_is_learned_is_nearer_to_the_original_than_the_same_share_of_every_row() {
    let folder = tempfile::tempdir().unwrap();
    let of = |method: &[&str]| judged(folder.path(), &[&["--sparsity", "0.6"], method].concat());
    let [besa, wanda, magnitude] =
        [&["--method", "besa"][..], &["--method", "wanda"], &["--method", "magnitude"]].map(of);
    let [b, w, m] = [&besa, &wanda, &magnitude].map(divergence);
    assert!(b < w && w < m, "besa {b}, wanda {w}, magnitude {m}");
    let published = divergence(&of(&["--keep-values"]));
    assert!(b < published && published < w, "besa {b}, as published {published}, wanda {w}");
    for block in besa["sparsification"]["blocks"].as_array().unwrap() {
        let [before, after] = ["error_uniform", "error"].map(|key| block[key].as_f64().unwrap());
        assert!(after < before, "{block}");
        let matrix = &block["matrices"][0]["of_rows"];
        assert!(matrix[0].as_f64() < matrix[1].as_f64(), "rows differ");
    }
    let matrix = of(&["--rates", "matrix"]);
    assert!(divergence(&matrix) < w, "by matrix {}, wanda {w}", divergence(&matrix));
    let [besa, wanda] = ["besa", "wanda"].map(|method| {
        divergence(&judged(folder.path(), &["--method", method, "--sparsity", "0.5", "--pattern", "2:4"]))
    });
    assert!(besa < wanda, "2:4: besa {besa}, wanda {wanda}");
    let rows = &matrix["sparsification"]["blocks"][0]["matrices"][0]["of_rows"];
    assert!(rows[1].as_f64().unwrap() - rows[0].as_f64().unwrap() < 0.05, "one rate for all, but for rounding");
}

#[test]
fn patterns_hold_in_every_group_along_the_axis_of_products() {
    let folder = tempfile::tempdir().unwrap();
    for (pattern, stay, of, share) in [("2:4", 2, 4, "0.5"), ("4:8", 4, 8, "0.5"), ("1:4", 1, 4, "0.75")] {
        let (report, model) =
            sparse(folder.path(), "out.onnx", &["--samples", "64", "--sparsity", share, "--pattern", pattern]);
        for matrix in matrices(&report, &model) {
            for row in matrix.columns() {
                let row = row.to_vec();
                assert!(row.chunks(of).all(|group| group.iter().filter(|x| **x != 0.0).count() <= stay), "{pattern}");
            }
        }
    }
    // Fewer zeros than a pattern has: which matrices take part is learned.
    let (report, model) =
        sparse(folder.path(), "out.onnx", &["--sparsity", "0.25", "--pattern", "2:4", "--steps", "8"]);
    let shares: Vec<f64> = matrices(&report, &model).iter().map(|m| zeros(std::slice::from_ref(m))).collect();
    assert!(shares.iter().all(|&share| share == 0.0 || share == 0.5), "{shares:?}");
    assert!(shares.contains(&0.0) && shares.contains(&0.5), "{shares:?}");
}

#[test]
fn weights_go_after_units_and_after_distillation() {
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan.json");
    let more = ["--compression", "0.5", "--distil", "1", "--sparsity", "0.5", "--steps", "4"];
    let (report, model) =
        sparse(folder.path(), "out.onnx", &[&more[..], &["--save-plan", plan.to_str().unwrap()]].concat());
    assert!((zeros(&matrices(&report, &model)) - 0.5).abs() < 0.005);
    assert!(report["output"]["parameters"].as_u64() < report["input"]["parameters"].as_u64());
    assert!(report["distillation"]["before"].is_number());
    let plan: Value = serde_json::from_slice(&std::fs::read(&plan).unwrap()).unwrap();
    assert_eq!(plan["matrices"][0], report["sparsification"]["blocks"][0]["matrices"][0]);
    assert!(report["sparsification"]["difference"].as_f64().unwrap() < 1e-4);
}

#[test]
fn the_same_seed_gives_the_same_bytes_also_where_values_are_spilled() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = |name: &str, more: &[&str]| {
        sparse(folder.path(), name, &[&["--samples", "128", "--sparsity", "0.5", "--steps", "6"], more].concat());
        std::fs::read(folder.path().join(name)).unwrap()
    };
    let [first, again] = ["a.onnx", "b.onnx"].map(|name| bytes(name, &[]));
    assert!(first == again);
    assert!(first == bytes("c.onnx", &["--memory", "1kB"]), "values that are spilled are the same");
}

#[test]
fn zeros_make_a_file_smaller_when_it_is_compressed_and_compare_says_so() {
    let folder = tempfile::tempdir().unwrap();
    sparse(folder.path(), "out.onnx", &["--samples", "64", "--sparsity", "0.8", "--method", "magnitude"]);
    let (original, data) = (fixtures().join("reviews/model.onnx"), reviews().join("eval.npz"));
    let mut command = support::program();
    command.arg("compare").arg(original).arg(folder.path().join("out.onnx")).arg("--data").arg(data).arg("--json");
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    let compared: Value = serde_json::from_slice(&out.stdout).unwrap();
    let of = |side: &str, key: &str| compared[side][key].as_f64().unwrap();
    assert_eq!(of("a", "bytes"), of("b", "bytes"));
    assert!(of("b", "compressed") < 0.9 * of("a", "compressed"));
    assert!(of("b", "zeros") > of("a", "zeros") + 0.1);
}

#[test]
fn a_file_may_give_its_matrices_by_what_is_not_zero() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--samples", "64", "--sparsity", "0.9", "--method", "magnitude"];
    let (plain, model) = sparse(folder.path(), "plain.onnx", &more);
    let (small, same) = sparse(folder.path(), "small.onnx", &[&more[..], &["--sparse-initializers"]].concat());
    assert_eq!(matrices(&plain, &model), matrices(&small, &same), "read back, they are the same");
    let size = |report: &Value| report["output"]["bytes"].as_f64().unwrap();
    assert!(size(&small) < 0.6 * size(&plain), "{} and {} bytes", size(&small), size(&plain));
    // ONNX Runtime reads the file itself, and so does this program, as any other.
    support::cpu().session_of_file(&folder.path().join("small.onnx"), "testing").unwrap();
    let (again, data) = (folder.path().join("again.onnx"), reviews().join("calibration.npz"));
    let mut command = support::program();
    command.arg(folder.path().join("small.onnx")).arg(&again).arg("--calibration").arg(data).args([
        "--samples",
        "64",
        "-q",
    ]);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
}

#[test]
fn models_of_every_kind_lose_weights() {
    let folder = tempfile::tempdir().unwrap();
    // Half precision, shared weights, images, two inputs of tokens, a decoder, fused operators, layers side by side.
    let names =
        ["bert.ts17.f16", "albert.ts17", "vit.dy20", "t5.ts17", "gpt2.dy20", "bert-sdpa.dy20.ort", "gpt-neox.ts17"];
    for name in names {
        let (model, output) = (fixtures().join(format!("zoo/{name}.onnx")), folder.path().join(format!("{name}.onnx")));
        let more = ["--sparsity", "0.5", "--samples", "8", "--steps", "2", "-q"];
        let out = support::program().args([&model, &output]).args(more).output().unwrap();
        assert!(out.status.success(), "{name}: {}", text(&out.stderr));
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    let model = fixtures().join("reviews/model.onnx");
    for (more, expected) in [
        (&["--sparsity", "0.95"][..], "a number from 0 to 0.9"),
        (&["--sparsity", "0.5", "--pattern", "4:2"], "is no pattern"),
        (&["--sparsity", "0.6", "--pattern", "2:4"], "more than the 0.5"),
        (&["--sparsity", "0.3", "--pattern", "2:4", "--method", "wanda"], "--method besa"),
        (&["--method", "wanda"], "--sparsity"),
        (&["--pattern", "2:4"], "--sparsity"),
        (&["--sparsity", "0.5", "--method", "wanda", "--steps", "3"], "--method besa"),
    ] {
        let arguments = [model.as_os_str(), output.as_os_str()].map(|a| a.to_os_string()).to_vec();
        let out = kprune(arguments.into_iter().chain(more.iter().map(Into::into)));
        assert_eq!(out.status.code(), Some(2), "{more:?}: {}", text(&out.stderr));
        let said = text(&out.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(expected), "{more:?}: {said}");
        assert!(!output.exists());
    }
}
