//! Files that are wrong, hostile or merely odd: pruned, or refused at once in plain words, and nothing else.
#![allow(missing_docs)]

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use support::{fixtures, reviews, text};
use tempfile::TempDir;

/// No refusal takes longer; most take a fifth of a second, of which starting ONNX Runtime is the larger part.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Kilobytes of address space: one GiB, and what ONNX Runtime and the threads reserve without using it.
const MEMORY: usize = 3 << 20;

fn case(name: &str) -> PathBuf {
    fixtures().join("cases").join(name)
}

fn zoo(name: &str) -> PathBuf {
    fixtures().join("zoo").join(name)
}

/// Runs the program with as much memory as it may take, in a folder of its own; returns how it ended and what it left.
fn run(arguments: &[&std::ffi::OsStr]) -> (Output, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let done = Command::new("sh")
        .args([
            "-c",
            "ulimit -v \"$1\"; shift; exec \"$@\"",
            "sh",
            &MEMORY.to_string(),
            env!("CARGO_BIN_EXE_onnx-kprune"),
        ])
        .args(arguments)
        .args(["--threads", "1"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(start.elapsed() < AT_ONCE, "{arguments:?} took {:?}", start.elapsed());
    let names =
        std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    (done, names.collect())
}

/// What the program says, in one line.
fn message(done: &Output) -> String {
    let text = text(&done.stderr).replace("│", " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn arguments<'a>(model: &'a Path, more: &[&'a str]) -> Vec<&'a std::ffi::OsStr> {
    let mut all = vec![model.as_os_str(), "out.onnx".as_ref(), "--samples".as_ref(), "16".as_ref(), "-q".as_ref()];
    all.extend(more.iter().map(|a| std::ffi::OsStr::new(*a)));
    all
}

/// Asserts that the program refuses to prune, with status 1 or 2, all of these words, and nothing left behind.
fn refused(model: &Path, more: &[&str], words: &[&str]) {
    let (done, left) = run(&arguments(model, more));
    let message = message(&done);
    let status = done.status.code();
    assert!(matches!(status, Some(1 | 2)), "{}: {status:?} {message}", model.display());
    assert!(left.is_empty(), "{} leaves {left:?}", model.display());
    assert!(!message.contains("defect"), "{}: {message}", model.display());
    for word in words {
        // Long paths are broken where a line ends.
        let squeezed = |t: &str| t.replace(' ', "");
        assert!(squeezed(&message).contains(&squeezed(word)), "{}: no {word:?} in: {message}", model.display());
    }
}

fn pruned(model: &Path, more: &[&str]) {
    let (done, left) = run(&arguments(model, more));
    assert!(done.status.success(), "{}: {}", model.display(), message(&done));
    assert_eq!(left, ["out.onnx"], "{}", model.display());
}

#[test]
fn models_that_are_wrong_or_ask_for_too_much_are_refused() {
    let cases: &[(&str, &[&str])] = &[
        ("model_diamond20.onnx", &["sample 0", "NaN"]),
        ("model_diamond26.onnx", &["sample 0", "NaN"]),
        ("model_dtype27.onnx", &["\"odd\"", "float6e2m3"]),
        ("model_func_rec_1x2.onnx", &["\"F0\"", "calls itself"]),
        ("model_in_batch_huge.onnx", &["\"x\"", "320000000 numbers"]),
        ("model_in_emptyname.onnx", &["its rank is not declared"]),
        ("model_in_fixed_1e6.onnx", &["\"x\"", "16000000 numbers"]),
        ("model_in_huge_fixed.onnx", &["\"x\"", "8796093022208 numbers"]),
        ("model_in_norank.onnx", &["\"q\"", "rank is not declared"]),
        ("model_in_sequence.onnx", &["\"q\"", "it is no tensor"]),
        ("model_in_unused_huge.onnx", &["\"z\"", "8589934592 numbers"]),
        ("model_name_kprune_cross.onnx", &["\"kprune_cross\"", "rename it"]),
        ("model_name_kprune_samples.onnx", &["\"kprune_samples\"", "rename it"]),
        ("model_name_kprune_teacher.onnx", &["\"kprune_teacher_y\"", "rename it"]),
        ("model_op_expand_1g.onnx", &["Expand \"z\"", "536870912 elements"]),
        ("model_op_loop_inf.onnx", &["Loop \"b\"", "nothing ends"]),
        ("model_op_tile0.onnx", &["nothing to prune", "Tile \"z\" makes an empty value"]),
        ("model_w_nan.onnx", &["element 0", "\"w1\"", "NaN"]),
        ("panic_capacity_overflow.onnx", &["\"token_type_ids\"", "numbers"]),
        ("panic_tile_zero_repeats.onnx", &["nothing to prune"]),
        ("panic_untie_initializer_is_output.onnx", &["Gemm"]),
        ("verify_first_difference_missing_output.onnx", &["another shape, which the sum stretches"]),
        ("verify_nonfinite_mlp.onnx", &["element 943", "\"model.blocks.0.3.weight\"", "NaN"]),
        ("verify_rank_changes_when_sublayer_goes.onnx", &["another shape, which the sum stretches"]),
        ("verify_shared_qkv_contracted_channels.onnx", &["nothing to prune", "product of two activations"]),
    ];
    for (name, words) in cases {
        refused(&case(name), if name.contains("untie") { &["--untie"] } else { &[] }, words);
    }
}

#[test]
fn models_that_are_merely_odd_are_pruned() {
    let odd = [
        "model_escapes_in_names.onnx",
        "model_in_rank5_named.onnx",
        "model_output_twice.onnx",
        "panic_output_listed_twice.onnx",
    ];
    for name in odd {
        pruned(&case(name), &[]);
    }
}

#[test]
fn every_case_can_be_looked_at_or_is_refused() {
    for entry in std::fs::read_dir(fixtures().join("cases")).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "onnx") {
            continue;
        }
        let (done, left) = run(&["inspect".as_ref(), path.as_os_str()]);
        assert!(matches!(done.status.code(), Some(0 | 1)), "{}: {:?}", path.display(), done.status);
        assert!(!message(&done).contains("defect"), "{}: {}", path.display(), message(&done));
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn names_from_files_do_not_steer_the_terminal_or_the_page() {
    let model = case("model_escapes_in_names.onnx");
    let steers = |c: char| c.is_control() && c != '\n';
    let (inspected, _) = run(&["inspect".as_ref(), model.as_os_str()]);
    assert!(!text(&inspected.stdout).contains(steers), "{:?}", text(&inspected.stdout));
    let (inspected, _) = run(&["inspect".as_ref(), model.as_os_str(), "--json".as_ref()]);
    let parsed: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert!(parsed["declined"][0]["place"].as_str().unwrap().contains("pwned"));
    assert!(!text(&inspected.stdout).contains(steers));
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.html");
    let done =
        support::program().arg(&model).arg(folder.path().join("o.onnx")).arg("-v").arg("--report").arg(&page).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{}", message(&done));
    assert!(!text(&done.stdout).contains(steers) && !text(&done.stderr).contains(steers));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(!page.contains(steers) && !page.contains("<script>"));
}

#[test]
fn a_sample_that_gives_no_numbers_is_named() {
    let onebad = case("padmask_onebad.npz");
    let folder = tempfile::tempdir().unwrap();
    let files = [case("padmask.onnx"), folder.path().join("o.onnx")];
    let said = |more: &[&str]| {
        let done = support::program().args(&files).arg("--calibration").arg(&onebad).args(more).output().unwrap();
        assert_eq!(done.status.code(), Some(1));
        message(&done)
    };
    let named = said(&[]);
    assert!(named.contains("sample 5 has no real token") && named.contains("1 for padding"), "{named}");
    // Where nothing is said to be the mask, what comes out tells.
    let unmasked = said(&["--mask-input", "none"]);
    assert!(unmasked.contains("sample 5") && unmasked.contains("NaN"), "{unmasked}");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let model = case("zipmap.onnx");
    let report = folder.path().join("report.json");
    let out = folder.path().join("o.onnx");
    let done = support::program().args([&model, &out]).arg("--report").arg(&report).output().unwrap();
    assert!(done.status.success(), "{}", message(&done));
    assert!(message(&done).contains("what goes into them was compared instead"), "{}", message(&done));
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    assert!(report["verify"]["difference"].as_f64().unwrap() < 1e-4);
    let compared = support::program().arg("compare").args([&model, &out]).output().unwrap();
    assert!(text(&compared.stdout).contains("nothing could be compared"), "{}", text(&compared.stdout));
    let refused = support::program().arg(&model).arg(folder.path().join("p.onnx")).args(["--max-drop", "0.1"]).output();
    let refused = refused.unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", message(&refused));
    assert!(message(&refused).contains("nothing that could be compared"), "{}", message(&refused));
}

#[test]
fn data_files_that_are_not_what_they_say_are_refused() {
    let bert = zoo("bert.ts17.onnx");
    let cases: &[(&str, &[&str])] = &[
        ("data_npy_shape_1e9.npz", &["\"input_ids.npy\"", "48000000000 bytes"]),
        ("data_npy_shape_zero_overflow.npz", &["different numbers of samples"]),
        ("data_npz_label_rank0.npz", &["\"labels\" is a single number"]),
        ("data_npz_zero_len.npz", &["holds no numbers"]),
        ("data_two_npz_rank0_c.npz", &["is a single number"]),
        ("data_two_npz_rank1_b.npz", &["the shape [6]"]),
    ];
    for (name, words) in cases {
        refused(&bert, &["--calibration", case(name).to_str().unwrap()], words);
    }
    let [a, b] = ["a", "b"].map(|n| case(&format!("data_two_npz_rank1_{n}.npz")));
    let both = ["--calibration", a.to_str().unwrap(), "--calibration", b.to_str().unwrap()];
    refused(&bert, &both, &["several files has the shapes [8, 6], [6]"]);
}

#[test]
fn archives_may_not_unpack_to_whatever_they_like() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.npz");
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (300000, 1000), }\n";
    let zeros = vec![0; 1_000_000];
    for name in ["input_ids", "attention_mask", "token_type_ids"] {
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        archive.start_file(format!("{name}.npy"), options).unwrap();
        archive.write_all(b"\x93NUMPY\x01\x00").unwrap();
        archive.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
        archive.write_all(header.as_bytes()).unwrap();
        (0..300).for_each(|_| archive.write_all(&zeros).unwrap());
    }
    archive.finish().unwrap();
    refused(&zoo("bert.ts17.onnx"), &["--calibration", path.to_str().unwrap()], &["would take 900000000 bytes"]);
}

#[test]
fn images_and_preprocessors_may_not_ask_for_whatever_they_like() {
    let vit = zoo("vit.ts17.onnx");
    let folder = tempfile::tempdir().unwrap();
    let image = image::RgbImage::from_pixel(40, 30, image::Rgb([1, 2, 3]));
    image.save(folder.path().join("small.png")).unwrap();
    let calibration = ["--calibration", folder.path().to_str().unwrap(), "--preprocessor"];
    for name in ["img_pre_crop_huge.json", "img_pre_size_huge.json"] {
        let preprocessor = case(name);
        let more = [&calibration[..], &[preprocessor.to_str().unwrap()]].concat();
        refused(&vit, &more, &["asks for 4294967295 pixels"]);
    }
    // The header alone of a picture of 20,000 by 20,000 pixels.
    let header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x4e\x20\0\0\x4e\x20\x08\0\0\0\0";
    let mut bomb = header.to_vec();
    bomb.extend(crc(&header[12..]).to_be_bytes());
    bomb.extend([0, 0, 0, 0, b'I', b'D', b'A', b'T', 0x35, 0xaf, 0x06, 0x1e]);
    std::fs::write(folder.path().join("bomb.png"), bomb).unwrap();
    let preprocessor = folder.path().join("preprocessor_config.json");
    std::fs::write(&preprocessor, r#"{"size": {"height": 24, "width": 24}}"#).unwrap();
    let more = [&calibration[..], &[preprocessor.to_str().unwrap()]].concat();
    refused(&vit, &more, &["bomb.png", "is no readable image"]);
}

/// The checksum of a part of a PNG file (CRC-32).
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 })
    };
    !bytes.iter().fold(!0, step)
}

