//! Shapes that models of other people have, through the command line; see fixtures/cases/README.md.
#![allow(missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::{fixtures, kprune, program, python, text};

fn case(name: &str) -> PathBuf {
    fixtures().join("cases").join(name)
}

fn inspect(model: &Path) -> Value {
    let seen = kprune(["inspect".as_ref(), model.as_os_str(), "--json".as_ref()]);
    assert!(seen.status.success(), "{}", text(&seen.stderr));
    serde_json::from_slice(&seen.stdout).unwrap()
}

/// Prunes a case by 60 %, on its own samples where it has some; returns the report.
fn prune(model: &Path, output: &Path, more: &[&str]) -> Result<Value, String> {
    let mut command = program();
    command.arg(model).arg(output).args(["-q", "--threads", "1", "--compression", "0.6", "--report", "-"]).args(more);
    let samples = model.with_extension("npz");
    if samples.is_file() {
        command.arg("--calibration").arg(samples);
    }
    let done = command.output().unwrap();
    match done.status.success() {
        true => Ok(serde_json::from_slice(&done.stdout).unwrap()),
        // Messages are broken into lines by the width of a terminal.
        false => Err(text(&done.stderr).replace("│", " ").split_whitespace().collect::<Vec<_>>().join(" ")),
    }
}

#[test]
fn operators_of_an_extension_are_refused_in_plain_words() {
    let folder = tempfile::tempdir().unwrap();
    let model = case("exttok.onnx");
    let refused = prune(&model, &folder.path().join("out.onnx"), &[]).unwrap_err();
    assert!(refused.contains("ai.onnx.contrib:BertTokenizer") && refused.contains("extension"), "{refused}");
    let compared = kprune(["compare".as_ref(), model.as_os_str(), model.as_os_str()]);
    assert!(text(&compared.stderr).contains("BertTokenizer"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn eight_bit_weights_behind_a_cast_are_quantised() {
    let folder = tempfile::tempdir().unwrap();
    let refused = prune(&case("int8_cast.onnx"), &folder.path().join("out.onnx"), &[]).unwrap_err();
    assert!(refused.contains("quantised") && refused.contains("int8"), "{refused}");
}

#[test]
fn initializers_that_leave_the_inputs_raise_the_version_of_the_format() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    prune(&case("ir3.onnx"), &output, &[]).unwrap();
    let Some(python) = python() else { return eprintln!("skipped: no Python environment") };
    let script = "import sys, onnx; m = onnx.load(sys.argv[1]); onnx.checker.check_model(m); print(m.ir_version)";
    let checked = Command::new(python).args(["-c", script]).arg(&output).output().unwrap();
    assert_eq!((text(&checked.stdout).trim(), text(&checked.stderr).as_str()), ("4", ""));
}

#[test]
fn layers_that_share_one_weight_of_several_are_told_to_be_untied() {
    let folder = tempfile::tempdir().unwrap();
    let (model, output) = (case("names_dedup.onnx"), folder.path().join("out.onnx"));
    let declined = inspect(&model)["declined"].to_string();
    assert!(declined.contains("share the weight") && declined.contains("--untie"), "{declined}");
    let sublayers = |report: &Value| report["sublayers"].as_array().unwrap().len();
    let tied = prune(&model, &output, &[]).unwrap();
    let untied = prune(&model, &output, &["--untie"]).unwrap();
    assert!(sublayers(&untied) > sublayers(&tied));
}

#[test]
fn without_a_mask_every_position_is_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let report = prune(&fixtures().join("zoo/vit.ts17.onnx"), &folder.path().join("out.onnx"), &[]).unwrap();
    let [samples, tokens] = ["samples", "tokens"].map(|n| report["calibration"][n].as_u64().unwrap());
    assert!(tokens > samples && tokens % samples == 0, "{tokens} tokens of {samples} samples");
}

#[test]
fn mini_batches_of_spans_are_those_that_were_published() {
    let folder = tempfile::tempdir().unwrap();
    let size = |name: &str| {
        let model = fixtures().join("zoo").join(name);
        prune(&model, &folder.path().join("out.onnx"), &[]).unwrap()["settings"]["batch_size"].as_u64().unwrap()
    };
    assert_eq!([size("bert-qa.ts17.onnx"), size("bert.ts17.onnx")], [12, 32]);
}

#[test]
fn masks_of_four_axes_and_additive_ones_are_fed_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["mask4d.onnx", "mask2d_additive.onnx"] {
        let output = folder.path().join(name);
        let report = prune(&case(name), &output, &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(report["calibration"]["mask_input"].is_null(), "{name}: no input says which tokens are real");
        assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4, "{name}");
        assert!(inspect(&case(name))["sublayers"].as_array().is_some_and(|s| !s.is_empty()), "{name}");
        let named = prune(&case(name), &output, &["--mask-input", "attention_mask"]).unwrap_err();
        assert!(named.contains("1 for real tokens and 0 for padding"), "{named}");
    }
}

