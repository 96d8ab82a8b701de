//! Whatever is named as input or output: nothing that is read is replaced, nothing but a regular file is, and a run
//! that ends early leaves nothing behind.
#![allow(missing_docs)]
#![cfg(unix)]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::{fixtures, program, text};
use tempfile::TempDir;

/// A folder with a model whose data lie in another file, `in.onnx`.
fn place() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let zoo = fixtures().join("zoo");
    std::fs::copy(zoo.join("bert.ts17.external.onnx"), folder.path().join("in.onnx")).unwrap();
    std::fs::copy(zoo.join(DATA), folder.path().join(DATA)).unwrap();
    folder
}

const DATA: &str = "bert.ts17.external.data";

/// Every file below a folder, with its content.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(contents(&entry.path()));
        } else if kind.is_file() {
            found.insert(entry.path(), std::fs::read(entry.path()).unwrap());
        }
    }
    found
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let few = ["--threads", "1"];
    let samples: &[&str] = if arguments[0] == "inspect" { &[] } else { &["--samples", "8", "-q"] };
    program().current_dir(folder).args(arguments).args(few).args(samples).output().unwrap()
}

/// Refused as a wrong use, and nothing has changed.
fn refused(folder: &Path, arguments: &[&str], words: &str) {
    let before = contents(folder);
    let done = run(folder, arguments);
    let message = text(&done.stderr).replace("│", " ");
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(done.status.code(), Some(2), "{arguments:?}: {message}");
    assert!(message.contains(words), "{arguments:?}: {message}");
    assert!(contents(folder) == before, "{arguments:?} changed something");
}

#[test]
fn what_is_read_is_never_written() {
    let folder = place();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("model")).unwrap();
    std::fs::copy(fixtures().join("zoo/bert.ts17.onnx"), at("model/model.onnx")).unwrap();
    std::fs::copy(fixtures().join("zoo/bert.ts17.onnx"), at("out-0.2.onnx")).unwrap();
    std::fs::copy(at("in.onnx"), at("data.npz")).unwrap();
    std::fs::hard_link(at("in.onnx"), at("hard.onnx")).unwrap();
    symlink("in.onnx", at("soft.onnx")).unwrap();
    let read = "which is read and never changed";
    for (arguments, words) in [
        (&["in.onnx", "in.onnx"][..], read),
        (&["in.onnx", "./model/../in.onnx"], read),
        (&["in.onnx", "hard.onnx"], read),
        (&["in.onnx", "soft.onnx"], read),
        (&["in.onnx", DATA], "external data of IN"),
        (&["in.onnx", "o.onnx", "--save-plan", DATA], "external data of IN"),
        (&["in.onnx", "o.onnx", "--save-plan", "data.npz", "--calibration", "data.npz"], "--calibration"),
        (&["out-0.2.onnx", "out.onnx", "--sweep", "0.2,0.4"], read),
        (&["model", "model/model.onnx"], read),
        (&["model", "out", "--save-plan", "model/model.onnx"], read),
        (&["model", "model/out"], "lies within IN"),
        (&["in.onnx", "o.onnx", "--sweep", "0.3,0.6", "--dump-graph", "read=o-0.3.onnx"], "which is written too"),
        (&["in.onnx", "o.onnx", "--save-plan", "o.onnx.bert.ts17.external.data"], "which is written too"),
        (&["inspect", "in.onnx", "--latency-table", "in.onnx", "--seq-len", "16"], read),
        (&["inspect", "in.onnx", "--latency-table", DATA, "--seq-len", "16"], "external data of IN"),
        (&["inspect", "in.onnx", "--latency-table", "data.npz", "--calibration", "data.npz"], "--calibration"),
    ] {
        refused(folder.path(), arguments, words);
    }
}

#[test]
fn only_regular_files_are_replaced() {
    let folder = place();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("full/o.onnx")).unwrap();
    std::fs::write(at("full/o.onnx/file"), "kept").unwrap();
    fifo(&at("fifo"));
    symlink("fifo", at("to-fifo")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    refused(folder.path(), &["in.onnx", "fifo"], "is a FIFO, and only regular files are replaced");
    refused(folder.path(), &["in.onnx", "to-fifo"], "is a FIFO");
    refused(folder.path(), &["in.onnx", "socket"], "is a socket");
    refused(folder.path(), &["in.onnx", "o.onnx", "--save-plan", "fifo"], "is a FIFO");
    refused(folder.path(), &["in.onnx", "o.onnx", "--save-plan", "full"], "is a folder");
    refused(folder.path(), &["in.onnx", "missing/"], "there is no folder missing/");
    assert!(std::fs::symlink_metadata(at("fifo")).unwrap().file_type().is_fifo());
}

