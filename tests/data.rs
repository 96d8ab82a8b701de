//! Data in all the forms that people have them in, through the command line.
#![allow(missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::{fixtures, program, python, reviews, text};

/// Prunes the trained fixture with calibration data from `path`.
fn prune(path: &Path, more: &[&str]) -> Value {
    prune_model(&reviews().join("model.onnx"), path, more)
}

fn prune_model(model: &Path, data: &Path, more: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut command = program();
    command.arg(model).arg(folder.path().join("out.onnx")).arg("--calibration").arg(data);
    let done = command.arg("--report").arg(&report).args(["-q", "--threads", "1"]).args(more).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap()
}

fn kept(report: &Value) -> Vec<Value> {
    report["sublayers"].as_array().unwrap().iter().map(|s| s["kept"].clone()).collect()
}

/// Runs a script of the test environment on some paths; `None` where there is none.
fn script(code: &str, paths: &[&Path]) -> Option<()> {
    let Some(python) = python() else {
        eprintln!("skipped: no Python environment");
        return None;
    };
    let done = Command::new(python).args(["-c", code]).args(paths).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    Some(())
}

#[test]
fn the_same_samples_give_the_same_units_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let few = folder.path().join("few.npz");
    let layout = folder.path().join("layout");
    let tensors = folder.path().join("few.safetensors");
    // Sets of different lengths, as a test runner would have them; the protocol buffers are onnx's own.
    let make = "import sys, pathlib, numpy as np, onnx, onnx.numpy_helper as h\n\
        from safetensors.numpy import save_file\n\
        source, few, layout, tensors = sys.argv[1:]\n\
        d = {k: v[:256] for k, v in np.load(source).items()}\n\
        np.savez(few, **d)\n\
        save_file({k: np.ascontiguousarray(v) for k, v in d.items()}, tensors)\n\
        for s in range(4):\n\
        \x20   rows = slice(64 * s, 64 * s + 64)\n\
        \x20   longest = int(d['attention_mask'][rows].sum(1).max())\n\
        \x20   p = pathlib.Path(layout) / f'test_data_set_{s}'\n\
        \x20   p.mkdir(parents=True)\n\
        \x20   for i, name in enumerate(['input_ids', 'attention_mask', 'token_type_ids']):\n\
        \x20       (p / f'input_{i}.pb').write_bytes(h.from_array(d[name][rows, :longest], name).SerializeToString())\n";
    let source = reviews().join("calibration.npz");
    if script(make, &[&source, &few, &layout, &tensors]).is_none() {
        return;
    }
    let lines = std::fs::read_to_string(reviews().join("calibration.jsonl")).unwrap();
    let texts: Vec<String> = lines
        .lines()
        .take(256)
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["text"].as_str().unwrap().to_string())
        .collect();
    let write = |name: &str, content: String| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let quoted = |t: &String| format!("7,\"{}\"\n", t.replace('"', "\"\""));
    let csv = write("few.csv", format!("idx,sentence\n{}", texts.iter().map(quoted).collect::<String>()));
    let tsv =
        write("few.tsv", format!("words\tlabel\n{}", texts.iter().map(|t| format!("{t}\t1\n")).collect::<String>()));
    let txt = write("few.txt", texts.join("\n"));

    let first = prune(&few, &[]);
    // An eighth is set aside to judge by.
    assert_eq!(first["calibration"]["samples"], 224);
    let expected = kept(&first);
    for (path, more) in [
        (&tensors, &[] as &[&str]),
        (&layout, &[]),
        (&layout.join("test_data_set_0"), &["--calibration", layout.join("test_data_set_1").to_str().unwrap()]),
        (&csv, &[]),
        (&tsv, &["--text-columns", "words"]),
        (&txt, &[]),
    ] {
        let report = prune(path, more);
        let samples = if more.first() == Some(&"--calibration") { 112 } else { 224 };
        assert_eq!(report["calibration"]["samples"], samples, "{}", path.display());
        if samples == 224 {
            assert_eq!(kept(&report), expected, "{}", path.display());
        }
    }
}

#[test]
fn some_of_the_samples_are_drawn_with_the_seed() {
    let data = reviews().join("calibration.npz");
    let run = |more: &[&str]| prune(&data, more);
    let [a, again, other] =
        [run(&["--samples", "100"]), run(&["--samples", "100"]), run(&["--samples", "100", "--seed", "1"])];
    assert_eq!(a["calibration"]["samples"], 100);
    assert_eq!(a["calibration"]["tokens"], again["calibration"]["tokens"]);
    assert_eq!(kept(&a), kept(&again));
    assert_ne!(a["calibration"]["tokens"], other["calibration"]["tokens"]);
}