#[test]
fn a_mask_can_be_said_not_to_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let (model, output) = (fixtures().join("reviews/model.onnx"), folder.path().join("out.onnx"));
    let calibration = fixtures().join("reviews/calibration.npz");
    let more = ["--calibration", calibration.to_str().unwrap(), "--samples", "64", "--dry-run"];
    let tokens = |more: &[&str]| {
        let report = prune(&model, &output, more).unwrap();
        (report["calibration"]["mask_input"].clone(), report["calibration"]["tokens"].as_u64().unwrap())
    };
    let (with, without) = (tokens(&more), tokens(&[&more[..], &["--mask-input", "none"]].concat()));
    assert_eq!((with.0.as_str(), without.0.as_str()), (Some("attention_mask"), None));
    assert!(without.1 > with.1, "padding counts where nothing says that it is padding");
}

#[test]
fn heads_behind_padding_and_rotary_strides_are_offered() {
    let folder = tempfile::tempdir().unwrap();
    for (name, heads) in [("conformer_pad.onnx", 2), ("rope2.onnx", 2)] {
        let report = prune(&case(name), &folder.path().join(name), &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
        let units = report["sublayers"].as_array().unwrap().iter().map(|s| s["unit"].as_str().unwrap());
        assert_eq!(units.filter(|unit| *unit == "head").count(), heads, "{name}");
        assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4, "{name}");
    }
}

#[test]
fn samples_are_run_where_made_up_inputs_are_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    // Indices into the samples, no ranks, a single number, at least 7 tokens, rows without padding, windows that pad.
    for name in ["spanidx", "norank", "silero_scalar", "least7", "unpad", "padwindow_least9"] {
        let model = case(&format!("{name}.onnx"));
        let report = prune(&model, &folder.path().join(name), &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4, "{name}");
        let kept = report["flops"]["kept"].as_f64().unwrap() / report["flops"]["prunable"].as_f64().unwrap();
        assert!(kept <= 0.4, "{name}: {kept}");
    }
    for (name, sublayers) in [("spanidx", 4), ("norank", 4)] {
        let model = case(&format!("{name}.onnx"));
        let refused = kprune(["inspect".as_ref(), model.as_os_str()]);
        assert!(text(&refused.stderr).contains("--calibration"), "{name}: {}", text(&refused.stderr));
        let samples = model.with_extension("npz");
        let seen = kprune(["inspect".as_ref(), model.as_os_str(), "--calibration".as_ref(), samples.as_os_str()]);
        assert!(seen.status.success(), "{name}: {}", text(&seen.stderr));
        let rows = text(&seen.stdout).lines().filter(|l| l.contains("neurons") || l.contains("heads")).count();
        assert_eq!(rows, sublayers, "{name}: {}", text(&seen.stdout));
    }
}

#[test]
fn a_graph_that_takes_one_sample_at_a_time_is_given_one_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let report = prune(&case("khmersm_batch1.onnx"), &folder.path().join("out.onnx"), &[]).unwrap();
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("one at a time only"), "{warnings}");
    assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4);
}

/// Convolutions with strides whose lengths are rounded: three equal sublayers on 256 positions.
#[test]
fn operations_are_counted_in_a_run_of_the_samples_size() {
    let folder = tempfile::tempdir().unwrap();
    let report = prune(&case("svtr_flops.onnx"), &folder.path().join("out.onnx"), &[]).unwrap();
    let flops = report["flops"]["prunable"].as_f64().unwrap();
    assert_eq!(flops, 3.0 * 2.0 * 2.0 * 256.0 * 64.0 * 256.0);
}