#[test]
fn tables_and_tokenizers_are_read_in_time_that_grows_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let wide = folder.path().join("wide.jsonl");
    let lines: Vec<String> = (0..25_000).map(|i| format!("{{\"text\":\"a good bread\",\"k{i}\":1}}")).collect();
    std::fs::write(&wide, lines.join("\n")).unwrap();
    pruned(&reviews().join("model.onnx"), &["--calibration", wide.to_str().unwrap()]);
    let texts = reviews().join("calibration.jsonl");
    for (name, words) in [
        ("tok_post_empty.json", "makes no tokens"),
        ("tok_post_junk.json", "cannot be read"),
        ("tok_precomp2.json", "shorter than it says"),
    ] {
        let tokenizer = case(name);
        let more = ["--calibration", texts.to_str().unwrap(), "--tokenizer", tokenizer.to_str().unwrap()];
        refused(&reviews().join("model.onnx"), &more, &[words]);
    }
}

#[test]
fn plans_and_tables_of_another_make_are_refused() {
    let bert = zoo("bert.ts17.onnx");
    let path = |name: &str| case(name).to_str().unwrap().to_string();
    refused(&bert, &["--plan", &path("plan_rev1.json")], &["\"3-2\" ends before it begins"]);
    refused(&bert, &["--plan", &path("plan_schema.json")], &["is of version 99"]);
    let table = ["--speedup", "1.3", "--latency-table", &path("latency_schema9.json")];
    refused(&bert, &table, &["is of version 9"]);
}