#[test]
fn pairs_of_texts_are_told_apart_by_their_types() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.jsonl");
    let row =
        |i: usize| format!("{{\"premise\": \"the food was lovely\", \"hypothesis\": \"the soup was cold {i}\"}}\n");
    std::fs::write(&path, (0..40).map(row).collect::<String>()).unwrap();
    let report = prune(&path, &[]);
    // [CLS] 4 words [SEP] 5 words [SEP], as the fixture's tokenizer has no template for pairs it may differ by a few.
    let mean = report["calibration"]["tokens"].as_f64().unwrap() / 40.0;
    assert!((9.0..=12.0).contains(&mean), "both texts count: {mean}");
}

#[test]
fn a_folder_of_images_serves_a_vision_encoder() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    let model = folder.path().join("model.onnx");
    std::fs::copy(fixtures().join("zoo/vit.ts17.onnx"), &model).unwrap();
    let seen: Value =
        serde_json::from_slice(&program().arg("inspect").arg(&model).arg("--json").output().unwrap().stdout).unwrap();
    let input = seen["inputs"][0].as_str().unwrap().to_string();
    let size: u32 = input.trim_end_matches(']').rsplit(", ").next().and_then(|n| n.parse().ok()).unwrap_or(32);
    for class in ["cat", "dog"] {
        std::fs::create_dir_all(images.join(class)).unwrap();
        for i in 0..12u8 {
            let color = |x: u32, y: u32| image::Rgb([x as u8 * i, y as u8, if class == "cat" { 200 } else { 20 }]);
            image::RgbImage::from_fn(size + 9, size + 5, color)
                .save(images.join(class).join(format!("{i}.png")))
                .unwrap();
        }
    }
    let refused = program().arg(&model).arg(folder.path().join("x.onnx")).arg("--calibration").arg(&images).output();
    assert!(text(&refused.unwrap().stderr).contains("preprocessor_config.json"), "it says what is missing");
    let config = format!("{{\"size\": {{\"height\": {size}, \"width\": {size}}}, \"image_mean\": [0.5, 0.4, 0.3]}}");
    std::fs::write(folder.path().join("preprocessor_config.json"), config).unwrap();
    let report = prune_model(&model, &images, &["--samples", "20"]);
    assert_eq!(report["calibration"]["samples"], 20);
    let compared =
        program().arg("compare").args([&model, &model]).arg("--json").arg("--data").arg(&images).output().unwrap();
    let compared: Value =
        serde_json::from_slice(&compared.stdout).unwrap_or_else(|_| panic!("{}", text(&compared.stderr)));
    assert_eq!(compared["b"]["quality"]["samples"], 24);
    std::fs::write(images.join("cat/broken.png"), "no image").unwrap();
    let refused = program().arg(&model).arg(folder.path().join("x.onnx")).arg("--calibration").arg(&images).output();
    assert!(text(&refused.unwrap().stderr).contains("broken.png"));
}

#[test]
fn half_precision_arrays_are_taken_by_models_of_either() {
    let folder = tempfile::tempdir().unwrap();
    let [half, single] = ["half.npz", "single.npz"].map(|name| folder.path().join(name));
    let make = "import sys, numpy as np\n\
        pixels = np.random.default_rng(0).normal(size=(8, 3, 24, 24)).astype(np.float16)\n\
        np.savez(sys.argv[1], pixel_values=pixels)\n\
        np.savez(sys.argv[2], pixel_values=pixels.astype(np.float32))\n";
    if script(make, &[&half, &single]).is_none() {
        return;
    }
    for model in ["vit.dy20", "vit.dy20.f16"] {
        let units = [&half, &single].map(|data| {
            let (output, report) = (folder.path().join("out.onnx"), folder.path().join("report.json"));
            let model = fixtures().join(format!("zoo/{model}.onnx"));
            let done = program()
                .args([&model, &output])
                .arg("--calibration")
                .arg(data)
                .args(["-q", "--report"])
                .arg(&report)
                .output()
                .unwrap();
            assert!(done.status.success(), "{}", text(&done.stderr));
            kept(&serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap())
        });
        assert_eq!(units[0], units[1], "{model}");
    }
}
