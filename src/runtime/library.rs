//! Finding the ONNX Runtime library without the user's help.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use ort::environment::Environment;

use crate::error::Error;

/// Loads ONNX Runtime and says where it was found.
///
/// The order: `given`, or the variable `ORT_DYLIB_PATH`; beside the executable; the `onnxruntime` package of the
/// Python environment that the executable lies in, that is active, or that is on PATH (found without importing
/// it); the system's library path.
///
/// # Errors
/// Where a given library cannot be loaded, or none is found; the message names the command that
/// installs it.
pub(super) fn load(given: Option<&Path>) -> Result<(Environment, PathBuf), Error> {
    let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(loaded) = loaded.as_ref() {
        return Ok(loaded.clone());
    }
    let found = search(given)?;
    *loaded = Some(found.clone());
    Ok(found)
}

/// A process can load ONNX Runtime once; whoever comes later gets what was loaded first.
static LOADED: Mutex<Option<(Environment, PathBuf)>> = Mutex::new(None);

fn search(given: Option<&Path>) -> Result<(Environment, PathBuf), Error> {
    let variable = std::env::var_os("ORT_DYLIB_PATH").filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = given.map(Path::to_path_buf).or(variable) {
        let file = if path.is_dir() { libraries_in(&path).into_iter().next() } else { Some(path.clone()) };
        let file = file.ok_or_else(|| Error::Library { path: path.clone(), reason: "no library there".into() })?;
        return open(&file).map_err(|reason| Error::Library { path: file, reason });
    }
    let mut tried = Vec::new();
    for file in candidates() {
        match open(&file) {
            Ok(found) => return Ok(found),
            Err(reason) if file.exists() => tried.push(format!("{}: {reason}", file.display())),
            Err(_) => {}
        }
    }
    Err(Error::NoLibrary { tried })
}

fn open(path: &Path) -> Result<(Environment, PathBuf), String> {
    // Loading a FIFO would wait for a writer; a name alone is looked for by the system.
    if path.components().count() > 1 {
        crate::store::open(path).map_err(|e| e.to_string())?;
    }
    let builder = ort::init_from(path).map_err(|e| e.to_string())?;
    let environment = builder.with_name("onnx-kprune").with_telemetry(false).build().map_err(|e| e.to_string())?;
    // What goes wrong is returned as an error; ONNX Runtime need not print it too.
    environment.set_log_level(ort::logging::LogLevel::Fatal);
    Ok((environment, path.to_path_buf()))
}

/// Loads CUDA and cuDNN from the Python packages beside ONNX Runtime's own, where pip puts them and the system does
/// not look. What is not there is left to the system.
pub(super) fn preload_cuda(onnxruntime: &Path) {
    use ort::ep::cuda::{CUDA_DYLIBS, CUDNN_DYLIBS};
    let Some(packages) = onnxruntime.ancestors().nth(3) else { return };
    let folders: Vec<_> = std::fs::read_dir(packages.join("nvidia")).into_iter().flatten().flatten().collect();
    let places = |name: &str| {
        let inside = if cfg!(windows) { "bin" } else { "lib" };
        folders.iter().map(|f| f.path().join(inside).join(name)).find(|file| file.exists())
    };
    for file in CUDA_DYLIBS.iter().chain(CUDNN_DYLIBS).filter_map(|name| places(name)) {
        // Errors are not lost: what is missing is named when the provider itself is loaded.
        let _ = ort::util::preload_dylib(file);
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut files = Vec::new();
    if let Some(folder) = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)) {
        files.extend(libraries_in(&folder));
        files.extend(libraries_in(&folder.join("lib")));
        // Installed by pip, the program lies in the environment whose packages it belongs with.
        for packages in folder.parent().into_iter().flat_map(packages_of) {
            files.extend(libraries_in(&packages.join("onnxruntime/capi")));
        }
    }
    for folder in python_folders() {
        files.extend(libraries_in(&folder.join("onnxruntime/capi")));
    }
    files.push(PathBuf::from(system_name()));
    files
}

fn system_name() -> String {
    format!("{}onnxruntime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX)
}

/// The ONNX Runtime libraries of a folder, under their plain or versioned names.
fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let plain = system_name();
    let is_library = |name: &str| {
        let stem = format!("{}onnxruntime", std::env::consts::DLL_PREFIX);
        let versioned = name.strip_prefix(&stem).is_some_and(|rest| rest.starts_with('.'));
        name == plain || (versioned && name.contains(std::env::consts::DLL_SUFFIX))
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> =
        entries.filter(|e| e.file_name().to_str().is_some_and(is_library)).map(|e| e.path()).collect();
    found.sort();
    found
}

/// Where an environment of Python at `prefix` keeps its packages.
fn packages_of(prefix: &Path) -> Vec<PathBuf> {
    let versions = std::fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten().map(|v| v.path());
    let mut folders = vec![prefix.to_path_buf(), prefix.join("Lib/site-packages")];
    folders.extend(versions.flat_map(|v| [v.join("site-packages"), v.join("dist-packages")]));
    folders
}

/// Folders of the Python environments at hand that may hold packages.
fn python_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        if let Some(prefix) = std::env::var_os(variable).map(PathBuf::from) {
            folders.extend(packages_of(&prefix));
        }
    }
    let script = "import site, sysconfig; p = sysconfig.get_paths(); \
                  print('\\n'.join([p['platlib'], p['purelib'], site.getusersitepackages()]))";
    for python in ["python3", "python"] {
        let answer = Command::new(python).args(["-c", script]).stdin(Stdio::null()).stderr(Stdio::null()).output();
        if let Ok(answer) = answer {
            folders.extend(String::from_utf8_lossy(&answer.stdout).lines().map(PathBuf::from));
        }
    }
    folders
}