/// A model whose files are links into a cache beside it, as hubs lay them out.
#[test]
#[cfg(unix)]
fn a_model_in_a_cache_of_links_loads() {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(place("blobs")).unwrap();
    std::fs::create_dir_all(place("snapshots/abc/onnx")).unwrap();
    std::fs::copy(zoo("bert.ts17.external.onnx"), place("blobs/aaa")).unwrap();
    std::fs::copy(zoo("bert.ts17.external.data"), place("blobs/bbb")).unwrap();
    let link = |blob: &str, name: &str| {
        std::os::unix::fs::symlink(format!("../../../blobs/{blob}"), place(&format!("snapshots/abc/onnx/{name}")))
            .unwrap();
    };
    link("aaa", "model.onnx");
    link("bbb", "bert.ts17.external.data");
    let model = place("snapshots/abc/onnx/model.onnx");
    let (done, left) = run(&arguments(&model, &[]));
    assert!(done.status.success(), "{}", message(&done));
    assert_eq!(left.len(), 2, "the model and its data: {left:?}");
    // Data outside of both folders are still refused.
    std::fs::rename(place("blobs/bbb"), place("elsewhere")).unwrap();
    std::fs::remove_file(place("snapshots/abc/onnx/bert.ts17.external.data")).unwrap();
    std::os::unix::fs::symlink(place("elsewhere"), place("snapshots/abc/onnx/bert.ts17.external.data")).unwrap();
    refused(&model, &[], &["it is a link out of the model's folder"]);
}