/// A length that was one in the made-up runs is none of the model's numbers.
#[test]
fn what_depends_on_the_size_of_a_sample_is_not_written_as_a_number() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    prune(&case("ppocr_one_token.onnx"), &output, &[]).unwrap();
    let runtime = support::cpu();
    let mut session = runtime.session_of_file(&output, "running what was pruned").unwrap();
    for (width, steps) in [(16, 2), (96, 12), (200, 25)] {
        let image = ndarray::ArrayD::from_elem(vec![2, 3, 16, width], 0.5);
        let held = onnx_kprune::runtime::numbers(&image).unwrap();
        let values = session.run([("x", held.value())]).unwrap();
        assert_eq!(onnx_kprune::runtime::scalars(&values["probs"]).unwrap().shape(), [2, steps, 20]);
    }
}

#[test]
fn samples_of_different_shapes_share_no_batch_and_are_not_scrambled() {
    let [a, b] = ["scrambled_a.onnx", "scrambled_b.onnx"].map(case);
    let data = case("scrambled_mixed");
    let arguments = ["compare".as_ref(), a.as_os_str(), b.as_os_str(), "--data".as_ref(), data.as_os_str()];
    let compared = kprune(arguments.into_iter().chain(["--json".as_ref()]));
    let compared: Value = serde_json::from_slice(&compared.stdout).unwrap();
    let fidelity = &compared["b"]["quality"]["fidelity"];
    assert!((fidelity["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{fidelity}");
    assert_eq!(fidelity["largest_difference"].as_f64(), Some(0.0));
}

/// Pairs of atoms, [samples, atoms, atoms]: from a folder of molecules, each of its own size, and padded in one file.
#[test]
fn every_axis_that_runs_over_tokens_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let model = case("rxnmap_pairs.onnx");
    let report = prune(&model, &folder.path().join("a.onnx"), &["--mask-input", "atoms"]).unwrap();
    assert_eq!(report["calibration"]["mask_input"], "atoms");
    assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4);
    let (output, sets) = (folder.path().join("b.onnx"), case("rxnmap_pairs"));
    let arguments = [model.as_os_str(), output.as_os_str(), "--calibration".as_ref(), sets.as_os_str()];
    let done = kprune(arguments.into_iter().chain(["-q".as_ref()]));
    assert!(done.status.success(), "{}", text(&done.stderr));
}

#[test]
fn weights_that_are_expressions_of_constants_are_computed_and_nothing_grows() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["constweight_cast", "constweight_reshape", "constweight_scale"] {
        let report = prune(&case(&format!("{name}.onnx")), &folder.path().join(name), &[]).unwrap();
        assert_eq!(report["sublayers"].as_array().unwrap().len(), 4, "{name}");
        assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4, "{name}");
        let bytes = |side: &str| report[side]["bytes"].as_f64().unwrap();
        assert!(bytes("output") < 0.75 * bytes("input"), "{name}: {} of {}", bytes("output"), bytes("input"));
    }
}

#[test]
fn adapters_are_merged_into_the_weights_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let report = prune(&case("lora_all.onnx"), &folder.path().join("out.onnx"), &[]).unwrap();
    assert_eq!(report["sublayers"].as_array().unwrap().len(), 4);
    assert!(report["warnings"].to_string().contains("10 low-rank branches"), "{}", report["warnings"]);
    assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4);
}

/// Neurons whose outputs are channels of heads: an adapter with a nonlinearity beside a value projection.
#[test]
fn a_sublayer_within_a_sublayer_is_cut_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let plan = case("nested.plan.json");
    let arguments = ["--plan", plan.to_str().unwrap()];
    let (model, output) = (case("nested.onnx"), folder.path().join("out.onnx"));
    let done = program().arg(&model).arg(&output).args(arguments).arg("-q").output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
}

#[test]
fn einsum_is_a_product_like_others() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["einsum3d", "einsum_scores", "sam_einsum"] {
        let report = prune(&case(&format!("{name}.onnx")), &folder.path().join(name), &[]).unwrap();
        let sublayers = report["sublayers"].as_array().unwrap();
        let heads = sublayers.iter().filter(|s| s["unit"] == "head").count();
        assert_eq!((sublayers.len(), heads), (4, 2), "{name}");
        assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4, "{name}");
    }
}

#[test]
fn query_heads_that_share_all_keys_go_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let report = prune(&case("relu2_mq.onnx"), &folder.path().join("out.onnx"), &[]).unwrap();
    let sublayers = report["sublayers"].as_array().unwrap();
    let heads: Vec<_> = sublayers.iter().filter(|s| s["unit"] == "head").collect();
    let units: u64 = heads.iter().map(|s| s["units"].as_u64().unwrap()).sum();
    let kept: usize = heads.iter().map(|s| s["kept"].as_array().unwrap().len()).sum();
    assert_eq!((heads.len(), units), (2, 10));
    assert!((1..10).contains(&kept), "some go, and not all at once");
    assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4);
}