#[test]
fn a_folder_takes_the_model_under_its_name_and_a_link_leads_to_its_file() {
    let folder = place();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("out")).unwrap();
    std::fs::write(at("old.onnx"), "old").unwrap();
    symlink("old.onnx", at("link.onnx")).unwrap();
    symlink("new.onnx", at("dangling.onnx")).unwrap();
    for (target, written) in [("out/", "out/in.onnx"), ("link.onnx", "old.onnx"), ("dangling.onnx", "new.onnx")] {
        let done = run(folder.path(), &["in.onnx", target]);
        assert!(done.status.success(), "{target}: {}", text(&done.stderr));
        assert!(std::fs::symlink_metadata(at(written)).unwrap().is_file(), "{target}");
        assert!(std::fs::metadata(at(written)).unwrap().len() > 1000, "{target}");
    }
    assert!(std::fs::symlink_metadata(at("link.onnx")).unwrap().is_symlink());
}

#[test]
fn inputs_that_could_block_are_refused_at_once() {
    let folder = place();
    let at = |name: &str| folder.path().join(name);
    fifo(&at("fifo.onnx"));
    fifo(&at("fifo.npz"));
    std::fs::remove_file(at(DATA)).unwrap();
    fifo(&at(DATA));
    std::fs::copy(fixtures().join("zoo/bert.ts17.onnx"), at("whole.onnx")).unwrap();
    for arguments in [
        &["inspect", "fifo.onnx"][..],
        &["fifo.onnx", "o.onnx"],
        &["in.onnx", "o.onnx"],
        &["whole.onnx", "o.onnx", "--calibration", "fifo.npz"],
        &["whole.onnx", "o.onnx", "--plan", "fifo.npz"],
        &["inspect", "whole.onnx", "--onnxruntime", "./fifo.npz"],
    ] {
        let start = Instant::now();
        let mut child = program().current_dir(folder.path()).args(arguments).stderr(Stdio::piped()).spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > Duration::from_secs(10) {
                child.kill().unwrap();
                panic!("{arguments:?} hangs");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let done = child.wait_with_output().unwrap();
        assert_eq!(done.status.code(), Some(1), "{arguments:?}");
        assert!(text(&done.stderr).contains("FIFO"), "{arguments:?}: {}", text(&done.stderr));
    }
}

#[test]
fn the_umask_is_honoured_and_dash_prints_the_report() {
    let folder = place();
    let command = "umask 027; exec \"$0\" in.onnx out.onnx --report - --report r.json -q --samples 8";
    let mut shell = Command::new("sh");
    shell.args(["-c", command, env!("CARGO_BIN_EXE_onnx-kprune")]).current_dir(folder.path());
    let done = shell.output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let printed: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(printed["output"]["path"], "out.onnx");
    for name in ["out.onnx", "r.json", "out.onnx.bert.ts17.external.data"] {
        let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o640, "{name}");
    }
}

#[test]
fn a_dry_run_says_what_was_asked_for_and_writes_no_model() {
    let folder = place();
    let done = run(folder.path(), &["in.onnx", "--dry-run", "--compression", "0.4", "--report", "r.json"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report = std::fs::read_to_string(folder.path().join("r.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["compression"], 0.4);
    assert!(report["flops"]["budget"].is_number() && report["output"].is_null());
    assert_eq!(contents(folder.path()).len(), 3);
}

#[test]
fn of_several_products_all_appear_or_none() {
    let folder = place();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("o-0.6.onnx/in-the-way")).unwrap();
    let done = run(folder.path(), &["in.onnx", "o.onnx", "--sweep", "0.3,0.6", "--report", "r.html"]);
    assert_eq!(done.status.code(), Some(2), "{}", text(&done.stderr));
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn a_run_that_is_ended_leaves_nothing_behind() {
    for (round, signal) in ["INT", "TERM", "HUP"].into_iter().cycle().take(18).enumerate() {
        let folder = place();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("out.onnx"), "old").unwrap();
        let before = contents(folder.path());
        let arguments: &[&str] = match round % 2 {
            0 => &["in.onnx", "out.onnx", "--report", "r.html"],
            _ => &["in.onnx", "new.onnx", "--sweep", "0.2,0.5"],
        };
        let mut command = program();
        command.current_dir(folder.path()).args(arguments).args(["--threads", "1", "--samples", "64"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(40 * round as u64));
        let send = || Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).output().unwrap();
        send();
        let start = Instant::now();
        if round % 3 == 0 {
            send();
        }
        let status = child.wait().unwrap();
        assert!(start.elapsed() < Duration::from_secs(2), "{signal} took {:?}", start.elapsed());
        let mut after = contents(folder.path());
        let names: Vec<_> = after.keys().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert!(!names.iter().any(|n| n.ends_with(".tmp")), "{signal} leaves {names:?}");
        for name in ["in.onnx", DATA] {
            assert!(after[&at(name)] == before[&at(name)], "{name} changed");
        }
        if !status.success() {
            // It may have been too late to stop the files, which then are all there.
            let is_old = after.len() == before.len();
            after.retain(|path, content| before.get(path) != Some(content));
            assert!(is_old && after.is_empty() || names.len() >= before.len() + 2, "{signal} leaves parts: {names:?}");
        }
    }
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}