#[test]
fn older_operator_sets_are_upgraded_and_give_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for set in [7, 9, 11, 12] {
        let model = fixtures().join(format!("old_sets/set{set}.onnx"));
        let report = prune(&model, &folder.path().join("out.onnx"), &[]).unwrap_or_else(|e| panic!("{set}: {e}"));
        assert_eq!(report["sublayers"].as_array().unwrap().len(), 4, "{set}");
        assert!(report["warnings"].to_string().contains(&format!("operator set {set} was upgraded to 13")));
        assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4, "{set}");
    }
}

#[test]
fn files_of_old_pytorch_are_pruned_as_those_of_today() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| fixtures().join("old_pytorch").join(format!("{name}.onnx"));
    for (name, sublayers) in [
        ("bert.pt1.4.0.op9", 4),
        ("distilbert.pt1.4.0.op10", 4),
        ("gpt2.pt1.4.0.op10", 4),
        ("gpt2.pt1.13.1.op13", 4),
        ("albert.pt1.13.1.op11", 2),
    ] {
        let report = prune(&file(name), &folder.path().join("out.onnx"), &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found = report["sublayers"].as_array().unwrap();
        let heads = found.iter().filter(|s| s["unit"] == "head" && s["units"] == 5).count();
        assert_eq!((found.len(), heads), (sublayers, sublayers / 2), "{name}");
        assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4, "{name}");
    }
    let refused = prune(&file("roberta.pt1.4.0.op10"), &folder.path().join("out.onnx"), &[]).unwrap_err();
    assert!(refused.contains("ATen") && refused.contains("opset_version"), "{refused}");
}

#[test]
fn neurons_go_through_a_convolution_of_every_channel_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let report = prune(&case("mixffn.onnx"), &folder.path().join("out.onnx"), &[]).unwrap();
    let sublayers = report["sublayers"].as_array().unwrap();
    assert_eq!(sublayers.iter().filter(|s| s["unit"] == "neuron").count(), 2);
    assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4);
}

#[test]
fn what_a_mask_means_is_tried_on_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    let text = case("text");
    for (model, input) in [("padmask.onnx", "src_key_padding_mask"), ("fairseq.onnx", "padding_mask")] {
        let model = case(model);
        let of = |more: &[&str]| prune(&model, &output, more).unwrap_or_else(|e| panic!("{input}: {e}"));
        let report = of(&[]);
        assert_eq!(report["calibration"]["mask_input"], input);
        let said = format!("{input:?} holds 1 for padding");
        assert!(report["warnings"].to_string().replace('\\', "").contains(&said), "{}", report["warnings"]);
        let tokens = report["calibration"]["tokens"].as_u64().unwrap();
        assert!(tokens < of(&["--mask-input", "none"])["calibration"]["tokens"].as_u64().unwrap(), "padding is none");
    }
    // The same where the masks are the program's own: of text, and of made-up inputs.
    let model = text.join("padmask.onnx");
    let kept = |report: &Value| report["sublayers"].as_array().unwrap().iter().map(|s| s["kept"].clone()).collect();
    let [ours, right]: [Vec<Value>; 2] = ["upper.csv", "right_padmask.npz"]
        .map(|data| kept(&prune(&model, &output, &["--calibration", text.join(data).to_str().unwrap()]).unwrap()));
    assert_eq!(ours, right);
    prune(&model, &output, &[]).unwrap();
}

#[test]
fn graphs_of_other_converters_are_read_as_they_write_them() {
    let folder = tempfile::tempdir().unwrap();
    for (style, heads) in [("tf2onnx", 4), ("keras2onnx", 32), ("paddle", 4), ("torch13", 4), ("fairseq", 4)] {
        let model = fixtures().join(format!("styles/{style}.onnx"));
        let report = prune(&model, &folder.path().join("out.onnx"), &[]).unwrap_or_else(|e| panic!("{style}: {e}"));
        let sublayers = report["sublayers"].as_array().unwrap();
        let units: Vec<_> = sublayers.iter().map(|s| s["units"].as_u64().unwrap()).collect();
        // Where every head has products of its own, the columns of its values are what can go.
        assert_eq!(units, [heads, 64, heads, 64], "{style}");
        assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4, "{style}");
    }
}
